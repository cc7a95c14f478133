//! What a waiting poll costs: against a bare handler, against a constant one behind the same
//! gateway, with many waiting against few, and in Redis commands.

use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Body;
use http::Method;
use serde_json::json;
use uuid::Uuid;

use super::{
    Bench,
    bare::{Answer, Kind, Peer},
    crowd::{Crowd, MANY},
    process::cpu_seconds,
    redis_figures::commands,
    row::{Figure, Row, number},
    wrk::{self, Load, Way},
};

const CONNECTIONS: usize = 64;

fn path(queue: Uuid) -> String {
    format!("/api/v1/queues/{queue}/tokens/me")
}

/// Polls of everybody in turn in one of the crowd's queues.
fn load(bench: &Bench, crowd: &Crowd, queue: Uuid) -> Result<Load> {
    let file = bench.dir.join(format!("polls-{queue}"));
    Ok(Load {
        method: "GET",
        path: path(queue),
        lines: wrk::lines(&file, crowd.tokens(queue)?)?,
        way: Way::Rotate,
        columns: vec!["Queue-Token"],
        common: vec![],
        connections: CONNECTIONS,
    })
}

/// One process under one load, over and over.
struct Side {
    url: String,
    pid: u32,
    load: Load,
    rates: Vec<f64>,
    cpu_us: Vec<f64>,
}

impl Side {
    fn new(url: &str, pid: u32, load: &Load) -> Self {
        Self {
            url: url.to_owned(),
            pid,
            load: load.clone(),
            rates: Vec::new(),
            cpu_us: Vec::new(),
        }
    }

    async fn run(&mut self, bench: &Bench) -> Result<()> {
        let before = cpu_seconds(self.pid)?;
        let measured = wrk::run(&bench.dir, &self.url, &self.load, bench.run).await?;
        let cpu = cpu_seconds(self.pid)? - before;
        self.rates.push(measured.rate());
        self.cpu_us.push(cpu * 1e6 / measured.requests as f64);
        Ok(())
    }

    fn rate(&self) -> Figure {
        Figure::new("/s", self.rates.clone())
    }

    /// Processor time of the serving process alone, a request.
    fn cpu(&self) -> f64 {
        Figure::new("µs", self.cpu_us.clone()).median
    }
}

/// The three ratios.
pub async fn ratios(bench: &mut Bench) -> Result<Vec<Row>> {
    bench.crowd().await?;
    let crowd = bench.gathered()?;
    let few = load(bench, crowd, crowd.few)?;
    let many = load(bench, crowd, crowd.many)?;
    let token = crowd.tokens(crowd.few)?.pop().context("a token")?;
    let reply = crowd
        .server
        .http
        .send(
            Method::GET,
            &few.path,
            &[("queue-token", &token)],
            Body::empty(),
        )
        .await?;
    let answer = Answer::of(&reply);
    let bare = Peer::start(&bench.dir, Kind::Bare, &few.path, &answer).await?;
    let gateway = Peer::start(&bench.dir, Kind::Gateway, &few.path, &answer).await?;
    let server = &crowd.server;
    let mut sides = [
        Side::new(&bare.url, bare.pid(), &few),
        Side::new(&server.at.url, server.pid(), &few),
        Side::new(&gateway.url, gateway.pid(), &few),
        Side::new(&server.at.url, server.pid(), &many),
    ];
    for side in &mut sides {
        wrk::run(&bench.dir, &side.url, &side.load, Duration::from_secs(1)).await?; // warm
    }
    for _ in 0..bench.rounds {
        for side in &mut sides {
            side.run(bench).await?;
        }
    }
    Ok(rows(&sides, reply.bytes.len()))
}

fn rows([bare, ours, gateway, million]: &[Side; 4], answer_bytes: usize) -> Vec<Row> {
    let detail = json!({ "cpuMicrosPerRequest": {
        "ours": ours.cpu(), "bare": bare.cpu(), "constant": gateway.cpu(), "withMillion": million.cpu(),
    }, "answerBytes": answer_bytes });
    let row = |what: &str, one: &Side, (name, other): (&'static str, &Side), at_least: f64| {
        let (cpu, there) = (one.cpu(), other.cpu());
        let note = format!("{cpu:.1} µs of processor a poll, {there:.1} there");
        Row::ratio("poll", what, one.rate(), (name, other.rate()), at_least).note(note)
    };
    let many = format!("waiting polls, {} waiting", number(MANY as f64));
    vec![
        row(
            "waiting polls",
            ours,
            ("bare axum handler, same bytes", bare),
            0.65,
        )
        .detail(detail),
        row(
            "waiting polls",
            ours,
            ("constant handler, same gateway", gateway),
            0.85,
        ),
        row(&many, million, ("with 1,000 waiting", ours), 0.95),
    ]
}

/// Redis commands that polls cause: those of a busy while less those of an idle one of the
/// same length, in which the server sweeps and takes its readings just the same.
pub async fn redis_commands(bench: &mut Bench) -> Result<Vec<Row>> {
    bench.crowd().await?;
    let crowd = bench.gathered()?;
    let few = load(bench, crowd, crowd.few)?;
    let mut redis = crowd.server.redis().await?;
    let (mut a_poll, mut seen) = (Vec::new(), Vec::new());
    wrk::run(
        &bench.dir,
        &crowd.server.at.url,
        &few,
        Duration::from_secs(1),
    )
    .await?;
    for _ in 0..bench.rounds {
        let start = commands(&mut redis).await?;
        let begun = std::time::Instant::now();
        let polls = wrk::run(&bench.dir, &crowd.server.at.url, &few, bench.run).await?;
        let (busy_for, busy) = (begun.elapsed(), commands(&mut redis).await? - start);
        let start = commands(&mut redis).await?;
        tokio::time::sleep(busy_for).await;
        let idle = commands(&mut redis).await? - start;
        a_poll.push((busy - idle) / polls.requests as f64);
        seen.push(json!({ "polls": polls.requests, "busyCommands": busy, "idleCommands": idle }));
    }
    let polls: u64 = seen.iter().filter_map(|s| s["polls"].as_u64()).sum();
    let sum = |key: &str| seen.iter().filter_map(|s| s[key].as_f64()).sum::<f64>();
    let note = format!(
        "{} commands in {} polls, {} in as much idle time",
        number(sum("busyCommands")),
        number(polls as f64),
        number(sum("idleCommands")),
    );
    // A reading more or less falls into one while or the other: some ten commands of many
    // thousand polls. One command in a thousand polls would be a defect.
    let figure = Figure::new(
        "a poll",
        a_poll
            .iter()
            .map(|n| (n * 1e3).round().abs() / 1e3)
            .collect(),
    );
    Ok(vec![
        Row::bound(
            "commands",
            "Redis commands caused by a waiting poll",
            figure,
            0.0,
        )
        .note(note)
        .detail(json!({ "rounds": seen, "perPoll": a_poll })),
    ])
}
