//! `loadgen report a.json b.json`: the reports of shards become the report of the test.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use uuid::Uuid;

use super::audit;
use super::build::{bottleneck, timing};
use super::expect::Objective;
use super::notes::Admission;
use super::output::say;
use super::report::{
    Audit, Buyers, Check, ErrorKind, Generator, Latency, Operation, OperationSeries, RefusalKind,
    Report, SCHEMA, Series, add, encode,
};
use super::stats::{OpStats, Timing};

/// Shards that were started by hand, one after another.
const APART_MAX: chrono::TimeDelta = chrono::TimeDelta::seconds(60);

pub fn read(path: &Path) -> anyhow::Result<Report> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let schema: serde_json::Value =
        serde_json::from_slice(&bytes).with_context(|| format!("{} is no JSON", path.display()))?;
    match schema.get("schema").and_then(|schema| schema.as_str()) {
        Some(SCHEMA) => {}
        Some(other) => bail!(
            "{} has schema {other}; this version reads {SCHEMA}",
            path.display()
        ),
        None => bail!("{} is no report of loadgen", path.display()),
    }
    serde_json::from_value(schema).with_context(|| format!("{} is damaged", path.display()))
}

pub fn merge(paths: &[PathBuf], command: String, expect: &[Objective]) -> anyhow::Result<Report> {
    let reports = paths
        .iter()
        .map(|path| read(path))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut merged = combine(&reports)?;
    merged.command = command;
    let missing = missing(&merged.shards);
    if !missing.is_empty() && !merged.shards.is_empty() {
        say(&format!(
            "warning: shard {} is missing: the sum is a part of the test",
            missing.join(", ")
        ));
    }
    super::build::judge(&mut merged, expect);
    // A shard that gave up or was breached stays so, whatever the sum says.
    if reports.iter().any(|report| report.exit_code == 1) {
        merged.exit_code = 1;
    }
    Ok(merged)
}

/// Adds up reports of one test.
pub fn combine(reports: &[Report]) -> anyhow::Result<Report> {
    let [first, rest @ ..] = reports else {
        bail!("no report to merge")
    };
    for other in rest {
        same_test(first, other)?;
    }
    for (at, other) in reports.iter().enumerate() {
        for earlier in &reports[..at] {
            if let Some(shard) = (earlier.shards.iter()).find(|shard| other.shards.contains(shard))
            {
                bail!("shard {shard} is there twice");
            }
        }
    }
    at_one_time(reports)?;
    let mut merged = first.clone();
    merged.started_at = reports
        .iter()
        .map(|r| r.started_at)
        .min()
        .unwrap_or(first.started_at);
    merged.ended_at = reports
        .iter()
        .map(|r| r.ended_at)
        .max()
        .unwrap_or(first.ended_at);
    merged.measured_seconds = reports
        .iter()
        .map(|r| r.measured_seconds)
        .fold(0.0, f64::max);
    merged.elapsed_seconds = reports
        .iter()
        .map(|r| r.elapsed_seconds)
        .fold(0.0, f64::max);
    merged.shards = reports.iter().flat_map(|r| r.shards.clone()).collect();
    merged.target.connections = reports.iter().map(|r| r.target.connections).sum();
    // The worst ending is the ending.
    for ending in ["interrupted", "gaveUp"] {
        if reports.iter().any(|r| r.ending == ending) {
            merged.ending = ending.to_owned();
        }
    }
    operations(&mut merged, reports)?;
    merged.buyers = buyers(reports)?;
    merged.generator = generator(&merged, reports)?;
    merged.errors = errors(reports);
    merged.refusals = refusals(reports);
    merged.series = series(&merged, reports);
    merged.samples = reports
        .iter()
        .flat_map(|r| r.samples.iter().map(|s| (offset_ms(&merged, r), s)))
        .fold(Vec::new(), |mut all, (offset, sample)| {
            let mut sample = sample.clone();
            sample.at_ms += offset;
            all.push(sample);
            all
        });
    merged.samples.sort_by_key(|sample| sample.at_ms);
    merged.audit = audited(&merged, reports)?;
    merged.objectives.clear();
    merged.comparison = None;
    Ok(merged)
}

