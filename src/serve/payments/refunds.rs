//! Money that goes back: asked for once, tried until Stripe has done it, alarmed while it refuses.
//!
//! A payment may have many refunds: ours, each followed through its attempts, and those made in
//! Stripe's dashboard. What Stripe has of them is recorded one by one ([`record`]); the refunded
//! total is the sum of those that succeeded, so it falls when one fails after all. Each change is
//! told as `payment.refunded`: the whole state under a version.

pub(super) mod overdue;
pub(super) mod record;

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::disputes::DisputeState;
use super::store::{self, Payment};
use super::stripe::{StripeFailure, StripeRefund};
use super::{Error, Payments};
use crate::platform::alarms;
use crate::platform::events::{Event, HandlerError, inbox};

/// Stripe refused a refund of ours.
const REFUSED: &str = "REFUND_REFUSED";
/// A refund failed after Stripe had taken it.
const FAILED: &str = "REFUND_FAILED";
/// A refund has been under way for longer than it may.
const OVERDUE: &str = "REFUND_OVERDUE";
/// Some of the money was refunded in Stripe's dashboard, and the order stands.
const AT_STRIPE: &str = "REFUNDED_AT_STRIPE";

/// Stripe forgets keys after 24 h; well before, we look for what an old try did instead.
const KEY_TRUSTED_H: i64 = 20;
/// While Stripe cannot be reached, and while it says that a refund is on its way.
const AWAY_MAX: Duration = Duration::from_secs(60);
const PENDING_EVERY: Duration = Duration::from_secs(300);
/// While a dispute is open; its end is told, so this is only the net below.
const DISPUTED_EVERY: Duration = Duration::from_secs(3_600);
/// After a refusal: soon at first (the balance may fill), then hourly.
const REFUSED_FIRST: Duration = Duration::from_secs(5);
const REFUSED_MAX: Duration = Duration::from_secs(3_600);
/// A bank that sends the money back does so again: less and less often, daily in the end.
const FAILED_MAX: Duration = Duration::from_secs(86_400);

/// A refund of ours.
#[derive(Clone, Debug)]
pub(super) struct Refund {
    pub id: Uuid,
    pub payment_id: Uuid,
    pub amount: i64,
    pub state: String,
    pub attempt: i32,
    pub attempted_at: Option<DateTime<Utc>>,
    pub stripe_id: Option<String>,
    pub burnt: bool,
    pub refusals: i32,
    pub tries: i32,
    /// Until when it is ours to do.
    pub leased_until: DateTime<Utc>,
}

crate::from_row!(Refund {
    id,
    payment_id,
    amount,
    state,
    attempt,
    attempted_at,
    stripe_id,
    burnt,
    refusals,
    tries,
    leased_until
});

/// Columns of [`Refund`].
macro_rules! refund_columns {
    () => {
        "id, payment_id, amount, state, attempt::int as attempt, attempted_at, stripe_id, burnt, \
         refusals::int as refusals, tries::int as tries, next_try_at as leased_until"
    };
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Requested {
    payment_id: Uuid,
    amount: i64,
    #[serde(default)]
    reason: String,
    /// Absent in events of before there were many: then the payment is the request.
    #[serde(default)]
    refund_id: Option<Uuid>,
}

/// Notes that money is to go back; asked for twice under one request, it goes back once.
pub(super) async fn request(
    conn: &mut PgConnection,
    payment: &Payment,
    request: Uuid,
    amount: i64,
    reason: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into refunds (id, payment_id, order_id, request_id, amount, reason)
         values ($1, $2, $3, $4, $5, $6) on conflict on constraint one_refund_a_request do nothing",
    )
    .bind(Uuid::now_v7())
    .bind(payment.id)
    .bind(payment.order_id)
    .bind(request)
    .bind(amount)
    .bind(reason)
    .execute(conn)
    .await?;
    Ok(())
}

pub(super) async fn claim_due(
    pool: &PgPool,
    limit: i64,
    lease_s: f64,
) -> sqlx::Result<Vec<Refund>> {
    sqlx::query_as(concat!(
        "update refunds set next_try_at = now() + make_interval(secs => $2), tries = tries + 1,
             attempted_at = coalesce(attempted_at, now())
         where id in (select id from refunds
                      where state in ('REQUESTED', 'PENDING') and next_try_at <= now()
                      order by next_try_at limit $1 for update skip locked)
         returning ",
        refund_columns!()
    ))
    .bind(limit)
    .bind(lease_s)
    .fetch_all(pool)
    .await
}

