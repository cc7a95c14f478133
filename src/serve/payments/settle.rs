//! Writing down what Stripe shows: the one way by which a payment changes its state.

use super::machine::{PaymentState, Seen, Step, step};
use super::refunds;
use super::store::{self, Payment};
use super::stripe::{Intent, StripeFailure};
use super::{Error, Payments};

impl Payments {
    /// Brings a payment up to what a fresh look at its intent showed, and says so.
    /// Looks may arrive late and in any order.
    pub(super) async fn settle(&self, payment: &Payment, intent: &Intent) -> sqlx::Result<Payment> {
        let mut tx = self.pool.begin().await?;
        let Some(now) = store::lock(&mut tx, payment.id).await? else {
            return Err(sqlx::Error::RowNotFound);
        };
        if is_stray(&now, intent) {
            // Of an attempt whose answer was lost; nobody has its secret.
            tx.rollback().await?;
            self.drop_stray(intent).await;
            return Ok(now);
        }
        if let Some(wrong) = self.mismatch(&now, intent) {
            let now = self.set_aside(&mut tx, &now, intent, &wrong).await?;
            tx.commit().await?;
            self.signal.wake();
            return Ok(now);
        }
        let next = match step(now.state(), intent.seen) {
            Step::To(next) => next,
            Step::Same if now.state() == PaymentState::Cancelled => {
                if now.intent_id.is_none() && intent.seen != Seen::Cancelled {
                    store::leave_to_cleanup(&mut tx, &now, &intent.id).await?;
                    tx.commit().await?;
                    self.worker.notify_one();
                }
                return Ok(now);
            }
            Step::Same => return Ok(now),
        };
        let after = store::set_state(&mut tx, &now, next, intent).await?;
        match next {
            PaymentState::Succeeded => {
                store::say(&mut tx, &after.said("payment.succeeded")).await?
            }
            PaymentState::Failed => store::say(&mut tx, &after.said("payment.failed")).await?,
            PaymentState::Cancelled => store::say(&mut tx, &after.said_cancelled()).await?,
            PaymentState::Creating | PaymentState::RequiresPayment | PaymentState::Processing => {}
        }
        crate::failpoint!("payments.before_settle_commit");
        tx.commit().await?;
        crate::failpoint!("payments.after_settle_commit");
        self.signal.wake();
        self.counters.count(next);
        Ok(after)
    }

    async fn drop_stray(&self, intent: &Intent) {
        if intent.seen == Seen::Cancelled {
            return;
        }
        if let Err(error) = self.stripe.cancel_intent(&intent.id).await {
            tracing::warn!(intent.id, %error, "a left-over intent stays; it cannot be paid");
        }
    }

    /// Is this intent what we asked for? Somebody with the secret key, or a mix-up of keys,
    /// could make it another.
    fn mismatch(&self, payment: &Payment, intent: &Intent) -> Option<String> {
        let paid_wrong = intent.seen == Seen::Paid && intent.amount_received != payment.amount;
        if intent.live != self.stripe.live() {
            Some(format!(
                "livemode is {}, but our key says otherwise",
                intent.live
            ))
        } else if intent.payment_id != Some(payment.id) {
            Some(format!(
                "its metadata names payment {:?}",
                intent.payment_id
            ))
        } else if payment
            .intent_id
            .as_ref()
            .is_some_and(|id| *id != intent.id)
        {
            Some(format!("a second intent {} names this payment", intent.id))
        } else if intent.currency != payment.currency {
            Some(format!(
                "its currency is {}, not {}",
                intent.currency, payment.currency
            ))
        } else if intent.amount != payment.amount || paid_wrong {
            Some(format!(
                "its amount is {} ({} received), not {}",
                intent.amount, intent.amount_received, payment.amount
            ))
        } else {
            None
        }
    }

    /// An intent that is not what we asked for confirms nothing. Where it is our own, money that it
    /// took goes back whole, and once it is cancelled nothing can be paid any more; whose the rest
    /// is, a person must find out.
    async fn set_aside(
        &self,
        tx: &mut sqlx::PgConnection,
        payment: &Payment,
        intent: &Intent,
        wrong: &str,
    ) -> sqlx::Result<Payment> {
        let detail = format!("intent {}: {wrong}; it is {:?}", intent.id, intent.seen);
        if store::alarm(tx, "INTENT_MISMATCH", payment, &detail).await? {
            self.counters.alarms.inc();
        }
        let ours =
            payment.intent_id.as_ref() == Some(&intent.id) && intent.live == self.stripe.live();
        let open = payment.state().is_open();
        let paid = intent.seen == Seen::Paid
            && payment.state() != PaymentState::Succeeded
            && payment.captured_amount.is_none();
        if !ours || !(paid || open && intent.seen == Seen::Cancelled) {
            return Ok(payment.clone());
        }
        let after = store::set_state(tx, payment, PaymentState::Cancelled, intent).await?;
        if paid {
            let (request, amount) = (payment.id, intent.amount_received);
            refunds::request(tx, &after, request, amount, "INTENT_MISMATCH").await?;
            refunds::record::publish(tx, payment.id).await?;
        }
        if open {
            store::say(tx, &after.said_cancelled()).await?;
        }
        self.worker.notify_one();
        Ok(after)
    }

    /// Reads the intent at Stripe and settles; simultaneous readers share one call.
    pub(super) async fn refresh(&self, payment: &Payment) -> Result<Payment, Error> {
        let Some(intent_id) = payment.intent_id.clone() else {
            return Ok(payment.clone());
        };
        let looked = self.looks.look(payment.id, || async {
            self.stripe.intent(&intent_id).await
        });
        match looked.await {
            Ok(intent) => Ok(self.settle(payment, &intent).await?),
            Err(shared) => Err(Error::Stripe(StripeFailure::Unknown(shared))),
        }
    }
}

/// An unpaid second intent of a payment: one that an earlier attempt left behind.
fn is_stray(payment: &Payment, intent: &Intent) -> bool {
    intent.payment_id == Some(payment.id)
        && payment
            .intent_id
            .as_ref()
            .is_some_and(|id| *id != intent.id)
        && intent.seen != Seen::Paid
}
