//! What a run looks like at this second: made by the generator, shown by others.

use std::time::Duration;

use super::engine::core::Core;
use super::stats::{Interval, Op};

/// Seconds of history that a view can show.
const HISTORY: usize = 240;

#[derive(Clone, Debug, Default)]
pub struct Live {
    pub scenario: &'static str,
    pub elapsed: Duration,
    pub duration: Option<Duration>,
    pub draining: bool,
    pub arrived: u64,
    pub to_arrive: u64,
    pub under_way: u64,
    pub ended: Vec<(&'static str, u64)>,
    pub in_flight: u32,
    /// Due, and waiting for a connection.
    pub queued: usize,
    pub offered: u64,
    pub completed: u64,
    pub failed: u64,
    pub ops: Vec<LiveOp>,
    pub errors: Vec<(Op, String, u64)>,
    /// A second each, oldest first: requests done, and the worst p99.
    pub rates: Vec<u64>,
    pub p99_us: Vec<u64>,
    pub send_lag_p99_us: u64,
}

#[derive(Clone, Debug)]
pub struct LiveOp {
    pub op: Op,
    pub completed: u64,
    pub failed: u64,
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    pub last: Interval,
}

impl Live {
    pub fn of(core: &Core) -> Self {
        let stats = &core.stats;
        let rows = &stats.series[stats.series.len().saturating_sub(HISTORY)..];
        let last = rows.last();
        let ops = Op::ALL
            .into_iter()
            .filter(|op| stats.op(*op).offered > 0)
            .map(|op| {
                let total = stats.op(op);
                let seen = last.and_then(|row| row.per_op.iter().find(|(o, _)| *o == op));
                LiveOp {
                    op,
                    completed: total.completed,
                    failed: total.failed,
                    p50_us: total.latency.quantile_us(0.5),
                    p99_us: total.latency.quantile_us(0.99),
                    max_us: total.latency.max_us,
                    last: seen.map(|(_, interval)| *interval).unwrap_or_default(),
                }
            })
            .collect();
        let mut errors: Vec<_> = stats
            .errors
            .iter()
            .map(|((op, code), (n, _))| (*op, code.clone(), *n))
            .collect();
        errors.sort_by_key(|(.., count)| std::cmp::Reverse(*count));
        errors.truncate(5);
        let sum = |of: fn(&super::stats::OpStats) -> u64| stats.ops.iter().map(of).sum();
        Self {
            scenario: core.load.scenario.name(),
            elapsed: core.start.elapsed(),
            duration: core.load.duration,
            draining: core.draining,
            arrived: core.people.arrived,
            to_arrive: core.load.arrivals.len(),
            under_way: core.under_way,
            ended: core
                .people
                .ended
                .iter()
                .map(|(outcome, n)| (outcome.name(), *n))
                .collect(),
            in_flight: stats.in_flight,
            queued: core.pools.iter().map(|pool| pool.ready.len()).sum(),
            offered: sum(|op| op.offered),
            completed: sum(|op| op.completed),
            failed: sum(|op| op.failed),
            ops,
            errors,
            rates: rows
                .iter()
                .map(|row| row.per_op.iter().map(|(_, i)| u64::from(i.done)).sum())
                .collect(),
            p99_us: rows
                .iter()
                .map(|row| {
                    row.per_op
                        .iter()
                        .map(|(_, i)| u64::from(i.p99_us))
                        .max()
                        .unwrap_or(0)
                })
                .collect(),
            send_lag_p99_us: stats.send_lag.quantile_us(0.99),
        }
    }
}
