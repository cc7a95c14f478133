//! Makes Redis show what Postgres says, one order or a whole performance at a
//! time. Everything here may run twice, late or on several instances at once:
//! the scripts compare versions and owners, and Postgres is read anew each time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::PoisonError,
    time::Duration,
};

use redis::AsyncCommands;
use uuid::Uuid;

use super::{
    Reservations,
    machine::{End, Status},
    scripts::{self, Keys, Settle, Settled, Show},
    store::{self, Order},
};
use crate::platform::{
    alarms::{self, Alarm},
    db,
    problem::Problem,
    redis::Redis,
};

/// A hold that Postgres does not know may be on its way there for so long: a
/// write is given up well before.
pub(super) const IN_FLIGHT_MS: i64 = 30_000;
/// Each round settles whoever stands in the way; more than a few rounds means
/// that something is changing under us, and the next repair comes anyway.
const ROUNDS_MAX: u32 = 4;
/// Two repairs so far apart that find the same did not repair it.
const CONVERGES_WITHIN: Duration = Duration::from_secs(20);
/// The alarm about it.
const NOT_REPAIRED: &str = "SEATS_NOT_REPAIRED";
/// Fields of one `HSET` while the limits are built.
const CHUNK: usize = 500;

/// Why Redis could not be made to show an order.
#[derive(Debug, thiserror::Error)]
pub enum SettleError {
    /// Redis failed.
    #[error("redis: {0}")]
    Redis(#[from] redis::RedisError),
    /// Postgres failed.
    #[error("postgres: {0}")]
    Database(sqlx::Error),
    /// Performances did not answer.
    #[error("performances: {}", .0.code())]
    Performances(Problem),
}

impl From<sqlx::Error> for SettleError {
    fn from(error: sqlx::Error) -> Self {
        db::observe(&error);
        Self::Database(error)
    }
}

impl From<SettleError> for Problem {
    fn from(error: SettleError) -> Self {
        match error {
            SettleError::Redis(e) => e.into(),
            SettleError::Database(e) => e.into(),
            SettleError::Performances(p) => p,
        }
    }
}

impl From<SettleError> for crate::platform::events::HandlerError {
    fn from(error: SettleError) -> Self {
        Self::retry(error)
    }
}

fn show_of(order: &Order, wait_max: chrono::Duration) -> Show {
    let row = &order.row;
    match row.status() {
        Status::Pending | Status::Paying => Show::Held(row.expires_at.timestamp_millis()),
        // Until payments has answered, or we have waited enough.
        Status::Closing(End::Expired | End::Cancelled) => {
            let until = row.closing_at.unwrap_or(row.now) + wait_max;
            Show::Held(until.timestamp_millis())
        }
        Status::Confirmed => Show::Sold,
        Status::Expired | Status::Cancelled | Status::Refunded => Show::Free,
    }
}

impl Reservations {
    pub(super) fn keys(&self, performance: Uuid) -> Keys {
        Keys::new(&self.prefix, performance)
    }

    /// Makes Redis show an order as Postgres has it.
    ///
    /// # Errors
    /// When a store is away.
    pub async fn show(&self, performance: Uuid, order: Uuid) -> Result<(), SettleError> {
        for _ in 0..ROUNDS_MAX {
            match self.show_once(performance, order).await? {
                Settled::Done | Settled::Stale => return Ok(()),
                Settled::Absent => {
                    self.rebuild(performance).await?;
                }
                Settled::Taken(indices) => self.clear_way(performance, order, &indices).await?,
            }
        }
        self.repair_soon(performance);
        Ok(())
    }

    async fn show_once(&self, performance: Uuid, order: Uuid) -> Result<Settled, SettleError> {
        let Some(found) = store::order(&self.pool, order).await? else {
            return self.free_unknown(performance, order).await;
        };
        self.settle(&found).await
    }

    async fn settle(&self, order: &Order) -> Result<Settled, SettleError> {
        let row = &order.row;
        let settle = Settle {
            order: row.id,
            version: row.version,
            user: row.counts_for(),
            schedule: row.schedule_id,
            show: show_of(order, self.config.payment_wait_max()),
            place: row.place_number,
            // Not until payments has answered: what is still on its way lives on without the turn.
            keeps_ms: row.expires_at.timestamp_millis(),
            // Unknown here: it counts, and the next count of the seats has the last word.
            sales_end_ms: (self.catalogues.known(row.schedule_id))
                .map_or(0, |c| c.sales_end_at.timestamp_millis()),
            indices: &order.indices(),
        };
        let mut redis = self.redis.clone();
        Ok(scripts::settle(&mut redis, &self.keys(row.performance_id), &settle).await?)
    }

