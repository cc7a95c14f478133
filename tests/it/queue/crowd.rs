//! Hundreds at once, on several instances that share one Redis.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use serde_json::json;
use ticketping::serve::queue::{Config, scripts::Scripts};
use uuid::Uuid;

use super::{redis_server::RedisServer, world::*};
use crate::harness;

/// Scripts that watch themselves: an admission above the limit is an error inside the very
/// call, and the order of admission is written down.
pub fn watched() -> Scripts {
    Scripts::with(|text| {
        let limit = "  q_serve(q)\n  return admitted";
        let order = "local number = tonumber(next_up[i + 1])\n";
        assert!(text.contains(limit) && text.contains(order));
        // The one place of a return that admits without promoting.
        let back = "    q_set_working(q, user, number, 'A', deadline, turn)\n    if q_reserved";
        assert!(text.contains(back) == text.contains("local function put_back"));
        let text = text.replace(
            back,
            "    q_set_working(q, user, number, 'A', deadline, turn)\n    assert(redis.call('ZCARD', q.work) <= q.maxWorking, 'over the limit')\n    if q_reserved",
        );
        text.replace(
            limit,
            "  assert(admitted == 0 or redis.call('ZCARD', q.work) <= q.maxWorking, 'over the limit')\n  q_serve(q)\n  return admitted",
        )
        .replace(
            order,
            "local number = tonumber(next_up[i + 1])\n        redis.call('RPUSH', q.base .. 'order', number)\n",
        )
    })
}

pub async fn order(world: &World) -> Vec<u64> {
    redis::cmd("LRANGE")
        .arg(world.key("order"))
        .arg(0)
        .arg(-1)
        .query_async(&mut world.redis().await)
        .await
        .unwrap()
}

