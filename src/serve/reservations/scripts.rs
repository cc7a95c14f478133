//! The scripts about seats, each behind a typed function, and the names of
//! their keys. Everything of a performance shares one hash tag.

use std::sync::LazyLock;

use redis::{RedisError, Script, ScriptInvocation, Value, aio::ConnectionLike};
use uuid::Uuid;

use super::catalogue::Stretch;

macro_rules! script {
    ($file:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                include_str!("../../../lua/prelude.lua"),
                "\n",
                include_str!("../../../lua/seats.lua"),
                "\n",
                include_str!(concat!("../../../lua/", $file)),
            ))
        })
    };
}

static HOLD: LazyLock<Script> = script!("hold.lua");
static SETTLE: LazyLock<Script> = script!("settle.lua");
static RECOUNT: LazyLock<Script> = script!("recount.lua");
static STOP: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../../../lua/stop.lua")));
static REBUILD: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("../../../lua/rebuild.lua")));

/// The names of a performance's keys.
#[derive(Clone, Debug)]
pub struct Keys {
    base: String,
    performance: Uuid,
}

impl Keys {
    /// Keys of `performance` under `prefix`.
    pub fn new(prefix: &str, performance: Uuid) -> Self {
        Self {
            base: format!("{prefix}:{{{performance}}}:"),
            performance,
        }
    }

    /// Whose keys these are.
    pub fn performance(&self) -> Uuid {
        self.performance
    }

    fn name(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    /// The queue's keys, which its prelude wants first.
    fn queue(&self) -> [String; 7] {
        ["meta", "wait", "work", "place", "ended", "reg", "back"].map(|n| self.name(n))
    }

    /// The queue's settings and counters.
    pub fn meta(&self) -> String {
        self.name("meta")
    }

    /// A byte a seat.
    pub fn seats(&self, schedule: Uuid) -> String {
        self.name(&format!("seats:{schedule}"))
    }

    /// 16 bytes a seat: the order that has it.
    pub fn owners(&self, schedule: Uuid) -> String {
        self.name(&format!("owners:{schedule}"))
    }

    /// Orders by deadline.
    pub fn holds(&self) -> String {
        self.name("holds")
    }

    /// What an order holds, and its version.
    pub fn hold(&self, order: Uuid) -> String {
        self.name(&format!("hold:{order}"))
    }

    /// Its expiry is the bell for a lapsed hold.
    fn wake(&self, order: Uuid) -> String {
        self.name(&format!("hx:{order}"))
    }

    /// Each person's live orders.
    pub fn limit(&self) -> String {
        self.name("limit")
    }

    /// The performance and order that a wake-up key names.
    pub fn parse_wake(prefix: &str, key: &str) -> Option<(Uuid, Uuid)> {
        let rest = key.strip_prefix(prefix)?.strip_prefix(":{")?;
        let (performance, order) = rest.split_once("}:hx:")?;
        Some((performance.parse().ok()?, order.parse().ok()?))
    }
}

/// Which seats are wanted.
#[derive(Clone, Debug)]
pub enum Pick {
    /// These.
    Seats(Vec<u32>),
    /// The best `count` of these stretches.
    Best {
        /// How many.
        count: u32,
        /// Where to look, best first.
        stretches: Vec<Stretch>,
    },
}

/// A hold to make.
#[derive(Debug)]
pub struct Hold<'a> {
    /// The order that it is for.
    pub order: Uuid,
    /// The order's version.
    pub version: i32,
    /// Who asks.
    pub user: Uuid,
    /// The schedule.
    pub schedule: Uuid,
    /// How long, where the queue's settings do not say.
    pub ttl_ms: u64,
    /// Seats that one person may have.
    pub limit: u32,
    /// Epoch and number of the person's place; none for an order paid late.
    pub place: Option<(u32, u64)>,
    /// Holds that the turn has made, as Postgres knows them; none until the script asks.
    pub counted: Option<u64>,
    /// Until when the schedule is sold, Unix ms.
    pub sales_end_ms: i64,
    /// When the show starts, Unix ms: no hold lasts longer.
    pub starts_ms: i64,
    /// What is wanted.
    pub pick: &'a Pick,
}

/// Why a place does not let its owner hold seats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoPlace {
    /// Still in line.
    Waiting,
    /// The turn has ended.
    Ended,
    /// Booking has closed.
    Closed,
    /// The turn takes no new holds any more, though an unpaid order keeps it.
    Over,
    /// The token is of an earlier epoch: the queue brings its place back first.
    Old,
    /// The queue is being put together again: ask later.
    Recovering,
}

