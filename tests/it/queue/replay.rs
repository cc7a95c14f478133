//! A random history, replayed on the scripts in real Redis and on the rules: after every
//! step the two must say the same.

use std::{collections::HashMap, sync::Arc};

use proptest::{prelude::*, test_runner::TestCaseError};
use ticketping::{
    platform::{place::Turn as Bound, redis::Redis},
    serve::queue::scripts::{
        Bounds, CheckIn, Code, End, May, Patience, Return, Room, ScriptError, Scripts, Seen,
    },
};
use uuid::Uuid;

use super::{
    draw_rules::{Draw, Opening, Step},
    rulebook::*,
    world::now_ms,
};

pub const PEOPLE: u8 = 8;
/// Later than any clock of a history.
const NEVER_MS: i64 = 9_000_000_000_000;

/// Jumps are multiples of 20 s, so that every deadline is 10 s from any of them:
/// what the run itself takes changes nothing.
#[derive(Clone, Debug)]
pub enum Op {
    Enter(Vec<u8>),
    CheckIn(u8),
    Leave(u8),
    Complete(u8),
    /// An event or a request that comes once more, for the first place the person ever had.
    Again(u8, bool),
    Jump(u8),
    /// The clock of Redis is set back.
    StepBack(u8),
    /// Redis serves nobody for so long: stalled, restarted, out of memory, or its clock was set forward.
    Stall(u8),
    /// A check-in that Redis runs when its caller has given up.
    Refused(u8),
    /// The wake-up was lost for this long, and then the sweep comes; what has ended is noted.
    Tick,
    Limit(u8),
    Pause(bool),
    Remaining(u8),
    /// At most one admission in ten seconds, or as many as there is room for.
    Inflow(bool),
    /// Redis is flushed, and the next epoch begins.
    Lose,
    /// Come back by the tokens that they had before the loss, and each request is sent twice.
    Return(Vec<u8>),
    /// The draw is published, and so many numbers more are written.
    Draw(u64),
}

/// A history, and what it begins with.
#[derive(Clone, Debug)]
pub struct Plan {
    pub opening: Option<Opening>,
    /// Numbers of an epoch.
    pub block: u64,
    pub ops: Vec<Op>,
}

pub struct Run {
    room: Room,
    pub(super) redis: Redis,
    pub(super) base: String,
    pub(super) people: Vec<Uuid>,
    pub(super) model: Model,
    pub(super) epoch: u32,
    pub(super) block: u64,
    /// The wall clock when the history began, in ms.
    pub(super) began: i64,
    first: HashMap<u8, Token>,
    latest: HashMap<u8, Token>,
    /// The tokens that people had at the loss.
    lost: HashMap<u8, Token>,
    /// The step of the draw before the last one.
    behind: Option<Step>,
    /// The newest reading: its number, and the script's clock.
    seq: i64,
    read: i64,
}

pub type Checked = Result<(), TestCaseError>;

