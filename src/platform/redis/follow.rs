//! A connection that follows the primary, whether a URL or the Sentinels name it.
//!
//! A failover shows in three ways: the connection breaks, the server says that it is a
//! replica now, or the Sentinels name another one (asked whenever subscriptions are looked
//! after). After each, the next command connects anew: a host name is resolved again, Sentinels
//! are asked again, and a server that is no primary is refused. A command that may have run is
//! never sent twice; one that a replica refused is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use redis::{
    AsyncConnectionConfig, Client, Cmd, ErrorKind, Pipeline, RedisError, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};

use super::{CONNECT_MAX, RESPONSE_MAX, Trust, sentinel::Watched};

/// While there is no primary, one is looked for this often at most; a command in between fails
/// at once.
const CONNECT_EVERY: Duration = Duration::from_millis(200);

/// Where the primary is.
#[derive(Clone)]
pub(super) enum Source {
    /// At one address, which may be a name that moves.
    Server(Client),
    /// Where the Sentinels say.
    Sentinels(Watched),
}

/// A connection that follows the primary. Cheap to clone.
#[derive(Clone)]
pub(super) struct Follow(Arc<Shared>);

struct Shared {
    source: Source,
    trust: Trust,
    /// When the last attempt failed, and why.
    failed: tokio::sync::Mutex<Option<(Instant, RedisError)>>,
    current: ArcSwapOption<Primary>,
    made: AtomicU64,
}

struct Primary {
    connection: MultiplexedConnection,
    address: String,
    /// Tells this connection from those before it.
    nth: u64,
}

impl Follow {
    /// Connects to the primary.
    ///
    /// # Errors
    /// One sentence.
    pub(super) async fn connect(source: Source, trust: Trust) -> Result<Self, String> {
        let follow = Self(Arc::new(Shared {
            source,
            trust,
            failed: tokio::sync::Mutex::new(None),
            current: ArcSwapOption::empty(),
            made: AtomicU64::new(0),
        }));
        match follow.connected().await {
            Ok(_) => Ok(follow),
            Err(error) => Err(match &follow.0.source {
                Source::Server(client) => format!("no Redis at {}: {error}", address_of(client)),
                Source::Sentinels(watched) => format!(
                    "the Sentinels name no usable primary of \"{}\": {error}",
                    watched.service
                ),
            }),
        }
    }

    /// The URL of the primary as the Sentinels name it now; where that is another one than
    /// before, commands go there from now on. None: there are no Sentinels.
    pub(super) async fn primary(&self) -> RedisResult<Option<String>> {
        let Source::Sentinels(watched) = &self.0.source else {
            return Ok(None);
        };
        let _one = self.0.failed.lock().await;
        let (_, address) = self.find().await?;
        let stale = |p: &Arc<Primary>| p.address != address;
        if let Some(known) = self.0.current.load_full().filter(stale) {
            self.forget(known.nth);
        }
        Ok(Some(watched.url(&address)))
    }

    /// Sends one command.
    pub(super) async fn command(&self, cmd: &Cmd) -> RedisResult<Value> {
        let mut again = true;
        loop {
            let primary = self.connected().await?;
            let answer = primary.connection.clone().req_packed_command(cmd).await;
            match answer {
                Err(error) if self.lost(&error, primary.nth) && again => again = false,
                answer => return answer,
            }
        }
    }

    /// Sends several.
    pub(super) async fn commands(
        &self,
        pipeline: &Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisResult<Vec<Value>> {
        let mut again = true;
        loop {
            let primary = self.connected().await?;
            let mut connection = primary.connection.clone();
            let answer = connection
                .req_packed_commands(pipeline, offset, count)
                .await;
            match answer {
                Err(error) if self.lost(&error, primary.nth) && again => again = false,
                answer => return answer,
            }
        }
    }

    /// The database of the URL.
    pub(super) fn db(&self) -> i64 {
        match &self.0.source {
            Source::Server(client) => client.get_connection_info().redis_settings().db(),
            Source::Sentinels(watched) => watched.db(),
        }
    }

    /// Gives up a connection that `error` shows to be of no more use. True when nothing can
    /// have been done, so that the command may be sent again.
    fn lost(&self, error: &RedisError, nth: u64) -> bool {
        let refused = matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)
        );
        if refused || error.is_unrecoverable_error() || error.is_timeout() || error.is_io_error() {
            self.forget(nth);
        }
        refused
    }

    fn forget(&self, nth: u64) {
        self.0.current.rcu(|current| {
            current
                .as_ref()
                .filter(|primary| primary.nth != nth)
                .cloned()
        });
    }

    async fn connected(&self) -> RedisResult<Arc<Primary>> {
        if let Some(primary) = self.0.current.load_full() {
            return Ok(primary);
        }
        let mut failed = self.0.failed.lock().await;
        if let Some(primary) = self.0.current.load_full() {
            return Ok(primary);
        }
        if let Some((at, error)) = &*failed
            && at.elapsed() < CONNECT_EVERY
        {
            return Err(error.clone());
        }
        match self.find().await {
            Ok((connection, address)) => {
                *failed = None;
                let nth = self.0.made.fetch_add(1, Relaxed);
                if nth > 0 {
                    tracing::info!(redis.primary = %address, "connected to the Redis primary again");
                }
                let primary = Arc::new(Primary {
                    connection,
                    address,
                    nth,
                });
                self.0.current.store(Some(primary.clone()));
                Ok(primary)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// A connection to the server that is named and that says itself that it is a primary.
    async fn find(&self) -> RedisResult<(MultiplexedConnection, String)> {
        let watched = match &self.0.source {
            Source::Server(client) => {
                return Ok((as_primary(client).await?, address_of(client)));
            }
            Source::Sentinels(watched) => watched,
        };
        let mut failure = RedisError::from((ErrorKind::Client, "no Sentinel is named"));
        for nth in 0..watched.count() {
            let found = async {
                let Some(address) = watched.address(nth, &self.0.trust).await? else {
                    return Err(RedisError::from((ErrorKind::Client, "no such Sentinel")));
                };
                let client = self.0.trust.client(&watched.url(&address))?;
                Ok((as_primary(&client).await?, address))
            };
            match found.await {
                Ok(found) => return Ok(found),
                // What a server says is worth more than that a Sentinel is away.
                Err(error) if nth > 0 && error.is_io_error() => {}
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

fn address_of(client: &Client) -> String {
    client.get_connection_info().addr().to_string()
}

async fn as_primary(client: &Client) -> RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(RESPONSE_MAX));
    let mut connection = client
        .get_multiplexed_async_connection_with_config(&config)
        .await?;
    let role: RedisResult<Vec<Value>> = redis::cmd("ROLE").query_async(&mut connection).await;
    match role {
        Ok(role) => match role.first() {
            Some(Value::BulkString(role)) if role != b"master" => Err(RedisError::from((
                ErrorKind::Server(ServerErrorKind::ReadOnly),
                "the server is a replica, not a primary",
            ))),
            Some(_) | None => Ok(connection),
        },
        // Not allowed to ask, perhaps: a write will show it.
        Err(error) if error.code() == Some("NOPERM") => Ok(connection),
        Err(error) => Err(error),
    }
}
