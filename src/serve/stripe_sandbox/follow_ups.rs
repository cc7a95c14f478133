//! What happens by itself: slow payments settle, disputes open, refunds fail
//! after all; and old rows go.

use std::sync::PoisonError;
use std::time::Duration;

use sqlx::PgPool;
use tokio_util::sync::CancellationToken;

use super::State;
use super::engine::now_ms;
use super::execute::Command;
use super::faults::{Faults, Operation};
use super::objects::Origin;

/// Looked at this often when nothing is known to come.
const IDLE: Duration = Duration::from_secs(2);
/// Pause after a round, so that one that cannot be settled does not spin.
const ROUND: Duration = Duration::from_millis(100);

pub async fn run(state: State, stop: CancellationToken) {
    loop {
        let pause = match round(&state).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(%error, "cannot read what is due in the sandbox");
                IDLE
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = state.0.follow_ups.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Settles what is due; says how long nothing else will be.
async fn round(state: &State) -> Result<Duration, sqlx::Error> {
    let due: Vec<(String,)> =
        sqlx::query_as("select id from intents where due_at_ms <= $1 order by due_at_ms limit 256")
            .bind(now_ms())
            .fetch_all(state.pool())
            .await?;
    let settled = due.into_iter().map(|(id,)| {
        state.engine().call(
            Command::Settle(id),
            None,
            None,
            faults(state),
            Origin::default(),
            String::new(),
        )
    });
    futures_util::future::join_all(settled).await;
    let next: (Option<i64>,) =
        sqlx::query_as("select min(due_at_ms) from intents where due_at_ms is not null")
            .fetch_one(state.pool())
            .await?;
    Ok(match next.0 {
        None => IDLE,
        Some(at) => {
            let wait_ms = u64::try_from(at - now_ms()).unwrap_or(0);
            Duration::from_millis(wait_ms).clamp(ROUND, IDLE)
        }
    })
}

/// Nobody waits for an answer here, but the webhooks that follow may meet what any call may meet.
fn faults(state: &State) -> Faults {
    let mut drawn = Faults::default();
    let profile = state.profile();
    let mut dice = state.dice().lock().unwrap_or_else(PoisonError::into_inner);
    dice.cast(&profile.terms, Operation::Settle, &mut drawn);
    Faults {
        webhook: drawn.webhook,
        ..Faults::default()
    }
}

/// Keys live a day, as at Stripe; events and their deliveries thirty.
pub async fn prune(pool: &PgPool) -> Result<(), sqlx::Error> {
    sqlx::query("delete from idempotency where created_at < now() - interval '24 hours'")
        .execute(pool)
        .await?;
    sqlx::query(
        "delete from events where created < extract(epoch from now() - interval '30 days')
           and not exists (select 1 from deliveries d
                           where d.event_id = events.id and d.state = 'pending')",
    )
    .execute(pool)
    .await?;
    Ok(())
}
