//! What is counted and timed while the load runs. Owned by the generator's one
//! thread, so recording is a few adds; readers get copies once a second.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

/// One kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Enter,
    Poll,
    Seats,
    Hold,
    Payment,
    Confirm,
    Order,
    Cancel,
    Leave,
}

impl Op {
    pub const ALL: [Op; 9] = [
        Op::Enter,
        Op::Poll,
        Op::Seats,
        Op::Hold,
        Op::Payment,
        Op::Confirm,
        Op::Order,
        Op::Cancel,
        Op::Leave,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Op::Enter => "enter",
            Op::Poll => "poll",
            Op::Seats => "seats",
            Op::Hold => "hold",
            Op::Payment => "payment",
            Op::Confirm => "confirm",
            Op::Order => "order",
            Op::Cancel => "cancel",
            Op::Leave => "leave",
        }
    }

    pub fn named(name: &str) -> Option<Op> {
        Op::ALL.into_iter().find(|op| op.name() == name)
    }
}

/// Microseconds, 1 µs to 60 s, within 0.1 %. What took longer stands at 60 s here
/// and exactly in `Timing::max_us`.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("these bounds are valid")
}

/// The same, coarser (1 %): one a second and kind, read once and thrown away.
fn interval_histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000, 2).expect("these bounds are valid")
}

/// A distribution of durations in microseconds.
#[derive(Clone, Debug)]
pub struct Timing {
    pub histogram: Histogram<u64>,
    pub max_us: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            histogram: histogram(),
            max_us: 0,
        }
    }
}

impl Timing {
    pub fn record(&mut self, us: u64) {
        self.histogram.saturating_record(us.max(1));
        self.max_us = self.max_us.max(us);
    }

    pub fn add(&mut self, other: &Timing) {
        // Bounds are equal everywhere, or were widened by the reader of a report.
        self.histogram
            .add(&other.histogram)
            .expect("histograms of equal bounds add up");
        self.max_us = self.max_us.max(other.max_us);
    }

    pub fn quantile_us(&self, quantile: f64) -> u64 {
        self.histogram.value_at_quantile(quantile).min(self.max_us)
    }
}

/// Counts and times of one kind of request.
#[derive(Clone, Debug, Default)]
pub struct OpStats {
    /// Became due.
    pub offered: u64,
    /// Were written to a connection.
    pub sent: u64,
    /// Were answered as the contract says, refusals such as SOLD_OUT included.
    pub completed: u64,
    /// Those of `completed` that the contract refuses.
    pub refused: u64,
    /// No answer, no answer in time, or one that should not be.
    pub failed: u64,
    pub by_status: BTreeMap<u16, u64>,
    /// Due to done.
    pub latency: Timing,
    /// Sent to done.
    pub service: Timing,
}

/// How an answer counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    Refused,
    Failed,
}

/// One second of one kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Interval {
    pub done: u32,
    pub failed: u32,
    pub p50_us: u32,
    pub p99_us: u32,
    pub max_us: u32,
}

struct Current {
    histogram: Histogram<u32>,
    interval: Interval,
}

/// One row of the series: every kind of request during one step.
#[derive(Clone, Debug, Default)]
pub struct Row {
    pub offered: u32,
    pub in_flight: u32,
    pub per_op: Vec<(Op, Interval)>,
}

/// Everything the generator knows about its requests.
pub struct Stats {
    pub ops: Vec<OpStats>,
    /// Due to noticed: what the generator itself was late by.
    pub send_lag: Timing,
    /// Noticed to sent, where every connection was taken.
    pub connection_wait: Timing,
    /// (kind, code) to how often, and what the first one said.
    pub errors: BTreeMap<(Op, String), (u64, String)>,
    /// Answers that the contract foresees but nobody hopes for.
    pub refusals: BTreeMap<(Op, String), u64>,
    pub series: Vec<Row>,
    pub connects: u64,
    pub reconnects: u64,
    /// Since when requests go out and nothing at all is answered.
    pub silent_since_us: Option<u64>,
    pub in_flight: u32,
    /// What was due before is counted, and timed in the series only.
    pub timed_from_us: u64,
    current: Vec<Current>,
    offered_now: u32,
}

/// Kinds of error kept apart; past it they are counted together.
const ERROR_KINDS_MAX: usize = 200;

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

impl Stats {
    pub fn new() -> Self {
        let current = || Current {
            histogram: interval_histogram(),
            interval: Interval::default(),
        };
        Self {
            ops: vec![OpStats::default(); Op::ALL.len()],
            send_lag: Timing::default(),
            connection_wait: Timing::default(),
            errors: BTreeMap::new(),
            refusals: BTreeMap::new(),
            series: Vec::new(),
            connects: 0,
            reconnects: 0,
            silent_since_us: None,
            in_flight: 0,
            timed_from_us: 0,
            current: Op::ALL.iter().map(|_| current()).collect(),
            offered_now: 0,
        }
    }

    /// The same; what is due within `warm_up` of the start is not timed.
    pub fn warmed_up_after(warm_up: Duration) -> Self {
        Self {
            timed_from_us: u64::try_from(warm_up.as_micros()).unwrap_or(u64::MAX),
            ..Self::new()
        }
    }

    pub fn op(&self, op: Op) -> &OpStats {
        &self.ops[op as usize]
    }

