//! One Redis handle for a single server, a primary that Sentinels watch, or a Cluster.
//!
//! URL forms: `redis://[:password@]host:port[/db]`,
//! `redis+cluster://[:password@]host:port,host:port`,
//! `redis+sentinel://[:password@]host:port,host:port/service[/db]` (see [`sentinel`]); with
//! `rediss` in place of `redis`, TLS to every server and Sentinel.

mod follow;
mod health;
mod sentinel;

use std::{path::Path, sync::Arc, time::Duration};

pub use self::health::{Writable, watch_writes};
use self::{
    follow::{Follow, Source},
    sentinel::Watched,
};
use redis::{
    Client, Cmd, Pipeline, RedisError, RedisFuture, RedisResult, TlsCertificates, Value,
    aio::ConnectionLike, cluster::ClusterClientBuilder, cluster_async::ClusterConnection,
};

/// A command that takes longer than this is given up: the caller answers 503.
pub const RESPONSE_MAX: Duration = Duration::from_secs(2);
/// Connecting takes a loopback or a data centre, not a continent.
const CONNECT_MAX: Duration = Duration::from_secs(2);

/// What keys begin with where nobody says otherwise.
pub const DEFAULT_PREFIX: &str = "tp";

/// The scheme of a URL: how it is spoken, and what is behind it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Single,
    Cluster,
    Sentinel,
}

/// The form of `url`, the scheme of one server of it, and the rest behind `://`.
fn form(url: &str) -> Option<(Form, &'static str, &str)> {
    let (scheme, rest) = url.split_once("://")?;
    Some(match scheme {
        "redis" => (Form::Single, "redis", rest),
        "rediss" => (Form::Single, "rediss", rest),
        "redis+cluster" => (Form::Cluster, "redis", rest),
        "rediss+cluster" => (Form::Cluster, "rediss", rest),
        "redis+sentinel" => (Form::Sentinel, "redis", rest),
        "rediss+sentinel" => (Form::Sentinel, "rediss", rest),
        _ => return None,
    })
}

/// Whether `url` is of one of the forms above; nothing is connected.
///
/// # Errors
/// What is wrong with it; the message shows no password.
pub fn check_url(url: &str) -> Result<(), String> {
    match form(url) {
        Some((Form::Sentinel, scheme, rest)) => Watched::parse(scheme, rest).map(drop),
        Some((Form::Cluster, scheme, rest)) => {
            let (auth, hosts) = split_auth(rest);
            hosts
                .split(',')
                .try_for_each(|host| check_url(&format!("{scheme}://{auth}{host}")))
        }
        Some((Form::Single, ..)) | None => Client::open(url).map(drop).map_err(malformed),
    }
}

fn malformed(error: RedisError) -> String {
    format!(
        "the Redis URL is malformed ({error}); want redis://[:password@]host:port[/db], \
         redis+cluster://[:password@]host:port,host:port or redis+sentinel://[:password@]host:port,host:port/service[/db], \
         or the same with rediss for TLS"
    )
}

/// The certificates that Redis servers are checked against: those of a file, or the public ones.
#[derive(Clone, Debug, Default)]
pub struct Trust(Option<Arc<[u8]>>);

impl Trust {
    /// The certificate authorities in `pem`, and no other.
    ///
    /// # Errors
    /// When there is no certificate in it.
    pub fn only(pem: &[u8]) -> Result<Self, String> {
        let has_one = String::from_utf8_lossy(pem).contains("-----BEGIN CERTIFICATE-----");
        has_one
            .then(|| Self(Some(pem.into())))
            .ok_or_else(|| "the file holds no certificate in PEM form".to_owned())
    }

    /// The certificate authorities in `file`; the public ones without a file.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no certificate; names it.
    pub fn of_file(file: Option<&Path>) -> Result<Self, String> {
        let Some(file) = file else {
            return Ok(Self::default());
        };
        let fail = |e: &dyn std::fmt::Display| format!("--redis-ca {}: {e}", file.display());
        let pem = std::fs::read(file).map_err(|e| fail(&e))?;
        Self::only(&pem).map_err(|e| fail(&e))
    }

    fn certificates(&self) -> Option<TlsCertificates> {
        self.0.as_ref().map(|pem| TlsCertificates {
            client_tls: None,
            root_cert: Some(pem.to_vec()),
        })
    }

