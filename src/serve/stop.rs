//! How a process stops: not ready at once, serving for a while, the API, the background work,
//! the operations listener last.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::platform::{edge::Limits, readiness::Readiness, tasks::Tasks};

/// Background work may take this long to finish what it has leased: longer than any of it gives
/// itself, so that each ends by its own deadline.
pub(super) const TASKS_STOP_MAX: Duration = Duration::from_secs(6);
/// Above what the listeners grant open requests.
const API_STOP_MARGIN: Duration = Duration::from_secs(1);
const OPS_STOP_MAX: Duration = Duration::from_secs(1);

/// What is stopped, in this order.
pub(super) struct Stop {
    pub(super) readiness: Readiness,
    /// Callers are told to go elsewhere.
    pub(super) leaving: CancellationToken,
    /// How long requests are still taken after the signal.
    pub(super) delay: Duration,
    /// The listeners of buyers and roles.
    pub(super) api: Tasks,
    pub(super) tasks: Tasks,
    pub(super) ops: Tasks,
}

impl Stop {
    /// After the signal. A second one is the caller's matter.
    pub(super) async fn run(self, limits: Limits) {
        self.readiness.stopping();
        self.leaving.cancel();
        if !self.delay.is_zero() {
            let delay = humantime::format_duration(self.delay);
            tracing::info!("stopping: not ready from now on, and serving for {delay} more");
            tokio::time::sleep(self.delay).await;
        }
        tracing::info!("stopping: open requests are answered, then the rest ends");
        self.api.stop(limits.drain + API_STOP_MARGIN).await;
        if !self.tasks.stop(TASKS_STOP_MAX).await {
            tracing::warn!(
                "some background work did not end in time; it resumes at the next start"
            );
        }
        self.ops.stop(OPS_STOP_MAX).await;
    }
}
