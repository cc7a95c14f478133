//! Keyspace notifications: a deadline passes, Redis rings, the next is admitted.
//!
//! A bell only: it may be lost, doubled or rung for everybody, and the sweep of
//! every second does without it.

use std::{collections::HashMap, time::Duration};

use futures_util::StreamExt;
use redis::aio::ConnectionLike;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::State;
use crate::platform::{redis::Redis, tasks::Tasks};

/// How often the primaries are looked up again, after a topology change too.
const PRIMARIES_EVERY: Duration = Duration::from_secs(5);
/// A subscription that broke is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// Events of expired keys, by key event.
const WANTED: &str = "Ex";

/// Subscribes on every primary, as long as the process runs.
pub(super) fn start(state: &State, tasks: &Tasks) {
    let (state, stop) = (state.clone(), tasks.token());
    tasks.spawn("queue.wake", async move {
        let mut open: HashMap<String, CancellationToken> = HashMap::new();
        loop {
            match state.deps().redis.clone().primaries().await {
                Ok(urls) => {
                    open.retain(|url, token| {
                        urls.contains(url) || {
                            token.cancel();
                            false
                        }
                    });
                    for url in urls {
                        let token = open.entry(url.clone()).or_insert_with(|| {
                            let token = stop.child_token();
                            tokio::spawn(listen(state.clone(), url, token.clone()));
                            token
                        });
                        debug_assert!(!token.is_cancelled() || stop.is_cancelled());
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot ask which Redis servers are primaries")
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PRIMARIES_EVERY) => {}
            }
        }
    });
}

async fn listen(state: State, url: String, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            heard = hear(&state, &url) => {
                if let Err(error) = heard {
                    tracing::debug!(%error, "no keyspace notifications for now; the sweep goes on");
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

async fn hear(state: &State, url: &str) -> Result<(), redis::RedisError> {
    let client = redis::Client::open(url)?;
    let mut plain = client.get_multiplexed_async_connection().await?;
    let note = switch_on(&mut plain).await;
    if let Some(note) = &note {
        tracing::warn!("{note}");
    }
    *state
        .0
        .notifications
        .lock()
        .expect("nothing panics while it holds this lock") = note;
    let mut subscription = client.get_async_pubsub().await?;
    let db = plain.get_db();
    subscription
        .subscribe(format!("__keyevent@{db}__:expired"))
        .await?;
    let prefix = format!("{}:{{", state.deps().prefix);
    let mut messages = subscription.into_on_message();
    // What expired while nobody listened.
    for live in state.lives() {
        state.tick_soon(&live);
    }
    while let Some(message) = messages.next().await {
        let key = message.get_payload_bytes();
        if let Some(performance) = bell_of(&prefix, key)
            && let Some(live) = state.known(performance)
        {
            state.tick_soon(&live);
        }
    }
    Ok(())
}

/// Adds what is wanted to what the server notifies of; what it says where it may not.
async fn switch_on(connection: &mut impl ConnectionLike) -> Option<String> {
    let get: Result<Vec<String>, _> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("notify-keyspace-events")
        .query_async(connection)
        .await;
    let has = get.ok().and_then(|pair| pair.into_iter().nth(1));
    let enough = |flags: &str| flags.contains('E') && (flags.contains('x') || flags.contains('A'));
    if has.as_deref().is_some_and(enough) {
        return None;
    }
    let flags = format!("{}{WANTED}", has.unwrap_or_default());
    let set: Result<(), _> = redis::cmd("CONFIG")
        .arg("SET")
        .arg("notify-keyspace-events")
        .arg(flags)
        .query_async(connection)
        .await;
    set.err().map(|error| {
        format!(
            "Redis does not let this server switch keyspace notifications on ({error}); slots come free by the sweep, \
             within a second or two. Set notify-keyspace-events to include \"{WANTED}\" there."
        )
    })
}

fn bell_of(prefix: &str, key: &[u8]) -> Option<Uuid> {
    let rest = std::str::from_utf8(key).ok()?.strip_prefix(prefix)?;
    let (performance, name) = rest.split_once("}:")?;
    name.starts_with("t:").then_some(())?;
    performance.parse().ok()
}

/// Whether `redis` answers and keeps what it is given.
pub(super) async fn usable(redis: &mut Redis) -> Result<(), String> {
    let info: redis::Value = redis::cmd("PING")
        .query_async(redis)
        .await
        .map_err(|e| format!("Redis: {e}"))?;
    drop(info);
    let policy: Result<Vec<String>, _> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("maxmemory-policy")
        .query_async(redis)
        .await;
    match policy.ok().and_then(|pair| pair.into_iter().nth(1)) {
        Some(policy) if policy != "noeviction" => Err(format!(
            "Redis may evict keys (maxmemory-policy is {policy}); set it to noeviction"
        )),
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
