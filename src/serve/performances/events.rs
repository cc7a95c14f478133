//! Sold counters, kept from what reservations tell of orders.

use serde::Deserialize;
use sqlx::PgPool;
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

#[derive(Deserialize)]
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
    let after = before.and(&event.kind);
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
    tx.commit().await?;
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
