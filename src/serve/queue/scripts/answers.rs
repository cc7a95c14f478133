//! What the queue's scripts answer, read.

use redis::Value;

use super::{ScriptError, Seen, odd};
use crate::platform::place::Turn;

/// What became of one person's entry or return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The tag.
    pub code: Code,
    /// The place did not exist before.
    pub new: bool,
    /// The place's number (registration index when registered).
    pub number: u64,
    /// None unless working.
    pub turn: Turn,
    /// The position; 0 unless waiting.
    pub position: u64,
    /// The epoch that the place now belongs to.
    pub epoch: u32,
}

/// The codes of `queue_enter.lua` and `queue_restore.lua`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// In line.
    Waiting,
    /// Admitted.
    Working,
    /// Registered for the draw.
    Registered,
    /// Nothing is left to buy.
    SoldOut,
    /// Too many wait for what is left.
    Full,
    /// Before the opening, or after the close.
    NotOpen,
    /// Nobody enters any more.
    Draining,
    /// No number is left below the ceiling.
    NoNumber,
    /// The turn is over.
    Ended,
    /// The draw is being written: the number is told when the seed is.
    Drawing,
}

impl Code {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Waiting,
            2 => Self::Working,
            3 => Self::Registered,
            4 => Self::SoldOut,
            5 => Self::Full,
            6 => Self::NotOpen,
            7 => Self::Draining,
            8 => Self::NoNumber,
            9 => Self::Ended,
            10 => Self::Drawing,
            _ => return None,
        })
    }
}

/// The answer of a batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// What the state was at.
    pub seen: Seen,
    /// Numbers may be issued to here.
    pub ceiling: u64,
    /// One a person, in order.
    pub outcomes: Vec<Outcome>,
    /// The draw whose seed nobody has been told yet.
    pub draw: Option<Bounds>,
}

/// What a draw goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Indexes are above it.
    pub above: i64,
    /// And up to this, once the opening has frozen them.
    pub upto: Option<i64>,
}

/// What a check-in found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckIn {
    /// Here, for this turn.
    Working(Turn),
    /// In line at that position.
    Waiting(u64),
    /// Here for this turn, but booking has closed.
    Closed(Turn),
    /// No such place.
    Ended {
        /// Ended turns that are not in Postgres yet.
        unnoted: u64,
    },
    /// Admitted, but booking closed before the first check-in.
    Shut,
    /// The token is of an earlier epoch.
    Old,
}

/// `queue_tick.lua`'s view: integers, −1 for none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are those of the prelude's fields")]
pub struct View {
    pub epoch: i64,
    pub now: i64,
    pub served: i64,
    pub last: i64,
    pub ceiling: i64,
    pub waiting: i64,
    pub working: i64,
    pub registered: i64,
    pub unnoted: i64,
    pub max_working: i64,
    pub working_ttl: i64,
    pub claim_ttl: i64,
    pub admissions_per_minute: i64,
    pub paused: i64,
    pub draining: i64,
    pub capacity: i64,
    pub remaining: i64,
    pub opens_at: i64,
    pub closes_at: i64,
    pub pre_queue_opens_at: i64,
    pub recover_until: i64,
    pub poll_min: i64,
    pub poll_max: i64,
    pub poll_step: i64,
    pub draw_lo: i64,
    pub draw_hi: i64,
    pub draw_next: i64,
    pub cut_lo: i64,
    pub cut_hi: i64,
    pub settings: i64,
    pub seq: i64,
    pub wall: i64,
    pub served_then: i64,
    pub suspended_at: i64,
    pub orders: i64,
    pub kept_from: i64,
    pub given: i64,
    pub recover_from: i64,
    pub admitted: i64,
    pub claimed: i64,
    pub no_shows: i64,
    pub lapsed: i64,
    pub completed: i64,
    pub left: i64,
    pub gone: i64,
}

impl View {
    #[rustfmt::skip]
    fn from_ints(v: &[i64]) -> Option<Self> {
        let &[epoch, now, served, last, ceiling, waiting, working, registered, unnoted,
            max_working, working_ttl, claim_ttl, admissions_per_minute, paused, draining,
            capacity, remaining, opens_at, closes_at, pre_queue_opens_at, recover_until,
            poll_min, poll_max, poll_step, draw_lo, draw_hi, draw_next, cut_lo, cut_hi, settings,
            seq, wall, served_then, suspended_at, orders, kept_from, given, recover_from,
            admitted, claimed, no_shows, lapsed, completed, left, gone] = v else { return None };
        Some(Self { epoch, now, served, last, ceiling, waiting, working, registered, unnoted,
            max_working, working_ttl, claim_ttl, admissions_per_minute, paused, draining,
            capacity, remaining, opens_at, closes_at, pre_queue_opens_at, recover_until,
            poll_min, poll_max, poll_step, draw_lo, draw_hi, draw_next, cut_lo, cut_hi, settings,
            seq, wall, served_then, suspended_at, orders, kept_from, given, recover_from,
            admitted, claimed, no_shows, lapsed, completed, left, gone })
    }
}

/// The lowest numbers waiting, and at boundaries how many wait below.
pub type FreshRanks = (Vec<u64>, Vec<(u64, u64)>);

/// The answer of a tick.
#[derive(Clone, Debug)]
pub struct Tick {
    /// The figures.
    pub view: View,
    /// Fresh ranks, when the caller's no longer held.
    pub ranks: Option<FreshRanks>,
    /// The seed, once published.
    pub seed: Option<Vec<u8>>,
    /// There is more to promote at once.
    pub more: bool,
    /// Places whose deadline has passed.
    pub overdue: u64,
    /// Places whose deadline is within a minute.
    pub soon: u64,
    /// The next deadline of a place.
    pub next: Option<i64>,
    /// Epochs that were taken over, each with its last number.
    pub kept: Vec<(u64, u64)>,
}

