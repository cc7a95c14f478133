//! The report of a run: what `--json` writes, `report` merges, and the table and
//! the page are drawn from. docs/loadgen.md describes every field.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, Utc};
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};

use super::stats::{OpStats, Timing, histogram};

/// Changes when a field changes its meaning or goes; more fields may come under the same.
pub const SCHEMA: &str = "ticketping.loadgen/1";

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub schema: String,
    pub command: String,
    pub scenario: String,
    pub seed: u64,
    pub shards: Vec<String>,
    /// What all shards of one test have in common: who comes when, and what they do.
    #[serde(default)]
    pub plan: String,
    pub started_at: DateTime<Utc>,
    pub ended_at: DateTime<Utc>,
    /// The load itself; leaving afterwards is not in it.
    pub measured_seconds: f64,
    pub elapsed_seconds: f64,
    /// complete, interrupted, gaveUp
    pub ending: String,
    pub target: TargetReport,
    pub generator: Generator,
    pub buyers: Buyers,
    pub operations: BTreeMap<String, Operation>,
    /// Every operation but `leave`.
    pub total: Operation,
    pub errors: Vec<ErrorKind>,
    pub refusals: Vec<RefusalKind>,
    pub series: Series,
    pub samples: Vec<Sample>,
    pub audit: Audit,
    pub objectives: Vec<ObjectiveResult>,
    /// With --compare.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
    /// What happened, in a sentence or two.
    #[serde(default)]
    pub headline: String,
    pub exit_code: u8,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetReport {
    pub url: String,
    pub performance_id: String,
    pub title: String,
    pub protocol: String,
    pub connections: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Generator {
    /// `generator`, `connections`, or none.
    pub bottleneck: Option<String>,
    pub warning: Option<String>,
    /// How late the generator itself was.
    pub send_lag_ms: Latency,
    /// How long requests waited where every connection was taken.
    pub connection_wait_ms: Latency,
    pub send_lag_histogram: String,
    pub connection_wait_histogram: String,
    pub connects: u64,
    pub reconnects: u64,
    pub cpu_seconds: f64,
    pub peak_memory_bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Buyers {
    pub offered: u64,
    pub started: u64,
    pub completed: u64,
    pub failed: u64,
    pub unfinished: u64,
    pub outcomes: BTreeMap<String, u64>,
    pub to_place_ms: Latency,
    pub to_admission_ms: Latency,
    pub to_confirmed_ms: Latency,
    pub to_place_histogram: String,
    pub to_admission_histogram: String,
    pub to_confirmed_histogram: String,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub p9999: f64,
    pub max: f64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Operation {
    pub offered: u64,
    pub sent: u64,
    pub completed: u64,
    pub refused: u64,
    pub failed: u64,
    pub unfinished: u64,
    pub per_second: f64,
    pub by_status: BTreeMap<u16, u64>,
    /// Due to done.
    pub latency_ms: Latency,
    /// Sent to done.
    pub service_ms: Latency,
    /// HDR histograms in microseconds: V2, deflated, base64.
    pub latency_histogram: String,
    pub service_histogram: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorKind {
    pub operation: String,
    pub code: String,
    pub count: u64,
    pub example: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RefusalKind {
    pub operation: String,
    pub code: String,
    pub count: u64,
}

/// Columns of equal length, a value for each second from the start.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    pub offered: Vec<u32>,
    pub in_flight: Vec<u32>,
    pub operations: BTreeMap<String, OperationSeries>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OperationSeries {
    pub done: Vec<u32>,
    pub failed: Vec<u32>,
    pub p50_us: Vec<u32>,
    pub p99_us: Vec<u32>,
    pub max_us: Vec<u32>,
}

/// The target as seen from outside at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sample {
    pub at_ms: u64,
    pub phase: String,
    pub waiting: u64,
    pub working: u64,
    pub max_working: u64,
    pub served_number: u64,
    pub last_number: u64,
    pub remaining_seats: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seats: Option<super::seatmap::SeatCounts>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Audit {
    pub checks: Vec<Check>,
    /// Kendall's tau between the order of numbers and the order of being told WORKING.
    pub kendall_tau: Option<f64>,
    pub inversions: u64,
    pub admissions: u64,
    /// number, from and until (ms from the start), 8 + 4 + 4 bytes little-endian, deflated, base64.
    pub admission_records: String,
    /// schedule and seat ids of confirmed orders, 16 + 16 bytes, deflated, base64.
    pub sold_seats: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Check {
    /// Stable, for programs.
    pub name: String,
    /// What must hold, for people.
    #[serde(default)]
    pub claim: String,
    /// None: could not be looked at, as `found` says.
    pub held: Option<bool>,
    pub found: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ObjectiveResult {
    pub objective: String,
    /// None where there was nothing to measure.
    pub actual: Option<f64>,
    /// The same in words, with its unit.
    #[serde(default)]
    pub found: String,
    /// None where there was nothing to measure.
    pub held: Option<bool>,
}

/// This run beside an earlier one.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// When the earlier one began, and how it was made.
    pub started_at: DateTime<Utc>,
    pub command: String,
    /// A figure that grew by more than this, in percent, got worse.
    pub worse_by_percent: f64,
    pub figures: Vec<ComparedFigure>,
}

/// One figure, then and now.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComparedFigure {
    /// As an objective names it: `poll.p99`, `errors`.
    pub figure: String,
    pub unit: String,
    pub before: f64,
    pub now: f64,
    /// None where it was nothing before.
    pub change_percent: Option<f64>,
    pub worse: bool,
}

impl Latency {
    pub fn of(timing: &Timing) -> Self {
        if timing.histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| timing.quantile_us(quantile) as f64 / 1e3;
        Self {
            count: timing.histogram.len(),
            mean: timing.histogram.mean() / 1e3,
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: timing.max_us as f64 / 1e3,
        }
    }
}

pub fn encode(timing: &Timing) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new()
        .serialize(&timing.histogram, &mut bytes)
        .map_err(|err| anyhow::anyhow!("cannot encode a histogram: {err}"))?;
    Ok(STANDARD.encode(bytes))
}

/// The inverse of `encode`; the exact maximum stands beside it in the report.
pub fn decode(text: &str, max_ms: f64) -> anyhow::Result<Timing> {
    let bytes = STANDARD.decode(text).context("a histogram is no base64")?;
    let read = Deserializer::new().deserialize::<u64, _>(&mut bytes.as_slice());
    let read = read.map_err(|err| anyhow::anyhow!("a histogram is damaged: {err:?}"))?;
    let mut ours = histogram();
    if ours.add(&read).is_err() {
        bail!("a histogram has other bounds than this version writes");
    }
    Ok(Timing {
        histogram: ours,
        max_us: (max_ms * 1e3).round() as u64,
    })
}

impl Operation {
    pub fn of(stats: &OpStats, seconds: f64) -> anyhow::Result<Self> {
        Ok(Self {
            offered: stats.offered,
            sent: stats.sent,
            completed: stats.completed,
            refused: stats.refused,
            failed: stats.failed,
            unfinished: stats.offered.saturating_sub(stats.completed + stats.failed),
            per_second: if seconds > 0.0 {
                stats.completed as f64 / seconds
            } else {
                0.0
            },
            by_status: stats.by_status.clone(),
            latency_ms: Latency::of(&stats.latency),
            service_ms: Latency::of(&stats.service),
            latency_histogram: encode(&stats.latency)?,
            service_histogram: encode(&stats.service)?,
        })
    }

    pub fn stats(&self) -> anyhow::Result<OpStats> {
        Ok(OpStats {
            offered: self.offered,
            sent: self.sent,
            completed: self.completed,
            refused: self.refused,
            failed: self.failed,
            by_status: self.by_status.clone(),
            latency: decode(&self.latency_histogram, self.latency_ms.max)?,
            service: decode(&self.service_histogram, self.service_ms.max)?,
        })
    }
}

/// Adds what was counted apart.
pub fn add(sum: &mut OpStats, other: &OpStats) {
    sum.offered += other.offered;
    sum.sent += other.sent;
    sum.completed += other.completed;
    sum.refused += other.refused;
    sum.failed += other.failed;
    for (status, count) in &other.by_status {
        *sum.by_status.entry(*status).or_default() += count;
    }
    sum.latency.add(&other.latency);
    sum.service.add(&other.service);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_the_way_through_a_report() {
        let mut timing = Timing::default();
        (1..5_000u64).for_each(|n| timing.record(n * 37));
        timing.record(70_000_000);
        let back = decode(&encode(&timing).unwrap(), Latency::of(&timing).max).unwrap();
        assert_eq!(Latency::of(&back), Latency::of(&timing));
        assert!(decode("!", 0.0).is_err() && decode("AAAA", 0.0).is_err());
    }

    #[test]
    fn operations_add_up() {
        let mut a = OpStats {
            offered: 10,
            completed: 8,
            failed: 1,
            ..OpStats::default()
        };
        a.by_status.insert(200, 8);
        a.latency.record(1_000);
        let b = a.clone();
        add(&mut a, &b);
        let sum = Operation::of(&a, 2.0).unwrap();
        assert_eq!(
            (sum.offered, sum.completed, sum.failed, sum.unfinished),
            (20, 16, 2, 2)
        );
        assert_eq!(
            (sum.by_status[&200], sum.latency_ms.count, sum.per_second),
            (16, 2, 8.0)
        );
        assert_eq!(
            Operation::of(&sum.stats().unwrap(), 2.0)
                .unwrap()
                .latency_ms,
            sum.latency_ms
        );
    }
}
