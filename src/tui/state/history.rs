//! What was seen of each queue over the last minutes, for charts and trends.

use std::collections::{HashMap, VecDeque};

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::platform::overview::{Overview, QueueRow};

/// Ten minutes of one a second.
const SAMPLES: usize = 600;
/// With very many queues, less of each: a thousand must fit in a few megabytes.
const SAMPLES_OF_MANY: usize = 120;
const MANY: usize = 200;

/// One reading; `admitted` counts since the reading before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub at_s: i64,
    pub waiting: u32,
    pub working: u32,
    pub admitted: u32,
}

#[derive(Debug, Clone, Default)]
pub struct History {
    samples: VecDeque<Sample>,
    last_admitted: Option<(u64, u64)>,
}

fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl History {
    fn push(&mut self, at_s: i64, row: &QueueRow, keep: usize) {
        // A new epoch starts its counters anew: no difference can be taken.
        let admitted = match self.last_admitted {
            Some((epoch, before)) if epoch == row.epoch => row.admitted.saturating_sub(before),
            _ => 0,
        };
        self.last_admitted = Some((row.epoch, row.admitted));
        let sample = Sample {
            at_s,
            waiting: small(row.waiting),
            working: small(row.working),
            admitted: small(admitted),
        };
        match self.samples.back_mut() {
            // Several readings in one second (a short interval, `r`) are one sample.
            Some(last) if last.at_s == at_s => {
                *last = Sample {
                    admitted: last.admitted.saturating_add(sample.admitted),
                    ..sample
                };
            }
            _ => self.samples.push_back(sample),
        }
        while self.samples.len() > keep {
            self.samples.pop_front();
        }
    }

    pub fn samples(&self) -> impl DoubleEndedIterator<Item = &Sample> {
        self.samples.iter()
    }

    pub fn last(&self) -> Option<&Sample> {
        self.samples.back()
    }

    /// The shortest of a few spans that shows all there is.
    pub fn span_s(&self) -> i64 {
        let covered = match (self.samples.front(), self.samples.back()) {
            (Some(first), Some(last)) => last.at_s - first.at_s,
            _ => 0,
        };
        [60, 120, 300, 600]
            .into_iter()
            .find(|span| *span >= covered)
            .unwrap_or(600)
    }

    /// `columns` values over the last `span_s` seconds: the mean of the readings
    /// in each, `None` where there are none.
    pub fn columns(
        &self,
        columns: usize,
        span_s: i64,
        value: impl Fn(&Sample) -> f64,
    ) -> Vec<Option<f64>> {
        self.fold(columns, span_s, |sums| sums.1 / f64::from(sums.0), value)
    }

    /// As `columns`, of counts, as a rate a minute.
    pub fn rate_columns(
        &self,
        columns: usize,
        span_s: i64,
        value: impl Fn(&Sample) -> f64,
    ) -> Vec<Option<f64>> {
        self.fold(
            columns,
            span_s,
            |sums| sums.1 / f64::from(sums.0) * 60.0 / self.pace_s(),
            value,
        )
    }

    /// Seconds between readings.
    fn pace_s(&self) -> f64 {
        match (self.samples.front(), self.samples.back()) {
            (Some(first), Some(last)) if self.samples.len() > 1 => {
                #[allow(clippy::cast_precision_loss, reason = "at most a few hundred seconds")]
                let pace = (last.at_s - first.at_s) as f64 / (self.samples.len() - 1) as f64;
                pace.max(1.0)
            }
            _ => 1.0,
        }
    }

    fn fold(
        &self,
        columns: usize,
        span_s: i64,
        finish: impl Fn((u32, f64)) -> f64,
        value: impl Fn(&Sample) -> f64,
    ) -> Vec<Option<f64>> {
        let mut sums = vec![(0u32, 0f64); columns];
        let Some(end) = self.samples.back().map(|sample| sample.at_s) else {
            return vec![None; columns];
        };
        for sample in &self.samples {
            let age = end - sample.at_s;
            if age >= span_s {
                continue;
            }
            // Columns are counted from the right, so that a reading keeps its column while it ages through it.
            let from_right = usize::try_from(age).unwrap_or(0) * columns
                / usize::try_from(span_s).unwrap_or(1).max(1);
            if let Some(sum) = columns
                .checked_sub(1 + from_right)
                .and_then(|index| sums.get_mut(index))
            {
                sum.0 += 1;
                sum.1 += value(sample);
            }
        }
        sums.into_iter()
            .map(|sums| (sums.0 > 0).then(|| finish(sums)))
            .collect()
    }
}

