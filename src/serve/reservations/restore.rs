//! PostgreSQL restored to an older state while Redis stays.
//!
//! A counter goes up in PostgreSQL first and in Redis afterwards: found behind Redis, or behind
//! what this process has seen, PostgreSQL has lost what happened in between. So it has when Redis
//! shows a seat sold to an order that PostgreSQL does not know. Sales stop at once; payments
//! matches every captured intent since then with Stripe and has the lost orders built again; only
//! then are the seats that nobody can explain freed, and sales go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use chrono::{DateTime, Utc};
use redis::AsyncCommands;
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Reservations, SCHEMA,
    rebuild::made_at,
    scripts::{self, Keys, Settle, Show},
    settle::{IN_FLIGHT_MS, SettleError},
};
use crate::platform::{
    alarms::{self, Alarm},
    scans::Scan,
};

/// What happened in so short a time before a crash of PostgreSQL may be lost unnoticed by the
/// counter; the seats tell it then.
pub(super) const BEAT_EVERY: Duration = Duration::from_secs(3);
/// The alarm about it.
const RESTORED: &str = "POSTGRES_RESTORED";

/// A restore that is not over.
#[derive(Clone, Debug)]
struct Open {
    id: Uuid,
    since: DateTime<Utc>,
    evidence: String,
    matched_at: Option<DateTime<Utc>>,
}

crate::from_row!(Open {
    id,
    since,
    evidence,
    matched_at
});

#[derive(Deserialize)]
struct Matching {
    matched: i64,
    done: bool,
    problem: Option<String>,
}

impl Reservations {
    /// In one place for all performances, so it needs no hash tag.
    fn guard_key(&self) -> String {
        format!("{}:restore-guard", self.prefix)
    }

    /// One tick: counts up, and goes on with a restore that is not over.
    pub(super) async fn guard(&self, scan: &Scan) -> Result<(), SettleError> {
        if !scan.hold().await? {
            return Ok(());
        }
        self.beat().await?;
        match self.open_restore().await? {
            Some(open) => self.go_on(&open).await,
            None => Ok(()),
        }
    }

    /// The highest count that Redis or this process has seen.
    async fn highest_beat(&self) -> Result<i64, SettleError> {
        let seen: Option<i64> = self.redis.clone().get(self.guard_key()).await?;
        Ok(seen.unwrap_or(0).max(self.beats.load(Ordering::Acquire)))
    }

    async fn beat(&self) -> Result<(), SettleError> {
        let highest = self.highest_beat().await?;
        let mut tx = self.pool.begin().await?;
        let known: Option<(i64, DateTime<Utc>)> =
            sqlx::query_as("select beats, beat_at from restore_guard for update")
                .fetch_optional(&mut *tx)
                .await?;
        let mut restored = false;
        let next = match known {
            // New, or emptied on purpose: what was before is nobody's any more.
            None => {
                sqlx::query("insert into restore_guard (beats) values ($1)")
                    .bind(highest + 1)
                    .execute(&mut *tx)
                    .await?;
                highest + 1
            }
            Some((beats, at)) => {
                if highest > beats {
                    let evidence = format!(
                        "PostgreSQL's counter is {beats}, of {at}; Redis or this process has seen {highest}"
                    );
                    self.begin_restore(&mut tx, at, &evidence).await?;
                    restored = true;
                }
                let next = highest.max(beats) + 1;
                sqlx::query("update restore_guard set beats = $1, beat_at = now()")
                    .bind(next)
                    .execute(&mut *tx)
                    .await?;
                next
            }
        };
        tx.commit().await?;
        if restored {
            self.stop_in_redis().await?;
        }
        self.beats.fetch_max(next, Ordering::AcqRel);
        let () = self.redis.clone().set(self.guard_key(), next).await?;
        Ok(())
    }

    async fn open_restore(&self) -> sqlx::Result<Option<Open>> {
        sqlx::query_as("select id, since, evidence, matched_at from restores where done_at is null")
            .fetch_optional(&self.pool)
            .await
    }

    /// Stops the sales of every performance that has seats in Redis.
    async fn begin_restore(
        &self,
        conn: &mut PgConnection,
        since: DateTime<Utc>,
        evidence: &str,
    ) -> Result<(), SettleError> {
        let id: Uuid = sqlx::query_scalar(
            "insert into restores as r (id, since, evidence) values ($1, $2, $3)
             on conflict ((done_at is null)) where done_at is null do update set
                 since = least(r.since, excluded.since), matched_at = null
             returning id",
        )
        .bind(Uuid::now_v7())
        .bind(since)
        .bind(evidence)
        .fetch_one(&mut *conn)
        .await?;
        sqlx::query(
            "insert into sales_stops (performance_id, restore_id)
             select p, $2 from unnest($1::uuid[]) as p on conflict do nothing",
        )
        .bind(&self.live_performances().await?)
        .bind(id)
        .execute(&mut *conn)
        .await?;
        let detail = format!(
            "PostgreSQL is an older state of itself: {evidence}. Sales are stopped while every payment since {since} is matched with Stripe"
        );
        raise(conn, id, &detail).await?;
        tracing::error!(restore.id = %id, %since, evidence, "PostgreSQL was restored; sales are stopped");
        Ok(())
    }

