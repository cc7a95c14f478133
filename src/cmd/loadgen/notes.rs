//! What the buyers saw, noted for the audit while it happens: who was admitted
//! when, whether anyone was passed over, whether a place ever changed.

use std::collections::VecDeque;

use uuid::Uuid;

/// A waiting answer comes from a snapshot that may be this old, plus its way to us.
/// Anyone passed over for longer than this was passed over in truth.
const SNAPSHOT_AGE_US: u64 = 2_000_000;

/// One admission as its owner saw it. Times in milliseconds from the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Admission {
    pub number: u64,
    /// First told WORKING.
    pub from_ms: u32,
    /// Up to here the buyer certainly had the place: deadline as told, or the moment before giving it up.
    pub until_ms: u32,
}

/// A payment that was confirmed at Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paid {
    pub member: u32,
    pub order: Uuid,
    pub payment: Uuid,
    pub confirmed: bool,
    pub schedule: Uuid,
    pub seats: Vec<Uuid>,
}

#[derive(Debug, Default)]
pub struct Notes {
    pub admissions: Vec<Admission>,
    pub paid: Vec<Paid>,
    /// People told WAITING though a higher number had long been admitted.
    pub passed_over: Finding,
    /// People whose number changed on coming back or in a second tab.
    pub place_lost: Finding,
    /// People whose position grew.
    pub position_grew: Finding,
    /// Came back, or opened a second tab, and found the same place.
    pub place_kept: u64,
    /// (time, highest number admitted by then), ascending in both.
    highest: VecDeque<(u64, u64)>,
}

/// How often, and the first case.
#[derive(Clone, Debug, Default)]
pub struct Finding {
    pub count: u64,
    pub first: Option<String>,
}

impl Finding {
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.is_none() {
            self.first = Some(what());
        }
    }
}

impl Notes {
    /// Someone is told WORKING; returns the index of the admission noted.
    pub fn admitted(&mut self, number: u64, now_us: u64, until_ms: u32) -> u32 {
        let from_ms = (now_us / 1000) as u32;
        self.admissions.push(Admission {
            number,
            from_ms,
            until_ms,
        });
        match self.highest.back() {
            Some((_, highest)) if *highest >= number => {}
            // Ten steps a second are exact enough, and bound the memory.
            Some((at, _)) if now_us < at + 100_000 && self.highest.len() > 1 => {
                if let Some(last) = self.highest.back_mut() {
                    // Dated later than it was: it can only hide a breach of a tenth of a second.
                    *last = (now_us, number);
                }
            }
            _ => self.highest.push_back((now_us, number)),
        }
        (self.admissions.len() - 1) as u32
    }

    /// Someone is told WAITING by an answer to a request sent at `sent_us`.
    pub fn waiting(&mut self, number: u64, sent_us: u64) {
        let then = sent_us.saturating_sub(SNAPSHOT_AGE_US);
        let known = self.highest.partition_point(|(at, _)| *at <= then);
        if known > 0 {
            let (at, highest) = self.highest[known - 1];
            if highest > number {
                self.passed_over.note(|| {
                    format!("number {number} was told WAITING {:.1} s after number {highest} was admitted", (sent_us - at) as f64 / 1e6)
                });
            }
        }
    }

    pub fn same_place(&mut self, before: u64, after: u64, how: &str) {
        if before == after {
            self.place_kept += 1;
        } else {
            self.place_lost
                .note(|| format!("number {before} became {after} on {how}"));
        }
    }

    pub fn position(&mut self, number: u64, before: u32, after: u64) {
        if before != 0 && after > u64::from(before) {
            self.position_grew
                .note(|| format!("number {number}: position {before} became {after}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn someone_passed_over_is_noticed_and_a_stale_snapshot_is_not() {
        let mut notes = Notes::default();
        notes.admitted(10, SECOND, 0);
        notes.admitted(12, 2 * SECOND, 0);
        notes.waiting(11, 3 * SECOND);
        assert_eq!(
            notes.passed_over.count, 0,
            "12 was admitted only a second before"
        );
        notes.waiting(13, 60 * SECOND);
        assert_eq!(notes.passed_over.count, 0, "13 is behind everyone admitted");
        notes.waiting(11, 4 * SECOND);
        assert_eq!(notes.passed_over.count, 1);
        assert!(notes.passed_over.first.unwrap().contains("number 11"));
    }

    #[test]
    fn a_burst_of_admissions_keeps_few_steps_and_the_highest() {
        let mut notes = Notes::default();
        for number in 1..=10_000u64 {
            notes.admitted(number, SECOND + number * 10, 0);
        }
        assert!(notes.highest.len() < 10);
        notes.waiting(9_999, 10 * SECOND);
        assert_eq!(notes.passed_over.count, 1);
    }

    #[test]
    fn places_and_positions() {
        let mut notes = Notes::default();
        notes.same_place(5, 5, "coming back");
        notes.same_place(5, 9, "coming back");
        notes.position(5, 3, 3);
        notes.position(5, 0, 9);
        notes.position(5, 3, 4);
        assert_eq!(
            (
                notes.place_kept,
                notes.place_lost.count,
                notes.position_grew.count
            ),
            (1, 1, 1)
        );
    }
}
