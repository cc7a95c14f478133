//! What happens when the state in Redis is not what it was: another process has it, it is behind, or
//! it is gone.
//!
//! The first instance to notice opens the next epoch by compare-and-set in PostgreSQL. A state that
//! lost at most some seconds of readings has survived: the epoch takes it over, and admission goes
//! on. Otherwise the queue recovers: unpaid orders keep their turns, people come back by their
//! tokens ([`super::returns`]), and admission follows them. An instance whose Redis is not the one
//! where the epoch of PostgreSQL lives is fenced off: it answers nothing for that queue.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use serde::Deserialize;
use uuid::Uuid;

use super::{
    State,
    epochs::{self, Epoch, Known},
    error::Error,
    live::{Before, Live},
    scripts::{BATCH_MAX, ScriptError, Start, StoreState, Survival, Unpaid},
    snapshot::WORKING_POLL_MS,
};

/// A recovery lasts one poll interval of people who work, and this much.
const RECOVER_SLACK_MS: u64 = 1_500;
/// How long the instance that opened an epoch is given to begin it in Redis.
const OTHERS_MAX: u32 = 25;
/// Readings of two instances are not further apart than this, unless one of them reads no more.
const READ_SINCE_MS: i64 = 1_500;
/// A day after the closing nobody waits any more.
const CLOSED_MS: i64 = 86_400_000;
/// Readings come at least so often while a queue is asked for: less than this was no outage.
const BEAT_MS: i64 = 3_000;

/// What reservations know of an unpaid order.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct UnpaidOrder {
    order_id: Uuid,
    user_id: Uuid,
    place_number: u64,
    keeps_ms: u64,
}

