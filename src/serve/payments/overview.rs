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

/// Changes of totals are folded this seldom; what is open has an index.
const TOTALS_EVERY: Duration = Duration::from_secs(5);
/// And without anybody who looks, so that they do not pile up.
pub(super) const FOLD_EVERY: Duration = Duration::from_secs(60);
/// Changes folded in one statement.
const FOLD_MAX: i64 = 5_000;
/// And in one go, so that nobody waits for long: the next go takes the rest.
const FOLDS_MAX: u32 = 20;

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
        fold(pool).await?;
        let total = sqlx::query_as(
            "select coalesce(sum(succeeded), 0)::bigint as succeeded, coalesce(sum(refunded), 0)::bigint as refunded
             from (select succeeded, refunded from payment_totals
                   union all select succeeded, refunded from payment_changes) as counted",
        )
        .fetch_one(pool)
        .await?;
        *kept = Some((Instant::now(), total));
        Ok(total)
    }
}

/// Folds changes into the totals; any number of instances may.
pub(super) async fn fold(pool: &PgPool) -> sqlx::Result<()> {
    for _ in 0..FOLDS_MAX {
        let folded: i64 = sqlx::query_scalar(
            "with taken as (
                 delete from payment_changes where id in (
                     select id from payment_changes order by id limit $1 for update skip locked)
                 returning succeeded, refunded),
             folded as (
                 insert into payment_totals (succeeded, refunded)
                 select sum(succeeded), sum(refunded) from taken having count(*) > 0
                 on conflict (\"only\") do update set succeeded = payment_totals.succeeded + excluded.succeeded,
                     refunded = payment_totals.refunded + excluded.refunded
                 returning 1)
             select count(*) from taken",
        )
        .bind(FOLD_MAX)
        .fetch_one(pool)
        .await?;
        if folded < FOLD_MAX {
            break;
        }
    }
    Ok(())
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
