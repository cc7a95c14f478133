//! `POST /payments`: hold renewed, attempt noted, intent made, result noted, each before the next.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::machine::PaymentState;
use super::origin::{self, PaidSeat};
use super::store::{self, NewPayment, Payment};
use super::stripe::StripeFailure;
use super::{Error, Payments};
use crate::platform::alarms::{self, Alarm};
use crate::platform::upstream::UpstreamError;

/// The lease of whoever makes the intent, and a little: then this caller makes it.
const CREATE_WAIT_MAX: Duration = Duration::from_millis(6_000);
const CREATE_LOOK_EVERY: Duration = Duration::from_millis(100);
/// Stripe refuses for good to make an intent.
const CREATE_REFUSED: &str = "PAYMENT_CREATE_REFUSED";

/// What the making of an intent came to, for all who wait for it.
pub(super) type Made = Result<Payment, Arc<Mutex<Option<Error>>>>;

/// What reservations says of an order that may be paid.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Payable {
    pub order_id: Uuid,
    pub amount: i64,
    pub currency: String,
    pub performance_id: Uuid,
    #[serde(default)]
    pub performance_title: String,
    #[serde(default)]
    pub seat_labels: Vec<String>,
    // With these the order can be built again from the intent alone.
    #[serde(default)]
    pub schedule_id: Option<Uuid>,
    #[serde(default)]
    pub seats: Vec<PaidSeat>,
    #[serde(default)]
    pub place_epoch: Option<i64>,
    #[serde(default)]
    pub place_number: Option<i64>,
}

impl Payments {
    /// The order's payment, made at Stripe. `id` is what it is called if it is the first.
    pub(super) async fn begin(
        &self,
        id: Uuid,
        order_id: Uuid,
        user: Uuid,
    ) -> Result<Payment, Error> {
        let known = store::by_order(&mut *self.pool.acquire().await?, order_id).await?;
        if let Some(known) = &known {
            match (known.user_id, known.state()) {
                (Some(owner), _) if owner != user => return Err(Error::OrderNotFound),
                (Some(_), PaymentState::Succeeded) => return Ok(known.clone()),
                (Some(_), PaymentState::Cancelled) if known.refused().is_some() => {
                    return Err(closed(known));
                }
                // Reservations knows whose the order is and why it was closed.
                _ => {}
            }
        }
        let order = self.payable(order_id, user).await?;
        let new = NewPayment {
            id,
            order_id,
            user_id: user,
            performance_id: order.performance_id,
            amount: order.amount,
            description: describe(&order),
            metadata: origin::extra(self.installation().await?, &order),
            currency: order.currency.to_ascii_lowercase(),
            check_after_s: self.config.reconcile_after.as_secs_f64(),
        };
        if new.amount == 0 {
            return self.begin_free(&new).await;
        }
        self.once(order_id, || self.note_and_make(&new)).await
    }

    /// Only the caller that does the work for all of this instance notes the attempt: the lease of
    /// a caller that then waited for another one would keep everybody waiting until it ended.
    async fn note_and_make(&self, new: &NewPayment) -> Result<Payment, Error> {
        crate::failpoint!("payments.before_attempt_commit");
        let (payment, mine) = store::note_attempt(&mut *self.pool.acquire().await?, new).await?;
        crate::failpoint!("payments.after_attempt_commit");
        match payment.state() {
            PaymentState::Cancelled => Err(closed(&payment)),
            PaymentState::Creating => self.make_intent_leased(&payment, mine).await,
            PaymentState::RequiresPayment
            | PaymentState::Failed
            | PaymentState::Processing
            | PaymentState::Succeeded => Ok(payment),
        }
    }

    /// Nothing is to be paid, so no provider is asked: the payment and what is said of it are one transaction.
    async fn begin_free(&self, new: &NewPayment) -> Result<Payment, Error> {
        let mut tx = self.pool.begin().await?;
        let payment = store::note_free(&mut tx, new).await?;
        tx.commit().await?;
        self.signal.wake();
        match payment.state() {
            PaymentState::Succeeded => Ok(payment),
            PaymentState::Cancelled => Err(Error::HoldExpired),
            PaymentState::Creating
            | PaymentState::RequiresPayment
            | PaymentState::Failed
            | PaymentState::Processing => {
                Err(Error::busy("a payment of nothing was begun at Stripe"))
            }
        }
    }

    async fn payable(&self, order_id: Uuid, user: Uuid) -> Result<Payable, Error> {
        let path = format!("/internal/v1/orders/{order_id}/begin-payment");
        let asked = self
            .reservations
            .post_json(&path, &json!({"userId": user}))
            .await;
        asked.map_err(
            |error: UpstreamError| match (error.status(), error.code().as_deref()) {
                (_, Some("HOLD_EXPIRED")) => Error::HoldExpired,
                (_, Some("ORDER_NOT_PAYABLE")) => Error::OrderNotPayable,
                (Some(http::StatusCode::NOT_FOUND), _) => Error::OrderNotFound,
                _ => Error::Reservations(error),
            },
        )
    }

    /// Makes the intent of an attempt noted earlier, or waits for what another caller makes.
    pub(super) async fn make_noted_intent(&self, payment: &Payment) -> Result<Payment, Error> {
        let work = || self.make_intent_leased(payment, false);
        self.once(payment.order_id, work).await
    }

