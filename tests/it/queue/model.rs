//! The scripts against a simple model of the rules: random operations with clock
//! jumps, retries and lost wake-ups. Known defects must be caught by the same test.

use std::{collections::HashMap, sync::Arc};

use proptest::{
    prelude::*,
    test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner},
};
use ticketping::{
    platform::redis::Redis,
    serve::queue::scripts::{CheckIn, Code, End, Return, Room, Scripts, Seen, Start},
};
use uuid::Uuid;

use super::rulebook::*;
use crate::support;

/// The sorted set of those who wait: user, number.
type Line = Vec<(Vec<u8>, u64)>;
/// The hash of places: user, what stands there.
type Places = HashMap<Vec<u8>, String>;

const PEOPLE: u8 = 8;
/// Numbers of an epoch.
const BLOCK: u64 = 10_000;

/// Jumps are multiples of 20 s, so that every deadline is 10 s from any of them:
/// what the run itself takes changes nothing.
#[derive(Clone, Debug)]
enum Op {
    Enter(Vec<u8>),
    CheckIn(u8),
    Leave(u8),
    Complete(u8),
    /// An event or a request that comes once more, with the first number the person ever had.
    Again(u8, bool),
    Jump(u8),
    /// The wake-up was lost for this long, and then the sweep comes.
    Tick,
    Limit(u8),
    Pause(bool),
    Remaining(u8),
    /// At most one admission in ten seconds, or as many as there is room for.
    Inflow(bool),
    /// Redis is flushed, and the next epoch begins.
    Lose,
    /// Comes back by the token that the person had before the loss, and the request is sent twice.
    Return(u8),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let person = 0..PEOPLE;
    let op = prop_oneof![
        4 => proptest::collection::vec(person.clone(), 1..4).prop_map(Op::Enter),
        4 => person.clone().prop_map(Op::CheckIn),
        2 => person.clone().prop_map(Op::Leave),
        2 => person.clone().prop_map(Op::Complete),
        2 => (person.clone(), any::<bool>()).prop_map(|(p, done)| Op::Again(p, done)),
        2 => (1..4_u8).prop_map(Op::Jump),
        2 => Just(Op::Tick),
        1 => (0..4_u8).prop_map(Op::Limit),
        1 => any::<bool>().prop_map(Op::Pause),
        1 => (0..4_u8).prop_map(Op::Remaining),
        1 => any::<bool>().prop_map(Op::Inflow),
        1 => Just(Op::Lose),
        3 => person.prop_map(Op::Return),
    ];
    proptest::collection::vec(op, 1..40)
}

/// What an epoch begins with, of the settings that hold.
fn start(model: &Model, epoch: u32) -> Start {
    let field = |name, value: i64| (name, value.to_string());
    let base = u64::from(epoch - 1) * BLOCK;
    let mut fields = vec![
        field("maxWorking", i64::try_from(model.limit).unwrap()),
        field("workingTtl", WORKING_MS),
        field("claimTtl", CLAIM_MS),
        field("queueFactor", 0),
        field("remaining", model.remaining),
        field("paused", i64::from(model.paused)),
        field("pollMin", 1_000),
        field("pollMax", 1_000),
        field("pollStep", 0),
        field("skew", model.now),
    ];
    if model.limited {
        fields.push(field("admissionsPerMinute", 6));
    }
    Start {
        epoch,
        base,
        ceiling: i64::try_from(base + BLOCK).unwrap(),
        served: 0,
        // The clock jumps by what has been jumped before only once the fields are written.
        recover_ms: match epoch {
            1 => 0,
            _ => (model.now + RECOVER_MS).unsigned_abs(),
        },
        fields,
    }
}

struct Run {
    room: Room,
    redis: redis::aio::MultiplexedConnection,
    base: String,
    people: Vec<Uuid>,
    model: Model,
    epoch: u32,
    first: HashMap<u8, u64>,
    latest: HashMap<u8, Token>,
    /// The tokens that people had at the loss.
    lost: HashMap<u8, Token>,
}