/// A dispute moved on: lost, its money needs no refund; open no more, what waited goes on.
pub(super) async fn after_dispute(
    conn: &mut PgConnection,
    payment: &Payment,
    state: DisputeState,
) -> sqlx::Result<()> {
    match state {
        DisputeState::Open => return Ok(()),
        DisputeState::Lost => {
            sqlx::query(
                "update refunds set state = 'DISPUTED', settled_at = now(), last_error = null,
                     alarmed_at = null
                 where payment_id = $1 and state in ('REQUESTED', 'PENDING')",
            )
            .bind(payment.id)
            .execute(&mut *conn)
            .await?;
            let note = "the bank gave the money back by a dispute";
            let kinds = [REFUSED, FAILED, OVERDUE];
            alarms::clear_of_payment(conn, &kinds, payment.id, note).await?;
        }
        DisputeState::PartlyLost
        | DisputeState::Inquiry
        | DisputeState::Won
        | DisputeState::Closed => {
            sqlx::query(
                "update refunds set next_try_at = now() where payment_id = $1 and state = 'REQUESTED'",
            )
            .bind(payment.id)
            .execute(&mut *conn)
            .await?;
        }
    }
    record::publish(conn, payment.id).await
}

fn doubled(first: Duration, times: i32, max: Duration) -> Duration {
    (first * 2_u32.pow(times.clamp(0, 15).unsigned_abs())).min(max)
}

impl Payments {
    /// `refund.requested`.
    pub(super) async fn on_refund_requested(&self, event: &Event) -> Result<(), HandlerError> {
        let asked: Requested = event.data()?;
        let mut tx = self.pool.begin().await?;
        if !inbox::first_time(&mut tx, super::CONSUMER, event.id).await? {
            return Ok(());
        }
        let Some(payment) = store::lock(&mut tx, asked.payment_id).await? else {
            return Err(HandlerError::Poison(anyhow::anyhow!(
                "there is no payment {}",
                asked.payment_id
            )));
        };
        // An instance of before may have captured it without noting how much.
        let captured = match payment.captured_amount {
            Some(captured) => captured,
            None if payment.succeeded_at.is_some() => payment.amount,
            None => 0,
        };
        if asked.amount <= 0 || asked.amount > captured {
            return Err(HandlerError::Poison(anyhow::anyhow!(
                "payment {} is {}, {captured} were captured: {} cannot be refunded",
                payment.id,
                payment.state().as_str(),
                asked.amount
            )));
        }
        let id = asked.refund_id.unwrap_or(payment.id);
        request(&mut tx, &payment, id, asked.amount, &asked.reason).await?;
        crate::failpoint!("payments.before_refund_request_commit");
        tx.commit().await?;
        crate::failpoint!("payments.after_refund_request_commit");
        self.worker.notify_one();
        Ok(())
    }

    /// One try at one refund.
    pub(super) async fn try_refund(&self, refund: &Refund) -> Result<(), Error> {
        let payment = store::by_id(&mut *self.pool.acquire().await?, refund.payment_id).await?;
        let Some((payment, intent_id)) =
            payment.and_then(|payment| payment.intent_id.clone().map(|id| (payment, id)))
        else {
            self.refund_refused(refund, "the payment has no intent", None)
                .await?;
            return Ok(());
        };
        if payment.dispute_state.as_deref() == Some(DisputeState::Open.as_str()) {
            let why = "the charge is disputed; the refund waits for the end of the dispute";
            self.refund_later(refund, DISPUTED_EVERY, why).await?;
            return Ok(());
        }
        match self.refund_at_stripe(refund, &payment, &intent_id).await {
            Ok(()) => Ok(()),
            Err(Error::Stripe(StripeFailure::Burnt(cause))) => {
                Ok(self.refund_burnt(refund, &cause).await?)
            }
            Err(Error::Stripe(StripeFailure::Unknown(cause))) => {
                tracing::warn!(refund.id = %refund.id, cause, "refund not known to be done; trying again");
                let wait = doubled(Duration::from_secs(1), refund.tries, AWAY_MAX);
                Ok(self.refund_later(refund, wait, &cause).await?)
            }
            Err(Error::Stripe(refused @ StripeFailure::Refused { .. })) => {
                self.after_refusal(refund, &payment, &intent_id, &refused)
                    .await
            }
            Err(other) => Err(other),
        }
    }

