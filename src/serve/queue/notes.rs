//! What goes to Postgres beside the traffic: ended turns, how far a queue is,
//! the next block of numbers, the draw.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use super::{
    State, epochs,
    epochs::Progress,
    error::Error,
    live::{Live, now_ms},
    scripts::Batch,
};
use crate::platform::tasks;

/// While a queue is asked for, its newest reading is written at least this often: other instances and
/// the next process measure a loss by it.
const READ_EVERY_MS: i64 = 1_500;
/// An idle queue's row says at least this often that it has people in it.
const ALIVE_EVERY_MS: u64 = 600_000;
/// One step of the draw writes this many numbers: a millisecond or two of Redis.
const DRAW_STEP: u64 = 200;

impl State {
    /// Everything that is due for `live`, one round at a time.
    pub(super) fn note_soon(&self, live: &Arc<Live>) {
        let view = &live.snapshot.load().view;
        let due = view.unnoted > 0
            || view.ceiling - view.last < epochs::BLOCK / 2
            || view.orders == 1
            || (view.draw_hi >= 0 && view.draw_next <= view.draw_hi);
        if !due || !live.noting.begin() {
            return;
        }
        let (state, live) = (self.clone(), live.clone());
        tokio::spawn(async move {
            loop {
                live.noting.round();
                let noted = tasks::job("queue.notes", state.note(&live)).await;
                if let Ok(Err(error)) = noted {
                    tracing::warn!(performance.id = %live.id, %error, "notes wait for the next round");
                }
                if !live.noting.more() {
                    return;
                }
            }
        });
    }

    async fn note(&self, live: &Arc<Live>) -> Result<(), Error> {
        let shown = live.snapshot.load_full();
        let view = &shown.view;
        if view.ceiling - view.last < epochs::BLOCK / 2 {
            self.raise_ceiling(live, view.ceiling).await?;
        }
        if view.unnoted > 0 {
            self.note_ended(live).await?;
        }
        if view.draw_hi >= 0 && view.draw_next <= view.draw_hi {
            self.draw(live).await?;
        }
        if view.orders == 1 {
            self.reserve_orders(live).await?;
            self.tick_soon(live);
        }
        Ok(())
    }

    /// Reserves the next block of numbers and lets them be issued.
    pub(super) async fn raise_ceiling(&self, live: &Live, from: i64) -> Result<(), Error> {
        let epoch = i32::try_from(live.seen().epoch).unwrap_or(i32::MAX);
        let raised = epochs::reserve(&self.deps().pool, live.id, epoch, from).await?;
        if let Some(ceiling) = raised {
            live.room.raise(live.seen(), ceiling).await?;
        }
        Ok(())
    }

    /// Turns that ended are in Postgres before their end is told.
    pub(super) async fn note_ended(&self, live: &Live) -> Result<(), Error> {
        loop {
            let (ended, members) = live.room.unnoted().await?;
            if members.is_empty() {
                return Ok(());
            }
            epochs::note_ended(&self.deps().pool, live.id, &ended).await?;
            live.room.noted(&members).await?;
        }
    }

    /// Writes how far the queues of this instance have come, where that has changed and no other instance
    /// has written it, all in one commit.
    pub(super) async fn checkpoint(&self) {
        let due: Vec<(Arc<Live>, Progress)> = self
            .lives()
            .into_iter()
            .filter_map(|live| progress_due(&live).map(|progress| (live, progress)))
            .collect();
        if due.is_empty() {
            return;
        }
        let progress: Vec<Progress> = due.iter().map(|(_, progress)| *progress).collect();
        let written = match epochs::checkpoint(&self.deps().pool, &progress).await {
            Ok(written) => written,
            Err(error) => {
                tracing::warn!(%error, queues = due.len(), "failed to write how far queues have come; trying again");
                return;
            }
        };
        for (live, progress) in due {
            if !written.contains(&live.id) {
                // The epoch is over: what is in force now is read before anything else is done here.
                tracing::warn!(performance.id = %live.id, epoch = progress.epoch, "another epoch of the queue is in force");
                self.meet_epoch(&live).await;
                continue;
            }
            *live
                .checkpoint
                .lock()
                .expect("nothing panics while it holds this lock") =
                Some((progress, live.uptime_ms()));
        }
    }

