//! Events: said once in the transaction of the change, in order within a key, heard by every
//! consumer, acted on once; a bad message waits aside and blocks nobody.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::PgPool;
use ticketping::platform::events::{
    Bus, Event, HandlerError, NewEvent, Outbox, OutboxSignal, Subscription, dead, handler, inbox,
    outbox,
};
use ticketping::platform::{db, lease, metrics::Metrics, tasks::Tasks};
use uuid::Uuid;

use crate::harness;

/// A schema with everything that a role which says and hears events has.
struct Rig {
    pool: PgPool,
    signal: OutboxSignal,
    tasks: Tasks,
}

impl Rig {
    async fn new() -> Self {
        let url = harness::fresh_database().await;
        let pool = db::pool(&url, "role", 10).unwrap();
        for sql in [
            "create schema role",
            outbox::DDL,
            inbox::DDL,
            dead::DDL,
            lease::DDL,
        ] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql))
                .execute(&pool)
                .await
                .unwrap();
        }
        sqlx::raw_sql(
            "create table effects (n bigint generated always as identity, key text, value int)",
        )
        .execute(&pool)
        .await
        .unwrap();
        Self {
            pool,
            signal: OutboxSignal::new(),
            tasks: Tasks::new(),
        }
    }

    fn outbox(&self) -> Outbox {
        Outbox {
            source: "role",
            pool: self.pool.clone(),
            signal: self.signal.clone(),
        }
    }

    fn subscribe<F, Fut>(&self, consumer: &'static str, run: F) -> Subscription
    where
        F: Fn(Event) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        Subscription {
            consumer,
            sources: &["role"],
            types: &["counted"],
            handler: handler(run),
            pool: self.pool.clone(),
        }
    }

    fn start(&self, subscriptions: Vec<Subscription>) {
        start(vec![self.outbox()], subscriptions, &self.tasks);
    }

    async fn say(&self, key: Uuid, value: i32) -> Uuid {
        let event = NewEvent::new("counted", key, &json!({"value": value}));
        let mut tx = self.pool.begin().await.unwrap();
        outbox::append(&mut tx, &event).await.unwrap();
        tx.commit().await.unwrap();
        self.signal.wake();
        event.id
    }

    async fn quiet(&self) {
        let mut conn = self.pool.acquire().await.unwrap();
        eventually("the outbox is empty", async || {
            outbox::backlog(&mut conn).await.unwrap().pending == 0
        })
        .await;
    }

    async fn effects(&self) -> Vec<(String, i32)> {
        sqlx::query_as("select key, value from effects order by n")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

fn start(outboxes: Vec<Outbox>, subscriptions: Vec<Subscription>, tasks: &Tasks) {
    Bus::Local
        .start(outboxes, subscriptions, tasks, &Metrics::default())
        .unwrap();
}

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !check().await {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn value_of(event: &Event) -> i32 {
    event.data::<HashMap<String, i32>>().unwrap()["value"]
}

/// The effect that every consumer here has: a row, once an event.
async fn effect(pool: &PgPool, event: &Event) -> Result<(), HandlerError> {
    let mut tx = pool.begin().await?;
    if inbox::first_time(&mut tx, "counter", event.id).await? {
        sqlx::query("insert into effects (key, value) values ($1, $2)")
            .bind(&event.subject)
            .bind(value_of(event))
            .execute(&mut *tx)
            .await?;
    }
    tx.commit().await?;
    Ok(())
}

#[tokio::test]
async fn every_committed_event_acts_once_and_in_the_order_of_its_key() {
    let rig = Rig::new().await;
    let pool = rig.pool.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let pool = pool.clone();
        async move { effect(&pool, &event).await }
    })]);
    let keys: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    for value in 0..10 {
        for key in &keys {
            rig.say(*key, value).await;
        }
    }
    rig.quiet().await;
    let mut by_key: HashMap<String, Vec<i32>> = HashMap::new();
    for (key, value) in rig.effects().await {
        by_key.entry(key).or_default().push(value);
    }
    assert_eq!(by_key.len(), keys.len());
    for (key, values) in by_key {
        assert_eq!(values, (0..10).collect::<Vec<_>>(), "key {key}");
    }
}

/// The BIGSERIAL trap: the earlier number commits after the later one was relayed.
#[tokio::test]
async fn a_row_that_commits_late_is_not_skipped() {
    let rig = Rig::new().await;
    let pool = rig.pool.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let pool = pool.clone();
        async move { effect(&pool, &event).await }
    })]);
    let mut late = rig.pool.begin().await.unwrap();
    let event = NewEvent::new("counted", Uuid::now_v7(), &json!({"value": 1}));
    outbox::append(&mut late, &event).await.unwrap();
    rig.say(Uuid::now_v7(), 2).await;
    eventually("the later number is delivered", async || {
        rig.effects().await.len() == 1
    })
    .await;
    late.commit().await.unwrap();
    rig.signal.wake();
    eventually("the earlier number is delivered too", async || {
        rig.effects().await.len() == 2
    })
    .await;
}