    pub(super) async fn live_performances(&self) -> Result<Vec<Uuid>, SettleError> {
        let live: Vec<String> = self.redis.clone().smembers(self.live_key()).await?;
        Ok(live.iter().filter_map(|p| p.parse().ok()).collect())
    }

    async fn stopped(&self) -> sqlx::Result<Vec<Uuid>> {
        sqlx::query_scalar("select performance_id from sales_stops order by 1")
            .fetch_all(&self.pool)
            .await
    }

    async fn stop_in_redis(&self) -> Result<(), SettleError> {
        let mut redis = self.redis.clone();
        for performance in self.stopped().await? {
            scripts::stop(&mut redis, &self.keys(performance), true).await?;
        }
        Ok(())
    }

    /// Are sales of this performance stopped?
    pub(super) async fn is_stopped(&self, performance: Uuid) -> sqlx::Result<bool> {
        sqlx::query_scalar("select exists (select 1 from sales_stops where performance_id = $1)")
            .bind(performance)
            .fetch_one(&self.pool)
            .await
    }

    /// May seats be freed of orders that PostgreSQL does not know? Not while sales are stopped,
    /// nor while PostgreSQL may be an older state that nobody has noticed yet.
    pub(super) async fn may_free_unknown(&self, performance: Uuid) -> Result<bool, SettleError> {
        let highest = self.highest_beat().await?;
        let beats: Option<i64> = sqlx::query_scalar("select beats from restore_guard")
            .fetch_optional(&self.pool)
            .await?;
        if beats.is_some_and(|beats| beats < highest) {
            return Ok(false);
        }
        Ok(!self.is_stopped(performance).await?)
    }

    /// Redis shows seats sold to orders that PostgreSQL does not know: PostgreSQL lost them. Those
    /// of before the counter began were removed on purpose. True when sales are stopped for it.
    pub(super) async fn suspect_restore(&self, sold: &BTreeSet<Uuid>) -> Result<bool, SettleError> {
        let begun: Option<DateTime<Utc>> =
            sqlx::query_scalar("select created_at from restore_guard")
                .fetch_optional(&self.pool)
                .await?;
        let Some(begun) = begun else {
            return Ok(false);
        };
        let lost: Vec<_> = sold
            .iter()
            .filter_map(|order| Some((made_at(*order)?, order)))
            .filter(|(at, _)| *at > begun)
            .collect();
        let Some((since, order)) = lost.iter().min() else {
            return Ok(false);
        };
        let evidence = format!(
            "Redis shows seats sold to {} orders that PostgreSQL does not know, {order} the oldest",
            lost.len()
        );
        let mut tx = self.pool.begin().await?;
        self.begin_restore(&mut tx, *since, &evidence).await?;
        tx.commit().await?;
        self.stop_in_redis().await?;
        Ok(true)
    }

    async fn go_on(&self, open: &Open) -> Result<(), SettleError> {
        // Where Redis has lost the flag meanwhile.
        self.stop_in_redis().await?;
        if open.matched_at.is_none() && !self.match_payments(open).await? {
            return Ok(());
        }
        let stopped = self.stopped().await?;
        for performance in &stopped {
            let left = self.free_unexplained(*performance).await?;
            if left > 0 {
                tracing::warn!(performance.id = %performance, left, "seats are not freed yet");
                return Ok(());
            }
        }
        sqlx::query("delete from sales_stops")
            .execute(&self.pool)
            .await?;
        for performance in &stopped {
            scripts::stop(&mut self.redis.clone(), &self.keys(*performance), false).await?;
            self.repair_soon(*performance);
        }
        let mut tx = self.pool.begin().await?;
        sqlx::query("update restores set done_at = now() where id = $1")
            .bind(open.id)
            .execute(&mut *tx)
            .await?;
        let detail = format!(
            "PostgreSQL was restored to {} ({}). Every payment since then is matched and sales go on; see docs/restore.md for what else was lost",
            open.since, open.evidence
        );
        raise(&mut tx, open.id, &detail).await?;
        tx.commit().await?;
        tracing::warn!(restore.id = %open.id, performances = stopped.len(), "restore matched; sales go on");
        Ok(())
    }

    /// True once every captured intent has its order or an alarm.
    async fn match_payments(&self, open: &Open) -> Result<bool, SettleError> {
        let path = format!("/internal/v1/restores/{}", open.id);
        let asked = self
            .payments
            .post_json::<_, Matching>(&path, &serde_json::json!({ "since": open.since }))
            .await;
        let (done, state) = match asked {
            Ok(Matching { done: true, .. }) => (true, "matched".to_owned()),
            Ok(Matching {
                problem: Some(problem),
                ..
            }) => (false, format!("waiting: {problem}")),
            Ok(Matching { matched, .. }) => (false, format!("{matched} payments matched so far")),
            Err(error) => (false, format!("payments does not answer: {error}")),
        };
        let mut tx = self.pool.begin().await?;
        if done {
            sqlx::query("update restores set matched_at = now() where id = $1")
                .bind(open.id)
                .execute(&mut *tx)
                .await?;
        }
        let detail = format!(
            "PostgreSQL is an older state of itself: {}. Sales are stopped while every payment since {} is matched with Stripe; {state}",
            open.evidence, open.since
        );
        raise(&mut tx, open.id, &detail).await?;
        tx.commit().await?;
        Ok(done)
    }

