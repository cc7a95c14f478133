//! What stands in Redis of a replayed history: how an epoch begins, and what the rules say
//! must stand there.

use std::{collections::HashMap, sync::Arc};

use proptest::{
    prelude::*,
    test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner},
};
use ticketping::{
    platform::redis::Redis,
    serve::queue::scripts::{Scripts, Start},
};

use super::{
    replay::{Checked, Plan, Run},
    rulebook::*,
};
use crate::harness;

/// A sorted set of people: user, number.
type Line = Vec<(Vec<u8>, u64)>;
/// The hash of places: user, what stands there.
type Places = HashMap<Vec<u8>, String>;

impl Run {
    /// What an epoch begins with, of the settings that hold.
    pub(super) fn start(&self) -> Start {
        let model = &self.model;
        let field = |name, value: i64| (name, value.to_string());
        let base = u64::from(self.epoch - 1) * self.block;
        let mut fields = vec![
            field("maxWorking", i64::try_from(model.limit).unwrap()),
            field("workingTtl", WORKING_MS),
            field("claimTtl", CLAIM_MS),
            field("holdTtl", HOLD_MS),
            field("queueFactor", 0),
            field("remaining", model.remaining),
            field("paused", i64::from(model.paused)),
            field("pollMin", 1_000),
            field("pollMax", 1_000),
            field("pollStep", 0),
            field("skew", model.wall),
        ];
        if model.limited {
            fields.push(field("admissionsPerMinute", 6));
        }
        if let Some(opening) = model.draw.opening {
            fields.push(field("preQueueOpensAt", self.began + opening.registers));
            fields.push(field("opensAt", self.began + opening.books));
        }
        if let Some(first) = model.draw.first {
            fields.push(("drawLo", first.to_string()));
        }
        if let Some(last) = model.draw.frozen {
            fields.push(("drawHi", last.to_string()));
            fields.push(("drawNext", model.draw.next.to_string()));
            fields.push(("seed", hex::encode(model.draw.seed())));
        }
        Start {
            epoch: self.epoch,
            base,
            ceiling: i64::try_from(model.ceiling).unwrap(),
            served: 0,
            served_then: 0,
            skips: Vec::new(),
            survival: None,
            orders: false,
            // The clock jumps by what has been jumped before only once the fields are written.
            recover_ms: match self.epoch {
                1 => 0,
                _ => (model.now + RECOVER_MS).unsigned_abs(),
            },
            fields,
            schedules: Vec::new(),
        }
    }

    pub(super) async fn set(&mut self, field: &str, value: i64) {
        redis::cmd("HSET")
            .arg(format!("{}meta", self.base))
            .arg(field)
            .arg(value)
            .query_async::<i64>(&mut self.redis)
            .await
            .unwrap();
    }

    pub(super) async fn clear(&mut self, field: &str) {
        redis::cmd("HDEL")
            .arg(format!("{}meta", self.base))
            .arg(field)
            .query_async::<i64>(&mut self.redis)
            .await
            .unwrap();
    }