/// What became of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Held {
    /// All seats are held.
    Seats {
        /// Until when, Unix ms.
        deadline_ms: i64,
        /// How long a hold lasts now.
        ttl_ms: i64,
        /// Which.
        indices: Vec<u32>,
    },
    /// None: these are not free.
    Taken(Vec<u32>),
    /// None: the person has so many already.
    Limit(u32),
    /// None: the turn has made all its holds.
    Exhausted,
    /// None: the schedule is not sold any more.
    SalesEnded,
    /// None: Redis does not know how many holds the turn has made; count them in Postgres.
    Uncounted,
    /// None: the place does not allow it.
    NoPlace(NoPlace),
    /// None: Redis does not know the seats; rebuild them.
    Absent,
    /// None: Redis has lost something of the queue.
    Lost(String),
    /// None: sales of the performance are stopped.
    Stopped,
}

/// What Redis is to show of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Held until this Unix ms.
    Held(i64),
    /// Sold.
    Sold,
    /// Nothing any more.
    Free,
}

/// What Postgres says of an order, to be shown in Redis.
#[derive(Debug)]
pub struct Settle<'a> {
    /// The order.
    pub order: Uuid,
    /// Its version: older ones change nothing.
    pub version: i32,
    /// Whose limit it counts for.
    pub user: Option<Uuid>,
    /// The schedule.
    pub schedule: Uuid,
    /// How it stands.
    pub show: Show,
    /// Number of the place that it was made from.
    pub place: Option<i64>,
    /// Until when it keeps that turn, Unix ms, where it is unpaid.
    pub keeps_ms: i64,
    /// Until when its schedule is sold, Unix ms; 0 where that is not known.
    pub sales_end_ms: i64,
    /// Its seats; empty: those that the hold in Redis names.
    pub indices: &'a [u32],
}

/// What became of showing an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Redis shows it.
    Done,
    /// Redis shows something newer.
    Stale,
    /// Redis does not know the seats; rebuild them.
    Absent,
    /// These are another order's.
    Taken(Vec<u32>),
}

fn with_queue<'a>(script: &'a Script, keys: &Keys) -> ScriptInvocation<'a> {
    let mut call = script.prepare_invoke();
    for key in keys.queue() {
        call.key(key);
    }
    call
}

fn with_order<'a>(
    script: &'a Script,
    keys: &Keys,
    schedule: Uuid,
    order: Uuid,
) -> ScriptInvocation<'a> {
    let mut call = with_queue(script, keys);
    call.key(keys.seats(schedule)).key(keys.owners(schedule));
    call.key(keys.holds()).key(keys.hold(order));
    call.key(keys.wake(order)).key(keys.limit());
    call
}

/// Takes the seats, all or none.
///
/// # Errors
/// When Redis fails.
pub async fn hold<C: ConnectionLike>(
    redis: &mut C,
    keys: &Keys,
    hold: &Hold<'_>,
) -> Result<Held, RedisError> {
    let mut call = with_order(&HOLD, keys, hold.schedule, hold.order);
    let (epoch, number) = hold.place.unwrap_or((0, 0));
    call.arg(epoch).arg(number);
    call.arg(hold.order.as_bytes()).arg(hold.version);
    call.arg(hold.user.as_bytes())
        .arg(hold.schedule.to_string());
    call.arg(hold.ttl_ms).arg(hold.limit);
    match hold.counted {
        Some(holds) => call.arg(holds),
        None => call.arg(-1),
    };
    call.arg(hold.sales_end_ms).arg(hold.starts_ms);
    match hold.pick {
        Pick::Seats(indices) => {
            call.arg("seats").arg(indices);
        }
        Pick::Best { count, stretches } => {
            call.arg("best").arg(*count);
            for s in stretches {
                call.arg(s.start).arg(s.length).arg(s.from).arg(s.to);
            }
        }
    }
    let (tag, rest) = tagged(call.invoke_async(redis).await?)?;
    Ok(match tag.as_str() {
        "held" => {
            let numbers: Vec<i64> = numbers(&rest)?;
            let [deadline_ms, ttl_ms, ref indices @ ..] = numbers[..] else {
                return Err(unexpected("held without a deadline"));
            };
            Held::Seats {
                deadline_ms,
                ttl_ms,
                indices: narrow(indices)?,
            }
        }
        "taken" => Held::Taken(numbers(&rest)?),
        "limit" => Held::Limit(numbers::<u32>(&rest)?.first().copied().unwrap_or(0)),
        "exhausted" => Held::Exhausted,
        "count" => Held::Uncounted,
        "sales_ended" => Held::SalesEnded,
        "absent" => Held::Absent,
        "stopped" => Held::Stopped,
        "lost" => Held::Lost(first_text(&rest)?),
        "place" => Held::NoPlace(match first_text(&rest)?.as_str() {
            "waiting" => NoPlace::Waiting,
            "ended" => NoPlace::Ended,
            "closed" => NoPlace::Closed,
            "old" => NoPlace::Old,
            "over" => NoPlace::Over,
            "recovering" => NoPlace::Recovering,
            other => return Err(unexpected(other)),
        }),
        other => return Err(unexpected(other)),
    })
}

