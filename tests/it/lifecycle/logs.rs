use std::process::Stdio;

use super::*;
use crate::harness::process::{self, BIN};

/// Nobody reads stderr: requests are answered all the same, and SIGTERM is obeyed.
#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let any = "127.0.0.1:0";
    let mut server = tokio::process::Command::new(BIN)
        .args(["serve", "all", "--log", "debug", "--data-dir"])
        .arg(&dir)
        .args(["--listen", any, "--ops-listen", any])
        .args(["--stripe-sandbox-listen", any])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let runtime = process::runtime_file(&dir, &dir.with_extension("log")).await;
    let api = harness::client::Http::new(runtime["url"].as_str().unwrap());
    // Each is a line or two; the pipe takes 64 KB.
    let long = "x".repeat(200);
    for i in 0..1_000 {
        let path = format!("/api/v1/orders/{long}{i}");
        let asked = tokio::time::timeout(Duration::from_secs(10), api.get(&path, &[]));
        asked
            .await
            .expect("an answer")
            .problem(401, "UNAUTHENTICATED");
    }
    harness::send(server.id().unwrap(), Signal::SIGTERM);
    let ended = tokio::time::timeout(Duration::from_secs(20), server.wait()).await;
    assert_eq!(ended.expect("it ends").unwrap().code(), Some(0));
}

#[tokio::test]
async fn what_ends_a_process_is_said_in_the_format_of_its_log() {
    for (args, code, word) in [
        (&["serve", "users"][..], 2, "--jwt-key-file is missing"),
        (&["serve", "users", "--log", "all=loud"][..], 2, "--log"),
    ] {
        let mut all = args.to_vec();
        all.extend(["--log-format", "json", "--ops-listen", "127.0.0.1:0"]);
        all.extend(["--listen", "127.0.0.1:0", "--internal-secret", "x"]);
        let (ended, _, err) = process::run(&all, &[]).await;
        assert_eq!(ended, code, "{err}");
        let last: serde_json::Value = serde_json::from_str(err.lines().last().unwrap()).unwrap();
        assert_eq!(last["level"], "ERROR");
        assert_eq!(last["role"], "users");
        assert!(last["message"].as_str().unwrap().contains(word), "{err}");
    }
}

/// The line of a request that failed says why, for whom and where; a flood is summarised.
pub(super) async fn a_failure_stands_in_one_line(server: &Server) {
    let login = json!({"email": "ada@example.com", "password": "correct horse battery"});
    let traced = [("x-request-id", "find-me")];
    let api = &server.sale.api;
    let login = || api.post("/api/v1/auth/login", &traced, login.clone());
    login().await.problem(503, "UNAVAILABLE");
    let lines = || -> Vec<serde_json::Value> {
        let log = server.log();
        let lines = log.lines().filter(|line| line.starts_with('{'));
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let about = |line: &serde_json::Value| line["request.id"] == "find-me";
    eventually("a line about the request", async || {
        lines().iter().any(about)
    })
    .await;
    let line = lines().into_iter().find(about).unwrap();
    assert_eq!(line["http.status"], 503, "{line}");
    assert!(!line["error"].as_str().unwrap().is_empty(), "{line}");
    assert_eq!(line["role"], "all");
    assert!(line["instance"].as_str().unwrap().len() > 4, "{line}");
    assert_eq!(line["trace.id"].as_str().unwrap().len(), 32, "{line}");
    for _ in 0..60 {
        login().await.problem(503, "UNAVAILABLE");
    }
    let told = lines().iter().filter(|line| about(line)).count();
    assert!(told <= 45, "{told} lines of one cause");
}
