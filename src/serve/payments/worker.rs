//! What is done apart from requests: webhooks that were kept, refunds that are due, and looks
//! at what has been open for too long. Work is claimed for a while in Postgres, so that any
//! number of instances share it and a dead one's work comes back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{FromRow, PgPool, Row as _, postgres::PgRow};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::machine::PaymentState;
use super::refunds::{self, Refund};
use super::store::{self, Payment};
use super::stripe::StripeFailure;
use super::webhook::{self, Kept};
use super::{Error, Payments};
use crate::platform::{db, tasks};

/// The net under lost wake-ups; also how late a due look may be.
const POLL: Duration = Duration::from_secs(1);
/// How long a claim lasts when nobody renews it: so soon a dead process's work comes back.
const LEASE_S: f64 = 5.0;
/// A try may take longer than its lease (two calls to Stripe, each tried twice): it is renewed
/// while it runs, often enough to miss one renewal.
const RENEW_EVERY: Duration = Duration::from_millis(1_500);
/// At once, of each kind: a kind that waits for Stripe takes no room from the others, and buyers
/// wait for webhooks.
const WEBHOOKS_AT_ONCE: usize = 8;
const REFUNDS_AT_ONCE: usize = 4;
const LOOKS_AT_ONCE: usize = 4;
/// A claim takes milliseconds; over a connection that went silent it would never end.
const CLAIM_MAX: Duration = Duration::from_secs(5);
/// How long a stopping worker lets tries end; what is cut off comes back with its lease.
const DRAIN: Duration = Duration::from_secs(5);
/// Stripe forgets keys after 24 h: an attempt so old can no longer be repeated.
const KEY_TRUSTED_H: i64 = 20;

enum Work {
    Webhook(Kept),
    Refund(Refund),
    Look(Box<Look>),
}

/// A payment to be looked at, and until when that is ours to do.
#[derive(Debug)]
pub struct Look {
    payment: Box<Payment>,
    leased_until: DateTime<Utc>,
}

impl<'r> FromRow<'r, PgRow> for Look {
    fn from_row(row: &'r PgRow) -> sqlx::Result<Self> {
        Ok(Self {
            payment: Box::new(Payment::from_row(row)?),
            leased_until: row.try_get("leased_until")?,
        })
    }
}

/// A claim under way: whose it is by now, the database says.
struct Lease {
    /// Moves the claim on where it is still the one that we know: id, until, seconds.
    renew: &'static str,
    id: String,
    until: Mutex<DateTime<Utc>>,
}

impl Lease {
    fn of(work: &Work) -> Self {
        let (renew, id, until) = match work {
            Work::Webhook(kept) => (
                "update webhook_events set next_try_at = now() + make_interval(secs => $3)
                 where id = $1 and next_try_at = $2 returning next_try_at",
                kept.id.clone(),
                kept.leased_until,
            ),
            Work::Refund(refund) => (
                "update refunds set next_try_at = now() + make_interval(secs => $3)
                 where id = $1::uuid and next_try_at = $2 returning next_try_at",
                refund.id.to_string(),
                refund.leased_until,
            ),
            Work::Look(look) => (
                "update payments set next_check_at = now() + make_interval(secs => $3)
                 where id = $1::uuid and next_check_at = $2 returning next_check_at",
                look.payment.id.to_string(),
                look.leased_until,
            ),
        };
        Self {
            renew,
            id,
            until: Mutex::new(until),
        }
    }

