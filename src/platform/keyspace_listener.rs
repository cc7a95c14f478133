//! Keyspace notifications of Redis: what expires is acted on at once.
//!
//! Notifications may be lost or doubled; every role that listens has a sweep that does without
//! them. The listener subscribes on every primary and follows changes of topology. It adds the
//! flags that it needs to `notify-keyspace-events` and never takes one away: others may use them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::StreamExt;
use redis::aio::ConnectionLike;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{redis::Redis, tasks};

/// How often the primaries are asked for again.
const PRIMARIES_EVERY: Duration = Duration::from_secs(5);
/// A subscription that broke is tried again after this.
const RETRY: Duration = Duration::from_secs(1);
/// How often a subscription makes sure that its server still answers and notifies.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// Key events, of keys that expire.
const NEEDED: [char; 2] = ['E', 'x'];

/// What a role does with notifications.
pub trait Listener: Send + Sync + 'static {
    /// `key` has expired.
    fn expired(&self, key: &[u8]);

    /// A subscription begins: what expired before it was not heard of.
    fn subscribed(&self) {}

    /// Why the server does not notify, or `None` where it does.
    fn silent(&self, why: Option<String>) {
        let _ = why;
    }
}

/// Listens to every primary of `redis` until `stop`; `name` names the task.
pub async fn run(
    name: &'static str,
    redis: Redis,
    listener: Arc<dyn Listener>,
    stop: CancellationToken,
) {
    let mut open: HashMap<String, AbortOnDropHandle<()>> = HashMap::new();
    let mut known = true;
    loop {
        match redis.clone().primaries().await {
            Ok(urls) => {
                known = true;
                open.retain(|url, _| urls.contains(url));
                for url in urls {
                    open.entry(url.clone()).or_insert_with(|| {
                        let (listener, stop, redis) =
                            (listener.clone(), stop.clone(), redis.clone());
                        let one = tasks::supervise(name, stop.clone(), move || {
                            listen(redis.clone(), url.clone(), listener.clone(), stop.clone())
                        });
                        AbortOnDropHandle::new(tokio::spawn(one))
                    });
                }
            }
            Err(error) if known => {
                known = false;
                tracing::warn!(%error, "cannot ask which Redis servers are primaries");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(PRIMARIES_EVERY) => {}
        }
    }
}

async fn listen(redis: Redis, url: String, listener: Arc<dyn Listener>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            ended = subscribe(&redis, &url, &*listener) => if let Err(error) = ended {
                tracing::debug!(%error, "no keyspace notifications for now; the sweep goes on");
            },
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// One subscription, until it breaks.
async fn subscribe(
    redis: &Redis,
    url: &str,
    listener: &dyn Listener,
) -> Result<(), redis::RedisError> {
    let client = redis.client_of(url)?;
    let mut plain = client.get_multiplexed_async_connection().await?;
    let mut silent = switch_on(&mut plain).await?;
    if let Some(why) = &silent {
        tracing::warn!("{why}");
    }
    listener.silent(silent.clone());
    let mut subscription = client.get_async_pubsub().await?;
    let db = plain.get_db();
    subscription
        .subscribe(format!("__keyevent@{db}__:expired"))
        .await?;
    let mut messages = subscription.into_on_message();
    listener.subscribed();
    let mut check = tokio::time::interval(CHECK_EVERY);
    check.tick().await;
    loop {
        tokio::select! {
            message = messages.next() => match message {
                Some(message) => listener.expired(message.get_payload_bytes()),
                None => return Ok(()),
            },
            _ = check.tick() => {
                let now = switch_on(&mut plain).await?;
                if now != silent {
                    silent = now;
                    listener.silent(silent.clone());
                }
            }
        }
    }
}

/// The flags of a server that has `has` once it notifies of what we need; `None`: it does.
fn with_needed(has: &str) -> Option<String> {
    // A stands for every class of events, and for neither K nor E.
    let has_flag = |flag: char| has.contains(flag) || (flag != 'E' && has.contains('A'));
    let missing: String = NEEDED.into_iter().filter(|flag| !has_flag(*flag)).collect();
    (!missing.is_empty()).then(|| format!("{has}{missing}"))
}

/// Adds what is missing to what the server notifies of. The reason where the server forbids it.
async fn switch_on(
    connection: &mut impl ConnectionLike,
) -> Result<Option<String>, redis::RedisError> {
    let refused = |error: redis::RedisError| {
        format!(
            "Redis does not let this server switch keyspace notifications on ({error}); what expires is found by the sweep, \
             within a second or two. Set notify-keyspace-events to include \"Ex\" there"
        )
    };
    let get: Result<Vec<String>, _> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("notify-keyspace-events")
        .query_async(connection)
        .await;
    let has = match get {
        Ok(pair) => pair.into_iter().nth(1).unwrap_or_default(),
        Err(error) if error.is_io_error() || error.is_timeout() => return Err(error),
        // Not to be read: nor may it be set, since that might take flags of others away.
        Err(error) => return Ok(Some(refused(error))),
    };
    let Some(flags) = with_needed(&has) else {
        return Ok(None);
    };
    let set: Result<(), _> = redis::cmd("CONFIG")
        .arg("SET")
        .arg("notify-keyspace-events")
        .arg(flags)
        .query_async(connection)
        .await;
    match set {
        Ok(()) => Ok(None),
        Err(error) if error.is_io_error() || error.is_timeout() => Err(error),
        Err(error) => Ok(Some(refused(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::with_needed;

    #[test]
    fn flags_are_added_and_none_is_taken_away() {
        for (has, then) in [
            ("", Some("Ex")),
            ("Ex", None),
            ("AKE", None),
            ("xE", None),
            ("AK", Some("AKE")),
            ("K$", Some("K$Ex")),
            ("Kx", Some("KxE")),
            ("E", Some("Ex")),
        ] {
            assert_eq!(with_needed(has).as_deref(), then, "{has}");
        }
    }
}