    /// A hold without an order: its request died between the two, unless it is
    /// still on its way.
    async fn free_unknown(&self, performance: Uuid, order: Uuid) -> Result<Settled, SettleError> {
        let keys = self.keys(performance);
        let mut redis = self.redis.clone();
        let (schedule, since): (Option<String>, Option<i64>) =
            redis.hmget(keys.hold(order), &["s", "t"][..]).await?;
        let Some(schedule) = schedule.and_then(|s| s.parse().ok()) else {
            let () = redis.zrem(keys.holds(), order.as_bytes()).await?;
            return Ok(Settled::Done);
        };
        if !self.may_free_unknown(performance).await? {
            return Ok(Settled::Stale);
        }
        let age_ms = chrono::Utc::now().timestamp_millis() - since.unwrap_or(0);
        if age_ms < IN_FLIGHT_MS.min(self.config.hold_ttl_ms()) {
            return Ok(Settled::Stale);
        }
        self.free_hold(performance, schedule, order).await
    }

    /// Frees what a hold in Redis names, for an order that is not in Postgres.
    pub(super) async fn free_hold(
        &self,
        performance: Uuid,
        schedule: Uuid,
        order: Uuid,
    ) -> Result<Settled, SettleError> {
        let settle = Settle {
            order,
            version: 1,
            user: None,
            schedule,
            show: Show::Free,
            place: None,
            keeps_ms: 0,
            sales_end_ms: 0,
            indices: &[],
        };
        let mut redis = self.redis.clone();
        Ok(scripts::settle(&mut redis, &self.keys(performance), &settle).await?)
    }

    /// Settles whoever has the seats that Postgres gives to `order`.
    async fn clear_way(
        &self,
        performance: Uuid,
        order: Uuid,
        indices: &[u32],
    ) -> Result<(), SettleError> {
        let Some(found) = store::order(&self.pool, order).await? else {
            return Ok(());
        };
        let keys = self.keys(performance);
        let mut redis = self.redis.clone();
        for index in indices {
            let at = isize::try_from(*index).unwrap_or(isize::MAX / 32) * 16;
            let owner: Vec<u8> = redis
                .getrange(keys.owners(found.row.schedule_id), at, at + 15)
                .await?;
            if let Ok(owner) = Uuid::from_slice(&owner)
                && owner != order
            {
                self.show_once(performance, owner).await?;
            }
        }
        Ok(())
    }

    /// Sets what is missing in Redis of a performance, from Postgres; a repair
    /// follows a second later, for what was on its way meanwhile.
    ///
    /// # Errors
    /// When a store, or performances, is away.
    pub async fn rebuild(&self, performance: Uuid) -> Result<(), SettleError> {
        // One at a time in this process; others find it done.
        let _turn = self.rebuilding.lock().await;
        let schedules = self
            .catalogues
            .schedules_of(performance)
            .await
            .map_err(SettleError::Performances)?;
        let keys = self.keys(performance);
        let mut redis = self.redis.clone();
        let live = store::live_of(&self.pool, performance).await?;
        self.rebuild_limits(&keys, &live).await?;
        for schedule in &schedules.all {
            let catalogue = self
                .catalogues
                .get(*schedule)
                .await
                .map_err(SettleError::Performances)?;
            let (states, owners) = image(*schedule, catalogue.seats.len(), &live);
            scripts::rebuild(&mut redis, &keys, *schedule, &states, &owners).await?;
        }
        for order in live.iter().filter(|o| o.row.status() != Status::Confirmed) {
            self.settle(order).await?;
        }
        let () = redis.sadd(self.live_key(), performance.to_string()).await?;
        scripts::recount(&mut redis, &keys, schedules.open()).await?;
        tracing::info!(performance.id = %performance, orders = live.len(), "seats rebuilt from Postgres");
        self.repair_soon(performance);
        Ok(())
    }

    /// Built aside and renamed into place, so that a limit is never half there.
    async fn rebuild_limits(&self, keys: &Keys, live: &[Order]) -> Result<(), SettleError> {
        let mut redis = self.redis.clone();
        if redis.exists(keys.limit()).await? {
            return Ok(());
        }
        let aside = format!("{}:{}", keys.limit(), Uuid::now_v7());
        let records = limits(live);
        let fields: Vec<(&[u8], &[u8])> = records
            .iter()
            .map(|(user, record)| (&user.as_bytes()[..], &record[..]))
            .collect();
        let () = redis.hset(&aside, "built", "1").await?;
        if self.is_stopped(keys.performance()).await? {
            let () = redis.hset(&aside, "stopped", "1").await?;
        }
        for chunk in fields.chunks(CHUNK) {
            let () = redis.hset_multiple(&aside, chunk).await?;
        }
        let placed: bool = redis.rename_nx(&aside, keys.limit()).await?;
        if !placed {
            let () = redis.del(&aside).await?;
        }
        Ok(())
    }