    fn until(&self) -> DateTime<Utc> {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never ends; it is dropped with the work. A claim that went to somebody else (we were held
    /// up for longer than it lasts) is not taken back: both go on, and all of it may run twice.
    async fn keep(&self, pool: &PgPool) {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let renewed: sqlx::Result<Option<DateTime<Utc>>> = sqlx::query_scalar(self.renew)
                .bind(&self.id)
                .bind(self.until())
                .bind(LEASE_S)
                .fetch_optional(pool)
                .await;
            match renewed {
                Ok(Some(until)) => {
                    *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
                }
                Ok(None) => {}
                Err(error) => {
                    db::observe(&error);
                    tracing::warn!(id = self.id, %error, "cannot renew a claim of payment work");
                }
            }
        }
    }
}

/// The kinds of work, in the order in which they are claimed.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Webhooks,
    Refunds,
    Looks,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Webhooks => "webhooks",
            Self::Refunds => "refunds",
            Self::Looks => "looks",
        }
    }

    async fn claim(self, pool: &PgPool, room: i64) -> sqlx::Result<Vec<Work>> {
        Ok(match self {
            Self::Webhooks => {
                let due = webhook::claim_due(pool, room, LEASE_S).await?;
                due.into_iter().map(Work::Webhook).collect()
            }
            Self::Refunds => {
                let due = refunds::claim_due(pool, room, LEASE_S).await?;
                due.into_iter().map(Work::Refund).collect()
            }
            Self::Looks => {
                let due = store::claim_due(pool, room, LEASE_S).await?;
                due.into_iter()
                    .map(|look| Work::Look(Box::new(look)))
                    .collect()
            }
        })
    }
}

/// One kind of work with its room.
struct Lane {
    kind: Kind,
    room: Arc<Semaphore>,
    /// The last claim failed, which was logged.
    failing: bool,
}

impl Lane {
    fn new(kind: Kind, at_once: usize) -> Self {
        Self {
            kind,
            room: Arc::new(Semaphore::new(at_once)),
            failing: false,
        }
    }

    /// Claims and starts what is due, as far as there is room.
    async fn fill(&mut self, payments: &Payments, running: &mut JoinSet<()>) {
        let room = self.room.available_permits();
        if room == 0 {
            return;
        }
        let room = i64::try_from(room).unwrap_or(i64::MAX);
        match db::within(CLAIM_MAX, self.kind.claim(&payments.pool, room)).await {
            Ok(work) => {
                if self.failing {
                    tracing::info!(kind = ?self.kind, "payment work is claimed again");
                }
                self.failing = false;
                for one in work {
                    // Only this loop takes places, so there are as many as were counted.
                    let place = self.room.clone().try_acquire_owned();
                    let payments = payments.clone();
                    running.spawn(async move {
                        let _place = place;
                        // A job that panics has been logged; its lease lets it come again.
                        let _ = tasks::job("payments.worker", payments.work_leased(one)).await;
                    });
                }
            }
            Err(error) => {
                db::observe(&error);
                payments.counters.claim_failed(self.kind.name());
                if !self.failing {
                    tracing::warn!(%error, kind = ?self.kind, "failed to claim payment work; trying again every second");
                }
                self.failing = true;
            }
        }
    }
}

