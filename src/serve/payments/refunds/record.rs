//! Writing down what Stripe has of a payment's refunds, and telling of it.

use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;

use super::super::store::{self, Payment};
use super::super::stripe::{RefundState, StripeRefund};
use super::super::{Error, Payments};
use super::{AT_STRIPE, FAILED, FAILED_MAX, OVERDUE, PENDING_EVERY, REFUSED, REFUSED_FIRST};
use super::{doubled, owed_again};
use crate::platform::alarms;

/// The reason of a refund that was made in Stripe's dashboard.
const MADE_AT_STRIPE: &str = "REFUNDED_AT_STRIPE";

impl Payments {
    /// Takes over what was refunded at Stripe, by us or in its dashboard.
    pub(in super::super) async fn sync_refunds(&self, payment: &Payment) -> Result<(), Error> {
        let Some(intent_id) = &payment.intent_id else {
            return Ok(());
        };
        let known = self.stripe.refunds(intent_id).await;
        self.record_refunds(payment.id, &known.map_err(Error::Stripe)?)
            .await?;
        Ok(())
    }

    /// Records refunds as Stripe shows them. A status only moves on, so that what was read earlier
    /// may be recorded later.
    pub(in super::super) async fn record_refunds(
        &self,
        payment: Uuid,
        refunds: &[StripeRefund],
    ) -> sqlx::Result<()> {
        let mut tx = self.pool.begin().await?;
        let Some(payment) = store::lock(&mut tx, payment).await? else {
            return Err(sqlx::Error::RowNotFound);
        };
        let mut news = Vec::new();
        for one in refunds {
            if note(&mut tx, &payment, one).await? {
                news.push(one);
            }
        }
        if news.is_empty() {
            return Ok(());
        }
        let total = total(&mut tx, &payment).await?;
        let mut alarmed = false;
        for one in &news {
            alarmed |= match one.refund_id {
                Some(refund) => ours(&mut tx, &payment, refund, one).await?,
                None => theirs(&mut tx, &payment, one, total).await?,
            };
        }
        if total >= payment.captured() {
            let kinds = [REFUSED, OVERDUE, AT_STRIPE];
            let note = "all of the money is back";
            alarms::clear_of_payment(&mut tx, &kinds, payment.id, note).await?;
        }
        publish(&mut tx, payment.id).await?;
        crate::failpoint!("payments.before_refund_result_commit");
        tx.commit().await?;
        crate::failpoint!("payments.after_refund_result_commit");
        if alarmed {
            self.counters.alarms.inc();
        }
        self.signal.wake();
        Ok(())
    }
}

/// True when it is news.
async fn note(
    conn: &mut PgConnection,
    payment: &Payment,
    refund: &StripeRefund,
) -> sqlx::Result<bool> {
    let moved: Option<String> = sqlx::query_scalar(
        "insert into stripe_refunds as known
             (id, payment_id, refund_id, attempt, amount, status, failure_reason)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (id) do update set status = excluded.status, amount = excluded.amount,
             failure_reason = excluded.failure_reason, read_at = now()
         where array_position(array['PENDING', 'SUCCEEDED', 'FAILED'], excluded.status)
             > array_position(array['PENDING', 'SUCCEEDED', 'FAILED'], known.status)
         returning id",
    )
    .bind(&refund.id)
    .bind(payment.id)
    .bind(refund.refund_id)
    .bind(refund.attempt)
    .bind(refund.amount)
    .bind(status(refund.state))
    .bind(&refund.failure_reason)
    .fetch_optional(conn)
    .await?;
    Ok(moved.is_some())
}

fn status(state: RefundState) -> &'static str {
    match state {
        RefundState::Pending => "PENDING",
        RefundState::Succeeded => "SUCCEEDED",
        RefundState::Failed => "FAILED",
    }
}

/// What is back, written to the payment; it may have fallen.
async fn total(conn: &mut PgConnection, payment: &Payment) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "update payments set updated_at = now(), refunded_amount = (
             select coalesce(sum(amount), 0)::bigint from stripe_refunds
             where payment_id = $1 and status = 'SUCCEEDED')
         where id = $1 returning refunded_amount",
    )
    .bind(payment.id)
    .fetch_one(conn)
    .await
}

