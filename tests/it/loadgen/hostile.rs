//! Targets that hang, redirect, refuse and vanish, outputs that cannot be written, and people who have waited enough:
//! a run ends, says what happened, and leaves its report.

use std::process::Stdio;

use nix::sys::signal::Signal;
use ticketping::cmd::loadgen::{report::Report, table};

use super::*;
use crate::harness::{self, eventually, process};

impl Desk {
    fn child(&self, line: &str, more: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(process::BIN);
        command
            .arg("loadgen")
            .args(line.split_whitespace())
            .args(["--url", &self.url, "--stripe-url", &self.url])
            .args(["--data-dir", self.dir.path().to_str().unwrap()])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true);
        command
    }

    fn report(&self, name: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(name)).unwrap()).unwrap()
    }
}

async fn ended(mut child: tokio::process::Child) -> Option<i32> {
    let status = tokio::time::timeout(Duration::from_secs(60), child.wait()).await;
    status.expect("it ends").unwrap().code()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_hangs_in_the_audit_costs_a_check_and_no_report() {
    let office = Office::new(4, 10).with_fault(Fault::HangAfterwards);
    let desk = Desk::at(&office, 2).await;
    let json = desk.path("report.json");
    let child = desk
        .child("surge --users 2", &["--json", json.to_str().unwrap()])
        .spawn()
        .unwrap();
    // Only the audit asks for a payment.
    eventually("the audit began", async || office.count("audited") > 0).await;
    assert!(!json.exists(), "a report is there once it is whole");
    harness::send(child.id().unwrap(), Signal::SIGTERM);
    assert_eq!(ended(child).await, Some(130));
    let report = desk.report("report.json");
    assert_eq!(report["buyers"]["completed"], 2);
    assert_eq!(report["ending"], "interrupted");
    let ran = Ran { code: 130, report };
    assert_eq!(ran.check("paymentsAccountedFor"), None);
    assert_eq!(ran.check("noSeatTwice"), Some(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_run_at_once_with_its_report() {
    // Nothing is answered from the first poll on, so that nobody can leave.
    let office = Office::new(2, 10).stalling(Duration::ZERO, Duration::from_secs(3_600));
    let desk = Desk::at(&office, 20).await;
    let json = desk.path("report.json");
    let line = "poll --users 20 --poll-every 100ms --duration 10m --give-up-after 10m --timeout 10m --leave-within 10m";
    let child = desk
        .child(line, &["--json", json.to_str().unwrap()])
        .spawn()
        .unwrap();
    eventually("polls", async || office.count("poll") > 0).await;
    let pid = child.id().unwrap();
    // Two of a kind may be delivered as one; these may not.
    harness::send(pid, Signal::SIGINT);
    harness::send(pid, Signal::SIGTERM);
    assert_eq!(ended(child).await, Some(130));
    assert_eq!(desk.report("report.json")["ending"], "interrupted");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_asking_again_cannot_mend_is_not_asked_again() {
    for (fault, code, says) in [
        (Fault::Unauthenticated, "UNAUTHENTICATED", "no"),
        (Fault::Redirect, "HTTP_301", "https://elsewhere.example/"),
    ] {
        let office = Office::new(4, 10).with_fault(fault);
        let desk = Desk::at(&office, 8).await;
        let ran = desk.run("enter --users 8").await;
        assert_eq!(office.count("enter"), 8, "{fault:?}: one try each");
        assert_eq!(ran.code, 1);
        let error = &ran.report["errors"][0];
        assert_eq!(error["code"], code);
        assert!(error["example"].as_str().unwrap().contains(says), "{error}");
        let headline = ran.report["headline"].as_str().unwrap();
        assert!(
            headline.starts_with("8 of 8 buyers did not finish.") && headline.contains(code),
            "{headline}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirection_says_where_it_leads() {
    let office = Office::new(1, 1);
    let mut desk = Desk::at(&office, 1).await;
    let there = desk.url.clone();
    let moved = axum::Router::new().fallback(async move |uri: axum::http::Uri| {
        let to = format!("{there}{uri}");
        (
            axum::http::StatusCode::MOVED_PERMANENTLY,
            [("location", to)],
        )
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let there = std::mem::replace(
        &mut desk.url,
        format!("http://{}", listener.local_addr().unwrap()),
    );
    tokio::spawn(async move { axum::serve(listener, moved).await.unwrap() });
    let error = loadgen::run(desk.args("enter --users 1", &desk.path("x")))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("name {there} by --url")),
        "{error}"
    );
    assert!(!desk.path("x").exists(), "no empty report stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_opened_before_the_run_and_each_is_written() {
    let office = Office::new(4, 10);
    let desk = Desk::at(&office, 3).await;
    let nowhere = desk.path("nowhere/report.json");
    let refused = loadgen::run(desk.args("enter --users 3", &nowhere))
        .await
        .unwrap_err();
    assert!(format!("{refused:#}").contains("nowhere"), "{refused:#}");
    assert_eq!(office.count("enter"), 0, "told before the run");

    // A full disk under one file, and a reader of standard output who has gone.
    let html = desk.path("report.html");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = desk
        .child(
            "enter --users 3",
            &["--json", "/dev/full", "--html", html.to_str().unwrap()],
        )
        .env("TMPDIR", desk.dir.path())
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id().unwrap();
    let output = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output());
    let output = output.await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let spare = desk.path(&format!("ticketping-{pid}-full"));
    assert!(
        said.contains("/dev/full") && said.contains(spare.to_str().unwrap()),
        "{said}"
    );
    let saved: Value = serde_json::from_slice(&std::fs::read(spare).unwrap()).unwrap();
    assert_eq!(saved["buyers"]["offered"], 3);
    assert!(std::fs::read_to_string(html).unwrap().contains("</html>"));

    // A closed standard output alone is nobody's failure.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let json = desk.path("report.json");
    let child = desk
        .child("enter --users 3", &["--json", json.to_str().unwrap()])
        .stdout(writer)
        .spawn()
        .unwrap();
    assert_eq!(ended(child).await, Some(0));
    assert_eq!(desk.report("report.json")["buyers"]["offered"], 3);
    let left = std::fs::read_dir(desk.dir.path()).unwrap();
    let names = left.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(names.filter(|name| name.contains(".new.")).count(), 0);
}

/// People who entered hold their places to the end of their shard, and no longer.
#[tokio::test(flavor = "multi_thread")]
async fn shards_one_after_another_merge_and_those_of_other_tests_do_not() {
    let office = Office::new(15, 10);
    let desk = Desk::at(&office, 60).await;
    let a = desk.run_to("enter --users 30 --shard 1/2", "a.json").await;
    desk.run_to("enter --users 30 --shard 2/2", "b.json").await;
    desk.run_to("enter --users 60 --shard 2/2", "c.json").await;
    // Leaving, in a burst at the end, is not held against the generator.
    assert_eq!(a.op("leave", "completed"), 15);
    assert_eq!(a.report["generator"]["sendLagMs"]["count"], 15);
    let line = |other: &str| {
        let (a, other) = (desk.path("a.json"), desk.path(other));
        format!("report {} {}", a.display(), other.display())
    };
    let merged = desk.run_to(&line("b.json"), "m.json").await;
    assert_eq!(merged.report["audit"]["admissions"], 30);
    assert_eq!(
        merged.check("admittedAtMostMax"),
        Some(true),
        "{}",
        merged.report["audit"]["checks"]
    );
    assert_eq!(merged.code, 0);

    let refused = async |other: &str| {
        let args = desk.args(&line(other), &desk.path("x.json"));
        loadgen::run(args).await.unwrap_err().to_string()
    };
    let other = refused("c.json").await;
    assert!(other.contains("different tests, by their load"), "{other}");
    let mut month_later = desk.report("b.json");
    for field in ["startedAt", "endedAt"] {
        let then: chrono::DateTime<chrono::Utc> =
            month_later[field].as_str().unwrap().parse().unwrap();
        month_later[field] = (then + chrono::Duration::days(30)).to_rfc3339().into();
    }
    std::fs::write(desk.path("late.json"), month_later.to_string()).unwrap();
    let apart = refused("late.json").await;
    assert!(apart.contains("did not run together"), "{apart}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_got_worse_since_a_baseline_is_exit_code_3() {
    let office = Office::new(30, 10);
    let desk = Desk::at(&office, 20).await;
    desk.run_to("enter --users 20", "before.json").await;
    let before = desk.path("before.json");
    let line = |more: &str| format!("enter --users 20 --compare {} {more}", before.display());
    // Anything short of a hundred times as bad.
    let same = desk.run(&line("--worse-by 10000%")).await;
    assert_eq!(same.code, 0, "{}", same.report["comparison"]);
    let mut faster = desk.report("before.json");
    for part in ["/total", "/operations/enter"] {
        faster.pointer_mut(part).unwrap()["perSecond"] = 1e9.into();
    }
    std::fs::write(&before, faster.to_string()).unwrap();
    let worse = desk.run(&line("")).await;
    assert_eq!(worse.code, 3);
    let figures = worse.report["comparison"]["figures"].as_array().unwrap();
    let rate = figures
        .iter()
        .find(|one| one["figure"] == "enter.rate")
        .unwrap();
    assert_eq!(
        (&rate["worse"], &rate["before"]),
        (&true.into(), &1e9.into())
    );
    let report: Report = serde_json::from_value(worse.report.clone()).unwrap();
    let text = table::render(&report, 80);
    assert!(
        text.contains("worse: enter.rate: 1000000000.0 a second before"),
        "{text}"
    );

    let other = desk.args(
        &format!("poll --users 1 --compare {}", before.display()),
        &desk.path("x.json"),
    );
    let refused = loadgen::run(other).await.unwrap_err().to_string();
    assert!(refused.contains("cannot be compared"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_fit_and_say_first_what_happened() {
    let office = Office::new(8, 100);
    let desk = Desk::at(&office, 20).await;
    let ran = desk
        .run("surge --users 20 --expect cancel.p99<1s --expect enter.p99<20s")
        .await;
    assert_eq!(
        ran.code, 3,
        "an objective that was not measured was not met"
    );
    let objective = &ran.report["objectives"][0];
    assert!(
        objective["held"].is_null() && objective["actual"].is_null(),
        "{objective}"
    );
    let report: Report = serde_json::from_value(ran.report.clone()).unwrap();
    for width in [80, 120] {
        let text = table::render(&report, width);
        assert!(
            text.trim_start().starts_with("All 20 buyers finished."),
            "{text}"
        );
        for line in text.lines() {
            assert!(
                line.chars().count() <= usize::from(width),
                "{width}: {line}"
            );
        }
        // Headers are whole, operations in the order of the journey, checks in words.
        for word in ["unfinished", "service p99", "no seat was sold twice"] {
            assert!(text.contains(word), "{word}:\n{text}");
        }
        let at = |name: &str| {
            let start = format!(" {name} ");
            text.find(&start)
                .unwrap_or_else(|| panic!("{name}:\n{text}"))
        };
        let journey = ["enter", "seats", "hold", "payment", "confirm"].map(at);
        assert!(journey.is_sorted(), "{text}");
        assert!(text.contains("objective cancel.p99<1s: NOT MEASURED (no cancel was made)"));
    }
}

/// A store that accepts connections and never says a word.
#[tokio::test(flavor = "multi_thread")]
async fn the_audit_of_a_stripe_that_never_answers_ends() {
    let database = harness::fresh_database().await;
    let migrated = process::run(&["migrate", "--database-url", &database], &[]).await;
    assert_eq!(migrated.0, 0, "{}", migrated.2);
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let key = [("STRIPE_SECRET_KEY", "sk_test_of_nobody".to_owned())];
    let args = [
        "audit",
        "--database-url",
        &database,
        "--stripe-url",
        &url,
        "--statement-timeout",
        "1s",
    ];
    let audit = tokio::time::timeout(Duration::from_secs(90), process::run(&args, &key));
    let (code, _, said) = audit.await.expect("it ends");
    assert_eq!(code, 1);
    assert!(
        said.contains("Stripe: nothing was answered for 11 s"),
        "{said}"
    );
    drop(silent);
}
