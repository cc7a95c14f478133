//! This role's part of what operators see.

use std::time::{Duration, Instant};

use axum::extract::State;
use sqlx::PgPool;
use tokio::sync::Mutex;

use super::Payments;
use crate::platform::{
    auth::Internal,
    http::Json,
    overview::{OverviewSlice, Payments as Figures, Store},
    problem::Problem,
};

/// Totals walk the whole table, so they are counted this seldom; what is open has an index.
const TOTALS_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Totals(Mutex<Option<(Instant, Total)>>);

#[derive(Debug, Clone, Copy)]
struct Total {
    succeeded: i64,
    refunded: i64,
}

crate::from_row!(Total {
    succeeded,
    refunded
});

struct Open {
    open: i64,
    unknown: i64,
    failed: i64,
    refunds_pending: i64,
    refunds_stuck: i64,
    webhooks_pending: i64,
    create_wait_ms: i64,
}

crate::from_row!(Open {
    open,
    unknown,
    failed,
    refunds_pending,
    refunds_stuck,
    webhooks_pending,
    create_wait_ms
});

impl Totals {
    /// One count at a time, and not again while it is fresh.
    async fn read(&self, pool: &PgPool) -> sqlx::Result<Total> {
        let mut kept = self.0.lock().await;
        if let Some((at, total)) = *kept
            && at.elapsed() < TOTALS_EVERY
        {
            return Ok(total);
        }
        let total = sqlx::query_as(
            "select count(*) filter (where state = 'SUCCEEDED') as succeeded,
                    count(*) filter (where amount > 0 and refunded_amount >= amount) as refunded
             from payments",
        )
        .fetch_one(pool)
        .await?;
        *kept = Some((Instant::now(), total));
        Ok(total)
    }
}

pub(super) async fn overview(
    State(payments): State<Payments>,
    _: Internal,
) -> Result<Json<OverviewSlice>, Problem> {
    let started = Instant::now();
    let mut slice = OverviewSlice::of("payments").with_failing_tasks();
    let open: Open = sqlx::query_as(
        "select count(*) filter (where state in ('REQUIRES_PAYMENT', 'FAILED', 'PROCESSING')) as open,
                count(*) filter (where state = 'CREATING') as unknown,
                count(*) filter (where state = 'FAILED') as failed,
                (select count(*) from refunds where state in ('REQUESTED', 'PENDING')) as refunds_pending,
                (select count(*) from refunds where state in ('REQUESTED', 'PENDING') and alarmed_at is not null) as refunds_stuck,
                (select count(*) from webhook_events where processed_at is null) as webhooks_pending,
                (select coalesce(max(create_wait_ms), 0)::bigint from stripe_shares
                     where leased_until > now()) as create_wait_ms
         from payments where state in ('CREATING', 'REQUIRES_PAYMENT', 'FAILED', 'PROCESSING')",
    )
    .fetch_one(&payments.pool)
    .await?;
    slice.stores.push(Store {
        name: "postgres".to_owned(),
        latency_ms: Some(started.elapsed().as_secs_f64() * 1000.0),
        ..Store::default()
    });
    let total = payments.totals.read(&payments.pool).await?;
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    slice.stores.push(payments.stripe.health());
    payments.events.add_to(&mut slice, super::SCHEMA);
    payments.alarms.add_to(&mut slice);
    slice.payments = Some(Figures {
        open: count(open.open),
        unknown: count(open.unknown),
        succeeded: count(total.succeeded),
        failed: count(open.failed),
        refunded: count(total.refunded),
        refunds_pending: count(open.refunds_pending),
        refunds_stuck: count(open.refunds_stuck),
        webhooks_pending: count(open.webhooks_pending),
        creates_per_second_max: payments.stripe.budget().creates_per_second_max(),
        create_wait_ms: count(open.create_wait_ms),
        calls_waiting: u64::try_from(payments.stripe.budget().buyers_waiting()).unwrap_or(0),
    });
    Ok(Json(slice))
}