/// An attempt of ours moved on: true when that is an alarm.
async fn ours(
    conn: &mut PgConnection,
    payment: &Payment,
    refund: Uuid,
    made: &StripeRefund,
) -> sqlx::Result<bool> {
    let attempt = made.attempt.unwrap_or(1);
    let key = refund.to_string();
    match made.state {
        RefundState::Pending | RefundState::Succeeded => {
            let succeeded = made.state == RefundState::Succeeded;
            sqlx::query(
                "update refunds set stripe_id = $3, last_error = null, alarmed_at = null,
                     burnt = false, state = case when $4 then 'SUCCEEDED' else 'PENDING' end,
                     settled_at = case when $4 then now() end,
                     next_try_at = now() + make_interval(secs => $5)
                 where id = $1 and attempt = $2 and state <> 'DISPUTED'",
            )
            .bind(refund)
            .bind(attempt)
            .bind(&made.id)
            .bind(succeeded)
            .bind(PENDING_EVERY.as_secs_f64())
            .execute(&mut *conn)
            .await?;
            if succeeded {
                // That of a failure closes once the money has stayed away (`overdue`).
                for kind in [REFUSED, OVERDUE] {
                    alarms::clear(conn, kind, &key, "the refund succeeded").await?;
                }
            }
            Ok(false)
        }
        RefundState::Failed => {
            let why = made.failure_reason.as_deref().unwrap_or("failed");
            let refusals: Option<i32> =
                sqlx::query_scalar("select refusals from refunds where id = $1")
                    .bind(refund)
                    .fetch_optional(&mut *conn)
                    .await?;
            let wait = doubled(REFUSED_FIRST, refusals.unwrap_or(0), FAILED_MAX);
            if !owed_again(conn, refund, attempt, why, wait).await? {
                return Ok(false);
            }
            let detail = format!(
                "refund {} of {} failed at the bank ({why}); it is owed again",
                made.id, made.amount
            );
            let alarm = store::about(FAILED, &key, payment, &detail);
            alarms::raise(conn, &alarm).await
        }
    }
}

/// A refund made in Stripe's dashboard moved on: true when that is an alarm.
async fn theirs(
    conn: &mut PgConnection,
    payment: &Payment,
    made: &StripeRefund,
    total: i64,
) -> sqlx::Result<bool> {
    match made.state {
        RefundState::Pending => Ok(false),
        RefundState::Succeeded => {
            let note = "the refund succeeded";
            alarms::clear(conn, OVERDUE, &made.id, note).await?;
            let whole = payment.captured();
            if total >= whole {
                return Ok(false);
            }
            let detail = format!("{total} of {whole} was refunded at Stripe itself");
            store::alarm(conn, AT_STRIPE, payment, &detail).await
        }
        RefundState::Failed => {
            let why = made.failure_reason.as_deref().unwrap_or("failed");
            alarms::clear(conn, OVERDUE, &made.id, "the refund failed").await?;
            let detail = format!(
                "refund {} of {}, made at Stripe itself, failed ({why})",
                made.id, made.amount
            );
            let alarm = store::about(FAILED, &made.id, payment, &detail);
            alarms::raise(conn, &alarm).await
        }
    }
}

/// Tells of the refunds of a payment as they stand: the version orders the news.
pub(in super::super) async fn publish(conn: &mut PgConnection, payment: Uuid) -> sqlx::Result<()> {
    sqlx::query("update payments set refund_version = refund_version + 1 where id = $1")
        .bind(payment)
        .execute(&mut *conn)
        .await?;
    let Some(payment) = store::by_id(conn, payment).await? else {
        return Err(sqlx::Error::RowNotFound);
    };
    let refunds = snapshot(conn, payment.id).await?;
    store::say(conn, &payment.said_refunded(refunds)).await
}

/// Tells once more what was told last, under the version that it had: a consumer that has heard it
/// ignores it.
pub(in super::super) async fn publish_again(
    conn: &mut PgConnection,
    payment: &Payment,
) -> sqlx::Result<()> {
    if payment.refund_version == 0 {
        return Ok(());
    }
    let refunds = snapshot(conn, payment.id).await?;
    store::say(conn, &payment.said_refunded(refunds)).await
}

/// Ours as reservations asked for them, then those made at Stripe.
async fn snapshot(conn: &mut PgConnection, payment: Uuid) -> sqlx::Result<Value> {
    // What others gave back for us is COVERED: it stands in the list as theirs.
    let all: Option<Value> = sqlx::query_scalar(
        "select jsonb_agg(jsonb_build_object('refundId', id, 'status', status, 'amount', amount,
                    'reason', reason, 'createdAt', created_at) order by created_at, id)
         from (
             select r.request_id as id, r.reason, r.created_at,
                 case when r.state in ('PENDING', 'DISPUTED') then
                          case r.state when 'PENDING' then 'PENDING' else 'SUCCEEDED' end
                      when r.state = 'SUCCEEDED' then
                          case when s.id is null then 'COVERED' else 'SUCCEEDED' end
                      when r.refusals > 0 then 'FAILED'
                      else 'PENDING' end as status,
                 coalesce(s.amount, r.asked, r.amount) as amount
             from refunds r left join stripe_refunds s on s.id = r.stripe_id
             where r.payment_id = $1
             union all
             select public_id, $2, created_at, status, amount
             from stripe_refunds where payment_id = $1 and refund_id is null
         ) as refund",
    )
    .bind(payment)
    .bind(MADE_AT_STRIPE)
    .fetch_one(conn)
    .await?;
    Ok(all.unwrap_or_else(|| json!([])))
}
