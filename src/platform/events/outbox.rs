//! The producing side: a row in the transaction of the change, a wake-up after its commit.

use std::sync::Arc;

use chrono::{DateTime, Duration, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, Row};
use tokio::sync::Notify;
use uuid::Uuid;

use super::Event;
use crate::platform::telemetry::traces;

/// Copy into a migration of every producing schema.
pub const DDL: &str = "\
create table outbox (
    id           uuid primary key,
    seq          bigint generated always as identity,
    shard        smallint not null,
    key          text not null,
    type         text not null,
    payload      json not null,
    traceparent  text,
    created_at   timestamptz not null default now(),
    published_at timestamptz
);
create index outbox_unpublished on outbox (seq) where published_at is null;";

/// Shards divide the keys between relays. Stored with each row, so this never changes.
pub const SHARDS: i16 = 8;

const CLEAN_BATCH: i64 = 1_000;

/// An event about to be said.
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub id: Uuid,
    pub kind: &'static str,
    pub key: String,
    pub data: Box<RawValue>,
    /// The trace at hand.
    pub traceparent: Option<String>,
}

impl NewEvent {
    /// `key` is the order or performance that the event is about.
    ///
    /// # Panics
    /// When `data` cannot be JSON (a map with keys that are no strings): a bug, not an input.
    pub fn new(kind: &'static str, key: Uuid, data: &impl Serialize) -> Self {
        let data = serde_json::value::to_raw_value(data).expect("event data is plain JSON");
        Self {
            id: Uuid::now_v7(),
            kind,
            key: key.to_string(),
            data,
            traceparent: traces::traceparent(),
        }
    }
}

/// Appends to the outbox in the caller's transaction.
///
/// Order within a key is the order of `seq`, and `seq` is drawn here, before the commit. So
/// hold the row lock of what `key` names (its `update … where id = …` in this same transaction)
/// before calling: the next writer of the key then draws its `seq` after this one's commit.
/// Wake the relay after the commit, never before: [`OutboxSignal::wake`].
pub async fn append(conn: &mut PgConnection, event: &NewEvent) -> sqlx::Result<()> {
    sqlx::query(
        "insert into outbox (id, shard, key, type, payload, traceparent)
         values ($1, $2, $3, $4, $5::json, $6)",
    )
    .bind(event.id)
    .bind(shard_of(&event.key))
    .bind(&event.key)
    .bind(event.kind)
    // As text: by way of jsonb, its spacing and the order of its fields would change.
    .bind(event.data.get())
    .bind(event.traceparent.as_deref())
    .execute(conn)
    .await?;
    Ok(())
}

/// Several events in one statement, in the order given.
pub async fn append_all(conn: &mut PgConnection, events: &[NewEvent]) -> sqlx::Result<()> {
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = events.iter().map(|event| event.id).collect();
    let shards: Vec<i16> = events.iter().map(|event| shard_of(&event.key)).collect();
    let keys: Vec<&str> = events.iter().map(|event| event.key.as_str()).collect();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind).collect();
    let payloads: Vec<&str> = events.iter().map(|event| event.data.get()).collect();
    let parents: Vec<Option<&str>> = events.iter().map(|e| e.traceparent.as_deref()).collect();
    sqlx::query(
        "insert into outbox (id, shard, key, type, payload, traceparent)
         select id, shard, key, type, payload::json, traceparent
         from unnest($1::uuid[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[])
              with ordinality as e (id, shard, key, type, payload, traceparent, position)
         order by position",
    )
    .bind(ids)
    .bind(shards)
    .bind(keys)
    .bind(kinds)
    .bind(payloads)
    .bind(parents)
    .execute(conn)
    .await?;
    Ok(())
}

/// FNV-1a: stable over versions and machines, which the standard hasher does not promise.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn shard_of(key: &str) -> i16 {
    i16::try_from(fnv1a(key.as_bytes()) % SHARDS as u64).expect("less than SHARDS")
}

/// Wakes the relay of one schema. Cheap to clone; any number of wakes before the relay
/// looks are one.
#[derive(Clone, Default)]
pub struct OutboxSignal {
    /// A commit in this process.
    woken: Arc<Notify>,
    /// A commit in another one.
    nudged: Arc<Notify>,
}

