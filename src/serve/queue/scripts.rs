//! The queue's scripts behind typed functions: nothing else here speaks to Redis.

use std::sync::Arc;

use redis::{RedisError, Script, Value};
use uuid::Uuid;

use super::epochs::Ended;
use crate::platform::redis::Redis;

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
        }
    }
}

/// Why a script gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The state is missing, older than what was seen, or in another Redis.
    #[error("the queue's state in Redis is lost ({0})")]
    Lost(String),
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

/// What became of one person's entry or return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The tag.
    pub code: Code,
    /// The place did not exist before.
    pub new: bool,
    /// The place's number (registration index when registered).
    pub number: u64,
    /// Ms; 0 unless working.
    pub deadline_ms: u64,
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
}

/// A place to put back.
#[derive(Clone, Copy, Debug)]
pub struct Return {
    /// Whose.
    pub user: Uuid,
    /// Its number or index.
    pub number: u64,
    /// The unexpired working deadline; 0 when it waited.
    pub deadline_ms: u64,
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
    fn byte(self) -> u8 {
        match self {
            Self::IfThere => 0,
            Self::Yes => 1,
            Self::Never => 2,
        }
    }
}

/// What a check-in found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckIn {
    /// Here, until then (ms).
    Working(u64),
    /// In line at that position.
    Waiting(u64),
    /// Here until then, but booking has closed.
    Closed(u64),
    /// No such place.
    Ended {
        /// Ended turns that are not in Postgres yet.
        unnoted: u64,
    },
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
            admitted, claimed, no_shows, lapsed, completed, left, gone] = v else { return None };
        Some(Self { epoch, now, served, last, ceiling, waiting, working, registered, unnoted,
            max_working, working_ttl, claim_ttl, admissions_per_minute, paused, draining,
            capacity, remaining, opens_at, closes_at, pre_queue_opens_at, recover_until,
            poll_min, poll_max, poll_step, draw_lo, draw_hi, draw_next, cut_lo, cut_hi, settings,
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
}

/// A performance's keys and the connection to them. Cheap to clone.
#[derive(Clone)]
pub struct Room {
    redis: Redis,
    scripts: Arc<Scripts>,
    keys: Arc<[String; 7]>,
}

impl Room {
    /// The room of `performance` under `prefix`.
    pub fn new(redis: Redis, scripts: Arc<Scripts>, prefix: &str, performance: Uuid) -> Self {
        let key = |name: &str| format!("{prefix}:{{{performance}}}:{name}");
        Self {
            redis,
            scripts,
            keys: Arc::new(["meta", "wait", "work", "place", "ended", "reg", "back"].map(key)),
        }
    }

    /// The key of the working set: deadline → user.
    pub fn work_key(&self) -> &str {
        &self.keys[2]
    }

    /// The connection, for plain reads.
    pub fn redis(&self) -> Redis {
        self.redis.clone()
    }

    async fn run(
        &self,
        script: &Script,
        seen: Seen,
        args: impl FnOnce(&mut redis::ScriptInvocation<'_>),
    ) -> Result<Vec<Value>, ScriptError> {
        let mut call = script.prepare_invoke();
        for key in self.keys.iter() {
            call.key(key);
        }
        call.arg(seen.epoch).arg(seen.last);
        args(&mut call);
        let answer: Vec<Value> = call.invoke_async(&mut self.redis.clone()).await?;
        match answer.first().and_then(text) {
            Some("lost") => Err(ScriptError::Lost(
                answer.get(1).and_then(text).unwrap_or("?").to_owned(),
            )),
            Some(_) => Ok(answer),
            None => Err(odd("a script answered without a tag")),
        }
    }

    /// Sweeps, promotes and reads the figures.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn tick(&self, seen: Seen, ranks_at: i64) -> Result<Tick, ScriptError> {
        let answer = self
            .run(&self.scripts.tick, seen, |call| {
                call.arg(ranks_at);
            })
            .await?;
        let [_, view, front, bounds, seed, more, overdue, soon] = answer.as_slice() else {
            return Err(odd("queue_tick"));
        };
        let ints: Vec<i64> = redis::FromRedisValue::from_redis_value_ref(view)
            .map_err(|_| odd("queue_tick: view"))?;
        let view = View::from_ints(&ints).ok_or_else(|| odd("queue_tick: view's length"))?;
        let front = text(front).unwrap_or_default();
        let bounds = text(bounds).unwrap_or_default();
        let ranks = (view.gone != ranks_at).then(|| (numbers(front), pairs(bounds)));
        Ok(Tick {
            view,
            ranks,
            seed: text(seed)
                .filter(|s| !s.is_empty())
                .and_then(|s| hex::decode(s).ok()),
            more: int(more) == Some(1),
            overdue: int(overdue).unwrap_or(0).unsigned_abs(),
            soon: int(soon).unwrap_or(0).unsigned_abs(),
        })
    }

    /// A batch enters, at most [`BATCH_MAX`].
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn enter(&self, seen: Seen, users: &[Uuid]) -> Result<Batch, ScriptError> {
        let mut joined = Vec::with_capacity(users.len() * 16);
        for user in users {
            joined.extend_from_slice(user.as_bytes());
        }
        let answer = self
            .run(&self.scripts.enter, seen, |call| {
                call.arg(joined);
            })
            .await?;
        batch(&answer, users.len())
    }

    /// A batch returns by tokens of earlier epochs, at most [`BATCH_MAX`].
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn restore(&self, seen: Seen, places: &[Return]) -> Result<Batch, ScriptError> {
        let mut joined = Vec::with_capacity(places.len() * 34);
        for place in places {
            joined.extend_from_slice(place.user.as_bytes());
            joined.extend_from_slice(&place.number.to_be_bytes());
            joined.extend_from_slice(&place.deadline_ms.to_be_bytes());
            joined.extend_from_slice(&[place.may.byte(), u8::from(place.registered)]);
        }
        let answer = self
            .run(&self.scripts.restore, seen, |call| {
                call.arg(joined);
            })
            .await?;
        batch(&answer, places.len())
    }

    /// Somebody whose number has come up asks.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn check_in(
        &self,
        seen: Seen,
        user: Uuid,
        number: u64,
        epoch: u32,
    ) -> Result<CheckIn, ScriptError> {
        let answer = self
            .run(&self.scripts.check_in, seen, |call| {
                call.arg(user.as_bytes().as_slice()).arg(number).arg(epoch);
            })
            .await?;
        let value = answer.get(3).and_then(int).unwrap_or(0).unsigned_abs();
        Ok(match answer.first().and_then(text) {
            Some("working") => CheckIn::Working(value),
            Some("waiting") => CheckIn::Waiting(value),
            Some("closed") => CheckIn::Closed(value),
            Some("old") => CheckIn::Old,
            Some("ended") => CheckIn::Ended {
                unnoted: answer.get(4).and_then(int).unwrap_or(0).unsigned_abs(),
            },
            _ => return Err(odd("queue_check_in")),
        })
    }

    /// Ends places that are still those very places; how many did. Negative numbers are
    /// registrations.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn end(
        &self,
        seen: Seen,
        reason: End,
        places: &[(Uuid, i64)],
    ) -> Result<u64, ScriptError> {
        self.end_all(seen, reason.letter(), places).await
    }

    /// Postgres knows that these have ended; a state that is about to be replaced may still
    /// have them. Negative numbers are registrations. How many did.
    ///
    /// # Errors
    /// [`ScriptError`]; lost only where there is no state at all.
    pub async fn forget(&self, places: &[(Uuid, i64)]) -> Result<u64, ScriptError> {
        self.end_all(Seen::default(), "F", places).await
    }

    async fn end_all(
        &self,
        seen: Seen,
        reason: &str,
        places: &[(Uuid, i64)],
    ) -> Result<u64, ScriptError> {
        let answer = self
            .run(&self.scripts.end, seen, |call| {
                call.arg(reason);
                for (user, number) in places {
                    call.arg(user.as_bytes().as_slice()).arg(number);
                }
            })
            .await?;
        Ok(answer.get(1).and_then(int).unwrap_or(0).unsigned_abs())
    }

    /// An epoch begins in this Redis.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn init(&self, start: &Start) -> Result<(), ScriptError> {
        let seen = Seen {
            epoch: start.epoch,
            last: start.base,
        };
        self.run(&self.scripts.init, seen, |call| {
            call.arg(start.ceiling)
                .arg(start.served)
                .arg(start.recover_ms);
            for (field, value) in &start.fields {
                if !value.is_empty() {
                    call.arg(*field).arg(value);
                }
            }
        })
        .await
        .map(drop)
    }

    /// Settings and facts take effect.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn apply(
        &self,
        seen: Seen,
        version: i64,
        capacity: i64,
        fields: &[(&'static str, String)],
    ) -> Result<(), ScriptError> {
        self.run(&self.scripts.apply, seen, |call| {
            call.arg(version).arg(capacity);
            for (field, value) in fields {
                call.arg(*field).arg(value);
            }
        })
        .await
        .map(drop)
    }

    /// Numbers may be issued to `ceiling`.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn raise(&self, seen: Seen, ceiling: i64) -> Result<(), ScriptError> {
        self.run(&self.scripts.raise, seen, |call| {
            call.arg(ceiling);
        })
        .await
        .map(drop)
    }

    /// One step of the draw, from number `next` on; the number to go on at.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn draw(
        &self,
        seen: Seen,
        seed: &[u8],
        next: u64,
        indexes: &[u64],
    ) -> Result<u64, ScriptError> {
        let answer = self
            .run(&self.scripts.draw, seen, |call| {
                call.arg(hex::encode(seed)).arg(next).arg(indexes);
            })
            .await?;
        answer
            .get(1)
            .and_then(int)
            .map(i64::unsigned_abs)
            .ok_or_else(|| odd("queue_draw"))
    }

    /// Ended turns that Postgres does not know yet, and what to give to [`Room::noted`].
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn unnoted(&self) -> Result<(Vec<Ended>, Vec<Vec<u8>>), ScriptError> {
        let rows: Vec<(Vec<u8>, i64)> = redis::cmd("ZRANGE")
            .arg(&self.keys[4])
            .arg(0)
            .arg(499)
            .arg("WITHSCORES")
            .query_async(&mut self.redis())
            .await?;
        let ended = rows
            .iter()
            .filter_map(|(member, number)| {
                let (letter, user) = member.split_first()?;
                Some(Ended {
                    number: *number,
                    user: Uuid::from_slice(user).ok()?,
                    reason: match letter {
                        b'N' => "NO_SHOW",
                        b'L' => "LAPSED",
                        b'D' => "COMPLETED",
                        _ => "LEFT",
                    },
                })
            })
            .collect();
        Ok((ended, rows.into_iter().map(|(member, _)| member).collect()))
    }

    /// These are in Postgres now.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn noted(&self, members: &[Vec<u8>]) -> Result<(), ScriptError> {
        redis::cmd("ZREM")
            .arg(&self.keys[4])
            .arg(members)
            .query_async::<i64>(&mut self.redis())
            .await?;
        Ok(())
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
    fn letter(self) -> &'static str {
        match self {
            Self::Completed => "D",
            Self::Left => "G",
        }
    }
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
    /// How long people are put back before anybody new is admitted; 0: there was nothing to lose.
    pub recover_ms: u64,
    /// Settings and facts.
    pub fields: Vec<(&'static str, String)>,
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn int(value: &Value) -> Option<i64> {
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

fn batch(answer: &[Value], want: usize) -> Result<Batch, ScriptError> {
    const RECORD: usize = 26;
    let [_, epoch, _now, last, ceiling, Value::BulkString(packed)] = answer else {
        return Err(odd("a batch answered oddly"));
    };
    let number = |v: &Value| int(v).map(i64::unsigned_abs);
    let (Some(epoch), Some(last), Some(ceiling)) = (number(epoch), number(last), number(ceiling))
    else {
        return Err(odd("a batch answered without its figures"));
    };
    let epoch = u32::try_from(epoch).map_err(|_| odd("an epoch out of range"))?;
    let outcomes: Vec<Outcome> = packed
        .chunks_exact(RECORD)
        .filter_map(|r| {
            Some(Outcome {
                code: Code::from_byte(r[0])?,
                new: r[1] == 1,
                number: u64::from_be_bytes(r[2..10].try_into().ok()?),
                deadline_ms: u64::from_be_bytes(r[10..18].try_into().ok()?),
                position: u64::from_be_bytes(r[18..26].try_into().ok()?),
                epoch,
            })
        })
        .collect();
    if outcomes.len() != want {
        return Err(odd("a batch answered for another number of people"));
    }
    Ok(Batch {
        seen: Seen { epoch, last },
        ceiling,
        outcomes,
    })
}
