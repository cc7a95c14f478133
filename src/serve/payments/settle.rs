//! Writing down what Stripe shows: the one way by which a payment changes its state.

use super::Payments;
use super::machine::{PaymentState, Seen, Step, step};
use super::refunds;
use super::store::{self, Payment};
use super::stripe::Intent;

/// Where what is known of an intent comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// Stripe's own answer, just now.
    Read,
    /// An event, which may come late: when it was made (seconds).
    Event { made_at: Option<i64> },
}

/// What became of a payment.
#[derive(Debug)]
pub(super) enum Settled {
    Now(Box<Payment>),
    /// The event does not settle it: the intent must be read. Nothing was changed.
    InDoubt(String),
}

/// Our clock may be ahead of Stripe's by so much: an event of within that is newer than a read.
const CLOCK_SLACK_S: i64 = 5;

impl Payments {
    /// Brings a payment up to what a fresh look at its intent showed, and says so.
    /// Looks may arrive late and in any order.
    pub(super) async fn settle(&self, payment: &Payment, intent: &Intent) -> sqlx::Result<Payment> {
        match self.settle_by(payment, intent, Source::Read).await? {
            Settled::Now(payment) => Ok(*payment),
            Settled::InDoubt(_) => Ok(payment.clone()),
        }
    }

    /// The same by what an event says, as far as that can be relied upon.
    pub(super) async fn settle_by(
        &self,
        payment: &Payment,
        intent: &Intent,
        source: Source,
    ) -> sqlx::Result<Settled> {
        let mut tx = self.pool.begin().await?;
        let Some(now) = store::lock(&mut tx, payment.id).await? else {
            return Err(sqlx::Error::RowNotFound);
        };
        if let Source::Event { made_at } = source {
            match self.believe(&mut tx, &now, intent, made_at).await? {
                Belief::New => {}
                Belief::Old => return Ok(Settled::Now(Box::new(now))),
                Belief::Doubt(why) => return Ok(Settled::InDoubt(why)),
            }
        }
        if is_stray(&now, intent) {
            // Of an attempt whose answer was lost; nobody has its secret.
            tx.rollback().await?;
            self.drop_stray(intent).await;
            return Ok(Settled::Now(Box::new(now)));
        }
        if let Some(wrong) = self.mismatch(&now, intent) {
            let now = self.set_aside(&mut tx, &now, intent, &wrong).await?;
            tx.commit().await?;
            self.signal.wake();
            return Ok(Settled::Now(Box::new(now)));
        }
        let next = match step(now.state(), intent.seen) {
            Step::To(next) => next,
            Step::Same if now.state() == PaymentState::Cancelled => {
                if now.intent_id.is_none() && intent.seen != Seen::Cancelled {
                    store::leave_to_cleanup(&mut tx, &now, &intent.id).await?;
                    tx.commit().await?;
                    self.worker.notify_one();
                }
                return Ok(Settled::Now(Box::new(now)));
            }
            Step::Same => return Ok(Settled::Now(Box::new(now))),
        };
        let after = store::set_state(&mut tx, &now, next, intent).await?;
        let true_at = match source {
            Source::Read => Some(chrono::Utc::now().timestamp() - CLOCK_SLACK_S),
            Source::Event { made_at } => made_at,
        };
        if let Some(at) = true_at.filter(|_| {
            matches!(next, PaymentState::Failed | PaymentState::Processing)
                || now.state() != PaymentState::Creating && next.is_open()
        }) {
            store::note_intent_at(&mut tx, now.id, at).await?;
        }
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
        Ok(Settled::Now(Box::new(after)))
    }

    /// Is what an event says of its intent to be believed as it stands? What is final at Stripe
    /// stays so, however late it comes; the rest counts in the order in which it was made.
    async fn believe(
        &self,
        tx: &mut sqlx::PgConnection,
        payment: &Payment,
        intent: &Intent,
        made_at: Option<i64>,
    ) -> sqlx::Result<Belief> {
        if is_stray(payment, intent) {
            return Ok(Belief::Doubt("a second intent of its payment".to_owned()));
        }
        if let Some(wrong) = self.mismatch(payment, intent) {
            return Ok(Belief::Doubt(wrong));
        }
        if matches!(intent.seen, Seen::Paid | Seen::Cancelled)
            || step(payment.state(), intent.seen) == Step::Same
        {
            return Ok(Belief::New);
        }
        let Some(made_at) = made_at else {
            return Ok(Belief::Doubt("the event has no time".to_owned()));
        };
        Ok(match store::intent_at(tx, payment.id).await? {
            Some(known) if made_at < known => Belief::Old,
            Some(known) if made_at == known => {
                Belief::Doubt("two events of the same second".to_owned())
            }
            Some(_) | None => Belief::New,
        })
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
}

/// What an event is worth.
enum Belief {
    New,
    /// Something newer is known.
    Old,
    Doubt(String),
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
