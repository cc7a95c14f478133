//! The account's limits are shared by all instances: each leases a share in PostgreSQL and renews
//! it with a heartbeat. A share that shrinks counts in full until its instance has said that it
//! uses less, so the shares in use never add up to more than the limit. An instance that cannot
//! renew sends nothing once its lease has run out: PostgreSQL has given the share to others, and
//! without PostgreSQL no payment could be noted anyway.

use std::time::{Duration, Instant};

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Stripe;

/// A dead or frozen instance's share goes to the others after this, well within ten seconds.
const LEASE: Duration = Duration::from_secs(8);
/// Several heartbeats may be lost before the lease is.
const BEAT: Duration = Duration::from_millis(1_500);
/// Until this instance has a share, and after a failure.
const BEAT_SOON: Duration = Duration::from_millis(300);
/// A heartbeat that hangs is given up: the next one may get through.
const BEAT_MAX: Duration = Duration::from_secs(3);

/// Keeps this instance's share until the stop, and gives it back then.
pub async fn run(stripe: Stripe, pool: PgPool, stop: CancellationToken) {
    let instance = Uuid::now_v7();
    let mut failing = false;
    let mut live_noted = !stripe.live();
    while !stop.is_cancelled() {
        let before = stripe.budget().share();
        let beat = tokio::time::timeout(BEAT_MAX, beat(&stripe, &pool, instance, before)).await;
        let pause = match beat {
            Ok(Ok(share)) => {
                failing = false;
                if !live_noted {
                    live_noted = note_live(&pool).await;
                }
                // A share that shrank is free for others once the next heartbeat says so.
                if share <= 0.0 || share < before {
                    BEAT_SOON
                } else {
                    BEAT
                }
            }
            Ok(Err(error)) => {
                failed(&mut failing, &error);
                BEAT_SOON
            }
            Err(late) => {
                failed(&mut failing, &late);
                BEAT_SOON
            }
        };
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
    }
    let gone = sqlx::query("delete from stripe_shares where instance = $1")
        .bind(instance)
        .execute(&pool);
    match tokio::time::timeout(Duration::from_secs(1), gone).await {
        Ok(Ok(_)) => {}
        // It runs out by itself.
        _ => tracing::debug!("the share of Stripe's rate limits is not given back"),
    }
}

/// Real money is taken from here on: `seed --reset` refuses to empty this database.
async fn note_live(pool: &PgPool) -> bool {
    let noted =
        sqlx::query("update stripe_account set live_since = now() where live_since is null");
    match noted.execute(pool).await {
        Ok(_) => true,
        Err(error) => {
            tracing::warn!(%error, "cannot note that real money is taken; trying again");
            false
        }
    }
}

fn failed(failing: &mut bool, error: &dyn std::fmt::Display) {
    if !*failing {
        tracing::warn!(%error, "failed to renew this instance's share of Stripe's rate limits; calls to Stripe stop when the lease ends");
    }
    *failing = true;
}

/// One heartbeat; the share that this instance has now.
async fn beat(stripe: &Stripe, pool: &PgPool, instance: Uuid, using: f64) -> sqlx::Result<f64> {
    let budget = stripe.budget();
    let slowest_ms = i32::try_from(budget.slowest_create().as_millis()).unwrap_or(i32::MAX);
    let demand = u32::try_from(budget.take_demand()).unwrap_or(u32::MAX);
    // PostgreSQL's clock starts later than this one, so the lease ends here first.
    let sent = Instant::now();
    let share: f64 = sqlx::query_scalar("select lease_stripe_share($1, $2, $3, $4, $5, $6)")
        .bind(instance)
        .bind(using)
        .bind(f64::from(demand))
        .bind(LEASE.as_secs_f64())
        .bind(slowest_ms)
        .bind(stripe.key_refused())
        .fetch_one(pool)
        .await?;
    budget.lease(share, sent + LEASE);
    Ok(share)
}
