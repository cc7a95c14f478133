//! Events by a real Apache Kafka: brokers and consumers that die, groups that rebalance,
//! messages that come twice or cannot be handled.

pub mod crashes;
mod secure;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::json;
use sqlx::PgPool;
use ticketping::platform::events::{
    Bus, Event, Figures, HandlerError, KafkaConfig, NewEvent, Outbox, OutboxSignal, Subscription,
    dead, handler, inbox, outbox,
};
use ticketping::platform::{db, lease, metrics::Metrics, overview::Health, tasks::Tasks};
use uuid::Uuid;

use crate::harness;
use crate::harness::kafka::{Kafka, kafka};

struct Rig {
    url: String,
    pool: PgPool,
    signal: OutboxSignal,
    config: KafkaConfig,
    tasks: Tasks,
}

impl Rig {
    async fn new(brokers: &str) -> Self {
        let url = harness::fresh_database().await;
        let pool = db::pool(&url, "role", 20).unwrap();
        let effects = "create table effects (n bigint generated always as identity, key text, value int, by text);
            create table begun (value int)";
        for sql in [
            "create schema role",
            outbox::DDL,
            inbox::DDL,
            dead::DDL,
            lease::DDL,
            effects,
        ] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&pool)
                .await
                .unwrap();
        }
        let config = KafkaConfig {
            prefix: harness::prefix(),
            partitions: 4,
            ..KafkaConfig::new(brokers)
        };
        Self {
            url,
            pool,
            signal: OutboxSignal::new(),
            config,
            tasks: Tasks::new(),
        }
    }

    /// The producing role.
    fn produce(&self) {
        let outbox = Outbox {
            source: "role",
            pool: self.pool.clone(),
            signal: self.signal.clone(),
        };
        Bus::Kafka(self.config.clone())
            .start(vec![outbox], Vec::new(), &self.tasks, &Metrics::default())
            .unwrap();
    }

    /// One instance of the consuming role.
    fn consume<F, Fut>(&self, tasks: &Tasks, run: F) -> Figures
    where
        F: Fn(Event) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        let subscription = Subscription {
            consumer: "counter",
            sources: &["role"],
            types: &["counted"],
            handler: handler(run),
            pool: self.pool.clone(),
        };
        Bus::Kafka(self.config.clone())
            .start(Vec::new(), vec![subscription], tasks, &Metrics::default())
            .unwrap()
    }

    fn counting(
        &self,
        by: &'static str,
    ) -> impl Fn(Event) -> futures_util::future::BoxFuture<'static, Result<(), HandlerError>>
    + Send
    + Sync
    + 'static {
        let pool = self.pool.clone();
        move |event| {
            let pool = pool.clone();
            Box::pin(async move { effect(&pool, &event, by).await })
        }
    }

    async fn say(&self, key: Uuid, value: i32) -> Uuid {
        let event = NewEvent::new("counted", key, &json!({"value": value}));
        let mut tx = self.pool.begin().await.unwrap();
        outbox::append(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
        self.signal.wake();
        event.id
    }

    async fn effects(&self) -> Vec<(String, i32)> {
        sqlx::query_as("select key, value from effects order by n")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    async fn until_effects(&self, count: usize) {
        eventually(&format!("{count} effects"), async || {
            self.effects().await.len() >= count
        })
        .await;
    }

    fn producer(&self) -> FutureProducer {
        ClientConfig::new()
            .set("bootstrap.servers", &self.config.brokers)
            .create()
            .unwrap()
    }

    async fn send_raw(&self, key: &str, payload: &str) {
        let topic = format!("{}.role", self.config.prefix);
        let record = FutureRecord::to(&topic).key(key).payload(payload);
        self.producer()
            .send(record, Duration::from_secs(20))
            .await
            .unwrap();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !check().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn value_of(event: &Event) -> i32 {
    event
        .data::<HashMap<String, i32>>()
        .map_or(-1, |data| data["value"])
}

async fn effect(pool: &PgPool, event: &Event, by: &str) -> Result<(), HandlerError> {
    let data: HashMap<String, i32> = event.data()?;
    let mut tx = pool.begin().await?;
    if inbox::first_time(&mut tx, "counter", event.id).await? {
        sqlx::query("insert into effects (key, value, by) values ($1, $2, $3)")
            .bind(&event.subject)
            .bind(data["value"])
            .bind(by)
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

/// Every value of every key once, and in order within the key.
fn assert_each_once_in_order(effects: &[(String, i32)], keys: &[Uuid], values: i32) {
    let mut by_key: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (key, value) in effects {
        by_key.entry(key).or_default().push(*value);
    }
    assert_eq!(by_key.len(), keys.len());
    for (key, seen) in by_key {
        assert_eq!(seen, (0..values).collect::<Vec<_>>(), "key {key}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_travel_in_order_and_act_once() {
    let rig = Rig::new(kafka().await).await;
    rig.produce();
    let figures = rig.consume(&rig.tasks, rig.counting("one"));
    let keys: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
    for value in 0..10 {
        for key in &keys {
            rig.say(*key, value).await;
        }
    }
    rig.until_effects(100).await;
    assert_each_once_in_order(&rig.effects().await, &keys, 10);
    eventually("nothing is behind", async || {
        figures.overview_of("counter").kafka_lag == Some(0)
    })
    .await;
    eventually("the broker is seen to answer", async || {
        figures
            .kafka()
            .is_some_and(|kafka| kafka.state == Health::Up && kafka.detail == "1 broker")
    })
    .await;

    // Once warm, it is quick.
    let mut waits = Vec::new();
    for value in 10..15 {
        let begun = Instant::now();
        rig.say(keys[0], value).await;
        rig.until_effects(100 + usize::try_from(value).unwrap() - 9)
            .await;
        waits.push(begun.elapsed());
    }
    waits.sort();
    // The slow poll would take a second for each.
    assert!(waits[1] < Duration::from_millis(700), "{waits:?}");
}

/// The same event twice on the topic (a relay that died between report and mark), and
/// another producer's duplicate: one effect.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_acts_once() {
    let rig = Rig::new(kafka().await).await;
    rig.produce();
    rig.consume(&rig.tasks, rig.counting("one"));
    let key = Uuid::now_v7();
    let id = rig.say(key, 0).await;
    rig.until_effects(1).await;
    sqlx::query("update outbox set published_at = null where id = $1")
        .bind(id)
        .execute(&rig.pool)
        .await
        .unwrap();
    rig.signal.wake();
    rig.say(key, 1).await;
    rig.until_effects(2).await;
    assert_each_once_in_order(&rig.effects().await, &[key], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_message_blocks_nobody_and_is_replayed() {
    let rig = Rig::new(kafka().await).await;
    rig.produce();
    let (mended, pool) = (Arc::new(AtomicU32::new(0)), rig.pool.clone());
    let fixed = mended.clone();
    rig.consume(&rig.tasks, move |event| {
        let (mended, pool) = (fixed.clone(), pool.clone());
        async move {
            if value_of(&event) == 13 && mended.load(Ordering::SeqCst) == 0 {
                return Err(HandlerError::poison(anyhow::anyhow!("thirteen")));
            }
            effect(&pool, &event, "one").await
        }
    });
    let key = Uuid::now_v7();
    rig.say(key, 12).await;
    rig.until_effects(1).await;
    let poison = rig.say(key, 13).await;
    rig.send_raw(&key.to_string(), "this is no event").await;
    rig.say(key, 14).await;
    rig.until_effects(2).await;
    assert_eq!(
        rig.effects()
            .await
            .iter()
            .map(|(_, v)| *v)
            .collect::<Vec<_>>(),
        [12, 14]
    );

    let mut conn = rig.pool.acquire().await.unwrap();
    eventually("two dead letters", async || {
        dead::count_open(&mut conn).await.unwrap() == 2
    })
    .await;
    let dead = read_topic(
        &format!("{}.role.dlq", rig.config.prefix),
        &rig.config.brokers,
        2,
    )
    .await;
    assert!(
        dead.iter()
            .any(|(payload, error)| payload.contains("\"value\":13") && error.contains("thirteen"))
    );
    assert!(
        dead.iter().any(
            |(payload, error)| payload == "this is no event" && error.contains("no CloudEvent")
        )
    );

    mended.store(1, Ordering::SeqCst);
    dead::request_replay(&mut conn, &[poison]).await.unwrap();
    rig.until_effects(3).await;
    eventually("it is resolved", async || {
        dead::count_open(&mut conn).await.unwrap() == 1
    })
    .await;
}

/// Payloads and errors of the first `count` messages.
async fn read_topic(topic: &str, brokers: &str, count: usize) -> Vec<(String, String)> {
    let (topic, brokers) = (topic.to_owned(), brokers.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .set("group.id", Uuid::new_v4().to_string())
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap();
        consumer.subscribe(&[&topic]).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut seen = Vec::new();
        while seen.len() < count {
            assert!(
                Instant::now() < deadline,
                "only {} of {count} on {topic}",
                seen.len()
            );
            let Some(Ok(message)) = consumer.poll(Duration::from_millis(200)) else {
                continue;
            };
            let payload = String::from_utf8_lossy(message.payload().unwrap()).into_owned();
            let error = message
                .headers()
                .unwrap()
                .iter()
                .find(|header| header.key == "dlq_error")
                .map(|header| String::from_utf8_lossy(header.value.unwrap()).into_owned());
            seen.push((payload, error.unwrap()));
        }
        seen
    })
    .await
    .unwrap()
}

/// While a store is away nothing is given up and nothing passes its place; when it is back,
/// all of it happens.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_away_pauses_the_consumer() {
    let rig = Rig::new(kafka().await).await;
    rig.produce();
    let (away, pool) = (Arc::new(AtomicU32::new(1)), rig.pool.clone());
    let still = away.clone();
    rig.consume(&rig.tasks, move |event| {
        let (away, pool) = (still.clone(), pool.clone());
        async move {
            if away.load(Ordering::SeqCst) == 1 {
                return Err(HandlerError::retry(anyhow::anyhow!("the store is away")));
            }
            effect(&pool, &event, "one").await
        }
    });
    let keys: Vec<Uuid> = (0..50).map(|_| Uuid::now_v7()).collect();
    for value in 0..6 {
        for key in &keys {
            rig.say(*key, value).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(rig.effects().await.is_empty());
    assert_eq!(
        dead::count_open(&mut rig.pool.acquire().await.unwrap())
            .await
            .unwrap(),
        0
    );
    away.store(0, Ordering::SeqCst);
    rig.until_effects(300).await;
    assert_each_once_in_order(&rig.effects().await, &keys, 6);
}

/// A second instance joins and the first one leaves without a word, in mid-message.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_come_and_go_and_nothing_is_lost_or_doubled() {
    let rig = Rig::new(kafka().await).await;
    rig.produce();
    let first = Tasks::new();
    rig.consume(&first, rig.counting("first"));
    let keys: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    let mut second = None;
    for value in 0..12 {
        for key in &keys {
            rig.say(*key, value).await;
        }
        if value == 3 {
            let tasks = Tasks::new();
            rig.consume(&tasks, rig.counting("second"));
            second = Some(tasks);
        }
        if value == 8 {
            assert!(first.stop(Duration::from_secs(20)).await);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    rig.until_effects(240).await;
    assert_each_once_in_order(&rig.effects().await, &keys, 12);
    let by: Vec<String> = sqlx::query_scalar("select distinct by from effects order by 1")
        .fetch_all(&rig.pool)
        .await
        .unwrap();
    assert_eq!(by, ["first", "second"], "both had a share");
    second.unwrap().token().cancel();
}

/// The broker dies by SIGKILL under load and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_loses_nothing() {
    let mut broker = Kafka::start().await;
    let rig = Rig::new(&broker.bootstrap).await;
    rig.produce();
    let figures = rig.consume(&rig.tasks, rig.counting("one"));
    let keys: Vec<Uuid> = (0..10).map(|_| Uuid::now_v7()).collect();
    let mut back = Instant::now();
    for value in 0..9 {
        for key in &keys {
            rig.say(*key, value).await;
        }
        if value == 2 {
            rig.until_effects(5).await;
        }
        if value == 3 {
            broker.kill();
            let killed = Instant::now();
            eventually("the broker is seen to be away", async || {
                figures
                    .kafka()
                    .is_some_and(|kafka| kafka.state == Health::Down)
            })
            .await;
            let seen_after = killed.elapsed();
            assert!(seen_after < Duration::from_secs(20), "{seen_after:?}");
        }
        if value == 6 {
            broker = broker.start_again().await;
            back = Instant::now();
        }
    }
    rig.until_effects(90).await;
    // Not the half minute of the client library's own timeouts; the consumer's group has to come
    // together again.
    let late = back.elapsed();
    assert!(
        late < Duration::from_secs(20),
        "events came {late:?} after the broker"
    );
    assert_each_once_in_order(&rig.effects().await, &keys, 9);
    let delivered: Arc<Mutex<i64>> = Arc::default();
    eventually("the outbox is empty", async || {
        let left = outbox::backlog(&mut rig.pool.acquire().await.unwrap())
            .await
            .unwrap()
            .pending;
        *delivered.lock().unwrap() = left;
        left == 0
    })
    .await;
}