    /// The callers of this instance that want the payment of one order at the same moment share the
    /// work: two clicks on Pay have one answer.
    async fn once<Fut: Future<Output = Result<Payment, Error>>>(
        &self,
        order_id: Uuid,
        work: impl FnOnce() -> Fut,
    ) -> Result<Payment, Error> {
        let work = || async {
            let made = work().await;
            made.map_err(|error| Arc::new(Mutex::new(Some(error))))
        };
        match self.creates.run(order_id, work).await {
            Ok(payment) => Ok(payment),
            Err(shared) => Err(error_of(&shared)),
        }
    }

    /// Makes the intent, or waits for what another instance makes. `mine`: the lease is the
    /// caller's already.
    async fn make_intent_leased(&self, payment: &Payment, mine: bool) -> Result<Payment, Error> {
        let until = Instant::now() + CREATE_WAIT_MAX;
        let mut mine = mine;
        while !mine {
            let now = store::by_id(&mut *self.pool.acquire().await?, payment.id).await?;
            match now {
                Some(now) if now.state() == PaymentState::Creating => {}
                Some(now) if now.state() == PaymentState::Cancelled => return Err(closed(&now)),
                Some(now) => return Ok(now),
                None => return Err(Error::PaymentNotFound),
            }
            mine = store::lease_create(&self.pool, payment.id).await?;
            if !mine && Instant::now() >= until {
                return Err(Error::busy("another caller is making this payment"));
            }
            if !mine {
                tokio::time::sleep(CREATE_LOOK_EVERY).await;
            }
        }
        let made = self.make_intent(payment).await;
        if made.is_err() {
            store::release_create(&self.pool, payment.id).await?;
        }
        made
    }

    /// Makes the intent of the noted attempt. Any number of instances may do so at once, or
    /// again after a crash: the key makes it one intent.
    pub(super) async fn make_intent(&self, payment: &Payment) -> Result<Payment, Error> {
        let mut made = self.stripe.create_intent(&payment.new_intent()).await;
        if let Err(StripeFailure::Burnt(cause)) = &made {
            // Whatever that attempt made, nobody was given its secret: leave it behind.
            tracing::warn!(payment.id = %payment.id, cause, "attempt lost at Stripe; making another");
            let next = store::next_attempt(&self.pool, payment).await?;
            let next = next.ok_or_else(|| Error::busy("the attempt was taken over"))?;
            made = self.stripe.create_intent(&next.new_intent()).await;
        }
        crate::failpoint!("payments.after_stripe_create");
        if let Err(StripeFailure::Refused { code, message, .. }) = &made {
            return Err(self.refused_for_good(payment, code, message).await?);
        }
        let payment = self.settle(payment, &made.map_err(Error::Stripe)?).await?;
        crate::failpoint!("payments.after_result_commit");
        match payment.state() {
            // The order was closed while we were at Stripe; the intent is being cancelled.
            PaymentState::Cancelled => Err(closed(&payment)),
            PaymentState::Creating => Err(Error::busy(
                "Stripe answered with an intent that is not ours",
            )),
            PaymentState::RequiresPayment
            | PaymentState::Failed
            | PaymentState::Processing
            | PaymentState::Succeeded => Ok(payment),
        }
    }
}

impl Payments {
    /// Stripe will never make this intent: the payment ends, and with it the order, whose seats go
    /// to others. Somebody must see why: it is the amount, the currency or the account.
    async fn refused_for_good(
        &self,
        payment: &Payment,
        code: &str,
        message: &str,
    ) -> sqlx::Result<Error> {
        let mut tx = self.pool.begin().await?;
        let Some(now) = store::lock(&mut tx, payment.id).await? else {
            return Err(sqlx::Error::RowNotFound);
        };
        if now.state() != PaymentState::Creating {
            return Ok(closed(&now));
        }
        store::refuse(&mut tx, now.id, code, message).await?;
        store::say(&mut tx, &now.said_cancelled()).await?;
        let detail = format!(
            "Stripe refuses to create payments: {code}: {message} ({} {}, order {}). Each such order is closed and its seats are freed",
            now.amount, now.currency, now.order_id
        );
        let alarm = Alarm {
            kind: CREATE_REFUSED,
            key: code,
            order_id: Some(now.order_id),
            payment_id: Some(now.id),
            detail: &detail,
        };
        if alarms::raise(&mut tx, &alarm).await? {
            self.counters.alarms.inc();
        }
        tx.commit().await?;
        self.signal.wake();
        self.counters.count(PaymentState::Cancelled);
        Ok(Error::ProviderRefused(code.to_owned()))
    }
}

/// Why a payment that is CANCELLED cannot be paid.
fn closed(payment: &Payment) -> Error {
    match payment.refused() {
        Some(code) => Error::ProviderRefused(code.to_owned()),
        None => Error::HoldExpired,
    }
}

/// The error of shared work, as each of its callers gets it.
fn error_of(shared: &Mutex<Option<Error>>) -> Error {
    let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let again = match &*shared {
        None => Some(Error::busy("the payment was being made")),
        Some(Error::HoldExpired) => Some(Error::HoldExpired),
        Some(Error::ProviderRefused(code)) => Some(Error::ProviderRefused(code.clone())),
        Some(Error::Stripe(failure)) => Some(Error::Stripe(failure.clone())),
        Some(_) => None,
    };
    // Other causes are the first caller's, who logs them.
    again
        .or_else(|| shared.take())
        .unwrap_or(Error::HoldExpired)
}

/// What the buyer reads on the bank's page and the operator in Stripe's dashboard.
fn describe(order: &Payable) -> String {
    let seats = order.seat_labels.join(", ");
    format!(
        "{} · {seats} · order {}",
        order.performance_title, order.order_id
    )
}
