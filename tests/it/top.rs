//! `ticketping top` as an operator uses it: in tmux, against a real server with
//! people in its queue. Keys do what the footer says, pausing really pauses, a
//! lost server is a state, and the terminal is clean afterwards.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use axum::http::Method;

use crate::harness;
use crate::harness::process::{self, BIN, Process};
use crate::harness::server::Server;
use crate::harness::steps;

/// A terminal of its own, on a tmux server of its own.
struct Terminal {
    socket: String,
}

impl Terminal {
    fn open(columns: u16, lines: u16) -> Self {
        let socket = format!(
            "top-test-{}-{}",
            std::process::id(),
            uuid::Uuid::now_v7().simple()
        );
        let terminal = Self { socket };
        let (columns, lines) = (columns.to_string(), lines.to_string());
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &columns,
            "-y",
            &lines,
            "sh",
        ]);
        terminal.tmux(&["set", "-g", "status", "off"]);
        terminal
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(["-u", "-L", &self.socket])
            .args(args)
            .output();
        let output = output.expect("tmux is installed");
        assert!(
            output.status.success(),
            "tmux {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    fn type_in(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
    }

    /// The screen, once it shows `words`.
    async fn shows(&self, words: &str) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.screen();
            if screen.contains(words) {
                return screen;
            }
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "never {words:?} in:\n{screen}"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = Command::new("tmux")
            .args(["-L", &self.socket, "kill-server"])
            .output();
    }
}

async fn overview(dir: &Path) -> serde_json::Value {
    let (code, out, err) = process::run(
        &[
            "top",
            "--data-dir",
            dir.to_str().unwrap(),
            "--once",
            "--json",
        ],
        &[],
    )
    .await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(out.lines().count(), 1, "one line: {out}");
    serde_json::from_str(&out).unwrap()
}

