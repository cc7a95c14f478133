//! The relay of one schema: unpublished rows out, in order for each key, marked once delivered.
//!
//! One relay delivers a shard at a time, under a lease with a heartbeat; other instances stand by
//! and pass on the wake-ups of their own commits. A relay that is frozen, or cut off from its
//! database, is replaced within ten seconds. Rows of one key go one after the other; rows of
//! different keys go side by side. A crash between delivery and mark delivers again, and a thawed
//! relay may finish one delivery late: the consumers' inboxes absorb the former, and no consumer
//! relies on the order of arrival.

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
use super::outbox::{self, Pending};
use super::shards::{Deadline, Shards};
use super::{Event, Outbox};
use crate::platform::lease::{self, LeaseMetrics};
use crate::platform::{db, tasks};

/// The net under lost wake-ups, and how soon a standby notices that a lease has run out.
const POLL: Duration = Duration::from_secs(1);
/// Before a relay that lost its database connects again.
const REOPEN: Duration = Duration::from_millis(300);
const LISTEN_ASK_EVERY: Duration = Duration::from_secs(15);
/// A database that answers takes milliseconds. Through a connection that swallows everything no
/// answer and no error ever comes: the relay then opens another one.
const ANSWER_MAX: Duration = Duration::from_secs(4);
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
pub(super) async fn run(
    outbox: Outbox,
    delivery: Delivery,
    leases: LeaseMetrics,
    stop: CancellationToken,
) {
    let (heard, token) = (outbox.clone(), stop.clone());
    let listening = AbortOnDropHandle::new(tokio::spawn(tasks::supervise(
        "outbox-listener",
        stop.clone(),
        move || listen(heard.clone(), token.clone()),
    )));
    let mut shards = Shards::new(outbox.source, leases);
    let mut quiet = false;
    while !stop.is_cancelled() {
        match Session::open(&outbox, &delivery, &mut shards).await {
            Ok(mut session) => {
                if quiet {
                    tracing::info!(outbox = outbox.source, "relay has its database again");
                }
                quiet = false;
                if let Err(error) = session.work(&stop).await {
                    db::observe(&error);
                    tracing::warn!(outbox = outbox.source, %error, "relay lost its database");
                    quiet = true;
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
            () = tokio::time::sleep(lease::jittered(REOPEN)) => {}
        }
    }
    drop(listening);
}

/// Wake-ups from other instances. Losing them costs the slow poll's second, so errors only wait.
/// A listener says nothing for as long as nothing happens: it is asked now and then, so that one
/// whose connection went silent is replaced.
async fn listen(outbox: Outbox, stop: CancellationToken) {
    while !stop.is_cancelled() {
        // Off the role's pool: a listener keeps its connection for ever.
        let own = db::apart(
            &outbox.pool,
            &format!("ticketping-listen-{}", outbox.source),
        );
        let listening = db::within(ANSWER_MAX, async {
            let mut listener = PgListener::connect_with(&own).await?;
            listener.listen(&channel(outbox.source)).await?;
            Ok(listener)
        });
        if let Ok(mut listener) = listening.await {
            loop {
                let heard = tokio::time::timeout(LISTEN_ASK_EVERY, listener.try_recv());
                match heard.await {
                    Ok(Ok(Some(_))) => outbox.signal.nudge(),
                    Ok(Ok(None) | Err(_)) => break,
                    Err(_) => {
                        let asked = sqlx::query("select 1").execute(&mut listener);
                        if db::within(ANSWER_MAX, asked).await.is_err() {
                            break;
                        }
                    }
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

fn channel(source: &str) -> String {
    format!("ticketping_outbox_{source}")
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

/// A connection, and what is under way over it.
struct Session<'a> {
    outbox: &'a Outbox,
    delivery: &'a Delivery,
    shards: &'a mut Shards,
    conn: PgConnection,
    running: JoinSet<Finished>,
    busy: Vec<String>,
    waiting: HashMap<String, Waiting>,
}

impl<'a> Session<'a> {
    async fn open(
        outbox: &'a Outbox,
        delivery: &'a Delivery,
        shards: &'a mut Shards,
    ) -> sqlx::Result<Self> {
        // A connection of its own: the leases are renewed on it even while requests use up the
        // pool, and after a partition the pool's may be dead without knowing.
        let own = db::apart(&outbox.pool, &format!("ticketping-relay-{}", outbox.source));
        let conn = db::within(ANSWER_MAX, own.acquire()).await?.detach();
        Ok(Self {
            outbox,
            delivery,
            shards,
            conn,
            running: JoinSet::new(),
            busy: Vec::new(),
            waiting: HashMap::new(),
        })
    }

    async fn work(&mut self, stop: &CancellationToken) -> sqlx::Result<()> {
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let next_retry = self.next_retry();
            tokio::select! {
                () = stop.cancelled() => return self.drain().await,
                // First of all: a thawed relay renews, or finds its leases gone, before it goes on.
                _ = poll.tick() => {
                    db::within(ANSWER_MAX, self.shards.keep(&mut self.conn)).await?;
                }
                () = self.outbox.signal.woken() => self.pass_on().await?,
                () = self.outbox.signal.nudged() => {}
                Some(finished) = self.running.join_next(), if !self.running.is_empty() => {
                    self.settle(finished).await?;
                }
                () = sleep_until(next_retry) => {}
            }
            self.fill().await?;
        }
    }

    /// Somebody else may be the one who relays what was just committed here. Said after the
    /// commit and for many commits at once: a NOTIFY inside the transaction would make all
    /// commits of the database wait for one another.
    async fn pass_on(&mut self) -> sqlx::Result<()> {
        if !self.shards.are_all_held() {
            let notify = sqlx::query("select pg_notify($1, '')")
                .bind(channel(self.outbox.source))
                .execute(&mut self.conn);
            db::within(ANSWER_MAX, notify).await?;
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
        let held = self.shards.held();
        if held.is_empty() || room == 0 || skip.len() > WAITING_KEYS_MAX {
            return Ok(());
        }
        let rows = outbox::pending(&mut self.conn, held, &skip, 4 * room as i64);
        let rows = db::within(ANSWER_MAX, rows).await?;
        for (key, rows) in by_key(rows, room) {
            self.busy.push(key.clone());
            self.running.spawn(deliver_key(
                self.delivery.clone(),
                self.shards.deadline(),
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
            // Also by a relay that was overtaken meanwhile: what it delivered is delivered.
            let marked = outbox::mark_published(&mut self.conn, &delivered);
            db::within(ANSWER_MAX, marked).await?;
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
        // What is still running must not go on beside the next relay.
        self.running.shutdown().await;
        db::within(ANSWER_MAX, self.shards.release(&mut self.conn)).await
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
    deadline: Deadline,
    source: &'static str,
    key: String,
    rows: Vec<Pending>,
) -> Finished {
    let mut delivered = Vec::with_capacity(rows.len());
    for row in rows {
        // The shard is another relay's by now, which reads what is left.
        if deadline.has_passed() {
            break;
        }
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
