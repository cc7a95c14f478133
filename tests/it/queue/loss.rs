//! Ten thousand people, and Redis flushed, restarted empty, back with an older state, or
//! failed over to a replica that lags.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use http_body_util::BodyExt;
use serde_json::Value;
use ticketping::{
    platform::{
        place::{Place, PlaceState, Turn},
        redis::Redis,
    },
    serve::queue::{
        self, Config,
        scripts::{Room, Scripts, Seen},
    },
};
use uuid::Uuid;

use super::{crowd::watched, failover::Watched, redis_server::RedisServer, world::*};
use crate::harness;

const CROWD: usize = 10_000;
const LIMIT: usize = 20;
/// The poll interval of everybody, however far back.
const POLL_MS: i64 = 2_000;

struct Person {
    user: Uuid,
    number: u64,
    token: String,
    status: String,
}

/// Everybody but the first two, whose turns have ended: `people[i]` has number `i + 3`.
struct Crowd {
    world: World,
    a: Instance,
    b: Instance,
    people: Vec<Person>,
    ended: Vec<String>,
}

impl Crowd {
    /// So many people have entered; the first of them work.
    async fn on(redis_url: String, crowd: usize) -> Self {
        let few = Config {
            max_working: u32::try_from(LIMIT).unwrap(),
            ..config()
        };
        let world = World::on(few, redis_url, harness::fresh_database().await).await;
        sqlx::query(
            "insert into settings (performance_id, max_working, working_ttl_ms, claim_ttl_ms, hold_ttl_ms, queue_factor, poll_max_ms)
             values ($1, $2, 60000, 30000, 60000, 0, $3)",
        )
        .bind(world.performance)
        .bind(i32::try_from(LIMIT).unwrap())
        .bind(POLL_MS)
        .execute(&world.pool)
        .await
        .unwrap();
        let (a, b) = (
            world.instance_with(watched()).await,
            world.instance_with(watched()).await,
        );
        world.public(&a).await;
        world.public(&b).await;
        let mut crowd_of = Self {
            world,
            a,
            b,
            people: Vec::new(),
            ended: Vec::new(),
        };
        crowd_of.enter(crowd).await;
        // Who works must hear it: a snapshot is a quarter of a second old at most.
        for at in [&crowd_of.a, &crowd_of.b] {
            let seen = until(Duration::from_secs(5), async || {
                crowd_of.world.public(at).await["servedNumber"] == LIMIT
            })
            .await;
            assert!(seen.is_some(), "the first come in");
        }
        crowd_of.all_poll().await;
        let working = crowd_of.people.iter().filter(|p| p.status == "WORKING");
        assert_eq!(working.count(), LIMIT);
        crowd_of
    }

    /// So many more people enter, in batches as the role would, and are given places.
    async fn enter(&mut self, more: usize) {
        let world = &self.world;
        let room = Room::new(
            Redis::connect(&world.redis_url).await.unwrap(),
            Arc::new(Scripts::default()),
            &world.prefix,
            world.performance,
        );
        let users: Vec<Uuid> = (0..more).map(|_| Uuid::now_v7()).collect();
        for part in users.chunks(256) {
            let batch = room.enter(Seen::default(), part).await.unwrap();
            for (user, outcome) in part.iter().zip(batch.outcomes) {
                let place = Place {
                    queue: world.performance,
                    user: *user,
                    epoch: outcome.epoch,
                    number: outcome.number,
                    state: PlaceState::Waiting,
                    issued_ms: now_ms().unsigned_abs(),
                    turn: Turn::default(),
                    position: 0,
                };
                self.people.push(Person {
                    user: *user,
                    number: outcome.number,
                    token: world.keys.seal(&place),
                    status: "WAITING".into(),
                });
            }
        }
    }

    /// One poll, at once from memory where that suffices.
    async fn poll(&self, at: &Instance, token: &str) -> (u16, Value) {
        let Some(fast) = at.state.poll_fast(self.world.performance, token) else {
            let (code, body) = self.world.ask(at, token).await;
            return (code.as_u16(), body);
        };
        let code = fast.status().as_u16();
        let body = fast.into_body().collect().await.unwrap().to_bytes();
        (code, serde_json::from_slice(&body).unwrap())
    }

