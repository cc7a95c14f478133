//! Makes the report of a run from what was measured.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::buyer::Outcome;
use super::engine::core::People;
use super::engine::{Ending, Finished};
use super::expect::{Metric, Objective};
use super::plan::{Load, Target};
use super::report::{
    Audit, Buyers, ErrorKind, Generator, Latency, ObjectiveResult, Operation, OperationSeries,
    RefusalKind, Report, SCHEMA, Series, TargetReport, add, encode,
};
use super::sampler::Samples;
use super::stats::{Op, OpStats, Stats, Timing};

/// Past this the generator was late by as much as a fast server takes: its figures are its own.
const SEND_LAG_P99_MAX: Duration = Duration::from_millis(10);
/// Requests held up for a connection this long were due in truth, and unsent in fact.
const CONNECTION_WAIT_P99_MAX: Duration = Duration::from_millis(50);

pub struct Context<'a> {
    pub command: String,
    pub load: &'a Load,
    pub target: &'a Target,
    pub started_at: DateTime<Utc>,
    pub cpu_seconds: f64,
    pub peak_memory_bytes: u64,
}

pub fn report(
    context: &Context<'_>,
    finished: &Finished,
    samples: Samples,
    audit: Audit,
) -> anyhow::Result<Report> {
    let (load, stats) = (context.load, &finished.stats);
    let seconds = finished.measured.as_secs_f64();
    let mut operations = BTreeMap::new();
    let mut total = OpStats::default();
    for op in Op::ALL.into_iter().filter(|op| stats.op(*op).offered > 0) {
        operations.insert(op.name().to_owned(), Operation::of(stats.op(op), seconds)?);
        // Leaving is tidying up, not the load that was asked about.
        if op != Op::Leave {
            add(&mut total, stats.op(op));
        }
    }
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        command: context.command.clone(),
        scenario: load.scenario.name().to_owned(),
        seed: load.seed,
        shards: vec![format!("{}/{}", load.shard.index + 1, load.shard.of)],
        plan: load.plan(),
        started_at: context.started_at,
        ended_at: Utc::now(),
        measured_seconds: seconds,
        elapsed_seconds: finished.elapsed.as_secs_f64(),
        ending: match finished.ending {
            Ending::Complete => "complete",
            Ending::Interrupted => "interrupted",
            Ending::GaveUp => "gaveUp",
        }
        .to_owned(),
        target: TargetReport {
            url: context.target.url.to_string(),
            performance_id: context.target.performance.to_string(),
            title: context.target.title.clone(),
            protocol: if load.http2 { "HTTP/2" } else { "HTTP/1.1" }.to_owned(),
            connections: load.connections,
        },
        generator: generator(context, stats)?,
        buyers: buyers(&finished.people)?,
        operations,
        total: Operation::of(&total, seconds)?,
        errors: errors(stats),
        refusals: refusals(stats),
        series: series(stats),
        samples: samples.queue,
        audit,
        objectives: Vec::new(),
        comparison: None,
        headline: String::new(),
        exit_code: 0,
    };
    judge(&mut report, &load.expect);
    Ok(report)
}

/// The exit code of a run that somebody ended: what a shell makes of Ctrl-C.
pub const INTERRUPTED: u8 = 130;

/// Objectives, then the exit code: a run that failed or a breach weighs more than an end before time, and that more
/// than a figure missed.
pub fn judge(report: &mut Report, expect: &[Objective]) {
    report.objectives = expect
        .iter()
        .map(|objective| judge_one(report, objective))
        .collect();
    conclude(report);
}

/// The exit code and the headline, from everything else.
pub fn conclude(report: &mut Report) {
    let breach = report
        .audit
        .checks
        .iter()
        .any(|check| check.held == Some(false));
    let dead = report.total.offered > 0 && report.total.completed == 0;
    // What could not be measured was not shown to hold.
    let missed = report
        .objectives
        .iter()
        .any(|objective| objective.held != Some(true));
    let worse = report
        .comparison
        .iter()
        .flat_map(|comparison| &comparison.figures)
        .any(|figure| figure.worse);
    report.exit_code = if breach || dead || report.ending == "gaveUp" {
        1
    } else if report.ending == "interrupted" {
        INTERRUPTED
    } else if missed || worse {
        3
    } else {
        0
    };
    report.headline = super::headline::of(report);
}

