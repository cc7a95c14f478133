//! Sold counters, kept from what reservations tell of orders.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::platform::events::{Event, HandlerError, Subscription, handler, inbox};

/// This role's name among the consumers.
const CONSUMER: &str = "performances";
const CONFIRMED: &str = "order.confirmed";
const REFUNDED: &str = "order.refunded";

/// What this role listens to.
pub fn subscriptions(pool: &PgPool) -> Vec<Subscription> {
    let handled = pool.clone();
    vec![Subscription {
        consumer: CONSUMER,
        sources: &["reservations"],
        types: &[CONFIRMED, REFUNDED],
        handler: handler(move |event| {
            let pool = handled.clone();
            async move { count(&pool, &event).await }
        }),
        pool: pool.clone(),
    }]
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderEvent {
    order_id: Uuid,
    schedule_id: Uuid,
    seat_count: i32,
}

/// What has been heard of one order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Heard {
    confirmed: bool,
    refunded: bool,
}

crate::from_row!(Heard {
    confirmed,
    refunded
});

impl Heard {
    /// Its seats count as sold while it was confirmed and not refunded.
    fn counts(self) -> bool {
        self.confirmed && !self.refunded
    }

    fn and(self, kind: &str) -> Self {
        Self {
            confirmed: self.confirmed || kind == CONFIRMED,
            refunded: self.refunded || kind == REFUNDED,
        }
    }
}

async fn count(pool: &PgPool, event: &Event) -> Result<(), HandlerError> {
    let order: OrderEvent = event.data()?;
    let mut tx = pool.begin().await?;
    if !inbox::first_time(&mut tx, CONSUMER, event.id).await? {
        return Ok(());
    }
    apply(&mut tx, &order, &[&event.kind]).await?;
    tx.commit().await?;
    Ok(())
}

/// A sale as reservations has it, whatever events came of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Sale {
    #[serde(flatten)]
    order: OrderEvent,
    /// Refunded or cancelled since.
    ended: bool,
}

/// Counts what no event told. How many orders that were.
pub(super) async fn count_missed(pool: &PgPool, sales: &[Sale]) -> sqlx::Result<usize> {
    let ids: Vec<Uuid> = sales.iter().map(|s| s.order.order_id).collect();
    let ended: Vec<bool> = sales.iter().map(|s| s.ended).collect();
    let missed: Vec<Uuid> = sqlx::query_scalar(
        "select t.id from unnest($1::uuid[], $2::bool[]) as t (id, ended)
         left join counted_orders c on c.order_id = t.id
         where c.order_id is null or not c.confirmed or t.ended and not c.refunded",
    )
    .bind(&ids)
    .bind(&ended)
    .fetch_all(pool)
    .await?;
    for sale in sales.iter().filter(|s| missed.contains(&s.order.order_id)) {
        let kinds: &[&str] = match sale.ended {
            true => &[CONFIRMED, REFUNDED],
            false => &[CONFIRMED],
        };
        let mut tx = pool.begin().await?;
        apply(&mut tx, &sale.order, kinds).await?;
        tx.commit().await?;
        tracing::warn!(
            order.id = %sale.order.order_id,
            "order {} was sold and no event told; it is counted now", sale.order.order_id
        );
    }
    Ok(missed.len())
}

/// Notes that everything sold from `from` up to `up_to` is counted. Up to when all is known now:
/// a stretch that does not follow on what was known adds nothing.
pub(super) async fn told(
    pool: &PgPool,
    from: Option<DateTime<Utc>>,
    up_to: Option<DateTime<Utc>>,
) -> sqlx::Result<DateTime<Utc>> {
    sqlx::query_scalar(
        "insert into sales_told as known (up_to) values (case when $1 <= $3 then coalesce($2, $3) else $3 end)
         on conflict (one) do update
             set up_to = case when $1 <= known.up_to then greatest(known.up_to, $2) else known.up_to end
         returning up_to",
    )
    .bind(from)
    .bind(up_to)
    .bind(DateTime::<Utc>::default())
    .fetch_one(pool)
    .await
}

/// Counts an order once, whatever is told of it and however often.
async fn apply(tx: &mut PgConnection, order: &OrderEvent, kinds: &[&str]) -> sqlx::Result<()> {
    // Locks the order's row, and tells what was known before.
    let before: Heard = sqlx::query_as(
        "insert into counted_orders (order_id, schedule_id, seats, confirmed, refunded)
         values ($1, $2, $3, false, false)
         on conflict (order_id) do update set order_id = excluded.order_id
         returning confirmed, refunded",
    )
    .bind(order.order_id)
    .bind(order.schedule_id)
    .bind(order.seat_count)
    .fetch_one(&mut *tx)
    .await?;
    let after = kinds.iter().fold(before, |heard, kind| heard.and(kind));
    let change = (i32::from(after.counts()) - i32::from(before.counts())) * order.seat_count;
    if after != before {
        sqlx::query("update counted_orders set confirmed = $2, refunded = $3 where order_id = $1")
            .bind(order.order_id)
            .bind(after.confirmed)
            .bind(after.refunded)
            .execute(&mut *tx)
            .await?;
    }
    if change != 0 {
        sqlx::query(
            "insert into schedule_sales (schedule_id, sold) values ($1, $2)
             on conflict (schedule_id) do update set sold = schedule_sales.sold + excluded.sold",
        )
        .bind(order.schedule_id)
        .bind(change)
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_counts_once_in_whatever_order_it_is_told_of() {
        for (told, counts) in [
            (vec![CONFIRMED], true),
            (vec![CONFIRMED, CONFIRMED], true),
            (vec![CONFIRMED, REFUNDED], false),
            (vec![REFUNDED, CONFIRMED], false),
            (vec![REFUNDED, CONFIRMED, REFUNDED, CONFIRMED], false),
            (vec![REFUNDED], false),
            (vec![], false),
        ] {
            let heard = told
                .iter()
                .fold(Heard::default(), |heard, kind| heard.and(kind));
            assert_eq!(heard.counts(), counts, "{told:?}");
        }
    }
}
