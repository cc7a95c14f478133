//! The buyer's page in Debian's Chromium, against the whole server; the cases stand beside this file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../it/harness/mod.rs"]
mod harness;

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::harness::server::Server;

/// However slow the machine is, a group of cases ends before.
const GROUP_MAX: Duration = Duration::from_secs(420);

/// A browser needs a processor to itself: one group after the other.
static BROWSER: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs every case of `group` against a server whose performances have `seats` seats each and
/// admit `working` people.
async fn run(group: &str, seats: &str, working: &str, hold_ttl: &str) {
    let _alone = BROWSER.lock().await;
    let mut server = Server::start(harness::data_dir(), &[], &[]).await;
    let seed = [
        ["--performances", "14"],
        ["--schedules", "1"],
        ["--seats", seats],
        ["--users", "1"],
        ["--max-working", working],
        ["--hold-ttl", hold_ttl],
    ];
    server.seed(&seed.concat()).await;
    let pool = sqlx::PgPool::connect(&server.database_url()).await.unwrap();
    let performances: Vec<(uuid::Uuid, uuid::Uuid)> = sqlx::query_as(
        "select p.id, min(s.id::text)::uuid from performances.performances p
         join performances.schedules s on s.performance_id = p.id group by p.id order by p.id",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let performances: Vec<Value> = (performances.iter())
        .map(|(id, schedule)| json!({"id": id, "schedule": schedule}))
        .collect();

    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/page/main.mjs");
    let mut node = tokio::process::Command::new("node")
        .arg(cases)
        .arg(group)
        .env("PAGE_URL", &server.sale.api.base)
        .env("PAGE_ADMIN", server.admin().trim_start_matches("Bearer "))
        .env("PAGE_PERFORMANCES", json!(performances).to_string())
        .env("PAGE_MODULES", harness::fetched("page-fetch"))
        .env("PAGE_CHROMIUM", chromium())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut answers = node.stdin.take().unwrap();
    let mut asks = BufReader::new(node.stdout.take().unwrap()).lines();
    let mut errors = node.stderr.take().unwrap();
    let told = tokio::spawn(async move {
        let mut told = String::new();
        errors.read_to_string(&mut told).await.unwrap();
        told
    });
    let done = tokio::time::timeout(GROUP_MAX, async {
        while let Some(line) = asks.next_line().await.unwrap() {
            let asked: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{line}"));
            let sql = asked["sql"].as_str().unwrap().to_owned();
            let ran = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&pool).await;
            let answer = ran.map_or_else(|error| error.to_string(), |_| "ok".to_owned());
            let answer = answer.replace('\n', " ") + "\n";
            answers.write_all(answer.as_bytes()).await.unwrap();
        }
        node.wait().await.unwrap()
    });
    let status = done.await.expect("the cases end");
    let told = told.await.unwrap();
    assert!(status.success(), "{}\n{told}", server.log_tail());
    assert!(told.contains(" 0 failed"), "{told}");
    assert_eq!(server.interrupt().await, Some(0));
}

/// Debian calls it `chromium`, others `chromium-browser` or `google-chrome`.
fn chromium() -> String {
    let path = std::env::var("PATH").unwrap();
    ["chromium", "chromium-browser", "google-chrome"]
        .iter()
        .flat_map(|name| path.split(':').map(move |dir| format!("{dir}/{name}")))
        .find(|file| Path::new(file).exists())
        .expect("scripts/setup --tests installs chromium")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_opening_counts_by_the_servers_clock() {
    run("opening", "40", "5", "60s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_sees_what_happens() {
    run("queue", "40", "1", "60s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_choice_that_others_change_is_asked_for_again() {
    run("hall", "1200", "5", "60s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_followed_by_the_servers_clock() {
    run("order", "40", "5", "300s").await;
}
