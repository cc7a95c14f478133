//! Whether this process can serve, and what it lacks.
//!
//! A shared store that is away makes no process unready: every instance would be taken out of
//! the balancer at once, with all that needs no store. The routes that need it answer 503, and
//! the report names it. The checks run in the background, so that a probe never waits for a store.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use chrono::{DateTime, SecondsFormat, Utc};
use futures_util::future::{BoxFuture, join_all};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge},
};
use serde_json::{Map, Value, json};

use super::{
    metrics::Metrics,
    tasks::{self, Tasks},
};

/// How often every part is checked.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// A check that takes longer counts as failed.
const CHECK_MAX: Duration = Duration::from_secs(3);

/// Why a part of this process cannot do all of its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unready {
    /// A store that all instances share is away or misbehaves: no other instance fares better.
    Store(String),
    /// This process cannot serve as it is.
    Process(String),
}

impl Unready {
    fn cause(&self) -> &str {
        let (Self::Store(cause) | Self::Process(cause)) = self;
        cause
    }
}

impl std::fmt::Display for Unready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.cause())
    }
}

impl From<String> for Unready {
    fn from(cause: String) -> Self {
        Self::Store(cause)
    }
}

/// Says whether one part can do its work now, and if not, why.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), Unready>> + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Starting,
    Serving,
    Stopping,
}

struct Part {
    outcome: Result<(), Unready>,
    since: DateTime<Utc>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

#[derive(Default)]
struct Inner {
    stage: AtomicU8,
    /// What the start waits for.
    awaited: Mutex<Option<String>>,
    parts: Mutex<BTreeMap<&'static str, Part>>,
    gauges: Family<PartLabel, Gauge>,
}

/// The readiness of this process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Readiness(Arc<Inner>);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Readiness {
    /// Starting: not ready. Its gauges go to `metrics`.
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            registry.register(
                "part_up",
                "1 while a part of this process can do all of its work, else 0",
                this.0.gauges.clone(),
            );
        });
        this
    }

    fn stage(&self) -> Stage {
        match self.0.stage.load(SeqCst) {
            0 => Stage::Starting,
            1 => Stage::Serving,
            _ => Stage::Stopping,
        }
    }

    /// The start waits for `what`; `None`: no more.
    pub fn waits_for(&self, what: Option<String>) {
        *lock(&self.0.awaited) = what;
    }

    /// Everything is put together: requests are answered from now on.
    pub fn serving(&self) {
        // A stop that came first stays.
        let _ = self.0.stage.compare_exchange(0, 1, SeqCst, SeqCst);
    }

    /// Not ready from now on.
    pub fn stopping(&self) {
        self.0.stage.store(2, SeqCst);
    }

    /// Runs `checks` once, and then again and again until the stop.
    pub async fn follow(&self, checks: Vec<(&'static str, Check)>, tasks: &Tasks) {
        self.check(&checks).await;
        let (this, checks) = (self.clone(), Arc::new(checks));
        tasks.every("readiness", CHECK_EVERY, move || {
            let (this, checks) = (this.clone(), checks.clone());
            async move { this.check(&checks).await }
        });
    }

    async fn check(&self, checks: &[(&'static str, Check)]) {
        let asked = checks.iter().map(|(name, check)| async move {
            let answer = tokio::time::timeout(CHECK_MAX, tasks::job("readiness", check())).await;
            let outcome = match answer {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(panic)) => Err(Unready::Process(panic.to_string())),
                Err(_) => Err(Unready::Store("no answer in time".to_owned())),
            };
            self.note(name, outcome);
        });
        join_all(asked).await;
    }

    fn note(&self, name: &'static str, outcome: Result<(), Unready>) {
        let up = i64::from(outcome.is_ok());
        self.0
            .gauges
            .get_or_create(&PartLabel { part: name })
            .set(up);
        let now = Utc::now();
        let mut parts = lock(&self.0.parts);
        let before = parts.get(name);
        let since = match (before.map(|part| (&part.outcome, part.since)), &outcome) {
            (Some((Ok(()), since)), Ok(())) | (Some((Err(_), since)), Err(_)) => since,
            (_, Err(why)) => {
                tracing::warn!(part = name, error = why.cause(), "{name} is degraded");
                now
            }
            (Some((Err(_), since)), Ok(())) => {
                let seconds = (now - since).num_seconds();
                tracing::info!(part = name, seconds, "{name} is well again");
                now
            }
            (None, Ok(())) => now,
        };
        parts.insert(name, Part { outcome, since });
    }

    /// Whether this process can serve, and the report that says what it lacks.
    pub fn report(&self) -> (bool, Value) {
        let stage = self.stage();
        let parts = lock(&self.0.parts);
        let fit = |part: &Part| !matches!(part.outcome, Err(Unready::Process(_)));
        let ready = stage == Stage::Serving && parts.values().all(fit);
        let mut named = Map::new();
        let mut away = Vec::new();
        for (name, part) in parts.iter() {
            let text = match &part.outcome {
                Ok(()) => "ok".to_owned(),
                Err(why) => {
                    let since = part.since.to_rfc3339_opts(SecondsFormat::Secs, true);
                    away.push(json!({"part": name, "cause": why.cause(), "since": since}));
                    format!("{} (since {since})", why.cause())
                }
            };
            named.insert((*name).to_owned(), text.into());
        }
        let troubles = tasks::troubles();
        let degraded = !away.is_empty() || troubles.values().any(tasks::Trouble::is_degraded);
        let failed: Map<_, _> = troubles
            .into_iter()
            .map(|(name, trouble)| {
                let state = if trouble.is_degraded() {
                    "degraded"
                } else {
                    "restarted"
                };
                let told =
                    json!({"state": state, "failures": trouble.failures, "cause": trouble.cause});
                (name.to_owned(), told)
            })
            .collect();
        let state = match stage {
            Stage::Starting => "starting",
            Stage::Serving => "serving",
            Stage::Stopping => "stopping",
        };
        let mut report = json!({
            "ready": ready, "state": state, "degraded": degraded,
            "parts": named, "away": away, "tasks": failed,
        });
        if let (Stage::Starting, Some(what)) = (stage, &*lock(&self.0.awaited)) {
            report["waitsFor"] = what.clone().into();
        }
        (ready, report)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_away_is_named_and_the_process_stays_ready() {
        let readiness = Readiness::new(&Metrics::default());
        assert!(!readiness.report().0, "not before it serves");
        readiness.waits_for(Some("PostgreSQL (users)".to_owned()));
        assert_eq!(readiness.report().1["waitsFor"], "PostgreSQL (users)");
        readiness.serving();
        readiness.note("users", Ok(()));
        assert!(readiness.report().0);
        readiness.note(
            "users",
            Err("PostgreSQL (users): refused".to_owned().into()),
        );
        let (ready, report) = readiness.report();
        assert!(ready && report["degraded"] == true, "{report}");
        assert_eq!(report["away"][0]["cause"], "PostgreSQL (users): refused");
        let since = report["away"][0]["since"].clone();
        readiness.note("users", Err("PostgreSQL (users): still".to_owned().into()));
        assert_eq!(readiness.report().1["away"][0]["since"], since);
        let keys = Err(Unready::Process("no keys yet".to_owned()));
        readiness.note("access-token-keys", keys);
        assert!(!readiness.report().0);
        readiness.note("access-token-keys", Ok(()));
        readiness.note("users", Ok(()));
        let (ready, report) = readiness.report();
        assert!(ready && report["degraded"] == false, "{report}");
        readiness.stopping();
        readiness.serving();
        assert!(!readiness.report().0);
    }
}
