//! How long a caller of a script waits, by Redis's own clock.
//!
//! A stalled Redis runs what it was sent when it wakes, long after every caller has given up: a
//! check-in that nobody hears of would begin a turn that nobody uses.

use std::{
    sync::atomic::{AtomicI64, Ordering::Relaxed},
    time::{Duration, Instant},
};

/// An answer that took longer measures the clock badly.
const QUICK_MS: i64 = 200;
/// A measurement that is older gives way to a bad one.
const GOOD_FOR_MS: i64 = 10_000;
const NONE: i64 = i64::MIN;

/// What Redis's clock shows, reckoned from its answers.
#[derive(Debug)]
pub struct Patience {
    began: Instant,
    waits: Duration,
    /// Redis's clock less this process's, ms; the latest that it can be.
    offset: AtomicI64,
    measured: AtomicI64,
}

impl Patience {
    /// Callers wait for `waits`.
    pub fn new(waits: Duration) -> Self {
        Self {
            began: Instant::now(),
            waits,
            offset: AtomicI64::new(NONE),
            measured: AtomicI64::new(NONE),
        }
    }

    /// This process's clock, to be given to [`Patience::measure`].
    pub fn now(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// A script that was sent at `sent` found Redis's clock at `wall`.
    pub fn measure(&self, sent: i64, wall: i64) {
        let now = self.now();
        let measured = self.measured.load(Relaxed);
        if now - sent <= QUICK_MS || measured == NONE || now - measured > GOOD_FOR_MS {
            self.offset.store(wall - sent, Relaxed);
            self.measured.store(now, Relaxed);
        }
    }

    /// Until when, by Redis's clock, the caller of a script that is sent now waits; 0: not known.
    pub fn until(&self) -> i64 {
        let waits = i64::try_from(self.waits.as_millis()).unwrap_or(0);
        match self.offset.load(Relaxed) {
            NONE => 0,
            offset => self.now() + offset + waits,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_waits_as_long_by_redis_s_clock() {
        let patience = Patience::new(Duration::from_secs(2));
        assert_eq!(patience.until(), 0, "nothing was measured");
        let sent = patience.now();
        patience.measure(sent, 1_000_000);
        let until = patience.until();
        assert!((1_002_000..1_002_500).contains(&until), "{until}");
        // A slow answer does not spoil what a quick one measured; a quick one follows a step at once.
        patience.measure(sent - 5_000, 1_000_000);
        assert!(patience.until() < 1_003_000);
        patience.measure(patience.now(), 9_000_000);
        assert!(patience.until() >= 9_002_000);
    }
}
