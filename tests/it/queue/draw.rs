//! The pre-queue: registered by arrival, numbered by a draw that anyone can recompute.

use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed, time::Duration};

use serde_json::{Value, json};
use ticketping::{
    platform::redis::Redis,
    serve::queue::{
        Config,
        draw::{Permutation, commitment},
        scripts::{Room, Scripts, Seen},
    },
};
use uuid::Uuid;

use super::{redis_server::RedisServer, world::*};
use crate::harness;

/// A performance whose pre-queue is open, and which opens in an hour, or when a test says so:
/// however slow the machine is, all have registered by then.
async fn pre_queue(redis_url: String) -> World {
    let three = Config {
        max_working: 3,
        ..config()
    };
    let world = World::on(three, redis_url, harness::fresh_database().await).await;
    world.show.opens_ms.store(now_ms() + 3_600_000, Relaxed);
    sqlx::query(
        "insert into settings (performance_id, max_working, working_ttl_ms, claim_ttl_ms, hold_ttl_ms, queue_factor, pre_queue_opens_at)
         values ($1, 3, 60000, 30000, 60000, 0, now() - interval '1 second')",
    )
    .bind(world.performance)
    .execute(&world.pool)
    .await
    .unwrap();
    world
}

/// Booking opens the performance some seconds from now, which the queue hears of when it asks next;
/// returns when that time has come.
async fn opened(world: &World) {
    let opens = now_ms() + 6_000;
    world.show.opens_ms.store(opens, Relaxed);
    let done = until(Duration::from_secs(30), async || {
        now_ms() > opens && world.meta("opensAt").await == Some(opens)
    })
    .await;
    assert!(done.is_some(), "the queue never heard of the opening");
}

/// Waits until the seed is published and the numbers are written.
async fn drawn(world: &World, at: &Instance) -> Value {
    let mut public = Value::Null;
    let done = until(Duration::from_secs(20), async || {
        public = world.public(at).await;
        public["draw"]["seed"].is_string() && public["phase"] == "OPEN"
    })
    .await;
    assert!(done.is_some(), "{public}");
    public
}

