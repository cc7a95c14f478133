//! Readings of the state. What happens when it is not what it was: [`super::takeover`].

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    State,
    error::Error,
    live::{Live, now_ms},
    scripts::{ScriptError, Seen, Tick, View},
    snapshot::{DrawView, Ranks, Snapshot},
};
use crate::platform::overview::Phase;

/// The age of a snapshot at most, while it is asked for.
const WANTED_MS: u64 = 250;
/// The safety net behind lost notifications, where somebody could be admitted.
const SWEEP_MS: u64 = 1_000;
/// A queue in which nothing can happen is read this often.
const IDLE_MS: u64 = 12_000;
/// What a tick promises for the next one of a queue that is asked for.
const BEAT_MS: u64 = 1_000;
/// A snapshot that is older, and that nobody kept fresh, is refreshed before it is shown.
const STALE_MS: u64 = 1_000;
/// That long at most is waited for it; then the old one is shown.
const REFRESH_MAX: Duration = Duration::from_millis(1_000);

impl State {
    /// Sweeps, promotes and reads; a loss is recovered from first.
    pub(super) async fn tick_once(&self, live: &Arc<Live>) -> Result<(), Error> {
        for _ in 0..64 {
            let ranks_at = self.ranks_wanted(live);
            let wanted = live.wanted(now_ms());
            let beat_ms = match wanted {
                true => BEAT_MS,
                false => IDLE_MS,
            };
            let tick = match live.room.tick(live.seen(), ranks_at, beat_ms).await {
                Ok(tick) => tick,
                Err(ScriptError::Lost(why)) => {
                    self.recover(live, &why).await?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let more = tick.more;
            self.publish(live, tick, wanted);
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// The snapshot of a queue that nobody asked for is old: the first to ask waits for a new one, as long as
    /// Redis takes a moment to answer.
    pub(super) async fn freshen(&self, live: &Arc<Live>) {
        if live.age_ms() < STALE_MS {
            return;
        }
        let refreshed = async {
            let _one = live.refreshing.lock().await;
            // Another request may have refreshed it, or have found that Redis does not answer.
            if live.age_ms() < STALE_MS || self.0.writable.problem().is_some() {
                return Ok(());
            }
            self.tick_once(live).await
        };
        match tokio::time::timeout(REFRESH_MAX, refreshed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(performance.id = %live.id, %error, "an old snapshot is shown");
            }
            Err(_) => {
                tracing::debug!(performance.id = %live.id, "an old snapshot is shown: Redis is slow");
            }
        }
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

    fn publish(&self, live: &Live, tick: Tick, wanted: bool) {
        let view = tick.view;
        let seen = Seen {
            epoch: u32::try_from(view.epoch).unwrap_or(0),
            last: view.last.unsigned_abs(),
        };
        // Two readings may overtake one another; the older one changes nothing. The clock of Redis may
        // be set back, so that it tells nothing of the order.
        let shown = live.snapshot.load();
        live.read_now();
        live.cut_off.store(false, Relaxed);
        // As promised with the tick.
        live.schedule(next_tick(&view, tick.next, wanted));
        if (view.epoch, view.seq) < (shown.view.epoch, shown.view.seq) {
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
        let fresh = Snapshot::new(live.id, view, tick.kept, ranks, rate, draw);
        super::stream::tell(live, &shown, &fresh);
        live.snapshot.store(Arc::new(fresh));
    }

    fn draw_view(
        &self,
        live: &Live,
        view: &View,
        seed: Option<Vec<u8>>,
        shown: &Snapshot,
    ) -> Option<DrawView> {
        let draw = live.draw.load();
        let draw = draw.as_ref().as_ref()?;
        let opened = view.pre_queue_opens_at >= 0 && view.wall >= view.pre_queue_opens_at;
        if !opened && view.draw_lo < 0 {
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
}

/// In how many milliseconds a queue is to be read again.
fn next_tick(view: &View, next: Option<i64>, wanted: bool) -> u64 {
    if wanted {
        return WANTED_MS;
    }
    let admits = matches!(
        super::snapshot::phase(view),
        Phase::Open | Phase::Draining | Phase::Recovering
    );
    let writes = view.unnoted > 0 || view.orders == 1;
    let draws = view.draw_hi >= 0 && view.draw_next <= view.draw_hi;
    let room = view.paused != 1 && view.working < view.max_working;
    if writes || draws || (admits && view.waiting > 0 && room) {
        return SWEEP_MS;
    }
    let ahead = |at: i64, now: i64| (at >= now).then(|| (at - now).unsigned_abs() + 5);
    let times = [view.opens_at, view.closes_at, view.pre_queue_opens_at];
    times
        .into_iter()
        .filter_map(|at| ahead(at, view.wall))
        .chain(next.map(|at| (at - view.now).max(0).unsigned_abs() + 5))
        .fold(IDLE_MS, u64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_rest() -> View {
        View {
            epoch: 1,
            now: 1_000_000,
            wall: 1_000_000,
            waiting: 5,
            working: 2,
            max_working: 2,
            remaining: 10,
            opens_at: 1,
            closes_at: -1,
            pre_queue_opens_at: -1,
            draw_lo: -1,
            draw_hi: -1,
            draw_next: -1,
            ..View::default()
        }
    }

    #[test]
    fn a_queue_is_read_when_something_can_happen_in_it() {
        let view = at_rest();
        assert_eq!(next_tick(&view, None, true), WANTED_MS);
        assert_eq!(next_tick(&view, None, false), IDLE_MS, "nobody has room");
        assert_eq!(
            next_tick(&view, Some(1_003_000), false),
            3_005,
            "a turn ends"
        );
        assert_eq!(
            next_tick(&view, Some(999_000), false),
            5,
            "a turn has ended"
        );
        let opens = View {
            opens_at: 1_002_000,
            ..at_rest()
        };
        assert_eq!(next_tick(&opens, None, false), 2_005, "booking opens");
        let room = View {
            working: 1,
            ..at_rest()
        };
        assert_eq!(next_tick(&room, None, false), SWEEP_MS, "somebody comes in");
        let paused = View { paused: 1, ..room };
        assert_eq!(next_tick(&paused, None, false), IDLE_MS);
        let unnoted = View {
            unnoted: 1,
            ..at_rest()
        };
        assert_eq!(next_tick(&unnoted, None, false), SWEEP_MS);
    }
}