impl Tick {
    /// What `queue_tick.lua` answered to who has ranks of `ranks_at`.
    pub(super) fn read(answer: &[Value], ranks_at: i64) -> Result<Self, ScriptError> {
        let [
            _,
            view,
            front,
            bounds,
            seed,
            more,
            overdue,
            soon,
            next,
            kept,
        ] = answer
        else {
            return Err(odd("queue_tick"));
        };
        let ints: Vec<i64> = redis::FromRedisValue::from_redis_value_ref(view)
            .map_err(|_| odd("queue_tick: view"))?;
        let view = View::from_ints(&ints).ok_or_else(|| odd("queue_tick: view's length"))?;
        let front = text(front).unwrap_or_default();
        let bounds = text(bounds).unwrap_or_default();
        let ranks = (view.gone != ranks_at).then(|| (numbers(front), pairs(bounds)));
        Ok(Self {
            view,
            ranks,
            seed: text(seed)
                .filter(|s| !s.is_empty())
                .and_then(|s| hex::decode(s).ok()),
            more: int(more) == Some(1),
            overdue: int(overdue).unwrap_or(0).unsigned_abs(),
            soon: int(soon).unwrap_or(0).unsigned_abs(),
            next: int(next).filter(|at| *at >= 0),
            kept: pairs(text(kept).unwrap_or_default()),
        })
    }
}

impl CheckIn {
    /// What `queue_check_in.lua` answered.
    pub(super) fn read(answer: &[Value]) -> Result<Self, ScriptError> {
        let number = |at: usize| answer.get(at).and_then(int).unwrap_or(0).unsigned_abs();
        let turn = Turn {
            deadline_ms: number(3),
            holding_ms: number(5),
            last_ms: number(6),
        };
        Ok(match answer.first().and_then(text) {
            Some("working") => Self::Working(turn),
            Some("waiting") => Self::Waiting(number(3)),
            Some("closed") => Self::Closed(turn),
            Some("shut") => Self::Shut,
            Some("old") => Self::Old,
            Some("ended") => Self::Ended { unnoted: number(4) },
            _ => return Err(odd("queue_check_in")),
        })
    }
}

impl Batch {
    /// What `queue_enter.lua` or `queue_restore.lua` answered to `want` people.
    pub(super) fn read(answer: &[Value], want: usize) -> Result<Self, ScriptError> {
        const RECORD: usize = 42;
        let [
            _,
            epoch,
            _now,
            last,
            ceiling,
            Value::BulkString(packed),
            draw @ ..,
        ] = answer
        else {
            return Err(odd("a batch answered oddly"));
        };
        let bound = |at: usize| draw.get(at).and_then(int).filter(|n| *n >= 0);
        let number = |v: &Value| int(v).map(i64::unsigned_abs);
        let (Some(epoch), Some(last), Some(ceiling)) =
            (number(epoch), number(last), number(ceiling))
        else {
            return Err(odd("a batch answered without its figures"));
        };
        let epoch = u32::try_from(epoch).map_err(|_| odd("an epoch out of range"))?;
        let outcomes: Vec<Outcome> = packed
            .chunks_exact(RECORD)
            .filter_map(|r| {
                let long = |at: usize| Some(u64::from_be_bytes(r[at..at + 8].try_into().ok()?));
                Some(Outcome {
                    code: Code::from_byte(r[0])?,
                    new: r[1] == 1,
                    number: long(2)?,
                    turn: Turn {
                        deadline_ms: long(10)?,
                        holding_ms: long(26)?,
                        last_ms: long(34)?,
                    },
                    position: long(18)?,
                    epoch,
                })
            })
            .collect();
        if outcomes.len() != want {
            return Err(odd("a batch answered for another number of people"));
        }
        Ok(Self {
            seen: Seen { epoch, last },
            ceiling,
            outcomes,
            draw: bound(0).map(|above| Bounds {
                above,
                upto: bound(1),
            }),
        })
    }
}

/// What stands in a Redis of a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreState {
    /// The epoch; −1: nothing stands there.
    pub epoch: i64,
    /// The last number issued.
    pub last: i64,
    /// The script's clock at the newest reading.
    pub clock: i64,
    /// Redis's clock now.
    pub wall: i64,
    /// Which process it is.
    pub store: String,
}

impl StoreState {
    /// What `queue_state.lua` answered.
    pub(super) fn read(answer: &[Value]) -> Result<Self, ScriptError> {
        let [epoch, last, clock, wall, store] = answer else {
            return Err(odd("queue_state"));
        };
        let number = |value: &Value| int(value).ok_or_else(|| odd("queue_state: a number"));
        Ok(Self {
            epoch: number(epoch)?,
            last: number(last)?,
            clock: number(clock)?,
            wall: number(wall)?,
            store: text(store).unwrap_or_default().to_owned(),
        })
    }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub(super) fn int(value: &Value) -> Option<i64> {
    match value {
        Value::Int(n) => Some(*n),
        _ => None,
    }
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(',').filter_map(|n| n.parse().ok()).collect()
}

fn pairs(text: &str) -> Vec<(u64, u64)> {
    text.split(',')
        .filter_map(|pair| pair.split_once(':'))
        .filter_map(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))
        .collect()
}
