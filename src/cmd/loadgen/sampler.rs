//! Looks at the target from outside while the load runs: the public snapshot of
//! the queue twice a second, the seat map every other second, and the working set
//! in Redis where it can be reached.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::fetch::Fetch;
use super::notes::Finding;
use super::plan::Target;
use super::report::Sample;
use super::seatmap::{self, SeatCounts};
use super::wire::QueueView;
use crate::platform::redis::Trust;

const EVERY: Duration = Duration::from_millis(500);
/// What a sweep a second, and a busy machine, may leave.
const OVERDUE_MS: u64 = 3_000;
/// Redis may be frozen as the run ends.
const LAST_LOOK_WITHIN: Duration = Duration::from_secs(5);
/// A run of a day keeps its samples in a few megabytes.
const SAMPLES_MAX: usize = 20_000;

#[derive(Debug, Default)]
pub struct Samples {
    pub queue: Vec<Sample>,
    /// Looks at the public snapshot that failed.
    pub missed: u64,
    /// `working` above the highest `maxWorking` known.
    pub overshoot: Finding,
    /// Looks at the working set in Redis, and overshoots seen there.
    pub redis_looks: u64,
    pub redis_overshoot: Finding,
    pub redis_error: Option<String>,
    /// Slots past their deadline at the end; none where Redis was not looked at.
    pub overdue_slots: Option<u64>,
    /// Why they could not be looked for.
    pub overdue_error: Option<String>,
}

pub struct Sampler {
    pub target: Arc<Target>,
    pub fetch: Fetch,
    pub start: Instant,
    pub with_seats: bool,
    pub max_working: u64,
    pub latest: watch::Sender<Option<Sample>>,
}