type Checked = Result<(), TestCaseError>;

impl Run {
    async fn new(url: &str, scripts: &Arc<Scripts>, prefix: &str) -> Self {
        let performance = Uuid::now_v7();
        let room = Room::new(
            Redis::connect(url).await.unwrap(),
            scripts.clone(),
            prefix,
            performance,
        );
        let model = Model {
            limit: 2,
            remaining: 3,
            ..Model::default()
        };
        room.init(&start(&model, 1)).await.unwrap();
        Self {
            room,
            redis: redis::Client::open(url)
                .unwrap()
                .get_multiplexed_async_connection()
                .await
                .unwrap(),
            base: format!("{prefix}:{{{performance}}}:"),
            people: (0..PEOPLE).map(|_| Uuid::now_v7()).collect(),
            model,
            epoch: 1,
            first: HashMap::new(),
            latest: HashMap::new(),
            lost: HashMap::new(),
        }
    }

    async fn set(&mut self, field: &str, value: i64) {
        redis::cmd("HSET")
            .arg(format!("{}meta", self.base))
            .arg(field)
            .arg(value)
            .query_async::<i64>(&mut self.redis)
            .await
            .unwrap();
    }

    async fn step(&mut self, op: &Op) -> Checked {
        let seen = Seen::default();
        let fail = |e: &dyn std::fmt::Display| TestCaseError::fail(e.to_string());
        match op {
            Op::Enter(who) => {
                let users: Vec<Uuid> = who.iter().map(|&p| self.people[usize::from(p)]).collect();
                let batch = self.room.enter(seen, &users).await.map_err(|e| fail(&e))?;
                self.model.enter(who);
                for (&person, outcome) in who.iter().zip(&batch.outcomes) {
                    let number = self.model.number_of(person);
                    let works = self.model.working.contains_key(&person);
                    let want = match (number, works) {
                        (Some(_), true) => Code::Working,
                        (Some(_), false) => Code::Waiting,
                        (None, _) => Code::SoldOut,
                    };
                    prop_assert_eq!(outcome.code, want);
                    if let Some(number) = number {
                        prop_assert_eq!(outcome.number, number);
                        self.first.entry(person).or_insert(number);
                        self.told(person, number, outcome.deadline_ms);
                    }
                }
            }
            Op::CheckIn(person) => self.check_in(*person).await?,
            Op::Leave(person) => self.end(*person, End::Left, self.number(*person)).await?,
            Op::Complete(person) => {
                self.end(*person, End::Completed, self.number(*person))
                    .await?;
            }
            Op::Again(person, done) => {
                let reason = if *done { End::Completed } else { End::Left };
                self.end(*person, reason, self.first.get(person).copied())
                    .await?;
            }
            Op::Jump(spans) => {
                self.model.now += i64::from(*spans) * 20_000;
                self.set("skew", self.model.now).await;
            }
            Op::Tick => {
                self.room.tick(seen, -1).await.map_err(|e| fail(&e))?;
                self.model.settle();
            }
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
            Op::Return(person) => self.come_back(*person).await?,
        }
        self.compare().await
    }

    fn number(&self, person: u8) -> Option<u64> {
        self.latest.get(&person).map(|token| token.number)
    }

    /// The person keeps the newest token.
    fn told(&mut self, person: u8, number: u64, deadline_ms: u64) {
        let turn = self.model.working.get(&person);
        let works = turn.filter(|_| deadline_ms > 0);
        let token = Token {
            number,
            works: works.map(|turn| (turn.until, deadline_ms)),
            epoch: self.epoch,
        };
        self.latest.insert(person, token);
    }