#[tokio::test]
async fn a_rolled_back_event_is_never_heard() {
    let rig = Rig::new().await;
    let pool = rig.pool.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let pool = pool.clone();
        async move { effect(&pool, &event).await }
    })]);
    let mut tx = rig.pool.begin().await.unwrap();
    let event = NewEvent::new("counted", Uuid::now_v7(), &json!({"value": 1}));
    outbox::append(&mut tx, &event).await.unwrap();
    tx.rollback().await.unwrap();
    rig.say(Uuid::now_v7(), 2).await;
    rig.quiet().await;
    assert_eq!(rig.effects().await.len(), 1);
}

#[tokio::test]
async fn a_store_away_holds_its_key_back_and_nobody_else() {
    let rig = Rig::new().await;
    let (pool, away) = (rig.pool.clone(), Arc::new(AtomicU32::new(1)));
    let (stuck, free) = (Uuid::now_v7(), Uuid::now_v7());
    let still = away.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let (pool, away) = (pool.clone(), still.clone());
        async move {
            if event.subject == stuck.to_string() && away.load(Ordering::SeqCst) == 1 {
                return Err(HandlerError::retry(anyhow::anyhow!("the store is away")));
            }
            effect(&pool, &event).await
        }
    })]);
    rig.say(stuck, 0).await;
    rig.say(stuck, 1).await;
    for value in 0..50 {
        rig.say(free, value).await;
    }
    eventually("the other key is done", async || {
        rig.effects().await.len() == 50
    })
    .await;
    assert_eq!(
        dead::count_open(&mut rig.pool.acquire().await.unwrap())
            .await
            .unwrap(),
        0
    );
    away.store(0, Ordering::SeqCst);
    rig.quiet().await;
    let held: Vec<i32> = rig
        .effects()
        .await
        .into_iter()
        .filter(|(key, _)| *key == stuck.to_string())
        .map(|(_, value)| value)
        .collect();
    assert_eq!(held, [0, 1]);
}

#[tokio::test]
async fn one_consumer_away_does_not_make_another_hear_twice() {
    let rig = Rig::new().await;
    let heard = Arc::new(AtomicU32::new(0));
    let tries = Arc::new(AtomicU32::new(0));
    let (hears, tried) = (heard.clone(), tries.clone());
    rig.start(vec![
        rig.subscribe("hearing", move |_| {
            hears.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        }),
        rig.subscribe("away", move |_| {
            let nth = tried.fetch_add(1, Ordering::SeqCst);
            async move {
                if nth < 3 {
                    Err(HandlerError::retry(anyhow::anyhow!("away")))
                } else {
                    Ok(())
                }
            }
        }),
    ]);
    rig.say(Uuid::now_v7(), 1).await;
    rig.quiet().await;
    assert_eq!(
        (heard.load(Ordering::SeqCst), tries.load(Ordering::SeqCst)),
        (1, 4)
    );
}

/// A relay that died between delivery and mark delivers again.
#[tokio::test]
async fn what_is_handed_over_twice_acts_once() {
    let rig = Rig::new().await;
    let pool = rig.pool.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let pool = pool.clone();
        async move { effect(&pool, &event).await }
    })]);
    let key = Uuid::now_v7();
    let id = rig.say(key, 0).await;
    rig.quiet().await;
    let again = sqlx::query("update outbox set published_at = null where id = $1").bind(id);
    again.execute(&rig.pool).await.unwrap();
    rig.say(key, 1).await;
    rig.quiet().await;
    let values: Vec<i32> = rig
        .effects()
        .await
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    assert_eq!(values, [0, 1]);
}

#[tokio::test]
async fn a_bad_message_becomes_a_dead_letter_and_acts_when_replayed() {
    let rig = Rig::new().await;
    let (pool, mended) = (rig.pool.clone(), Arc::new(AtomicU32::new(0)));
    let fixed = mended.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let (pool, mended) = (pool.clone(), fixed.clone());
        async move {
            match (value_of(&event), mended.load(Ordering::SeqCst)) {
                (13, 0) => Err(HandlerError::poison(anyhow::anyhow!("thirteen"))),
                (14, 0) => panic!("fourteen"),
                _ => effect(&pool, &event).await,
            }
        }
    })]);
    let key = Uuid::now_v7();
    for value in 12..=15 {
        rig.say(key, value).await;
    }
    rig.quiet().await;
    assert_eq!(
        rig.effects()
            .await
            .iter()
            .map(|(_, v)| *v)
            .collect::<Vec<_>>(),
        [12, 15]
    );
    let mut conn = rig.pool.acquire().await.unwrap();
    let letters = dead::open(&mut conn, 10).await.unwrap();
    assert_eq!(letters.len(), 2);
    assert!(
        letters[0].error.contains("thirteen"),
        "{}",
        letters[0].error
    );
    assert!(
        letters[1].error.contains("fourteen"),
        "{}",
        letters[1].error
    );

    // Still bad: it stays, with the newer count.
    dead::request_replay(&mut conn, &[letters[0].event_id])
        .await
        .unwrap();
    eventually("it was tried again", async || {
        dead::open(&mut conn, 10).await.unwrap()[0].attempts == 2
    })
    .await;

    mended.store(1, Ordering::SeqCst);
    assert_eq!(dead::request_replay(&mut conn, &[]).await.unwrap().len(), 2);
    eventually("none is left", async || {
        dead::count_open(&mut conn).await.unwrap() == 0
    })
    .await;
    let mut values: Vec<i32> = rig
        .effects()
        .await
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    values.sort_unstable();
    assert_eq!(values, [12, 13, 14, 15]);
}