/// Reports of two tests say nothing together.
fn same_test(first: &Report, other: &Report) -> anyhow::Result<()> {
    let whole = |report: &Report| {
        let of = |shard: &String| shard.split_once('/').map(|(_, of)| of.to_owned());
        report.shards.first().and_then(of)
    };
    let differ = if other.scenario != first.scenario {
        "scenario"
    } else if other.target.performance_id != first.target.performance_id {
        "performance"
    } else if whole(other) != whole(first) {
        "number of shards"
    } else if other.plan != first.plan {
        "load"
    } else {
        return Ok(());
    };
    bail!(
        "these are reports of different tests, by their {differ}: {} and {}",
        first.command,
        other.command
    )
}

/// Shards begin within moments of each other; whatever lies further apart was no one test.
fn at_one_time(reports: &[Report]) -> anyhow::Result<()> {
    let mut by_start: Vec<&Report> = reports.iter().collect();
    by_start.sort_by_key(|report| report.started_at);
    for pair in by_start.windows(2) {
        let [earlier, later] = pair else { continue };
        let apart = later.started_at - earlier.ended_at;
        if apart > APART_MAX {
            bail!(
                "these shards did not run together: {} had ended at {} and {} began at {}; --start-at lets them begin at once",
                earlier.shards.join(", "),
                earlier.ended_at.format("%Y-%m-%d %H:%M:%S"),
                later.shards.join(", "),
                later.started_at.format("%Y-%m-%d %H:%M:%S")
            );
        }
    }
    Ok(())
}

/// Those of the shards of one test that are not among `shards`.
pub fn missing(shards: &[String]) -> Vec<String> {
    let of = shards
        .first()
        .and_then(|shard| shard.split_once('/')?.1.parse::<u32>().ok());
    let all = (1..=of.unwrap_or(0)).map(|n| format!("{n}/{}", of.unwrap_or(0)));
    all.filter(|shard| !shards.contains(shard)).collect()
}

/// How much later than the first this shard began.
fn offset_ms(merged: &Report, report: &Report) -> u64 {
    (report.started_at - merged.started_at)
        .num_milliseconds()
        .max(0) as u64
}

fn operations(merged: &mut Report, reports: &[Report]) -> anyhow::Result<()> {
    let mut sums: BTreeMap<String, OpStats> = BTreeMap::new();
    let mut total = OpStats::default();
    for report in reports {
        for (name, operation) in &report.operations {
            add(sums.entry(name.clone()).or_default(), &operation.stats()?);
        }
        add(&mut total, &report.total.stats()?);
    }
    let seconds = merged.measured_seconds;
    merged.operations = sums
        .iter()
        .map(|(name, sum)| Ok((name.clone(), Operation::of(sum, seconds)?)))
        .collect::<anyhow::Result<_>>()?;
    merged.total = Operation::of(&total, seconds)?;
    Ok(())
}

/// Adds one distribution of every report.
fn sum_timing<'a>(
    reports: &'a [Report],
    of: impl Fn(&'a Report) -> (&'a Latency, &'a str),
) -> anyhow::Result<Timing> {
    let mut sum = Timing::default();
    for report in reports {
        let (latency, histogram) = of(report);
        sum.add(&timing(latency, histogram)?);
    }
    Ok(sum)
}

