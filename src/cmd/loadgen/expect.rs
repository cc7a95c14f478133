//! Objectives: `p99<50ms`, `poll.p99<20ms`, `errors<0.1%`.

use std::time::Duration;

use super::stats::Op;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Metric {
    /// A quantile of the latency; 1.0 is the maximum.
    Quantile(f64),
    Mean,
    /// Part of the requests offered.
    ErrorShare,
    Errors,
    Unfinished,
    Completed,
    /// Completed a second.
    Rate,
}

impl Metric {
    /// A value with its unit.
    pub fn text(self, value: f64) -> String {
        match self {
            Self::Quantile(_) | Self::Mean => format!("{} ms", super::table::millis(value)),
            Self::ErrorShare => format!("{:.2} %", value * 100.0),
            Self::Errors | Self::Unfinished | Self::Completed => {
                super::table::thousands(value as u64)
            }
            Self::Rate => format!("{value:.1} a second"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Less,
    AtMost,
    More,
    AtLeast,
    Equal,
}

/// One objective, over all requests of the scenario or those of one kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    pub text: String,
    pub op: Option<Op>,
    pub metric: Metric,
    pub compare: Compare,
    /// Milliseconds, a share, a count, or a rate, as the metric has it.
    pub bound: f64,
}

const COMPARES: [(&str, Compare); 6] = [
    ("<=", Compare::AtMost),
    (">=", Compare::AtLeast),
    ("==", Compare::Equal),
    ("<", Compare::Less),
    (">", Compare::More),
    ("=", Compare::Equal),
];

impl Objective {
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = |what: &str| {
            format!(
                "`{text}` is no objective ({what}): say p99<50ms, poll.p999<=1s, errors<0.1%, errors=0, rate>1000 or unfinished=0"
            )
        };
        let (sign, compare) = COMPARES
            .into_iter()
            .filter_map(|(sign, compare)| text.find(sign).map(|at| (at, sign, compare)))
            .min_by_key(|(at, sign, _)| (*at, 2 - sign.len()))
            .map(|(_, sign, compare)| (sign, compare))
            .ok_or_else(|| wrong("no comparison"))?;
        let (left, right) = text
            .split_once(sign)
            .ok_or_else(|| wrong("no comparison"))?;
        let (left, right) = (left.trim(), right.trim());
        let (op, name) = match left.split_once('.') {
            Some((op, name)) => (
                Some(Op::named(op).ok_or_else(|| wrong("no such operation"))?),
                name,
            ),
            None => (None, left),
        };
        let metric = match name {
            "p50" => Metric::Quantile(0.5),
            "p90" => Metric::Quantile(0.9),
            "p95" => Metric::Quantile(0.95),
            "p99" => Metric::Quantile(0.99),
            "p999" | "p99.9" => Metric::Quantile(0.999),
            "p9999" | "p99.99" => Metric::Quantile(0.9999),
            "max" => Metric::Quantile(1.0),
            "mean" => Metric::Mean,
            "errors" if right.ends_with('%') => Metric::ErrorShare,
            "errors" => Metric::Errors,
            "unfinished" => Metric::Unfinished,
            "completed" => Metric::Completed,
            "rate" => Metric::Rate,
            _ => return Err(wrong("no such figure")),
        };
        let bound = bound(metric, right).ok_or_else(|| wrong("no such bound"))?;
        Ok(Self {
            text: text.to_owned(),
            op,
            metric,
            compare,
            bound,
        })
    }

    pub fn holds(&self, actual: f64) -> bool {
        match self.compare {
            Compare::Less => actual < self.bound,
            Compare::AtMost => actual <= self.bound,
            Compare::More => actual > self.bound,
            Compare::AtLeast => actual >= self.bound,
            Compare::Equal => (actual - self.bound).abs() < f64::EPSILON,
        }
    }
}

fn bound(metric: Metric, text: &str) -> Option<f64> {
    match metric {
        Metric::Quantile(_) | Metric::Mean => {
            let duration: Duration = humantime::parse_duration(text).ok().or_else(|| {
                // humantime has no fractions, and 1.5ms is what one writes.
                let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic())?);
                let seconds = match unit {
                    "us" => 1e-6,
                    "ms" => 1e-3,
                    "s" => 1.0,
                    _ => return None,
                };
                Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
            })?;
            Some(duration.as_secs_f64() * 1e3)
        }
        Metric::ErrorShare => text
            .strip_suffix('%')?
            .trim()
            .parse::<f64>()
            .ok()
            .map(|v| v / 100.0),
        Metric::Errors | Metric::Unfinished | Metric::Completed => {
            text.parse::<u64>().ok().map(|v| v as f64)
        }
        Metric::Rate => super::values::rate(text).ok().map(|rate| rate.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_help_shows() {
        let parsed = |text: &str| Objective::parse(text).unwrap();
        let p99 = parsed("p99<50ms");
        assert_eq!(
            (p99.op, p99.metric, p99.compare, p99.bound),
            (None, Metric::Quantile(0.99), Compare::Less, 50.0)
        );
        let poll = parsed("poll.p99.9 <= 1.5s");
        assert_eq!(
            (poll.op, poll.metric, poll.bound),
            (Some(Op::Poll), Metric::Quantile(0.999), 1500.0)
        );
        assert_eq!(poll.compare, Compare::AtMost);
        assert_eq!(parsed("errors<0.1%").bound, 0.001);
        assert_eq!(parsed("errors=0").metric, Metric::Errors);
        assert_eq!(parsed("rate>2k").bound, 2000.0);
        assert_eq!(parsed("enter.max<2s").bound, 2000.0);
        assert_eq!(parsed("p50<750us").bound, 0.75);
    }

    #[test]
    fn refuses_the_rest_and_compares() {
        for wrong in [
            "p99",
            "p98<1ms",
            "dance.p99<1ms",
            "p99<50",
            "errors<x%",
            "",
            "<1ms",
            "errors=1.5",
        ] {
            assert!(Objective::parse(wrong).is_err(), "{wrong}");
        }
        let at_most = Objective::parse("p99<=20ms").unwrap();
        assert!(at_most.holds(20.0) && !at_most.holds(20.1));
        assert!(!Objective::parse("p99<20ms").unwrap().holds(20.0));
        assert!(Objective::parse("errors=0").unwrap().holds(0.0));
    }
}