impl State {
    /// Opens a new epoch and begins it in this Redis, unless another instance does, or this Redis is not
    /// the one that counts.
    pub(super) async fn recover(&self, live: &Arc<Live>, why: &str) -> Result<(), Error> {
        let _one = live.recovering.lock().await;
        let pool = &self.deps().pool;
        let mut row = epochs::load(pool, live.id).await?;
        let mut why = why.to_owned();
        for _ in 0..OTHERS_MAX {
            match live.room.tick(live.seen(), -1, 0).await {
                Ok(_) => return Ok(()),
                Err(ScriptError::Lost(now)) => why = now,
                Err(error) => return Err(error.into()),
            }
            let here = live.room.state().await?;
            let view_now = live.snapshot.load().view.now;
            match standing(row.as_ref(), &here, (live.seen().epoch.into(), view_now)) {
                Standing::Ours => break,
                Standing::Begins => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    row = epochs::load(pool, live.id).await?;
                }
                Standing::Fenced => return Err(fence(live, row.as_ref(), &here)),
            }
        }
        let here = live.room.state().await?;
        self.take_over(live, row, &here, &why).await
    }

    async fn take_over(
        &self,
        live: &Arc<Live>,
        row: Option<Epoch>,
        here: &StoreState,
        why: &str,
    ) -> Result<(), Error> {
        let pool = &self.deps().pool;
        let shown = live.snapshot.load_full();
        let view = &shown.view;
        let in_force = row.as_ref().map_or(0, |r| i64::from(r.epoch));
        let same = |epoch: i64| epoch == in_force;
        let last_known = row.as_ref().map_or(0, |r| r.last);
        let last_known = last_known.max(match i64::from(live.seen().epoch) {
            epoch if same(epoch) => i64::try_from(live.seen().last).unwrap_or(i64::MAX),
            _ => 0,
        });
        let clock_known = row.as_ref().map_or(0, |r| r.clock);
        let clock_known = clock_known.max(if same(view.epoch) { view.now } else { 0 });
        let survival = (in_force > 0 && here.epoch == in_force).then_some(Survival {
            clock: clock_known,
            last: last_known,
        });
        // Everything that a beginning needs, before an epoch is opened for it.
        let mut start = self.start(live).await?;
        let known = Known {
            served: if same(view.epoch) { view.served } else { 0 },
            last: last_known,
            lost_ms: match clock_known {
                0 => 0,
                clock => (here.wall - clock - BEAT_MS).max(0),
            },
            store: here.store.clone(),
        };
        let seen = row.as_ref().map(|r| r.epoch);
        let Some(opened) = epochs::open(pool, live.id, seen, &known).await? else {
            // Another instance was faster; its beginning shows in the next reading.
            tokio::time::sleep(Duration::from_millis(50)).await;
            return Ok(());
        };
        self.complete(live, &mut start, &opened).await?;
        let fresh = opened.is_fresh();
        if !fresh && here.epoch >= 0 {
            // Before anybody can meet the state.
            self.forget_ended(live, survival.is_none()).await?;
        }
        if !fresh && survival.is_some() {
            start.survival = survival;
            match live.room.init(&start).await {
                Ok(()) => {
                    tracing::info!(performance.id = %live.id, epoch = opened.epoch, reason = why,
                        "the queue's state in Redis has survived; its places stay as they are");
                    return Ok(());
                }
                Err(ScriptError::Old) => self.forget_ended(live, true).await?,
                Err(error) => return Err(error.into()),
            }
        }
        start.survival = None;
        if !fresh && closed_long_ago(live, here.wall) {
            tracing::info!(performance.id = %live.id, epoch = opened.epoch,
                "booking closed long ago; the queue begins with nobody");
        } else if !fresh {
            start.recover_ms = WORKING_POLL_MS
                .min(live.rules.load().settings.poll_max_ms.unsigned_abs())
                + RECOVER_SLACK_MS;
            start.orders = true;
            tracing::warn!(performance.id = %live.id, epoch = opened.epoch, reason = why, recover_ms = start.recover_ms,
                "the queue's state in Redis was lost; a new epoch begins and people are put back");
        }
        live.room.init(&start).await?;
        if start.orders {
            self.reserve_orders(live).await?;
        }
        Ok(())
    }

    /// What an epoch begins with, as far as it can be known before the epoch is.
    async fn start(&self, live: &Live) -> Result<Start, Error> {
        let rules = live.rules.load_full();
        let capacity = rules.facts.total_seats;
        // Of what is still sold: seats of a schedule whose sales have ended remain for nobody.
        let remaining = (rules.facts.open_seats() - self.sold(live.id).await?).max(0);
        let mut fields = rules.fields();
        fields.push(("settings", rules.settings.version.to_string()));
        fields.push(("capacity", capacity.to_string()));
        fields.push(("remaining", remaining.to_string()));
        Ok(Start {
            epoch: 0,
            base: 0,
            ceiling: 0,
            served: 0,
            served_then: 0,
            skips: Vec::new(),
            survival: None,
            orders: false,
            recover_ms: 0,
            fields,
            schedules: rules.facts.open_schedules().to_vec(),
        })
    }

    /// What only the opened epoch tells.
    async fn complete(&self, live: &Live, start: &mut Start, opened: &Epoch) -> Result<(), Error> {
        let pool = &self.deps().pool;
        if opened.is_fresh() && live.draw.load().is_some() {
            // Another seed belongs to another sale.
            let draw = epochs::draw(pool, live.id).await?;
            live.draw.store(Arc::new(Some(draw)));
        }
        start.epoch = u32::try_from(opened.epoch).map_err(Error::unavailable)?;
        start.base = opened.base.unsigned_abs();
        start.ceiling = opened.ceiling;
        start.served = opened.lost_served;
        start.served_then = opened.served_then;
        start.skips.clone_from(&opened.skips);
        let fields = &mut start.fields;
        if let (Some(lo), Some(hi)) = (opened.cut_lo, opened.cut_hi) {
            fields.push(("cutLo", lo.to_string()));
            fields.push(("cutHi", hi.to_string()));
        }
        if let Some(lo) = opened.draw_lo {
            fields.push(("drawLo", lo.to_string()));
        }
        if live.rules.load().settings.pre_queue_opens_at.is_some() || opened.draw_lo.is_some() {
            let draw = epochs::draw(pool, live.id).await?;
            if let (Some(first), Some(count)) = (draw.first, draw.count) {
                fields.retain(|(name, _)| *name != "drawLo");
                fields.push(("drawLo", first.to_string()));
                fields.push(("drawHi", (first + count).to_string()));
                fields.push(("drawNext", (first + count + 1).to_string()));
                fields.push(("seed", hex::encode(&draw.seed)));
            }
        }
        Ok(())
    }

    /// After a loss, unpaid orders get their slots back before anybody is admitted. Any instance may do
    /// so, and any number of times.
    pub(super) async fn reserve_orders(&self, live: &Live) -> Result<(), Error> {
        let path = format!("/internal/v1/performances/{}/unpaid", live.id);
        let orders: Vec<UnpaidOrder> = self.deps().reservations.get_json(&path).await?;
        let mut orders: Vec<Unpaid> = orders
            .into_iter()
            .map(|o| Unpaid {
                user: o.user_id,
                number: o.place_number,
                order: o.order_id,
                keeps_ms: o.keeps_ms,
            })
            .collect();
        orders.sort_unstable_by_key(|o| o.number);
        let mut kept = 0;
        for part in orders.chunks(BATCH_MAX) {
            kept += live.room.reserve(live.seen(), part, false).await?;
        }
        live.room.reserve(live.seen(), &[], true).await?;
        if !orders.is_empty() {
            tracing::info!(performance.id = %live.id, orders = orders.len(), kept, "unpaid orders keep their turns");
        }
        Ok(())
    }

    /// A Redis that came back with an older state may still hold places whose turn
    /// is over: Postgres knows them.
    async fn forget_ended(&self, live: &Live, all: bool) -> Result<(), Error> {
        let ended = epochs::ended(&self.deps().pool, live.id, all).await?;
        for part in ended.chunks(200) {
            match live.room.forget(part).await {
                Ok(_) => {}
                // Flushed meanwhile: then there is nothing to forget.
                Err(ScriptError::Lost(_)) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// What is noted of the epochs before; read once an epoch.
    pub(super) async fn before(&self, live: &Live, epoch: u32) -> Result<Before, Error> {
        let lock = || {
            live.before
                .lock()
                .expect("nothing panics while it holds this lock")
        };
        let known = *lock();
        if known.epoch == epoch {
            return Ok(known);
        }
        let Some(row) = epochs::load(&self.deps().pool, live.id).await? else {
            return Ok(Before::default());
        };
        let fresh = Before {
            epoch: u32::try_from(row.epoch).unwrap_or(0),
            served: row.lost_served.unsigned_abs(),
            fresh_from: u32::try_from(row.fresh_from).unwrap_or(0),
            lost_ms: row.lost_ms.unsigned_abs(),
        };
        *lock() = fresh;
        Ok(fresh)
    }
}

/// Whose the next step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// This instance opens the next epoch here.
    Ours,
    /// Another instance has just opened one for this Redis, and is about to begin it.
    Begins,
    /// The epoch in force lives in another Redis, and somebody serves it there.
    Fenced,
}

/// Compares the epoch in force with what stands in this Redis, and with the epoch and the reading that this
/// instance has seen. One that has met no epoch yet (0) can only tell by the time: several start together, as a rule.
fn standing(row: Option<&Epoch>, here: &StoreState, (seen, read): (i64, i64)) -> Standing {
    let Some(row) = row else {
        return Standing::Ours;
    };
    let epoch = i64::from(row.epoch);
    if here.epoch >= epoch {
        return Standing::Ours;
    }
    if !row.store.is_empty() && row.store != here.store {
        // A Redis that was started empty is another process, too: then nobody has read the queue since.
        let since = here.epoch >= 0 || seen == 0 || row.clock > read + READ_SINCE_MS;
        return match row.just_opened || row.alive && since {
            true => Standing::Fenced,
            false => Standing::Ours,
        };
    }
    match epoch > seen && (seen > 0 || row.just_opened) {
        true => Standing::Begins,
        false => Standing::Ours,
    }
}

/// Its state was removed, as a rule: there is nobody to put back.
fn closed_long_ago(live: &Live, wall: i64) -> bool {
    let closes = live.rules.load().facts.booking_closes_at;
    closes.is_some_and(|at| wall - at.timestamp_millis() > CLOSED_MS)
}

fn fence(live: &Live, row: Option<&Epoch>, here: &StoreState) -> Error {
    if !live.cut_off.swap(true, Relaxed) {
        tracing::error!(performance.id = %live.id, epoch = row.map_or(0, |r| r.epoch), redis.epoch = here.epoch,
            "this instance's Redis is not the one where the queue lives; it answers nothing for it");
    }
    Error::CutOff
}
