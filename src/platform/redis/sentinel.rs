//! The primary of one service, as its Sentinels name it.

use redis::{
    AsyncConnectionConfig, Client, ErrorKind, IntoConnectionInfo, RedisError, RedisResult,
};
use url::Url;

use super::{CONNECT_MAX, Trust, split_auth};

/// Where a Sentinel listens unless the URL says so.
const PORT: u16 = 26_379;

/// What `redis+sentinel://` names.
#[derive(Clone)]
pub(super) struct Watched {
    /// URLs of the Sentinels, one server each.
    sentinels: Vec<String>,
    /// What they watch.
    pub(super) service: String,
    /// `redis`, or `rediss` for TLS, to the Sentinels as to the primary.
    scheme: &'static str,
    /// `user:password@` of the primary, as in the URL; empty without.
    auth: String,
    db: i64,
}

impl Watched {
    /// Reads `[user:password@]host[:port],…/service[/db][?sentinel_password=…&sentinel_user=…]`.
    ///
    /// # Errors
    /// What is wrong; the message shows no password.
    pub(super) fn parse(scheme: &'static str, rest: &str) -> Result<Self, String> {
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
            .map(|host| sentinel_url(scheme, host, &user, &password))
            .collect::<Result<_, _>>()?;
        let watched = Self {
            sentinels,
            service: service.to_owned(),
            scheme,
            auth,
            db,
        };
        // The login must be one, too.
        watched
            .url("127.0.0.1:1")
            .into_connection_info()
            .map_err(|e| format!("the Redis URL is malformed ({e})"))?;
        Ok(watched)
    }

    /// The database of the URL.
    pub(super) fn db(&self) -> i64 {
        self.db
    }

    /// The URL of the server at `address`.
    pub(super) fn url(&self, address: &str) -> String {
        format!("{}://{}{address}/{}", self.scheme, self.auth, self.db)
    }

    /// Addresses of the primary, as each Sentinel that answers names it; asked one after the
    /// other, since the first answer is nearly always enough.
    pub(super) async fn address(&self, nth: usize, trust: &Trust) -> RedisResult<Option<String>> {
        let Some(sentinel) = self.sentinels.get(nth) else {
            return Ok(None);
        };
        let mut connection = connect(&trust.client(sentinel)?).await?;
        let named: Option<(String, u16)> = redis::cmd("SENTINEL")
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&self.service)
            .query_async(&mut connection)
            .await?;
        let (host, port) = named.ok_or_else(|| {
            RedisError::from((ErrorKind::Client, "a Sentinel does not know this service"))
        })?;
        Ok(Some(match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        }))
    }

    /// How many Sentinels there are to ask.
    pub(super) fn count(&self) -> usize {
        self.sentinels.len()
    }
}

/// A connection for a question or two.
async fn connect(client: &Client) -> RedisResult<redis::aio::MultiplexedConnection> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(CONNECT_MAX));
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

fn sentinel_url(scheme: &str, host: &str, user: &str, password: &str) -> Result<String, String> {
    if host.is_empty() {
        return Err("the Redis URL names no Sentinel in one place; want redis+sentinel://host:port,host:port/service".into());
    }
    let wrong = |e: &dyn std::fmt::Display| {
        format!("\"{host}\" is no Sentinel's address ({e}); want host:port")
    };
    let mut url = Url::parse(&format!("{scheme}://{host}")).map_err(|e| wrong(&e))?;
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
