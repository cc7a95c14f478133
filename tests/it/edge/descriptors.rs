//! File descriptors: connections stay below the limit, and operations answer beyond it.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use super::{connect, head, of_url};
use crate::harness::{
    self, client,
    process::{BIN, runtime_file},
};

async fn prlimit(pid: u32, soft: usize) {
    let (pid, limit) = (pid.to_string(), format!("--nofile={soft}:"));
    let set = Command::new("prlimit")
        .args(["--pid", &pid, &limit])
        .status()
        .await;
    assert!(set.unwrap().success());
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn operations_answer_when_no_descriptor_is_left() {
    let dir = harness::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let log = dir.with_extension("log");
    let file = std::fs::File::create(&log).unwrap();
    let any = "127.0.0.1:0";
    let mut child = Command::new("prlimit")
        .args(["--nofile=512:1500", BIN, "serve", "all", "--listen", any])
        .args([
            "--ops-listen",
            any,
            "--stripe-sandbox-listen",
            any,
            "--data-dir",
        ])
        .arg(&dir)
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let runtime = runtime_file(&dir, &log).await;
    let (at, ops) = (
        of_url(runtime["url"].as_str().unwrap()),
        runtime["opsUrl"].as_str().unwrap(),
    );
    let pid = child.id().unwrap();
    // The soft limit is raised to the hard one, and connections are fewer than that.
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("1500"), "{files}");
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(
        said.contains("at most 750 connections fit, and not 5000 (--max-connections)"),
        "{said}"
    );
    // All connections in use: those who run the service still see it.
    let mut clients = Vec::new();
    for _ in 0..900 {
        clients.push(connect(at).await);
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        let (status, body) = client::get(&format!("{ops}{path}")).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    assert!(open_files(pid) < 1500 - 100);
    drop(clients);
    harness::eventually("connections end", async || open_files(pid) < 400).await;
    // No descriptor left at all: every number below has been given out.
    prlimit(pid, 40).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(connect(at).await);
    }
    for path in ["/livez", "/metrics", "/livez", "/metrics", "/livez"] {
        let url = format!("{ops}{path}");
        let asked = client::get(&url);
        let (status, body) = tokio::time::timeout(Duration::from_secs(5), asked)
            .await
            .unwrap();
        assert_eq!(status, 200, "{path}: {body}");
    }
    drop(clients);
    prlimit(pid, 1500).await;
    harness::eventually("buyers are served again", async || {
        let mut client = connect(at).await;
        let get = "GET /api/v1/performances HTTP/1.1\r\nhost: h\r\n\r\n";
        let answer = tokio::time::timeout(Duration::from_secs(1), head(&mut client, get)).await;
        answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200 "))
    })
    .await;
    let said = std::fs::read_to_string(&log).unwrap();
    let lines = said.matches("cannot accept connections").count();
    assert!((1..20).contains(&lines), "{lines} lines about it");
    harness::send(pid, nix::sys::signal::Signal::SIGINT);
    child.wait().await.unwrap();
}
