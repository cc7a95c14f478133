//! The few calls that payments need, reduced to what they say about money.

use std::collections::{BTreeMap, HashMap};
use std::str::FromStr;

use stripe_core::payment_intent::{
    CancelPaymentIntent, CancelPaymentIntentCancellationReason, CreatePaymentIntent,
    CreatePaymentIntentAutomaticPaymentMethods, RetrievePaymentIntent,
};
use stripe_core::refund::{CreateRefund, ListRefund};
use stripe_shared::{PaymentIntent, PaymentIntentAllowedPaymentMethodTypes, PaymentIntentStatus};
use stripe_types::Currency;
use uuid::Uuid;

use super::super::machine::Seen;
use super::{Stripe, StripeFailure};
use crate::platform::currency::{from_stripe, to_stripe};

/// Refunds of one payment that we look at; there are one or two.
const REFUNDS_MAX: i64 = 100;
/// Stripe cuts nothing off: longer values are refused.
const METADATA_CHARS_MAX: usize = 480;

/// What an intent is to be made of.
#[derive(Clone, Debug)]
pub struct NewIntent {
    pub payment_id: Uuid,
    pub order_id: Uuid,
    pub user_id: Uuid,
    pub performance_id: Option<Uuid>,
    pub amount: i64,
    pub currency: String,
    pub description: String,
    pub attempt: i32,
    /// More of the metadata, noted with the attempt.
    pub extra: BTreeMap<String, String>,
}

impl NewIntent {
    /// The same for every try of this attempt, on whatever instance, after whatever crash.
    fn key(&self) -> String {
        format!("pi:{}:{}", self.payment_id, self.attempt)
    }

    /// What the intent says of itself, for whoever has lost everything else.
    pub fn metadata(&self) -> HashMap<String, String> {
        let mut metadata: HashMap<String, String> = self.extra.clone().into_iter().collect();
        metadata.extend([
            ("order_id".to_owned(), self.order_id.to_string()),
            ("payment_id".to_owned(), self.payment_id.to_string()),
            ("user_id".to_owned(), self.user_id.to_string()),
        ]);
        if let Some(id) = self.performance_id {
            metadata.insert("performance_id".to_owned(), id.to_string());
        }
        metadata
    }
}

/// An intent as a fresh look shows it.
#[derive(Clone, Debug)]
pub struct Intent {
    pub id: String,
    pub seen: Seen,
    pub amount: i64,
    pub amount_received: i64,
    pub currency: String,
    pub live: bool,
    pub payment_id: Option<Uuid>,
    /// As we wrote it.
    pub metadata: HashMap<String, String>,
    /// Unix seconds.
    pub created: i64,
    pub client_secret: Option<String>,
    pub failure_code: Option<String>,
    pub failure_message: Option<String>,
}

impl From<PaymentIntent> for Intent {
    fn from(intent: PaymentIntent) -> Self {
        let error = intent.last_payment_error;
        let seen = match intent.status {
            PaymentIntentStatus::Succeeded => Seen::Paid,
            PaymentIntentStatus::Canceled => Seen::Cancelled,
            // We capture at once; where somebody holds one back at Stripe, the card is charged soon.
            PaymentIntentStatus::Processing | PaymentIntentStatus::RequiresCapture => {
                Seen::Processing
            }
            PaymentIntentStatus::RequiresPaymentMethod if error.is_some() => Seen::Declined,
            PaymentIntentStatus::RequiresPaymentMethod
            | PaymentIntentStatus::RequiresAction
            | PaymentIntentStatus::RequiresConfirmation
            | PaymentIntentStatus::Unknown(_) => Seen::Open,
            _ => Seen::Open,
        };
        let currency = intent.currency.to_string();
        let (failure_code, failure_message) = match (seen, error) {
            (Seen::Declined, Some(error)) => {
                let error = *error;
                let code = error.code.map(|code| code.as_str().to_owned());
                (error.decline_code.or(code), error.message)
            }
            _ => (None, None),
        };
        Self {
            id: intent.id.to_string(),
            seen,
            amount: from_stripe(intent.amount, &currency),
            amount_received: from_stripe(intent.amount_received, &currency),
            live: intent.livemode,
            payment_id: intent
                .metadata
                .get("payment_id")
                .and_then(|id| id.parse().ok()),
            metadata: intent.metadata,
            created: intent.created,
            client_secret: intent.client_secret,
            failure_code,
            failure_message,
            currency,
        }
    }
}

