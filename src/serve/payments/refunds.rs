//! Money that goes back: asked for once, tried until Stripe has done it, alarmed while it refuses.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::store::{self, Payment};
use super::stripe::{RefundState, StripeFailure, StripeRefund};
use super::{Error, Payments};
use crate::platform::events::{Event, HandlerError, inbox};

/// Stripe forgets keys after 24 h; well before, we look for what an old try did instead.
const KEY_TRUSTED_H: i64 = 20;
/// While Stripe cannot be reached, and while it says that a refund is on its way.
const AWAY_MAX: Duration = Duration::from_secs(60);
const PENDING_EVERY: Duration = Duration::from_secs(300);
/// After a refusal: soon at first (the balance may fill), then hourly.
const REFUSED_FIRST: Duration = Duration::from_secs(5);
const REFUSED_MAX: Duration = Duration::from_secs(3_600);

#[derive(Clone, Debug)]
pub(super) struct Refund {
    pub id: Uuid,
    pub payment_id: Uuid,
    pub amount: i64,
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
    attempt,
    attempted_at,
    stripe_id,
    burnt,
    refusals,
    tries,
    leased_until
});

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Requested {
    payment_id: Uuid,
    amount: i64,
    #[serde(default)]
    reason: String,
}

/// Notes that money is to go back; asked for twice, it goes back once.
pub(super) async fn request(
    conn: &mut PgConnection,
    payment: &Payment,
    amount: i64,
    reason: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "insert into refunds (id, payment_id, order_id, amount, reason)
         values ($1, $2, $3, $4, $5) on conflict on constraint one_refund_a_payment do nothing",
    )
    .bind(Uuid::now_v7())
    .bind(payment.id)
    .bind(payment.order_id)
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
    sqlx::query_as(
        "update refunds set next_try_at = now() + make_interval(secs => $2), tries = tries + 1,
             attempted_at = coalesce(attempted_at, now())
         where id in (select id from refunds where state <> 'SUCCEEDED' and next_try_at <= now()
                      order by next_try_at limit $1 for update skip locked)
         returning id, payment_id, amount, attempt::int as attempt, attempted_at, stripe_id, burnt,
             refusals::int as refusals, tries::int as tries, next_try_at as leased_until",
    )
    .bind(limit)
    .bind(lease_s)
    .fetch_all(pool)
    .await
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
        if payment.succeeded_at.is_none() || asked.amount <= 0 || asked.amount > payment.amount {
            return Err(HandlerError::Poison(anyhow::anyhow!(
                "payment {} is {} over {}: {} cannot be refunded",
                payment.id,
                payment.state().as_str(),
                payment.amount,
                asked.amount
            )));
        }
        request(&mut tx, &payment, asked.amount, &asked.reason).await?;
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
        // Somebody may have sent some of it back at Stripe itself; all of it, and we are done.
        if payment.refunded_amount >= refund.amount {
            self.close_refund(refund).await?;
            return Ok(());
        }
        match self.refund_at_stripe(refund, &payment, &intent_id).await {
            Ok(made) if made.state == RefundState::Failed => {
                let why = made.failure_reason.unwrap_or_else(|| "failed".to_owned());
                self.refund_refused(refund, &why, Some(&payment)).await?;
            }
            Ok(made) => self.refund_taken(refund, &payment, &made).await?,
            Err(StripeFailure::Burnt(cause)) => self.refund_burnt(refund, &cause).await?,
            Err(StripeFailure::Unknown(cause)) => {
                tracing::warn!(refund.id = %refund.id, cause, "refund not known to be done; trying again");
                let wait = Duration::from_secs(1 << refund.tries.clamp(0, 6)).min(AWAY_MAX);
                self.refund_later(refund, wait, &cause).await?;
            }
            Err(refused @ StripeFailure::Refused { .. }) => {
                // The next attempt asks for what is then left.
                if self.sync_refunds(&payment).await? {
                    self.close_refund(refund).await?;
                } else {
                    self.refund_refused(refund, &refused.to_string(), Some(&payment))
                        .await?;
                }
            }
        }
        Ok(())
    }

    async fn refund_at_stripe(
        &self,
        refund: &Refund,
        payment: &Payment,
        intent_id: &str,
    ) -> Result<StripeRefund, StripeFailure> {
        if let Some(made) = self.refund_made(refund, intent_id).await? {
            return Ok(made);
        }
        let (id, outstanding) = (refund.id, refund.amount - payment.refunded_amount);
        let attempt = match refund.burnt {
            false => refund.attempt,
            // Looked for and not there: that attempt did nothing.
            true => self.next_refund_attempt(refund).await?,
        };
        let made = self
            .stripe
            .refund(id, attempt, intent_id, outstanding, &payment.currency)
            .await;
        crate::failpoint!("payments.after_stripe_refund");
        made
    }

    async fn next_refund_attempt(&self, refund: &Refund) -> Result<i32, StripeFailure> {
        sqlx::query_scalar(
            "update refunds set attempt = attempt + 1, attempted_at = now(), burnt = false
             where id = $1 and attempt = $2 returning attempt",
        )
        .bind(refund.id)
        .bind(refund.attempt)
        .fetch_one(&self.pool)
        .await
        .map_err(|error| {
            StripeFailure::Unknown(format!("the next attempt cannot be noted: {error}"))
        })
    }

    /// What an earlier try of this attempt did, where its key would repeat an old answer
    /// ("pending") or may have been forgotten.
    async fn refund_made(
        &self,
        refund: &Refund,
        intent_id: &str,
    ) -> Result<Option<StripeRefund>, StripeFailure> {
        let trusted = chrono::Duration::hours(KEY_TRUSTED_H);
        let fresh = refund
            .attempted_at
            .is_none_or(|at| Utc::now() - at < trusted);
        if fresh && refund.stripe_id.is_none() && !refund.burnt {
            return Ok(None);
        }
        let known = self.stripe.refunds(intent_id).await?;
        Ok(known
            .into_iter()
            .find(|one| one.refund_id == Some(refund.id) && one.attempt == Some(refund.attempt)))
    }

    async fn refund_taken(
        &self,
        refund: &Refund,
        payment: &Payment,
        made: &StripeRefund,
    ) -> sqlx::Result<()> {
        let succeeded = made.state == RefundState::Succeeded;
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "update refunds set stripe_id = $2, last_error = null, alarmed_at = null,
                 state = case when $3 then 'SUCCEEDED' else 'PENDING' end,
                 settled_at = case when $3 then now() end,
                 next_try_at = now() + make_interval(secs => $4)
             where id = $1",
        )
        .bind(refund.id)
        .bind(&made.id)
        .bind(succeeded)
        .bind(PENDING_EVERY.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        if succeeded {
            let total = payment.refunded_amount + made.amount;
            note_refunded(&mut tx, payment.id, total).await?;
        }
        crate::failpoint!("payments.before_refund_result_commit");
        tx.commit().await?;
        crate::failpoint!("payments.after_refund_result_commit");
        self.signal.wake();
        Ok(())
    }

    /// The key can only repeat a failure. The list says whether it was done all the same; the
    /// next try looks there first, and only then is another attempt made.
    async fn refund_burnt(&self, refund: &Refund, why: &str) -> sqlx::Result<()> {
        tracing::warn!(refund.id = %refund.id, why, "refund lost at Stripe; looking for it");
        if !refund.burnt {
            sqlx::query("update refunds set burnt = true, last_error = $2, next_try_at = now() where id = $1")
                .bind(refund.id)
                .bind(why)
                .execute(&self.pool)
                .await?;
        }
        self.worker.notify_one();
        Ok(())
    }

    async fn close_refund(&self, refund: &Refund) -> sqlx::Result<()> {
        sqlx::query(
            "update refunds set state = 'SUCCEEDED', settled_at = now(), last_error = null,
                 alarmed_at = null where id = $1",
        )
        .bind(refund.id)
        .execute(&self.pool)
        .await?;
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

    /// Stripe said no. The next try is another attempt under another key, and a person hears of it.
    async fn refund_refused(
        &self,
        refund: &Refund,
        why: &str,
        payment: Option<&Payment>,
    ) -> sqlx::Result<()> {
        let wait = (REFUSED_FIRST * 2_u32.pow(refund.refusals.clamp(0, 10).unsigned_abs()))
            .min(REFUSED_MAX);
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "update refunds set attempt = attempt + 1, attempted_at = null, refusals = refusals + 1,
                 state = 'REQUESTED', stripe_id = null, burnt = false,
                 last_error = $2, alarmed_at = coalesce(alarmed_at, now()),
                 next_try_at = now() + make_interval(secs => $3)
             where id = $1 and attempt = $4",
        )
        .bind(refund.id)
        .bind(why)
        .bind(wait.as_secs_f64())
        .bind(refund.attempt)
        .execute(&mut *tx)
        .await?;
        if let Some(payment) = payment {
            store::alarm(&mut tx, "REFUND_REFUSED", payment, why).await?;
        }
        tx.commit().await?;
        self.counters.alarms.inc();
        Ok(())
    }

    /// Takes over what was refunded at Stripe, by us or in its dashboard. True when all of it was.
    pub(super) async fn sync_refunds(&self, payment: &Payment) -> Result<bool, Error> {
        let Some(intent_id) = &payment.intent_id else {
            return Ok(false);
        };
        let refunds = self
            .stripe
            .refunds(intent_id)
            .await
            .map_err(Error::Stripe)?;
        let total: i64 = refunds
            .iter()
            .filter(|one| one.state == RefundState::Succeeded)
            .map(|one| one.amount)
            .sum();
        let mut tx = self.pool.begin().await?;
        let newly = note_refunded(&mut tx, payment.id, total).await?;
        let by_us = refunds.iter().any(|one| one.refund_id.is_some());
        if newly && !by_us {
            let detail = format!(
                "{total} of {} was refunded at Stripe itself",
                payment.amount
            );
            store::alarm(&mut tx, "REFUNDED_AT_STRIPE", payment, &detail).await?;
        }
        tx.commit().await?;
        self.signal.wake();
        Ok(total >= payment.amount)
    }
}

/// Raises what is known to be refunded and says so; false when it was known already.
async fn note_refunded(
    conn: &mut PgConnection,
    payment_id: Uuid,
    total: i64,
) -> sqlx::Result<bool> {
    let payment: Option<Payment> = sqlx::query_as(concat!(
        "update payments set refunded_amount = $2, updated_at = now()
         where id = $1 and refunded_amount < $2 returning ",
        store::payment_columns!()
    ))
    .bind(payment_id)
    .bind(total)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(payment) = payment else {
        return Ok(false);
    };
    store::say(conn, &payment.said_refunded(total)).await?;
    Ok(true)
}
