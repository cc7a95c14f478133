//! What a consumer has already done, written in the transaction of the effect.

use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use super::outbox::uuid_before;

/// Copy into a migration of every consuming schema.
pub const DDL: &str = "\
create table inbox (
    consumer   text not null,
    event_id   uuid not null,
    handled_at timestamptz not null default now(),
    primary key (consumer, event_id)
);";

/// Longer than any redelivery: a topic keeps 7 days, Stripe repeats for 3.
const RETENTION_DAYS: i64 = 14;
const CLEAN_BATCH: i64 = 1_000;

/// True when `consumer` has not acted on this event before. The note stands or falls with
/// the caller's transaction, and a concurrent delivery of the same event waits for it.
pub async fn first_time(
    conn: &mut PgConnection,
    consumer: &str,
    event_id: Uuid,
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "insert into inbox (consumer, event_id) values ($1, $2) on conflict do nothing",
    )
    .bind(consumer)
    .bind(event_id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Forgets what can no longer come again. Event ids are UUIDv7, so the primary key finds the old ones.
pub(super) async fn clean(pool: &PgPool, consumer: &str) -> sqlx::Result<u64> {
    let before = uuid_before(chrono::Duration::days(RETENTION_DAYS));
    let mut total = 0;
    loop {
        let gone = sqlx::query(
            "delete from inbox where consumer = $1 and event_id in (
                 select event_id from inbox where consumer = $1 and event_id < $2
                 order by event_id limit $3)",
        )
        .bind(consumer)
        .bind(before)
        .bind(CLEAN_BATCH)
        .execute(pool)
        .await?
        .rows_affected();
        total += gone;
        if gone < CLEAN_BATCH as u64 {
            return Ok(total);
        }
    }
}