    /// Counts anew how many seats are not sold, of the schedules that are still sold, where there is a queue.
    ///
    /// # Errors
    /// When a store, or performances, is away.
    pub async fn recount(&self, performance: Uuid) -> Result<(), SettleError> {
        let keys = self.keys(performance);
        let mut redis = self.redis.clone();
        if !redis.exists(keys.meta()).await? {
            return Ok(());
        }
        let schedules = self
            .catalogues
            .schedules_of(performance)
            .await
            .map_err(SettleError::Performances)?;
        let counted = scripts::recount(&mut redis, &keys, schedules.open()).await?;
        if counted.is_none() {
            self.rebuild(performance).await?;
        }
        Ok(())
    }

    /// Compares Redis with Postgres, and settles every order that differs.
    /// Returns how many did.
    ///
    /// # Errors
    /// When a store, or performances, is away.
    pub async fn repair(&self, performance: Uuid) -> Result<usize, SettleError> {
        let schedules = self
            .catalogues
            .schedules_of(performance)
            .await
            .map_err(SettleError::Performances)?;
        let live = store::live_of(&self.pool, performance).await?;
        let keys = self.keys(performance);
        let Some(differing) = compare(&self.redis, &keys, &schedules.all, &live).await? else {
            self.rebuild(performance).await?;
            return Ok(0);
        };
        let unknown = self.unknown(&differing.gone).await?;
        let lost: BTreeSet<Uuid> = unknown.intersection(&differing.sold).copied().collect();
        let free = if lost.is_empty() {
            true
        } else if self.is_stopped(performance).await? {
            false
        } else {
            !self.suspect_restore(&lost).await? && self.may_free_unknown(performance).await?
        };
        for order in differing.gone.iter().chain(&differing.due) {
            if free || !lost.contains(order) {
                self.show(performance, *order).await?;
            }
        }
        if free && !lost.is_empty() {
            self.free_unexplained(performance).await?;
        }
        let mut redis = self.redis.clone();
        if scripts::recount(&mut redis, &keys, schedules.open())
            .await?
            .is_none()
        {
            self.rebuild(performance).await?;
        }
        let differed: BTreeSet<Uuid> = differing.gone.union(&differing.due).copied().collect();
        self.converges(performance, differed.clone()).await?;
        Ok(differed.len())
    }

    /// Those of these orders that Postgres does not know.
    async fn unknown(&self, orders: &BTreeSet<Uuid>) -> Result<BTreeSet<Uuid>, SettleError> {
        if orders.is_empty() {
            return Ok(BTreeSet::new());
        }
        let known = self.known_orders(orders.iter().copied().collect()).await?;
        Ok(orders.difference(&known).copied().collect())
    }

