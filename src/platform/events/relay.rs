//! The relay of one schema: unpublished rows out, in order for each key, marked once delivered.
//!
//! One relay owns a shard at a time, by a session advisory lock; other instances stand by and
//! pass on the wake-ups of their own commits. Rows of one key go one after the other; rows of
//! different keys go side by side. A crash between delivery and mark delivers again, which the
//! consumers' inboxes absorb.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use sqlx::postgres::PgListener;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use uuid::Uuid;

use super::kafka::Publisher;
use super::local::Dispatcher;
use super::outbox::{self, Pending, SHARDS};
use super::{Event, Outbox};
use crate::platform::tasks;

/// The net under lost wake-ups, and how soon a standby notices that a relay died.
const POLL: Duration = Duration::from_secs(1);
/// Published rows stay this long, to be looked at by `ticketping events list`.
const KEEP_HOURS: i64 = 24;
const CLEAN_EVERY: Duration = Duration::from_secs(60);
/// A key whose delivery failed waits this long, doubling, at most `RETRY_MAX`.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// A key that was not tried again since (its row went elsewhere) is forgotten.
const FORGET: Duration = Duration::from_secs(30);
/// How long a stopping relay lets deliveries end; those cut off are delivered again.
const DRAIN: Duration = Duration::from_secs(5);
/// Keys that wait after a failure; more than this and everything is away, so nothing is read.
const WAITING_KEYS_MAX: usize = 1_024;

/// Where rows go.
#[derive(Clone)]
pub(super) enum Delivery {
    Local(Arc<Dispatcher>),
    Kafka(Arc<Publisher>),
}

impl Delivery {
    async fn deliver(&self, event: &Event) -> Result<(), anyhow::Error> {
        match self {
            Self::Local(dispatcher) => dispatcher.deliver(event).await,
            Self::Kafka(publisher) => publisher.publish(event).await,
        }
    }

    /// Keys delivered side by side: handlers each take a database connection, of which a
    /// role has few; a delivery report takes nothing but time.
    fn keys_at_once(&self) -> usize {
        match self {
            Self::Local(_) => 12,
            Self::Kafka(_) => 256,
        }
    }
}