impl Sampler {
    /// Samples until told to stop.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> Samples {
        let mut samples = Samples::default();
        let mut redis = self.redis(&mut samples).await;
        let mut etag: Option<String> = None;
        let mut seats: Option<SeatCounts> = None;
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        for turn in 0u64.. {
            tokio::select! {
                _ = ticks.tick() => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            let looks = async {
                if self.with_seats && turn % 4 == 0 {
                    seats = self.seats(&mut etag).await.or(seats);
                }
                self.look(&mut samples, seats).await;
                self.look_into_redis(&mut samples, &mut redis).await;
            };
            // A server that fell silent must not hold up the end.
            tokio::select! {
                () = looks => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
        }
        self.look_for_overdue(&mut samples, &mut redis).await;
        samples
    }

    /// A slot past its deadline comes back within a second, by the sweep at the latest.
    async fn look_for_overdue(
        &self,
        samples: &mut Samples,
        redis: &mut Option<redis::aio::MultiplexedConnection>,
    ) {
        let Some(connection) = redis.as_mut().filter(|_| samples.redis_looks > 0) else {
            return;
        };
        let Some(base) = self.base_key() else { return };
        let overdue = async {
            let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
            let bound_ms = seconds * 1_000 + micros / 1_000 - OVERDUE_MS;
            redis::cmd("ZCOUNT")
                .arg(format!("{base}:work"))
                .arg("-inf")
                .arg(bound_ms)
                .query_async::<u64>(connection)
                .await
        };
        match tokio::time::timeout(LAST_LOOK_WITHIN, overdue).await {
            Ok(Ok(count)) => samples.overdue_slots = Some(count),
            Ok(Err(error)) => samples.overdue_error = Some(error.to_string()),
            Err(_) => samples.overdue_error = Some("Redis did not answer within 5 s".to_owned()),
        }
    }

    /// What the keys of this performance's queue begin with.
    fn base_key(&self) -> Option<String> {
        let stores = self.target.stores.as_ref()?;
        Some(format!(
            "{}:{{{}}}",
            stores.redis_prefix, self.target.performance
        ))
    }

    async fn look(&mut self, samples: &mut Samples, seats: Option<SeatCounts>) {
        let path = format!("/api/v1/queues/{}", self.target.performance);
        let Ok(queue) = self.fetch.json::<QueueView>(&path, &[]).await else {
            samples.missed += 1;
            return;
        };
        // A limit lowered meanwhile is reached only as people finish.
        self.max_working = self.max_working.max(queue.max_working);
        if queue.working > self.max_working {
            let (working, max) = (queue.working, self.max_working);
            samples
                .overshoot
                .note(|| format!("{working} working, {max} allowed"));
        }
        let sample = Sample {
            at_ms: self.start.elapsed().as_millis() as u64,
            phase: queue.phase,
            waiting: queue.waiting,
            working: queue.working,
            max_working: queue.max_working,
            served_number: queue.served_number,
            last_number: queue.last_number,
            remaining_seats: queue.remaining_seats,
            seats,
        };
        self.latest.send_replace(Some(sample.clone()));
        if samples.queue.len() < SAMPLES_MAX {
            samples.queue.push(sample);
        }
    }

    /// Seats by status, over every schedule; none when unchanged or not to be had.
    async fn seats(&self, etag: &mut Option<String>) -> Option<SeatCounts> {
        // One schedule is what a chart needs; several would be several downloads.
        let schedule = self.target.schedules.first()?;
        let known = etag.clone().unwrap_or_default();
        let mut headers = vec![("accept-encoding", "gzip")];
        if !known.is_empty() {
            headers.push(("if-none-match", known.as_str()));
        }
        let answer = self
            .fetch
            .get(&format!("/api/v1/schedules/{schedule}/seats"), &headers)
            .await
            .ok()?;
        if answer.status != 200 {
            return None;
        }
        *etag = answer
            .headers
            .get("etag")
            .and_then(|etag| etag.to_str().ok())
            .map(str::to_owned);
        let gzip = answer
            .headers
            .get("content-encoding")
            .is_some_and(|encoding| encoding == "gzip");
        seatmap::read(gzip, &answer.body)
            .ok()
            .map(|(counts, _)| counts)
    }

    async fn redis(&self, samples: &mut Samples) -> Option<redis::aio::MultiplexedConnection> {
        let stores = self.target.stores.as_ref()?;
        let trust = match Trust::of_file(stores.redis_ca.as_deref()) {
            Ok(trust) => trust,
            Err(error) => {
                samples.redis_error = Some(error);
                return None;
            }
        };
        let connected = async {
            let client = trust.client(&stores.redis_url)?;
            client.get_multiplexed_async_connection().await
        };
        match tokio::time::timeout(Duration::from_secs(3), connected).await {
            Ok(Ok(connection)) => Some(connection),
            Ok(Err(err)) => {
                samples.redis_error = Some(err.to_string());
                None
            }
            Err(_) => {
                samples.redis_error = Some("no connection within 3 s".to_owned());
                None
            }
        }
    }

    /// The truth behind the snapshot: members of the working set against the limit, read together.
    async fn look_into_redis(
        &self,
        samples: &mut Samples,
        redis: &mut Option<redis::aio::MultiplexedConnection>,
    ) {
        let Some(connection) = redis else { return };
        let Some(base) = self.base_key() else { return };
        let mut both = redis::pipe();
        both.atomic()
            .cmd("ZCARD")
            .arg(format!("{base}:work"))
            .cmd("HGET")
            .arg(format!("{base}:meta"))
            .arg("maxWorking");
        match both.query_async::<(u64, Option<u64>)>(connection).await {
            // Nobody has entered yet: nothing to see, and nothing proved.
            Ok((_, None)) => {}
            Ok((working, Some(max))) => {
                samples.redis_looks += 1;
                let max = max.max(self.max_working);
                if working > max {
                    samples
                        .redis_overshoot
                        .note(|| format!("{working} in the working set, {max} allowed"));
                }
            }
            Err(err) => {
                samples.redis_error = Some(err.to_string());
                *redis = None;
            }
        }
    }
}