    async fn refund_at_stripe(
        &self,
        refund: &Refund,
        payment: &Payment,
        intent_id: &str,
    ) -> Result<(), Error> {
        let trusted = chrono::Duration::hours(KEY_TRUSTED_H);
        let fresh = refund
            .attempted_at
            .is_none_or(|at| Utc::now() - at < trusted);
        let mut attempt = refund.attempt;
        if !fresh || refund.stripe_id.is_some() || refund.burnt {
            // The key would repeat an old answer ("pending"), or may have been forgotten.
            let known = self.stripe.refunds(intent_id).await;
            self.record_refunds(payment.id, &known.map_err(Error::Stripe)?)
                .await?;
            let now = self.refund(refund.id).await?;
            if now.state == "PENDING" {
                let why = "Stripe says that it is on its way";
                self.refund_later(&now, self.pending_every(), why).await?;
            }
            if now.state != "REQUESTED" || now.attempt != refund.attempt {
                return Ok(());
            }
            // Looked for and not there: that attempt did nothing.
            attempt = self.next_refund_attempt(refund).await?;
        }
        let Some(asked) = self.ask_for(refund, attempt, payment).await? else {
            return self.covered(refund, payment).await;
        };
        let made = self
            .stripe
            .refund(
                refund.id,
                attempt,
                intent_id,
                asked,
                payment.captured_currency(),
            )
            .await;
        crate::failpoint!("payments.after_stripe_refund");
        let made: StripeRefund = made.map_err(Error::Stripe)?;
        self.record_refunds(payment.id, std::slice::from_ref(&made))
            .await?;
        Ok(())
    }

    async fn refund(&self, id: Uuid) -> sqlx::Result<Refund> {
        sqlx::query_as(concat!(
            "select ",
            refund_columns!(),
            " from refunds where id = $1"
        ))
        .bind(id)
        .fetch_one(&self.pool)
        .await
    }

    /// So often a pending refund is read at Stripe, where no webhook tells of its end.
    fn pending_every(&self) -> Duration {
        PENDING_EVERY.min(self.config.refund_pending_max)
    }

    /// What this attempt asks Stripe for: the same on every try of it. `None`: nothing is left.
    async fn ask_for(
        &self,
        refund: &Refund,
        attempt: i32,
        payment: &Payment,
    ) -> sqlx::Result<Option<i64>> {
        let left = left_at_stripe(&self.pool, payment).await?;
        let asked: Option<i64> = sqlx::query_scalar(
            "update refunds set asked = coalesce(asked, nullif(least(amount, $3), 0))
             where id = $1 and attempt = $2 returning asked",
        )
        .bind(refund.id)
        .bind(attempt)
        .bind(left.max(0))
        .fetch_optional(&self.pool)
        .await?
        .flatten();
        Ok(asked)
    }

