//! The load generator tells the truth: a stall shows, counts match those of the
//! server, and every promise that a server breaks is found.

mod hostile;
mod office;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::Value;
use tempfile::TempDir;
use ticketping::cmd::loadgen;

use self::office::{Fault, Office};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: loadgen::Args,
}

struct Desk {
    dir: TempDir,
    url: String,
}

struct Ran {
    code: u8,
    report: Value,
}

impl Ran {
    fn op(&self, name: &str, field: &str) -> u64 {
        self.report["operations"][name][field].as_u64().unwrap_or(0)
    }

    fn latency(&self, name: &str, kind: &str, quantile: &str) -> f64 {
        self.report["operations"][name][kind][quantile]
            .as_f64()
            .unwrap()
    }

    fn check(&self, name: &str) -> Option<bool> {
        let checks = self.report["audit"]["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap_or_else(|| panic!("no check {name}"))["held"]
            .as_bool()
    }
}

impl Desk {
    async fn at(office: &Office, members: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (0..members)
            .map(|n| {
                format!("{{\"userId\":\"{n}\",\"email\":\"{n}@x\",\"accessToken\":\"user-{n}\"}}\n")
            })
            .collect();
        std::fs::write(dir.path().join("tokens.jsonl"), lines).unwrap();
        Self {
            dir,
            url: office.open().await,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn args(&self, line: &str, json: &Path) -> loadgen::Args {
        let dir = self.dir.path().to_str().unwrap();
        let common = [
            "--quiet",
            "--url",
            &self.url,
            "--stripe-url",
            &self.url,
            "--data-dir",
            dir,
            "--json",
            json.to_str().unwrap(),
        ];
        let words = ["loadgen"]
            .into_iter()
            .chain(line.split_whitespace())
            .chain(common);
        Cli::try_parse_from(words).unwrap().args
    }

    async fn run(&self, line: &str) -> Ran {
        self.run_to(line, "report.json").await
    }

    async fn run_to(&self, line: &str, name: &str) -> Ran {
        let json = self.path(name);
        let code = loadgen::run(self.args(line, &json)).await.unwrap();
        let report = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        Ran { code, report }
    }
}

/// The judged case: a server that stalls for a second, polls at a fixed rate. Who measures from
/// when a request was sent sees a handful of slow ones; who measures from when it was due sees a tenth.
#[tokio::test(flavor = "multi_thread")]
async fn a_stall_shows_in_p99_and_counts_match_the_servers() {
    let office = Office::new(5, 10).stalling(Duration::from_secs(4), Duration::from_secs(5));
    let desk = Desk::at(&office, 50).await;
    let ran = desk
        .run("poll --users 50 --rate 200 --duration 10s --connections 4 --leave-within 5s")
        .await;
    assert_eq!(ran.op("poll", "offered"), 2_000);
    assert_eq!(ran.op("poll", "completed"), 2_000);
    assert_eq!(ran.op("poll", "failed") + ran.op("poll", "unfinished"), 0);
    assert_eq!(office.count("poll"), 2_000);
    assert_eq!(office.count("enter"), 50);
    let p99 = ran.latency("poll", "latencyMs", "p99");
    assert!(
        (750.0..2_000.0).contains(&p99),
        "due to done p99 is {p99} ms"
    );
    let sent_p99 = ran.latency("poll", "serviceMs", "p99");
    assert!(
        sent_p99 < p99 / 2.0,
        "sent to done p99 is {sent_p99} ms: with 4 connections few were sent slowly"
    );
    // The connections; or, on a busy machine, the generator itself: either way the report says so.
    assert!(ran.report["generator"]["bottleneck"].is_string());
    assert_eq!(office.count("leave"), 50);
    assert_eq!(ran.code, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_surge_runs_every_journey_to_an_end_and_leaves_nothing_behind() {
    let office = Office::new(8, 400);
    let desk = Desk::at(&office, 120).await;
    let line = "surge --users 120 --over 1s --duration 40s --rng-seed 7 --seats 1..2 --walk-away 5% --decline 20% \
                --come-back 20% --two-tabs 20% --same-seat 30%";
    let ran = desk.run(line).await;
    let buyers = &ran.report["buyers"];
    assert_eq!(buyers["offered"], 120);
    assert_eq!(buyers["started"], 120);
    assert_eq!(buyers["completed"], 120, "{buyers}");
    let outcomes = &buyers["outcomes"];
    assert_eq!(
        outcomes["confirmed"].as_u64().unwrap(),
        office.ledger.lock().unwrap().confirmed
    );
    assert!(outcomes["declined"].as_u64().unwrap() >= 3, "{outcomes}");
    let walked = outcomes["walkedAway"].as_u64().unwrap();
    assert!(walked >= 1, "{outcomes}");
    // Only who walked away without a word still has a place.
    assert!(office.ledger.lock().unwrap().places.len() as u64 <= walked);
    for kind in [
        "enter", "poll", "seats", "hold", "payment", "confirm", "cancel", "leave",
    ] {
        let counted = ran.op(kind, "completed") + ran.op(kind, "failed");
        // The sampler looks at the seat map too.
        let server = office.count(kind);
        assert!(
            if kind == "seats" {
                server >= counted
            } else {
                server == counted
            },
            "{kind}: {server} and {counted}"
        );
    }
    for name in [
        "admittedAtMostMax",
        "workingAtMostMax",
        "nobodyPassedOver",
        "samePlaceOnReturn",
        "noSeatTwice",
        "paymentsAccountedFor",
    ] {
        assert_eq!(ran.check(name), Some(true), "{name}");
    }
    assert_eq!(ran.report["total"]["failed"], 0, "{}", ran.report["errors"]);
    assert_eq!(ran.code, 0);
}

/// A check that never fails proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn each_broken_promise_is_a_breach() {
    let cases = [
        (
            Fault::Overshoot,
            "surge --users 20 --think 300ms --duration 20s",
            "admittedAtMostMax",
        ),
        (
            Fault::SellTwice,
            "surge --users 12 --same-seat 1 --duration 20s",
            "noSeatTwice",
        ),
        (
            Fault::PassOver,
            "surge --users 40 --over 1s --think 700ms --duration 9s",
            "nobodyPassedOver",
        ),
        (
            Fault::ForgetPlace,
            "surge --users 20 --come-back 100% --duration 20s",
            "samePlaceOnReturn",
        ),
        (
            Fault::KeepMoney,
            "surge --users 2 --duration 20s",
            "paymentsAccountedFor",
        ),
    ];
    for (fault, line, check) in cases {
        let office = Office::new(4, 60).with_fault(fault);
        let desk = Desk::at(&office, 40).await;
        let ran = desk.run(&format!("{line} --rng-seed 3")).await;
        assert_eq!(
            ran.check(check),
            Some(false),
            "{fault:?} must breach {check}: {}",
            ran.report["audit"]["checks"]
        );
        assert_eq!(ran.code, 1, "{fault:?}");
        let headline = ran.report["headline"].as_str().unwrap();
        assert!(headline.starts_with("The audit found "), "{headline}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_scenarios_and_http2() {
    let office = Office::new(10, 100);
    let desk = Desk::at(&office, 60).await;
    let enter = desk.run("enter --rate 100 --users 60 --http2").await;
    assert_eq!(
        (
            enter.code,
            enter.op("enter", "completed"),
            office.count("enter")
        ),
        (0, 60, 60)
    );
    assert_eq!(enter.report["buyers"]["outcomes"]["entered"], 60);
    assert_eq!(
        enter.report["generator"]["connects"], 8,
        "streams share eight connections"
    );
    assert_eq!(
        office.ledger.lock().unwrap().places.len(),
        0,
        "who entered has left"
    );
    let hold = desk.run("hold --users 30 --seats 2 --duration 20s").await;
    assert_eq!(
        (
            hold.code,
            hold.op("hold", "completed"),
            hold.op("cancel", "completed")
        ),
        (0, 30, 30)
    );

    let checkout = desk
        .run("checkout --users 40 --duration 20s --expect errors=0 --expect hold.p99<5s")
        .await;
    assert_eq!(
        (checkout.code, office.ledger.lock().unwrap().confirmed),
        (0, 40)
    );
    let missed = desk
        .run("poll --users 5 --duration 1s --expect p50<1us")
        .await;
    assert_eq!(missed.code, 3);
    assert_eq!(missed.report["buyers"]["outcomes"]["polled"], 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_share_a_test_and_their_reports_merge() {
    let office = Office::new(6, 100);
    let desk = Desk::at(&office, 30).await;
    let line =
        |shard| format!("surge --users 30 --over 1s --duration 20s --rng-seed 5 --shard {shard}/2");
    let (one, two) = (line(1), line(2));
    let (a, b) = tokio::join!(desk.run_to(&one, "a.json"), desk.run_to(&two, "b.json"));
    assert_eq!(
        (
            a.report["buyers"]["offered"].as_u64(),
            b.report["buyers"]["offered"].as_u64()
        ),
        (Some(15), Some(15))
    );
    let (files, html) = (
        format!(
            "report {} {}",
            desk.path("a.json").display(),
            desk.path("b.json").display()
        ),
        desk.path("r.html"),
    );
    let merged = desk
        .run_to(&format!("{files} --html {}", html.display()), "merged.json")
        .await;
    assert_eq!(merged.report["buyers"]["offered"], 30);
    assert_eq!(merged.report["buyers"]["outcomes"]["confirmed"], 30);
    assert_eq!(merged.op("enter", "completed"), 30);
    assert_eq!(merged.report["audit"]["admissions"], 30);
    assert_eq!(merged.check("noSeatTwice"), Some(true));
    let slower = a
        .latency("enter", "latencyMs", "max")
        .max(b.latency("enter", "latencyMs", "max"));
    assert_eq!(merged.latency("enter", "latencyMs", "max"), slower);
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.contains("\"scenario\":\"surge\"") && !page.contains("__REPORT__"));
    assert!(
        !page.contains("src=") && !page.contains("@import") && !page.contains("<link"),
        "nothing is loaded from elsewhere"
    );
    let twice = desk.args(
        &format!("report {0} {0}", desk.path("a.json").display()),
        &desk.path("x.json"),
    );
    assert!(
        loadgen::run(twice)
            .await
            .unwrap_err()
            .to_string()
            .contains("shard 1/2 is there twice")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_is_down_or_no_ticketping_is_told_quickly() {
    let office = Office::new(1, 1);
    let mut desk = Desk::at(&office, 3).await;
    let few = loadgen::run(desk.args("surge --users 4", &desk.path("x")))
        .await
        .unwrap_err();
    assert!(
        few.to_string().contains("ticketping seed --users 4"),
        "{few}"
    );
    let begun = Instant::now();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    desk.url = format!("http://{}", free.local_addr().unwrap());
    drop(free);
    let down = loadgen::run(desk.args("surge --users 1", &desk.path("x")))
        .await
        .unwrap_err();
    assert!(
        down.to_string().contains("does not answer") && down.to_string().contains("refused"),
        "{down}"
    );
    let page = axum::Router::new().fallback(|| async { "<html>hello</html>" });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    desk.url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, page).await.unwrap() });
    let other = loadgen::run(desk.args("surge --users 1", &desk.path("x")))
        .await
        .unwrap_err();
    assert!(
        format!("{other:#}").contains("not as Ticketping does"),
        "{other:#}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
}

/// From the moment that nothing is answered any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_falls_silent_ends_the_run() {
    let office = Office::new(2, 10).stalling(Duration::from_secs(1), Duration::from_secs(3_600));
    let desk = Desk::at(&office, 20).await;
    let begun = Instant::now();
    let ran = desk
        .run("poll --users 20 --poll-every 200ms --duration 60s --give-up-after 2s --no-audit")
        .await;
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(
        (ran.code, ran.report["ending"].as_str()),
        (1, Some("gaveUp"))
    );
    assert!(ran.op("poll", "unfinished") > 0);
}

/// Ctrl-C: buyers leave, and the report says what was done.
#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_with_a_report() {
    let office = Office::new(3, 10);
    let desk = Desk::at(&office, 25).await;
    let json = desk.path("report.json");
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_ticketping"))
        .args([
            "loadgen",
            "poll",
            "--users",
            "25",
            "--duration",
            "60s",
            "--plain",
        ])
        .args([
            "--url",
            &desk.url,
            "--data-dir",
            desk.dir.path().to_str().unwrap(),
            "--json",
            json.to_str().unwrap(),
        ])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let waited = Instant::now();
    while office.count("poll") < 50 {
        assert!(waited.elapsed() < Duration::from_secs(60), "no polls");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let status = tokio::time::timeout(Duration::from_secs(40), child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(130));
    let report: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert_eq!(report["ending"], "interrupted");
    assert_eq!(
        report["operations"]["poll"]["completed"].as_u64().unwrap(),
        office.count("poll")
    );
    assert_eq!(office.ledger.lock().unwrap().places.len(), 0);
}
