//! One performance's state in Redis: each script as a typed call.

use std::sync::Arc;

use redis::{Script, Value};
use uuid::Uuid;

use super::{
    Batch, CheckIn, End, Patience, Return, ScriptError, Scripts, Seen, Start, StoreState, Tick,
    Unpaid,
    answers::{int, text},
    odd,
};
use crate::{platform::redis::Redis, serve::queue::epochs::Ended};

/// A performance's keys and the connection to them. Cheap to clone.
#[derive(Clone)]
pub struct Room {
    redis: Redis,
    scripts: Arc<Scripts>,
    base: Arc<str>,
    keys: Arc<[String; 7]>,
    patience: Option<Arc<Patience>>,
}

/// Seats of a changed set of schedules, and how many of them are not sold, as Postgres says.
#[derive(Clone, Copy, Debug)]
pub struct Seats<'a> {
    /// The schedules.
    pub schedules: &'a [Uuid],
    /// Not sold.
    pub remaining: i64,
}

impl Room {
    /// The room of `performance` under `prefix`.
    pub fn new(redis: Redis, scripts: Arc<Scripts>, prefix: &str, performance: Uuid) -> Self {
        let base = format!("{prefix}:{{{performance}}}:");
        let names = ["meta", "wait", "work", "place", "ended", "reg", "back"];
        Self {
            redis,
            scripts,
            keys: Arc::new(names.map(|name| format!("{base}{name}"))),
            base: base.into(),
            patience: None,
        }
    }

    /// The same, whose callers wait no longer than `patience` says: later, a script does nothing.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.patience = Some(Arc::new(patience));
        self
    }

    fn until(&self) -> i64 {
        self.patience
            .as_ref()
            .map_or(0, |patience| patience.until())
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
            Some("late") => Err(ScriptError::Late),
            Some("old") if answer.len() == 1 => Err(ScriptError::Old),
            Some(_) => Ok(answer),
            None => Err(odd("a script answered without a tag")),
        }
    }

    /// Sweeps, promotes and reads the figures; the next comes within `beat_ms`, or the queue counts as not
    /// served since.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn tick(&self, seen: Seen, ranks_at: i64, beat_ms: u64) -> Result<Tick, ScriptError> {
        let sent = self.patience.as_ref().map(|patience| patience.now());
        let answer = self
            .run(&self.scripts.tick, seen, |call| {
                call.arg(ranks_at).arg(beat_ms);
            })
            .await?;
        let tick = Tick::read(&answer, ranks_at)?;
        if let (Some(patience), Some(sent)) = (&self.patience, sent) {
            patience.measure(sent, tick.view.wall);
        }
        Ok(tick)
    }

    /// What stands in this Redis, whether it is the state that was or not.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn state(&self) -> Result<StoreState, ScriptError> {
        let mut call = self.scripts.state.prepare_invoke();
        call.key(&self.keys[0]);
        let answer: Vec<Value> = call.invoke_async(&mut self.redis.clone()).await?;
        StoreState::read(&answer)
    }

    /// Unpaid orders keep the turns that they were made in; how many have their slot here. `done`: these
    /// are the last of them.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn reserve(
        &self,
        seen: Seen,
        orders: &[Unpaid],
        done: bool,
    ) -> Result<u64, ScriptError> {
        let mut joined = Vec::with_capacity(orders.len() * 48);
        for unpaid in orders {
            joined.extend_from_slice(unpaid.user.as_bytes());
            joined.extend_from_slice(&unpaid.number.to_be_bytes());
            joined.extend_from_slice(unpaid.order.as_bytes());
            joined.extend_from_slice(&unpaid.keeps_ms.to_be_bytes());
        }
        let answer = self
            .run(&self.scripts.reserve, seen, |call| {
                call.arg(u8::from(done)).arg(joined);
            })
            .await?;
        Ok(answer.get(1).and_then(int).unwrap_or(0).unsigned_abs())
    }

    /// A batch enters, at most [`BATCH_MAX`](super::BATCH_MAX).
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
                call.arg(joined).arg(self.until());
            })
            .await?;
        Batch::read(&answer, users.len())
    }

    /// A batch returns by tokens of earlier epochs, at most [`BATCH_MAX`](super::BATCH_MAX).
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn restore(&self, seen: Seen, places: &[Return]) -> Result<Batch, ScriptError> {
        let mut joined = Vec::with_capacity(places.len() * 50);
        for place in places {
            joined.extend_from_slice(place.user.as_bytes());
            joined.extend_from_slice(&place.number.to_be_bytes());
            for at in [
                place.turn.deadline_ms,
                place.turn.holding_ms,
                place.turn.last_ms,
            ] {
                joined.extend_from_slice(&at.to_be_bytes());
            }
            joined.extend_from_slice(&[place.may.byte(), u8::from(place.registered)]);
        }
        let answer = self
            .run(&self.scripts.restore, seen, |call| {
                call.arg(joined).arg(self.until());
            })
            .await?;
        Batch::read(&answer, places.len())
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
                call.arg(self.until());
            })
            .await?;
        CheckIn::read(&answer)
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
            for schedule in &start.schedules {
                call.key(format!("{}seats:{schedule}", self.base));
            }
            call.arg(start.ceiling)
                .arg(start.served)
                .arg(start.recover_ms)
                .arg(start.served_then);
            call.arg(start.survival.map_or(-1, |s| s.clock))
                .arg(start.survival.map_or(-1, |s| s.last));
            let skips = start.skips.chunks_exact(2);
            let skips: Vec<String> = skips.map(|p| format!("{}-{}", p[0], p[1])).collect();
            call.arg(skips.join(",")).arg(u8::from(start.orders));
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
        seats: Option<Seats<'_>>,
        fields: &[(&'static str, String)],
    ) -> Result<(), ScriptError> {
        self.run(&self.scripts.apply, seen, |call| {
            call.arg(version).arg(capacity);
            match seats {
                None => call.arg(""),
                Some(seats) => {
                    for schedule in seats.schedules {
                        call.key(format!("{}seats:{schedule}", self.base));
                    }
                    call.arg(seats.remaining)
                }
            };
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

    /// Everything of the queue leaves this Redis.
    ///
    /// # Errors
    /// [`ScriptError`].
    pub async fn remove(&self) -> Result<(), ScriptError> {
        redis::cmd("UNLINK")
            .arg(&self.keys[..])
            .query_async::<i64>(&mut self.redis())
            .await?;
        Ok(())
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