    /// What stands in Redis is what the rules say, person for person.
    pub(super) async fn compare(&mut self) -> Checked {
        let all = |name| {
            let mut call = redis::cmd("ZRANGE");
            call.arg(format!("{}{name}", self.base));
            call.arg(0).arg(-1).arg("WITHSCORES");
            call
        };
        let (wait, reg, place, served): (Line, Line, Places, u64) = redis::pipe()
            .add_command(all("wait"))
            .add_command(all("reg"))
            .hgetall(format!("{}place", self.base))
            .hget(format!("{}meta", self.base), "served")
            .query_async(&mut self.redis)
            .await
            .unwrap();
        let model = &self.model;
        let who = |user: &[u8]| {
            let found = self.people.iter().position(|p| p.as_bytes() == user);
            u8::try_from(found.unwrap()).unwrap()
        };
        let line = |line: Line| -> Vec<(u64, u8)> {
            line.iter().map(|(user, n)| (*n, who(user))).collect()
        };
        let want: Vec<(u64, u8)> = model.waiting.iter().map(|(n, p)| (*n, *p)).collect();
        prop_assert_eq!(line(wait), want, "who waits");
        let registered = &model.draw.registered;
        let want: Vec<(u64, u8)> = registered.iter().map(|(n, p)| (*n, *p)).collect();
        prop_assert_eq!(line(reg), want, "who is registered");
        let here = place.iter().filter(|(user, _)| user.len() == 16);
        let mut works: Vec<(u8, String)> = here
            .map(|(user, place)| {
                let mut parts = place.split(',');
                let (number, state) = (parts.next().unwrap(), parts.next().unwrap());
                let bounds: Vec<i64> = parts.take(2).map(|at| at.parse().unwrap()).collect();
                if let [holding, last] = bounds[..] {
                    assert_eq!(
                        last - holding,
                        2 * HOLD_MS,
                        "what a turn's orders may add to it"
                    );
                }
                assert_eq!(
                    bounds.is_empty(),
                    state == "C",
                    "a turn has bounds: {place}"
                );
                (who(user), format!("{number},{state}"))
            })
            .collect();
        works.sort();
        let mut want: Vec<(u8, String)> = model
            .working
            .iter()
            .map(|(p, t)| {
                let state = if t.here { 'A' } else { 'C' };
                (*p, format!("{},{state}", t.number))
            })
            .collect();
        want.sort();
        prop_assert_eq!(works, want, "who works");
        prop_assert!(
            served <= model.draw.written(),
            "a turn is called before its number is written"
        );
        let mut everybody: Vec<u8> = model
            .waiting
            .values()
            .chain(registered.values())
            .copied()
            .collect();
        everybody.extend(model.working.keys());
        everybody.sort_unstable();
        prop_assert!(
            everybody.is_sorted_by(|a, b| a < b),
            "one place a person: {:?}",
            everybody
        );
        Ok(())
    }
}

/// Runs `cases` random histories; the first that breaks the rules, as short as it gets in so
/// many tries.
async fn check<S: Strategy<Value = Plan> + 'static>(
    plans: fn() -> S,
    scripts: Scripts,
    cases: u32,
    tries: u32,
) -> Result<(), String> {
    let url = harness::stores().await.redis_url.clone();
    let (scripts, prefix) = (Arc::new(scripts), harness::prefix());
    tokio::task::spawn_blocking(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let redis = runtime.block_on(Redis::connect(&url)).unwrap();
        let runs = Runs {
            cases,
            failure_persistence: None,
            max_shrink_iters: tries,
            ..Runs::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[42; 32]);
        TestRunner::new_with_rng(runs, rng)
            .run(&plans(), |plan| {
                runtime.block_on(async {
                    let mut run = Run::new(&redis, &scripts, &prefix, &plan).await;
                    for op in &plan.ops {
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

/// Random histories follow the rules.
pub async fn holds<S: Strategy<Value = Plan> + 'static>(plans: fn() -> S) {
    if let Err(broken) = check(plans, Scripts::default(), 150, 200).await {
        panic!("{broken}");
    }
}

/// A defect of the scripts: what it does, what is replaced, and by what.
pub type Mutant = (&'static str, &'static str, &'static str);

/// The defect is found by the same histories that the scripts as they are pass.
pub async fn catches<S: Strategy<Value = Plan> + 'static>(plans: fn() -> S, mutant: &Mutant) {
    let (what, from, to) = mutant;
    let found = std::cell::Cell::new(false);
    let scripts = Scripts::with(|text| {
        found.set(found.get() || text.contains(from));
        text.replace(from, to)
    });
    assert!(found.get(), "the defect \"{what}\" has nothing to replace");
    let caught = check(plans, scripts, 1_500, 0).await;
    assert!(caught.is_err(), "not caught: {what}");
}
