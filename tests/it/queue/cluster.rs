//! The same on a real Redis Cluster of three primaries: a queue lives in one slot.

use std::{process::Command, time::Duration};

use ticketping::serve::queue::Config;
use uuid::Uuid;

use super::{redis_server::RedisServer, world::*};
use crate::support;

async fn cluster() -> (Vec<RedisServer>, String) {
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(RedisServer::start(&["--cluster-enabled", "yes"]).await);
    }
    let addresses: Vec<String> = nodes
        .iter()
        .map(|n| format!("127.0.0.1:{}", n.port))
        .collect();
    let made = Command::new("redis-cli")
        .args(["--cluster", "create"])
        .args(&addresses)
        .arg("--cluster-yes")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let url = format!("redis+cluster://{}", addresses.join(","));
    (nodes, url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_spread_over_a_cluster_and_work_unchanged() {
    let (_nodes, url) = cluster().await;
    let database = support::fresh_database().await;
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
