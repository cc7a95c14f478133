//! `--compare FILE`: what got worse since an earlier report, and by how much.

use anyhow::bail;

use super::args::OutputArgs;
use super::build::{conclude, figure};
use super::expect::Metric;
use super::merge;
use super::report::{ComparedFigure, Comparison, Operation, Report};
use super::stats::Op;

/// Below a millisecond more, a latency differs by chance.
const LATENCY_NOISE_MS: f64 = 1.0;
/// So many more errors in ten thousand requests may be chance.
const ERROR_NOISE: f64 = 0.0001;

/// What is compared, of all requests and of each kind.
const FIGURES: [(&str, Metric); 4] = [
    ("p50", Metric::Quantile(0.5)),
    ("p99", Metric::Quantile(0.99)),
    ("errors", Metric::ErrorShare),
    ("rate", Metric::Rate),
];

/// The earlier report.
pub struct Baseline {
    report: Report,
    /// A share: 0.2 is 20 %.
    worse_by: f64,
}

impl Baseline {
    /// Reads the one that was asked for, before the run.
    ///
    /// # Errors
    /// When it is no report, or one of another scenario.
    pub fn of(args: &OutputArgs, scenario: &str) -> anyhow::Result<Option<Self>> {
        let Some(path) = &args.compare else {
            return Ok(None);
        };
        let report = merge::read(path)?;
        if report.scenario != scenario {
            bail!(
                "{} is a report of `{}`, and this is `{scenario}`: they cannot be compared",
                path.display(),
                report.scenario
            );
        }
        Ok(Some(Self {
            report,
            worse_by: args.worse_by.0,
        }))
    }

    /// Writes the comparison into `now`, and gives it the exit code and the headline that follow.
    pub fn judge(self, now: &mut Report) {
        let mut figures = Vec::new();
        self.figures("", &self.report.total, &now.total, &mut figures);
        for op in Op::ALL.into_iter().filter(|op| *op != Op::Leave) {
            if let (Some(before), Some(now)) = (
                self.report.operations.get(op.name()),
                now.operations.get(op.name()),
            ) {
                self.figures(&format!("{}.", op.name()), before, now, &mut figures);
            }
        }
        now.comparison = Some(Comparison {
            started_at: self.report.started_at,
            command: self.report.command,
            worse_by_percent: self.worse_by * 100.0,
            figures,
        });
        // A run that failed by another report's word (a shard's) stays failed.
        let failed = now.exit_code == 1;
        conclude(now);
        if failed {
            now.exit_code = 1;
        }
    }

    fn figures(
        &self,
        prefix: &str,
        before: &Operation,
        now: &Operation,
        into: &mut Vec<ComparedFigure>,
    ) {
        for (name, metric) in FIGURES {
            let measured = |operation: &Operation| match metric {
                Metric::Quantile(_) => operation.latency_ms.count > 0,
                _ => operation.offered > 0,
            };
            if measured(before) && measured(now) {
                let (before, now) = (figure(before, metric), figure(now, metric));
                into.push(compared(
                    format!("{prefix}{name}"),
                    metric,
                    (before, now),
                    self.worse_by,
                ));
            }
        }
    }
}

fn compared(
    figure: String,
    metric: Metric,
    (before, now): (f64, f64),
    worse_by: f64,
) -> ComparedFigure {
    let (unit, worse) = match metric {
        // Fewer a second is worse.
        Metric::Rate => ("a second", now < before / (1.0 + worse_by)),
        Metric::ErrorShare => (
            "of requests",
            now > before * (1.0 + worse_by) && now - before > ERROR_NOISE,
        ),
        _ => (
            "ms",
            now > before * (1.0 + worse_by) && now - before > LATENCY_NOISE_MS,
        ),
    };
    ComparedFigure {
        figure,
        unit: unit.to_owned(),
        before,
        now,
        change_percent: (before > 0.0).then(|| (now / before - 1.0) * 100.0),
        worse,
    }
}
impl ComparedFigure {
    /// `poll.p99: 12.3 ms before, 24.6 ms now (+100 %)`
    pub fn text(&self) -> String {
        let value = |value: f64| match self.unit.as_str() {
            "ms" => Metric::Mean.text(value),
            "a second" => Metric::Rate.text(value),
            _ => Metric::ErrorShare.text(value),
        };
        let change = match self.change_percent {
            Some(percent) => format!("{percent:+.0} %"),
            None => "from nothing".to_owned(),
        };
        format!(
            "{}: {} before, {} now ({change})",
            self.figure,
            value(self.before),
            value(self.now)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_got_worse_by_more_than_chance_is_worse() {
        let p99 = Metric::Quantile(0.99);
        let worse = |metric, before, now| compared("x".into(), metric, (before, now), 0.2).worse;
        assert!(worse(p99, 10.0, 12.5) && !worse(p99, 10.0, 11.5) && !worse(p99, 0.2, 1.0));
        assert!(worse(Metric::ErrorShare, 0.0, 0.01) && !worse(Metric::ErrorShare, 0.01, 0.011));
        assert!(worse(Metric::Rate, 100.0, 80.0) && !worse(Metric::Rate, 100.0, 90.0));
        assert!(!worse(Metric::Rate, 100.0, 300.0));
    }
}
