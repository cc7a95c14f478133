//! Changed times and schedules of a performance take effect within a second, on every instance.

use std::sync::Arc;

use tokio::sync::Mutex;

use super::State;
use crate::platform::{
    catalogue_changes::{EVERY, Follower},
    tasks::Tasks,
};

pub(super) fn start(state: &State, tasks: &Tasks) {
    let follower = Arc::new(Mutex::new(Follower::new(state.deps().performances.clone())));
    let state = state.clone();
    tasks.every("queue.catalogue", EVERY, move || {
        let (state, follower) = (state.clone(), follower.clone());
        async move {
            let Some(changes) = follower.lock().await.next_logged("queue").await else {
                return;
            };
            for live in state.lives() {
                let changed = changes.changed.iter().any(|c| c.performance_id == live.id);
                if changes.reset || changed || changes.ended.contains(&live.id) {
                    state.refresh(&live).await;
                }
            }
        }
    });
}
