//! Refunds that take too long, ours and those made in Stripe's dashboard.

use std::time::Duration;

use uuid::Uuid;

use super::super::store;
use super::super::{Error, Payments};
use super::{FAILED, OVERDUE, PENDING_EVERY};
use crate::platform::alarms;

/// As often as this the age of what is under way is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A refund that failed once is believed when it has been done for so long; until then its alarm
/// stands, so that a bank which sends the money back each time does not open one each time.
const BELIEVED_AFTER: Duration = Duration::from_secs(10);
/// Payments read at Stripe in one look.
const READ_MAX: i64 = 20;
/// Alarms raised in one look; the next finds the rest.
const ALARMS_MAX: i64 = 100;

struct Overdue {
    key: String,
    payment_id: Uuid,
    age: String,
}

crate::from_row!(Overdue {
    key,
    payment_id,
    age
});

impl Payments {
    /// How often [`Self::look_for_overdue`] is due.
    pub(in super::super) fn overdue_every(&self) -> Duration {
        LOOK_EVERY
            .min(self.config.refund_pending_max / 2)
            .max(Duration::from_millis(500))
    }

    /// Reads pending refunds of the dashboard again, which nobody else tries, and raises an alarm
    /// for each that has been under way for too long. The alarm closes when the refund succeeds.
    pub(in super::super) async fn look_for_overdue(&self) -> Result<(), Error> {
        let due: Vec<Uuid> = sqlx::query_scalar(
            "update stripe_refunds set read_at = now() where id in (
                 select id from stripe_refunds
                 where status = 'PENDING' and refund_id is null
                   and read_at < now() - make_interval(secs => $1)
                 order by read_at limit $2 for update skip locked)
             returning payment_id",
        )
        .bind(
            PENDING_EVERY
                .min(self.config.refund_pending_max)
                .as_secs_f64(),
        )
        .bind(READ_MAX)
        .fetch_all(&self.pool)
        .await?;
        for payment in due {
            let payment = store::by_id(&mut *self.pool.acquire().await?, payment).await?;
            if let Some(payment) = payment {
                self.sync_refunds(&payment).await?;
            }
        }
        self.raise_overdue().await?;
        self.close_failed().await?;
        Ok(())
    }

    /// Closes the alarms of refunds that failed once and have been done since.
    async fn close_failed(&self) -> sqlx::Result<()> {
        let closed = sqlx::query(
            "update alarms a set resolved_at = now(), resolved_by = $2,
                 reason = 'the money has gone back since'
             where a.kind = $1 and a.resolved_at is null and (
                 exists (select 1 from refunds r where r.id::text = a.key
                     and r.state in ('SUCCEEDED', 'DISPUTED')
                     and r.settled_at < now() - make_interval(secs => $3))
                 or exists (select 1 from payments p where p.id = a.payment_id
                     and p.refunded_amount >= coalesce(p.captured_amount, p.amount)
                     and p.updated_at < now() - make_interval(secs => $3)))",
        )
        .bind(FAILED)
        .bind(alarms::SYSTEM)
        .bind(BELIEVED_AFTER.as_secs_f64())
        .execute(&self.pool)
        .await?;
        if closed.rows_affected() > 0 {
            tracing::info!(
                alarms = closed.rows_affected(),
                "alarms {FAILED} closed: the money has gone back since"
            );
        }
        Ok(())
    }

    /// While a dispute is open a refund waits for it, and the dispute's own alarm is open.
    async fn raise_overdue(&self) -> sqlx::Result<()> {
        let mut tx = self.pool.begin().await?;
        let overdue: Vec<Overdue> = sqlx::query_as(
            "select key, payment_id, age from (
                 select r.id::text as key, r.payment_id, r.created_at,
                     date_trunc('second', now() - r.created_at)::text as age
                 from refunds r join payments p on p.id = r.payment_id
                 where r.state in ('REQUESTED', 'PENDING') and p.dispute_state is distinct from 'OPEN'
                 union all
                 select s.id, s.payment_id, s.created_at, date_trunc('second', now() - s.created_at)::text
                 from stripe_refunds s where s.status = 'PENDING' and s.refund_id is null
             ) as open
             where created_at < now() - make_interval(secs => $1)
               and not exists (select 1 from alarms a where a.kind = $2 and a.key = open.key)
             limit $3",
        )
        .bind(self.config.refund_pending_max.as_secs_f64())
        .bind(OVERDUE)
        .bind(ALARMS_MAX)
        .fetch_all(&mut *tx)
        .await?;
        for one in &overdue {
            let Some(payment) = store::by_id(&mut tx, one.payment_id).await? else {
                continue;
            };
            let detail = format!(
                "refund {} has been under way for {}, longer than it may",
                one.key, one.age
            );
            let alarm = store::about(OVERDUE, &one.key, &payment, &detail);
            if alarms::raise(&mut tx, &alarm).await? {
                self.counters.alarms.inc();
            }
        }
        tx.commit().await
    }
}
