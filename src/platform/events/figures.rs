//! How far events are behind: for the metrics and the operator's overview.

use std::collections::HashMap;
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::{family::Family, gauge::Gauge};
use sqlx::PgPool;

use super::{Outbox, dead, kafka, outbox};
use crate::platform::db;
use crate::platform::metrics::Metrics;
use crate::platform::overview;
use crate::platform::tasks::Tasks;

/// Fine enough for a dashboard; the queries read an index that is empty as a rule.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
const SAMPLE_MAX: Duration = Duration::from_secs(5);

type Gauges<L> = Family<L, Gauge<i64, AtomicI64>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Producing {
    producer: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Consuming {
    consumer: &'static str,
}

/// Events that wait for so long are late, and somebody should know why.
const LATE_MS: i64 = 5_000;
/// And again so often while they stay late.
const LATE_AGAIN: Duration = Duration::from_secs(30);

/// What this process knows of its events. Cheap to clone.
#[derive(Clone, Default)]
pub struct Figures {
    producers: Vec<&'static str>,
    consumers: Vec<&'static str>,
    by_kafka: bool,
    pending: Gauges<Producing>,
    oldest_ms: Gauges<Producing>,
    dead: Gauges<Consuming>,
    lag: Gauges<kafka::LagOf>,
    lag_topics: Vec<kafka::LagOf>,
    brokers: Arc<Mutex<Option<overview::Store>>>,
    /// Producers whose events are late, and when that was logged last.
    late: Arc<Mutex<HashMap<&'static str, Instant>>>,
}

impl Figures {
    pub(super) fn new(
        producers: Vec<&'static str>,
        consumers: Vec<&'static str>,
        lag_topics: Option<Vec<kafka::LagOf>>,
        metrics: &Metrics,
    ) -> Self {
        let figures = Self {
            producers,
            consumers,
            by_kafka: lag_topics.is_some(),
            lag_topics: lag_topics.unwrap_or_default(),
            ..Self::default()
        };
        metrics.register(|registry| {
            let f = figures.clone();
            registry.register("outbox_pending", "Events not yet delivered", f.pending);
            registry.register(
                "outbox_oldest_ms",
                "Age of the oldest undelivered event",
                f.oldest_ms,
            );
            registry.register("dead_letters", "Bad messages waiting for a replay", f.dead);
            if f.by_kafka {
                registry.register("kafka_lag", "Messages not yet handled by a consumer", f.lag);
            }
        });
        figures
    }

    pub(super) fn lag(&self) -> Gauges<kafka::LagOf> {
        self.lag.clone()
    }

    /// Keeps the figures of `outboxes` and of the consumers' dead letters fresh.
    pub(super) fn keep_fresh(
        &self,
        outboxes: Vec<Outbox>,
        consumers: Vec<(&'static str, PgPool)>,
        tasks: &Tasks,
    ) {
        let figures = self.clone();
        tasks.every("events.figures", SAMPLE_EVERY, move || {
            let (figures, outboxes, consumers) =
                (figures.clone(), outboxes.clone(), consumers.clone());
            async move {
                for one in &outboxes {
                    if let Err(error) = figures.sample_outbox(one).await {
                        db::observe(&error);
                        tracing::debug!(%error, outbox = one.source, "backlog not known now");
                    }
                }
                for (consumer, pool) in &consumers {
                    if let Err(error) = figures.sample_dead(consumer, pool).await {
                        db::observe(&error);
                        tracing::debug!(%error, consumer, "dead letters not known now");
                    }
                }
            }
        });
    }

    async fn sample_outbox(&self, one: &Outbox) -> sqlx::Result<()> {
        let backlog = db::within(SAMPLE_MAX, async {
            outbox::backlog(&mut *one.pool.acquire().await?).await
        })
        .await?;
        self.report_lateness(one.source, backlog);
        let labels = Producing {
            producer: one.source,
        };
        self.pending.get_or_create(&labels).set(backlog.pending);
        self.oldest_ms.get_or_create(&labels).set(backlog.oldest_ms);
        Ok(())
    }

    fn report_lateness(&self, producer: &'static str, backlog: outbox::Backlog) {
        let mut late = self.late.lock().unwrap_or_else(PoisonError::into_inner);
        let reported = late.get(producer).copied();
        if backlog.oldest_ms < LATE_MS {
            if late.remove(producer).is_some() {
                tracing::info!(producer, "events are on time again");
            }
            return;
        }
        if reported.is_none_or(|at| at.elapsed() >= LATE_AGAIN) {
            late.insert(producer, Instant::now());
            tracing::warn!(
                producer,
                pending = backlog.pending,
                oldest_ms = backlog.oldest_ms,
                "events are late: they wait in the outbox for their relay or their consumers"
            );
        }
    }

    async fn sample_dead(&self, consumer: &'static str, pool: &PgPool) -> sqlx::Result<()> {
        let open = db::within(SAMPLE_MAX, async {
            dead::count_open(&mut *pool.acquire().await?).await
        })
        .await?;
        self.dead.get_or_create(&Consuming { consumer }).set(open);
        Ok(())
    }

    /// What `role` says and hears, for the operator's overview.
    #[must_use]
    pub fn overview_of(&self, role: &str) -> overview::Events {
        let sum = |values: &mut dyn Iterator<Item = i64>| values.sum::<i64>().max(0).unsigned_abs();
        let producer = self.producers.iter().find(|one| **one == role);
        let producing = producer.map(|producer| Producing { producer });
        let of = |gauges: &Gauges<Producing>| {
            let value = producing
                .as_ref()
                .map(|one| gauges.get_or_create(one).get());
            value.unwrap_or(0).max(0).unsigned_abs()
        };
        let consumer = self.consumers.iter().find(|one| **one == role);
        let dead = consumer.map(|consumer| self.dead.get_or_create(&Consuming { consumer }).get());
        let mut lag = self
            .lag_topics
            .iter()
            .filter(|one| one.consumer == role)
            .map(|one| self.lag.get_or_create(one).get());
        overview::Events {
            delivery: if self.by_kafka { "kafka" } else { "inProcess" }.to_owned(),
            outbox_pending: of(&self.pending),
            oldest_seconds: of(&self.oldest_ms) / 1_000,
            kafka_lag: self.by_kafka.then(|| sum(&mut lag)),
            dlq: dead.unwrap_or(0).max(0).unsigned_abs(),
        }
    }

    pub(super) fn brokers(&self) -> Arc<Mutex<Option<overview::Store>>> {
        self.brokers.clone()
    }

    /// Kafka as this process last saw it; nothing where events stay in the process.
    #[must_use]
    pub fn kafka(&self) -> Option<overview::Store> {
        self.brokers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The figures of this process's events, for roles that are built before the events start.
/// Cheap to clone.
#[derive(Clone, Default)]
pub struct Watch(Arc<OnceLock<Figures>>);

impl Watch {
    /// Gives the figures; only the first time counts.
    pub fn start(&self, figures: &Figures) {
        let _already = self.0.set(figures.clone()).is_err();
    }

    /// Adds what is known of `role`'s events, and of Kafka, to its part of the overview.
    pub fn add_to(&self, slice: &mut overview::OverviewSlice, role: &str) {
        if let Some(figures) = self.0.get() {
            slice.events = Some(figures.overview_of(role));
            slice.stores.extend(figures.kafka());
        }
    }
}