    /// Others gave it back, or are about to.
    async fn covered(&self, refund: &Refund, payment: &Payment) -> Result<(), Error> {
        let payment = store::by_id(&mut *self.pool.acquire().await?, payment.id).await?;
        let back = payment.is_some_and(|now| now.refunded_amount >= now.captured());
        if !back {
            let why = "another refund of this payment is on its way";
            self.refund_later(refund, self.pending_every(), why).await?;
            return Ok(());
        }
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "update refunds set state = 'SUCCEEDED', settled_at = now(), last_error = null,
                 alarmed_at = null where id = $1",
        )
        .bind(refund.id)
        .execute(&mut *tx)
        .await?;
        record::publish(&mut tx, refund.payment_id).await?;
        tx.commit().await?;
        self.signal.wake();
        Ok(())
    }

    async fn next_refund_attempt(&self, refund: &Refund) -> Result<i32, Error> {
        let next: Option<i32> = sqlx::query_scalar(
            "update refunds set attempt = attempt + 1, attempted_at = now(), burnt = false,
                 asked = null, stripe_id = null
             where id = $1 and attempt = $2 returning attempt",
        )
        .bind(refund.id)
        .bind(refund.attempt)
        .fetch_optional(&self.pool)
        .await?;
        next.ok_or_else(|| Error::busy("the refund was taken over"))
    }

    /// Stripe said no. Where the charge is disputed, or others gave some of it back meanwhile, that
    /// is no news for a person.
    async fn after_refusal(
        &self,
        refund: &Refund,
        payment: &Payment,
        intent_id: &str,
        refused: &StripeFailure,
    ) -> Result<(), Error> {
        let disputed =
            matches!(refused, StripeFailure::Refused { code, .. } if code == "charge_disputed");
        if disputed && self.look_for_disputes(payment, intent_id).await? {
            let now = self.refund(refund.id).await?;
            if now.state == "REQUESTED" && now.attempt == refund.attempt {
                self.next_refund_attempt(&now).await?;
                self.refund_later(&now, DISPUTED_EVERY, &refused.to_string())
                    .await?;
            }
            return Ok(());
        }
        let before = left_at_stripe(&self.pool, payment).await?;
        let known = self.stripe.refunds(intent_id).await;
        self.record_refunds(payment.id, &known.map_err(Error::Stripe)?)
            .await?;
        let now = self.refund(refund.id).await?;
        if now.state != "REQUESTED" || now.attempt != refund.attempt {
            return Ok(());
        }
        if left_at_stripe(&self.pool, payment).await? < before {
            // The next attempt asks for what is then left.
            self.next_refund_attempt(&now).await?;
            self.refund_later(&now, Duration::ZERO, &refused.to_string())
                .await?;
            self.worker.notify_one();
            return Ok(());
        }
        self.refund_refused(refund, &refused.to_string(), Some(payment))
            .await?;
        Ok(())
    }

    /// The key can only repeat a failure. The list says whether it was done all the same; the
    /// next try looks there first, and only then is another attempt made.
    async fn refund_burnt(&self, refund: &Refund, why: &str) -> sqlx::Result<()> {
        tracing::warn!(refund.id = %refund.id, why, "refund lost at Stripe; looking for it");
        sqlx::query(
            "update refunds set burnt = true, last_error = $2, next_try_at = now() where id = $1",
        )
        .bind(refund.id)
        .bind(why)
        .execute(&self.pool)
        .await?;
        self.worker.notify_one();
        Ok(())
    }

    async fn refund_later(&self, refund: &Refund, wait: Duration, why: &str) -> sqlx::Result<()> {
        sqlx::query(
            "update refunds set next_try_at = now() + make_interval(secs => $2), last_error = $3
             where id = $1",
        )
        .bind(refund.id)
        .bind(wait.as_secs_f64())
        .bind(why)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The next try is another attempt under another key, and a person hears of it.
    async fn refund_refused(
        &self,
        refund: &Refund,
        why: &str,
        payment: Option<&Payment>,
    ) -> sqlx::Result<()> {
        let wait = doubled(REFUSED_FIRST, refund.refusals, REFUSED_MAX);
        let mut tx = self.pool.begin().await?;
        let owed = owed_again(&mut tx, refund.id, refund.attempt, why, wait).await?;
        if let (Some(payment), true) = (payment, owed) {
            let detail = format!("Stripe refuses to refund {}: {why}", refund.amount);
            let key = refund.id.to_string();
            let alarm = store::about(REFUSED, &key, payment, &detail);
            if alarms::raise(&mut tx, &alarm).await? {
                self.counters.alarms.inc();
            }
            record::publish(&mut tx, payment.id).await?;
        }
        tx.commit().await?;
        self.signal.wake();
        Ok(())
    }
}

/// This attempt led nowhere: the refund is owed again under the next. False when it was moved on.
async fn owed_again(
    conn: &mut PgConnection,
    refund: Uuid,
    attempt: i32,
    why: &str,
    wait: Duration,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update refunds set attempt = attempt + 1, attempted_at = null, refusals = refusals + 1,
             state = 'REQUESTED', stripe_id = null, burnt = false, asked = null, settled_at = null,
             last_error = $2, alarmed_at = coalesce(alarmed_at, now()),
             next_try_at = now() + make_interval(secs => $3)
         where id = $1 and attempt = $4 and state <> 'DISPUTED'",
    )
    .bind(refund)
    .bind(why)
    .bind(wait.as_secs_f64())
    .bind(attempt)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// What Stripe has not given back, and is not about to.
async fn left_at_stripe(pool: &PgPool, payment: &Payment) -> sqlx::Result<i64> {
    let back: i64 = sqlx::query_scalar(
        "select coalesce(sum(amount), 0)::bigint from stripe_refunds
         where payment_id = $1 and status <> 'FAILED'",
    )
    .bind(payment.id)
    .fetch_one(pool)
    .await?;
    Ok(payment.captured() - back)
}
