use super::*;
use crate::queue::redis_server::RedisServer;

/// Other applications use other notifications of the same Redis.
#[tokio::test]
async fn notifications_that_others_asked_for_stay() {
    let redis = RedisServer::start(&["--notify-keyspace-events", "K$gn"]).await;
    let url = redis.url();
    let args = ["--redis-url", &*url];
    let mut server = Server::start(harness::data_dir(), &args, &[]).await;
    let client = redis::Client::open(url.as_str()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    eventually("ours are added", async || {
        let get = redis::cmd("CONFIG")
            .arg(&["GET", "notify-keyspace-events"])
            .clone();
        let pair: Vec<String> = get.query_async(&mut connection).await.unwrap();
        assert!(
            "K$gn".chars().all(|flag| pair[1].contains(flag)),
            "{pair:?}"
        );
        "Ex".chars().all(|flag| pair[1].contains(flag))
    })
    .await;
    assert_eq!(server.interrupt().await, Some(0));
}
