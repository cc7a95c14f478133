//! The operator's side: one read of a thousand queues, and what `ticketping top` itself costs.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use uuid::Uuid;

use super::{
    Bench,
    process::{cpu_seconds, resident_bytes},
    row::{Figure, Row},
    server::{BIN, Server},
};

const QUEUES: usize = 1_000;
/// As `top` asks: once a second would be as many, later.
const READS: usize = 100;
/// An idle queue is looked at every ten seconds.
const SETTLED_MAX: Duration = Duration::from_secs(20);
/// Ten readings and ten frames.
const WATCHED: Duration = Duration::from_secs(10);

/// A thousand queues with people in them, read at once; then `top` on them.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let server = Server::start(&bench.dir, "overview").await?;
    server
        .seed(&format!(
            "--performances {QUEUES} --schedules 1 --seats 10 --users 3 --max-working 2"
        ))
        .await?;
    bench.say(&format!("three people enter {QUEUES} queues each"));
    let performances: Vec<Uuid> = sqlx::query_scalar("select id from performances.performances")
        .fetch_all(&server.database().await?)
        .await?;
    ensure!(performances.len() == QUEUES, "{QUEUES} were seeded");
    for member in server.members()? {
        for id in &performances {
            server.enter(&member, id).await?;
        }
    }
    let token = std::fs::read_to_string(server.dir().join("ops-token"))?;
    let auth = format!("Bearer {}", token.trim());
    let read = async || {
        let begun = Instant::now();
        let headers = [("authorization", &*auth)];
        let overview = server.http.get("/admin/v1/overview", &headers).await?;
        let took = begun.elapsed().as_secs_f64() * 1_000.0;
        let queues = overview["queues"].as_array().context("queues")?;
        let peopled = |q: &&serde_json::Value| q["working"] == 2 && q["waiting"] == 1;
        anyhow::Ok((took, queues.iter().filter(peopled).count()))
    };
    let begun = Instant::now();
    loop {
        let (_, peopled) = read().await?;
        if peopled == QUEUES {
            break;
        }
        ensure!(
            begun.elapsed() < SETTLED_MAX,
            "{peopled} of {QUEUES} queues show their people"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let mut took = Vec::new();
    for _ in 0..READS {
        took.push(read().await?.0);
    }
    let mut rows = vec![
        Row::bound(
            "overview",
            "the operator's overview of 1,000 queues",
            Figure::new("ms", took),
            20.0,
        )
        .note("the median of 100 reads, as a client sees it"),
    ];
    rows.extend(watch(&server).await?);
    Ok(rows)
}

/// `top` in a terminal of its own, on that server.
async fn watch(server: &Server) -> Result<Vec<Row>> {
    const CPU: &str = "processor of `top`, of one core";
    const MEMORY: &str = "memory of `top`";
    let socket = format!("ticketping-bench-{}", std::process::id());
    let tmux = |args: &[&str]| {
        Command::new("tmux")
            .args(["-u", "-L", &socket])
            .args(args)
            .output()
    };
    let top = format!("exec {BIN} top --data-dir {}", server.dir().display());
    let started = tmux(&[
        "-f",
        "/dev/null",
        "new-session",
        "-d",
        "-x",
        "120",
        "-y",
        "40",
        &top,
    ]);
    if !started.is_ok_and(|out| out.status.success()) {
        return Ok([CPU, MEMORY]
            .map(|what| Row::unmeasured("overview", what, "tmux is missing"))
            .into());
    }
    let pid = tmux(&["list-panes", "-F", "#{pane_pid}"])?;
    let measured = measure(String::from_utf8(pid.stdout)?.trim().parse()?).await;
    let screen = tmux(&["capture-pane", "-p"])?;
    tmux(&["kill-server"])?;
    let (cpu, memory) = measured?;
    let screen = String::from_utf8(screen.stdout)?;
    ensure!(
        screen.contains("live"),
        "top shows no live figures: {screen}"
    );
    Ok(vec![
        Row::bound("overview", CPU, Figure::once("%", cpu), 1.0)
            .note(format!(
                "over {} s, 1,000 queues, 120x40",
                WATCHED.as_secs()
            ))
            .detail(json!({ "screen": screen })),
        Row::bound("overview", MEMORY, Figure::once("MB", memory), 30.0),
    ])
}

async fn measure(pid: u32) -> Result<(f64, f64)> {
    // It has drawn its first frames by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = cpu_seconds(pid).context("top ended")?;
    let begun = Instant::now();
    tokio::time::sleep(WATCHED).await;
    let used = cpu_seconds(pid)? - before;
    let cpu = used / begun.elapsed().as_secs_f64() * 100.0;
    Ok((cpu, resident_bytes(pid)? as f64 / 1e6))
}
