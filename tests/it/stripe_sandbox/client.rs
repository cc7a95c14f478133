//! async-stripe accepts the sandbox's answers: its requests, its types, its
//! errors; only the transport is ours, since its own is not compiled in.

use bytes::Bytes;
use stripe_client_core::{CustomizedStripeRequest, StripeClient, StripeClientErr, StripeMethod};
use stripe_core::payment_intent::{
    CancelPaymentIntent, CapturePaymentIntent, ConfirmPaymentIntent, CreatePaymentIntent,
    CreatePaymentIntentAutomaticPaymentMethods, ListPaymentIntent, RetrievePaymentIntent,
    UpdatePaymentIntent,
};
use stripe_core::refund::{CreateRefund, ListRefund, RetrieveRefund};
use stripe_shared::api_errors::ApiErrorsCode;
use stripe_shared::{ApiErrors, PaymentIntent, PaymentIntentCaptureMethod, PaymentIntentStatus};
use stripe_types::{Currency, Expandable};

use super::setup::{SECRET_KEY, Sandbox};

struct Client<'a>(&'a Sandbox);

#[derive(Debug)]
enum Failed {
    Stripe(Box<ApiErrors>, u16),
    Unreadable(String),
}

impl StripeClientErr for Failed {
    fn deserialize_err(message: impl std::fmt::Display) -> Self {
        Self::Unreadable(message.to_string())
    }
}

impl StripeClient for Client<'_> {
    type Err = Failed;

    async fn execute(&self, request: CustomizedStripeRequest) -> Result<Bytes, Failed> {
        let (request, _) = request.into_pieces();
        let method = match request.method {
            StripeMethod::Get => "GET",
            StripeMethod::Post => "POST",
            StripeMethod::Delete => "DELETE",
        };
        let path = match &request.query {
            Some(query) => format!("/v1{}?{query}", request.path),
            None => format!("/v1{}", request.path),
        };
        let bearer = format!("Bearer {SECRET_KEY}");
        let headers = [("authorization", bearer.as_str())];
        let body = request.body.unwrap_or_default();
        let answer = self.0.call(method, &path, &body, &headers).await;
        if answer.status < 300 {
            return Ok(Bytes::from(answer.text));
        }
        match error_object(&answer.text) {
            Some(error) => Err(Failed::Stripe(error, answer.status)),
            None => Err(Failed::Unreadable(answer.text)),
        }
    }
}

fn error_object(text: &str) -> Option<Box<ApiErrors>> {
    miniserde::json::from_str::<stripe_shared::Error>(text)
        .ok()
        .map(|error| error.error)
}

async fn new_intent(client: &Client<'_>) -> PaymentIntent {
    CreatePaymentIntent::new(150_000, Currency::KRW)
        .automatic_payment_methods(CreatePaymentIntentAutomaticPaymentMethods::new(true))
        .metadata([("orderId".to_owned(), "0190".to_owned())])
        .description("2 seats")
        .send(client)
        .await
        .unwrap()
}

fn refused(outcome: Result<impl std::fmt::Debug, Failed>) -> (Box<ApiErrors>, u16) {
    match outcome {
        Err(Failed::Stripe(error, status)) => (error, status),
        Err(Failed::Unreadable(why)) => panic!("unreadable: {why}"),
        Ok(done) => panic!("done: {done:?}"),
    }
}

#[tokio::test]
async fn a_payment_and_its_refund_read_as_whole_stripe_objects() {
    let sandbox = Sandbox::start().await;
    let client = Client(&sandbox);
    let intent = new_intent(&client).await;
    assert_eq!(intent.status, PaymentIntentStatus::RequiresPaymentMethod);
    assert_eq!((intent.amount, intent.currency), (150_000, Currency::KRW));
    assert_eq!(intent.metadata["orderId"], "0190");

    let paid = ConfirmPaymentIntent::new(intent.id.clone())
        .payment_method("pm_card_visa")
        .expand(vec!["latest_charge".into(), "payment_method".into()])
        .send(&client)
        .await
        .unwrap();
    assert_eq!(paid.status, PaymentIntentStatus::Succeeded);
    assert_eq!(paid.amount_received, 150_000);
    let Some(Expandable::Object(charge)) = &paid.latest_charge else {
        panic!("not expanded: {:?}", paid.latest_charge);
    };
    assert!(charge.paid && charge.captured && charge.amount_captured == 150_000);
    let Some(Expandable::Object(method)) = &paid.payment_method else {
        panic!("not expanded: {:?}", paid.payment_method);
    };
    assert_eq!(method.card.as_ref().unwrap().last4, "4242");

    let refund = CreateRefund::new()
        .payment_intent(intent.id.as_str())
        .amount(50_000_i64)
        .send(&client)
        .await
        .unwrap();
    assert_eq!(
        (refund.amount, refund.status.as_deref()),
        (50_000, Some("succeeded"))
    );
    let again = RetrieveRefund::new(refund.id.clone())
        .send(&client)
        .await
        .unwrap();
    assert_eq!(again.id, refund.id);
    let all = ListRefund::new()
        .payment_intent(intent.id.as_str())
        .send(&client)
        .await
        .unwrap();
    assert_eq!(all.data.len(), 1);

    let read = RetrievePaymentIntent::new(intent.id.clone())
        .send(&client)
        .await
        .unwrap();
    assert_eq!(
        read.amount_received, 150_000,
        "a refund leaves what was received"
    );
}

