//! Who polls so much more often than told that it is abuse.
//!
//! A waiting poll is the hottest path of all, so this costs it one hash, one load and one
//! store, and a fixed half a megabyte for any number of people: a table of slots, each with
//! the last place that fell into it and the *theoretical arrival time* of its next poll
//! (GCRA). Another place that falls into the slot takes it over, so nobody is ever limited
//! for somebody else's polls; an abuser forgets a little of the past instead. `governor`
//! keeps every key until it is swept, which a crowd of a million must not make us do.

use std::{
    hash::{BuildHasher, RandomState},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use uuid::Uuid;

/// With 17,000 polls a second (a million people, each once a minute) a slot changes hands
/// every four seconds.
const SLOTS: usize = 1 << 16;
/// What is allowed at once, in seconds of the allowed rate: a page that was reloaded in
/// anger, or ten tabs that wake up together, are no abuse.
const BURST_US: u64 = 5_000_000;
/// Low bits of a slot: the time; above them: whose.
const TIME_BITS: u32 = 48;
const TIME_MASK: u64 = (1 << TIME_BITS) - 1;

/// The allowed rate of polls of one place.
pub(super) struct Pace {
    slots: Box<[AtomicU64]>,
    /// Time between polls at the allowed rate; 0: no limit.
    interval_us: u64,
    began_ms: u64,
    /// The seed of an instance is its own: nobody can choose to share a slot.
    seed: RandomState,
}

impl Pace {
    /// At most `per_second` polls of a place, on average over a few seconds; 0: no limit.
    pub(super) fn new(per_second: u32, now_ms: u64) -> Self {
        let slots = if per_second == 0 { 0 } else { SLOTS };
        Self {
            slots: (0..slots).map(|_| AtomicU64::new(0)).collect(),
            interval_us: 1_000_000_u64.checked_div(per_second.into()).unwrap_or(0),
            began_ms: now_ms,
            seed: RandomState::new(),
        }
    }

    /// Counts a poll of the place of `user` in `queue`.
    ///
    /// # Errors
    /// Abuse: after how many seconds polls are answered again.
    pub(super) fn count(&self, queue: Uuid, user: Uuid, now_ms: u64) -> Result<(), u64> {
        if self.interval_us == 0 {
            return Ok(());
        }
        let hash = self.seed.hash_one((queue, user));
        let whose = hash & !TIME_MASK;
        let slot = &self.slots[usize::try_from(hash).unwrap_or(usize::MAX) % SLOTS];
        let now = (now_ms.saturating_sub(self.began_ms) * 1_000) & TIME_MASK;
        let kept = slot.load(Relaxed);
        // Another place's, or later than any count makes it (the clock was set back): a fresh one.
        let due = Some(kept & TIME_MASK)
            .filter(|&due| kept & !TIME_MASK == whose && due <= now + BURST_US + self.interval_us)
            .map_or(now, |due| due.max(now));
        let early = due - now;
        if early > BURST_US {
            return Err((early - BURST_US).div_ceil(1_000_000).max(1));
        }
        // Two polls at once may count as one; an abuser gains nothing worth a locked bus.
        slot.store(whose | ((due + self.interval_us) & TIME_MASK), Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_790_000_000_000;

    #[test]
    fn a_burst_is_answered_and_then_the_allowed_rate() {
        let pace = Pace::new(200, NOW);
        let (queue, user) = (Uuid::now_v7(), Uuid::now_v7());
        let at = |ms: u64| pace.count(queue, user, NOW + ms);
        let burst = (0..5_000).take_while(|_| at(0).is_ok()).count();
        assert_eq!(burst, 1_001, "five seconds' worth");
        assert_eq!(at(0), Err(1));
        let answered = (0..10_000).filter(|&ms| at(ms).is_ok()).count();
        assert!((1_990..=2_010).contains(&answered), "{answered}");
        assert!(at(20_000).is_ok(), "and it is forgotten");
    }

    #[test]
    fn nobody_is_limited_for_others() {
        let pace = Pace::new(1, NOW);
        let queue = Uuid::now_v7();
        // A hundred thousand people, more than there are slots, poll once a second as told.
        let people: Vec<Uuid> = (0..100_000).map(|_| Uuid::now_v7()).collect();
        let abuser = Uuid::now_v7();
        for second in 0..4 {
            for user in &people {
                let now = NOW + second * 1_000;
                assert_eq!(pace.count(queue, *user, now), Ok(()));
                let _limited_or_not = pace.count(queue, abuser, now);
            }
        }
    }

    #[test]
    fn a_clock_set_back_limits_nobody_and_zero_is_no_limit() {
        let pace = Pace::new(1, NOW);
        let (queue, user) = (Uuid::now_v7(), Uuid::now_v7());
        while pace.count(queue, user, NOW + 3_600_000).is_ok() {}
        assert_eq!(pace.count(queue, user, NOW + 60_000), Ok(()));
        let open = Pace::new(0, NOW);
        assert!((0..100_000).all(|_| open.count(queue, user, NOW).is_ok()));
    }
}
