//! Orders and payments, compared in both directions, and the orders with themselves.
//!
//! Payments asks what has become of its captures; this side asks payments again for ends and
//! refunds whose answer is overdue, and goes over the orders: the newest all the time, the others
//! by and by. What can be told again is told again; what cannot be repaired for certain raises
//! an alarm, which is cleared once it is no longer so.

use std::{collections::BTreeMap, time::Duration};

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{Reservations, refunds::MADE_AT_STRIPE, settle::SettleError};
use crate::platform::{
    alarms::{self, Standing},
    auth::Internal,
    events::{NewEvent, outbox::append},
    http::{Json, Query},
    problem::Problem,
    scans::Scan,
    upstream::UpstreamError,
};

/// How often overdue answers are looked for: indexes that are nearly empty.
pub(super) const OVERDUE_EVERY: Duration = Duration::from_secs(5);
/// How often orders are compared with themselves and with payments.
pub(super) const COMPARE_EVERY: Duration = Duration::from_secs(15);
/// Orders or refunds asked about again in one tick.
const AGAIN_MAX: i64 = 200;
/// Orders compared in one tick: the newest, and as many of the others.
const COMPARED: i64 = 1_000;
/// Sales listed at once.
const SALES_MAX: i64 = 1_000;
/// Alarms of one kind; more are one disaster, and the audit lists them.
const STANDING_MAX: i64 = 100;

const SEATS: &str = "ORDER_SEATS_DIFFER";
const AMOUNT: &str = "ORDER_AMOUNT_DIFFERS";
const NOT_PAID: &str = "ORDER_NOT_PAID";
const STUCK: &str = "ORDER_STUCK";
const NO_PAYMENT: &str = "REFUND_WITHOUT_PAYMENT";
const NO_INDEX: &str = "SEAT_INDEX_MISSING";

/// What the comparison could not ask or read.
#[derive(Debug, thiserror::Error)]
pub(super) enum CompareError {
    #[error("postgres: {0}")]
    Database(#[from] sqlx::Error),
    #[error("payments: {0}")]
    Payments(#[from] UpstreamError),
    #[error(transparent)]
    Seats(#[from] SettleError),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Capture {
    payment_id: Uuid,
    order_id: Uuid,
}

/// Captures that payments asks about.
#[derive(Debug, Deserialize)]
pub(super) struct Captures {
    payments: Vec<Capture>,
}

/// How a capture is accounted for.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Verdict {
    payment_id: Uuid,
    verdict: String,
    /// The newest that is known of its refunds.
    refund_version: i64,
    /// And of its disputes; null where they do not concern the order.
    dispute_version: Option<i64>,
}

crate::from_row!(Verdict {
    payment_id,
    verdict,
    refund_version,
    dispute_version
});

#[derive(Debug, Serialize)]
pub(super) struct Verdicts {
    payments: Vec<Verdict>,
}

/// Payments asks: has each of these captures its order, or a refund?
pub(super) async fn captures(
    State(state): State<Reservations>,
    _: Internal,
    Json(asked): Json<Captures>,
) -> Result<Json<Verdicts>, Problem> {
    let (payments, orders): (Vec<Uuid>, Vec<Uuid>) = (asked.payments.iter())
        .map(|c| (c.payment_id, c.order_id))
        .unzip();
    let payments = sqlx::query_as(
        "select t.payment_id,
             case when o.id is null then 'NO_ORDER'
                  when o.state = 'CONFIRMED' and o.payment_id = t.payment_id then 'ACCOUNTED'
                  when exists (select 1 from refunds r where r.payment_id = t.payment_id
                               and (r.reason <> 'REFUNDED_AT_STRIPE' or o.state = 'REFUNDED')) then 'ACCOUNTED'
                  -- Nothing was taken, or the bank has given it back for good.
                  when o.payment_id = t.payment_id and o.amount = 0 then 'ACCOUNTED'
                  when o.dispute_state = 'LOST' and o.state not in ('PENDING', 'PAYING') then 'ACCOUNTED'
                  when o.payment_id = t.payment_id then 'WRONG'
                  else 'NOT_YET' end as verdict,
             coalesce(k.version, 0)::bigint as refund_version,
             case when o.payment_id is null or o.payment_id = t.payment_id
                  then o.dispute_version end as dispute_version
         from unnest($1::uuid[], $2::uuid[]) as t (payment_id, order_id)
         left join orders o on o.id = t.order_id
         left join payment_refunds k on k.payment_id = t.payment_id",
    )
    .bind(payments)
    .bind(orders)
    .fetch_all(&state.pool)
    .await?;
    Ok(Json(Verdicts { payments }))
}

/// How long an event may take to arrive before others count without it, in seconds.
const SALES_LATE_S: i64 = 20;
/// Pages of sales in one tick.
const SALES_PAGES: usize = 5;

/// Where a list of sales goes on.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SalesAsked {
    /// Confirmed or ended at this time or later.
    from: DateTime<Utc>,
    /// And before this.
    to: DateTime<Utc>,
}

/// A sale: an order that was confirmed, and may have ended since.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sale {
    order_id: Uuid,
    user_id: Uuid,
    performance_id: Uuid,
    schedule_id: Uuid,
    seat_count: i32,
    place_number: Option<i64>,
    /// Has it ended: refunded, or cancelled?
    ended: bool,
    at: DateTime<Utc>,
}

