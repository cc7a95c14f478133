//! How far a partition is done: messages end in any order, offsets are stored in theirs.

use std::collections::VecDeque;

/// The messages of one partition that were taken and not yet stored as done.
#[derive(Debug, Default)]
pub(super) struct Progress {
    taken: VecDeque<(i64, bool)>,
    last: Option<i64>,
}

impl Progress {
    /// Notes a message; false when it was taken before (then it is under way already).
    pub(super) fn take(&mut self, offset: i64) -> bool {
        if self.last.is_some_and(|last| offset <= last) {
            return false;
        }
        self.last = Some(offset);
        self.taken.push_back((offset, false));
        true
    }

    /// Whether `offset` is of another log than the messages taken so far: below the last of them,
    /// and none of those under way.
    pub(super) fn is_behind(&self, offset: i64) -> bool {
        let under_way = self
            .taken
            .binary_search_by_key(&offset, |(offset, _)| *offset)
            .is_ok();
        self.last.is_some_and(|last| offset < last) && !under_way
    }

    /// Marks one as done. The offset to go on from after a restart, when it has moved: every
    /// message below it is done.
    pub(super) fn done(&mut self, offset: i64) -> Option<i64> {
        if let Ok(at) = self
            .taken
            .binary_search_by_key(&offset, |(offset, _)| *offset)
        {
            self.taken[at].1 = true;
        }
        let mut next = None;
        while let Some((offset, true)) = self.taken.front() {
            next = Some(offset + 1);
            self.taken.pop_front();
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_message_under_way_holds_the_offset_back() {
        let mut progress = Progress::default();
        for offset in [5, 6, 9] {
            assert!(progress.take(offset));
        }
        assert_eq!(progress.done(6), None);
        assert_eq!(progress.done(9), None);
        assert_eq!(progress.done(5), Some(10));
        assert!(!progress.take(9), "taken twice");
        assert!(!progress.is_behind(9) && !progress.is_behind(10));
        assert!(progress.is_behind(0), "of a new log");
    }

    proptest! {
        /// Whatever the order of completion, a restart from the stored offset misses nothing.
        #[test]
        fn nothing_undone_is_ever_below_the_stored_offset(
            order in Just((0..40_i64).collect::<Vec<_>>()).prop_shuffle(),
        ) {
            let mut progress = Progress::default();
            (0..40).for_each(|offset| { progress.take(offset); });
            let (mut stored, mut done) = (0, [false; 40]);
            for offset in order {
                done[usize::try_from(offset).unwrap()] = true;
                if let Some(next) = progress.done(offset) {
                    prop_assert!(next > stored);
                    stored = next;
                }
                let below = usize::try_from(stored).unwrap();
                prop_assert!(done[..below].iter().all(|done| *done));
            }
            prop_assert_eq!(stored, 40);
        }
    }
}
