//! Keyspace notifications: a deadline passes, Redis rings, the next is admitted.
//!
//! A bell only: it may be lost, doubled or rung for everybody, and the sweep of
//! every second does without it.

use std::sync::{Arc, PoisonError};

use uuid::Uuid;

use super::State;
use crate::platform::{
    keyspace_listener::{self, Listener},
    readiness::Unready,
    redis::Redis,
    tasks::Tasks,
};

/// Subscribes on every primary, as long as the process runs.
pub(super) fn start(state: &State, tasks: &Tasks) {
    let (state, stop) = (state.clone(), tasks.token());
    tasks.spawn("queue.wake", move || {
        let redis = state.deps().redis.clone();
        keyspace_listener::run("queue.wake", redis, Arc::new(state.clone()), stop.clone())
    });
}

impl Listener for State {
    fn expired(&self, key: &[u8]) {
        let prefix = format!("{}:{{", self.deps().prefix);
        if let Some(performance) = bell_of(&prefix, key)
            && let Some(live) = self.known(performance)
        {
            self.tick_soon(&live);
        }
    }

    fn subscribed(&self) {
        for live in self.lives() {
            self.tick_soon(&live);
        }
    }

    fn silent(&self, why: Option<String>) {
        let notifications = &self.0.notifications;
        *notifications.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

fn bell_of(prefix: &str, key: &[u8]) -> Option<Uuid> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    let (performance, name) = rest.split_once("}:")?;
    name.starts_with("t:").then_some(())?;
    performance.parse().ok()
}

/// Whether `redis` is a primary that takes writes and keeps what it is given.
pub(super) async fn usable(redis: &mut Redis, prefix: &str) -> Result<(), Unready> {
    redis.probe(prefix).await?;
    let policy: Result<Vec<String>, _> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("maxmemory-policy")
        .query_async(redis)
        .await;
    match policy.ok().and_then(|pair| pair.into_iter().nth(1)) {
        Some(policy) if policy != "noeviction" => Err(Unready::Process(format!(
            "Redis may evict keys (maxmemory-policy is {policy}); set it to noeviction"
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bells_of_this_prefix_ring() {
        let id = Uuid::now_v7();
        let bell = format!("tp:{{{id}}}:t:00ff");
        assert_eq!(bell_of("tp:{", bell.as_bytes()), Some(id));
        assert_eq!(bell_of("other:{", bell.as_bytes()), None);
        let hold = format!("tp:{{{id}}}:hold:00ff");
        assert_eq!(bell_of("tp:{", hold.as_bytes()), None);
        assert_eq!(bell_of("tp:{", b"tp:{x}:t:1"), None);
        assert_eq!(bell_of("tp:{", &[0xff, 0xfe]), None);
    }
}