    async fn check_in(&mut self, person: u8) -> Checked {
        let Some(token) = self.latest.get(&person).copied() else {
            return Ok(());
        };
        let user = self.people[usize::from(person)];
        let number = token.number;
        let got = self
            .room
            .check_in(Seen::default(), user, number, token.epoch)
            .await
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        if token.epoch < self.epoch {
            prop_assert_eq!(got, CheckIn::Old);
            return Ok(());
        }
        let want = self.model.check_in(person, number);
        let (got, deadline) = match got {
            CheckIn::Working(until) => ("working", until),
            CheckIn::Waiting(_) => ("waiting", 0),
            CheckIn::Ended { .. } => ("ended", 0),
            CheckIn::Closed(_) | CheckIn::Old => ("odd", 0),
        };
        prop_assert_eq!(got, want);
        if got == "working" {
            self.told(person, number, deadline);
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
        self.epoch += 1;
        let start = start(&self.model, self.epoch);
        self.model.lose(start.base);
        self.lost = self.latest.clone();
        self.room
            .init(&start)
            .await
            .map_err(|e| TestCaseError::fail(e.to_string()))
    }

    async fn come_back(&mut self, person: u8) -> Checked {
        let Some(token) = self.lost.get(&person).copied() else {
            return Ok(());
        };
        let place = Return {
            user: self.people[usize::from(person)],
            number: token.number,
            deadline_ms: match token.works {
                Some((until, deadline)) if until > self.model.now => deadline,
                Some(_) | None => 0,
            },
            may: self.model.may(token),
            registered: false,
        };
        let batch = self.room.restore(Seen::default(), &[place, place]).await;
        let batch = batch.map_err(|e| TestCaseError::fail(e.to_string()))?;
        for outcome in &batch.outcomes {
            prop_assert_eq!(outcome.code, self.model.come_back(person, token));
        }
        self.model.settle();
        let stands = self.model.number_of(person) == Some(token.number);
        if stands
            && self
                .latest
                .get(&person)
                .is_some_and(|t| t.epoch < self.epoch)
        {
            self.told(person, token.number, batch.outcomes[0].deadline_ms);
        }
        Ok(())
    }

    async fn clear(&mut self, field: &str) {
        redis::cmd("HDEL")
            .arg(format!("{}meta", self.base))
            .arg(field)
            .query_async::<i64>(&mut self.redis)
            .await
            .unwrap();
    }

    async fn end(&mut self, person: u8, reason: End, number: Option<u64>) -> Checked {
        let Some(number) = number else { return Ok(()) };
        let user = self.people[usize::from(person)];
        self.room
            .end(Seen::default(), reason, &[(user, number)])
            .await
            .map_err(|e| TestCaseError::fail(e.to_string()))?;
        self.model.end(person, number);
        Ok(())
    }

    /// What stands in Redis is what the rules say, person for person.
    async fn compare(&mut self) -> Checked {
        let (wait, place): (Line, Places) = redis::pipe()
            .cmd("ZRANGE")
            .arg(format!("{}wait", self.base))
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES")
            .hgetall(format!("{}place", self.base))
            .query_async(&mut self.redis)
            .await
            .unwrap();
        let who = |user: &[u8]| self.people.iter().position(|p| p.as_bytes() == user);
        let waits: Vec<(u64, usize)> = wait
            .iter()
            .map(|(user, number)| (*number, who(user).unwrap()))
            .collect();
        let want: Vec<(u64, usize)> = self
            .model
            .waiting
            .iter()
            .map(|(n, p)| (*n, usize::from(*p)))
            .collect();
        prop_assert_eq!(waits, want, "who waits");
        let mut works: Vec<(usize, String)> = place
            .iter()
            .map(|(user, place)| (who(user).unwrap(), place.clone()))
            .collect();
        works.sort();
        let mut want: Vec<(usize, String)> = self
            .model
            .working
            .iter()
            .map(|(p, t)| {
                let state = if t.here { 'A' } else { 'C' };
                (usize::from(*p), format!("{},{state}", t.number))
            })
            .collect();
        want.sort();
        prop_assert_eq!(works, want, "who works");
        Ok(())
    }
}

/// Runs `cases` random histories; the first that breaks the rules.
async fn check(scripts: Scripts, cases: u32) -> Result<(), String> {
    let url = support::stores().await.redis_url.clone();
    let (scripts, prefix) = (Arc::new(scripts), support::prefix());
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let runs = Runs {
            cases,
            failure_persistence: None,
            max_shrink_iters: 200,
            ..Runs::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]);
        TestRunner::new_with_rng(runs, rng)
            .run(&ops(), |ops| {
                runtime.block_on(async {
                    let mut run = Run::new(&url, &scripts, &prefix).await;
                    for op in &ops {
                        run.step(op).await?;
                    }
                    Ok(())
                })
            })
            .map_err(|e| e.to_string())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn random_histories_follow_the_rules() {
    if let Err(broken) = check(Scripts::default(), 150).await {
        panic!("{broken}");
    }
}

/// A defect of the scripts: what is replaced, and by what.
const MUTANTS: &[(&str, &str, &str)] = &[
    (
        "promotes without looking at the limit",
        "local room = q.maxWorking - redis.call('ZCARD', q.work)",
        "local room = Q_BATCH",
    ),
    (
        "counts one too many",
        "q.maxWorking - redis.call('ZCARD', q.work)",
        "q.maxWorking + 1 - redis.call('ZCARD', q.work)",
    ),
    (
        "entering again goes to the back",
        "elseif waits[i] then",
        "elseif false then",
    ),
    (
        "never sweeps",
        "redis.call('ZRANGEBYSCORE', q.work, '-inf', q.now,",
        "redis.call('ZRANGEBYSCORE', q.work, '-inf', 0,",
    ),
    (
        "an order gives up a later place of the same person",
        "if q_working(q, user) == number then",
        "if q_working(q, user) then",
    ),
    (
        "every check-in renews the turn",
        "if state == 'C' then\n      deadline",
        "if true then\n      deadline",
    ),
    (
        "a freed slot waits for the sweep",
        "if not lost then q_promote(q) end\nreturn { 'ok', ended }",
        "return { 'ok', ended }",
    ),
    ("admits while paused", "return q.paused ~= 1 and", "return"),
    (
        "admits while a lower number waits",
        "local number = tonumber(next_up[i + 1])\n",
        "local number = tonumber(next_up[#next_up])\n",
    ),
    (
        "admits while people are put back",
        "and not q_recovering(q)\n",
        "\n",
    ),
    (
        "saves up admissions",
        "q.credit = math.min(q.credit + earned,",
        "q.credit = math.max(q.credit + earned,",
    ),
    (
        "comes back at the end",
        "redis.call('ZADD', q.wait, string.format('%.0f', number), user)\n  return 1, 0",
        "redis.call('ZADD', q.wait, string.format('%.0f', number + 5000), user)\n  return 1, 0",
    ),
    (
        "comes back to work where there is no room",
        "if deadline > q.now and redis.call('ZCARD', q.work) < q.maxWorking then\n    redis.call('ZREM'",
        "if deadline > q.now then\n    redis.call('ZREM'",
    ),
    (
        "comes back twice in an epoch",
        "if redis.call('SETBIT', q.back, number, 1) == 1 and code ~= 1 then",
        "if false then",
    ),
    (
        "keeps who waits when the last seat goes",
        "redis.call('UNLINK', q.wait)",
        "",
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_known_defect_is_caught() {
    for (what, from, to) in MUTANTS {
        let found = std::cell::Cell::new(false);
        let scripts = Scripts::with(|text| {
            found.set(found.get() || text.contains(from));
            text.replace(from, to)
        });
        assert!(found.get(), "the defect \"{what}\" has nothing to replace");
        assert!(check(scripts, 300).await.is_err(), "not caught: {what}");
    }
}