/// Runs until told to stop, through any loss of the database.
pub(super) async fn run(outbox: Outbox, delivery: Delivery, stop: CancellationToken) {
    let (heard, token) = (outbox.clone(), stop.clone());
    let listening = AbortOnDropHandle::new(tokio::spawn(tasks::supervise(
        "outbox-listener",
        stop.clone(),
        move || listen(heard.clone(), token.clone()),
    )));
    let mut quiet = false;
    while !stop.is_cancelled() {
        match Session::open(&outbox, &delivery).await {
            Ok(mut session) => {
                quiet = false;
                if let Err(error) = session.work(&stop).await {
                    tracing::warn!(outbox = outbox.source, %error, "relay lost its database");
                }
            }
            Err(error) if !quiet => {
                quiet = true;
                tracing::warn!(outbox = outbox.source, %error, "relay waits for its database");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(POLL) => {}
        }
    }
    drop(listening);
}

/// Wake-ups from other instances. Losing them costs the slow poll's second, so errors only wait.
async fn listen(outbox: Outbox, stop: CancellationToken) {
    while !stop.is_cancelled() {
        if let Ok(mut listener) = PgListener::connect_with(&outbox.pool).await
            && listener.listen(&channel(outbox.source)).await.is_ok()
        {
            while let Ok(Some(_)) = listener.try_recv().await {
                outbox.signal.nudge();
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn channel(source: &str) -> String {
    format!("ticketping_outbox_{source}")
}

/// The locks of one schema live in one namespace of the two-key advisory locks.
fn lock_space(source: &str) -> i32 {
    let hash = outbox::fnv1a(channel(source).as_bytes());
    i32::from_ne_bytes([
        hash as u8,
        (hash >> 8) as u8,
        (hash >> 16) as u8,
        (hash >> 24) as u8,
    ])
}

struct Finished {
    key: String,
    delivered: Vec<Uuid>,
    failure: Option<anyhow::Error>,
}

/// How long a key still waits after a failed delivery.
struct Waiting {
    until: Instant,
    pause: Duration,
}

/// A connection, and the locks that live and die with it.
struct Session<'a> {
    outbox: &'a Outbox,
    delivery: &'a Delivery,
    conn: PgConnection,
    held: Vec<i16>,
    running: JoinSet<Finished>,
    busy: Vec<String>,
    waiting: HashMap<String, Waiting>,
}

impl<'a> Session<'a> {
    async fn open(outbox: &'a Outbox, delivery: &'a Delivery) -> sqlx::Result<Self> {
        // Out of the pool for good: a pooled connection would outlive this session with its
        // locks held. Closing the socket frees them.
        let conn = outbox.pool.acquire().await?.detach();
        Ok(Self {
            outbox,
            delivery,
            conn,
            held: Vec::new(),
            running: JoinSet::new(),
            busy: Vec::new(),
            waiting: HashMap::new(),
        })
    }

    async fn work(&mut self, stop: &CancellationToken) -> sqlx::Result<()> {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut cleaned = Instant::now();
        loop {
            let next_retry = self.next_retry();
            tokio::select! {
                () = stop.cancelled() => return self.drain().await,
                () = self.outbox.signal.woken() => self.pass_on().await?,
                () = self.outbox.signal.nudged() => {}
                Some(finished) = self.running.join_next(), if !self.running.is_empty() => {
                    self.settle(finished).await?;
                }
                () = sleep_until(next_retry) => {}
                _ = poll.tick() => {
                    self.take_locks().await?;
                    if cleaned.elapsed() >= CLEAN_EVERY && !self.held.is_empty() {
                        cleaned = Instant::now();
                        while outbox::clean(&mut self.conn, chrono::Duration::hours(KEEP_HOURS)).await? {}
                    }
                }
            }
            self.fill().await?;
        }
    }

    /// Takes the shards that nobody holds.
    async fn take_locks(&mut self) -> sqlx::Result<()> {
        if self.held.len() == SHARDS as usize {
            return Ok(());
        }
        let wanted: Vec<i16> = (0..SHARDS)
            .filter(|shard| !self.held.contains(shard))
            .collect();
        let taken: Vec<i16> = sqlx::query_scalar(
            "select shard from unnest($1::smallint[]) as s (shard)
             where pg_try_advisory_lock($2, shard)",
        )
        .bind(&wanted)
        .bind(lock_space(self.outbox.source))
        .fetch_all(&mut self.conn)
        .await?;
        self.held.extend(taken);
        Ok(())
    }

    /// Somebody else may be the one who relays what was just committed here. Said after the
    /// commit and for many commits at once: a NOTIFY inside the transaction would make all
    /// commits of the database wait for one another.
    async fn pass_on(&mut self) -> sqlx::Result<()> {
        if self.held.len() < SHARDS as usize {
            sqlx::query("select pg_notify($1, '')")
                .bind(channel(self.outbox.source))
                .execute(&mut self.conn)
                .await?;
        }
        Ok(())
    }

    fn next_retry(&self) -> Option<Instant> {
        let now = Instant::now();
        self.waiting
            .values()
            .map(|waiting| waiting.until)
            .filter(|until| *until > now)
            .min()
    }

    /// Starts delivering what waits, as far as there is room.
    async fn fill(&mut self) -> sqlx::Result<()> {
        let now = Instant::now();
        self.waiting
            .retain(|_, waiting| waiting.until + FORGET > now);
        let room = self
            .delivery
            .keys_at_once()
            .saturating_sub(self.running.len());
        let resting = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.until > now);
        let skip: Vec<String> = self
            .busy
            .iter()
            .chain(resting.map(|(key, _)| key))
            .cloned()
            .collect();
        if self.held.is_empty() || room == 0 || skip.len() > WAITING_KEYS_MAX {
            return Ok(());
        }
        let rows = outbox::pending(&mut self.conn, &self.held, &skip, 4 * room as i64).await?;
        for (key, rows) in by_key(rows, room) {
            self.busy.push(key.clone());
            self.running.spawn(deliver_key(
                self.delivery.clone(),
                self.outbox.source,
                key,
                rows,
            ));
        }
        Ok(())
    }

    /// Marks what arrived, for everyone who has finished by now in one statement.
    async fn settle(&mut self, first: Result<Finished, JoinError>) -> sqlx::Result<()> {
        let mut delivered = Vec::new();
        let mut next = Some(first);
        while let Some(joined) = next {
            // Which key broke is unknown then: a new session starts from the table.
            let one = joined.map_err(|_| sqlx::Error::WorkerCrashed)?;
            self.busy.retain(|key| *key != one.key);
            delivered.extend(one.delivered);
            match one.failure {
                None => drop(self.waiting.remove(&one.key)),
                Some(cause) => self.rest(one.key, &cause),
            }
            next = self.running.try_join_next();
        }
        if !delivered.is_empty() {
            outbox::mark_published(&mut self.conn, &delivered).await?;
            crate::failpoint!("events.after_mark");
        }
        Ok(())
    }

    fn rest(&mut self, key: String, cause: &anyhow::Error) {
        let pause = match self.waiting.get(&key) {
            Some(waiting) => (waiting.pause * 2).min(RETRY_MAX),
            None => RETRY_FIRST,
        };
        if pause == RETRY_FIRST {
            tracing::warn!(
                outbox = self.outbox.source,
                key,
                error = format!("{cause:#}"),
                "event waits"
            );
        }
        self.waiting.insert(
            key,
            Waiting {
                until: Instant::now() + pause,
                pause,
            },
        );
    }

    async fn drain(&mut self) -> sqlx::Result<()> {
        let deadline = Instant::now() + DRAIN;
        while !self.running.is_empty() {
            match tokio::time::timeout_at(deadline, self.running.join_next()).await {
                Ok(Some(finished)) => self.settle(finished).await?,
                Ok(None) | Err(_) => break,
            }
        }
        Ok(())
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Groups rows by key, keeping their order; at most `keys_max` keys.
fn by_key(rows: Vec<Pending>, keys_max: usize) -> Vec<(String, Vec<Pending>)> {
    let mut groups: Vec<(String, Vec<Pending>)> = Vec::new();
    for row in rows {
        match groups.iter().position(|(key, _)| *key == row.key) {
            Some(at) => groups[at].1.push(row),
            None if groups.len() < keys_max => groups.push((row.key.clone(), vec![row])),
            // Its key is read again once there is room, from its first row on.
            None => {}
        }
    }
    groups
}

async fn deliver_key(
    delivery: Delivery,
    source: &'static str,
    key: String,
    rows: Vec<Pending>,
) -> Finished {
    let mut delivered = Vec::with_capacity(rows.len());
    for row in rows {
        let id = row.id;
        let event = row.into_event(source);
        crate::failpoint!("events.before_delivery");
        if let Err(cause) = delivery.deliver(&event).await {
            return Finished {
                key,
                delivered,
                failure: Some(cause),
            };
        }
        crate::failpoint!("events.after_delivery");
        delivered.push(id);
    }
    Finished {
        key,
        delivered,
        failure: None,
    }
}
