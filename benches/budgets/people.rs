//! Crowds as `ticketping loadgen` plays them, generator and server on the same cores: an
//! instant of entries, the reference preset, a million who poll as told.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{
    Bench,
    row::{Figure, Row, number},
    server::Server,
};

/// A fifth of what two cores can do.
const ENTRIES_A_SECOND: u32 = 2_000;

async fn server(bench: &Bench, name: &str, people: u64) -> Result<Server> {
    let server = Server::start(&bench.dir, name).await?;
    bench.say(&format!("{people} people are seeded"));
    server
        .seed(&format!(
            "--performances 1 --seats 2000 --users {people} --max-working 100 --queue-factor 0"
        ))
        .await?;
    Ok(server)
}

/// What makes a run a miss whatever its latencies: failed requests, or a breach that
/// loadgen's own audit found.
fn wrong(report: &Value) -> Option<String> {
    let count = |key: &str| report["total"][key].as_u64().unwrap_or(u64::MAX);
    let (failed, unfinished) = (count("failed"), count("unfinished"));
    if failed + unfinished > 0 {
        let first = &report["errors"][0];
        return Some(format!(
            "{failed} requests failed, {unfinished} unfinished; the first error: {first}"
        ));
    }
    let checks = report["audit"]["checks"].as_array()?;
    let breach = checks.iter().find(|check| check["held"] == false)?;
    Some(format!("the audit found a breach: {breach}"))
}

fn summary(report: &Value) -> Value {
    json!({
        "command": report["command"],
        "generator": { "bottleneck": report["generator"]["bottleneck"], "sendLagMs": report["generator"]["sendLagMs"],
            "connectionWaitMs": report["generator"]["connectionWaitMs"], "cpuSeconds": report["generator"]["cpuSeconds"],
            "peakMemoryBytes": report["generator"]["peakMemoryBytes"] },
        "toPlaceMs": report["buyers"]["toPlaceMs"],
        "poll": { "latencyMs": report["operations"]["poll"]["latencyMs"], "serviceMs": report["operations"]["poll"]["serviceMs"],
            "perSecond": report["operations"]["poll"]["perSecond"], "completed": report["operations"]["poll"]["completed"] },
        "errors": report["errors"],
    })
}

/// The polls' p99 of a run, held against a bound.
fn polls(budget: &'static str, what: String, report: &Value, most_ms: f64) -> Result<Row> {
    let poll = &report["operations"]["poll"];
    let p99 = poll["latencyMs"]["p99"]
        .as_f64()
        .context("no polls were answered")?;
    let lag = report["generator"]["sendLagMs"]["p99"]
        .as_f64()
        .unwrap_or(0.0);
    let note = format!(
        "{} polls, {}/s; p50 {} ms, max {} ms; the generator itself was late by {} ms at p99",
        number(poll["completed"].as_f64().unwrap_or(0.0)),
        number(poll["perSecond"].as_f64().unwrap_or(0.0)),
        number(poll["latencyMs"]["p50"].as_f64().unwrap_or(0.0)),
        number(poll["latencyMs"]["max"].as_f64().unwrap_or(0.0)),
        number(lag),
    );
    Ok(Row::bound(budget, what, Figure::once("ms", p99), most_ms)
        .note(note)
        .missed_if(wrong(report))
        .detail(summary(report)))
}

/// 10,000 people enter at the same instant.
pub async fn instant(bench: &mut Bench) -> Result<Vec<Row>> {
    let server = server(bench, "instant", 10_000).await?;
    let report = server.loadgen("enter --users 10000").await?;
    let to_place = &report["buyers"]["toPlaceMs"];
    let longest = to_place["max"].as_f64().context("nobody got a place")? / 1e3;
    let note = format!(
        "p50 {} ms, p99 {} ms",
        number(to_place["p50"].as_f64().unwrap_or(0.0)),
        number(to_place["p99"].as_f64().unwrap_or(0.0))
    );
    Ok(vec![
        Row::bound(
            "instant",
            "10,000 people enter at one instant: all have places",
            Figure::once("s", longest),
            2.0,
        )
        .note(note)
        .missed_if(wrong(&report))
        .detail(summary(&report)),
    ])
}

/// The reference preset. In its whole length everybody enters at one instant; in a shorter run,
/// where the seconds of entering would be more than a hundredth of all polls and so be their
/// p99, people enter at [`ENTRIES_A_SECOND`].
pub async fn reference(bench: &mut Bench) -> Result<Vec<Row>> {
    let poll_s = match (bench.quick, bench.full) {
        (_, true) => 900,
        (true, false) => 15,
        (false, false) => 60,
    };
    let server = server(bench, "reference", 40_000).await?;
    let mut rows = Vec::new();
    for people in [10_000, 40_000] {
        bench.say(&format!("{people} people poll for {poll_s} s"));
        let enter_s = if bench.full {
            0
        } else {
            people / ENTRIES_A_SECOND
        };
        let mut args = format!(
            "--preset reference --users {people} --duration {}s",
            enter_s + poll_s
        );
        if enter_s > 0 {
            args.push_str(&format!(" --over {enter_s}s"));
        }
        let report = server.loadgen(&args).await?;
        let people = number(f64::from(people));
        let what = format!("{people} people polling every 3 s for {poll_s} s: polls p99");
        rows.push(polls("reference", what, &report, 20.0)?);
    }
    Ok(rows)
}

/// A million people, polling as told.
pub async fn million(bench: &mut Bench) -> Result<Vec<Row>> {
    const WHAT: &str = "1,000,000 people polling as told: polls p99";
    if !bench.full {
        return Ok(vec![Row::unmeasured(
            "million",
            WHAT,
            "takes ten minutes; FULL=1 asks for it",
        )]);
    }
    let server = server(bench, "million", 1_000_000).await?;
    // In five minutes all have entered, after a sixth whoever fell behind has caught up; then three
    // are measured, in which everybody polls, at the far back once a minute.
    let args = "poll --users 1000000 --over 300s --warm-up 360s --duration 540s --leave-within 0s --no-audit --timeout 30s";
    let report = server.loadgen(args).await?;
    Ok(vec![polls("million", WHAT.to_owned(), &report, 50.0)?])
}
