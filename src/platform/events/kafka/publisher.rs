//! The producing side: a row is published when the brokers have said so.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

use super::super::Event;
use super::KafkaConfig;

/// How long to wait for room in the client's own queue.
const QUEUE_MAX: Duration = Duration::from_secs(5);
const CONTENT_TYPE: &str = "application/cloudevents+json; charset=UTF-8";

/// A dead letter on its way to its topic.
pub(in super::super) struct Dead<'a> {
    pub source: &'a str,
    pub consumer: &'a str,
    pub key: &'a [u8],
    pub payload: &'a [u8],
    /// Where it stood: topic, partition, offset.
    pub origin: (&'a str, i32, i64),
    pub error: &'a str,
}

/// An idempotent producer. One event of a key is under way at a time (the relay sees to it),
/// so that even a message given up here after half a minute keeps its place.
pub(in super::super) struct Publisher {
    config: KafkaConfig,
    producer: Mutex<Arc<FutureProducer>>,
}

impl Publisher {
    pub(in super::super) fn new(config: KafkaConfig) -> Result<Self, String> {
        let producer = Mutex::new(Arc::new(make(&config)?));
        Ok(Self { config, producer })
    }

    /// Returns once the brokers have it on as many disks as they promise.
    pub(in super::super) async fn publish(&self, event: &Event) -> Result<(), anyhow::Error> {
        let payload = serde_json::to_vec(event)?;
        let id = event.id.to_string();
        let headers = OwnedHeaders::new()
            .insert(header("content-type", CONTENT_TYPE))
            .insert(header("ce_id", &id))
            .insert(header("ce_type", &event.kind))
            .insert(header("ce_source", &event.source));
        let topic = self.config.topic(&event.source);
        let record = FutureRecord::to(&topic)
            .key(event.subject.as_str())
            .payload(&payload)
            .timestamp(event.time.timestamp_millis())
            .headers(headers);
        self.send(record).await
    }

    /// Puts a message that cannot be handled aside, with what is known about it.
    pub(in super::super) async fn bury(&self, dead: &Dead<'_>) -> Result<(), anyhow::Error> {
        let (topic, partition, offset) = dead.origin;
        let headers = OwnedHeaders::new()
            .insert(header("dlq_topic", topic))
            .insert(header("dlq_partition", &partition.to_string()))
            .insert(header("dlq_offset", &offset.to_string()))
            .insert(header("dlq_consumer", dead.consumer))
            .insert(header("dlq_error", dead.error));
        let topic = self.config.dead_topic(dead.source);
        let record = FutureRecord::to(&topic)
            .key(dead.key)
            .payload(dead.payload)
            .headers(headers);
        self.send(record).await
    }

    /// How many brokers there are; blocks until they say so, at most `wait`.
    pub(super) fn brokers(&self, wait: Duration) -> Result<usize, String> {
        let metadata = self.current().client().fetch_metadata(None, wait);
        metadata
            .map(|metadata| metadata.brokers().len())
            .map_err(|error| format!("Kafka does not answer: {error}"))
    }

    fn current(&self) -> Arc<FutureProducer> {
        self.producer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    async fn send<K, P>(&self, record: FutureRecord<'_, K, P>) -> Result<(), anyhow::Error>
    where
        K: rdkafka::message::ToBytes + ?Sized,
        P: rdkafka::message::ToBytes + ?Sized,
    {
        let producer = self.current();
        match producer.send(record, QUEUE_MAX).await {
            Ok(_) => Ok(()),
            Err((error, _)) => {
                if let Some((code, reason)) = producer.client().fatal_error() {
                    self.replace(&producer, &format!("{code}: {reason}"));
                }
                Err(anyhow::Error::new(error).context("Kafka has not taken the event"))
            }
        }
    }

    /// An idempotent producer that has lost its sequence (brokers lost data) never sends again.
    fn replace(&self, broken: &Arc<FutureProducer>, why: &str) {
        let mut current = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&current, broken) {
            return;
        }
        tracing::error!(why, "Kafka producer broken for good; making a new one");
        match make(&self.config) {
            Ok(new) => *current = Arc::new(new),
            Err(error) => tracing::error!(error, "no new Kafka producer"),
        }
    }
}

fn make(config: &KafkaConfig) -> Result<FutureProducer, String> {
    config
        .client()
        .set("enable.idempotence", "true")
        .set("acks", "all")
        // Events are waited for one by one: no time is spent on filling batches.
        .set("linger.ms", "0")
        .set("message.timeout.ms", "30000")
        // Of one try: a broker that took a request and froze is asked again after so long.
        .set("request.timeout.ms", "5000")
        // The partition of a key, the same as Java's producers choose.
        .set("partitioner", "murmur2_random")
        .create()
        .map_err(|error| format!("Kafka producer: {error}"))
}

fn header<'a>(key: &'a str, value: &'a str) -> Header<'a, &'a str> {
    Header {
        key,
        value: Some(value),
    }
}