fn judge_one(report: &Report, objective: &Objective) -> ObjectiveResult {
    let nothing = Operation::default();
    let operation = match objective.op {
        None => &report.total,
        Some(op) => report.operations.get(op.name()).unwrap_or(&nothing),
    };
    // A latency of requests that were never answered is no achievement, and no failure either.
    let measured = match objective.metric {
        Metric::Quantile(_) | Metric::Mean => operation.latency_ms.count > 0,
        Metric::ErrorShare => operation.offered > 0,
        Metric::Errors | Metric::Unfinished | Metric::Completed | Metric::Rate => true,
    };
    let actual = measured.then(|| figure(operation, objective.metric));
    ObjectiveResult {
        objective: objective.text.clone(),
        actual,
        found: match actual {
            Some(actual) => objective.metric.text(actual),
            None => format!(
                "no {} was made",
                objective.op.map_or("request", super::stats::Op::name)
            ),
        },
        held: actual.map(|actual| objective.holds(actual)),
    }
}

pub fn figure(operation: &Operation, metric: Metric) -> f64 {
    let latency = &operation.latency_ms;
    match metric {
        Metric::Quantile(q) if q >= 1.0 => latency.max,
        Metric::Quantile(q) if q >= 0.9999 => latency.p9999,
        Metric::Quantile(q) if q >= 0.999 => latency.p999,
        Metric::Quantile(q) if q >= 0.99 => latency.p99,
        Metric::Quantile(q) if q >= 0.95 => latency.p95,
        Metric::Quantile(q) if q >= 0.9 => latency.p90,
        Metric::Quantile(_) => latency.p50,
        Metric::Mean => latency.mean,
        // What was never answered is an error too, where a share is asked for.
        Metric::ErrorShare => {
            (operation.failed + operation.unfinished) as f64 / operation.offered.max(1) as f64
        }
        Metric::Errors => operation.failed as f64,
        Metric::Unfinished => operation.unfinished as f64,
        Metric::Completed => operation.completed as f64,
        Metric::Rate => operation.per_second,
    }
}

fn generator(context: &Context<'_>, stats: &Stats) -> anyhow::Result<Generator> {
    let (send_lag, wait) = (
        Latency::of(&stats.send_lag),
        Latency::of(&stats.connection_wait),
    );
    // A wait for a connection counts by how much of the load it touched.
    let offered: u64 = stats.ops.iter().map(|op| op.offered).sum();
    let crowded = wait.count as f64 > offered as f64 * 0.01;
    let (bottleneck, warning) =
        bottleneck(send_lag.p99, wait.p99, crowded, context.load.connections);
    Ok(Generator {
        bottleneck,
        warning,
        send_lag_ms: send_lag,
        connection_wait_ms: wait,
        send_lag_histogram: encode(&stats.send_lag)?,
        connection_wait_histogram: encode(&stats.connection_wait)?,
        connects: stats.connects,
        reconnects: stats.reconnects,
        cpu_seconds: context.cpu_seconds,
        peak_memory_bytes: context.peak_memory_bytes,
    })
}

pub fn bottleneck(
    lag_p99_ms: f64,
    wait_p99_ms: f64,
    crowded: bool,
    connections: usize,
) -> (Option<String>, Option<String>) {
    if lag_p99_ms > SEND_LAG_P99_MAX.as_secs_f64() * 1e3 {
        let text = format!(
            "the generator itself was the bottleneck: one request in a hundred was sent {lag_p99_ms:.1} ms late or more. \
             Latencies are upper bounds; use more processes (--shard) or machines"
        );
        return (Some("generator".to_owned()), Some(text));
    }
    if crowded && wait_p99_ms > CONNECTION_WAIT_P99_MAX.as_secs_f64() * 1e3 {
        let text = format!(
            "requests waited up to {wait_p99_ms:.0} ms (p99) because the target held all {connections} connections; \
             that is part of their latency. --connections raises the bound"
        );
        return (Some("connections".to_owned()), Some(text));
    }
    (None, None)
}