    /// A repair that finds what the last one should have repaired does not converge: a person
    /// hears of it.
    async fn converges(
        &self,
        performance: Uuid,
        differed: BTreeSet<Uuid>,
    ) -> Result<(), SettleError> {
        let now = std::time::Instant::now();
        let last = {
            let mut repairs = self.repaired.lock().unwrap_or_else(PoisonError::into_inner);
            match repairs.get(&performance) {
                // What a repair of a moment ago found may still be on its way.
                Some((at, _))
                    if now.duration_since(*at) < CONVERGES_WITHIN && !differed.is_empty() =>
                {
                    return Ok(());
                }
                Some(_) | None => repairs.insert(performance, (now, differed.clone())),
            }
        };
        let stuck = match &last {
            Some((_, before)) => differed.intersection(before).count(),
            None => 0,
        };
        let key = performance.to_string();
        if stuck > 0 {
            let detail = format!(
                "the seats of performance {key} in Redis differ from PostgreSQL, and repairing them does not help ({stuck} orders, {} the first)",
                differed.iter().next().unwrap_or(&performance)
            );
            let alarm = Alarm {
                kind: NOT_REPAIRED,
                key: &key,
                order_id: None,
                payment_id: None,
                detail: &detail,
            };
            alarms::raise(&mut *self.pool.acquire().await?, &alarm).await?;
        } else if differed.is_empty() && last.is_none_or(|(_, before)| !before.is_empty()) {
            let note = "Redis shows what PostgreSQL has.";
            alarms::clear(&mut *self.pool.acquire().await?, NOT_REPAIRED, &key, note).await?;
        } else if !differed.is_empty() {
            tracing::warn!(performance.id = %performance, orders = differed.len(), "seats repaired");
        }
        Ok(())
    }
}

/// The orders that Redis shows otherwise than `live`; `None` when seats are missing.
///
/// # Errors
/// When Redis fails.
pub async fn compare(
    redis: &Redis,
    keys: &Keys,
    schedules: &[Uuid],
    live: &[Order],
) -> Result<Option<Differing>, redis::RedisError> {
    let mut redis = redis.clone();
    let mut differing = Differing::default();
    for schedule in schedules {
        let (states, owners): (Option<Vec<u8>>, Option<Vec<u8>>) = redis
            .mget(&[keys.seats(*schedule), keys.owners(*schedule)][..])
            .await?;
        let (Some(states), Some(owners)) = (states, owners) else {
            return Ok(None);
        };
        let image = image(*schedule, states.len(), live);
        differing.compare_seats((&states, &owners), (&image.0, &image.1));
    }
    if !redis.exists(keys.limit()).await? {
        return Ok(None);
    }
    let mut found: HashMap<Uuid, Vec<u8>> = HashMap::new();
    let mut scan = redis.hscan::<_, (Vec<u8>, Vec<u8>)>(keys.limit()).await?;
    while let Some(field) = scan.next_item().await {
        let (user, records) = field?;
        if let Ok(user) = Uuid::from_slice(&user) {
            found.insert(user, records);
        }
    }
    drop(scan);
    differing.compare_limits(&found, &limits(live));
    let held: Vec<Vec<u8>> = redis.zrange(keys.holds(), 0, -1).await?;
    differing.compare_holds(&held, live);
    Ok(Some(differing))
}

/// Orders to settle: first those that Redis shows and Postgres does not.
#[derive(Debug, Default)]
pub struct Differing {
    /// Shown, and not in Postgres so.
    pub gone: BTreeSet<Uuid>,
    /// In Postgres, and not shown so.
    pub due: BTreeSet<Uuid>,
    /// Those of `gone` that are shown as having bought a seat.
    pub sold: BTreeSet<Uuid>,
}

impl Differing {
    fn compare_seats(&mut self, found: (&[u8], &[u8]), want: (&[u8], &[u8])) {
        let owner = |owners: &[u8], i: usize| {
            let bytes = owners.get(i * 16..i * 16 + 16).unwrap_or(&[0; 16]);
            Uuid::from_slice(bytes).unwrap_or_default()
        };
        for (i, (has, wants)) in found.0.iter().zip(want.0).enumerate() {
            let (holder, due) = (owner(found.1, i), owner(want.1, i));
            if has == wants && holder == due {
                continue;
            }
            if !holder.is_nil() && holder != due {
                self.gone.insert(holder);
                if *has == b'2' {
                    self.sold.insert(holder);
                }
            }
            if !due.is_nil() {
                self.due.insert(due);
            }
        }
    }

    fn compare_limits(&mut self, found: &HashMap<Uuid, Vec<u8>>, want: &HashMap<Uuid, Vec<u8>>) {
        let sorted = |records: &[u8]| -> BTreeSet<Vec<u8>> {
            records.chunks(17).map(<[u8]>::to_vec).collect()
        };
        let order = |record: &Vec<u8>| Uuid::from_slice(&record[..16.min(record.len())]).ok();
        for user in found.keys().chain(want.keys()) {
            let has = sorted(found.get(user).map_or(&[], Vec::as_slice));
            let wants = sorted(want.get(user).map_or(&[], Vec::as_slice));
            self.gone.extend(has.difference(&wants).filter_map(order));
            self.due.extend(wants.difference(&has).filter_map(order));
        }
    }

    fn compare_holds(&mut self, found: &[Vec<u8>], live: &[Order]) {
        let found: BTreeSet<Uuid> = found
            .iter()
            .filter_map(|id| Uuid::from_slice(id).ok())
            .collect();
        let want: BTreeSet<Uuid> = live
            .iter()
            .filter(|o| o.row.status() != Status::Confirmed)
            .map(|o| o.row.id)
            .collect();
        self.gone.extend(found.difference(&want));
        self.due.extend(want.difference(&found));
    }
}

/// A schedule's two strings, as Postgres has it.
fn image(schedule: Uuid, seats: usize, live: &[Order]) -> (Vec<u8>, Vec<u8>) {
    let (mut states, mut owners) = (vec![b'0'; seats], vec![0_u8; seats * 16]);
    for order in live.iter().filter(|o| o.row.schedule_id == schedule) {
        let byte = if order.row.status() == Status::Confirmed {
            b'2'
        } else {
            b'1'
        };
        for index in order.indices() {
            let i = index as usize;
            if i < seats {
                states[i] = byte;
                owners[i * 16..i * 16 + 16].copy_from_slice(order.row.id.as_bytes());
            }
        }
    }
    (states, owners)
}

/// Each person's live orders, as records of 17 bytes.
fn limits(live: &[Order]) -> HashMap<Uuid, Vec<u8>> {
    let mut records: HashMap<Uuid, Vec<u8>> = HashMap::new();
    for order in live {
        if let Some(user) = order.row.counts_for() {
            let record = records.entry(user).or_default();
            record.extend_from_slice(order.row.id.as_bytes());
            record.push(u8::try_from(order.row.seat_count).unwrap_or(u8::MAX));
        }
    }
    records
}