/// The histories of all queues.
#[derive(Debug, Clone, Default)]
pub struct Histories(HashMap<Uuid, History>);

impl Histories {
    pub fn push(&mut self, at: DateTime<Utc>, overview: &Overview) {
        let keep = if overview.queues.len() > MANY {
            SAMPLES_OF_MANY
        } else {
            SAMPLES
        };
        for row in &overview.queues {
            self.0
                .entry(row.performance_id)
                .or_default()
                .push(at.timestamp(), row, keep);
        }
        if self.0.len() > overview.queues.len() {
            let oldest = at.timestamp() - i64::try_from(SAMPLES).unwrap_or(i64::MAX);
            self.0
                .retain(|_, history| history.last().is_some_and(|last| last.at_s >= oldest));
        }
    }

    pub fn of(&self, performance: Uuid) -> Option<&History> {
        self.0.get(&performance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(readings: impl IntoIterator<Item = (i64, u64, u64, u64)>) -> History {
        let mut history = History::default();
        for (at, waiting, admitted, epoch) in readings {
            let row = QueueRow {
                waiting,
                admitted,
                epoch,
                ..QueueRow::default()
            };
            history.push(at, &row, SAMPLES);
        }
        history
    }

    #[test]
    fn columns_fill_from_the_right() {
        let history = filled((0..4).map(|s| (s, 10 * u64::try_from(s).unwrap(), 0, 1)));
        let columns = history.columns(6, 6, |sample| f64::from(sample.waiting));
        assert_eq!(
            columns,
            [None, None, Some(0.0), Some(10.0), Some(20.0), Some(30.0)]
        );
        assert_eq!(
            history.columns(2, 4, |sample| f64::from(sample.waiting)),
            [Some(5.0), Some(25.0)]
        );
    }

    #[test]
    fn admissions_are_differences_and_a_new_epoch_is_no_burst() {
        let history = filled([(0, 0, 100, 1), (1, 0, 110, 1), (2, 0, 5, 2), (3, 0, 9, 2)]);
        let admitted: Vec<u32> = history.samples().map(|sample| sample.admitted).collect();
        assert_eq!(admitted, [0, 10, 0, 4]);
        let rate = history.rate_columns(4, 4, |sample| f64::from(sample.admitted));
        assert_eq!(rate[1], Some(600.0));
    }

    #[test]
    fn a_slow_interval_does_not_inflate_the_rate() {
        let history = filled((0..10).map(|n| (n * 5, 0, 50 * u64::try_from(n).unwrap(), 1)));
        let rate = history.rate_columns(1, 600, |sample| f64::from(sample.admitted));
        // 50 every 5 s is 600 a minute; the first reading knows no difference.
        assert_eq!(rate, [Some(540.0)]);
    }

    #[test]
    fn two_readings_in_a_second_are_one_sample_and_old_ones_go() {
        let history = filled([(0, 1, 1, 1), (0, 2, 3, 1)]);
        assert_eq!(history.samples().count(), 1);
        assert_eq!(
            history.last().map(|last| (last.waiting, last.admitted)),
            Some((2, 2))
        );
        let long = filled((0..2000).map(|s| (s, 0, 0, 1)));
        assert_eq!((long.samples().count(), long.span_s()), (SAMPLES, 600));
    }
}
