//! Request figures for the dashboard: a ring of per-second histograms, so that
//! rates and percentiles are those of the last seconds, not since the start.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::platform::overview::{Http, RouteFigures};

/// Seconds looked back on.
const WINDOW_S: u64 = 10;
/// Ring slots: the window, the running second, and one being cleared.
const SLOTS: usize = WINDOW_S as usize + 2;
/// Log-linear latency buckets: four to each doubling of microseconds, up to 67 s.
const BUCKETS: usize = 26 * 4;

/// The kinds of request told apart, `route[i]` of [`HttpStats::record`].
pub const ROUTES: [&str; 10] = [
    "poll",
    "enter",
    "queue",
    "orders",
    "payments",
    "webhook",
    "seats",
    "catalogue",
    "members",
    "other",
];

/// Which of [`ROUTES`] a request belongs to.
pub fn route_index(method: &http::Method, path: &str) -> usize {
    let Some(rest) = path.strip_prefix("/api/v1/") else {
        return 9;
    };
    if rest.starts_with("queues/") {
        return match (method, rest.rsplit('/').next()) {
            (&http::Method::GET, Some("me")) => 0,
            (&http::Method::POST, Some("tokens")) => 1,
            _ => 2,
        };
    }
    match rest.split('/').next() {
        Some("orders") => 3,
        Some("payments") if rest.ends_with("/webhook") => 5,
        Some("payments") => 4,
        Some("schedules") if rest.ends_with("/seats") => 6,
        Some("schedules" | "performances") => 7,
        Some("users" | "auth") => 8,
        _ => 9,
    }
}

struct Slot {
    second: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
    client_errors: AtomicU64,
    server_errors: AtomicU64,
}

/// Counts requests without locks; a snapshot sums the last ten seconds.
pub struct HttpStats {
    start: Instant,
    routes: Vec<Vec<Slot>>,
    in_flight: AtomicU64,
}

impl Default for HttpStats {
    fn default() -> Self {
        let slot = || Slot {
            second: AtomicU64::new(u64::MAX),
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            client_errors: AtomicU64::new(0),
            server_errors: AtomicU64::new(0),
        };
        let routes = ROUTES
            .iter()
            .map(|_| (0..SLOTS).map(|_| slot()).collect())
            .collect();
        Self {
            start: Instant::now(),
            routes,
            in_flight: AtomicU64::new(0),
        }
    }
}

fn bucket(us: u64) -> usize {
    let us = us.max(1);
    let power = u64::from(us.ilog2());
    let quarter = ((us << 2) >> power) & 3;
    usize::try_from(power * 4 + quarter)
        .unwrap_or(BUCKETS)
        .min(BUCKETS - 1)
}

/// The upper edge of a bucket in milliseconds.
#[allow(
    clippy::cast_precision_loss,
    reason = "bucket edges are far below 2^52"
)]
fn edge_ms(index: usize) -> f64 {
    let (power, quarter) = (index / 4, index % 4);
    (1_u64 << power) as f64 * (1.25 + 0.25 * quarter as f64) / 1000.0
}

impl HttpStats {
    /// One more request is being answered.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// It was answered with `status` after `took`.
    pub fn record(&self, route: usize, status: u16, took: Duration) {
        self.in_flight.fetch_sub(1, Relaxed);
        let second = self.start.elapsed().as_secs();
        let slot = &self.routes[route][usize::try_from(second).unwrap_or(0) % SLOTS];
        let seen = slot.second.load(Relaxed);
        if seen != second
            && slot
                .second
                .compare_exchange(seen, second, Relaxed, Relaxed)
                .is_ok()
        {
            // A figure that races with the clearing is lost: these are for a
            // human's eye; `/metrics` counts exactly.
            slot.buckets.iter().for_each(|b| b.store(0, Relaxed));
            slot.client_errors.store(0, Relaxed);
            slot.server_errors.store(0, Relaxed);
        }
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        slot.buckets[bucket(us)].fetch_add(1, Relaxed);
        match status {
            400..=499 => slot.client_errors.fetch_add(1, Relaxed),
            500.. => slot.server_errors.fetch_add(1, Relaxed),
            _ => 0,
        };
    }

