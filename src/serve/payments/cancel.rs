//! Closing an order's payment: final before the seats may be freed.

use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::machine::PaymentState;
use super::store::{self, Payment};
use super::{Error, Payments};
use crate::platform::events::{HandlerError, inbox};

/// What has become of the payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// The intent is cancelled: nothing can be paid any more.
    Cancelled,
    /// There was none, and now there will never be one.
    None,
    /// The bank has it: wait for what it says.
    Processing,
    /// Paid. `payment.succeeded` has been said.
    Succeeded,
}

impl Payments {
    /// Asks for the end of the order's payment and waits for what Stripe says.
    pub(super) async fn cancel_now(&self, order_id: Uuid) -> Result<Outcome, Error> {
        let mut tx = self.pool.begin().await?;
        let noted = self.note_cancel(&mut tx, order_id, false).await?;
        crate::failpoint!("payments.before_cancel_commit");
        tx.commit().await?;
        crate::failpoint!("payments.after_cancel_commit");
        self.signal.wake();
        match noted {
            Noted::Final(outcome) => Ok(outcome),
            Noted::AskStripe(payment) => {
                let after = self.cancel_at_stripe(&payment).await?;
                Ok(match after.state() {
                    PaymentState::Succeeded => Outcome::Succeeded,
                    PaymentState::Cancelled => Outcome::Cancelled,
                    PaymentState::Creating
                    | PaymentState::RequiresPayment
                    | PaymentState::Failed
                    | PaymentState::Processing => Outcome::Processing,
                })
            }
        }
    }

    /// `payment.cancel.requested`: only noted here, done by the worker, so that Stripe being
    /// away holds up no other event of this order.
    pub(super) async fn on_cancel_requested(
        &self,
        event_id: Uuid,
        order_id: Uuid,
    ) -> Result<(), HandlerError> {
        let mut tx = self.pool.begin().await?;
        if !inbox::first_time(&mut tx, super::CONSUMER, event_id).await? {
            return Ok(());
        }
        self.note_cancel(&mut tx, order_id, true).await?;
        crate::failpoint!("payments.before_cancel_commit");
        tx.commit().await?;
        crate::failpoint!("payments.after_cancel_commit");
        self.signal.wake();
        self.worker.notify_one();
        Ok(())
    }

    /// `again`: who asks by event waits for an answer by event, so what is final is said again.
    pub(super) async fn note_cancel(
        &self,
        tx: &mut sqlx::PgConnection,
        order_id: Uuid,
        again: bool,
    ) -> sqlx::Result<Noted> {
        let entombed = store::entomb(tx, order_id).await?;
        let Some(payment) = store::lock_by_order(tx, order_id).await? else {
            return Err(sqlx::Error::RowNotFound);
        };
        if entombed {
            store::say(tx, &payment.said_cancelled()).await?;
            return Ok(Noted::Final(Outcome::None));
        }
        match payment.state() {
            PaymentState::Succeeded => {
                if again {
                    store::say_again(tx, &payment).await?;
                }
                Ok(Noted::Final(Outcome::Succeeded))
            }
            PaymentState::Cancelled => {
                if again {
                    store::say(tx, &payment.said_cancelled()).await?;
                }
                Ok(Noted::Final(match payment.user_id {
                    Some(_) => Outcome::Cancelled,
                    None => Outcome::None,
                }))
            }
            PaymentState::Creating => {
                // Its secret is handed out only after the result is noted, which can no
                // longer happen: whatever there is at Stripe cannot be paid.
                let payment = store::request_cancel(tx, payment.id, true).await?;
                store::say(tx, &payment.said_cancelled()).await?;
                self.worker.notify_one();
                Ok(Noted::Final(Outcome::Cancelled))
            }
            PaymentState::RequiresPayment | PaymentState::Failed | PaymentState::Processing => {
                let payment = store::request_cancel(tx, payment.id, false).await?;
                Ok(Noted::AskStripe(Box::new(payment)))
            }
        }
    }

    pub(super) async fn cancel_at_stripe(&self, payment: &Payment) -> Result<Payment, Error> {
        let Some(intent_id) = &payment.intent_id else {
            return Ok(payment.clone());
        };
        let intent = self
            .stripe
            .cancel_intent(intent_id)
            .await
            .map_err(Error::Stripe)?;
        crate::failpoint!("payments.after_stripe_cancel");
        Ok(self.settle(payment, &intent).await?)
    }
}

pub(super) enum Noted {
    Final(Outcome),
    AskStripe(Box<Payment>),
}
