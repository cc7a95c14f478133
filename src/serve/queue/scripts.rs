//! The queue's scripts behind typed functions: nothing else here speaks to Redis.

mod answers;
mod asks;
mod patience;
mod room;

use redis::{RedisError, Script};

pub use self::{
    answers::{Batch, Bounds, CheckIn, Code, FreshRanks, Outcome, StoreState, Tick, View},
    asks::{End, May, Return, Start, Survival, Unpaid},
    patience::Patience,
    room::{Room, Seats},
};

/// One call takes at most this many people: about two milliseconds of Redis.
pub const BATCH_MAX: usize = 256;

/// Every script, compiled with the prelude in front.
#[derive(Debug)]
pub struct Scripts {
    tick: Script,
    enter: Script,
    check_in: Script,
    end: Script,
    restore: Script,
    init: Script,
    apply: Script,
    raise: Script,
    draw: Script,
    reserve: Script,
    state: Script,
}

impl Default for Scripts {
    fn default() -> Self {
        Self::with(|text| text)
    }
}

impl Scripts {
    /// The scripts, each passed through `edit` first: a test puts defects in, to
    /// see that it would notice them.
    pub fn with(edit: impl Fn(String) -> String) -> Self {
        const PRELUDE: &str = include_str!("../../../lua/prelude.lua");
        let script = |text: &str| Script::new(&edit(format!("{PRELUDE}{text}")));
        Self {
            tick: script(include_str!("../../../lua/queue_tick.lua")),
            enter: script(include_str!("../../../lua/queue_enter.lua")),
            check_in: script(include_str!("../../../lua/queue_check_in.lua")),
            end: script(include_str!("../../../lua/queue_end.lua")),
            restore: script(include_str!("../../../lua/queue_restore.lua")),
            init: script(include_str!("../../../lua/queue_init.lua")),
            apply: script(include_str!("../../../lua/queue_apply.lua")),
            raise: script(include_str!("../../../lua/queue_raise.lua")),
            draw: script(include_str!("../../../lua/queue_draw.lua")),
            reserve: script(include_str!("../../../lua/queue_reserve.lua")),
            state: Script::new(include_str!("../../../lua/queue_state.lua")),
        }
    }
}

/// Why a script gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The state is missing, older than what was seen, or in another Redis.
    #[error("the queue's state in Redis is lost ({0})")]
    Lost(String),
    /// Redis ran the script when its caller had given up: nothing was done.
    #[error("Redis answered too late; nothing was done")]
    Late,
    /// The state has not survived: it must be built anew.
    #[error("the queue's state in Redis is older than what was seen of it")]
    Old,
    /// Redis did not answer, or not as agreed.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
}

fn odd(what: &'static str) -> ScriptError {
    ScriptError::Redis(RedisError::from((
        redis::ErrorKind::UnexpectedReturnType,
        what,
    )))
}

/// What the caller has seen of a performance's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// The highest epoch.
    pub epoch: u32,
    /// The highest number of it.
    pub last: u64,
}
