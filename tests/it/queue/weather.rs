//! Redis is there and unwell: a replica, out of memory, stalled, with another clock.

use std::{path::Path, process::Command, time::Duration};

use ticketping::{
    platform::redis::{Redis, Trust},
    serve::queue::{self, Config},
};
use uuid::Uuid;

use super::{redis_server::RedisServer, world::*};
use crate::harness::{
    self,
    partition::{Cut, Link},
    process,
};

fn few(max_working: u32) -> Config {
    Config {
        max_working,
        ..config()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_became_a_replica_is_left_and_named() {
    let redis = RedisServer::start(&[]).await;
    let other = RedisServer::start(&[]).await;
    let world = World::on(few(1), redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let works = world.enter(&at, Uuid::now_v7()).await.1;
    queue::ready(&at.state).await.unwrap();
    redis
        .command(&["REPLICAOF", "127.0.0.1", &other.port.to_string()])
        .await;
    let named = until(Duration::from_secs(5), async || {
        queue::ready(&at.state).await.is_err_and(|e| {
            let said = e.to_string();
            said.contains("replica") || said.contains("READONLY")
        })
    })
    .await;
    assert!(named.is_some(), "{:?}", queue::ready(&at.state).await);
    assert_eq!(world.ask(&at, &token(&works)).await.0, 503);
    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    let back = until(Duration::from_secs(10), async || {
        queue::ready(&at.state).await.is_ok()
    })
    .await;
    assert!(back.is_some(), "{:?}", queue::ready(&at.state).await);
    let entered = until(Duration::from_secs(10), async || {
        world.enter(&at, Uuid::now_v7()).await.0 == 201
    })
    .await;
    assert!(entered.is_some());
}

fn openssl(dir: &Path, args: &[&str]) {
    let made = Command::new("openssl")
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
}

/// A CA of the test's own, and a server's certificate for 127.0.0.1 that it signed.
fn certificates(dir: &Path) {
    let subject = |name: &str| format!("/CN={name}");
    openssl(
        dir,
        &[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-subj",
            &subject("a test's CA"),
        ],
    );
    openssl(
        dir,
        &[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-keyout",
            "server.key",
            "-out",
            "server.csr",
            "-subj",
            &subject("redis"),
        ],
    );
    std::fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        dir,
        &[
            "x509",
            "-req",
            "-in",
            "server.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "ext",
            "-out",
            "server.pem",
        ],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_checked_against_the_ca_that_is_given() {
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    certificates(&dir);
    let file = |name: &str| dir.join(name).display().to_string();
    let port = harness::free_port();
    let _redis = RedisServer::start(&[
        "--tls-port",
        &port.to_string(),
        "--tls-cert-file",
        &file("server.pem"),
        "--tls-key-file",
        &file("server.key"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
        "--tls-auth-clients",
        "no",
    ])
    .await;
    let url = format!("rediss://127.0.0.1:{port}");
    assert!(
        Redis::connect(&url).await.is_err(),
        "nobody public has signed it"
    );
    let pem = std::fs::read(dir.join("ca.pem")).unwrap();
    let trust = Trust::only(&pem).unwrap();
    let mut redis = Redis::connect_trusting(&url, trust).await.unwrap();
    redis.probe("tls").await.unwrap();
    let listener = redis.client_of(&url).unwrap();
    listener.get_async_pubsub().await.unwrap();
    assert!(Trust::only(b"no certificate").is_err());

    // The commands for operators, too.
    let database = harness::fresh_database().await;
    let (ca, dir) = (file("ca.pem"), dir.display().to_string());
    let stores = [
        "--database-url",
        &database,
        "--redis-url",
        &url,
        "--data-dir",
        &dir,
    ];
    let audit = [&["audit", "--timeout", "0s"], &stores[..]].concat();
    let seed = [
        "seed",
        "--reset",
        "--yes",
        "--performances",
        "0",
        "--users",
        "0",
    ];
    let seed = [&seed[..], &stores].concat();
    for args in [seed, audit] {
        let (code, out, err) = process::run(&args, &[]).await;
        assert!(
            code != 0 && err.contains("certificate"),
            "{args:?}: {out}\n{err}"
        );
        let trusting = [&args[..], &["--redis-ca", &ca]].concat();
        let (code, out, err) = process::run(&trusting, &[]).await;
        assert_eq!(code, 0, "{args:?}: {out}\n{err}");
    }
}

/// One person works, two wait; the first leaves, so that the next has a claim. That one's token.
async fn claimed(world: &World, at: &Instance) -> String {
    let works = world.enter(at, Uuid::now_v7()).await.1;
    let next = token(&world.enter(at, Uuid::now_v7()).await.1);
    world.enter(at, Uuid::now_v7()).await;
    assert_eq!(world.leave(at, &token(&works)).await.0, 204);
    let admitted = until(Duration::from_secs(3), async || {
        world.public(at).await["servedNumber"] == 2
    })
    .await;
    assert!(admitted.is_some());
    next
}

/// Redis is full for twice the claim window: nobody is a no-show for that, and everybody hears why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn out_of_memory_no_claim_expires_and_the_time_is_given_back() {
    let redis = RedisServer::start(&["--maxmemory-policy", "noeviction"]).await;
    let short = Config {
        claim_ttl: Duration::from_secs(3),
        ..few(1)
    };
    let world = World::on(short, redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let next = claimed(&world, &at).await;
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(world.ask(&at, &next).await.0, 503);
    let why = queue::ready(&at.state).await.unwrap_err().to_string();
    assert!(why.contains("takes no writes"), "{why}");
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    let place = world.admitted(&at, &next).await;
    assert_eq!(number(&place), 2);
    assert_eq!(world.meta("noShows").await.unwrap_or(0), 0);
    // And a claim ends all the same, once somebody could have come.
    assert_eq!(world.leave(&at, &token(&place)).await.0, 204);
    let ended = until(Duration::from_secs(9), async || {
        world.meta("noShows").await == Some(1)
    })
    .await;
    assert!(
        ended.is_some_and(|took| took > Duration::from_millis(2_500)),
        "{ended:?}"
    );
}

/// Redis stalls for five seconds while people enter: a turn runs only for those who were answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stall_begins_no_turn_that_nobody_hears_of() {
    let redis = RedisServer::start(&["--enable-debug-command", "yes"]).await;
    let world = World::on(few(20), redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    world.public(&at).await;
    let port = redis.port.to_string();
    let stall = async {
        let slept = tokio::task::spawn_blocking(move || {
            Command::new("redis-cli")
                .args(["-p", &port, "DEBUG", "SLEEP", "5"])
                .output()
        });
        assert!(slept.await.unwrap().unwrap().status.success());
    };
    let enter = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let people = (0..40).map(async |_| {
            let user = Uuid::now_v7();
            (user, world.enter(&at, user).await)
        });
        futures_util::future::join_all(people).await
    };
    let ((), entered) = tokio::join!(stall, enter);
    let answered: Vec<Uuid> = entered
        .iter()
        .filter(|(_, (code, _))| code.is_success())
        .map(|(user, _)| *user)
        .collect();
    assert!(answered.len() < 40, "nobody waited for the stall to end");
    // The next entry shows what Redis made of the others.
    let last = Uuid::now_v7();
    let entered = until(Duration::from_secs(5), async || {
        world.enter(&at, last).await.0.is_success()
    })
    .await;
    assert!(entered.is_some());
    let places: std::collections::HashMap<Vec<u8>, String> = redis::cmd("HGETALL")
        .arg(world.key("place"))
        .query_async(&mut world.redis().await)
        .await
        .unwrap();
    let unheard = places
        .iter()
        .filter(|(user, place)| {
            place.contains(",A") && !answered.iter().any(|a| a.as_bytes() == user.as_slice())
        })
        .count();
    assert_eq!(unheard, 1, "only the last to enter works: {places:?}");
}

/// The clock of Redis steps, 40 s back and an hour forward: readings go on, and nobody's turn ends by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_of_the_clock_of_redis_stop_nothing_and_end_nothing() {
    let world = World::new(few(1)).await;
    let at = world.instance().await;
    let next = claimed(&world, &at).await;
    for (skew, entered) in [(-40_000, 4), (3_600_000, 5), (0, 6)] {
        world.set_meta("skew", skew).await;
        let seen = until(Duration::from_secs(3), async || {
            world.enter(&at, Uuid::now_v7()).await.0 == 201
                && world.public(&at).await["lastNumber"].as_u64() >= Some(entered)
        })
        .await;
        assert!(seen.is_some(), "{skew}: {}", world.public(&at).await);
        let place = world.admitted(&at, &next).await;
        assert_eq!(number(&place), 2, "{skew}");
        assert_eq!(world.working().await, 1);
    }
    assert_eq!(world.meta("noShows").await.unwrap_or(0), 0);
    assert_eq!(world.meta("lapsed").await.unwrap_or(0), 0);
}

/// A Redis that kept everything is restarted twice: nobody is put back, and admission goes on at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_that_lost_nothing_stop_nothing() {
    let mut redis = RedisServer::start(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let world = World::on(few(1), redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let mut works = world.enter(&at, Uuid::now_v7()).await.1;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(world.enter(&at, Uuid::now_v7()).await.1);
    }
    for round in 1..=3 {
        redis.kill_and_start().await;
        let begun = std::time::Instant::now();
        let left = until(Duration::from_secs(5), async || {
            world.leave(&at, &token(&works)).await.0 == 204
        })
        .await;
        assert!(left.is_some(), "round {round}");
        let next = waiting.remove(0);
        let mut place = serde_json::Value::Null;
        let came = until(Duration::from_secs(5), async || {
            place = world.ask(&at, &token(&next)).await.1;
            status(&place) == "WORKING"
        })
        .await;
        let took = begun.elapsed();
        assert!(
            came.is_some() && took < Duration::from_secs(6),
            "round {round}: {took:?} {place}"
        );
        assert_eq!(number(&place), round + 1);
        assert_eq!(
            world.meta("epoch").await,
            Some(i64::try_from(round).unwrap() + 1)
        );
        assert_eq!(world.public(&at).await["phase"], "OPEN");
        for (i, place) in waiting.iter().enumerate() {
            let right = until(Duration::from_secs(2), async || {
                let (code, body) = world.ask(&at, &token(place)).await;
                code == 200 && body["position"] == i + 1
            })
            .await;
            assert!(right.is_some(), "round {round}: position {}", i + 1);
        }
        works = place;
    }
    // What was skipped of the reserved blocks is no distance: newcomers are told to ask as often as before.
    let (code, newcomer) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!(
        (code.as_u16(), &newcomer["position"]),
        (201, &serde_json::json!(2))
    );
    assert!(
        newcomer["pollAfterMs"].as_u64().unwrap() < 2_000,
        "{newcomer}"
    );
}

/// Everything is lost while buyers hold seats: their slots are theirs, whether they ask or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpaid_orders_keep_their_slots_through_a_loss() {
    let redis = RedisServer::start(&[]).await;
    let world = World::on(few(2), redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let buyer = Uuid::now_v7();
    let buys = world.enter(&at, buyer).await.1;
    let works = world.enter(&at, Uuid::now_v7()).await.1;
    let mut waits = world.enter(&at, Uuid::now_v7()).await.1;
    let last = world.enter(&at, Uuid::now_v7()).await.1;
    world.show.unpaid.lock().unwrap().push(serde_json::json!({
        "orderId": Uuid::now_v7(), "userId": buyer, "placeNumber": 1, "keepsMs": now_ms() + 60_000,
    }));
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    redis.command(&["FLUSHALL"]).await;
    // The other who worked never comes back, so that the next takes that slot, and no other.
    let came = until(Duration::from_secs(12), async || {
        assert!(world.working().await <= 2);
        let (code, body) = world.ask(&at, &token(&waits)).await;
        if code == 200 {
            waits = body;
        }
        world.ask(&at, &token(&last)).await;
        status(&waits) == "WORKING"
    })
    .await;
    assert!(
        came.is_some_and(|took| took > Duration::from_secs(4)),
        "{came:?} {waits}"
    );
    let (code, body) = world.ask(&at, &token(&last)).await;
    assert_eq!((code.as_u16(), status(&body)), (200, "WAITING"), "{body}");
    let (code, body) = world.ask(&at, &token(&buys)).await;
    assert_eq!(
        (code.as_u16(), status(&body), number(&body)),
        (200, "WORKING", 1),
        "{body}"
    );
    let late = world.ask(&at, &token(&works)).await.1;
    assert_eq!(status(&late), "WAITING", "at the head: {late}");
    assert_eq!(late["position"], 1);
    assert_eq!(world.working().await, 2);
}

/// Two instances on one PostgreSQL, each with a Redis of its own: one of them serves, the other says that it
/// cannot, however clients switch between them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_primaries_on_one_postgresql_one_is_fenced() {
    let (one, two) = (RedisServer::start(&[]).await, RedisServer::start(&[]).await);
    let mut world = World::on(few(3), one.url(), harness::fresh_database().await).await;
    let a = world.instance().await;
    let user = Uuid::now_v7();
    let place = token(&world.enter(&a, user).await.1);
    world.redis_url = two.url();
    let b = world.instance().await;
    let begun = std::time::Instant::now();
    let mut served = 0;
    while begun.elapsed() < Duration::from_secs(8) {
        let (there, _) = world.ask(&b, &place).await;
        assert_ne!(there, 200, "nobody works on both sides");
        assert_ne!(world.enter(&b, user).await.0, 201);
        served += usize::from(world.ask(&a, &place).await.0 == 200);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(served > 20, "{served}");
    let epoch: i32 = sqlx::query_scalar("select epoch from epochs")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(epoch, 1);
    assert_eq!(world.working().await, 0, "nobody is admitted on the other");
}

/// An epoch is not opened before it can begin: reservations are away, and nothing is used up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_epoch_is_opened_that_cannot_begin() {
    let redis = RedisServer::start(&[]).await;
    let world = World::on(few(1), redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let place = token(&world.enter(&at, Uuid::now_v7()).await.1);
    world
        .show
        .away
        .store(true, std::sync::atomic::Ordering::Relaxed);
    redis.command(&["FLUSHALL"]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(world.ask(&at, &place).await.0, 503);
    let epoch: i32 = sqlx::query_scalar("select epoch from epochs")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(epoch, 1);
    world
        .show
        .away
        .store(false, std::sync::atomic::Ordering::Relaxed);
    let back = until(Duration::from_secs(5), async || {
        world.ask(&at, &place).await.0 == 200
    })
    .await;
    assert!(back.is_some());
}

/// Nobody asks for the queue, and Redis notifies of nothing: turns and claims end by the sweep alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_nobody_asks_for_is_swept_all_the_same() {
    let redis = RedisServer::start(&["--rename-command", "CONFIG", ""]).await;
    let quick = Config {
        working_ttl: Duration::from_secs(1),
        claim_ttl: Duration::from_secs(2),
        ..few(1)
    };
    let world = World::on(quick, redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let adopted = until(Duration::from_secs(10), async || {
        world.meta("epoch").await == Some(1)
    })
    .await;
    assert!(adopted.is_some());
    let connection = Redis::connect(&redis.url()).await.unwrap();
    let scripts = std::sync::Arc::new(queue::scripts::Scripts::default());
    let room = queue::scripts::Room::new(connection, scripts, &world.prefix, world.performance);
    let people = [Uuid::now_v7(), Uuid::now_v7()];
    room.enter(queue::scripts::Seen::default(), &people)
        .await
        .unwrap();
    let swept = until(Duration::from_secs(20), async || {
        world.meta("noShows").await == Some(1)
    })
    .await;
    assert!(
        swept.is_some(),
        "{:?}",
        at.state.overview(None).await.queues
    );
    assert_eq!(world.meta("lapsed").await, Some(1));
    assert_eq!(world.working().await, 0);
}

/// One of two instances is cut off from Redis as a network does it: while the other admits people, it
/// does not tell them that they wait, and once the link is back it serves again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_cut_off_tells_nobody_to_wait() {
    let redis = RedisServer::start(&[]).await;
    let link = Link::start(&format!("127.0.0.1:{}", redis.port)).await;
    let mut world = World::on(few(1), redis.url(), harness::fresh_database().await).await;
    let a = world.instance().await;
    world.redis_url = link.instead_of(&redis.url());
    let b = world.instance().await;
    world.redis_url = redis.url();
    let works = token(&world.enter(&a, Uuid::now_v7()).await.1);
    let next = token(&world.enter(&a, Uuid::now_v7()).await.1);
    let shown = until(Duration::from_secs(10), async || {
        let (code, place) = world.ask(&b, &next).await;
        code == 200 && status(&place) == "WAITING"
    })
    .await;
    assert!(shown.is_some());

    link.cut(Cut {
        to_server: true,
        to_client: true,
        forget: true,
    });
    assert_eq!(world.leave(&a, &works).await.0, 204);
    let admitted = until(Duration::from_secs(10), async || {
        world.public(&a).await["servedNumber"] == 2
    })
    .await;
    assert!(admitted.is_some());
    let honest = until(Duration::from_secs(10), async || {
        world.ask(&b, &next).await.0 == 503
    })
    .await;
    assert!(honest.is_some(), "{:?}", world.ask(&b, &next).await);
    for _ in 0..20 {
        let (code, place) = world.ask(&b, &next).await;
        assert_eq!(code, 503, "{place}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(status(&world.ask(&a, &next).await.1), "WORKING");

    link.heal();
    let back = until(Duration::from_secs(20), async || {
        let (code, place) = world.ask(&b, &next).await;
        code == 200 && status(&place) == "WORKING"
    })
    .await;
    assert!(back.is_some(), "{:?}", world.ask(&b, &next).await);
    assert_eq!(world.meta("noShows").await.unwrap_or(0), 0);
}
