//! The generator: one thread of its own, so that neither drawing nor auditing
//! delays a request, and no lock is taken for one.

pub mod core;
mod follow;
mod slots;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use tokio::sync::{Mutex, watch};

use self::core::{API, Core, People, STRIPE};
use self::slots::{Line, Shared};
use super::client::Dialer;
use super::live::Live;
use super::notes::Notes;
use super::plan::{Load, Target};
use super::requests::{Endpoint, Requests};
use super::stats::Stats;

/// What the outside asks of a running generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Control {
    Run,
    /// Ctrl-C: end well, soon.
    Stop,
    /// Ctrl-C again: report what there is, now.
    Abort,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everyone was done, or the time was up.
    Complete,
    Interrupted,
    /// The target answered nothing for too long.
    GaveUp,
}

pub struct Finished {
    pub stats: Stats,
    pub people: People,
    pub notes: Notes,
    pub ending: Ending,
    /// The load itself, without the time that leaving took.
    pub measured: Duration,
    pub elapsed: Duration,
}

/// After Ctrl-C, buyers have this long to give up their places.
const STOP_WITHIN: Duration = Duration::from_secs(8);
/// Buyers who have paid may wait this long for their order, even where nobody leaves.
const SETTLE_WITHIN: Duration = Duration::from_secs(15);
const STEP: Duration = Duration::from_secs(1);

pub struct Setup {
    pub load: Arc<Load>,
    pub target: Arc<Target>,
    pub requests: Arc<Requests>,
    pub live: Arc<ArcSwap<Live>>,
    pub control: watch::Receiver<Control>,
    /// The server's clock minus ours, in milliseconds.
    pub clock_offset_ms: i64,
}

/// Runs the load on the calling thread until it has ended.
pub fn run(setup: Setup) -> anyhow::Result<Finished> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(tokio::runtime::LocalOptions::default())
        .context("cannot start the generator")?;
    let finished = runtime.block_on(async move {
        let started_ms = chrono::Utc::now().timestamp_millis() + setup.clock_offset_ms;
        let core = Core::new(
            setup.load.clone(),
            setup.target.clone(),
            setup.requests.clone(),
            started_ms,
        );
        Engine::new(Rc::new(RefCell::new(core)), &setup)
            .drive(setup)
            .await
    });
    // Connections still open are dropped with the runtime, without waiting for them.
    runtime.shutdown_background();
    Ok(finished)
}

struct Engine {
    core: Shared,
    lines: [Option<Line>; 2],
    slots: u32,
    step_ends: Instant,
    ends_at: Option<Instant>,
    measured: Option<Duration>,
    ending: Ending,
}

impl Engine {
    fn new(core: Shared, setup: &Setup) -> Self {
        let load = &setup.load;
        let line = |endpoint: &Endpoint| {
            let shared = if load.http2 { load.connections } else { 0 };
            Line {
                dialer: Dialer::new(
                    endpoint.base.clone(),
                    load.http2,
                    load.timeout.min(Duration::from_secs(5)),
                ),
                timeout: load.timeout,
                shared: Rc::new((0..shared).map(|_| Mutex::new(None)).collect()),
            }
        };
        let lines = [
            Some(line(&setup.requests.api)),
            setup.requests.stripe.as_ref().map(line),
        ];
        let start = core.borrow().start;
        // Polls by rate last for the duration from when they begin; `Core` ends them.
        let ends_at = load
            .duration
            .filter(|_| load.polls.is_none())
            .map(|duration| start + duration);
        Self {
            core,
            lines,
            slots: 0,
            step_ends: start + STEP,
            ends_at,
            measured: None,
            ending: Ending::Complete,
        }
    }