fn buyers(people: &People) -> anyhow::Result<Buyers> {
    let of = |outcome| people.ended.get(&outcome).copied().unwrap_or(0);
    let ended: u64 = people.ended.values().sum();
    let (failed, unfinished) = (of(Outcome::Failed), of(Outcome::Unfinished));
    Ok(Buyers {
        offered: people.arrived,
        started: people.started,
        completed: ended - failed - unfinished,
        failed,
        unfinished,
        outcomes: people
            .ended
            .iter()
            .map(|(outcome, count)| (outcome.name().to_owned(), *count))
            .collect(),
        to_place_ms: Latency::of(&people.to_place),
        to_admission_ms: Latency::of(&people.to_admission),
        to_confirmed_ms: Latency::of(&people.to_confirmed),
        to_place_histogram: encode(&people.to_place)?,
        to_admission_histogram: encode(&people.to_admission)?,
        to_confirmed_histogram: encode(&people.to_confirmed)?,
    })
}

fn errors(stats: &Stats) -> Vec<ErrorKind> {
    let mut errors: Vec<ErrorKind> = stats
        .errors
        .iter()
        .map(|((op, code), (count, example))| ErrorKind {
            operation: op.name().to_owned(),
            code: code.clone(),
            count: *count,
            example: example.clone(),
        })
        .collect();
    errors.sort_by_key(|error| std::cmp::Reverse(error.count));
    errors
}

fn refusals(stats: &Stats) -> Vec<RefusalKind> {
    let kind = |((op, code), count): (&(Op, String), &u64)| RefusalKind {
        operation: op.name().to_owned(),
        code: code.clone(),
        count: *count,
    };
    stats.refusals.iter().map(kind).collect()
}

fn series(stats: &Stats) -> Series {
    let rows = &stats.series;
    let mut series = Series {
        offered: rows.iter().map(|row| row.offered).collect(),
        in_flight: rows.iter().map(|row| row.in_flight).collect(),
        operations: BTreeMap::new(),
    };
    for op in Op::ALL.into_iter().filter(|op| stats.op(*op).offered > 0) {
        let column = series.operations.entry(op.name().to_owned()).or_default();
        for row in rows {
            let seen = row
                .per_op
                .iter()
                .find(|(o, _)| *o == op)
                .map(|(_, interval)| *interval)
                .unwrap_or_default();
            column.done.push(seen.done);
            column.failed.push(seen.failed);
            column.p50_us.push(seen.p50_us);
            column.p99_us.push(seen.p99_us);
            column.max_us.push(seen.max_us);
        }
    }
    series
}

impl OperationSeries {
    /// Empty columns of a length.
    pub fn zeros(length: usize) -> Self {
        let zeros = || vec![0; length];
        Self {
            done: zeros(),
            failed: zeros(),
            p50_us: zeros(),
            p99_us: zeros(),
            max_us: zeros(),
        }
    }
}

/// The timing of a report's column, for merging.
pub fn timing(latency: &Latency, histogram: &str) -> anyhow::Result<Timing> {
    super::report::decode(histogram, latency.max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_confesses() {
        assert_eq!(bottleneck(1.2, 0.0, false, 256), (None, None));
        assert_eq!(
            bottleneck(11.0, 900.0, true, 256).0.as_deref(),
            Some("generator")
        );
        assert_eq!(
            bottleneck(1.2, 900.0, true, 256).0.as_deref(),
            Some("connections")
        );
        assert_eq!(bottleneck(1.2, 900.0, false, 256).0, None);
    }
}