fn failed(error: impl std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

impl Run {
    pub async fn new(redis: &Redis, scripts: &Arc<Scripts>, prefix: &str, plan: &Plan) -> Self {
        let performance = Uuid::now_v7();
        let room = Room::new(redis.clone(), scripts.clone(), prefix, performance);
        let model = Model {
            limit: 2,
            remaining: 3,
            ceiling: plan.block,
            draw: Draw::new(plan.opening),
            ..Model::default()
        };
        let run = Self {
            room,
            redis: redis.clone(),
            base: format!("{prefix}:{{{performance}}}:"),
            people: (0..PEOPLE).map(|_| Uuid::now_v7()).collect(),
            model,
            epoch: 1,
            block: plan.block,
            began: now_ms(),
            first: HashMap::new(),
            latest: HashMap::new(),
            lost: HashMap::new(),
            behind: None,
            seq: 0,
            read: 0,
        };
        run.room.init(&run.start()).await.unwrap();
        let mut run = run;
        run.promise().await;
        run
    }

    pub async fn step(&mut self, op: &Op) -> Checked {
        self.model.draw.freeze(self.model.wall, self.model.last);
        match op {
            Op::Enter(who) => self.enter(who).await?,
            Op::CheckIn(person) => self.check_in(*person).await?,
            Op::Leave(person) => {
                let token = self.latest.get(person).copied();
                self.leave(token, *person).await?;
            }
            Op::Complete(person) => {
                let token = self.latest.get(person).copied();
                self.complete(token, *person).await?;
            }
            Op::Again(person, done) => {
                let token = self.first.get(person).copied();
                match done {
                    true => self.complete(token, *person).await?,
                    false => self.leave(token, *person).await?,
                }
            }
            Op::Jump(spans) => {
                self.model.pass(i64::from(*spans) * 20_000);
                self.set("skew", self.model.wall).await;
            }
            Op::StepBack(spans) => {
                // Scripts have seen the time before.
                self.tick().await?;
                let back = (i64::from(*spans) * 20_000).min(self.model.wall.max(0));
                self.model.step_back(back);
                self.set("skew", self.model.wall).await;
                self.tick().await?;
            }
            Op::Stall(spans) => {
                self.tick().await?;
                // What was promised runs out just now, and nothing is served for so long.
                let (seconds, micros): (i64, i64) = redis::cmd("TIME")
                    .query_async(&mut self.redis)
                    .await
                    .unwrap();
                let now = seconds * 1_000 + micros / 1_000 + self.model.now;
                self.set("due", now).await;
                self.model.stall(i64::from(*spans) * 20_000);
                self.set("skew", self.model.wall).await;
                self.tick().await?;
            }
            Op::Refused(person) => self.refused(*person).await?,
            Op::Tick => self.tick().await?,
            Op::Limit(limit) => {
                self.model.limit = usize::from(*limit);
                self.set("maxWorking", i64::from(*limit)).await;
            }
            Op::Pause(paused) => {
                self.model.paused = *paused;
                self.set("paused", i64::from(*paused)).await;
            }
            Op::Remaining(seats) => {
                self.model.remaining = i64::from(*seats);
                self.set("remaining", i64::from(*seats)).await;
            }
            Op::Inflow(limited) => {
                self.model.limited = *limited;
                match limited {
                    true => self.set("admissionsPerMinute", 6).await,
                    false => self.clear("admissionsPerMinute").await,
                }
            }
            Op::Lose => self.lose().await?,
            Op::Return(who) => self.come_back(who).await?,
            Op::Draw(size) => self.draw(*size).await?,
        }
        self.compare().await
    }

    /// The next tick was promised for a time that never comes: nothing is late unless a history says so.
    async fn promise(&mut self) {
        self.set("due", NEVER_MS).await;
    }

    async fn tick(&mut self) -> Checked {
        let tick = self
            .room
            .tick(Seen::default(), -1, NEVER_MS.unsigned_abs())
            .await
            .map_err(failed)?;
        self.model.settle();
        self.model.note();
        prop_assert!(tick.view.seq > self.seq, "readings are in order");
        prop_assert!(tick.view.now >= self.read, "the clock never goes back");
        (self.seq, self.read) = (tick.view.seq, tick.view.now);
        Ok(())
    }

    /// A check-in whose caller has given up changes nothing, nor does the entry of a newcomer.
    async fn refused(&mut self, person: u8) -> Checked {
        let Some(token) = self.latest.get(&person).copied() else {
            return Ok(());
        };
        let user = self.people[usize::from(person)];
        let gone = Patience::new(std::time::Duration::ZERO);
        gone.measure(gone.now(), 1);
        let room = self.room.clone().with_patience(gone);
        let late = room
            .check_in(Seen::default(), user, token.number, token.epoch)
            .await;
        prop_assert!(matches!(late, Err(ScriptError::Late)), "{:?}", late);
        let late = room.enter(Seen::default(), &[Uuid::now_v7()]).await;
        prop_assert!(matches!(late, Err(ScriptError::Late)), "{:?}", late);
        Ok(())
    }

    async fn enter(&mut self, who: &[u8]) -> Checked {
        let users: Vec<Uuid> = who.iter().map(|&p| self.people[usize::from(p)]).collect();
        let batch = self.room.enter(Seen::default(), &users).await;
        let batch = batch.map_err(failed)?;
        let codes = self.model.enter(who);
        let untold = self.model.draw.untold().map(|(above, upto)| Bounds {
            above: i64::try_from(above).unwrap(),
            upto: upto.map(|upto| i64::try_from(upto).unwrap()),
        });
        prop_assert_eq!(batch.draw, untold);
        // A server tells an outcome only when Postgres knows what the draw goes over.
        self.model.draw.note();
        for ((&person, outcome), code) in who.iter().zip(&batch.outcomes).zip(codes) {
            prop_assert_eq!(outcome.code, code);
            let number = match code {
                Code::Registered => self.model.draw.index_of(person),
                _ => self.model.number_of(person),
            };
            if let Some(number) = number {
                prop_assert_eq!(outcome.number, number);
                self.told(person, number, outcome.turn);
                let token = self.latest[&person];
                self.first.entry(person).or_insert(token);
            }
        }
        Ok(())
    }

    /// The person keeps the newest token.
    fn told(&mut self, person: u8, number: u64, bound: Bound) {
        let turn = self.model.working.get(&person);
        let works = turn.filter(|_| bound.deadline_ms > 0);
        let token = Token {
            number,
            registered: self.model.draw.index_of(person).is_some(),
            works: works.map(|turn| (turn.until, bound)),
            epoch: self.epoch,
        };
        self.latest.insert(person, token);
    }

    async fn check_in(&mut self, person: u8) -> Checked {
        let Some(token) = self.latest.get(&person).copied() else {
            return Ok(());
        };
        // Registered, and nothing else is told before the draw.
        let Some(number) = self.model.lot(token) else {
            return Ok(());
        };
        if token.registered {
            let told = Token {
                number,
                registered: false,
                ..token
            };
            self.latest.insert(person, told);
        }
        // Redis is asked only for a number that is served.
        if number > self.model.draw.written() {
            return Ok(());
        }
        let user = self.people[usize::from(person)];
        let got = self
            .room
            .check_in(Seen::default(), user, number, token.epoch)
            .await
            .map_err(failed)?;
        if token.epoch < self.epoch {
            prop_assert_eq!(got, CheckIn::Old);
            return Ok(());
        }
        let want = self.model.check_in(person, number);
        let (got, turn) = match got {
            CheckIn::Working(turn) => ("working", turn),
            CheckIn::Waiting(_) => ("waiting", Bound::default()),
            CheckIn::Ended { .. } => ("ended", Bound::default()),
            CheckIn::Closed(_) | CheckIn::Shut | CheckIn::Old => ("odd", Bound::default()),
        };
        prop_assert_eq!(got, want);
        if got == "working" {
            self.told(person, number, turn);
        }
        Ok(())
    }

    async fn lose(&mut self) -> Checked {
        let names = ["meta", "wait", "work", "place", "ended", "reg", "back"];
        redis::cmd("DEL")
            .arg(names.map(|name| format!("{}{name}", self.base)).to_vec())
            .query_async::<i64>(&mut self.redis)
            .await
            .unwrap();
        let base = u64::from(self.epoch) * self.block;
        self.epoch += 1;
        self.model.lose(base, base + self.block);
        self.lost = self.latest.clone();
        self.room.init(&self.start()).await.map_err(failed)?;
        self.promise().await;
        (self.seq, self.read) = (0, 0);
        Ok(())
    }

    async fn come_back(&mut self, who: &[u8]) -> Checked {
        let lost = who.iter().filter_map(|p| Some((*p, *self.lost.get(p)?)));
        let asked: Vec<(u8, Token, Return)> = lost
            .flat_map(|(person, token)| [(person, token, self.place(person, token)); 2])
            .collect();
        let places: Vec<Return> = asked.iter().map(|(_, _, place)| *place).collect();
        let batch = self.room.restore(Seen::default(), &places).await;
        let batch = batch.map_err(failed)?;
        let tokens: Vec<_> = asked
            .iter()
            .map(|(p, token, r)| (*p, *token, r.may))
            .collect();
        let codes = self.model.come_back(&tokens);
        let got: Vec<Code> = batch.outcomes.iter().map(|o| o.code).collect();
        prop_assert_eq!(got, codes);
        for ((person, _, place), outcome) in asked.iter().zip(&batch.outcomes).step_by(2) {
            let number = match place.registered {
                false => Some(place.number).filter(|n| self.model.number_of(*person) == Some(*n)),
                true => self.model.draw.index_of(*person),
            };
            let number = number.filter(|_| place.may != May::Never);
            if let Some(number) = number {
                prop_assert_eq!(outcome.number, number);
                if self.latest[person].epoch < self.epoch {
                    self.told(*person, number, outcome.turn);
                }
            }
        }
        Ok(())
    }

    /// What a server asks for, of a token from before the loss.
    fn place(&self, person: u8, token: Token) -> Return {
        let drawn = self.model.lot(token);
        Return {
            user: self.people[usize::from(person)],
            number: drawn.unwrap_or(token.number),
            turn: match token.works {
                Some((until, turn)) if until > self.model.now => turn,
                Some((_, turn)) => Bound {
                    deadline_ms: 0,
                    ..turn
                },
                None => Bound::default(),
            },
            may: self.model.may(token),
            registered: drawn.is_none(),
        }
    }

    async fn leave(&mut self, token: Option<Token>, person: u8) -> Checked {
        let Some(token) = token else { return Ok(()) };
        self.end(person, End::Left, &self.model.names(token))
            .await?;
        self.model.leave(person, token);
        Ok(())
    }

    async fn complete(&mut self, token: Option<Token>, person: u8) -> Checked {
        // Nobody orders by a registration.
        let Some(number) = token.and_then(|token| self.model.lot(token)) else {
            return Ok(());
        };
        let name = i64::try_from(number).unwrap();
        self.end(person, End::Completed, &[name]).await?;
        self.model.end(person, number);
        Ok(())
    }

    async fn end(&self, person: u8, reason: End, names: &[i64]) -> Checked {
        let user = self.people[usize::from(person)];
        let places: Vec<(Uuid, i64)> = names.iter().map(|name| (user, *name)).collect();
        let ended = self.room.end(Seen::default(), reason, &places).await;
        ended.map(drop).map_err(failed)
    }

    /// Another instance is a step behind, and writes that one again.
    async fn draw(&mut self, size: u64) -> Checked {
        let Some(step) = self.model.draw_on(size) else {
            return Ok(());
        };
        let behind = self.behind.replace(step.clone());
        for step in std::iter::once(step).chain(behind) {
            let seed = self.model.draw.seed();
            let wrote = self
                .room
                .draw(Seen::default(), &seed, step.next, &step.indexes)
                .await;
            prop_assert_eq!(wrote.map_err(failed)?, self.model.draw.next);
        }
        Ok(())
    }
}
