//! Readings of the state, and what happens when it is not what it was.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    State, epochs,
    error::Error,
    live::{Before, Live},
    scripts::{ScriptError, Seen, Start, Tick},
    snapshot::{DrawView, Ranks, Snapshot, WORKING_POLL_MS},
};

/// The scripts' word for a state that is not there at all.
const MISSING: &str = "missing";
/// A recovery lasts one full poll interval of whoever asks least often, and this much.
const RECOVER_SLACK_MS: u64 = 1_500;
/// How long the instance that opened an epoch is given to begin it in Redis.
const OTHERS_MAX: u32 = 10;

impl State {
    /// Sweeps, promotes and reads; a loss is recovered from first.
    pub(super) async fn tick_once(&self, live: &Arc<Live>) -> Result<(), Error> {
        for _ in 0..64 {
            let ranks_at = self.ranks_wanted(live);
            let tick = match live.room.tick(live.seen(), ranks_at).await {
                Ok(tick) => tick,
                Err(ScriptError::Lost(why)) => {
                    self.recover(live, &why).await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let more = tick.more;
            self.publish(live, tick);
            if !more {
                break;
            }
        }
        Ok(())
    }

    fn ranks_wanted(&self, live: &Live) -> i64 {
        let ranks = live
            .ranks
            .lock()
            .expect("nothing panics while it holds this lock");
        if ranks.stale(&live.snapshot.load().view) {
            -1
        } else {
            ranks.at
        }
    }

    fn publish(&self, live: &Live, tick: Tick) {
        let view = tick.view;
        let seen = Seen {
            epoch: u32::try_from(view.epoch).unwrap_or(0),
            last: view.last.unsigned_abs(),
        };
        // Two readings may overtake one another; the older one changes nothing.
        let shown = live.snapshot.load();
        if (view.epoch, view.now) < (shown.view.epoch, shown.view.now) {
            return;
        }
        live.saw(seen);
        live.overdue.store(tick.overdue, Relaxed);
        live.soon.store(tick.soon, Relaxed);
        let ranks = {
            let mut ranks = live
                .ranks
                .lock()
                .expect("nothing panics while it holds this lock");
            if let Some((front, bounds)) = tick.ranks {
                *ranks = Arc::new(Ranks::new(&view, front, bounds));
            }
            ranks.clone()
        };
        let rate = live
            .rate
            .lock()
            .expect("nothing panics while it holds this lock")
            .read(view.now, view.admitted);
        let draw = self.draw_view(live, &view, tick.seed, &shown);
        let fresh = Snapshot::new(live.id, view, ranks, rate, draw);
        super::stream::tell(live, &shown, &fresh);
        live.snapshot.store(Arc::new(fresh));
    }

    fn draw_view(
        &self,
        live: &Live,
        view: &super::scripts::View,
        seed: Option<Vec<u8>>,
        shown: &Snapshot,
    ) -> Option<DrawView> {
        let draw = live.draw.load();
        let draw = draw.as_ref().as_ref()?;
        if view.pre_queue_opens_at < 0 || view.now < view.pre_queue_opens_at {
            return None;
        }
        if let Some(known) = &shown.draw
            && known.commitment == draw.commitment()
            && (known.revealed.is_some() || seed.is_none())
        {
            return Some(known.clone());
        }
        let count = (view.draw_hi - view.draw_lo).max(0).unsigned_abs();
        Some(DrawView {
            commitment: draw.commitment(),
            revealed: seed.map(|seed| {
                let permutation = super::draw::Permutation::new(&seed, count);
                (seed, permutation)
            }),
        })
    }

    /// Opens a new epoch and begins it in this Redis, unless another instance does.
    pub(super) async fn recover(&self, live: &Arc<Live>, why: &str) -> Result<(), Error> {
        let _one = live.recovering.lock().await;
        let pool = &self.deps().pool;
        let mut row = epochs::load(pool, live.id).await?;
        let mut why = why.to_owned();
        for _ in 0..OTHERS_MAX {
            match live.room.tick(live.seen(), -1).await {
                Ok(_) => return Ok(()),
                Err(ScriptError::Lost(now)) => why = now,
                Err(error) => return Err(error.into()),
            }
            // Somebody opened an epoch that this instance has not met: it is about to begin. One that
            // has met none can only tell by the time: several start together, as a rule.
            let seen = i64::from(live.seen().epoch);
            let unmet = row
                .as_ref()
                .is_some_and(|r| i64::from(r.epoch) > seen && (seen > 0 || r.just_opened));
            if !unmet {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let shown = live.snapshot.load();
        let seen = row.as_ref().map(|r| r.epoch);
        let Some(opened) = epochs::open(pool, live.id, seen, shown.view.served).await? else {
            // Another instance was faster; its beginning shows in the next reading.
            tokio::time::sleep(Duration::from_millis(50)).await;
            return Ok(());
        };
        if opened.is_fresh() && live.draw.load().is_some() {
            // Another seed belongs to another sale.
            let draw = epochs::draw(pool, live.id).await?;
            live.draw.store(Arc::new(Some(draw)));
        }
        let farthest = row
            .take()
            .map_or(0, |r| r.last)
            .max(shown.view.last)
            .saturating_sub(opened.lost_served)
            .max(0)
            .unsigned_abs();
        let recover_ms = match opened.is_fresh() {
            true => 0,
            false => self.recover_ms(live, farthest),
        };
        if !opened.is_fresh() {
            tracing::warn!(performance.id = %live.id, epoch = opened.epoch, reason = why, recover_ms,
                "the queue's state in Redis was lost; a new epoch begins and people are put back");
        }
        let start = self.start(live, &opened, recover_ms).await?;
        // Before anybody can meet the state, and only where there is one.
        if !opened.is_fresh() && why != MISSING {
            self.forget_ended(live).await?;
        }
        live.room.init(&start).await?;
        Ok(())
    }

    /// Until everybody who polls as told has polled: who waits farthest back, and who works.
    fn recover_ms(&self, live: &Live, farthest: u64) -> u64 {
        let view = &live.snapshot.load().view;
        let settings = &live.rules.load().settings;
        let nobody_worked = view.epoch > 0 && view.working == 0;
        let working = match nobody_worked {
            true => 0,
            false => WORKING_POLL_MS.min(settings.poll_max_ms.unsigned_abs()),
        };
        settings.poll_interval_ms(farthest).max(working) + RECOVER_SLACK_MS
    }

    async fn start(
        &self,
        live: &Live,
        opened: &epochs::Epoch,
        recover_ms: u64,
    ) -> Result<Start, Error> {
        let rules = live.rules.load_full();
        let capacity = rules.facts.total_seats;
        // Of what is still sold: seats of a schedule whose sales have ended remain for nobody.
        let open = rules.facts.open_seats.unwrap_or(capacity);
        let remaining = (open - self.sold(live.id).await?).max(0);
        let mut fields = rules.fields();
        fields.push(("settings", rules.settings.version.to_string()));
        fields.push(("capacity", capacity.to_string()));
        fields.push(("remaining", remaining.to_string()));
        if let (Some(lo), Some(hi)) = (opened.cut_lo, opened.cut_hi) {
            fields.push(("cutLo", lo.to_string()));
            fields.push(("cutHi", hi.to_string()));
        }
        if let Some(lo) = opened.draw_lo {
            fields.push(("drawLo", lo.to_string()));
        }
        if rules.settings.pre_queue_opens_at.is_some() {
            let draw = epochs::draw(&self.deps().pool, live.id).await?;
            if let (Some(first), Some(count)) = (draw.first, draw.count) {
                fields.retain(|(name, _)| *name != "drawLo");
                fields.push(("drawLo", first.to_string()));
                fields.push(("drawHi", (first + count).to_string()));
                fields.push(("drawNext", (first + count + 1).to_string()));
                fields.push(("seed", hex::encode(&draw.seed)));
            }
        }
        Ok(Start {
            epoch: u32::try_from(opened.epoch).map_err(Error::unavailable)?,
            base: opened.base.unsigned_abs(),
            ceiling: opened.ceiling,
            served: opened.lost_served,
            recover_ms,
            fields,
            schedules: (rules.facts.open_schedule_ids.as_ref())
                .unwrap_or(&rules.facts.schedule_ids)
                .clone(),
        })
    }

    /// A Redis that came back with an older state may still hold places whose turn
    /// is over: Postgres knows them.
    async fn forget_ended(&self, live: &Live) -> Result<(), Error> {
        let ended = epochs::ended(&self.deps().pool, live.id).await?;
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
        };
        *lock() = fresh;
        Ok(fresh)
    }
}