/// `ticketping draw verify`, from published data; whether it matched, and what it said.
fn verify(args: &[&str]) -> (bool, String) {
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_ticketping"))
        .args(["draw", "verify"])
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8(run.stdout).unwrap() + &String::from_utf8(run.stderr).unwrap();
    (run.status.success(), said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_draw_is_what_the_published_seed_says() {
    let shared = harness::stores().await.redis_url.clone();
    let world = pre_queue(shared).await;
    let (a, b) = (world.instance().await, world.instance().await);
    let mut people = Vec::new();
    for i in 0..40 {
        let user = Uuid::now_v7();
        let (code, place) = world.enter(if i % 2 == 0 { &a } else { &b }, user).await;
        assert_eq!(
            (code.as_u16(), status(&place)),
            (201, "REGISTERED"),
            "{place}"
        );
        assert_eq!(
            (&place["number"], &place["position"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(place["registration"], i + 1);
        people.push((user, token(&place)));
    }
    // Registering twice keeps the registration; one gives up.
    assert_eq!(world.enter(&a, people[7].0).await.1["registration"], 8);
    assert_eq!(world.leave(&a, &people[5].1).await.0, 204);
    let before = world.public(&a).await;
    assert_eq!(before["phase"], "PRE_QUEUE", "{before}");
    assert_eq!(before["draw"]["seed"], Value::Null);
    let committed = before["draw"]["commitment"].as_str().unwrap().to_owned();

    opened(&world).await;
    let after = drawn(&world, &a).await;
    let seed = hex::decode(after["draw"]["seed"].as_str().unwrap()).unwrap();
    assert_eq!(commitment(&seed), committed);
    assert_eq!(after["draw"]["count"], 40);
    let draw = Permutation::new(&seed, 40);
    let (code, late) = world.enter(&b, Uuid::now_v7()).await;
    assert_eq!(
        (code.as_u16(), number(&late)),
        (201, 41),
        "later arrivals follow"
    );
    let mut numbers = BTreeSet::new();
    for (i, (_, registered)) in people.iter().enumerate() {
        if i == 5 {
            continue; // gave up: WAITING until the number comes up, then 410
        }
        // The other instance's snapshot may be a moment older.
        let (mut code, mut place) = world.ask(&b, registered).await;
        until(Duration::from_secs(2), async || {
            (code, place) = world.ask(&b, registered).await;
            place["number"].is_u64()
        })
        .await;
        assert_eq!(code, 200, "{place}");
        assert_eq!(number(&place), draw.permute(i as u64) + 1, "recomputed");
        let works = status(&place) == "WORKING";
        assert!(
            works || number(&place) > 3,
            "the lowest work first: {place}"
        );
        numbers.insert(number(&place));
    }
    assert_eq!(numbers.len(), 39);

    // Anybody can check it: from a saved answer, or asking the server.
    let file = harness::data_dir();
    std::fs::write(&file, after.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let told = (draw.permute(16) + 1).to_string();
    let (matches, said) = verify(&["--file", file, "--registration", "17", "--number", &told]);
    assert!(matches && said.contains("it matches"), "{said}");
    let (matches, said) = verify(&["--file", file, "--registration", "18", "--number", &told]);
    assert!(!matches && said.contains("IT DOES NOT MATCH"), "{said}");
    let forged = format!("{file}.forged");
    let seed = after["draw"]["seed"].as_str().unwrap();
    std::fs::write(&forged, after.to_string().replace(seed, &"ab".repeat(32))).unwrap();
    let (matches, said) = verify(&["--file", &forged]);
    assert!(!matches && said.contains("IS NOT the commitment"), "{said}");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = a.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let id = world.performance.to_string();
    let token = people[16].1.clone();
    let (matches, said) = tokio::task::spawn_blocking(move || {
        verify(&["--url", &url, "--performance", &id, "--queue-token", &token])
    })
    .await
    .unwrap();
    assert!(matches && said.contains("it matches"), "{said}");
}

/// They leave by their registrations when Redis has drawn them already, and the instance has not
/// heard of it: nobody of them is ever admitted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_just_as_the_draw_is_written_has_left() {
    let shared = harness::stores().await.redis_url.clone();
    let world = pre_queue(shared).await;
    let at = world.instance().await;
    let mut tokens = Vec::new();
    for _ in 0..12 {
        tokens.push(token(&world.enter(&at, Uuid::now_v7()).await.1));
    }
    let seed: Vec<u8> = sqlx::query_scalar("select seed from draws")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    // The opening comes, and another instance draws at once.
    let redis = Redis::connect(&world.redis_url).await.unwrap();
    let scripts = std::sync::Arc::new(Scripts::default());
    let other = Room::new(redis, scripts, &world.prefix, world.performance);
    let permutation = Permutation::new(&seed, 12);
    let indexes: Vec<u64> = (0..12).map(|i| 1 + permutation.invert(i)).collect();
    world.set_meta("opensAt", now_ms() - 1).await;
    other
        .draw(Seen::default(), &seed, 1, &indexes)
        .await
        .unwrap();
    for token in &tokens[..8] {
        assert_eq!(world.leave(&at, token).await.0, 204);
    }
    let view = other.tick(Seen::default(), -1, 1_000).await.unwrap().view;
    assert_eq!((view.waiting, view.working, view.left), (1, 3, 8));
}

/// Redis is lost while people register. Some poll before the opening and some only after the
/// draw: each has the number of the registration, and who gave one up has none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_comes_back_after_the_draw_has_its_number() {
    let redis = RedisServer::start(&[]).await;
    let world = pre_queue(redis.url()).await;
    let at = world.instance().await;
    let mut people = Vec::new();
    for _ in 0..12 {
        let user = Uuid::now_v7();
        people.push((user, token(&world.enter(&at, user).await.1)));
    }
    assert_eq!(world.leave(&at, &people[5].1).await.0, 204);
    let lo: Option<i64> = sqlx::query_scalar("select draw_lo from epochs")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(
        lo,
        Some(0),
        "where the registrations began is noted before one is told"
    );
    redis.command(&["FLUSHALL"]).await;
    let epoch = until(Duration::from_secs(3), async || {
        world.meta("epoch").await == Some(2)
    })
    .await;
    assert!(epoch.is_some(), "the loss is seen");
    // Nobody is admitted, so that whoever has a number hears that it is not its turn.
    assert_eq!(world.patch(&at, json!({ "maxWorking": 0 })).await.0, 200);
    for i in [11, 10, 9, 8, 7] {
        let (code, place) = world.ask(&at, &people[i].1).await;
        assert_eq!(
            (code.as_u16(), status(&place)),
            (200, "REGISTERED"),
            "{place}"
        );
        assert_eq!(place["registration"], i + 1, "{place}");
        people[i].1 = token(&place);
    }
    let gone = [8, 9, 10];
    for i in gone {
        assert_eq!(world.leave(&at, &people[i].1).await.0, 204);
    }

    opened(&world).await;
    let public = drawn(&world, &at).await;
    let draw = &public["draw"];
    let seed = hex::decode(draw["seed"].as_str().unwrap()).unwrap();
    assert_eq!(
        draw["first"], 1,
        "over every index that was given out: {draw}"
    );
    let permutation = Permutation::new(&seed, draw["count"].as_u64().unwrap());
    for (i, (user, registered)) in people.iter_mut().enumerate() {
        let (code, place) = world.ask(&at, registered).await;
        if gone.contains(&i) {
            // The number that it would have drawn, until that comes up.
            if code == 200 {
                *registered = token(&place);
            }
            continue;
        }
        if i == 5 {
            assert_eq!(code, 410, "given up before the loss: {place}");
            continue;
        }
        assert_eq!(code, 200, "{i}: {place}");
        assert_eq!(number(&place), permutation.permute(i as u64) + 1, "{i}");
        // It is a place, not only words: entering again finds it.
        let (code, again) = world.enter(&at, *user).await;
        assert_eq!((code.as_u16(), number(&again)), (200, number(&place)));
    }

    // Nor does a number bring back after a loss who had left without one.
    redis.command(&["FLUSHALL"]).await;
    let epoch = until(Duration::from_secs(3), async || {
        world.meta("epoch").await == Some(3)
    })
    .await;
    assert!(epoch.is_some(), "the loss is seen");
    for i in gone {
        // The snapshot from before the loss may be shown a moment longer.
        let ended = until(Duration::from_secs(5), async || {
            world.ask(&at, &people[i].1).await.0 == 410
        })
        .await;
        assert!(
            ended.is_some(),
            "{i}: {:?}",
            world.ask(&at, &people[i].1).await
        );
    }
}

/// Redis is lost just after the opening, when newcomers have been told numbers already: what the
/// draw goes over was noted before, so that nobody draws one of those.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn newcomers_at_the_opening_keep_their_numbers_when_redis_is_lost() {
    let redis = RedisServer::start(&[]).await;
    let world = pre_queue(redis.url()).await;
    let at = world.instance().await;
    let mut people = Vec::new();
    for _ in 0..12 {
        let user = Uuid::now_v7();
        people.push((user, token(&world.enter(&at, user).await.1)));
    }
    opened(&world).await;
    let (first, second) = (Uuid::now_v7(), Uuid::now_v7());
    let late = world.enter(&at, first).await.1;
    let noted: (Option<i64>, Option<i64>) = sqlx::query_as("select first, count from draws")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(noted, (Some(0), Some(12)), "noted before a number is told");
    let later = world.enter(&at, second).await.1;
    redis.command(&["FLUSHALL"]).await;
    assert_eq!((number(&late), number(&later)), (13, 14), "{late} {later}");
    people.extend([(first, token(&late)), (second, token(&later))]);

    let public = drawn(&world, &at).await;
    let seed = hex::decode(public["draw"]["seed"].as_str().unwrap()).unwrap();
    assert_eq!(public["draw"]["count"], 12, "{public}");
    let permutation = Permutation::new(&seed, 12);
    let mut numbers = BTreeSet::new();
    for (i, (_, told)) in people.iter().enumerate() {
        // 503 until the instance has seen the loss.
        let (mut code, mut place) = world.ask(&at, told).await;
        until(Duration::from_secs(5), async || {
            (code, place) = world.ask(&at, told).await;
            code == 200
        })
        .await;
        assert_eq!(code, 200, "{i}: {place}");
        let want = match i {
            0..12 => permutation.permute(i as u64) + 1,
            late => late as u64 + 1,
        };
        assert_eq!(number(&place), want, "{i}");
        numbers.insert(number(&place));
    }
    assert_eq!(numbers.len(), 14, "one number a person");
}