/// Makes Redis show what Postgres says of an order.
///
/// # Errors
/// When Redis fails.
pub async fn settle<C: ConnectionLike>(
    redis: &mut C,
    keys: &Keys,
    order: &Settle<'_>,
) -> Result<Settled, RedisError> {
    let mut call = with_order(&SETTLE, keys, order.schedule, order.order);
    let (show, deadline_ms) = match order.show {
        Show::Held(deadline_ms) => ("held", deadline_ms),
        Show::Sold => ("sold", 0),
        Show::Free => ("free", 0),
    };
    call.arg(0).arg(0);
    call.arg(order.order.as_bytes())
        .arg(order.version)
        .arg(show);
    call.arg(order.user.as_ref().map_or(&[][..], |u| u.as_bytes()));
    call.arg(deadline_ms).arg(order.schedule.to_string());
    call.arg(order.place.unwrap_or(0)).arg(order.keeps_ms);
    call.arg(order.sales_end_ms);
    call.arg(order.indices);
    let (tag, rest) = tagged(call.invoke_async(redis).await?)?;
    Ok(match tag.as_str() {
        "done" => Settled::Done,
        "stale" => Settled::Stale,
        "absent" => Settled::Absent,
        "taken" => Settled::Taken(numbers(&rest)?),
        other => return Err(unexpected(other)),
    })
}

/// Counts the seats not sold, for the queue; `None` when a schedule has no seats in Redis.
///
/// # Errors
/// When Redis fails.
pub async fn recount<C: ConnectionLike>(
    redis: &mut C,
    keys: &Keys,
    schedules: &[Uuid],
) -> Result<Option<u64>, RedisError> {
    let mut call = with_queue(&RECOUNT, keys);
    for schedule in schedules {
        call.key(keys.seats(*schedule));
    }
    call.arg(0).arg(0);
    let (tag, rest) = tagged(call.invoke_async(redis).await?)?;
    match tag.as_str() {
        "done" => Ok(numbers(&rest)?.first().copied()),
        "absent" => Ok(None),
        other => Err(unexpected(other)),
    }
}

/// Sets a schedule's seats where they are missing; false when they were there.
///
/// # Errors
/// When Redis fails.
pub async fn rebuild<C: ConnectionLike>(
    redis: &mut C,
    keys: &Keys,
    schedule: Uuid,
    states: &[u8],
    owners: &[u8],
) -> Result<bool, RedisError> {
    REBUILD
        .key(keys.seats(schedule))
        .key(keys.owners(schedule))
        .arg(states)
        .arg(owners)
        .invoke_async(redis)
        .await
}

/// Stops the sales of a performance, or lets them go on; false where the limits are missing.
///
/// # Errors
/// When Redis fails.
pub async fn stop<C: ConnectionLike>(
    redis: &mut C,
    keys: &Keys,
    stop: bool,
) -> Result<bool, RedisError> {
    STOP.key(keys.limit())
        .arg(if stop { "1" } else { "0" })
        .invoke_async(redis)
        .await
}

fn tagged(value: Value) -> Result<(String, Vec<Value>), RedisError> {
    let Value::Array(mut items) = value else {
        return Err(unexpected("no array"));
    };
    if items.is_empty() {
        return Err(unexpected("an empty array"));
    }
    let rest = items.split_off(1);
    Ok((redis::from_redis_value(items.remove(0))?, rest))
}

fn numbers<T: redis::FromRedisValue>(values: &[Value]) -> Result<Vec<T>, RedisError> {
    values
        .iter()
        .map(|v| Ok(redis::from_redis_value_ref(v)?))
        .collect()
}

fn narrow(numbers: &[i64]) -> Result<Vec<u32>, RedisError> {
    numbers
        .iter()
        .map(|n| u32::try_from(*n).map_err(|_| unexpected("a negative index")))
        .collect()
}

fn first_text(values: &[Value]) -> Result<String, RedisError> {
    let first = values.first().ok_or_else(|| unexpected("no reason"))?;
    Ok(redis::from_redis_value_ref(first)?)
}

fn unexpected(what: &str) -> RedisError {
    RedisError::from((
        redis::ErrorKind::UnexpectedReturnType,
        "a script about seats answered something unknown",
        what.to_owned(),
    ))
}