impl Intent {
    /// As a signed event shows it; `None` where its shape is not the one that we know, whatever
    /// version of the API it says it is of.
    pub fn of_event(object: &serde_json::Value) -> Option<Self> {
        let text = |name: &str| object[name].as_str().map(str::to_owned);
        if object["object"].as_str()? != "payment_intent" {
            return None;
        }
        let error = match &object["last_payment_error"] {
            serde_json::Value::Null => None,
            error => Some(error.as_object()?),
        };
        let seen = match object["status"].as_str()? {
            "succeeded" => Seen::Paid,
            "canceled" => Seen::Cancelled,
            "processing" | "requires_capture" => Seen::Processing,
            "requires_payment_method" if error.is_some() => Seen::Declined,
            "requires_payment_method" | "requires_action" | "requires_confirmation" => Seen::Open,
            _ => return None,
        };
        let said = |name: &str| {
            let error = error.filter(|_| seen == Seen::Declined)?;
            error.get(name)?.as_str().map(str::to_owned)
        };
        let currency = text("currency")?;
        let metadata = object["metadata"].as_object()?;
        Some(Self {
            id: text("id")?,
            seen,
            amount: from_stripe(object["amount"].as_i64()?, &currency),
            amount_received: from_stripe(object["amount_received"].as_i64()?, &currency),
            live: object["livemode"].as_bool()?,
            payment_id: metadata
                .get("payment_id")
                .and_then(|id| id.as_str()?.parse().ok()),
            metadata: metadata
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
                .collect(),
            created: object["created"].as_i64()?,
            client_secret: text("client_secret"),
            failure_code: said("decline_code").or_else(|| said("code")),
            failure_message: said("message"),
            currency,
        })
    }
}

/// What Stripe says of a refund.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefundState {
    Pending,
    Succeeded,
    /// The bank sent it back, or it was cancelled: the buyer has nothing.
    Failed,
}

/// A refund at Stripe, ours or made in its dashboard.
#[derive(Clone, Debug)]
pub struct StripeRefund {
    pub id: String,
    pub amount: i64,
    pub state: RefundState,
    pub failure_reason: Option<String>,
    /// Our own id of it and its attempt, where it is ours.
    pub refund_id: Option<Uuid>,
    pub attempt: Option<i32>,
}

impl StripeRefund {
    /// Has the buyer the money?
    pub fn succeeded(&self) -> bool {
        self.state == RefundState::Succeeded
    }
}

impl From<stripe_shared::Refund> for StripeRefund {
    fn from(refund: stripe_shared::Refund) -> Self {
        let currency = refund.currency.to_string();
        let metadata = refund.metadata.unwrap_or_default();
        Self {
            id: refund.id.to_string(),
            amount: from_stripe(refund.amount, &currency),
            state: match refund.status.as_deref() {
                Some("succeeded") => RefundState::Succeeded,
                Some("failed" | "canceled") => RefundState::Failed,
                _ => RefundState::Pending,
            },
            failure_reason: refund.failure_reason,
            refund_id: metadata.get("refund_id").and_then(|id| id.parse().ok()),
            attempt: metadata.get("attempt").and_then(|n| n.parse().ok()),
        }
    }
}

/// `--stripe-payment-methods`: what a buyer may pay with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentMethods {
    /// Whatever is switched on in Stripe's dashboard, those that settle after days included.
    Automatic,
    /// These only.
    Named(Vec<PaymentIntentAllowedPaymentMethodTypes>),
}

impl Default for PaymentMethods {
    /// Cards, and the wallets that stand for one: they settle at once.
    fn default() -> Self {
        Self::Named(vec![PaymentIntentAllowedPaymentMethodTypes::Card])
    }
}

impl FromStr for PaymentMethods {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.trim() == "automatic" {
            return Ok(Self::Automatic);
        }
        let named = |name: &str| match name.trim().parse() {
            Ok(PaymentIntentAllowedPaymentMethodTypes::Unknown(name)) => Err(format!(
                "Stripe has no payment method '{name}': want its names with commas between, as card,link, or automatic"
            )),
            Ok(known) => Ok(known),
            Err(never) => match never {},
        };
        Ok(Self::Named(
            text.split(',').map(named).collect::<Result<_, _>>()?,
        ))
    }
}

impl Stripe {
    /// Makes the intent of this attempt, or finds the one that it made before.
    pub async fn create_intent(&self, new: &NewIntent) -> Result<Intent, StripeFailure> {
        let currency: Currency = match new.currency.parse() {
            Ok(currency) => currency,
            Err(never) => match never {},
        };
        let mut description = new.description.clone();
        description.truncate(description.floor_char_boundary(METADATA_CHARS_MAX));
        let request = CreatePaymentIntent::new(to_stripe(new.amount, &new.currency), currency)
            .description(description)
            .metadata(new.metadata());
        let request = match &self.inner.methods {
            PaymentMethods::Automatic => request
                .automatic_payment_methods(CreatePaymentIntentAutomaticPaymentMethods::new(true)),
            PaymentMethods::Named(types) => request.allowed_payment_method_types(types.clone()),
        };
        self.call(&request, Some(&new.key()))
            .await
            .map(Intent::from)
    }