    /// The figures of the last ten whole seconds.
    pub fn snapshot(&self) -> Http {
        let now = self.start.elapsed().as_secs();
        let mut total = Sum::default();
        let mut by_route = Vec::new();
        for (name, slots) in ROUTES.iter().zip(&self.routes) {
            let mut sum = Sum::default();
            let recent = slots.iter().filter(|s| {
                let second = s.second.load(Relaxed);
                second < now && second.saturating_add(WINDOW_S) >= now
            });
            recent.for_each(|slot| sum.add(slot));
            if sum.count > 0 {
                by_route.push(RouteFigures {
                    route: (*name).to_owned(),
                    requests_per_second: sum.rate(now),
                    error_rate: sum.share(sum.server_errors),
                    p50_ms: sum.percentile(0.5),
                    p99_ms: sum.percentile(0.99),
                });
            }
            total.merge(&sum);
        }
        Http {
            requests_per_second: total.rate(now),
            error_rate: total.share(total.server_errors),
            client_error_rate: total.share(total.client_errors),
            p50_ms: total.percentile(0.5),
            p99_ms: total.percentile(0.99),
            in_flight: self.in_flight.load(Relaxed),
            by_route,
        }
    }
}

struct Sum {
    count: u64,
    client_errors: u64,
    server_errors: u64,
    buckets: [u64; BUCKETS],
}

impl Default for Sum {
    fn default() -> Self {
        Self {
            count: 0,
            client_errors: 0,
            server_errors: 0,
            buckets: [0; BUCKETS],
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "counts of ten seconds are far below 2^52"
)]
impl Sum {
    fn add(&mut self, slot: &Slot) {
        for (sum, bucket) in self.buckets.iter_mut().zip(&slot.buckets) {
            let n = bucket.load(Relaxed);
            *sum += n;
            self.count += n;
        }
        self.client_errors += slot.client_errors.load(Relaxed);
        self.server_errors += slot.server_errors.load(Relaxed);
    }

    fn merge(&mut self, other: &Self) {
        for (sum, n) in self.buckets.iter_mut().zip(&other.buckets) {
            *sum += n;
        }
        self.count += other.count;
        self.client_errors += other.client_errors;
        self.server_errors += other.server_errors;
    }

    fn rate(&self, now: u64) -> f64 {
        self.count as f64 / now.clamp(1, WINDOW_S) as f64
    }

    fn share(&self, part: u64) -> f64 {
        if self.count == 0 {
            0.0
        } else {
            part as f64 / self.count as f64
        }
    }

    fn percentile(&self, p: f64) -> f64 {
        let want = (p * self.count as f64).ceil();
        let mut seen = 0;
        for (i, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen > 0 && seen as f64 >= want {
                return edge_ms(i);
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_hold_their_latency_within_a_quarter() {
        for us in [
            1,
            2,
            3,
            5,
            100,
            999,
            1_000,
            1_234,
            50_000,
            1_000_000,
            60_000_000_u64,
        ] {
            let edge_us = edge_ms(bucket(us)) * 1000.0;
            #[allow(clippy::cast_precision_loss, reason = "small")]
            let us = us as f64;
            assert!(
                edge_us >= us && edge_us <= us * 1.5 + 1.0,
                "{us}: {edge_us}"
            );
        }
    }

    #[test]
    fn routes_are_told_apart() {
        let of = |method: http::Method, path: &str| ROUTES[route_index(&method, path)];
        assert_eq!(of(http::Method::GET, "/api/v1/queues/x/tokens/me"), "poll");
        assert_eq!(
            of(http::Method::DELETE, "/api/v1/queues/x/tokens/me"),
            "queue"
        );
        assert_eq!(of(http::Method::POST, "/api/v1/queues/x/tokens"), "enter");
        assert_eq!(
            of(http::Method::POST, "/api/v1/payments/webhook"),
            "webhook"
        );
        assert_eq!(of(http::Method::GET, "/api/v1/schedules/x/seats"), "seats");
        assert_eq!(of(http::Method::GET, "/"), "other");
    }

    #[test]
    fn percentiles_come_from_what_was_recorded() {
        let mut sum = Sum::default();
        for us in 1..=1000_u64 {
            sum.buckets[bucket(us * 10)] += 1;
            sum.count += 1;
        }
        assert!(
            (4.9..7.6).contains(&sum.percentile(0.5)),
            "{}",
            sum.percentile(0.5)
        );
        assert!(
            (9.8..12.6).contains(&sum.percentile(0.99)),
            "{}",
            sum.percentile(0.99)
        );
        assert!(Sum::default().percentile(0.99).abs() < f64::EPSILON);
    }
}
