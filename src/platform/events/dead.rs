//! Dead letters: messages that a consumer could not handle for their own fault, kept with
//! the reason until an operator has them tried again (`ticketping events replay`).
//!
//! The table stands in the consumer's schema whether events come by Kafka or not; with Kafka
//! the message also goes to `<topic>.dlq`. A replay is asked for in the table and done by the
//! running consumer, so that the command needs neither the handlers nor their stores.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, Row};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Event, HandlerError, Subscription};
use crate::platform::db;

/// Copy into a migration of every consuming schema.
pub const DDL: &str = "\
create table dead_letters (
    id                  uuid primary key,
    consumer            text not null,
    event_id            uuid not null,
    origin              text not null,
    type                text not null,
    key                 text not null,
    payload             text not null,
    error               text not null,
    attempts            integer not null,
    created_at          timestamptz not null default now(),
    replay_requested_at timestamptz,
    resolved_at         timestamptz,
    constraint dead_letters_event unique (consumer, event_id)
);
create index dead_letters_open on dead_letters (created_at) where resolved_at is null;";

/// How soon a running consumer notices that a replay was asked for.
const REPLAY_POLL: Duration = Duration::from_secs(1);
/// The table is for reading by people: a longer reason says no more.
const ERROR_CHARS_MAX: usize = 2_000;

/// A message given up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    pub id: Uuid,
    pub consumer: String,
    pub event_id: Uuid,
    /// Where it came from: `reservations` in the process, `topic/partition@offset` with Kafka.
    pub origin: String,
    pub kind: String,
    pub key: String,
    pub payload: String,
    pub error: String,
    pub attempts: i32,
    pub created_at: DateTime<Utc>,
}

/// Keeps a message that cannot be handled. Given up again after a replay, it is the same
/// letter with the newer reason.
pub(super) async fn bury(
    pool: &PgPool,
    consumer: &str,
    origin: &str,
    event: &Event,
    error: &HandlerError,
) -> sqlx::Result<()> {
    // An event is made of strings, a UUID, a time and JSON.
    let payload = serde_json::to_string(event).expect("an event is JSON");
    bury_raw(
        pool,
        consumer,
        origin,
        (event.id, &event.kind, &event.subject),
        &payload,
        &error.to_string(),
    )
    .await
}

/// Also for what is not even an event: then the id is made from where it stood.
pub(super) async fn bury_raw(
    pool: &PgPool,
    consumer: &str,
    origin: &str,
    (event_id, kind, key): (Uuid, &str, &str),
    payload: &str,
    error: &str,
) -> sqlx::Result<()> {
    let error: String = error.chars().take(ERROR_CHARS_MAX).collect();
    // Postgres text holds any character but NUL.
    let clean = |text: &str| text.replace('\0', "\u{fffd}");
    sqlx::query(
        "insert into dead_letters
             (id, consumer, event_id, origin, type, key, payload, error, attempts)
         values ($1, $2, $3, $4, $5, $6, $7, $8, 1)
         on conflict on constraint dead_letters_event do update
             set error = excluded.error, attempts = dead_letters.attempts + 1,
                 replay_requested_at = null, resolved_at = null",
    )
    .bind(Uuid::now_v7())
    .bind(consumer)
    .bind(event_id)
    .bind(origin)
    .bind(clean(kind))
    .bind(clean(key))
    .bind(clean(payload))
    .bind(clean(&error))
    .execute(pool)
    .await?;
    tracing::error!(
        event.id = %event_id, event.r#type = kind, consumer, origin, error = %error,
        "dead letter: the message cannot be handled; `ticketping events replay` tries it again"
    );
    Ok(())
}

/// Letters not yet resolved, oldest first.
pub async fn open(conn: &mut PgConnection, limit: i64) -> sqlx::Result<Vec<DeadLetter>> {
    let rows = sqlx::query(
        "select id, consumer, event_id, origin, type, key, payload, error, attempts::int as attempts,
                created_at
         from dead_letters where resolved_at is null order by created_at limit $1",
    )
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.iter().map(read).collect()
}