    /// Frees the seats in Redis whose orders PostgreSQL does not know, and repairs the rest. How
    /// many such orders are left.
    pub(super) async fn free_unexplained(&self, performance: Uuid) -> Result<usize, SettleError> {
        let unknown = self.unknown_owners(performance).await?;
        for (order, (schedule, indices)) in &unknown {
            self.free_indices(performance, *schedule, *order, indices)
                .await?;
        }
        Ok(self.unknown_owners(performance).await?.len())
    }

    pub(super) async fn free_indices(
        &self,
        performance: Uuid,
        schedule: Uuid,
        order: Uuid,
        indices: &[u32],
    ) -> Result<(), SettleError> {
        let keys = self.keys(performance);
        let mut redis = self.redis.clone();
        let (version, user, since): (Option<i32>, Option<Vec<u8>>, Option<i64>) =
            redis.hmget(keys.hold(order), &["v", "u", "t"][..]).await?;
        let age_ms = since.map(|since| Utc::now().timestamp_millis() - since);
        if age_ms.is_some_and(|age| age < IN_FLIGHT_MS.min(self.config.hold_ttl_ms())) {
            // Its order may be about to be written.
            return Ok(());
        }
        let settle = Settle {
            order,
            version: version.unwrap_or(1),
            user: match user.and_then(|u| Uuid::from_slice(&u).ok()) {
                Some(user) => Some(user),
                None => self.limited_user(&keys, order).await?,
            },
            schedule,
            show: Show::Free,
            place: None,
            keeps_ms: 0,
            sales_end_ms: 0,
            indices,
        };
        scripts::settle(&mut redis, &keys, &settle).await?;
        Ok(())
    }

    /// Whose limit counts this order: a sold order's own record does not say.
    async fn limited_user(&self, keys: &Keys, order: Uuid) -> Result<Option<Uuid>, SettleError> {
        let mut redis = self.redis.clone();
        let mut scan = redis.hscan::<_, (Vec<u8>, Vec<u8>)>(keys.limit()).await?;
        while let Some(field) = scan.next_item().await {
            let (user, records) = field?;
            if records.chunks(17).any(|r| r.starts_with(order.as_bytes())) {
                return Ok(Uuid::from_slice(&user).ok());
            }
        }
        Ok(None)
    }

    /// The orders that Redis shows on seats and PostgreSQL does not know, with their seats.
    async fn unknown_owners(
        &self,
        performance: Uuid,
    ) -> Result<BTreeMap<Uuid, (Uuid, Vec<u32>)>, SettleError> {
        let keys = self.keys(performance);
        let mut redis = self.redis.clone();
        let schedules = self
            .catalogues
            .schedules_of(performance)
            .await
            .map_err(SettleError::Performances)?;
        let mut shown: BTreeMap<Uuid, (Uuid, Vec<u32>)> = BTreeMap::new();
        for schedule in schedules.all {
            let owners: Option<Vec<u8>> = redis.get(keys.owners(schedule)).await?;
            for (index, owner) in (0_u32..).zip(owners.unwrap_or_default().chunks(16)) {
                match Uuid::from_slice(owner) {
                    Ok(order) if !order.is_nil() => {
                        let seats = shown.entry(order).or_insert((schedule, Vec::new()));
                        seats.1.push(index);
                    }
                    _ => {}
                }
            }
        }
        let known = self.known_orders(shown.keys().copied().collect()).await?;
        shown.retain(|order, _| !known.contains(order));
        Ok(shown)
    }

    /// Those of these orders that PostgreSQL knows.
    pub(super) async fn known_orders(&self, orders: Vec<Uuid>) -> sqlx::Result<BTreeSet<Uuid>> {
        let known: Vec<Uuid> = sqlx::query_scalar("select id from orders where id = any($1)")
            .bind(&orders)
            .fetch_all(&self.pool)
            .await?;
        Ok(known.into_iter().collect())
    }
}

async fn raise(conn: &mut PgConnection, restore: Uuid, detail: &str) -> sqlx::Result<()> {
    let alarm = Alarm {
        kind: RESTORED,
        key: &restore.to_string(),
        order_id: None,
        payment_id: None,
        detail,
    };
    alarms::raise(conn, &alarm).await?;
    Ok(())
}

/// Raises or clears the alarms of this role about its own events.
pub(super) async fn watch_events(state: &Reservations) -> Result<(), SettleError> {
    let mut conn = state.pool.acquire().await?;
    Ok(alarms::watch_events(&mut conn, SCHEMA).await?)
}