    /// A client of the one server at `url`.
    ///
    /// # Errors
    /// When the URL or the certificates cannot be read.
    pub fn client(&self, url: &str) -> RedisResult<Client> {
        match self.certificates() {
            Some(certificates) if url.starts_with("rediss://") => {
                Client::build_with_tls(url, certificates)
            }
            Some(_) | None => Client::open(url),
        }
    }
}

/// A multiplexed, self-healing connection. Cheap to clone.
#[derive(Clone)]
pub struct Redis {
    inner: Inner,
    url: String,
    trust: Trust,
}

#[derive(Clone)]
enum Inner {
    /// One server, or the primary that Sentinels name.
    Followed(Follow),
    Cluster(ClusterConnection),
}

impl Redis {
    /// Connects to `url`.
    ///
    /// # Errors
    /// One sentence: a malformed URL, or no Redis there.
    pub async fn connect(url: &str) -> Result<Self, String> {
        Self::connect_trusting(url, Trust::default()).await
    }

    /// Connects to `url`; servers that speak TLS are checked against `trust`.
    ///
    /// # Errors
    /// One sentence: a malformed URL, or no Redis there.
    pub async fn connect_trusting(url: &str, trust: Trust) -> Result<Self, String> {
        let inner = match form(url) {
            Some((Form::Cluster, scheme, rest)) => {
                Inner::Cluster(cluster(scheme, rest, &trust).await?)
            }
            Some((Form::Sentinel, scheme, rest)) => {
                let watched = Watched::parse(scheme, rest)?;
                Inner::Followed(Follow::connect(Source::Sentinels(watched), trust.clone()).await?)
            }
            Some((Form::Single, ..)) | None => {
                let client = trust.client(url).map_err(malformed)?;
                Inner::Followed(Follow::connect(Source::Server(client), trust.clone()).await?)
            }
        };
        Ok(Self {
            inner,
            url: url.to_owned(),
            trust,
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
            Inner::Followed(followed) => {
                return Ok(vec![
                    followed
                        .primary()
                        .await?
                        .unwrap_or_else(|| self.url.clone()),
                ]);
            }
            Inner::Cluster(connection) => connection,
        };
        let Some((_, scheme, rest)) = form(&self.url) else {
            return Ok(Vec::new());
        };
        let (auth, _) = split_auth(rest);
        let nodes: String = redis::cmd("CLUSTER")
            .arg("NODES")
            .query_async(connection)
            .await?;
        Ok(nodes
            .lines()
            .filter(|line| line.contains("master") && !line.contains("fail"))
            .filter_map(|line| line.split(' ').nth(1))
            .filter_map(|address| address.split('@').next())
            .map(|address| format!("{scheme}://{auth}{address}"))
            .collect())
    }

    /// A client of one of [`Redis::primaries`], with this handle's trust.
    ///
    /// # Errors
    /// When `url` is malformed.
    pub fn client_of(&self, url: &str) -> RedisResult<Client> {
        self.trust.client(url)
    }

    /// Whether keys are spread over several primaries.
    pub fn is_cluster(&self) -> bool {
        matches!(self.inner, Inner::Cluster(_))
    }
}

fn split_auth(rest: &str) -> (String, &str) {
    match rest.rsplit_once('@') {
        Some((auth, hosts)) => (format!("{auth}@"), hosts),
        None => (String::new(), rest),
    }
}

async fn cluster(scheme: &str, rest: &str, trust: &Trust) -> Result<ClusterConnection, String> {
    let (auth, hosts) = split_auth(rest);
    let nodes: Vec<String> = hosts
        .split(',')
        .map(|h| format!("{scheme}://{auth}{h}"))
        .collect();
    let mut builder = ClusterClientBuilder::new(nodes)
        .connection_timeout(CONNECT_MAX)
        .response_timeout(RESPONSE_MAX);
    if let Some(certificates) = trust.certificates().filter(|_| scheme == "rediss") {
        builder = builder.certs(certificates);
    }
    let client = builder
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
            Inner::Followed(c) => Box::pin(c.command(cmd)),
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
            Inner::Followed(c) => Box::pin(c.commands(pipeline, offset, count)),
            Inner::Cluster(c) => c.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.inner {
            Inner::Followed(c) => c.db(),
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
            "rediss+sentinel://:secret@10.0.0.1:26379,10.0.0.2:26379/tickets",
            "rediss+cluster://:secret@10.0.0.1:7000,10.0.0.2:7000",
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
