//! What buyers were told, and what may follow it.

use std::collections::{BTreeMap, BTreeSet};

/// An order that was answered with 2xx, and all that was said about it.
#[derive(Clone, Debug)]
pub struct Told {
    pub order: String,
    pub seats: BTreeSet<String>,
    /// The newest status told.
    pub status: String,
    pub payment: Option<String>,
    /// Stripe told the buyer that the money was taken.
    pub captured: bool,
    /// The buyer asked for the end of it, heard or not.
    pub gave_up: bool,
}

impl Told {
    /// Whether `next` may follow what was told.
    pub fn allows(&self, next: &str) -> bool {
        match (self.status.as_str(), next) {
            ("PENDING_PAYMENT", "CANCELLED" | "REFUNDED") => self.gave_up,
            ("PENDING_PAYMENT", "PENDING_PAYMENT" | "CONFIRMED" | "EXPIRED") => true,
            // Paid too late: the same seats once more.
            ("EXPIRED", "CONFIRMED") => self.payment.is_some(),
            ("CONFIRMED", "REFUNDED") => self.gave_up,
            (now, next) => now == next,
        }
    }
}

/// How a journey ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ending {
    Confirmed,
    Refunded,
    Cancelled,
    Expired,
    /// Left without looking back, order or not.
    WalkedAway,
    /// No seat to be had.
    SoldOut,
    /// The turn was over before it was used.
    TurnLost,
    /// Out of patience.
    GaveUpWaiting,
}

/// What came of one journey.
#[derive(Debug, Default)]
pub struct Record {
    pub orders: Vec<Told>,
    pub breaches: Vec<String>,
    pub faults: BTreeMap<&'static str, u32>,
    /// Answers that did not come, or said "later".
    pub away: u32,
    /// What was heard last by who ran out of patience.
    pub waited_for: Option<String>,
}

#[test]
fn what_was_told_binds() {
    let told = |status: &str, gave_up: bool| Told {
        order: String::new(),
        seats: BTreeSet::new(),
        status: status.to_owned(),
        payment: None,
        captured: false,
        gave_up,
    };
    assert!(told("PENDING_PAYMENT", false).allows("CONFIRMED"));
    assert!(told("CONFIRMED", true).allows("REFUNDED"));
    for (was, next) in [
        ("CONFIRMED", "EXPIRED"),
        ("CONFIRMED", "REFUNDED"),
        ("CONFIRMED", "PENDING_PAYMENT"),
        ("CONFIRMED", "CANCELLED"),
        ("EXPIRED", "CONFIRMED"),
        ("CANCELLED", "CONFIRMED"),
        ("REFUNDED", "CONFIRMED"),
        ("PENDING_PAYMENT", ""),
    ] {
        assert!(!told(was, false).allows(next), "{was} became {next}");
    }
}
