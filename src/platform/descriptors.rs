//! File descriptors: how many there may be, and some that are held back for operations.
//!
//! Every connection takes one. A process without any left cannot even say so: probes and metrics
//! are answered over connections too. So the soft limit is raised to the hard one, connections of
//! clients stay below it, and the operations listener holds spare descriptors that it gives up
//! for a connection of its own when the system has no other left.

use std::{
    fs::File,
    sync::{Mutex, PoisonError},
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Held back for the operations listener.
const SPARE: usize = 16;

/// Raises the soft limit on open files to the hard one; the limit from now on.
pub fn raise() -> usize {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "cannot read the limit on open files; assuming 1024");
            return 1024;
        }
    };
    let limit = if soft < hard && setrlimit(Resource::RLIMIT_NOFILE, hard, hard).is_ok() {
        hard
    } else {
        soft
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

/// How many of `wanted` connections `limit` descriptors allow, where each takes `each` of them
/// and `reserve` are needed otherwise.
pub fn clamp(wanted: usize, limit: usize, reserve: usize, each: usize) -> usize {
    // A tiny limit is shared: neither side can do without.
    let reserve = reserve.min(limit / 2);
    let left = limit - reserve;
    let fit = (left / each).max(1);
    wanted.min(fit)
}

/// Warns that only `max` connections fit where somebody expects `wanted`.
pub fn say_few(wanted: usize, max: usize, limit: usize, reserve: usize) {
    tracing::warn!(
        connections.max = max,
        connections.wanted = wanted,
        files.limit = limit,
        "at most {max} connections fit, and not {wanted} (--max-connections): the limit on open files is {limit}, and {reserve} are kept for stores and operations; raise it (ulimit -n, LimitNOFILE=)",
    );
}

/// Descriptors held back for a listener that must always answer.
pub struct Spare(Mutex<Vec<File>>);

impl Spare {
    /// Holds as many as there are.
    pub fn hold() -> Self {
        let spare = Self(Mutex::default());
        spare.refill();
        spare
    }

    /// Gives one up, for whoever opens something next; false when none is left.
    pub fn give_up(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .is_some()
    }

    /// Holds as many as before again, or as there are.
    pub fn refill(&self) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while held.len() < SPARE {
            let Ok(file) = File::open("/dev/null") else {
                return;
            };
            held.push(file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_the_rest() {
        assert_eq!(clamp(100, 10_000, 500, 1), 100);
        assert_eq!(clamp(100_000, 10_000, 500, 1), 9_500);
        assert_eq!(clamp(100_000, 10_000, 500, 2), 4_750);
        assert_eq!(clamp(100_000, 256, 500, 1), 128);
    }

    #[test]
    fn a_spare_one_is_given_up_and_held_again() {
        let spare = Spare::hold();
        assert_eq!((0..=SPARE).filter(|_| spare.give_up()).count(), SPARE);
        spare.refill();
        assert!(spare.give_up());
    }
}
