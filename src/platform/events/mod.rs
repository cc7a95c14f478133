//! Events between roles: said once in the transaction of the change, heard once in
//! the transaction of the effect.
//!
//! A role that changes its state appends an outbox row in the same transaction
//! ([`outbox::append`]), commits, and calls [`OutboxSignal::wake`]. The [`relay`] hands
//! the row on, in order for each key, and marks it published only once it arrived:
//! without Kafka when every subscribed handler has returned, with Kafka after the
//! delivery report. A consumer keeps an inbox ([`inbox::first_time`]) in the transaction
//! of its effect, so that an event handed over twice acts once. What cannot be handled
//! for its own fault goes to the consumer's `dead_letters` and never blocks the rest.
//!
//! Every producing schema has the table `outbox`, every consuming one `inbox` and
//! `dead_letters`; each role copies [`outbox::DDL`], [`inbox::DDL`] and [`dead::DDL`]
//! into a migration of its own.

mod consume;
pub mod dead;
pub mod error;
pub mod figures;
pub mod inbox;
pub mod kafka;
pub mod local;
pub mod outbox;
pub mod relay;
mod shards;

use std::future::Future;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::metrics::Metrics;
use super::tasks::Tasks;

pub use error::HandlerError;
pub use figures::{Figures, Watch};
pub use kafka::KafkaConfig;
pub use outbox::{NewEvent, OutboxSignal};

/// An event as others see it: CloudEvents 1.0, structured JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Event {
    specversion: SpecVersion,
    pub id: Uuid,
    /// The producing role, such as `reservations`.
    pub source: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// The key: the order or performance this is about. Order is kept within a key.
    pub subject: String,
    pub time: DateTime<Utc>,
    #[serde(default = "json_type")]
    datacontenttype: String,
    /// The trace that it was said in, where traces are on: the distributed tracing extension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    pub data: Box<RawValue>,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
enum SpecVersion {
    #[serde(rename = "1.0")]
    V1,
}

fn json_type() -> String {
    "application/json".to_owned()
}

impl Event {
    pub fn new(
        id: Uuid,
        source: impl Into<String>,
        kind: impl Into<String>,
        subject: impl Into<String>,
        time: DateTime<Utc>,
        data: Box<RawValue>,
    ) -> Self {
        Self {
            specversion: SpecVersion::V1,
            id,
            source: source.into(),
            kind: kind.into(),
            subject: subject.into(),
            time,
            datacontenttype: json_type(),
            traceparent: None,
            data,
        }
    }

    /// Reads the data; data of another shape is the message's own fault.
    pub fn data<T: DeserializeOwned>(&self) -> Result<T, HandlerError> {
        serde_json::from_str(self.data.get()).map_err(HandlerError::poison)
    }
}

/// What a consumer does with an event. It must be idempotent: through the inbox where
/// the effect is in Postgres, by its own nature elsewhere.
pub trait Handler: Send + Sync {
    fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandlerError>>;
}

/// A handler from an async closure that takes the event by value.
pub fn handler<F, Fut>(run: F) -> Arc<dyn Handler>
where
    F: Fn(Event) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
{
    struct FromFn<F>(F);
    impl<F, Fut> Handler for FromFn<F>
    where
        F: Fn(Event) -> Fut + Send + Sync,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        fn handle<'a>(&'a self, event: &'a Event) -> BoxFuture<'a, Result<(), HandlerError>> {
            Box::pin((self.0)(event.clone()))
        }
    }
    Arc::new(FromFn(run))
}

/// What one role wants to hear.
#[derive(Clone)]
pub struct Subscription {
    /// The consuming role; also its inbox name and, with Kafka, its group.
    pub consumer: &'static str,
    /// Producing roles to listen to (Kafka topics), such as `["payments"]`.
    pub sources: &'static [&'static str],
    /// Types wanted; others pass by unseen.
    pub types: &'static [&'static str],
    pub handler: Arc<dyn Handler>,
    /// The consumer's own schema, for its dead letters and the cleaning of its inbox.
    pub pool: PgPool,
}

impl Subscription {
    #[must_use]
    pub fn wants(&self, event: &Event) -> bool {
        self.sources.contains(&event.source.as_str()) && self.types.contains(&event.kind.as_str())
    }
}

/// A producing role's outbox, as the relay needs to know it.
#[derive(Clone)]
pub struct Outbox {
    /// The producing role: the event's source and, with Kafka, its topic.
    pub source: &'static str,
    pub pool: PgPool,
    pub signal: OutboxSignal,
}

/// How events travel between the roles of this process, or of many.
pub enum Bus {
    /// Handed to the handlers of this same process.
    Local,
    Kafka(KafkaConfig),
}

