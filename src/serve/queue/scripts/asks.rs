//! What the queue's scripts are asked.

use uuid::Uuid;

use crate::platform::place::Turn;

/// A place to put back.
#[derive(Clone, Copy, Debug)]
pub struct Return {
    /// Whose.
    pub user: Uuid,
    /// Its number or index.
    pub number: u64,
    /// The turn that it had, its deadline only while that is ahead; none when it waited.
    pub turn: Turn,
    /// Whether it may come back.
    pub may: May,
    /// An index of the pre-queue.
    pub registered: bool,
}

/// Whether a place may come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum May {
    /// Its turn may have come and gone meanwhile: only if it stands there.
    IfThere,
    /// Its turn cannot have ended unnoticed.
    Yes,
    /// Postgres knows that its turn has ended.
    Never,
}

impl May {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::IfThere => 0,
            Self::Yes => 1,
            Self::Never => 2,
        }
    }
}

/// Why places end by a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Their order was confirmed.
    Completed,
    /// Given up.
    Left,
}

impl End {
    pub(super) fn letter(self) -> &'static str {
        match self {
            Self::Completed => "D",
            Self::Left => "G",
        }
    }
}

/// What is known of a state that may have survived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Survival {
    /// The newest reading that anybody has seen, by the script's clock.
    pub clock: i64,
    /// The highest number that anybody has seen.
    pub last: i64,
}

/// An unpaid order, and the turn that it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unpaid {
    /// Whose.
    pub user: Uuid,
    /// The number of the place that it was made from.
    pub number: u64,
    /// The order.
    pub order: Uuid,
    /// Until when it keeps the turn, ms.
    pub keeps_ms: u64,
}

/// What an epoch begins with.
#[derive(Clone, Debug)]
pub struct Start {
    /// Which.
    pub epoch: u32,
    /// Numbers start above it.
    pub base: u64,
    /// And end here, for now.
    pub ceiling: i64,
    /// Served before the loss.
    pub served: i64,
    /// Served a poll interval before that.
    pub served_then: i64,
    /// Pairs (above, up to) of numbers that were never issued.
    pub skips: Vec<i64>,
    /// Where the state may have survived: what is known of it.
    pub survival: Option<Survival>,
    /// Unpaid orders get their turns before anybody is admitted.
    pub orders: bool,
    /// How long people are put back before anybody new is admitted; 0: there was nothing to lose.
    pub recover_ms: u64,
    /// Settings and facts.
    pub fields: Vec<(&'static str, String)>,
    /// Whose seats are counted, where they stand in this Redis.
    pub schedules: Vec<Uuid>,
}
