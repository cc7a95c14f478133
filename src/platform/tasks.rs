//! Background tasks and their end: one token, one tracker, one deadline.

use std::{future::Future, time::Duration};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Everything that runs in the background. Cheap to clone; all clones share one
/// stop signal.
#[derive(Clone, Default)]
pub struct Tasks {
    token: CancellationToken,
    tracker: TaskTracker,
}

impl Tasks {
    /// No tasks yet, not stopping.
    pub fn new() -> Self {
        Self::default()
    }

    /// Runs `future` until it ends. It must watch [`Tasks::stopping`] itself, so
    /// that it can finish what it has begun.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(async move {
            future.await;
            tracing::trace!(task.name = name, "task ended");
        });
    }

    /// Calls `tick` every `period` until the stop; a slow tick delays the next
    /// one and is never run twice at once.
    pub fn every<F, Fut>(&self, name: &'static str, period: Duration, mut tick: F)
    where
        F: FnMut() -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let token = self.token.clone();
        self.spawn(name, async move {
            let mut interval = tokio::time::interval(period);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                tokio::select! {
                    () = token.cancelled() => return,
                    _ = interval.tick() => tick().await,
                }
            }
        });
    }

    /// The stop signal.
    pub fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Resolves once the stop has been asked for.
    pub async fn stopping(&self) {
        self.token.cancelled().await;
    }

    /// Asks everything to stop and waits up to `deadline`. False when something
    /// was still running then.
    pub async fn stop(&self, deadline: Duration) -> bool {
        self.token.cancel();
        self.tracker.close();
        tokio::time::timeout(deadline, self.tracker.wait())
            .await
            .is_ok()
    }
}
