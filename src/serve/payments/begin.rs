//! `POST /payments`: hold renewed, attempt noted, intent made, result noted, each before the next.

use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::machine::PaymentState;
use super::store::{self, NewPayment, Payment};
use super::stripe::StripeFailure;
use super::{Error, Payments};
use crate::platform::upstream::UpstreamError;

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
            currency: order.currency.to_ascii_lowercase(),
            check_after_s: self.config.reconcile_after.as_secs_f64(),
        };
        if new.amount == 0 {
            return self.begin_free(&new).await;
        }
        crate::failpoint!("payments.before_attempt_commit");
        let payment = store::note_attempt(&mut *self.pool.acquire().await?, &new).await?;
        crate::failpoint!("payments.after_attempt_commit");
        match payment.state() {
            PaymentState::Cancelled => Err(Error::HoldExpired),
            PaymentState::Creating => self.make_intent(&payment).await,
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
        if let Err(StripeFailure::Refused { .. }) = &made {
            store::next_attempt(&self.pool, payment).await?;
        }
        let payment = self.settle(payment, &made.map_err(Error::Stripe)?).await?;
        crate::failpoint!("payments.after_result_commit");
        match payment.state() {
            // The order was closed while we were at Stripe; the intent is being cancelled.
            PaymentState::Cancelled => Err(Error::HoldExpired),
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

/// What the buyer reads on the bank's page and the operator in Stripe's dashboard.
fn describe(order: &Payable) -> String {
    let seats = order.seat_labels.join(", ");
    format!(
        "{} · {seats} · order {}",
        order.performance_title, order.order_id
    )
}
