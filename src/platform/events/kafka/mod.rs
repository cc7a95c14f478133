//! Events by Apache Kafka: one topic a producing role, one consumer group a consuming role.
//!
//! Kafka's transactions are not relied on: the outbox makes sure that everything is said at
//! least once, the inbox that it acts once.

mod consumer;
mod health;
mod progress;
mod publisher;
mod security;

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::types::RDKafkaErrorCode;

use super::Subscription;

pub(super) use self::consumer::run as consume;
pub(super) use self::health::look;
pub(super) use self::publisher::Publisher;
pub use self::security::{KafkaSecurity, Mechanism, Protocol};

/// Where Kafka is and how topics are made there.
#[derive(Clone, Debug)]
pub struct KafkaConfig {
    /// `host:port`, by comma.
    pub brokers: String,
    /// Topics are `<prefix>.<role>`, groups too.
    pub prefix: String,
    /// Of a topic made by us: the bound on consumers side by side, hard to change later.
    pub partitions: i32,
    /// Copies of a topic made by us; 0: three, or as many as there are brokers.
    pub replication: i32,
    /// How the brokers are spoken to.
    pub security: KafkaSecurity,
}

impl KafkaConfig {
    /// The prefix where nobody says otherwise.
    pub const DEFAULT_PREFIX: &'static str = "ticketping";

    #[must_use]
    pub fn new(brokers: impl Into<String>) -> Self {
        Self {
            brokers: brokers.into(),
            prefix: Self::DEFAULT_PREFIX.to_owned(),
            // Enough for a dozen instances of each role; few enough to cost nothing.
            partitions: 12,
            replication: 0,
            security: KafkaSecurity::default(),
        }
    }

    pub(super) fn topic(&self, source: &str) -> String {
        format!("{}.{source}", self.prefix)
    }

    pub(super) fn dead_topic(&self, source: &str) -> String {
        format!("{}.{source}.dlq", self.prefix)
    }

    fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "ticketping")
            // A broker that restarts is back within seconds; so are we. Nothing below waits for
            // longer than a few seconds before it tries again: the defaults (30 s and more) are
            // what makes events late after a broker is back.
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "1000")
            .set("retry.backoff.ms", "100")
            .set("retry.backoff.max.ms", "1000")
            // A broker that is frozen or cut off takes connections or packets without a word.
            .set("socket.connection.setup.timeout.ms", "3000")
            .set("socket.timeout.ms", "10000")
            .set("socket.keepalive.enable", "true")
            .set("topic.metadata.refresh.fast.interval.ms", "250")
            .set("topic.metadata.refresh.interval.ms", "60000")
            .set("allow.auto.create.topics", "false");
        self.security.apply(&mut client);
        client
    }
}

/// Labels of the lag metric.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct LagOf {
    pub consumer: &'static str,
    pub topic: String,
}

/// A week: longer than any outage that we want to sleep through.
const RETENTION_MS: &str = "604800000";
/// Dead letters wait for people.
const DEAD_RETENTION_MS: &str = "2592000000";
/// Copies of a topic that losing a broker leaves whole and writable.
const COPIES: i32 = 3;
const ADMIN_MAX: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);

/// Makes the topics of these roles, and their `.dlq`s, where they are missing. Waits for the
/// brokers as long as it takes.
pub(super) async fn ensure_topics(config: &KafkaConfig, sources: &[&'static str]) {
    if sources.is_empty() {
        // A role that says nothing has no topics; the admin call would refuse an empty list.
        return;
    }
    let mut quiet = false;
    loop {
        match try_ensure(config, sources).await {
            Ok(()) => return,
            Err(error) => {
                if !quiet {
                    tracing::warn!(
                        kafka.brokers = config.brokers,
                        error,
                        "topics wait for Kafka"
                    );
                }
                quiet = true;
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

async fn try_ensure(config: &KafkaConfig, sources: &[&'static str]) -> Result<(), String> {
    let admin: AdminClient<DefaultClientContext> =
        config.client().create().map_err(|e| e.to_string())?;
    let copies = match config.replication {
        0 => copies_of(&config.client()).await?,
        copies => copies,
    };
    // What is acknowledged is on two brokers, and one may be away.
    let in_sync = if copies >= COPIES { "2" } else { "1" };
    let names: Vec<(String, bool)> = sources
        .iter()
        .flat_map(|source| {
            [
                (config.topic(source), false),
                (config.dead_topic(source), true),
            ]
        })
        .collect();
    let topics: Vec<NewTopic<'_>> = names
        .iter()
        .map(|(name, dead)| {
            // Dead letters are few, and their order means nothing.
            let partitions = if *dead { 1 } else { config.partitions };
            NewTopic::new(name, partitions, TopicReplication::Fixed(copies))
                .set("min.insync.replicas", in_sync)
                .set("cleanup.policy", "delete")
                .set(
                    "retention.ms",
                    if *dead {
                        DEAD_RETENTION_MS
                    } else {
                        RETENTION_MS
                    },
                )
        })
        .collect();
    let options = AdminOptions::new()
        .request_timeout(Some(ADMIN_MAX))
        .operation_timeout(Some(ADMIN_MAX));
    let made = admin
        .create_topics(&topics, &options)
        .await
        .map_err(|e| e.to_string())?;
    for result in made {
        match result {
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((name, code)) => return Err(format!("cannot make topic {name}: {code}")),
        }
    }
    Ok(())
}

/// As many copies as there are brokers for, up to [`COPIES`].
async fn copies_of(client: &ClientConfig) -> Result<i32, String> {
    let client = client.clone();
    // The client's own call blocks its thread until there is an answer.
    let asked = tokio::task::spawn_blocking(move || {
        let asker: BaseConsumer = client.create().map_err(|e| e.to_string())?;
        let metadata = asker.fetch_metadata(None, ADMIN_MAX);
        metadata
            .map(|metadata| metadata.brokers().len())
            .map_err(|e| e.to_string())
    });
    let brokers = asked.await.map_err(|e| e.to_string())??;
    Ok(i32::try_from(brokers).unwrap_or(COPIES).clamp(1, COPIES))
}

/// What a consumer's group may be behind in.
pub(super) fn lag_labels(config: &KafkaConfig, group: &[Subscription]) -> Vec<LagOf> {
    sources_of(group)
        .into_iter()
        .map(|source| LagOf {
            consumer: group[0].consumer,
            topic: config.topic(source),
        })
        .collect()
}

fn sources_of(group: &[Subscription]) -> Vec<&'static str> {
    let mut sources: Vec<&'static str> = group
        .iter()
        .flat_map(|one| one.sources.iter().copied())
        .collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}