impl Bus {
    /// Starts the relays of `outboxes` and the consumers of `subscriptions`.
    ///
    /// # Errors
    /// When the configuration of Kafka cannot be used. Brokers that are away are waited for.
    pub fn start(
        self,
        outboxes: Vec<Outbox>,
        subscriptions: Vec<Subscription>,
        tasks: &Tasks,
        metrics: &Metrics,
    ) -> Result<Figures, String> {
        let groups = by_consumer(&subscriptions);
        let figures = self.figures(&outboxes, &groups, metrics);
        let houses = groups
            .iter()
            .map(|group| (group[0].consumer, group[0].pool.clone()))
            .collect();
        figures.keep_fresh(outboxes.clone(), houses, tasks);
        let stop = tasks.token();
        for group in &groups {
            let (first, token) = (group[0].clone(), stop.clone());
            tasks.spawn("inbox-cleaner", move || {
                keep_house(first.clone(), token.clone())
            });
            let (group, token) = (group.clone(), stop.clone());
            tasks.spawn("dead-letter-replay", move || {
                dead::serve_replays(group.clone(), token.clone())
            });
        }
        let delivery = match self {
            Self::Local => relay::Delivery::Local(Arc::new(local::Dispatcher::new(subscriptions))),
            Self::Kafka(config) => {
                let publisher = Arc::new(kafka::Publisher::new(config.clone())?);
                for group in groups {
                    let (config, publisher) = (config.clone(), publisher.clone());
                    let (lag, stop) = (figures.lag(), stop.clone());
                    tasks.spawn("kafka-consumer", move || {
                        let (group, lag) = (group.clone(), lag.clone());
                        kafka::consume(config.clone(), group, publisher.clone(), lag, stop.clone())
                    });
                }
                let (asked, brokers, token) = (publisher.clone(), figures.brokers(), stop.clone());
                tasks.spawn("kafka-health", move || {
                    kafka::look(asked.clone(), brokers.clone(), token.clone())
                });
                let sources: Vec<_> = outboxes.iter().map(|outbox| outbox.source).collect();
                let token = stop.clone();
                tasks.spawn_once("kafka-topics", move || {
                    make_topics(config.clone(), sources.clone(), token.clone())
                });
                relay::Delivery::Kafka(publisher)
            }
        };
        for outbox in outboxes {
            let (said, delivery, leases) = (outbox.clone(), delivery.clone(), metrics.leases());
            let token = stop.clone();
            tasks.spawn("outbox-relay", move || {
                relay::run(
                    said.clone(),
                    delivery.clone(),
                    leases.clone(),
                    token.clone(),
                )
            });
            let token = stop.clone();
            tasks.spawn("outbox-cleaner", move || {
                clean_outbox(outbox.clone(), token.clone())
            });
        }
        Ok(figures)
    }

    fn figures(
        &self,
        outboxes: &[Outbox],
        groups: &[Vec<Subscription>],
        metrics: &Metrics,
    ) -> Figures {
        let lag = match self {
            Self::Local => None,
            Self::Kafka(config) => {
                let topics = groups
                    .iter()
                    .flat_map(|group| kafka::lag_labels(config, group));
                Some(topics.collect())
            }
        };
        let producers = outboxes.iter().map(|outbox| outbox.source).collect();
        let consumers = groups.iter().map(|group| group[0].consumer).collect();
        Figures::new(producers, consumers, lag, metrics)
    }
}

/// Topics of what this process says; the relay's sends wait for them by themselves.
async fn make_topics(config: KafkaConfig, sources: Vec<&'static str>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = kafka::ensure_topics(&config, &sources) => {}
    }
}

fn by_consumer(subscriptions: &[Subscription]) -> Vec<Vec<Subscription>> {
    let mut groups: Vec<Vec<Subscription>> = Vec::new();
    for subscription in subscriptions {
        match groups
            .iter_mut()
            .find(|group| group[0].consumer == subscription.consumer)
        {
            Some(group) => group.push(subscription.clone()),
            None => groups.push(vec![subscription.clone()]),
        }
    }
    groups
}

/// Deletes the outbox's old rows beside the relay, which must not wait for that.
async fn clean_outbox(outbox: Outbox, stop: CancellationToken) {
    use std::time::Duration;
    /// Published rows stay this long, to be looked at by `ticketping events list`.
    const KEEP_HOURS: i64 = 24;
    const EVERY: Duration = Duration::from_secs(60);
    /// Between two batches: about ten times as many rows a second as a busy sale writes.
    const PAUSE: Duration = Duration::from_millis(100);
    let mut pause = EVERY;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = match outbox::clean(&outbox.pool, chrono::Duration::hours(KEEP_HOURS)).await {
            Ok(true) => PAUSE,
            Ok(false) => EVERY,
            Err(error) => {
                tracing::warn!(outbox = outbox.source, %error, "outbox not cleaned this time");
                EVERY
            }
        };
    }
}

/// Keeps a consumer's inbox from growing for ever.
async fn keep_house(subscription: Subscription, stop: CancellationToken) {
    const EVERY: std::time::Duration = std::time::Duration::from_secs(3_600);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        if let Err(error) = inbox::clean(&subscription.pool, subscription.consumer).await {
            tracing::warn!(consumer = subscription.consumer, %error, "inbox not cleaned this time");
        }
    }
}
