//! A million people in a queue, put there by the server's own entry script.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use ticketping::{
    platform::place::{Place, PlaceState, Turn},
    serve::queue::scripts::{BATCH_MAX, Room, Scripts, Seen},
};
use uuid::Uuid;

use super::{Bench, redis_figures::used_memory, server::Server};

/// The small crowd that the great one is held against.
pub const FEW: u64 = 1_000;
/// The great one.
pub const MANY: u64 = 1_000_000;
/// Tokens that a load of polls rotates through.
const POLLERS: u64 = 10_000;
/// Calls to Redis in flight while a queue is filled.
const IN_FLIGHT: usize = 4;
/// `--redis-prefix`, as it is by default.
const PREFIX: &str = "tp";

/// Where somebody stands.
#[derive(Clone, Copy, Debug)]
pub struct Stands {
    pub user: Uuid,
    pub number: u64,
    pub epoch: u32,
}

/// A server with two queues, one short, one long.
pub struct Crowd {
    pub server: Server,
    pub few: Uuid,
    pub many: Uuid,
    /// Redis's memory before the million came, and after, bytes.
    pub memory: (f64, f64),
    stands: [Vec<Stands>; 2],
}

impl Crowd {
    /// Starts the server and fills both queues. Nobody is admitted.
    pub async fn gather(bench: &Bench) -> Result<Self> {
        let server = Server::start(&bench.dir, "crowd").await?;
        server
            .seed("--performances 2 --seats 2000 --users 0 --max-working 0 --queue-factor 0 --claim-ttl 1s")
            .await?;
        let [few, many] = server.performances().await?[..] else {
            anyhow::bail!("two performances were seeded");
        };
        let near = fill(&server, few, FEW).await?;
        // The second queue exists, empty, before its memory is counted.
        room(&server, many).await?;
        let mut redis = server.redis().await?;
        let before = used_memory(&mut redis).await?;
        bench.say("a million people enter");
        let far = fill(&server, many, MANY).await?;
        let after = used_memory(&mut redis).await?;
        Ok(Self {
            server,
            few,
            many,
            memory: (before, after),
            stands: [near, far],
        })
    }

    /// Tokens of people spread evenly over a queue, made an hour ago: as after any wait of
    /// more than ten seconds, each poll is answered with a new one.
    pub fn tokens(&self, queue: Uuid) -> Result<Vec<String>> {
        let stands = &self.stands[usize::from(queue == self.many)];
        let keys = self.server.place_keys()?;
        let step = stands.len().div_ceil(POLLERS as usize);
        let hour_ago = chrono::Utc::now().timestamp_millis().unsigned_abs() - 3_600_000;
        let token = |s: &Stands| {
            keys.seal(&Place {
                queue,
                user: s.user,
                epoch: s.epoch,
                number: s.number,
                state: PlaceState::Waiting,
                issued_ms: hour_ago,
                turn: Turn::default(),
                position: u32::try_from(s.number).unwrap_or(u32::MAX),
            })
        };
        Ok(stands.iter().step_by(step).map(token).collect())
    }
}

/// The queue of `performance`, which the server has opened.
pub async fn room(server: &Server, performance: Uuid) -> Result<Room> {
    let path = format!("/api/v1/queues/{performance}");
    server.http.get(&path, &[]).await?;
    let redis = server.redis().await?;
    Ok(Room::new(
        redis,
        Arc::new(Scripts::default()),
        PREFIX,
        performance,
    ))
}

/// Puts `count` new people into a queue: numbers are reserved in PostgreSQL first, as the
/// server does, then people go through `queue_enter.lua` in its largest batches.
pub async fn fill(server: &Server, performance: Uuid, count: u64) -> Result<Vec<Stands>> {
    let room = room(server, performance).await?;
    let more = i64::try_from(count)?;
    let ceiling: i64 = sqlx::query_scalar(
        "update queue.epochs set ceiling = ceiling + $2 where performance_id = $1 returning ceiling",
    )
    .bind(performance)
    .bind(more)
    .fetch_one(&server.database().await?)
    .await?;
    room.raise(Seen::default(), ceiling).await?;
    let batches = (0..count).step_by(BATCH_MAX).map(|from| {
        let users: Vec<Uuid> = (from..count.min(from + BATCH_MAX as u64))
            .map(|_| Uuid::now_v7())
            .collect();
        let room = room.clone();
        async move {
            let batch = room.enter(Seen::default(), &users).await?;
            let stands = users
                .into_iter()
                .zip(&batch.outcomes)
                .map(|(user, o)| Stands {
                    user,
                    number: o.number,
                    epoch: o.epoch,
                });
            anyhow::Ok(stands.collect::<Vec<_>>())
        }
    });
    let stands: Vec<Vec<Stands>> = stream::iter(batches)
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    let stands = stands.concat();
    ensure!(
        stands.iter().all(|s| s.number > 0),
        "somebody got no number"
    );
    wait_for(server, performance, count).await?;
    Ok(stands)
}

/// Until the server's snapshot shows that at least `count` people are in the queue.
async fn wait_for(server: &Server, performance: Uuid, count: u64) -> Result<()> {
    let path = format!("/api/v1/queues/{performance}");
    for _ in 0..200 {
        let queue = server.http.get(&path, &[]).await?;
        let here = |key: &str| queue[key].as_u64().context("a snapshot's figure");
        if here("waiting")? + here("working")? >= count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("the server never saw {count} people in the queue")
}