crate::from_row!(Sale {
    order_id,
    user_id,
    performance_id,
    schedule_id,
    seat_count,
    place_number,
    ended,
    at
});

/// Sales in the order of time.
#[derive(Debug, Serialize)]
pub(super) struct Sales {
    sales: Vec<Sale>,
    /// Are there more behind the last one?
    more: bool,
}

/// What was sold, and what of it ended, by time: for those who count by events and may have
/// missed one.
pub(super) async fn sales(
    State(state): State<Reservations>,
    _: Internal,
    Query(asked): Query<SalesAsked>,
) -> Result<Json<Sales>, Problem> {
    Ok(Json(state.sales_between(asked.from, asked.to).await?))
}

impl Reservations {
    async fn sales_between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> sqlx::Result<Sales> {
        let mut sales: Vec<Sale> = sqlx::query_as(
        "(select id as order_id, user_id, performance_id, schedule_id, seat_count, place_number,
              state <> 'CONFIRMED' as ended, confirmed_at as at
          from orders where confirmed_at >= $1 and confirmed_at < $2 order by confirmed_at limit $3)
         union all
         (select id as order_id, user_id, performance_id, schedule_id, seat_count, place_number,
              state <> 'CONFIRMED' as ended, closed_at as at
          from orders where confirmed_at is not null and closed_at >= $1 and closed_at < $2
          order by closed_at limit $3)
         order by at",
    )
    .bind(from)
    .bind(to)
    .bind(SALES_MAX)
    .fetch_all(&self.pool)
    .await?;
        let max = usize::try_from(SALES_MAX).unwrap_or(usize::MAX);
        let more = sales.len() >= max;
        sales.truncate(max);
        Ok(Sales { sales, more })
    }

    /// Tells performances what was sold and what of it ended, a little later than the events do:
    /// it counts what it has not.
    pub(super) async fn tell_sales(&self, scan: &Scan) -> Result<(), CompareError> {
        if !scan.hold().await? {
            return Ok(());
        }
        let mut from: DateTime<Utc> = scan.position().await?.unwrap_or_default();
        let to = Utc::now() - chrono::Duration::seconds(SALES_LATE_S);
        for _ in 0..SALES_PAGES {
            let page = self.sales_between(from, to).await?;
            let up_to = match page.sales.last().map(|sale| sale.at) {
                None => from,
                // The last one is told again where more of its microsecond may follow.
                Some(last) if page.more => last,
                Some(last) => last + chrono::Duration::microseconds(1),
            };
            let telling = Telling {
                sales: &page.sales,
                from,
                up_to,
            };
            let told: Told = self.catalogues.tell_sales(&telling).await?;
            if told.missed > 0 {
                tracing::warn!(
                    missed = told.missed,
                    "performances had missed {} sales",
                    told.missed
                );
            }
            let known = told.known_up_to.unwrap_or(up_to);
            let older = known < from;
            if older {
                tracing::warn!(
                    since = %known,
                    "performances knows the sales up to {known} only, as after a restore: it is told again of later ones"
                );
            }
            let done = !older && !page.more;
            if known.min(up_to) != from {
                from = known.min(up_to);
                scan.save(&from).await?;
            }
            if done || !scan.hold().await? {
                break;
            }
        }
        Ok(())
    }
}

