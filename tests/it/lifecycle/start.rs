use super::*;
use crate::harness::{
    client,
    process::{self, Process},
    proxy::Proxy,
};

pub(super) fn environment(database: &str, dir: &std::path::Path) -> Vec<(&'static str, String)> {
    let key = dir.with_extension("pem");
    let (_, pem) = ticketping::platform::auth::Signer::generate().unwrap();
    std::fs::write(&key, pem).unwrap();
    vec![
        ("TICKETPING_DATABASE_URL", database.to_owned()),
        ("TICKETPING_INTERNAL_SECRET", "between roles".to_owned()),
        ("TICKETPING_JWT_KEY_FILE", key.to_str().unwrap().to_owned()),
        ("TICKETPING_SHUTDOWN_DELAY", "0s".to_owned()),
        ("TICKETPING_LISTEN", "127.0.0.1:0".to_owned()),
    ]
}

#[tokio::test]
async fn a_start_waits_for_its_store_and_says_so() {
    let dir = harness::data_dir();
    let database = harness::fresh_database().await;
    let proxy = Proxy::to_url(&database).await;
    proxy.cut();
    let mut envs = environment(&proxy.url(&database), &dir);
    let ops = format!("127.0.0.1:{}", harness::free_port());
    envs.push(("TICKETPING_OPS_LISTEN", ops.clone()));
    let log = dir.with_extension("log");
    let process = Process::start(&["serve", "users"], &envs, &log);
    let url = |path: &str| format!("http://{ops}{path}");
    eventually("the start says what it waits for", async || {
        let (status, text) = client::get(&url("/readyz")).await;
        status == 503 && text.contains("\"waitsFor\":\"PostgreSQL")
    })
    .await;
    assert_eq!(client::get(&url("/livez")).await.0, 200);
    proxy.mend();
    eventually("it serves", async || {
        client::get(&url("/readyz")).await.0 == 200
    })
    .await;
    assert_eq!(process.interrupt().await, Some(0));
    let log = std::fs::read_to_string(log).unwrap();
    assert!(log.contains("the start waits for PostgreSQL"), "{log}");
}

#[tokio::test]
async fn a_start_does_not_wait_for_ever() {
    let dir = harness::data_dir();
    let nobody = format!("postgres://x@127.0.0.1:{}/x", harness::free_port());
    let mut envs = environment(&nobody, &dir);
    envs.push(("TICKETPING_OPS_LISTEN", "127.0.0.1:0".to_owned()));
    envs.push(("TICKETPING_STORE_WAIT", "1s".to_owned()));
    let begun = std::time::Instant::now();
    let (code, _, err) = process::run(&["serve", "users"], &envs).await;
    assert_eq!(code, 1, "{err}");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert!(err.contains("waited 1s for it (--store-wait)"), "{err}");
}