/// A sale where two work and the rest wait.
async fn busy_sale() -> (Server, String) {
    let mut server = Server::start(harness::data_dir(), &[], &[]).await;
    let numbers = [
        "--performances",
        "1",
        "--schedules",
        "1",
        "--seats",
        "40",
        "--users",
        "8",
    ];
    server
        .seed(&[&numbers[..], &["--max-working", "2"]].concat())
        .await;
    let (performance, _) = steps::the_performance(&server.sale).await;
    for buyer in &server.sale.buyers[..5] {
        steps::enter(&server.sale, buyer, &performance).await;
    }
    (server, performance)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_watches_pauses_and_resumes_a_sale() {
    let (mut server, performance) = busy_sale().await;
    let terminal = Terminal::open(100, 30);
    let dir = server.dir.to_str().unwrap().to_owned();
    terminal.type_in("clear; stty -a > /dev/null; echo before");
    terminal.press("Enter");
    terminal.shows("before").await;
    terminal.type_in(&format!("{BIN} top --data-dir {dir}; echo left with $?"));
    terminal.press("Enter");

    // What the server says is what the screen says.
    terminal.shows("1 queues  waiting 3  working 2/2").await;
    let figures = overview(&server.dir).await;
    assert_eq!(figures["queues"][0]["waiting"], 3);
    assert_eq!(figures["queues"][0]["working"], 2);

    terminal.press("Enter");
    let detail = terminal.shows("Last events").await;
    assert!(detail.contains("p pause"), "{detail}");
    terminal.press("p");
    terminal.shows("Reason").await;
    terminal.press("Enter");
    terminal.shows("a reason is needed").await;
    terminal.type_in("drill of the night");
    terminal.press("Enter");
    terminal.shows("because drill of the night").await;
    terminal.press("y");
    terminal.shows("Done.").await;
    terminal.press("Enter");
    terminal.shows("PAUSED").await;
    terminal.shows("paused no → yes: drill of the night").await;

    // Pausing really pauses: the raised limit lets nobody in.
    let patch = serde_json::json!({"maxWorking": 5, "reason": "test"});
    change(&server, &performance, patch).await;
    // Entering admits whoever can be admitted, and takes the raised limit with it.
    steps::enter(&server.sale, &server.sale.buyers[5], &performance).await;
    terminal.shows("Waiting 4").await;
    let queue = &overview(&server.dir).await["queues"][0];
    assert_eq!(
        (&queue["maxWorking"], &queue["working"]),
        (&5.into(), &2.into())
    );

    terminal.press("p");
    terminal.shows("Resume").await;
    terminal.type_in("over");
    terminal.press("Enter");
    terminal.press("y");
    terminal.shows("Done.").await;
    terminal.press("Enter");
    terminal.shows("working 5/5").await;

    terminal.press("q");
    let screen = terminal.shows("left with 0").await;
    // A narrow terminal breaks the line wherever it ends.
    let unbroken = screen.replace('\n', "");
    assert!(
        unbroken.contains("before") && !screen.contains("Last events"),
        "not as before:\n{screen}"
    );
    assert_eq!(server.interrupt().await, Some(0));
}

/// Ctrl-L draws everything anew; Ctrl-Z gives the terminal to the shell, and `fg` brings us back.
#[tokio::test(flavor = "multi_thread")]
async fn a_redraw_and_a_rest_in_the_background_end_nothing() {
    let (mut server, _) = busy_sale().await;
    let terminal = Terminal::open(80, 24);
    let dir = server.dir.to_str().unwrap().to_owned();
    terminal.type_in(&format!("{BIN} top --data-dir {dir}"));
    terminal.press("Enter");
    terminal.shows("1 queues  waiting 3").await;
    terminal.press("C-l");
    // The list of keys, and back: it still listens.
    terminal.press("?");
    terminal.shows("Ten up").await;
    terminal.press("Escape");
    terminal.shows("/ filter").await;
    terminal.press("C-z");
    terminal.shows("Stopped").await;
    terminal.type_in("clear; echo in the meantime");
    terminal.press("Enter");
    terminal.shows("in the meantime").await;
    terminal.type_in("fg");
    terminal.press("Enter");
    let screen = terminal.shows("1 queues  waiting 3").await;
    assert!(!screen.contains("in the meantime"), "{screen}");
    terminal.press("?");
    terminal.shows("Ten up").await;
    terminal.press("q");
    terminal.shows("in the meantime").await;
    terminal.type_in("echo left with $?");
    terminal.press("Enter");
    terminal.shows("left with 0").await;
    assert_eq!(server.interrupt().await, Some(0));
}

async fn change(server: &Server, performance: &str, body: serde_json::Value) {
    let auth = server.admin();
    let path = format!("/admin/v1/queues/{performance}");
    let headers = [
        ("authorization", auth.as_str()),
        ("content-type", "application/json"),
    ];
    let reply = server
        .sale
        .api
        .send(Method::PATCH, &path, &headers, body.to_string())
        .await;
    reply.expect(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_server_is_a_state_and_comes_back() {
    let (mut server, _) = busy_sale().await;
    let terminal = Terminal::open(80, 24);
    let dir = server.dir.clone();
    terminal.type_in(&format!(
        "NO_COLOR=1 {BIN} top --data-dir {} --read-only",
        dir.display()
    ));
    terminal.press("Enter");
    terminal.shows("read-only").await;
    terminal.shows("waiting 3").await;
    server.kill().await;
    let lost = terminal.shows("SERVER LOST for").await;
    assert!(
        lost.contains("waiting 3") && lost.contains("figures are old"),
        "{lost}"
    );
    terminal.shows("LOST_SERVER").await;

    let log = dir.with_extension("log");
    let any = "127.0.0.1:0";
    let args = [
        "serve",
        "all",
        "--data-dir",
        dir.to_str().unwrap(),
        "--listen",
        any,
        "--ops-listen",
        any,
        "--stripe-sandbox-listen",
        any,
    ];
    let again = Process::start(&args, &[], &log);
    let runtime = process::runtime_file(&dir, &log).await;
    let url = runtime["url"].as_str().unwrap();
    // On another port, found by the data directory; r does not wait for the next try.
    terminal.press("r");
    terminal.shows("live").await;
    terminal.shows(url.trim_end_matches('/')).await;
    terminal.press("C-c");
    assert_eq!(again.interrupt().await, Some(0));
}

#[tokio::test]
async fn without_a_server_it_says_so_and_leaves_the_terminal_alone() {
    let dir = harness::data_dir();
    for extra in [&["--once"][..], &["--json", "--once"], &[]] {
        let args = [&["top", "--data-dir", dir.to_str().unwrap()], extra].concat();
        let (code, out, err) = process::run(&args, &[]).await;
        assert_eq!((code, out.as_str()), (1, ""), "{extra:?}: {err}");
        assert!(err.contains("ticketping serve all"), "{err}");
    }
    let refused = [
        "top",
        "--url",
        "http://127.0.0.1:9",
        "--token",
        "x",
        "--once",
    ];
    let (code, _, err) = process::run(&refused, &[]).await;
    assert_eq!(code, 1);
    assert!(
        err.contains("127.0.0.1:9") && err.contains("refused"),
        "{err}"
    );
    let usage = process::run(&["top", "--interval", "soon"], &[]).await;
    assert_eq!(usage.0, 2, "{}", usage.2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_gives_the_terminal_back_and_is_seen() {
    let terminal = Terminal::open(100, 30);
    // Nobody answers there: the frame is drawn all the same.
    terminal.type_in(&format!(
        "RUST_BACKTRACE=0 TICKETPING_FAILPOINT=top.draw_help:1:panic {BIN} top --url http://127.0.0.1:9 --token x; echo left with $?"
    ));
    terminal.press("Enter");
    terminal.shows("SERVER LOST").await;
    assert_eq!(
        terminal.tmux(&["display", "-p", "#{alternate_on}"]).trim(),
        "1"
    );
    terminal.press("?");
    let left = terminal.shows("left with 101").await;
    assert!(
        left.contains("failpoint top.draw_help: panicking"),
        "{left}"
    );
    assert_eq!(
        terminal
            .tmux(&["display", "-p", "#{alternate_on} #{cursor_flag}"])
            .trim(),
        "0 1",
        "{left}"
    );
    // The shell reads lines and echoes them again.
    terminal.type_in("stty -a | tr ' ' '\\n' | grep -x -e icanon -e echo | xargs echo modes:");
    terminal.press("Enter");
    terminal.shows("modes: icanon echo").await;
}