fn buyers(reports: &[Report]) -> anyhow::Result<Buyers> {
    let mut sum = Buyers::default();
    for buyers in reports.iter().map(|r| &r.buyers) {
        sum.offered += buyers.offered;
        sum.started += buyers.started;
        sum.completed += buyers.completed;
        sum.failed += buyers.failed;
        sum.unfinished += buyers.unfinished;
        for (outcome, count) in &buyers.outcomes {
            *sum.outcomes.entry(outcome.clone()).or_default() += count;
        }
    }
    let place = sum_timing(reports, |r| {
        (&r.buyers.to_place_ms, &r.buyers.to_place_histogram)
    })?;
    let admission = sum_timing(reports, |r| {
        (&r.buyers.to_admission_ms, &r.buyers.to_admission_histogram)
    })?;
    let confirmed = sum_timing(reports, |r| {
        (&r.buyers.to_confirmed_ms, &r.buyers.to_confirmed_histogram)
    })?;
    (sum.to_place_ms, sum.to_place_histogram) = (Latency::of(&place), encode(&place)?);
    (sum.to_admission_ms, sum.to_admission_histogram) =
        (Latency::of(&admission), encode(&admission)?);
    (sum.to_confirmed_ms, sum.to_confirmed_histogram) =
        (Latency::of(&confirmed), encode(&confirmed)?);
    Ok(sum)
}

fn generator(merged: &Report, reports: &[Report]) -> anyhow::Result<Generator> {
    let lag = sum_timing(reports, |r| {
        (&r.generator.send_lag_ms, &r.generator.send_lag_histogram)
    })?;
    let wait = sum_timing(reports, |r| {
        (
            &r.generator.connection_wait_ms,
            &r.generator.connection_wait_histogram,
        )
    })?;
    let (lag_ms, wait_ms) = (Latency::of(&lag), Latency::of(&wait));
    let crowded = wait_ms.count as f64 > merged.total.offered as f64 * 0.01;
    let (bottleneck, warning) =
        bottleneck(lag_ms.p99, wait_ms.p99, crowded, merged.target.connections);
    Ok(Generator {
        bottleneck,
        warning,
        send_lag_ms: lag_ms,
        connection_wait_ms: wait_ms,
        send_lag_histogram: encode(&lag)?,
        connection_wait_histogram: encode(&wait)?,
        connects: reports.iter().map(|r| r.generator.connects).sum(),
        reconnects: reports.iter().map(|r| r.generator.reconnects).sum(),
        cpu_seconds: reports.iter().map(|r| r.generator.cpu_seconds).sum(),
        peak_memory_bytes: reports.iter().map(|r| r.generator.peak_memory_bytes).sum(),
    })
}

fn errors(reports: &[Report]) -> Vec<ErrorKind> {
    let mut sums: BTreeMap<(String, String), ErrorKind> = BTreeMap::new();
    for error in reports.iter().flat_map(|r| &r.errors) {
        let key = (error.operation.clone(), error.code.clone());
        sums.entry(key)
            .and_modify(|sum| sum.count += error.count)
            .or_insert_with(|| error.clone());
    }
    let mut errors: Vec<ErrorKind> = sums.into_values().collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.count));
    errors
}

fn refusals(reports: &[Report]) -> Vec<RefusalKind> {
    let mut sums: BTreeMap<(String, String), RefusalKind> = BTreeMap::new();
    for refusal in reports.iter().flat_map(|r| &r.refusals) {
        let key = (refusal.operation.clone(), refusal.code.clone());
        sums.entry(key)
            .and_modify(|sum| sum.count += refusal.count)
            .or_insert_with(|| refusal.clone());
    }
    sums.into_values().collect()
}

