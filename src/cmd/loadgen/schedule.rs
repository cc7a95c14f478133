//! When buyers arrive. Each moment is computed from its number alone, so that no
//! delay of one arrival moves the next, and rounding never adds up.

use std::time::Duration;

use super::values::{Rate, Shard};

/// The shape of the arrivals of a whole test, all shards together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shape {
    /// `total` buyers spread evenly over a time, which may be nothing.
    Spread { total: u64, over: Duration },
    /// A rate that climbs linearly from nothing during `ramp`, then stays.
    Rate { rate: Rate, ramp: Duration },
}

/// The arrivals of one shard: its `k`-th is arrival `shard.index + k × shard.of` of the test.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    shape: Shape,
    shard: Shard,
    /// Arrivals of the whole test; none beyond it.
    total: u64,
}

impl Schedule {
    /// `limit` bounds the number of arrivals, `until` their time.
    pub fn new(shape: Shape, shard: Shard, limit: Option<u64>, until: Option<Duration>) -> Self {
        let by_shape = match shape {
            Shape::Spread { total, .. } => total,
            Shape::Rate { .. } => u64::MAX,
        };
        let by_time = until.map_or(u64::MAX, |until| arrivals_before(shape, until));
        let total = by_shape.min(by_time).min(limit.unwrap_or(u64::MAX));
        Self {
            shape,
            shard,
            total,
        }
    }

    /// The arrivals of the whole test, in words that are equal where the tests are.
    pub fn whole(&self) -> String {
        format!("{} by {:?}", self.total, self.shape)
    }

    /// How many arrivals this shard makes.
    pub fn len(&self) -> u64 {
        let (index, of) = (u64::from(self.shard.index), u64::from(self.shard.of));
        self.total.saturating_sub(index).div_ceil(of)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which arrival of the whole test this shard's `k`-th is.
    pub fn global(&self, k: u64) -> u64 {
        u64::from(self.shard.index) + k * u64::from(self.shard.of)
    }

    /// When this shard's `k`-th arrival is due, in microseconds from the start.
    pub fn due_us(&self, k: u64) -> u64 {
        due_us(self.shape, self.global(k))
    }
}

fn due_us(shape: Shape, n: u64) -> u64 {
    match shape {
        Shape::Spread { total, over } => {
            // In integers: exact for any total, and the last one stays below `over`.
            (u128::from(n) * over.as_micros() / u128::from(total.max(1))) as u64
        }
        Shape::Rate {
            rate: Rate(rate),
            ramp,
        } => {
            let (n, ramp) = (n as f64, ramp.as_secs_f64());
            // During the ramp n(t) = rate × t² / (2 × ramp).
            let in_ramp = rate * ramp / 2.0;
            let seconds = if n < in_ramp {
                (2.0 * n * ramp / rate).sqrt()
            } else {
                ramp + (n - in_ramp) / rate
            };
            (seconds * 1e6).round() as u64
        }
    }
}

/// How many arrivals are due before `until`.
fn arrivals_before(shape: Shape, until: Duration) -> u64 {
    let until_us = until.as_micros() as u64;
    let guess = match shape {
        Shape::Spread { total, over } if over <= until => return total,
        Shape::Spread { total, over } => {
            (u128::from(total) * until.as_micros() / over.as_micros()) as u64
        }
        Shape::Rate {
            rate: Rate(rate),
            ramp,
        } => {
            let (t, ramp) = (until.as_secs_f64(), ramp.as_secs_f64());
            let n = if t < ramp {
                rate * t * t / (2.0 * ramp)
            } else {
                rate * (t - ramp / 2.0)
            };
            n as u64
        }
    };
    // The closed form may be off by rounding at either side; the due times decide.
    let mut count = guess.saturating_sub(2);
    while due_us(shape, count) < until_us {
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: Shard = Shard { index: 0, of: 1 };

    #[test]
    fn a_spike_is_all_at_once_and_a_spread_is_even() {
        let spike = Schedule::new(
            Shape::Spread {
                total: 10,
                over: Duration::ZERO,
            },
            WHOLE,
            None,
            None,
        );
        assert!((0..10).all(|k| spike.due_us(k) == 0));
        let spread = Schedule::new(
            Shape::Spread {
                total: 4,
                over: Duration::from_secs(1),
            },
            WHOLE,
            None,
            None,
        );
        assert_eq!(
            (0..4).map(|k| spread.due_us(k)).collect::<Vec<_>>(),
            [0, 250_000, 500_000, 750_000]
        );
    }

    #[test]
    fn a_rate_does_not_drift_over_a_day() {
        let shape = Shape::Rate {
            rate: Rate(3.0),
            ramp: Duration::ZERO,
        };
        let day = Schedule::new(shape, WHOLE, None, Some(Duration::from_secs(86_400)));
        assert_eq!(day.len(), 3 * 86_400);
        assert_eq!(day.due_us(3 * 86_399), 86_399_000_000);
    }

    #[test]
    fn a_ramp_makes_half_as_many() {
        let shape = Shape::Rate {
            rate: Rate(1000.0),
            ramp: Duration::from_secs(10),
        };
        let ramp = Schedule::new(shape, WHOLE, None, Some(Duration::from_secs(20)));
        assert!((14_999..=15_001).contains(&ramp.len()), "{}", ramp.len());
        let first_second = (0..ramp.len())
            .take_while(|k| ramp.due_us(*k) < 1_000_000)
            .count();
        assert!((49..=51).contains(&first_second), "{first_second}");
    }

    #[test]
    fn shards_share_out_every_arrival_once() {
        let shape = Shape::Rate {
            rate: Rate(7.0),
            ramp: Duration::from_secs(1),
        };
        let until = Some(Duration::from_secs(5));
        let whole = Schedule::new(shape, WHOLE, None, until);
        let mut all: Vec<(u64, u64)> = (0..4)
            .map(|index| Schedule::new(shape, Shard { index, of: 4 }, None, until))
            .flat_map(|s| {
                (0..s.len())
                    .map(move |k| (s.global(k), s.due_us(k)))
                    .collect::<Vec<_>>()
            })
            .collect();
        all.sort_unstable();
        let expected: Vec<_> = (0..whole.len()).map(|k| (k, whole.due_us(k))).collect();
        assert_eq!(all, expected);
    }

    proptest! {
        #[test]
        fn due_times_never_go_back_and_end_in_time(
            rate in 0.01f64..50_000.0, ramp_ms in 0u64..20_000, seconds in 1u64..3_600, of in 1u32..9,
        ) {
            let shape = Shape::Rate { rate: Rate(rate), ramp: Duration::from_millis(ramp_ms) };
            let until = Duration::from_secs(seconds);
            let schedule = Schedule::new(shape, Shard { index: of - 1, of }, None, Some(until));
            let len = schedule.len();
            let step = (len / 500).max(1) as usize;
            let mut before = 0;
            for k in (0..len).step_by(step) {
                let due = schedule.due_us(k);
                prop_assert!(due >= before && due < until.as_micros() as u64);
                before = due;
            }
            // The next one would have come too late: nothing was cut off.
            prop_assert!(schedule.due_us(len) >= until.as_micros() as u64);
        }
    }
}