    /// Everybody polls once: those who are next before those who work, then the rest, the last in
    /// line first.
    async fn all_poll(&mut self) {
        let next = LIMIT..(LIMIT + 100).min(self.people.len());
        let front: Vec<usize> = next.clone().chain(0..LIMIT).collect();
        self.these_poll(front).await;
        self.these_poll((next.end..self.people.len()).rev().collect())
            .await;
    }

    /// 503 is asked again, as it says.
    async fn these_poll(&mut self, who: Vec<usize>) {
        let answers = stream::iter(who.into_iter().map(|i| (i, &self.people[i])))
            .map(async |(i, person)| {
                let at = if i % 2 == 0 { &self.a } else { &self.b };
                for _ in 0..100 {
                    let (code, place) = self.poll(at, &person.token).await;
                    if code != 503 {
                        return (i, code, place);
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                panic!("503 for too long");
            })
            .buffer_unordered(500)
            .collect::<Vec<_>>()
            .await;
        for (i, code, place) in answers {
            assert_eq!(code, 200, "{i}: {place}");
            let person = &mut self.people[i];
            assert_eq!(number(&place), person.number, "the number stays");
            person.token = token(&place);
            person.status = status(&place).to_owned();
        }
    }

    /// Two people's turns end: one buys, one leaves; two more come in and poll.
    async fn two_turns_end(&mut self) {
        let [buys, leaves] = <[Person; 2]>::try_from(self.people.drain(..2).collect::<Vec<_>>())
            .unwrap_or_else(|_| unreachable!());
        self.world.confirm(&self.a, buys.user, buys.number).await;
        assert_eq!(self.world.leave(&self.b, &leaves.token).await.0, 204);
        for i in [LIMIT - 2, LIMIT - 1] {
            let place = self.world.admitted(&self.a, &self.people[i].token).await;
            self.people[i].token = token(&place);
        }
        self.ended = vec![buys.token, leaves.token];
        // Snapshots and notes are a second old at most.
        tokio::time::sleep(Duration::from_millis(1_600)).await;
    }

    /// Two poll intervals: what was asked before the loss was noticed is asked once more.
    async fn stands_as_before(&mut self) {
        let most = Most::watch(&self.world).await;
        for _ in 0..2 {
            let begun = Instant::now();
            self.all_poll().await;
            let interval = Duration::from_millis(POLL_MS.unsigned_abs());
            tokio::time::sleep(interval.saturating_sub(begun.elapsed())).await;
        }
        for (i, person) in self.people.iter().enumerate() {
            let want = if i < LIMIT { "WORKING" } else { "WAITING" };
            assert_eq!(person.status, want, "number {}", person.number);
        }
        self.same_line().await;
        for token in &self.ended {
            assert_eq!(self.world.ask(&self.a, token).await.0, 410);
        }
        assert_eq!(most.stop(), LIMIT as i64, "the most that worked at once");
        self.goes_on().await;
    }

    /// Who waits in Redis is who waited, in the old order, with nobody missing.
    async fn same_line(&self) {
        let mut redis = Redis::connect(&self.world.redis_url).await.unwrap();
        let line: Vec<(Vec<u8>, u64)> = redis::cmd("ZRANGE")
            .arg(self.world.key("wait"))
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES")
            .query_async(&mut redis)
            .await
            .unwrap();
        let waiting = self.people[LIMIT..].iter();
        let want: Vec<_> = waiting
            .map(|p| (p.user.as_bytes().to_vec(), p.number))
            .collect();
        assert!(line == want, "the old order, with nobody missing");
    }

    /// When the recovery is over, the next in line comes in, and newcomers stand behind.
    async fn goes_on(&mut self) {
        let leaving = self.people[0].token.clone();
        assert_eq!(self.world.leave(&self.b, &leaving).await.0, 204);
        assert_eq!(self.world.ask(&self.a, &leaving).await.0, 410);
        let next = &self.people[LIMIT].token;
        let came = until(Duration::from_secs(8), async || {
            status(&self.world.ask(&self.a, next).await.1) == "WORKING"
        })
        .await;
        assert!(came.is_some(), "{}", self.world.public(&self.a).await);
        let (code, new) = self.world.enter(&self.a, Uuid::now_v7()).await;
        assert_eq!(code, 201);
        assert!(number(&new) > 65_536, "numbers go on above the old ceiling");
        self.ended.push(leaving);
        self.people.remove(0);
    }
}

/// The greatest size that the working set is ever seen to have.
struct Most {
    seen: Arc<AtomicI64>,
    stop: Arc<AtomicBool>,
}

impl Most {
    async fn watch(world: &World) -> Self {
        let most = Self {
            seen: Arc::default(),
            stop: Arc::default(),
        };
        let (seen, stop) = (most.seen.clone(), most.stop.clone());
        let mut redis = Redis::connect(&world.redis_url).await.unwrap();
        let key = world.key("work");
        tokio::spawn(async move {
            while !stop.load(Relaxed) {
                let card = redis::cmd("ZCARD").arg(&key).query_async(&mut redis).await;
                seen.fetch_max(card.unwrap_or(0), Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        most
    }

    fn stop(&self) -> i64 {
        self.stop.store(true, Relaxed);
        self.seen.load(Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_survive_flushall() {
    let redis = RedisServer::start(&[]).await;
    let mut crowd = Crowd::on(redis.url(), CROWD).await;
    crowd.two_turns_end().await;
    redis.command(&["FLUSHALL"]).await;
    crowd.stands_as_before().await;
    // And once more: tokens of two epochs ago are no better.
    redis.command(&["FLUSHALL"]).await;
    for token in &crowd.ended {
        let mut code = 503;
        until(Duration::from_secs(4), async || {
            code = crowd.world.ask(&crowd.a, token).await.0.as_u16();
            code != 503
        })
        .await;
        assert_eq!(code, 410);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_survive_a_redis_killed_and_started_empty() {
    let mut redis = RedisServer::start(&[]).await;
    let mut crowd = Crowd::on(redis.url(), CROWD).await;
    crowd.two_turns_end().await;
    redis.kill_and_start().await;
    crowd.stands_as_before().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_survive_a_redis_that_comes_back_with_an_older_state() {
    let mut redis = RedisServer::start(&[]).await;
    let mut crowd = Crowd::on(redis.url(), 120).await;
    redis.command(&["SAVE"]).await;
    crowd.two_turns_end().await;
    redis.kill_and_start().await;
    crowd.stands_as_before().await;
}

/// The replica has never heard of the last to enter, of the turns that ended, nor of who
/// came in after them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_survive_a_failover_to_a_replica_that_lags() {
    let mut redis = Watched::start().await;
    let mut crowd = Crowd::on(redis.url(), CROWD - 200).await;
    redis.hold_up();
    crowd.enter(200).await;
    crowd.two_turns_end().await;
    redis.fail_over().await;
    let lags = redis
        .replica
        .command(&["ZCARD", &crowd.world.key("wait")])
        .await;
    assert_eq!(lags, redis::Value::Int((CROWD - 200 - LIMIT) as i64));
    crowd.stands_as_before().await;
}

/// `seed --reset` empties the stores beside a server that remembers: the next life of the
/// same performance has nothing of the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_beside_a_running_server_begins_anew() {
    let redis = RedisServer::start(&[]).await;
    let one = Config {
        max_working: 1,
        ..config()
    };
    let world = World::on(one, redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let mut before = Vec::new();
    for _ in 0..3 {
        before.push(token(&world.enter(&at, Uuid::now_v7()).await.1));
    }
    // Noted as it goes: what is known of the old life must not be taken for the new one's.
    tokio::time::sleep(Duration::from_millis(1_300)).await;
    queue::forget_everything(&world.pool).await.unwrap();
    redis.command(&["FLUSHALL"]).await;
    let begun = until(Duration::from_secs(5), async || {
        world.meta("epoch").await == Some(2)
    })
    .await;
    assert!(begun.is_some(), "the new life begins");
    let (code, first) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!((code.as_u16(), number(&first)), (201, 1), "{first}");
    assert_eq!(
        status(&first),
        "WORKING",
        "there is nothing to recover from"
    );
    for token in &before {
        let (code, body) = world.ask(&at, token).await;
        assert_eq!(code, 410, "{body}");
    }
    // And a loss after it is an ordinary one: the old life does not come back by it either.
    redis.command(&["FLUSHALL"]).await;
    let back = until(Duration::from_secs(5), async || {
        world.ask(&at, &token(&first)).await.0 == 200 && world.meta("epoch").await == Some(3)
    })
    .await;
    assert!(back.is_some());
    for token in &before {
        assert_eq!(world.ask(&at, token).await.0, 410);
    }
}