/// What performances is told: all sales from one moment up to another.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Telling<'a> {
    sales: &'a [Sale],
    from: DateTime<Utc>,
    up_to: DateTime<Utc>,
}

/// What it answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    missed: u64,
    /// Up to when it knows all sales; not said by performances of an earlier version.
    #[serde(default)]
    known_up_to: Option<DateTime<Utc>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wrong {
    order_id: Uuid,
    why: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KnownRefund {
    refund_id: Uuid,
    payment: bool,
    refund: bool,
}

#[derive(Deserialize)]
struct Differences {
    wrong: Vec<Wrong>,
    refunds: Vec<KnownRefund>,
}

impl Reservations {
    /// One tick over what payments owes an answer.
    pub(super) async fn ask_overdue(&self, scan: &Scan) -> Result<(), CompareError> {
        if !scan.hold().await? {
            return Ok(());
        }
        self.ask_ends().await?;
        self.ask_refunds().await
    }

    /// Orders that wait for the end of their payment: payments answers with what is final, as
    /// often as it is asked.
    async fn ask_ends(&self) -> Result<(), CompareError> {
        let mut tx = self.pool.begin().await?;
        let overdue: Vec<Uuid> = sqlx::query_scalar(
            "update orders set asked_again_at = now() where id in (
                 select id from orders
                 where state = 'PAYING' and closing is not null
                   and greatest(asked_again_at, closing_at) < now() - make_interval(
                       secs => greatest(12, extract(epoch from now() - closing_at) / 4))
                 order by closing_at limit $1 for update skip locked)
             returning id",
        )
        .bind(AGAIN_MAX)
        .fetch_all(&mut *tx)
        .await?;
        if overdue.is_empty() {
            return Ok(());
        }
        for order in &overdue {
            let data = json!({ "orderId": order, "reason": "HOLD_EXPIRED" });
            append(
                &mut tx,
                &NewEvent::new("payment.cancel.requested", *order, &data),
            )
            .await?;
        }
        tx.commit().await?;
        self.signal.wake();
        tracing::warn!(
            orders = overdue.len(),
            "{} orders wait for the end of their payment; payments is asked again",
            overdue.len()
        );
        Ok(())
    }

    /// Refunds that payments has not reported: asked for again where it does not know them.
    async fn ask_refunds(&self) -> Result<(), CompareError> {
        let rows = sqlx::query(
            "update refunds set asked_again_at = now() where id in (
                 select id from refunds
                 where settled_at is null and reason <> $2
                   and greatest(asked_again_at, requested_at) < now() - make_interval(
                       secs => greatest(12, least(600, extract(epoch from now() - requested_at) / 4)))
                 order by requested_at limit $1 for update skip locked)
             returning id, payment_id, order_id, amount, reason",
        )
        .bind(AGAIN_MAX)
        .bind(MADE_AT_STRIPE)
        .fetch_all(&self.pool)
        .await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut overdue: BTreeMap<Uuid, Overdue> = BTreeMap::new();
        for row in &rows {
            let due = Overdue {
                payment: row.try_get(1)?,
                order: row.try_get(2)?,
                amount: row.try_get(3)?,
                reason: row.try_get(4)?,
            };
            overdue.insert(row.try_get(0)?, due);
        }
        let asked: Vec<_> = (overdue.iter())
            .map(|(id, due)| json!({ "refundId": id, "paymentId": due.payment }))
            .collect();
        let known = self
            .ask_payments_about(&json!({ "refunds": asked }))
            .await?;
        let mut tx = self.pool.begin().await?;
        for refund in known.refunds {
            if let Some(due) = overdue.get(&refund.refund_id) {
                ask_again(&mut tx, &refund, due).await?;
            }
        }
        tx.commit().await?;
        self.signal.wake();
        Ok(())
    }

    async fn ask_payments_about(
        &self,
        facts: &serde_json::Value,
    ) -> Result<Differences, CompareError> {
        let path = "/internal/v1/reconcile/orders";
        Ok(self.payments.post_json(path, facts).await?)
    }

    /// One tick over the orders themselves.
    pub(super) async fn compare_orders(&self, scan: &Scan) -> Result<(), CompareError> {
        if !scan.hold().await? {
            return Ok(());
        }
        self.watch_stuck().await?;
        let after: Uuid = scan.position().await?.unwrap_or_default();
        let newest: Vec<Uuid> =
            sqlx::query_scalar("select id from orders order by id desc limit $1")
                .bind(COMPARED)
                .fetch_all(&self.pool)
                .await?;
        let others: Vec<Uuid> =
            sqlx::query_scalar("select id from orders where id > $1 order by id limit $2")
                .bind(after)
                .bind(COMPARED)
                .fetch_all(&self.pool)
                .await?;
        let alarmed: Vec<Uuid> = sqlx::query_scalar(
            "select order_id from alarms
             where resolved_at is null and kind = any($1) and order_id is not null",
        )
        .bind(&[SEATS, AMOUNT, NOT_PAID][..])
        .fetch_all(&self.pool)
        .await?;
        let next = if i64::try_from(others.len()).unwrap_or(0) < COMPARED {
            Uuid::nil()
        } else {
            others.last().copied().unwrap_or_default()
        };
        let mut ids: Vec<Uuid> = newest
            .into_iter()
            .chain(others)
            .chain(alarmed.clone())
            .collect();
        ids.sort_unstable();
        ids.dedup();
        for chunk in ids.chunks(500) {
            self.compare_with_seats(chunk, &alarmed).await?;
            self.compare_with_payments(chunk, &alarmed).await?;
        }
        scan.save(&next).await?;
        Ok(())
    }

    /// An order has its seats exactly while it is live, and costs what they cost.
    async fn compare_with_seats(&self, ids: &[Uuid], alarmed: &[Uuid]) -> Result<(), CompareError> {
        let rows = sqlx::query(
            "select o.id, o.state, o.seat_count, o.amount, s.seats, s.live, s.price
             from orders o cross join lateral (
                 select count(*) as seats, count(*) filter (where live) as live,
                     coalesce(sum(price), 0)::bigint as price
                 from order_seats where order_id = o.id) s
             where o.id = any($1)
               and (s.seats <> o.seat_count or o.amount <> s.price
                    or s.live <> case when o.state in ('PENDING', 'PAYING', 'CONFIRMED')
                                      then o.seat_count else 0 end)",
        )
        .bind(ids)
        .fetch_all(&self.pool)
        .await?;
        let (mut seats, mut amounts) = (Vec::new(), Vec::new());
        for row in rows {
            let (id, state, count): (Uuid, String, i32) = (
                row.try_get("id")?,
                row.try_get("state")?,
                row.try_get("seat_count")?,
            );
            let (amount, price): (i64, i64) = (row.try_get("amount")?, row.try_get("price")?);
            let live: i64 = row.try_get("live")?;
            let due = if matches!(&*state, "PENDING" | "PAYING" | "CONFIRMED") {
                count
            } else {
                0
            };
            if live != i64::from(due) || row.try_get::<i64, _>("seats")? != i64::from(count) {
                let detail = format!("the order is {state} with {live} of {count} seats live");
                seats.push(Standing::of_order(id, detail));
            }
            if amount != price {
                let detail = format!("the order costs {amount}, and its seats {price}");
                amounts.push(Standing::of_order(id, detail));
            }
        }
        let mut conn = self.pool.acquire().await?;
        let looked_at = among(ids, alarmed);
        alarms::keep_standing(&mut conn, SEATS, &seats, Some(&looked_at)).await?;
        alarms::keep_standing(&mut conn, AMOUNT, &amounts, Some(&looked_at)).await?;
        Ok(())
    }

    /// A confirmed order was paid, and a closed one has no payment that is open or captured
    /// without a refund.
    async fn compare_with_payments(
        &self,
        ids: &[Uuid],
        alarmed: &[Uuid],
    ) -> Result<(), CompareError> {
        // What has just changed may still be on its way.
        let rows = sqlx::query(
            "select o.id, o.state, o.payment_id, o.amount from orders o
             where o.id = any($1) and o.channel = 'QUEUE'
               and o.state in ('CONFIRMED', 'EXPIRED', 'CANCELLED', 'REFUNDED')
               and coalesce(o.closed_at, o.confirmed_at) < now() - interval '15 seconds'
               and (o.state = 'CONFIRMED'
                    or o.amount > 0 and o.dispute_state is distinct from 'LOST'
                       and not exists (select 1 from refunds r where r.order_id = o.id))",
        )
        .bind(ids)
        .fetch_all(&self.pool)
        .await?;
        let orders: Vec<_> = rows
            .iter()
            .map(|row| {
                Ok(json!({
                    "orderId": row.try_get::<Uuid, _>(0)?,
                    "state": row.try_get::<String, _>(1)?,
                    "paymentId": row.try_get::<Option<Uuid>, _>(2)?,
                    "amount": row.try_get::<i64, _>(3)?,
                }))
            })
            .collect::<sqlx::Result<_>>()?;
        let wrong = match orders.is_empty() {
            true => Vec::new(),
            false => {
                self.ask_payments_about(&json!({ "orders": orders }))
                    .await?
                    .wrong
            }
        };
        let wrong: Vec<Standing> = (wrong.into_iter())
            .map(|w| Standing::of_order(w.order_id, format!("confirmed and not paid: {}", w.why)))
            .collect();
        let mut conn = self.pool.acquire().await?;
        alarms::keep_standing(&mut conn, NOT_PAID, &wrong, Some(&among(ids, alarmed))).await?;
        Ok(())
    }

    /// Orders past every deadline, and the index that has the last word about seats.
    async fn watch_stuck(&self) -> Result<(), CompareError> {
        let rows = sqlx::query(
            "select id, state, expires_at, closing_at from orders
             where state in ('PENDING', 'PAYING') and expires_at < now() - interval '45 seconds'
               and (closing is null or closing_at < now() - interval '10 minutes')
             order by expires_at limit $1",
        )
        .bind(STANDING_MAX)
        .fetch_all(&self.pool)
        .await?;
        let mut stuck = Vec::new();
        for row in rows {
            let (until, closing): (DateTime<Utc>, Option<DateTime<Utc>>) =
                (row.try_get(2)?, row.try_get(3)?);
            let detail = match closing {
                Some(since) => format!("it waits for the end of its payment since {since}"),
                None => format!(
                    "its hold ended at {until}, and it is still {}",
                    row.try_get::<String, _>(1)?
                ),
            };
            stuck.push(Standing::of_order(row.try_get(0)?, detail));
        }
        let index: bool = sqlx::query_scalar(
            "select exists (select 1 from pg_index i
                 where i.indexrelid = to_regclass('one_live_order_a_seat')
                   and i.indisunique and i.indisvalid)",
        )
        .fetch_one(&self.pool)
        .await?;
        let missing = (!index).then(|| Standing {
            key: "one_live_order_a_seat".to_owned(),
            order_id: None,
            payment_id: None,
            detail: "PostgreSQL's unique index one_live_order_a_seat is missing or invalid: a seat could be sold twice".to_owned(),
        });
        let mut conn = self.pool.acquire().await?;
        alarms::keep_standing(&mut conn, STUCK, &stuck, None).await?;
        let missing: Vec<_> = missing.into_iter().collect();
        alarms::keep_standing(&mut conn, NO_INDEX, &missing, None).await?;
        Ok(())
    }
}