    pub fn offered(&mut self, op: Op) {
        self.ops[op as usize].offered += 1;
        self.offered_now += 1;
    }

    pub fn sent(&mut self, op: Op) {
        self.ops[op as usize].sent += 1;
    }

    /// A request has ended. `sent_us` is none when it was never written.
    pub fn done(
        &mut self,
        op: Op,
        verdict: Verdict,
        due_us: u64,
        sent_us: Option<u64>,
        done_us: u64,
    ) {
        let latency = done_us.saturating_sub(due_us);
        let stats = &mut self.ops[op as usize];
        match verdict {
            Verdict::Fine => stats.completed += 1,
            Verdict::Refused => {
                stats.completed += 1;
                stats.refused += 1;
            }
            Verdict::Failed => stats.failed += 1,
        }
        let timed = due_us >= self.timed_from_us;
        if timed {
            stats.latency.record(latency);
        }
        if let Some(sent_us) = sent_us.filter(|_| timed) {
            stats.service.record(done_us.saturating_sub(sent_us));
        }
        let current = &mut self.current[op as usize];
        current.histogram.saturating_record(latency.max(1));
        current.interval.done += 1;
        current.interval.failed += u32::from(verdict == Verdict::Failed);
        current.interval.max_us = current
            .interval
            .max_us
            .max(u32::try_from(latency).unwrap_or(u32::MAX));
    }

    pub fn status(&mut self, op: Op, status: u16) {
        *self.ops[op as usize].by_status.entry(status).or_default() += 1;
    }

    pub fn error(&mut self, op: Op, code: &str, example: impl FnOnce() -> String) {
        if let Some(entry) = self.errors.get_mut(&(op, code.to_owned())) {
            entry.0 += 1;
        } else if self.errors.len() < ERROR_KINDS_MAX {
            self.errors.insert((op, code.to_owned()), (1, example()));
        } else {
            self.errors
                .entry((op, "OTHER".to_owned()))
                .or_insert_with(|| (0, example()))
                .0 += 1;
        }
    }

    pub fn refusal(&mut self, op: Op, code: &str) {
        if let Some(count) = self.refusals.get_mut(&(op, code.to_owned())) {
            *count += 1;
        } else {
            self.refusals.insert((op, code.to_owned()), 1);
        }
    }

    /// Ends the current step of the series.
    pub fn tick(&mut self) {
        let mut row = Row {
            offered: self.offered_now,
            in_flight: self.in_flight,
            per_op: Vec::new(),
        };
        self.offered_now = 0;
        for (op, current) in Op::ALL.into_iter().zip(&mut self.current) {
            if current.interval.done == 0 {
                continue;
            }
            let mut interval = current.interval;
            let at = |q| u32::try_from(current.histogram.value_at_quantile(q)).unwrap_or(u32::MAX);
            interval.p50_us = at(0.5).min(interval.max_us);
            interval.p99_us = at(0.99).min(interval.max_us);
            row.per_op.push((op, interval));
            current.histogram.reset();
            current.interval = Interval::default();
        }
        self.series.push(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut timing = Timing::default();
        (1..=10_000u64).for_each(|us| timing.record(us));
        for (quantile, expected) in [
            (0.5, 5_000.0),
            (0.9, 9_000.0),
            (0.99, 9_900.0),
            (0.999, 9_990.0),
        ] {
            let got = timing.quantile_us(quantile) as f64;
            assert!(
                (got - expected).abs() / expected < 0.002,
                "{quantile}: {got}"
            );
        }
        assert_eq!(timing.quantile_us(1.0), 10_000);
    }

    #[test]
    fn what_is_over_the_bound_is_kept_as_the_maximum() {
        let mut timing = Timing::default();
        timing.record(95_000_000);
        assert_eq!(timing.max_us, 95_000_000);
        assert!(timing.quantile_us(0.5) >= 59_900_000);
        assert!(timing.quantile_us(0.5) <= 95_000_000);
    }

    #[test]
    fn what_is_due_while_it_warms_up_is_counted_and_not_timed() {
        let mut stats = Stats::warmed_up_after(Duration::from_secs(1));
        for due_us in [999_999, 1_000_000] {
            stats.done(Op::Poll, Verdict::Fine, due_us, Some(due_us), 2_000_000);
        }
        let poll = stats.op(Op::Poll);
        assert_eq!((poll.completed, poll.latency.histogram.len()), (2, 1));
        assert_eq!(poll.service.histogram.len(), 1);
        stats.tick();
        assert_eq!(stats.series[0].per_op[0].1.done, 2);
    }

    #[test]
    fn latency_counts_from_due_and_a_step_starts_empty() {
        let mut stats = Stats::new();
        stats.offered(Op::Poll);
        stats.sent(Op::Poll);
        stats.done(
            Op::Poll,
            Verdict::Fine,
            1_000_000,
            Some(1_900_000),
            2_000_000,
        );
        assert_eq!(stats.op(Op::Poll).latency.max_us, 1_000_000);
        assert_eq!(stats.op(Op::Poll).service.max_us, 100_000);
        stats.tick();
        stats.tick();
        assert_eq!(stats.series[0].offered, 1);
        assert_eq!(stats.series[0].per_op[0].1.done, 1);
        assert!(stats.series[1].per_op.is_empty());
    }
}
