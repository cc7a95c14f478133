//! A consumer's process dies, at each edge of a message and in the middle of it; the next one is
//! given the message again, and it acts once.

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use futures_util::future::join_all;
use ticketping::platform::db;
use ticketping::platform::events::{Bus, HandlerError, KafkaConfig, Subscription, dead, handler};
use ticketping::platform::failpoint::FAILPOINTS;
use ticketping::platform::{metrics::Metrics, tasks::Tasks};
use uuid::Uuid;

use super::{Rig, effect, eventually, value_of};
use crate::harness::kafka::kafka;
use crate::harness::reaper;

const DATABASE: &str = "TICKETPING_TEST_CONSUMER_DATABASE";
const BROKERS: &str = "TICKETPING_TEST_CONSUMER_BROKERS";
const PREFIX: &str = "TICKETPING_TEST_CONSUMER_PREFIX";
/// Set: the first message is begun and never ended.
const STUCK: &str = "TICKETPING_TEST_CONSUMER_STUCK";
/// No handler can do anything with it.
const POISON: i32 = 13;
/// Offsets are committed twice a second: whatever is stored too early has been by then.
const COMMITTED_BY: Duration = Duration::from_millis(1_500);

/// Where a process can be made to die around a message.
pub fn points() -> Vec<&'static str> {
    FAILPOINTS
        .iter()
        .copied()
        .filter(|name| name.starts_with("kafka."))
        .collect()
}

/// The consuming role as a process: this test binary once more, until it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process that other tests start and kill"]
async fn as_a_consumer() {
    let of = |name| std::env::var(name).unwrap();
    let pool = db::pool(&of(DATABASE), "role", 10).unwrap();
    let stuck = std::env::var_os(STUCK).is_some();
    let own = pool.clone();
    let run = handler(move |event| {
        let pool = own.clone();
        async move {
            if value_of(&event) == POISON {
                return Err(HandlerError::poison(anyhow::anyhow!("thirteen")));
            }
            if stuck {
                sqlx::query("insert into begun values (0)")
                    .execute(&pool)
                    .await?;
                std::future::pending::<()>().await;
            }
            effect(&pool, &event, "one").await
        }
    });
    let subscription = Subscription {
        consumer: "counter",
        sources: &["role"],
        types: &["counted"],
        handler: run,
        pool,
    };
    let config = KafkaConfig {
        prefix: of(PREFIX),
        partitions: 4,
        ..KafkaConfig::new(of(BROKERS))
    };
    let tasks = Tasks::new();
    Bus::Kafka(config)
        .start(Vec::new(), vec![subscription], &tasks, &Metrics::default())
        .unwrap();
    std::future::pending::<()>().await;
}

impl Rig {
    fn consumer(&self, envs: &[(&str, &str)]) -> Child {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "kafka_events::crashes::as_a_consumer",
                "--ignored",
            ])
            .env(DATABASE, &self.url)
            .env(BROKERS, &self.config.brokers)
            .env(PREFIX, &self.config.prefix)
            .envs(envs.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        reaper::end(child.id(), "as_a_consumer");
        child
    }

    async fn values(&self) -> Vec<i32> {
        self.effects()
            .await
            .into_iter()
            .map(|(_, value)| value)
            .collect()
    }
}

fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_at_any_edge_of_a_message_loses_and_doubles_nothing() {
    let brokers = kafka().await;
    join_all(points().into_iter().map(|point| dies_at(brokers, point))).await;
}

async fn dies_at(brokers: &str, point: &str) {
    let rig = Rig::new(brokers).await;
    rig.produce();
    let key = Uuid::now_v7();
    let first = if point.contains("dead_letter") {
        POISON
    } else {
        0
    };
    rig.say(key, first).await;
    let mut child = rig.consumer(&[("TICKETPING_FAILPOINT", point)]);
    eventually(&format!("{point} is passed"), async || {
        child.try_wait().unwrap().is_some()
    })
    .await;
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(6), "{point}: {status}");

    let child = rig.consumer(&[]);
    rig.say(key, 1).await;
    rig.until_effects(if first == POISON { 1 } else { 2 }).await;
    let want: &[i32] = if first == POISON { &[1] } else { &[0, 1] };
    assert_eq!(rig.values().await, want, "{point}");
    let dead = dead::count_open(&mut rig.pool.acquire().await.unwrap())
        .await
        .unwrap();
    assert_eq!(dead, i64::from(first == POISON), "{point}");
    end(child);
}

/// Killed while a message is begun and not ended; what the next one made of that message and of
/// the one behind it.
async fn killed_in_mid_message() -> Vec<i32> {
    let rig = Rig::new(kafka().await).await;
    rig.produce();
    let key = Uuid::now_v7();
    rig.say(key, 0).await;
    let child = rig.consumer(&[(STUCK, "1")]);
    eventually("it is begun", async || {
        let begun: i64 = sqlx::query_scalar("select count(*) from begun")
            .fetch_one(&rig.pool)
            .await
            .unwrap();
        begun > 0
    })
    .await;
    tokio::time::sleep(COMMITTED_BY).await;
    end(child);
    let child = rig.consumer(&[]);
    // In order within the key: once this one has acted, the first had its chance.
    rig.say(key, 1).await;
    eventually("the one behind it acts", async || {
        rig.values().await.contains(&1)
    })
    .await;
    end(child);
    rig.values().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_killed_in_mid_message_is_followed_by_one_that_ends_it() {
    assert_eq!(killed_in_mid_message().await, [0, 1]);
}