    pub async fn intent(&self, id: &str) -> Result<Intent, StripeFailure> {
        let request = RetrievePaymentIntent::new(id);
        self.call(&request, None).await.map(Intent::from)
    }

    /// Cancels the intent, and says what it is afterwards. Carries no key: under one, Stripe
    /// would repeat an old "it is processing" for ever, and cancelling twice harms nothing.
    pub async fn cancel_intent(&self, id: &str) -> Result<Intent, StripeFailure> {
        let request = CancelPaymentIntent::new(id)
            .cancellation_reason(CancelPaymentIntentCancellationReason::Abandoned);
        let cancelled = self.call(&request, None).await;
        match cancelled {
            Ok(intent) => Ok(intent.into()),
            // It is cancelled, paid or being paid already: see which.
            Err(StripeFailure::Refused { .. }) => self.intent(id).await,
            Err(unknown) => Err(unknown),
        }
    }

    /// Sends money back, under the key of this attempt.
    pub async fn refund(
        &self,
        refund_id: Uuid,
        attempt: i32,
        intent_id: &str,
        amount: i64,
        currency: &str,
    ) -> Result<StripeRefund, StripeFailure> {
        let request = CreateRefund::new()
            .payment_intent(intent_id)
            .amount(to_stripe(amount, currency))
            .metadata(HashMap::from([
                ("refund_id".to_owned(), refund_id.to_string()),
                ("attempt".to_owned(), attempt.to_string()),
            ]));
        let key = format!("re:{refund_id}:{attempt}");
        self.call(&request, Some(&key))
            .await
            .map(StripeRefund::from)
    }

    /// Every refund of this intent, whoever made it.
    pub async fn refunds(&self, intent_id: &str) -> Result<Vec<StripeRefund>, StripeFailure> {
        let request = ListRefund::new()
            .payment_intent(intent_id)
            .limit(REFUNDS_MAX);
        let list = self.call(&request, None).await?;
        Ok(list.data.into_iter().map(StripeRefund::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_believed_only_in_the_shape_that_we_know() {
        let id = Uuid::now_v7();
        let event = serde_json::json!({
            "object": "payment_intent", "id": "pi_1", "status": "succeeded", "amount": 500,
            "amount_received": 500, "currency": "usd", "livemode": false,
            "metadata": {"payment_id": id}, "last_payment_error": null, "unheard_of": [1],
        });
        let intent = Intent::of_event(&event).unwrap();
        assert_eq!((intent.seen, intent.payment_id), (Seen::Paid, Some(id)));
        assert_eq!((intent.amount, intent.amount_received), (500, 500));
        for (field, odd) in [
            ("object", serde_json::json!("charge")),
            ("status", "settled".into()),
            ("amount", "500".into()),
            ("amount", serde_json::json!(1e300)),
            ("amount_received", serde_json::Value::Null),
            ("currency", 7.into()),
            ("livemode", serde_json::Value::Null),
            ("metadata", serde_json::Value::Null),
            ("last_payment_error", "declined".into()),
            ("id", serde_json::json!(["pi_1"])),
        ] {
            let mut other = event.clone();
            other[field] = odd;
            assert!(Intent::of_event(&other).is_none(), "{field}: {other}");
        }
        let mut declined = event.clone();
        declined["status"] = "requires_payment_method".into();
        declined["last_payment_error"] =
            serde_json::json!({"code": "card_declined", "decline_code": "lost_card"});
        let intent = Intent::of_event(&declined).unwrap();
        assert_eq!(intent.seen, Seen::Declined);
        assert_eq!(intent.failure_code.as_deref(), Some("lost_card"));
    }

    #[test]
    fn payment_methods_are_read_as_their_help_says() {
        use PaymentIntentAllowedPaymentMethodTypes::{Card, Link};
        let read = |text: &str| text.parse::<PaymentMethods>();
        assert_eq!(read("card"), Ok(PaymentMethods::default()));
        assert_eq!(
            read("card, link"),
            Ok(PaymentMethods::Named(vec![Card, Link]))
        );
        assert_eq!(read("automatic"), Ok(PaymentMethods::Automatic));
        for bad in ["", "cart", "card,", "card,automatic", "CARD"] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("no payment method"), "{bad}: {error}");
        }
    }
}
