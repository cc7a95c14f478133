//! Redis flushed, restarted empty, or back with an older state.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use ticketping::serve::queue::Config;
use uuid::Uuid;

use super::{crowd::watched, redis_server::RedisServer, world::*};
use crate::support;

const CROWD: usize = 120;
const LIMIT: u64 = 5;

struct Crowd {
    world: World,
    a: Instance,
    b: Instance,
    places: Vec<(Uuid, Value)>,
}

async fn crowd(redis: &RedisServer) -> Crowd {
    let few = Config {
        max_working: LIMIT as u32,
        ..config()
    };
    let world = World::on(few, redis.url(), support::fresh_database().await).await;
    let (a, b) = (
        world.instance_with(watched()).await,
        world.instance_with(watched()).await,
    );
    let mut places = Vec::new();
    for i in 0..CROWD {
        let user = Uuid::now_v7();
        let at = if i % 2 == 0 { &a } else { &b };
        places.push((user, world.enter(at, user).await.1));
    }
    Crowd {
        world,
        a,
        b,
        places,
    }
}

impl Crowd {
    /// Two people's turns end: one buys, one leaves; two more come in and poll.
    async fn two_turns_end(&mut self) -> Vec<String> {
        let ended = vec![token(&self.places[0].1), token(&self.places[1].1)];
        self.world.confirm(&self.a, self.places[0].0, 1).await;
        assert_eq!(self.world.leave(&self.b, &ended[1]).await.0, 204);
        for i in [5, 6] {
            self.places[i].1 = self
                .world
                .admitted(&self.a, &token(&self.places[i].1))
                .await;
        }
        // Snapshots and notes are a second old at most.
        tokio::time::sleep(Duration::from_millis(1_600)).await;
        ended
    }

    /// Everybody polls once, as told at the latest.
    async fn all_poll(&mut self) {
        let tokens: Vec<_> = self.places[2..].iter().map(|(_, p)| token(p)).collect();
        let asked = tokens.iter().enumerate().map(async |(i, token)| {
            let at = if i % 2 == 0 { &self.a } else { &self.b };
            for _ in 0..20 {
                let (code, place) = self.world.ask(at, token).await;
                if code != 503 {
                    return (code, place);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            panic!("503 for too long");
        });
        let answers = join_all(asked).await;
        for (i, (code, place)) in answers.into_iter().enumerate() {
            assert_eq!(code, 200, "{}: {place}", i + 3);
            assert_eq!(number(&place), i as u64 + 3, "the number stays");
            self.places[i + 2].1 = place;
        }
    }

    async fn stands_as_before(&mut self, ended: &[String]) {
        // Two poll intervals: what was asked before the loss was noticed is asked once more.
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(1_000)).await;
            self.all_poll().await;
        }
        for (i, (_, place)) in self.places.iter().enumerate().skip(2) {
            let want = if i < 7 { "WORKING" } else { "WAITING" };
            assert_eq!(status(place), want, "{}: {place}", i + 1);
        }
        assert_eq!(self.world.working().await, LIMIT as i64);
        let line: Vec<(Vec<u8>, u64)> = redis::cmd("ZRANGE")
            .arg(self.world.key("wait"))
            .arg(0)
            .arg(-1)
            .arg("WITHSCORES")
            .query_async(&mut self.world.redis().await)
            .await
            .unwrap();
        let want: Vec<_> = self.places[7..]
            .iter()
            .map(|(user, p)| (user.as_bytes().to_vec(), number(p)))
            .collect();
        assert!(line == want, "the old order, with nobody missing");
        for token in ended {
            assert_eq!(self.world.ask(&self.a, token).await.0, 410);
        }
        // It goes on: when the recovery is over, the next in line comes in.
        let leaving = token(&self.places[2].1);
        assert_eq!(self.world.leave(&self.b, &leaving).await.0, 204);
        assert_eq!(self.world.ask(&self.a, &leaving).await.0, 410);
        let next = token(&self.places[7].1);
        let came = until(Duration::from_secs(8), async || {
            status(&self.world.ask(&self.a, &next).await.1) == "WORKING"
        })
        .await;
        assert!(came.is_some(), "{}", self.world.public(&self.a).await);
        let (code, new) = self.world.enter(&self.a, Uuid::now_v7()).await;
        assert_eq!(code, 201);
        assert!(number(&new) > 65_536, "numbers go on above the old ceiling");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_survive_flushall() {
    let redis = RedisServer::start(&[]).await;
    let mut crowd = crowd(&redis).await;
    let ended = crowd.two_turns_end().await;
    redis.command(&["FLUSHALL"]).await;
    crowd.stands_as_before(&ended).await;
    // And once more: tokens of two epochs ago are no better.
    redis.command(&["FLUSHALL"]).await;
    for token in &ended {
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
    let mut crowd = crowd(&redis).await;
    let ended = crowd.two_turns_end().await;
    redis.kill_and_start().await;
    crowd.stands_as_before(&ended).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn places_survive_a_redis_that_comes_back_with_an_older_state() {
    let mut redis = RedisServer::start(&[]).await;
    let mut crowd = crowd(&redis).await;
    redis.command(&["SAVE"]).await;
    let ended = crowd.two_turns_end().await;
    redis.kill_and_start().await;
    crowd.stands_as_before(&ended).await;
}
