//! Background tasks and their end: one token, one tracker, one deadline, and supervision.
//!
//! A task that panics, or that ends before the stop, is logged, counted
//! (`tasks_restarted{task}`) and started again after a pause that doubles. One that keeps
//! failing is *degraded*: `/readyz`, the metrics and the overview name it with its cause.

use std::{
    any::Any,
    collections::BTreeMap,
    future::Future,
    panic::AssertUnwindSafe,
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use super::metrics::Metrics;

/// The pause before a failed task starts again, doubling.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// A task that has run for this long is well again: longer than the longest pause, so that one
/// that fails at once each time never counts as well.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// So many failures in a row are no accident.
const DEGRADED_FROM: u32 = 3;

/// The failures of this process's tasks. One for the process, as a panic is: work that a task
/// hands to tasks of its own reports here without carrying anything along.
static FAILURES: LazyLock<Failures> = LazyLock::new(Failures::default);

#[derive(Default)]
struct Failures {
    restarted: Family<TaskLabel, Counter>,
    troubles: Mutex<BTreeMap<&'static str, Trouble>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabel {
    task: &'static str,
}

/// What went wrong with one task since the process started.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Panics, and ends before the stop.
    pub failures: u64,
    /// Why it failed last.
    pub cause: String,
    in_a_row: u32,
    /// When the newest failure stops to count; `None` until a run succeeds.
    well_at: Option<Instant>,
}

impl Trouble {
    /// Whether the task fails again and again.
    pub fn is_degraded(&self) -> bool {
        self.in_a_row >= DEGRADED_FROM && self.well_at.is_none_or(|at| Instant::now() < at)
    }
}

impl Failures {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a failure; `lasts`: how long it counts, until the next success where `None`.
    /// How many there were in a row.
    fn note(&self, name: &'static str, cause: &str, lasts: Option<Duration>) -> u32 {
        self.restarted
            .get_or_create(&TaskLabel { task: name })
            .inc();
        let now = Instant::now();
        let mut troubles = self.lock();
        let trouble = troubles.entry(name).or_insert_with(|| Trouble {
            failures: 0,
            cause: String::new(),
            in_a_row: 0,
            well_at: None,
        });
        if trouble.well_at.is_some_and(|at| at <= now) {
            trouble.in_a_row = 0;
        }
        trouble.failures += 1;
        trouble.in_a_row += 1;
        cause.clone_into(&mut trouble.cause);
        trouble.well_at = lasts.map(|lasts| now + lasts);
        trouble.in_a_row
    }

    fn succeeded(&self, name: &'static str) {
        if let Some(trouble) = self.lock().get_mut(name) {
            trouble.in_a_row = 0;
        }
    }
}

/// The tasks of this process that have failed since it started, by name.
pub fn troubles() -> BTreeMap<&'static str, Trouble> {
    FAILURES.lock().clone()
}

/// Lets `metrics` show the failures of this process's tasks.
pub fn register(metrics: &Metrics) {
    let restarted = FAILURES.restarted.clone();
    metrics.register(|registry| {
        registry.register(
            "tasks_restarted",
            "Background tasks started again, or jobs of them given up, after a panic or an early end",
            restarted,
        );
        registry.register_collector(Box::new(Degraded));
    });
}

#[derive(Debug)]
struct Degraded;