#[tokio::test]
async fn manual_capture_cancel_update_and_list_read_too() {
    let sandbox = Sandbox::start().await;
    let client = Client(&sandbox);
    let intent = CreatePaymentIntent::new(2_000, Currency::USD)
        .capture_method(PaymentIntentCaptureMethod::Manual)
        .payment_method("pm_card_mastercard")
        .confirm(true)
        .send(&client)
        .await
        .unwrap();
    assert_eq!(intent.status, PaymentIntentStatus::RequiresCapture);
    assert_eq!(
        (intent.amount_capturable, intent.amount_received),
        (2_000, 0)
    );
    let part = CapturePaymentIntent::new(intent.id.clone())
        .amount_to_capture(1_500_i64)
        .send(&client)
        .await
        .unwrap();
    assert_eq!(
        (part.status, part.amount_received),
        (PaymentIntentStatus::Succeeded, 1_500)
    );

    let other = new_intent(&client).await;
    let other = UpdatePaymentIntent::new(other.id)
        .amount(160_000_i64)
        .send(&client)
        .await
        .unwrap();
    assert_eq!(other.amount, 160_000);
    let gone = CancelPaymentIntent::new(other.id)
        .send(&client)
        .await
        .unwrap();
    assert_eq!(gone.status, PaymentIntentStatus::Canceled);
    assert!(gone.canceled_at.is_some());

    let list = ListPaymentIntent::new()
        .limit(1_i64)
        .send(&client)
        .await
        .unwrap();
    assert!(list.has_more);
    assert_eq!(list.data[0].id, gone.id, "newest first");
}

#[tokio::test]
async fn a_decline_reads_as_a_card_error_with_its_intent() {
    let sandbox = Sandbox::start().await;
    let client = Client(&sandbox);
    let intent = new_intent(&client).await;
    let declined = ConfirmPaymentIntent::new(intent.id.clone())
        .payment_method("pm_card_visa_chargeDeclinedInsufficientFunds")
        .send(&client)
        .await;
    let (error, status) = refused(declined);
    assert_eq!(status, 402);
    assert_eq!(error.code, Some(ApiErrorsCode::CardDeclined));
    assert_eq!(error.decline_code.as_deref(), Some("insufficient_funds"));
    let inside = error.payment_intent.unwrap();
    assert_eq!(inside.status, PaymentIntentStatus::RequiresPaymentMethod);
    assert!(inside.last_payment_error.unwrap().payment_method.is_some());

    let challenged = ConfirmPaymentIntent::new(intent.id.clone())
        .payment_method("pm_card_threeDSecure2Required")
        .return_url("https://shop.example/back")
        .send(&client)
        .await
        .unwrap();
    assert_eq!(challenged.status, PaymentIntentStatus::RequiresAction);
    let next = challenged.next_action.unwrap().redirect_to_url.unwrap();
    assert!(next.url.unwrap().starts_with(&sandbox.url));

    let nobody = RetrievePaymentIntent::new("pi_nobody").send(&client).await;
    let (error, status) = refused(nobody);
    assert_eq!(
        (status, error.code),
        (404, Some(ApiErrorsCode::ResourceMissing))
    );
}

#[tokio::test]
async fn a_later_version_of_stripe_still_reads() {
    let sandbox = Sandbox::start().await;
    let client = Client(&sandbox);
    let intent = CreatePaymentIntent::new(5_000, Currency::KRW)
        .metadata([("sandbox_fault".to_owned(), "skew".to_owned())])
        .send(&client)
        .await
        .unwrap();
    let raw = sandbox
        .get(&format!("/v1/payment_intents/{}", intent.id))
        .await;
    assert!(
        !raw.text.contains("sandbox_unknown_field"),
        "metadata bends changes, not reads"
    );
    let confirm = format!("/v1/payment_intents/{}/confirm", intent.id);
    let raw = sandbox.post(&confirm, "payment_method=pm_card_visa").await;
    assert!(raw.text.contains("sandbox_unknown_field"));
    miniserde::json::from_str::<PaymentIntent>(&raw.text).unwrap();
}
