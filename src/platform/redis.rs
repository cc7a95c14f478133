//! One Redis handle for a single server, a primary that Sentinels watch, or a Cluster.
//!
//! URL forms: `redis://[:password@]host:port[/db]`, `rediss://…`,
//! `redis+cluster://[:password@]host:port,host:port`,
//! `redis+sentinel://[:password@]host:port,host:port/service[/db]` (see [`sentinel`]).

mod sentinel;

use std::time::Duration;

use self::sentinel::{Sentinels, Watched};
use redis::{
    Client, Cmd, Pipeline, RedisError, RedisFuture, Value,
    aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClientBuilder,
    cluster_async::ClusterConnection,
};

/// A command that takes longer than this is given up: the caller answers 503.
const RESPONSE_MAX: Duration = Duration::from_secs(2);
/// Connecting takes a loopback or a data centre, not a continent.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// What keys begin with where nobody says otherwise.
pub const DEFAULT_PREFIX: &str = "tp";

const CLUSTER: &str = "redis+cluster://";
const SENTINEL: &str = "redis+sentinel://";

/// Whether `url` is of one of the forms above; nothing is connected.
///
/// # Errors
/// What is wrong with it; the message shows no password.
pub fn check_url(url: &str) -> Result<(), String> {
    if let Some(rest) = url.strip_prefix(SENTINEL) {
        return Watched::parse(rest).map(drop);
    }
    if let Some(rest) = url.strip_prefix(CLUSTER) {
        let (auth, hosts) = split_auth(rest);
        return hosts
            .split(',')
            .try_for_each(|host| check_url(&format!("redis://{auth}{host}")));
    }
    Client::open(url).map(drop).map_err(malformed)
}

fn malformed(error: RedisError) -> String {
    format!(
        "the Redis URL is malformed ({error}); want redis://[:password@]host:port[/db], rediss://…, \
         redis+cluster://[:password@]host:port,host:port or redis+sentinel://[:password@]host:port,host:port/service[/db]"
    )
}

/// A multiplexed, self-healing connection. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Inner,
    url: String,
}

#[derive(Clone)]
enum Inner {
    Single(ConnectionManager),
    Watched(Sentinels),
    Cluster(ClusterConnection),
}

impl Redis {
    /// Connects to `url`.
    ///
    /// # Errors
    /// One sentence: a malformed URL, or no Redis there.
    pub async fn connect(url: &str) -> Result<Self, String> {
        let inner = if let Some(rest) = url.strip_prefix(CLUSTER) {
            Inner::Cluster(cluster(rest).await?)
        } else if let Some(rest) = url.strip_prefix(SENTINEL) {
            Inner::Watched(Sentinels::connect(Watched::parse(rest)?).await?)
        } else {
            Inner::Single(single(url).await?)
        };
        Ok(Self {
            inner,
            url: url.to_owned(),
        })
    }

    /// Every server that notifications must be subscribed on, as plain URLs.
    /// With Cluster that is each primary, asked of the cluster now; with Sentinel the
    /// primary that they name now.
    ///
    /// # Errors
    /// When the cluster or the Sentinels cannot be asked.
    pub async fn primaries(&mut self) -> Result<Vec<String>, RedisError> {
        let connection = match &mut self.inner {
            Inner::Single(_) => return Ok(vec![self.url.clone()]),
            Inner::Watched(sentinels) => return Ok(vec![sentinels.primary().await?]),
            Inner::Cluster(connection) => connection,
        };
        let (auth, _) = split_auth(self.url.trim_start_matches(CLUSTER));
        let nodes: String = redis::cmd("CLUSTER")
            .arg("NODES")
            .query_async(connection)
            .await?;
        Ok(nodes
            .lines()
            .filter(|line| line.contains("master") && !line.contains("fail"))
            .filter_map(|line| line.split(' ').nth(1))
            .filter_map(|address| address.split('@').next())
            .map(|address| format!("redis://{auth}{address}"))
            .collect())
    }
}

fn split_auth(rest: &str) -> (String, &str) {
    match rest.rsplit_once('@') {
        Some((auth, hosts)) => (format!("{auth}@"), hosts),
        None => (String::new(), rest),
    }
}

async fn single(url: &str) -> Result<ConnectionManager, String> {
    let client = Client::open(url).map_err(malformed)?;
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_MAX))
        .set_response_timeout(Some(RESPONSE_MAX))
        .set_number_of_retries(2)
        .set_max_delay(Duration::from_millis(500));
    let address = client.get_connection_info().addr().to_string();
    ConnectionManager::new_with_config(client, config)
        .await
        .map_err(|e| format!("no Redis at {address}: {e}"))
}

async fn cluster(rest: &str) -> Result<ClusterConnection, String> {
    let (auth, hosts) = split_auth(rest);
    let nodes: Vec<String> = hosts
        .split(',')
        .map(|h| format!("redis://{auth}{h}"))
        .collect();
    let client = ClusterClientBuilder::new(nodes)
        .connection_timeout(CONNECT_MAX)
        .response_timeout(RESPONSE_MAX)
        .build()
        .map_err(|e| format!("the Redis Cluster URL is malformed: {e}"))?;
    client
        .get_async_connection()
        .await
        .map_err(|e| format!("no Redis Cluster at {hosts}: {e}"))
}

impl ConnectionLike for Redis {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.inner {
            Inner::Single(c) => c.req_packed_command(cmd),
            Inner::Watched(c) => Box::pin(c.command(cmd)),
            Inner::Cluster(c) => c.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.inner {
            Inner::Single(c) => c.req_packed_commands(pipeline, offset, count),
            Inner::Watched(c) => Box::pin(c.commands(pipeline, offset, count)),
            Inner::Cluster(c) => c.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.inner {
            Inner::Single(c) => c.get_db(),
            Inner::Watched(c) => c.db(),
            Inner::Cluster(c) => c.get_db(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_is_known_and_what_is_malformed_is_said_without_the_password() {
        for good in [
            "redis://127.0.0.1:6379",
            "redis://:secret@10.0.0.1:6379/2",
            "rediss://redis.example:6380",
            "redis+cluster://:secret@10.0.0.1:7000,10.0.0.2:7000",
            "redis+sentinel://10.0.0.1:26379,10.0.0.2:26379/tickets",
            "redis+sentinel://ada:secret@[::1]:26379,sentinel.example/tickets/3?sentinel_password=other",
        ] {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for (bad, word) in [
            ("http://127.0.0.1:6379", "want redis://"),
            ("redis+cluster://:s3cret@10.0.0.1:x", "malformed"),
            (
                "redis+sentinel://:s3cret@10.0.0.1:26379",
                "names no service",
            ),
            (
                "redis+sentinel://:s3cret@10.0.0.1:26379/",
                "names no service",
            ),
            ("redis+sentinel://:s3cret@/tickets", "names no Sentinel"),
            (
                "redis+sentinel://:s3cret@a:1,,b:2/tickets",
                "names no Sentinel",
            ),
            (
                "redis+sentinel://:s3cret@10.0.0.1:port/tickets",
                "10.0.0.1:port",
            ),
            ("redis+sentinel://:s3cret@a:1/tickets/two", "\"two\""),
            ("redis+sentinel://:s3cret@a:1/tickets/2/3", "one service"),
            (
                "redis+sentinel://:s3cret@a:1/tickets?quorum=2",
                "\"quorum\"",
            ),
        ] {
            let said = check_url(bad).expect_err(bad);
            assert!(said.contains(word), "{bad}: {said}");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }
}