impl prometheus_client::collector::Collector for Degraded {
    fn encode(
        &self,
        mut encoder: prometheus_client::encoding::DescriptorEncoder<'_>,
    ) -> Result<(), std::fmt::Error> {
        let count = troubles().values().filter(|one| one.is_degraded()).count();
        let gauge = prometheus_client::metrics::gauge::ConstGauge::new(
            i64::try_from(count).unwrap_or(i64::MAX),
        );
        let metric = encoder.encode_descriptor(
            "tasks_degraded",
            "Background tasks that fail again and again",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        prometheus_client::encoding::EncodeMetric::encode(&gauge, metric)
    }
}

/// A panic that was caught, in words.
#[derive(Debug, thiserror::Error)]
#[error("panicked: {0}")]
pub struct Panicked(String);

impl Panicked {
    fn new(panic: &(dyn Any + Send)) -> Self {
        let words = panic
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Self(words.unwrap_or("no message").to_owned())
    }
}

async fn caught<T>(work: impl Future<Output = T>) -> Result<T, Panicked> {
    AssertUnwindSafe(work)
        .catch_unwind()
        .await
        .map_err(|panic| Panicked::new(&*panic))
}

/// Does one job of the task `name`. A panic is logged and counted, and ends the job alone.
///
/// # Errors
/// The panic.
pub async fn job<T>(name: &'static str, work: impl Future<Output = T>) -> Result<T, Panicked> {
    let outcome = caught(work).await;
    if let Err(panic) = &outcome {
        FAILURES.note(name, &panic.to_string(), Some(WELL_AFTER));
        tracing::error!(task.name = name, error = %panic, "a job of {name} {panic}");
    }
    outcome
}

/// Runs what `make` makes until `stop`, again after each panic or early end.
pub async fn supervise<F, Fut>(name: &'static str, stop: CancellationToken, mut make: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()>,
{
    while !stop.is_cancelled() {
        let cause = match caught(async { make().await }).await {
            _ if stop.is_cancelled() => return,
            Ok(()) => "ended before the stop".to_owned(),
            Err(panic) => panic.to_string(),
        };
        restart_later(name, &cause, &stop).await;
    }
}

/// Runs what `make` makes to its end, again after each panic.
async fn complete<F, Fut>(name: &'static str, stop: CancellationToken, mut make: F)
where
    F: FnMut() -> Fut,
    Fut: Future<Output = ()>,
{
    while let Err(panic) = caught(async { make().await }).await {
        restart_later(name, &panic.to_string(), &stop).await;
        if stop.is_cancelled() {
            return;
        }
    }
}

async fn restart_later(name: &'static str, cause: &str, stop: &CancellationToken) {
    let in_a_row = FAILURES.note(name, cause, Some(WELL_AFTER + PAUSE_MAX));
    let pause = (PAUSE_FIRST * 2_u32.pow(in_a_row.saturating_sub(1).min(16))).min(PAUSE_MAX);
    tracing::error!(
        task.name = name,
        error = cause,
        restart_in_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX),
        "background task {name} {cause}; it starts again"
    );
    tokio::select! {
        () = stop.cancelled() => {}
        () = tokio::time::sleep(pause) => {}
    }
}

/// Everything that runs in the background. Cheap to clone; all clones share one
/// stop signal.
#[derive(Clone, Default)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
    /// The API is about to end; everything else goes on for now.
    draining: CancellationToken,
}

impl Tasks {
    /// No tasks yet, not stopping.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs what `make` makes until the stop, under supervision: it is made again after a panic
    /// or an early end. It must watch [`Tasks::token`] itself, so that it can finish what it has
    /// begun.
    pub fn spawn<F, Fut>(&self, name: &'static str, make: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let span =
            tracing::info_span!(target: "ticketping::task", parent: None, "task", task.name = name);
        self.tracker
            .spawn(supervise(name, self.token(), make).instrument(span));
    }

    /// Runs what `make` makes once, to its end; only a panic makes it run again.
    pub fn spawn_once<F, Fut>(&self, name: &'static str, make: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let span =
            tracing::info_span!(target: "ticketping::task", parent: None, "task", task.name = name);
        self.tracker
            .spawn(complete(name, self.token(), make).instrument(span));
    }

    /// Calls `tick` every `period` until the stop; a slow tick delays the next
    /// one and is never run twice at once. A tick that panics is logged and counted; the next
    /// one comes in its time.
    pub fn every<F, Fut>(&self, name: &'static str, period: Duration, mut tick: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let token = self.token();
        let ticks = async move {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut failed = false;
            loop {
                tokio::select! {
                    () = token.cancelled() => return,
                    _ = interval.tick() => {}
                }
                match caught(async { tick().await }).await {
                    Ok(()) if failed => {
                        failed = false;
                        FAILURES.succeeded(name);
                    }
                    Ok(()) => {}
                    Err(panic) => {
                        failed = true;
                        FAILURES.note(name, &panic.to_string(), None);
                        tracing::error!(task.name = name, error = %panic, "background task {name} {panic}; it runs again in its time");
                    }
                }
            }
        };
        let span =
            tracing::info_span!(target: "ticketping::task", parent: None, "task", task.name = name);
        self.tracker.spawn(ticks.instrument(span));
    }

