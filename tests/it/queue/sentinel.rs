//! The same behind Sentinels, while they fail over.

use std::time::Duration;

use redis::aio::ConnectionLike;
use ticketping::{platform::redis::Redis, serve::queue::Config};
use uuid::Uuid;

use super::{failover::Watched, world::*};
use crate::harness;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_of_sentinels_keeps_everybody_and_is_followed() {
    let mut redis = Watched::start().await;
    let one = Config {
        max_working: 1,
        working_ttl: Duration::from_secs(30),
        ..config()
    };
    let world = World::on(one, redis.url(), harness::fresh_database().await).await;
    let at = world.instance().await;
    let first = Uuid::now_v7();
    let (code, works) = world.enter(&at, first).await;
    assert_eq!((code.as_u16(), status(&works)), (201, "WORKING"), "{works}");
    let (_, second) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!(second["position"], 1);
    let mut connection = Redis::connect(&redis.url()).await.unwrap();
    assert_eq!(connection.get_db(), 0);
    let before = connection.primaries().await.unwrap();
    subscribed(&redis.primary).await;

    redis.fail_over().await;
    // Whoever waits is answered all the time; whoever works as soon as there is a primary.
    assert_eq!(world.ask(&at, &token(&second)).await.0, 200);
    carries_on(&world, &at, first, works, second).await;

    let after = connection.primaries().await.unwrap();
    assert_ne!(before, after);
    assert!(
        after[0].contains(&redis.replica.port.to_string()),
        "{after:?}"
    );
    subscribed(&redis.replica).await;
}

/// The server's bells are heard: somebody is subscribed to expired keys.
async fn subscribed(server: &super::redis_server::RedisServer) {
    let heard = until(Duration::from_secs(10), async || {
        let asked = ["PUBSUB", "NUMSUB", "__keyevent@0__:expired"];
        let counted: Vec<redis::Value> =
            redis::from_redis_value(server.command(&asked).await).unwrap();
        matches!(counted.last(), Some(redis::Value::Int(n)) if *n > 0)
    })
    .await;
    assert!(
        heard.is_some(),
        "notifications of the primary are subscribed"
    );
}

#[tokio::test]
async fn sentinels_that_cannot_help_are_named_in_the_error() {
    let redis = Watched::start().await;
    let unknown = redis.url().replace("/tickets", "/theatre");
    let refused = redis.url().replace(":pass-of-the-servers@", ":wrong@");
    for (url, words) in [
        (unknown, "\"theatre\""),
        (refused, "authentication failed"),
        (
            "redis+sentinel://127.0.0.1:1/tickets".to_owned(),
            "\"tickets\"",
        ),
    ] {
        let said = Redis::connect(&url).await.err().unwrap();
        assert!(said.contains(words), "{said}");
        assert!(
            !said.contains("wrong@") && !said.contains("pass-of"),
            "{said}"
        );
    }
}
