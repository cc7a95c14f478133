//! Whether Redis takes writes: asked by a write, since a Redis that is out of memory, read-only,
//! or cannot save to its disk answers every read.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::gauge::Gauge;

use super::Redis;
use crate::platform::{metrics::Metrics, tasks::Tasks};

/// How often a write is tried: the first failed one is noticed within a second.
const EVERY: Duration = Duration::from_millis(500);
/// In a Cluster the probes are spread over so many hash tags, so that every primary has some.
const SPREAD: usize = 16;
/// A probe's key ends by itself.
const KEPT_MS: u64 = 60_000;

/// What the last write probe found. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Writable(Arc<ArcSwapOption<String>>);

impl Writable {
    /// Why Redis takes no writes; None while it does.
    pub fn problem(&self) -> Option<Arc<String>> {
        self.0.load_full()
    }
}

impl Redis {
    /// Tries a write.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn probe(&mut self, prefix: &str) -> Result<(), String> {
        let tags = if self.is_cluster() { SPREAD } else { 1 };
        for tag in 0..tags {
            redis::cmd("SET")
                .arg(format!("{prefix}:probe:{{{tag}}}"))
                .arg(1)
                .arg("PX")
                .arg(KEPT_MS)
                .query_async::<()>(self)
                .await
                .map_err(|error| format!("Redis takes no writes: {error}"))?;
        }
        Ok(())
    }
}

/// Probes `redis` as long as the process runs: `writable` and a gauge show the outcome, the log each change.
pub fn watch_writes(
    writable: &Writable,
    redis: &Redis,
    prefix: &str,
    metrics: &Metrics,
    tasks: &Tasks,
) {
    let gauge = Gauge::<i64>::default();
    gauge.set(1);
    metrics.register(|registry| {
        registry.register(
            "redis_writable",
            "1 while Redis takes writes; 0 when it is away, out of memory, read-only or cannot save",
            gauge.clone(),
        );
    });
    let (known, redis, prefix) = (writable.clone(), redis.clone(), prefix.to_owned());
    tasks.every("redis.probe", EVERY, move || {
        let (mut redis, known, gauge) = (redis.clone(), known.clone(), gauge.clone());
        let prefix = prefix.clone();
        async move {
            let found = redis.probe(&prefix).await;
            gauge.set(i64::from(found.is_ok()));
            let before = known.0.swap(found.as_ref().err().cloned().map(Arc::new));
            match (before, found) {
                (None, Err(error)) => {
                    tracing::error!(%error, "Redis takes no writes: nobody can enter, check in or hold seats");
                }
                (Some(_), Ok(())) => tracing::info!("Redis takes writes again"),
                (None, Ok(())) | (Some(_), Err(_)) => {}
            }
        }
    });
}