/// One person's whole visit: enter, poll as told (a tenth of it), then buy, leave or wander off.
async fn visit(world: &World, at: [&Instance; 2], i: usize) {
    let user = Uuid::now_v7();
    let (code, mut place) = world.enter(at[i % 2], user).await;
    assert!(code.is_success(), "{code} {place}");
    let mut before = u64::MAX;
    for round in 0..600 {
        if status(&place) == "WORKING" {
            break;
        }
        let position = place["position"].as_u64().unwrap();
        assert!(
            position <= before,
            "a position grew: {before} to {position}"
        );
        before = position;
        let wait = place["pollAfterMs"].as_u64().unwrap() / 10;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let (code, next) = world.ask(at[(i + round) % 2], &token(&place)).await;
        assert!(code.is_success(), "{i}: {code} {next}");
        place = next;
    }
    assert_eq!(status(&place), "WORKING", "{i} is never admitted");
    match i % 3 {
        0 => world.confirm(at[0], user, number(&place)).await,
        1 => assert_eq!(world.leave(at[1], &token(&place)).await.0, 204),
        _ => {} // wanders off: the turn lapses
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_is_admitted_in_order_and_never_above_the_limit() {
    let world = World::new(Config {
        max_working: 20,
        working_ttl: Duration::from_secs(1),
        claim_ttl: Duration::from_secs(5),
        ..config()
    })
    .await;
    let (a, b) = (
        world.instance_with(watched()).await,
        world.instance_with(watched()).await,
    );
    join_all((0..300).map(|i| visit(&world, [&a, &b], i))).await;
    let order = order(&world).await;
    assert_eq!(order.len(), 300, "everybody is admitted once");
    assert!(order.is_sorted_by(|x, y| x < y), "out of order: {order:?}");
    until(Duration::from_secs(4), async || world.working().await == 0).await;
    assert_eq!(world.working().await, 0, "no slot leaks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_person_entering_fifty_times_at_once_has_one_place() {
    let world = World::new(Config {
        max_working: 0,
        ..config()
    })
    .await;
    let (a, b) = (world.instance().await, world.instance().await);
    let user = Uuid::now_v7();
    let entered =
        join_all((0..50).map(|i| world.enter(if i % 2 == 0 { &a } else { &b }, user))).await;
    assert!(entered.iter().all(|(_, place)| number(place) == 1));
    let new = entered.iter().filter(|(code, _)| *code == 201).count();
    assert_eq!(new, 1, "one entry made the place");
    assert_eq!(world.meta("last").await, Some(1));
}

#[tokio::test]
async fn slots_come_back_within_two_seconds_where_redis_notifies_of_nothing() {
    // Without CONFIG the server cannot switch notifications on, and says so.
    let redis = RedisServer::start(&["--rename-command", "CONFIG", ""]).await;
    let quick = Config {
        max_working: 1,
        working_ttl: Duration::from_secs(1),
        ..config()
    };
    let world = World::on(quick, redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let (_, first) = world.enter(&at, Uuid::now_v7()).await;
    let (_, second) = world.enter(&at, Uuid::now_v7()).await;
    let ends = chrono::DateTime::parse_from_rfc3339(first["expiresAt"].as_str().unwrap()).unwrap();
    let mut place = second;
    until(Duration::from_secs(5), async || {
        place = world.ask(&at, &token(&place)).await.1;
        status(&place) == "WORKING"
    })
    .await;
    assert_eq!(status(&place), "WORKING");
    let late = chrono::Utc::now().signed_duration_since(ends);
    assert!(late < chrono::TimeDelta::seconds(2), "{late}");
    let slice = at.state.overview(None).await;
    assert!(
        slice
            .alarms
            .iter()
            .any(|a| a.code == "NO_KEYSPACE_NOTIFICATIONS"),
        "{:?}",
        slice.alarms
    );
}

async fn calls(redis: &RedisServer) -> u64 {
    let info = redis.command(&["INFO", "commandstats"]).await;
    let redis::Value::BulkString(text) = info else {
        panic!("{info:?}");
    };
    String::from_utf8(text)
        .unwrap()
        .lines()
        .filter_map(|l| {
            l.strip_prefix("cmdstat_evalsha:calls=")?
                .split(',')
                .next()?
                .parse::<u64>()
                .ok()
        })
        .sum()
}

#[tokio::test]
async fn waiting_polls_make_no_redis_command() {
    let redis = RedisServer::start(&[]).await;
    let full = Config {
        max_working: 0,
        ..config()
    };
    let world = World::on(full, redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let mut tokens = Vec::new();
    for _ in 0..20 {
        tokens.push(token(&world.enter(&at, Uuid::now_v7()).await.1));
    }
    tokio::time::sleep(Duration::from_millis(600)).await;
    let (before, begun) = (calls(&redis).await, std::time::Instant::now());
    for i in 0..5_000 {
        let place = &tokens[i % tokens.len()];
        let answer = at.state.poll_fast(world.performance, place);
        assert_eq!(answer.expect("answered from memory").status(), 200);
    }
    for token in &tokens {
        assert_eq!(world.ask(&at, token).await.0, 200);
    }
    let readings = begun.elapsed().as_millis() as u64 / 250 + 3;
    let made = calls(&redis).await - before;
    assert!(made <= 2 * readings, "{made} calls in {readings} readings");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_limit_counts_at_once_and_throws_nobody_out() {
    let world = World::new(Config {
        max_working: 10,
        ..config()
    })
    .await;
    let at = Arc::new(world.instance_with(watched()).await);
    let places = join_all((0..30).map(|_| world.enter(&at, Uuid::now_v7()))).await;
    assert_eq!(world.working().await, 10);
    assert_eq!(world.patch(&at, json!({"maxWorking": 4})).await.0, 200);
    assert_eq!(world.working().await, 10, "nobody is thrown out");
    let mut working: Vec<_> = places
        .iter()
        .filter(|(_, p)| status(p) == "WORKING")
        .map(|(_, p)| token(p))
        .collect();
    assert_eq!(working.len(), 10);
    for left in (4..10).rev() {
        world.leave(&at, &working.pop().unwrap()).await;
        assert_eq!(
            world.working().await,
            left,
            "nobody is admitted above the new limit"
        );
    }
    world.leave(&at, &working.pop().unwrap()).await;
    assert_eq!(world.working().await, 4);
    assert_eq!(world.patch(&at, json!({"maxWorking": 15})).await.0, 200);
    assert_eq!(world.working().await, 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_start_together_begin_one_epoch() {
    for _ in 0..5 {
        let world = World::new(config()).await;
        let started = join_all((0..4).map(|_| world.instance())).await;
        join_all(started.iter().map(|at| world.public(at))).await;
        let (code, place) = world.enter(&started[0], Uuid::now_v7()).await;
        assert_eq!((code.as_u16(), status(&place)), (201, "WORKING"), "{place}");
        assert_eq!(number(&place), 1);
        assert_eq!(world.meta("epoch").await, Some(1));
    }
}
