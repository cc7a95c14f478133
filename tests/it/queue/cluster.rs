//! The same on a real Redis Cluster of three primaries: a queue lives in one slot.

use std::{process::Command, time::Duration};

use ticketping::serve::queue::Config;
use uuid::Uuid;

use super::{redis_server::RedisServer, world::*};
use crate::harness;

/// Three primaries, with so many replicas each.
async fn cluster(replicas: usize) -> (Vec<RedisServer>, String) {
    let mut nodes = Vec::new();
    let args = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000"];
    for _ in 0..3 * (1 + replicas) {
        nodes.push(RedisServer::start(&args).await);
    }
    let addresses: Vec<String> = nodes
        .iter()
        .map(|n| format!("127.0.0.1:{}", n.port))
        .collect();
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let url = format!("redis+cluster://{}", addresses.join(","));
    (nodes, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_spread_over_a_cluster_and_work_unchanged() {
    let (_nodes, url) = cluster(0).await;
    let database = harness::fresh_database().await;
    let quick = Config {
        max_working: 1,
        working_ttl: Duration::from_millis(1_500),
        ..config()
    };
    for _ in 0..4 {
        let world = World::on(quick.clone(), url.clone(), database.clone()).await;
        let at = world.instance().await;
        let user = Uuid::now_v7();
        let (code, first) = world.enter(&at, user).await;
        assert_eq!((code.as_u16(), status(&first)), (201, "WORKING"), "{first}");
        let (_, second) = world.enter(&at, Uuid::now_v7()).await;
        let (_, third) = world.enter(&at, Uuid::now_v7()).await;
        assert_eq!(third["position"], 2);
        world.confirm(&at, user, 1).await;
        world.admitted(&at, &token(&second)).await;
        // The second's turn lapses; the third comes in.
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        world.admitted(&at, &token(&third)).await;
        assert_eq!(world.leave(&at, &token(&third)).await.0, 204);
        assert_eq!(world.ask(&at, &token(&second)).await.0, 410);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_fails_over_keeps_everybody() {
    let (mut nodes, url) = cluster(1).await;
    let one = Config {
        max_working: 1,
        ..config()
    };
    let world = World::on(one, url, harness::fresh_database().await).await;
    let at = world.instance().await;
    let first = Uuid::now_v7();
    let (_, works) = world.enter(&at, first).await;
    assert_eq!(status(&works), "WORKING");
    let (_, next) = world.enter(&at, Uuid::now_v7()).await;
    let (_, last) = world.enter(&at, Uuid::now_v7()).await;
    let mut owner = None;
    for (i, node) in nodes.iter().enumerate() {
        let holds = node.command(&["DBSIZE"]).await != redis::Value::Int(0);
        if holds && node.info("role").await == "master" {
            owner = Some(i);
        }
    }
    // Its replica has everything before the primary dies.
    let owner = owner.expect("a primary has the queue");
    let replicated = until(Duration::from_secs(10), async || {
        nodes[owner].command(&["WAIT", "1", "100"]).await == redis::Value::Int(1)
    })
    .await;
    assert!(replicated.is_some());
    nodes[owner].kill();
    assert_eq!(
        world.ask(&at, &token(&last)).await.0,
        200,
        "who waits is answered all the time"
    );
    carries_on(&world, &at, first, works, next).await;
    let (code, last) = world.ask(&at, &token(&last)).await;
    assert_eq!((code.as_u16(), number(&last)), (200, 3), "{last}");
}