/// Two instances on one schema: one relays, the other takes over when it is gone.
#[tokio::test]
async fn a_standby_takes_over_when_the_relay_is_gone() {
    let rig = Rig::new().await;
    let by = Arc::new(Mutex::new(Vec::new()));
    let instance = |name: &'static str| {
        let (pool, by, tasks) = (rig.pool.clone(), by.clone(), Tasks::new());
        let subscription = rig.subscribe("counter", move |event| {
            let pool = pool.clone();
            by.lock().unwrap().push(name);
            async move { effect(&pool, &event).await }
        });
        start(vec![rig.outbox()], vec![subscription], &tasks);
        tasks
    };
    let first = instance("first");
    rig.say(Uuid::now_v7(), 1).await;
    rig.quiet().await;
    let second = instance("second");
    rig.say(Uuid::now_v7(), 2).await;
    rig.quiet().await;
    assert!(
        first.stop(Duration::from_secs(10)).await,
        "the first relay ends"
    );
    rig.say(Uuid::now_v7(), 3).await;
    rig.quiet().await;
    assert_eq!(*by.lock().unwrap(), ["first", "first", "second"]);
    assert!(second.stop(Duration::from_secs(10)).await);
}

/// What another process commits is relayed at once: it says so after its commit.
#[tokio::test]
async fn a_commit_elsewhere_wakes_the_relay() {
    let rig = Rig::new().await;
    let pool = rig.pool.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let pool = pool.clone();
        async move { effect(&pool, &event).await }
    })]);
    rig.say(Uuid::now_v7(), 0).await;
    rig.quiet().await;
    // Another instance: a signal of its own, no locks.
    let elsewhere = Tasks::new();
    let signal = OutboxSignal::new();
    let outbox = Outbox {
        source: "role",
        pool: rig.pool.clone(),
        signal: signal.clone(),
    };
    start(vec![outbox], Vec::new(), &elsewhere);
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut waits = Vec::new();
    for value in 1..=5 {
        let begun = Instant::now();
        let event = NewEvent::new("counted", Uuid::now_v7(), &json!({"value": value}));
        outbox::append(&mut rig.pool.acquire().await.unwrap(), &event)
            .await
            .unwrap();
        signal.wake();
        eventually("it is delivered", async || {
            rig.effects().await.len() == value + 1
        })
        .await;
        waits.push(begun.elapsed());
    }
    waits.sort();
    assert!(
        waits[1] < Duration::from_millis(500),
        "the slow poll delivered them: {waits:?}"
    );
    assert!(elsewhere.stop(Duration::from_secs(10)).await);
}

#[tokio::test]
async fn delivery_is_woken_and_not_polled() {
    let rig = Rig::new().await;
    let pool = rig.pool.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let pool = pool.clone();
        async move { effect(&pool, &event).await }
    })]);
    rig.say(Uuid::now_v7(), 0).await;
    rig.quiet().await;
    let mut waits = Vec::new();
    for value in 1..=20 {
        let begun = Instant::now();
        rig.say(Uuid::now_v7(), value).await;
        eventually("it is delivered", async || {
            rig.effects().await.len() == usize::try_from(value).unwrap() + 1
        })
        .await;
        waits.push(begun.elapsed());
    }
    waits.sort();
    // The slow poll would take a second for each.
    assert!(waits[5] < Duration::from_millis(300), "{waits:?}");
}

/// The relay's connection is cut, again and again: nothing is lost, nothing doubled.
#[tokio::test]
async fn cut_connections_lose_and_double_nothing() {
    let rig = Rig::new().await;
    let pool = rig.pool.clone();
    rig.start(vec![rig.subscribe("counter", move |event| {
        let pool = pool.clone();
        async move { effect(&pool, &event).await }
    })]);
    let key = Uuid::now_v7();
    for value in 0..30 {
        rig.say(key, value).await;
        if value % 10 == 5 {
            sqlx::query(
                "select pg_terminate_backend(pid) from pg_stat_activity
                 where application_name = 'ticketping-relay-role' and datname = current_database()",
            )
            .execute(&rig.pool)
            .await
            .unwrap();
        }
    }
    rig.quiet().await;
    let values: Vec<i32> = rig
        .effects()
        .await
        .into_iter()
        .map(|(_, value)| value)
        .collect();
    assert_eq!(values, (0..30).collect::<Vec<_>>());
}
