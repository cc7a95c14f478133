//! Redis against PostgreSQL: seats, holds, limits, and what the queue believes
//! is left. Only what Redis has is compared: what is missing is rebuilt when
//! somebody asks, and is never free.

use redis::AsyncCommands;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{Check, Progress};
use crate::{
    platform::redis::Redis,
    serve::reservations::{scripts::Keys, settle, store},
};

const SEATS: (&str, &str) = (
    "redisShowsTheBooks",
    "Redis shows every seat, hold and limit as PostgreSQL has it",
);
const REMAINING: (&str, &str) = (
    "remainingIsRight",
    "the queue knows how many seats are not sold",
);
const HOLDS: (&str, &str) = (
    "noHoldPastItsDeadlineInRedis",
    "no hold in Redis is past its deadline",
);
const PLACES: (&str, &str) = (
    "noPlacePastItsDeadline",
    "nobody works past the end of their turn",
);
/// Sweeps come every second; this leaves them a few.
const GRACE_MS: i64 = 5_000;

#[derive(Default)]
struct Found {
    seats: Vec<String>,
    remaining: Vec<String>,
    holds: Vec<String>,
    places: Vec<String>,
    seats_looked_at: u64,
    holds_looked_at: u64,
    places_looked_at: u64,
}

pub(super) async fn checks(
    pool: &PgPool,
    // In the schema of reservations, by the role's own reading.
    orders: &PgPool,
    redis: Option<&Redis>,
    prefix: &str,
    progress: &Progress,
) -> Result<Vec<Check>, String> {
    let all = [SEATS, REMAINING, HOLDS, PLACES];
    let Some(redis) = redis else {
        let why = "no Redis was named";
        return Ok(all
            .map(|(name, claim)| Check::skipped(name, claim, why))
            .into());
    };
    let performances = live(redis, prefix)
        .await
        .map_err(|e| format!("Redis: {e}"))?;
    let mut found = Found::default();
    for performance in &performances {
        found
            .compare((pool, orders), redis, prefix, *performance)
            .await?;
        progress.answered();
    }
    let count = performances.len() as u64;
    Ok(vec![
        Check::new(SEATS.0, SEATS.1, found.seats_looked_at, found.seats),
        Check::new(REMAINING.0, REMAINING.1, count, found.remaining),
        Check::new(HOLDS.0, HOLDS.1, found.holds_looked_at, found.holds),
        Check::new(PLACES.0, PLACES.1, found.places_looked_at, found.places),
    ])
}

/// The performances whose seats are in Redis.
async fn live(redis: &Redis, prefix: &str) -> Result<Vec<Uuid>, redis::RedisError> {
    let names: Vec<String> = redis
        .clone()
        .smembers(format!("{prefix}:seats:live"))
        .await?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

impl Found {
    async fn compare(
        &mut self,
        (pool, orders): (&PgPool, &PgPool),
        redis: &Redis,
        prefix: &str,
        performance: Uuid,
    ) -> Result<(), String> {
        let keys = Keys::new(prefix, performance);
        let schedules = schedules(pool, performance)
            .await
            .map_err(|e| format!("PostgreSQL: {e}"))?;
        let ids: Vec<Uuid> = schedules.iter().map(|(id, _)| *id).collect();
        let live = store::live_of(orders, performance)
            .await
            .map_err(|e| format!("PostgreSQL: {e}"))?;
        let away = |e: redis::RedisError| format!("Redis: {e}");
        let compared = settle::compare(redis, &keys, &ids, &live)
            .await
            .map_err(away)?;
        let Some(differing) = compared else {
            return Ok(());
        };
        let total: i64 = schedules.iter().map(|(_, seats)| seats).sum();
        self.seats_looked_at += u64::try_from(total).unwrap_or(0);
        for order in &differing.gone {
            self.seats.push(format!(
                "performance {performance}: order {order} is shown, and PostgreSQL says otherwise"
            ));
        }
        for order in differing.due.difference(&differing.gone) {
            self.seats.push(format!(
                "performance {performance}: order {order} is not shown as PostgreSQL has it"
            ));
        }
        let sold: i64 = live
            .iter()
            .filter(|o| o.row.confirmed_at.is_some())
            .map(|o| i64::from(o.row.seat_count))
            .sum();
        self.look_at_queue(redis, prefix, performance, total - sold)
            .await
            .map_err(away)?;
        self.look_at_holds(redis, &keys, performance)
            .await
            .map_err(away)
    }

    async fn look_at_holds(
        &mut self,
        redis: &Redis,
        keys: &Keys,
        performance: Uuid,
    ) -> Result<(), redis::RedisError> {
        let mut redis = redis.clone();
        self.holds_looked_at += redis.zcard::<_, u64>(keys.holds()).await?;
        let late: Vec<Vec<u8>> = redis.zrangebyscore(keys.holds(), "-inf", latest()).await?;
        self.holds
            .extend(late.iter().map(|order| named(performance, "order", order)));
        Ok(())
    }

    async fn look_at_queue(
        &mut self,
        redis: &Redis,
        prefix: &str,
        performance: Uuid,
        left: i64,
    ) -> Result<(), redis::RedisError> {
        let mut redis = redis.clone();
        let key = |name: &str| format!("{prefix}:{{{performance}}}:{name}");
        let remaining: Option<i64> = redis.hget(key("meta"), "remaining").await?;
        if let Some(remaining) = remaining.filter(|r| *r != left) {
            self.remaining.push(format!(
                "performance {performance}: the queue says {remaining}, the books {left}"
            ));
        }
        self.places_looked_at += redis.zcard::<_, u64>(key("work")).await?;
        let late: Vec<Vec<u8>> = redis.zrangebyscore(key("work"), "-inf", latest()).await?;
        self.places
            .extend(late.iter().map(|user| named(performance, "user", user)));
        Ok(())
    }
}

fn latest() -> i64 {
    chrono::Utc::now().timestamp_millis() - GRACE_MS
}

fn named(performance: Uuid, what: &str, id: &[u8]) -> String {
    let id = Uuid::from_slice(id).unwrap_or_default();
    format!("performance {performance}: {what} {id}")
}

async fn schedules(pool: &PgPool, performance: Uuid) -> sqlx::Result<Vec<(Uuid, i64)>> {
    let rows = sqlx::query(
        "select id, total_seats::bigint from performances.schedules where performance_id = $1",
    )
    .bind(performance)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .collect()
}
