//! How long admission stops when Redis is restarted with its data, and when it has lost everything
//! while ten thousand people wait and poll.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use futures_util::{StreamExt, stream};
use http::Method;
use serde_json::json;
use ticketping::platform::{
    place::{Place, PlaceState, Turn},
    redis::Redis,
};
use uuid::Uuid;

use super::{
    Bench,
    crowd::{Stands, fill},
    row::{Figure, Row},
    server::Server,
};

const WAITING: u64 = 10_000;
/// Ten a second, so that a gap in admissions is seen to a tenth.
const PER_MINUTE: u32 = 600;
/// People who poll at the same time.
const POLLERS: usize = 64;
const RESTART_MAX_S: f64 = 2.0;
const LOSS_MAX_S: f64 = 20.0;
/// Then something is broken, not slow.
const GIVE_UP: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Restarts Redis, then flushes it.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let server = Server::start(&bench.dir, "restart").await?;
    server
        .seed("--performances 1 --seats 2000 --users 0 --max-working 0 --queue-factor 0")
        .await?;
    let queue = server.performances().await?[0];
    bench.say("ten thousand people enter");
    let stands = fill(&server, queue, WAITING).await?;
    let open = json!({ "maxWorking": 1_000_000, "admissionsPerMinute": PER_MINUTE });
    server.set(queue, open).await?;

    let rounds = if bench.quick { 1 } else { 3 };
    let mut restarts = Vec::new();
    for _ in 0..rounds {
        restarts.push(restart(&server, queue).await?);
    }
    bench.say("ten thousand people come back after a loss");
    let (lost, rate) = loss(&server, queue, &stands).await?;
    Ok(vec![
        Row::bound(
            "restart",
            "admission stops after a restart of Redis with its data",
            Figure::new("s", restarts),
            RESTART_MAX_S,
        ),
        Row::bound(
            "restart",
            "admission stops after a loss with 10,000 waiting",
            Figure::once("s", lost),
            LOSS_MAX_S,
        )
        .note(format!(
            "{rate:.0} places a second came back, {POLLERS} polls at a time"
        )),
    ])
}

async fn field(redis: &mut Redis, queue: Uuid, name: &str) -> Option<u64> {
    redis::cmd("HGET")
        .arg(format!("tp:{{{queue}}}:meta"))
        .arg(name)
        .query_async(redis)
        .await
        .ok()?
}

/// Waits for somebody to be admitted after `since`; in seconds.
async fn next_admission(server: &Server, queue: Uuid, epoch: u64, since: Instant) -> Result<f64> {
    let mut before = None;
    let mut redis = server.redis().await;
    while since.elapsed() < GIVE_UP {
        if let Ok(redis) = &mut redis {
            let now = (
                field(redis, queue, "epoch").await,
                field(redis, queue, "admitted").await,
            );
            if let (Some(at), admitted) = now
                && at > epoch
            {
                let admitted = admitted.unwrap_or(0);
                if admitted > *before.get_or_insert(admitted) {
                    return Ok(since.elapsed().as_secs_f64());
                }
            }
        } else {
            redis = server.redis().await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    anyhow::bail!("nobody was admitted within {GIVE_UP:?}")
}

/// Kills Redis, which its supervisor starts again on its append-only file.
async fn restart(server: &Server, queue: Uuid) -> Result<f64> {
    let mut redis = server.redis().await?;
    let epoch = field(&mut redis, queue, "epoch")
        .await
        .context("an epoch")?;
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut redis)
        .await?;
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("process_id:"))
        .context("a process id")?;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse()?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    next_admission(server, queue, epoch, Instant::now()).await
}

/// Flushes Redis while everybody polls; how long admission stopped, and how many places a second came back.
async fn loss(server: &Server, queue: Uuid, stands: &[Stands]) -> Result<(f64, f64)> {
    let mut redis = server.redis().await?;
    let epoch = field(&mut redis, queue, "epoch")
        .await
        .context("an epoch")?;
    let keys = server.place_keys()?;
    let now = chrono::Utc::now().timestamp_millis().unsigned_abs();
    let tokens: Vec<String> = stands
        .iter()
        .map(|s| {
            keys.seal(&Place {
                queue,
                user: s.user,
                epoch: u32::try_from(epoch).unwrap_or(s.epoch),
                number: s.number,
                state: PlaceState::Waiting,
                issued_ms: now,
                turn: Turn::default(),
                position: u32::try_from(s.number).unwrap_or(u32::MAX),
            })
        })
        .collect();
    redis::cmd("FLUSHALL").query_async::<()>(&mut redis).await?;
    let lost = Instant::now();
    let (done, back) = (AtomicBool::new(false), Arc::new(AtomicU64::new(0)));
    let first = std::sync::Mutex::new(None);
    let path = format!("/api/v1/queues/{queue}/tokens/me");
    let polls = async {
        stream::iter(&tokens)
            .for_each_concurrent(POLLERS, async |token| {
                for _ in 0..200 {
                    let headers = [("queue-token", token.as_str())];
                    let answer = server
                        .http
                        .send(Method::GET, &path, &headers, Body::empty());
                    if answer.await.is_ok() {
                        back.fetch_add(1, Relaxed);
                        let mut first = first.lock().expect("nothing panics here");
                        first.get_or_insert_with(Instant::now);
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
            .await;
        done.store(true, Relaxed);
        Instant::now()
    };
    let (stopped, ended) = tokio::join!(next_admission(server, queue, epoch, lost), polls);
    let back = back.load(Relaxed);
    ensure!(done.load(Relaxed) && back > 0, "nobody came back");
    let began = first.lock().expect("nothing panics here").unwrap_or(lost);
    let seconds = ended.duration_since(began).as_secs_f64().max(0.001);
    #[allow(clippy::cast_precision_loss, reason = "ten thousand people")]
    let rate = back as f64 / seconds;
    Ok((stopped?, rate))
}
