use super::*;

/// SIGTERM: not ready at once, serving for the delay, streams that end whole, operations last.
#[tokio::test]
async fn a_process_that_is_told_to_stop_leaves_in_order() {
    let args = ["--shutdown-delay", "2s"];
    let mut server = Server::start(harness::data_dir(), &args, &[]).await;
    let seeds = ["--performances", "1", "--schedules", "1", "--seats", "100"];
    server.seed(&[&seeds[..], &["--users", "1"]].concat()).await;
    let (performance, _) = steps::the_performance(&server.sale).await;
    let base = server.sale.api.base.clone();
    let mut events = ask(&base, &format!("/api/v1/queues/{performance}/events")).await;
    let mut first = [0_u8; 12];
    events.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    server.ops.get("/readyz", &[]).await.expect(200);

    let pid = u32::try_from(server.process.as_ref().unwrap().pid()).unwrap();
    let told = std::time::Instant::now();
    harness::send(pid, Signal::SIGTERM);
    let report = server
        .ops
        .until("/readyz", &[], |reply| reply.status == 503)
        .await;
    assert_eq!(report.body["state"], "stopping", "{}", report.text);
    // A balancer has not noticed yet: what it still sends here is answered, on new connections too.
    let mut served = 0;
    while told.elapsed() < Duration::from_millis(1_700) {
        let fresh = harness::client::Http::new(&base);
        fresh.get("/api/v1/performances", &[]).await.expect(200);
        served += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(served > 3);
    let mut rest = String::new();
    let ended = events.read_to_string(&mut rest);
    tokio::time::timeout(Duration::from_secs(10), ended)
        .await
        .expect("the stream ends")
        .unwrap();
    assert!(rest.contains("retry: "), "{rest}");
    assert!(
        rest.ends_with("\r\n0\r\n\r\n"),
        "a whole last chunk: {rest}"
    );
    let status = server.process.take().unwrap().child.wait().await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", server.log());
    assert!(told.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn a_second_signal_ends_the_delay() {
    let args = ["--shutdown-delay", "10m"];
    let mut server = Server::start(harness::data_dir(), &args, &[]).await;
    let pid = u32::try_from(server.process.as_ref().unwrap().pid()).unwrap();
    harness::send(pid, Signal::SIGTERM);
    server
        .ops
        .until("/readyz", &[], |reply| reply.status == 503)
        .await;
    harness::send(pid, Signal::SIGTERM);
    let process = server.process.as_mut().unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(15), process.child.wait()).await;
    assert_eq!(ended.expect("it ends at once").unwrap().code(), Some(1));
}