    /// The listeners of the API: tasks that stop before these do, and with whose stop
    /// [`Tasks::draining`] is said.
    #[must_use]
    pub fn api(&self) -> Self {
        Self {
            token: self.draining.clone(),
            tracker: TaskTracker::new(),
            draining: self.draining.clone(),
        }
    }

    /// The API takes no more requests: what streams ends.
    pub fn draining(&self) -> CancellationToken {
        self.draining.clone()
    }

    /// The stop signal.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Asks everything to stop and waits up to `deadline`. False when something
    /// was still running then.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.draining.cancel();
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    };

    use super::*;

    /// Calls of a task that does `what` the first times and then runs until the stop.
    async fn calls(name: &'static str, bad: u32, what: fn()) -> u32 {
        let (tasks, calls) = (Tasks::new(), Arc::new(AtomicU32::new(0)));
        let (counted, token) = (calls.clone(), tasks.token());
        tasks.spawn(name, move || {
            let (counted, token) = (counted.clone(), token.clone());
            async move {
                if counted.fetch_add(1, SeqCst) < bad {
                    what();
                    return;
                }
                token.cancelled().await;
            }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while calls.load(SeqCst) <= bad && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(tasks.stop(Duration::from_secs(1)).await);
        calls.load(SeqCst)
    }

    #[tokio::test]
    async fn a_task_that_panics_or_ends_runs_again_and_is_named() {
        assert_eq!(calls("test.panics", 3, || panic!("no such seat")).await, 4);
        let trouble = &troubles()["test.panics"];
        assert_eq!(trouble.failures, 3);
        assert!(trouble.is_degraded());
        assert_eq!(trouble.cause, "panicked: no such seat");

        assert_eq!(calls("test.ends", 1, || ()).await, 2);
        let trouble = &troubles()["test.ends"];
        assert_eq!(trouble.cause, "ended before the stop");
        assert!(!trouble.is_degraded(), "once is an accident");

        let metrics = Metrics::default();
        register(&metrics);
        let text = metrics.render();
        let line = "ticketping_tasks_restarted_total{task=\"test.panics\"} 3";
        assert!(text.contains(line), "{text}");
        assert!(text.contains("ticketping_tasks_degraded "), "{text}");
    }

    #[tokio::test]
    async fn a_tick_that_panics_is_not_the_last() {
        let (tasks, calls) = (Tasks::new(), Arc::new(AtomicU32::new(0)));
        let counted = calls.clone();
        tasks.every("test.ticks", Duration::from_millis(1), move || {
            let call = counted.fetch_add(1, SeqCst);
            async move { assert!(call >= 5, "an unlucky tick") }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        while calls.load(SeqCst) < 20 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(tasks.stop(Duration::from_secs(1)).await);
        assert!(calls.load(SeqCst) >= 20);
        assert!(!troubles()["test.ticks"].is_degraded(), "it ticks again");
        assert_eq!(troubles()["test.ticks"].failures, 5);
    }

    #[tokio::test]
    async fn a_job_that_panics_ends_alone_and_what_ends_by_design_ends() {
        assert!(
            job("test.job", async { panic!("one bad row") })
                .await
                .is_err()
        );
        assert!(matches!(job("test.job", async { 7 }).await, Ok(7)));
        let (tasks, calls) = (Tasks::new(), Arc::new(AtomicU32::new(0)));
        let counted = calls.clone();
        tasks.spawn_once("test.once", move || {
            let call = counted.fetch_add(1, SeqCst);
            async move { assert!(call > 0, "the first time") }
        });
        tasks.tracker.close();
        tasks.tracker.wait().await;
        assert_eq!(calls.load(SeqCst), 2);
    }
}