fn read(row: &sqlx::postgres::PgRow) -> sqlx::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.try_get("id")?,
        consumer: row.try_get("consumer")?,
        event_id: row.try_get("event_id")?,
        origin: row.try_get("origin")?,
        kind: row.try_get("type")?,
        key: row.try_get("key")?,
        payload: row.try_get("payload")?,
        error: row.try_get("error")?,
        attempts: row.try_get("attempts")?,
        created_at: row.try_get("created_at")?,
    })
}

/// Asks the running consumer to try again: all open letters, or those of these events.
pub async fn request_replay(conn: &mut PgConnection, events: &[Uuid]) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "update dead_letters set replay_requested_at = now()
         where resolved_at is null and (cardinality($1::uuid[]) = 0 or event_id = any($1))
         returning event_id",
    )
    .bind(events)
    .fetch_all(conn)
    .await
}

/// How many replays were asked for and not done yet.
pub async fn count_requested(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "select count(*) from dead_letters
         where resolved_at is null and replay_requested_at is not null",
    )
    .fetch_one(conn)
    .await
}

/// Those of these events that are not resolved.
pub async fn open_among(conn: &mut PgConnection, events: &[Uuid]) -> sqlx::Result<Vec<DeadLetter>> {
    let rows = sqlx::query(
        "select id, consumer, event_id, origin, type, key, payload, error, attempts::int as attempts,
                created_at
         from dead_letters where resolved_at is null and event_id = any($1) order by created_at",
    )
    .bind(events)
    .fetch_all(conn)
    .await?;
    rows.iter().map(read).collect()
}

/// How many messages wait for an operator.
pub async fn count_open(conn: &mut PgConnection) -> sqlx::Result<i64> {
    sqlx::query_scalar("select count(*) from dead_letters where resolved_at is null")
        .fetch_one(conn)
        .await
}

/// Does the replays asked for, until told to stop.
pub(super) async fn serve_replays(subscriptions: Vec<Subscription>, stop: CancellationToken) {
    let Some(first) = subscriptions.first() else {
        return;
    };
    let (pool, consumer) = (first.pool.clone(), first.consumer);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(REPLAY_POLL) => {}
        }
        loop {
            match replay_next(&pool, consumer, &subscriptions).await {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    db::observe(&error);
                    tracing::debug!(consumer, %error, "dead letters cannot be read now");
                    break;
                }
            }
        }
    }
}

/// Takes one letter for a minute, so that several instances do not try the same one and a
/// dead one's comes back.
async fn replay_next(
    pool: &PgPool,
    consumer: &'static str,
    subscriptions: &[Subscription],
) -> sqlx::Result<bool> {
    let row = sqlx::query(
        "update dead_letters set replay_requested_at = now() + interval '1 minute'
         where id = (select id from dead_letters
                     where consumer = $1 and resolved_at is null and replay_requested_at <= now()
                     order by created_at limit 1 for update skip locked)
         returning id, consumer, event_id, origin, type, key, payload, error,
             attempts::int as attempts, created_at",
    )
    .bind(consumer)
    .fetch_optional(pool)
    .await?;
    let Some(row) = row else { return Ok(false) };
    let letter = read(&row)?;
    let outcome = match serde_json::from_str::<Event>(&letter.payload) {
        Ok(event) => super::consume::attempt_all(subscriptions, &event).await,
        Err(error) => Err(HandlerError::poison(error)),
    };
    match outcome {
        Ok(()) => {
            sqlx::query("update dead_letters set resolved_at = now() where id = $1")
                .bind(letter.id)
                .execute(pool)
                .await?;
            tracing::info!(event.id = %letter.event_id, consumer, "dead letter replayed");
        }
        Err(error) => {
            let again = matches!(error, HandlerError::Retry(_));
            sqlx::query(
                "update dead_letters set error = $2, attempts = attempts + 1,
                     replay_requested_at = case when $3 then now() + interval '1 second' end
                 where id = $1",
            )
            .bind(letter.id)
            .bind(error.to_string().replace('\0', "\u{fffd}"))
            .bind(again)
            .execute(pool)
            .await?;
            tracing::warn!(event.id = %letter.event_id, consumer, %error, "dead letter still cannot be handled");
            return Ok(!again);
        }
    }
    Ok(true)
}
