use super::*;
use crate::harness::proxy::Proxy;

/// PostgreSQL goes away and comes back: the process stays ready, says what is away, answers
/// waiting polls, and refuses what needs the store.
#[tokio::test]
async fn a_store_that_is_away_makes_no_process_unready() {
    let database = harness::fresh_database().await;
    let proxy = Proxy::to_url(&database).await;
    let url = proxy.url(&database);
    let args = ["--database-url", &*url, "--log-format", "json"];
    let mut server = Server::start(harness::data_dir(), &args, &[]).await;
    let seeds = ["--performances", "1", "--schedules", "1", "--seats", "100"];
    let more = ["--users", "2", "--max-working", "1"];
    server.seed(&[&seeds[..], &more].concat()).await;
    let (performance, _) = steps::the_performance(&server.sale).await;
    let buyers = server.sale.buyers.clone();
    steps::enter(&server.sale, &buyers[0], &performance).await;
    let waiting = steps::enter(&server.sale, &buyers[1], &performance).await;
    assert_eq!(waiting.body["status"], "WAITING", "{}", waiting.text);
    let token = waiting.str("queueToken");
    let poll = format!("/api/v1/queues/{performance}/tokens/me");

    proxy.cut();
    let report = server
        .ops
        .until("/readyz", &[], |reply| reply.body["degraded"] == true)
        .await
        .expect(200);
    let away = report.body["away"].as_array().unwrap();
    assert!(
        away.iter()
            .any(|one| one["cause"].as_str().unwrap().contains("PostgreSQL")
                && one["since"].as_str().unwrap().starts_with("20")),
        "{}",
        report.text
    );
    for _ in 0..20 {
        let polled = server
            .sale
            .api
            .get(&poll, &[("queue-token", &*token)])
            .await;
        assert_eq!(polled.expect(200).body["status"], "WAITING");
        let begun = std::time::Instant::now();
        server.ops.get("/readyz", &[]).await.expect(200);
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "a probe waits for no store"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    super::logs::a_failure_stands_in_one_line(&server).await;
    proxy.mend();
    server
        .ops
        .until("/readyz", &[], |reply| reply.body["degraded"] == false)
        .await
        .expect(200);
    assert_eq!(server.interrupt().await, Some(0));
}