impl OutboxSignal {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Call right after the commit. Forgetting it costs a second, not the event.
    pub fn wake(&self) {
        self.woken.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }

    pub(super) fn nudge(&self) {
        self.nudged.notify_one();
    }

    pub(super) async fn nudged(&self) {
        self.nudged.notified().await;
    }
}

/// A row that waits to be handed on.
pub(super) struct Pending {
    pub id: Uuid,
    pub key: String,
    kind: String,
    payload: Box<RawValue>,
    traceparent: Option<String>,
    created_at: DateTime<Utc>,
}

impl Pending {
    pub(super) fn into_event(self, source: &str) -> Event {
        let mut event = Event::new(
            self.id,
            source,
            self.kind,
            self.key,
            self.created_at,
            self.payload,
        );
        event.traceparent = self.traceparent;
        event
    }
}

/// The oldest unpublished rows of these shards, leaving out keys that are busy.
///
/// Never "seq above the last one seen": a row may commit after a higher one was read.
pub(super) async fn pending(
    conn: &mut PgConnection,
    shards: &[i16],
    busy: &[String],
    limit: i64,
) -> sqlx::Result<Vec<Pending>> {
    let rows = sqlx::query(
        "select id, key, type, payload, traceparent, created_at from outbox
         where published_at is null and shard = any($1) and key <> all($2)
         order by seq limit $3",
    )
    .bind(shards)
    .bind(busy)
    .bind(limit)
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            let Json(payload): Json<Box<RawValue>> = row.try_get("payload")?;
            Ok(Pending {
                id: row.try_get("id")?,
                key: row.try_get("key")?,
                kind: row.try_get("type")?,
                payload,
                traceparent: row.try_get("traceparent")?,
                created_at: row.try_get("created_at")?,
            })
        })
        .collect()
}

pub(super) async fn mark_published(conn: &mut PgConnection, ids: &[Uuid]) -> sqlx::Result<()> {
    sqlx::query(
        "update outbox set published_at = now() where id = any($1) and published_at is null",
    )
    .bind(ids)
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes one batch of the published rows older than `keep`; true while there are more. Any
/// number of instances may do so at once.
pub(super) async fn clean(pool: &PgPool, keep: Duration) -> sqlx::Result<bool> {
    let gone = sqlx::query(
        "delete from outbox where id in (
             select id from outbox where id < $1 and published_at is not null
             order by id limit $2 for update skip locked)",
    )
    .bind(uuid_before(keep))
    .bind(CLEAN_BATCH)
    .execute(pool)
    .await?
    .rows_affected();
    Ok(gone == CLEAN_BATCH as u64)
}

/// The smallest UUIDv7 of the moment `age` ago. Old rows are found by their primary key,
/// which spares an index on a time.
pub(super) fn uuid_before(age: Duration) -> Uuid {
    let at_ms = (Utc::now() - age).timestamp_millis().max(0);
    let at_ms = u64::try_from(at_ms).expect("not negative");
    uuid::Builder::from_unix_timestamp_millis(at_ms, &[0; 10]).into_uuid()
}

/// How far a schema's relay is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    pub pending: i64,
    pub oldest_ms: i64,
}

pub async fn backlog(conn: &mut PgConnection) -> sqlx::Result<Backlog> {
    let row = sqlx::query(
        "select count(*) as pending,
                coalesce(extract(epoch from now() - min(created_at)) * 1000, 0)::bigint as oldest_ms
         from outbox where published_at is null",
    )
    .fetch_one(conn)
    .await?;
    Ok(Backlog {
        pending: row.try_get("pending")?,
        oldest_ms: row.try_get("oldest_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_stable_and_spread() {
        // A value computed elsewhere: rows already stored rely on it.
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        let mut seen = [0u32; SHARDS as usize];
        for _ in 0..8_000 {
            seen[usize::try_from(shard_of(&Uuid::new_v4().to_string())).unwrap()] += 1;
        }
        assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");
    }

    #[test]
    fn a_boundary_uuid_sorts_before_any_later_one() {
        let before = uuid_before(Duration::milliseconds(5));
        assert!(before < Uuid::now_v7());
        assert!(uuid_before(Duration::zero()) > before);
    }
}