/// A refund whose answer is overdue.
struct Overdue {
    payment: Uuid,
    order: Uuid,
    amount: i64,
    reason: String,
}

/// Asks payments again for a refund that it does not know.
async fn ask_again(
    conn: &mut PgConnection,
    refund: &KnownRefund,
    due: &Overdue,
) -> sqlx::Result<()> {
    let (key, payment) = (due.payment.to_string(), due.payment);
    if !refund.payment {
        let standing = Standing {
            key,
            order_id: Some(due.order),
            payment_id: Some(payment),
            detail: format!(
                "{} is to go back ({}), and payments does not know the payment",
                due.amount, due.reason
            ),
        };
        alarms::raise_once(conn, &standing.alarm(NO_PAYMENT)).await?;
        return Ok(());
    }
    alarms::clear(conn, NO_PAYMENT, &key, "Payments knows the payment.").await?;
    if !refund.refund {
        tracing::warn!(
            order.id = %due.order, payment.id = %payment,
            "a refund of payment {payment} is not known there; it is asked for again"
        );
        let data = json!({
            "refundId": refund.refund_id, "orderId": due.order, "paymentId": payment,
            "amount": due.amount, "reason": due.reason,
        });
        append(conn, &NewEvent::new("refund.requested", due.order, &data)).await?;
    }
    Ok(())
}

/// Those of `alarmed` that were looked at, as keys of alarms.
fn among(ids: &[Uuid], alarmed: &[Uuid]) -> Vec<String> {
    let found = alarmed.iter().filter(|id| ids.binary_search(id).is_ok());
    found.map(Uuid::to_string).collect()
}