/// Seconds are laid over each other by the clock. Counts add up; of quantiles the worst stands,
/// since the quantile of a sum is not known from the quantiles of its parts.
fn series(merged: &Report, reports: &[Report]) -> Series {
    let shift = |report: &Report| (offset_ms(merged, report) / 1_000) as usize;
    let length = reports
        .iter()
        .map(|r| r.series.offered.len() + shift(r))
        .max()
        .unwrap_or(0);
    let mut sum = Series {
        offered: vec![0; length],
        in_flight: vec![0; length],
        operations: BTreeMap::new(),
    };
    for report in reports {
        let at = shift(report);
        plus(&mut sum.offered, at, &report.series.offered);
        plus(&mut sum.in_flight, at, &report.series.in_flight);
        for (name, columns) in &report.series.operations {
            let into = sum
                .operations
                .entry(name.clone())
                .or_insert_with(|| OperationSeries::zeros(length));
            plus(&mut into.done, at, &columns.done);
            plus(&mut into.failed, at, &columns.failed);
            worst(&mut into.p50_us, at, &columns.p50_us);
            worst(&mut into.p99_us, at, &columns.p99_us);
            worst(&mut into.max_us, at, &columns.max_us);
        }
    }
    sum
}

fn plus(into: &mut [u32], at: usize, from: &[u32]) {
    into.iter_mut()
        .skip(at)
        .zip(from)
        .for_each(|(sum, value)| *sum = sum.saturating_add(*value));
}

fn worst(into: &mut [u32], at: usize, from: &[u32]) {
    into.iter_mut()
        .skip(at)
        .zip(from)
        .for_each(|(sum, value)| *sum = (*sum).max(*value));
}

/// Checks that hold for each shard may fail for all together: those are made again.
fn audited(merged: &Report, reports: &[Report]) -> anyhow::Result<Audit> {
    let mut checks: BTreeMap<String, Check> = BTreeMap::new();
    for (report, check) in reports
        .iter()
        .flat_map(|r| r.audit.checks.iter().map(move |check| (r, check)))
    {
        let shard = report.shards.join("+");
        checks
            .entry(check.name.clone())
            .and_modify(|sum| {
                sum.found = format!("{}; {shard}: {}", sum.found, check.found);
                sum.held = match (sum.held, check.held) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (None, other) | (other, None) => other,
                    (Some(true), Some(true)) => Some(true),
                };
            })
            .or_insert_with(|| Check {
                found: format!("{shard}: {}", check.found),
                ..check.clone()
            });
    }
    if checks.is_empty() {
        return Ok(Audit::default());
    }
    let mut admissions: Vec<Admission> = Vec::new();
    let mut sold: Vec<(Uuid, Uuid)> = Vec::new();
    for report in reports {
        let offset = u32::try_from(offset_ms(merged, report)).unwrap_or(u32::MAX);
        let shard = audit::unpack_admissions(&report.audit.admission_records)?;
        admissions.extend(shard.into_iter().map(|a| Admission {
            number: a.number,
            from_ms: a.from_ms.saturating_add(offset),
            until_ms: a.until_ms.saturating_add(offset),
        }));
        sold.extend(audit::unpack_seats(&report.audit.sold_seats)?);
    }
    let max_working = merged
        .samples
        .iter()
        .map(|sample| sample.max_working)
        .max()
        .unwrap_or(u64::MAX);
    let (together, seats) = (
        audit::by_admissions(&admissions, max_working),
        sold_once(&mut sold),
    );
    checks.insert(together.name.clone(), together);
    checks.insert(seats.name.clone(), seats);
    let (tau, inversions) = audit::order(&admissions);
    Ok(Audit {
        checks: checks.into_values().collect(),
        kendall_tau: tau,
        inversions,
        admissions: admissions.len() as u64,
        admission_records: audit::pack_admissions(&admissions)?,
        sold_seats: audit::pack_sold(&sold)?,
    })
}

fn sold_once(sold: &mut [(Uuid, Uuid)]) -> Check {
    sold.sort_unstable();
    let twice = sold.windows(2).find(|pair| pair[0] == pair[1]);
    Check {
        name: "noSeatTwice".to_owned(),
        claim: audit::claim("noSeatTwice").to_owned(),
        held: Some(twice.is_none()),
        found: match twice {
            Some(pair) => format!("seat {} was sold twice", pair[0].1),
            None => format!("{} seats in confirmed orders", sold.len()),
        },
    }
}
