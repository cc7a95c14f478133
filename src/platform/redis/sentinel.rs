//! The primary of one service, as its Sentinels name it.
//!
//! A failover shows in three ways: the connection breaks, the server says that it is a
//! replica now, or the Sentinels name another one (asked whenever subscriptions are looked
//! after). After each, the next command asks the Sentinels again. A command that may have
//! run is never sent twice; one that a replica refused is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind, IntoConnectionInfo, Pipeline, RedisError, RedisResult,
    ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};
use url::Url;

use super::{CONNECT_MAX, RESPONSE_MAX, split_auth};

/// Where a Sentinel listens unless the URL says so.
const PORT: u16 = 26_379;
/// While there is no primary, the Sentinels are asked this often at most; whoever comes in
/// between hears at once that there is none.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// What `redis+sentinel://` names.
#[derive(Clone)]
pub(super) struct Watched {
    /// Plain URLs of the Sentinels.
    sentinels: Vec<String>,
    service: String,
    /// `user:password@` of the primary, as in the URL; empty without.
    auth: String,
    db: i64,
}

impl Watched {
    /// Reads `[user:password@]host[:port],…/service[/db][?sentinel_password=…&sentinel_user=…]`.
    ///
    /// # Errors
    /// What is wrong; the message shows no password.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (auth, rest) = split_auth(rest);
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (service, db) = match *path.split('/').collect::<Vec<_>>() {
            [] | [""] => {
                return Err("the Redis URL names no service that the Sentinels watch; want redis+sentinel://host:port,host:port/service".into());
            }
            [service] => (service, 0),
            [service, db] => (
                service,
                db.parse().map_err(|_| {
                    format!("the Redis URL has \"{db}\" where a database's number belongs")
                })?,
            ),
            _ => return Err("the Redis URL must name one service and at most one database: redis+sentinel://host:port/service/db".into()),
        };
        let (mut user, mut password) = (String::new(), String::new());
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            match name.as_ref() {
                "sentinel_user" => user = value.into_owned(),
                "sentinel_password" => password = value.into_owned(),
                other => {
                    return Err(format!(
                        "the Redis URL has an unknown parameter \"{other}\"; want sentinel_user or sentinel_password"
                    ));
                }
            }
        }
        let sentinels = hosts
            .split(',')
            .map(|host| sentinel_url(host, &user, &password))
            .collect::<Result<_, _>>()?;
        let watched = Self {
            sentinels,
            service: service.to_owned(),
            auth,
            db,
        };
        // The login must be one, too.
        watched
            .node("127.0.0.1:1")
            .map_err(|e| format!("the Redis URL is malformed ({e})"))?;
        Ok(watched)
    }

    fn url(&self, address: &str) -> String {
        format!("redis://{}{address}/{}", self.auth, self.db)
    }

    fn node(&self, address: &str) -> RedisResult<SentinelNodeConnectionInfo> {
        let info = self.url(address).into_connection_info()?;
        Ok(SentinelNodeConnectionInfo::default()
            .set_redis_connection_info(info.redis_settings().clone()))
    }
}

fn sentinel_url(host: &str, user: &str, password: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err("the Redis URL names no Sentinel in one place; want redis+sentinel://host:port,host:port/service".into());
    }
    let wrong = |e: &dyn std::fmt::Display| {
        format!("\"{host}\" is no Sentinel's address ({e}); want host:port")
    };
    let mut url = Url::parse(&format!("redis://{host}")).map_err(|e| wrong(&e))?;
    if url.port().is_none() {
        url.set_port(Some(PORT))
            .map_err(|()| wrong(&"it has no host"))?;
    }
    if !password.is_empty() {
        url.set_username(user)
            .and_then(|()| url.set_password(Some(password)))
            .map_err(|()| wrong(&"it has no host"))?;
    }
    Ok(url.into())
}

/// A connection that follows the primary. Cheap to clone.
#[derive(Clone)]
pub(super) struct Sentinels(Arc<Shared>);

struct Shared {
    watched: Watched,
    finder: tokio::sync::Mutex<Finder>,
    current: ArcSwapOption<Primary>,
    made: AtomicU64,
}

struct Finder {
    sentinel: Sentinel,
    failed: Option<(Instant, RedisError)>,
}

struct Primary {
    connection: MultiplexedConnection,
    address: String,
    /// Tells this connection from those before it.
    nth: u64,
}

impl Sentinels {
    /// Asks the Sentinels and connects to the primary.
    ///
    /// # Errors
    /// One sentence.
    pub(super) async fn connect(watched: Watched) -> Result<Self, String> {
        let sentinel = Sentinel::build(watched.sentinels.clone())
            .map_err(|e| format!("the Redis URL is malformed ({e})"))?;
        let service = watched.service.clone();
        let sentinels = Self(Arc::new(Shared {
            watched,
            finder: tokio::sync::Mutex::new(Finder {
                sentinel,
                failed: None,
            }),
            current: ArcSwapOption::empty(),
            made: AtomicU64::new(0),
        }));
        match sentinels.connected().await {
            Ok(_) => Ok(sentinels),
            Err(error) => Err(format!(
                "the Sentinels name no usable primary of \"{service}\": {error}"
            )),
        }
    }

    /// The URL of the primary as the Sentinels name it now; where that is another one than
    /// before, commands go there from now on.
    pub(super) async fn primary(&self) -> RedisResult<String> {
        let mut finder = self.0.finder.lock().await;
        let address = self.find(&mut finder.sentinel).await?.1;
        let stale = |p: &Arc<Primary>| p.address != address;
        if let Some(known) = self.0.current.load_full().filter(stale) {
            self.forget(known.nth);
        }
        Ok(self.0.watched.url(&address))
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
        self.0.watched.db
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
        let mut finder = self.0.finder.lock().await;
        if let Some(primary) = self.0.current.load_full() {
            return Ok(primary);
        }
        if let Some((at, error)) = &finder.failed
            && at.elapsed() < ASK_EVERY
        {
            return Err(error.clone());
        }
        match self.reach(&mut finder.sentinel).await {
            Ok(primary) => {
                finder.failed = None;
                let primary = Arc::new(primary);
                self.0.current.store(Some(primary.clone()));
                Ok(primary)
            }
            Err(error) => {
                finder.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    async fn reach(&self, sentinel: &mut Sentinel) -> RedisResult<Primary> {
        let (client, address) = self.find(sentinel).await?;
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_MAX))
            .set_response_timeout(Some(RESPONSE_MAX));
        let connection = client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        let nth = self.0.made.fetch_add(1, Relaxed);
        if nth > 0 {
            tracing::info!(redis.primary = %address, "the Sentinels' primary is connected");
        }
        Ok(Primary {
            connection,
            address,
            nth,
        })
    }

    /// The primary that the Sentinels name and that says itself that it is one.
    async fn find(&self, sentinel: &mut Sentinel) -> RedisResult<(redis::Client, String)> {
        let watched = &self.0.watched;
        let node = watched.node("127.0.0.1:1")?;
        let asked = sentinel.async_master_for(&watched.service, Some(&node));
        let client = tokio::time::timeout(CONNECT_MAX, asked)
            .await
            .map_err(|_| {
                RedisError::from((ErrorKind::Io, "the Sentinels did not answer in time"))
            })??;
        let address = match client.get_connection_info().addr() {
            redis::ConnectionAddr::Tcp(host, port) if host.contains(':') => {
                format!("[{host}]:{port}")
            }
            other => other.to_string(),
        };
        Ok((client, address))
    }
}