    async fn drive(mut self, mut setup: Setup) -> Finished {
        let wake = self.core.borrow().wake.clone();
        let mut deadline: Option<Instant> = None;
        loop {
            let next_us = self.core.borrow_mut().pump();
            self.start_slots();
            let now = Instant::now();
            self.step(now, &setup);
            let control = *setup.control.borrow_and_update();
            deadline = self.phase(now, control, deadline, &setup.load);
            if deadline.is_some_and(|deadline| now >= deadline || self.core.borrow().quiet()) {
                break;
            }
            let start = self.core.borrow().start;
            let due = start + Duration::from_micros(next_us.min(u64::MAX / 4));
            if due <= now {
                // More is due than one turn's worth: let connections have theirs.
                tokio::task::yield_now().await;
                continue;
            }
            let until = [Some(due), Some(self.step_ends), self.ends_at, deadline]
                .into_iter()
                .flatten()
                .min();
            tokio::select! {
                () = tokio::time::sleep_until(until.unwrap_or(self.step_ends).max(now).into()) => {}
                () = wake.notified() => {}
                _ = setup.control.changed() => {}
            }
        }
        self.finish(&setup)
    }

    /// Starts the connections that the last turn asked for.
    fn start_slots(&mut self) {
        for pool in [API, STRIPE] {
            let wanted = std::mem::take(&mut self.core.borrow_mut().pools[pool].to_start);
            // Without a Stripe sandbox the request fails where it is built; any line will do.
            let Some(line) = self.lines[pool].as_ref().or(self.lines[API].as_ref()) else {
                continue;
            };
            for _ in 0..wanted {
                tokio::task::spawn_local(slots::serve(
                    self.core.clone(),
                    pool,
                    self.slots,
                    line.clone(),
                ));
                self.slots += 1;
            }
        }
    }

    fn step(&mut self, now: Instant, setup: &Setup) {
        if now < self.step_ends {
            return;
        }
        // After a pause of the whole machine, the steps missed are empty, not squeezed together.
        while self.step_ends <= now {
            self.core.borrow_mut().stats.tick();
            self.step_ends += STEP;
        }
        setup.live.store(Arc::new(Live::of(&self.core.borrow())));
    }

    /// Running, then winding down: the deadline is set once the load is over.
    fn phase(
        &mut self,
        now: Instant,
        control: Control,
        deadline: Option<Instant>,
        load: &Load,
    ) -> Option<Instant> {
        if control == Control::Abort {
            self.ending = Ending::Interrupted;
            return Some(now);
        }
        if self.gave_up(now, load) {
            self.ending = Ending::GaveUp;
            return Some(now);
        }
        let soon = now + STOP_WITHIN.min(load.leave_within.max(Duration::from_secs(1)));
        match deadline {
            Some(deadline) if control == Control::Stop && self.ending == Ending::Complete => {
                self.ending = Ending::Interrupted;
                return Some(deadline.min(soon));
            }
            Some(_) => return deadline,
            None => {}
        }
        let stop = control == Control::Stop;
        let over = {
            let core = self.core.borrow();
            let polled = core.polls_over()
                && (core.stats.in_flight == 0 && core.pools[API].ready.is_empty());
            polled || core.finished() || self.ends_at.is_some_and(|ends| now >= ends)
        };
        if !stop && !over {
            return None;
        }
        let start = self.core.borrow().start;
        self.measured = Some(now - start);
        self.core.borrow_mut().wind_down();
        if stop {
            self.ending = Ending::Interrupted;
            return Some(soon);
        }
        Some(now + load.leave_within.max(SETTLE_WITHIN))
    }

    fn gave_up(&self, now: Instant, load: &Load) -> bool {
        let core = self.core.borrow();
        let since = core
            .stats
            .silent_since_us
            .map(|us| core.start + Duration::from_micros(us));
        since.is_some_and(|since| now.saturating_duration_since(since) > load.give_up_after)
    }

    fn finish(self, setup: &Setup) -> Finished {
        let mut core = self.core.borrow_mut();
        core.cut_off();
        core.stats.tick();
        let elapsed = core.start.elapsed();
        setup.live.store(Arc::new(Live::of(&core)));
        Finished {
            stats: std::mem::take(&mut core.stats),
            people: std::mem::take(&mut core.people),
            notes: std::mem::take(&mut core.notes),
            ending: self.ending,
            measured: self.measured.unwrap_or(elapsed),
            elapsed,
        }
    }
}