pub(super) async fn run(payments: Payments, stop: CancellationToken) {
    let mut running = JoinSet::new();
    let background = payments.background();
    // Webhooks first: a buyer is waiting.
    let mut lanes = [
        Lane::new(Kind::Webhooks, WEBHOOKS_AT_ONCE),
        Lane::new(Kind::Refunds, REFUNDS_AT_ONCE),
        Lane::new(Kind::Looks, LOOKS_AT_ONCE),
    ];
    loop {
        while running.try_join_next().is_some() {}
        // One kind that cannot be claimed now takes nothing from what the others claimed.
        for lane in &mut lanes {
            let payments = match lane.kind {
                Kind::Webhooks => &payments,
                Kind::Refunds | Kind::Looks => &background,
            };
            lane.fill(payments, &mut running).await;
        }
        tokio::select! {
            () = stop.cancelled() => break,
            () = payments.worker.notified() => {}
            Some(_) = running.join_next(), if !running.is_empty() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
    let drained = async { while running.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(DRAIN, drained).await;
}

impl Payments {
    async fn work_leased(&self, work: Work) {
        let lease = Lease::of(&work);
        tokio::select! {
            () = self.work(work, &lease) => {}
            () = lease.keep(&self.pool) => {}
        }
    }

    async fn work(&self, work: Work, lease: &Lease) {
        let result = match work {
            Work::Webhook(kept) => self.process_webhook(kept).await.map_err(Error::from),
            Work::Refund(refund) => self.try_refund(&refund).await,
            Work::Look(look) => self.look_again(&look.payment, lease).await,
        };
        if let Err(error) = result {
            tracing::warn!(?error, "payment work comes back later");
        }
    }

    /// Settles what is still open after a while, and ends what is to be cancelled.
    async fn look_again(&self, payment: &Payment, lease: &Lease) -> Result<(), Error> {
        let looked = self.look_once(payment).await;
        let pause = pause(payment, self.config.reconcile_after);
        // Whoever asked for the payment's end meanwhile asked for a look at once, too.
        let (until, pause_s) = (lease.until(), pause.as_secs_f64());
        store::check_again_in(&self.pool, payment.id, until, pause_s).await?;
        looked
    }

    async fn look_once(&self, payment: &Payment) -> Result<(), Error> {
        if payment.cleanup {
            return self.clean_up(payment).await;
        }
        match payment.state() {
            PaymentState::Creating if expired_key(payment) => self.give_up_attempt(payment).await,
            PaymentState::Creating => match self.make_noted_intent(payment).await {
                Ok(_) | Err(Error::HoldExpired | Error::ProviderRefused(_)) => Ok(()),
                Err(error) => Err(error),
            },
            PaymentState::RequiresPayment | PaymentState::Failed | PaymentState::Processing => {
                if payment.cancel_requested_at.is_some() {
                    self.cancel_at_stripe(payment).await?;
                } else if let Some(intent_id) = &payment.intent_id {
                    let intent = self.stripe.intent(intent_id).await.map_err(Error::Stripe)?;
                    self.settle(payment, &intent).await?;
                }
                Ok(())
            }
            PaymentState::Succeeded | PaymentState::Cancelled => Ok(()),
        }
    }

    /// Cancels what may be left at Stripe of a payment given up before its result was noted.
    async fn clean_up(&self, payment: &Payment) -> Result<(), Error> {
        let intent = match &payment.intent_id {
            Some(id) => self.stripe.cancel_intent(id).await.map_err(Error::Stripe)?,
            None if expired_key(payment) => {
                store::cleaned(&self.pool, payment.id).await?;
                return Ok(());
            }
            // Repeating the attempt finds what it made; nobody else can.
            None => {
                let made = self.stripe.create_intent(&payment.new_intent()).await;
                let made = match made {
                    Ok(made) => made,
                    // That attempt made nothing, and never will.
                    Err(StripeFailure::Refused { .. }) => {
                        return Ok(store::cleaned(&self.pool, payment.id).await?);
                    }
                    // The key shows nothing, ever. Nobody was given a secret of what that attempt
                    // made, if anything: leave it behind.
                    Err(StripeFailure::Burnt(cause)) => {
                        tracing::warn!(payment.id = %payment.id, cause, "an attempt of a closed order is lost at Stripe");
                        return Ok(store::cleaned(&self.pool, payment.id).await?);
                    }
                    Err(unknown @ StripeFailure::Unknown(_)) => return Err(Error::Stripe(unknown)),
                };
                self.stripe
                    .cancel_intent(&made.id)
                    .await
                    .map_err(Error::Stripe)?
            }
        };
        let after = self.settle(payment, &intent).await?;
        if after.state() == PaymentState::Cancelled
            && intent.seen == super::machine::Seen::Cancelled
        {
            store::cleaned(&self.pool, payment.id).await?;
        }
        Ok(())
    }

    /// An attempt whose key Stripe has forgotten cannot be repeated, and need not be: nobody was
    /// given its secret.
    async fn give_up_attempt(&self, payment: &Payment) -> Result<(), Error> {
        self.cancel_now(payment.order_id).await?;
        Ok(())
    }
}

fn expired_key(payment: &Payment) -> bool {
    chrono::Utc::now() - payment.attempted_at > chrono::Duration::hours(KEY_TRUSTED_H)
}

/// Soon where an order waits to be closed; else ever more seldom.
fn pause(payment: &Payment, first: Duration) -> Duration {
    let doubling = 2_u32.pow(payment.checks.clamp(0, 8).unsigned_abs());
    if payment.cancel_requested_at.is_some() || payment.cleanup {
        (Duration::from_millis(500) * doubling).min(Duration::from_secs(30))
    } else {
        (first * doubling.div_ceil(2))
            .min(Duration::from_secs(1_800))
            .max(first)
    }
}
