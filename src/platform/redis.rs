//! One Redis handle for a single server or a Cluster.
//!
//! URL forms: `redis://[:password@]host:port[/db]`, `rediss://…`,
//! `redis+cluster://[:password@]host:port,host:port`. Sentinel is not spoken yet: name the
//! address that follows the primary.

use std::time::Duration;

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

/// Whether `url` is of one of the forms above; nothing is connected.
///
/// # Errors
/// What is wrong with it; the message shows no password.
pub fn check_url(url: &str) -> Result<(), String> {
    if let Some(rest) = url.strip_prefix("redis+cluster://") {
        let (auth, hosts) = split_auth(rest);
        return hosts
            .split(',')
            .try_for_each(|host| check_url(&format!("redis://{auth}{host}")));
    }
    Client::open(url).map(|_| ()).map_err(|e| {
        format!("the Redis URL is malformed ({e}); want redis://[:password@]host:port")
    })
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
    Cluster(ClusterConnection),
}

impl Redis {
    /// Connects to `url`.
    ///
    /// # Errors
    /// One sentence: a malformed URL, or no Redis there.
    pub async fn connect(url: &str) -> Result<Self, String> {
        let inner = if let Some(rest) = url.strip_prefix("redis+cluster://") {
            Inner::Cluster(cluster(rest).await?)
        } else {
            Inner::Single(single(url).await?)
        };
        Ok(Self {
            inner,
            url: url.to_owned(),
        })
    }

    /// Every server that notifications must be subscribed on, as plain URLs.
    /// With Cluster that is each primary, asked of the cluster now.
    ///
    /// # Errors
    /// When the cluster cannot be asked.
    pub async fn primaries(&mut self) -> Result<Vec<String>, RedisError> {
        let Inner::Cluster(connection) = &mut self.inner else {
            return Ok(vec![self.url.clone()]);
        };
        let (auth, _) = split_auth(self.url.trim_start_matches("redis+cluster://"));
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
    let client = Client::open(url).map_err(|e| {
        format!("the Redis URL is malformed ({e}); want redis://[:password@]host:port")
    })?;
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
            Inner::Cluster(c) => c.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.inner {
            Inner::Single(c) => c.get_db(),
            Inner::Cluster(c) => c.get_db(),
        }
    }
}