    /// Reads which epoch is in force: scripts on a Redis with an older one do nothing from here on.
    async fn meet_epoch(&self, live: &Arc<Live>) {
        match epochs::load(&self.deps().pool, live.id).await {
            Ok(Some(row)) => {
                let epoch = u32::try_from(row.epoch).unwrap_or(0);
                live.saw(super::scripts::Seen { epoch, last: 0 });
                self.tick_soon(live);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(performance.id = %live.id, %error, "failed to read the epoch in force");
            }
        }
    }

    /// What the draw goes over is in Postgres before anybody is told an index or, behind it, a
    /// number: after a loss of Redis it is the same draw. False: that epoch is over.
    pub(super) async fn note_draw(&self, live: &Live, batch: &Batch) -> Result<bool, Error> {
        let Some(bounds) = batch.draw else {
            return Ok(true);
        };
        let known = Some((batch.seen.epoch, bounds));
        let lock = || {
            live.draw_noted
                .lock()
                .expect("nothing panics while it holds this lock")
        };
        if *lock() == known {
            return Ok(true);
        }
        let pool = &self.deps().pool;
        let epoch = i32::try_from(batch.seen.epoch).map_err(Error::unavailable)?;
        let noted = match bounds.upto {
            None => epochs::note_draw(pool, live.id, epoch, bounds.above).await?,
            Some(upto) => {
                epochs::draw(pool, live.id).await?;
                let count = upto - bounds.above;
                epochs::reveal(pool, live.id, epoch, bounds.above, count).await?
            }
        };
        if noted {
            *lock() = known;
        }
        Ok(noted)
    }

    /// The opening has frozen the registrations: the seed is published, and the
    /// numbers are written, lowest first. Any number of instances may do so at once.
    async fn draw(&self, live: &Arc<Live>) -> Result<(), Error> {
        let shown = live.snapshot.load_full();
        let (lo, hi) = (
            shown.view.draw_lo.max(0).unsigned_abs(),
            shown.view.draw_hi.max(0).unsigned_abs(),
        );
        let pool = &self.deps().pool;
        let draw = epochs::draw(pool, live.id).await?;
        let epoch = i32::try_from(shown.view.epoch).map_err(Error::unavailable)?;
        let (first, count) = (shown.view.draw_lo, shown.view.draw_hi - shown.view.draw_lo);
        if !epochs::reveal(pool, live.id, epoch, first, count).await? {
            return Err(Error::unavailable(
                "the draw belongs to an epoch that is over",
            ));
        }
        let permutation = super::draw::Permutation::new(&draw.seed, hi - lo);
        let mut next = shown.view.draw_next.max(0).unsigned_abs();
        while next <= hi {
            let end = (next + DRAW_STEP - 1).min(hi);
            let indexes: Vec<u64> = (next..=end)
                .map(|number| lo + 1 + permutation.invert(number - lo - 1))
                .collect();
            next = live
                .room
                .draw(live.seen(), &draw.seed, next, &indexes)
                .await?;
        }
        self.tick_once(live).await
    }
}

/// What is to be written of `live`; None: Postgres has it, or as good as.
fn progress_due(live: &Live) -> Option<Progress> {
    let shown = live.snapshot.load_full();
    let view = &shown.view;
    if view.epoch <= 0 || live.is_cut_off() {
        return None;
    }
    let progress = Progress {
        performance: live.id,
        epoch: i32::try_from(view.epoch).ok()?,
        served: view.served,
        last: view.last,
        clock: view.now,
        served_then: view.served_then,
        cut: (view.cut_lo >= 0).then_some((view.cut_lo, view.cut_hi)),
        draw_lo: (view.draw_lo >= 0).then_some(view.draw_lo),
    };
    let known = *live
        .checkpoint
        .lock()
        .expect("nothing panics while it holds this lock");
    let Some((before, at)) = known else {
        return Some(progress);
    };
    let same = Progress {
        clock: before.clock,
        served_then: before.served_then,
        ..progress
    } == before;
    let busy = view.waiting + view.working + view.registered > 0;
    let newest = before.clock.max(live.elsewhere.load(Relaxed));
    let unread = live.wanted(now_ms()) && busy && view.now - newest >= READ_EVERY_MS;
    let silent = busy && live.uptime_ms().saturating_sub(at) >= ALIVE_EVERY_MS;
    (!same || unread || silent).then_some(progress)
}
