//! The consuming side: keys side by side, one after the other within a key, offsets stored
//! only once everything below them is done.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use prometheus_client::metrics::{family::Family, gauge::Gauge};
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::super::consume::{Outcome, consume};
use super::super::{Event, Subscription, dead};
use super::progress::Progress;
use super::publisher::{Dead, Publisher};
use super::{KafkaConfig, LagOf};

/// Messages taken and not done; above it, the partitions are paused. Handlers each take a
/// database connection now and then, and a store that is away must not fill the memory.
const TAKEN_MAX: usize = 128;
/// Handlers at once.
const AT_ONCE: usize = 12;
/// Between tries while a store is away, doubling.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);
/// Together below what a stopping process grants its tasks.
const DRAIN: Duration = Duration::from_secs(2);
const LEAVE: Duration = Duration::from_secs(1);
const STATS_EVERY_MS: &str = "2000";

type Partition = (String, i32);

/// Runs one role's consumer group member until told to stop.
pub(in super::super) async fn run(
    config: KafkaConfig,
    subscriptions: Vec<Subscription>,
    publisher: Arc<Publisher>,
    lag: Family<LagOf, Gauge<i64, AtomicI64>>,
    stop: CancellationToken,
) {
    let Some(consumer_name) = subscriptions.first().map(|one| one.consumer) else {
        return;
    };
    let sources = super::sources_of(&subscriptions);
    tokio::select! {
        () = stop.cancelled() => return,
        () = super::ensure_topics(&config, &sources) => {}
    }
    let topics: Vec<String> = sources.iter().map(|source| config.topic(source)).collect();
    let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
    let work = Arc::new(Work {
        config,
        subscriptions,
        publisher,
        stop: stop.clone(),
    });
    while !stop.is_cancelled() {
        let (revoked, revocations) = mpsc::unbounded_channel();
        let context = Context {
            consumer: consumer_name,
            revoked,
            lag: lag.clone(),
        };
        let joined = make(&work.config, consumer_name, context)
            .and_then(|consumer| consumer.subscribe(&topics).map(|()| consumer));
        match joined {
            Ok(consumer) => {
                Member::new(consumer, work.clone(), revocations)
                    .stay(&stop)
                    .await
            }
            Err(error) => {
                tracing::error!(consumer = consumer_name, %error, "cannot consume from Kafka");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY_MAX) => {}
        }
    }
}

fn make(
    config: &KafkaConfig,
    consumer: &str,
    context: Context,
) -> Result<StreamConsumer<Context>, rdkafka::error::KafkaError> {
    config
        .client()
        .set("group.id", config.topic(consumer))
        // What was said before the group existed is heard too.
        .set("auto.offset.reset", "earliest")
        // Offsets are stored by us, after the effect; only the sending of them is automatic.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "500")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // The partitions of a member that died, froze or was cut off move on after so long: the
        // least that brokers allow unless told otherwise, and three heartbeats. Members have no
        // static id (`group.instance.id`): with one, a member that is started again elsewhere
        // would be fenced by the frozen one, and a clean leave would free nothing.
        .set("session.timeout.ms", "6000")
        .set("heartbeat.interval.ms", "2000")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.error.backoff.ms", "250")
        .set("queued.max.messages.kbytes", "4096")
        .set("statistics.interval.ms", STATS_EVERY_MS)
        .create_with_context(context)
}

/// Hears of rebalances and statistics, inside the client's own calls.
struct Context {
    consumer: &'static str,
    revoked: mpsc::UnboundedSender<Vec<Partition>>,
    lag: Family<LagOf, Gauge<i64, AtomicI64>>,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        for (name, topic) in statistics.topics {
            let lag = topic
                .partitions
                .values()
                .map(|one| one.consumer_lag.max(0))
                .sum();
            self.lag
                .get_or_create(&LagOf {
                    consumer: self.consumer,
                    topic: name,
                })
                .set(lag);
        }
    }

    fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
        tracing::debug!(consumer = self.consumer, %error, reason, "Kafka");
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if let Rebalance::Revoke(partitions) = rebalance {
            let partitions = partitions
                .elements()
                .iter()
                .map(|one| (one.topic().to_owned(), one.partition()))
                .collect();
            let _ = self.revoked.send(partitions);
        }
    }
}

/// A group member that leaves on a thread of its own: it commits its offsets and says goodbye,
/// and where the broker is away that takes for ever. Nobody here waits so long: a member that
/// said nothing is missed after its session, and its messages come again.
struct Leaving(Option<StreamConsumer<Context>>);

impl Leaving {
    fn get(&self) -> &StreamConsumer<Context> {
        self.0.as_ref().expect("only leaving takes it")
    }

    async fn leave(mut self) {
        let Some(consumer) = self.0.take() else {
            return;
        };
        let (tell, told) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            drop(consumer);
            let _ = tell.send(());
        });
        if tokio::time::timeout(LEAVE, told).await.is_err() {
            tracing::warn!("Kafka is away: left without a goodbye");
        }
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        if let Some(consumer) = self.0.take() {
            std::thread::spawn(move || drop(consumer));
        }
    }
}

/// What every message needs.
struct Work {
    config: KafkaConfig,
    subscriptions: Vec<Subscription>,
    publisher: Arc<Publisher>,
    stop: CancellationToken,
}

/// A message, out of the client's memory.
struct Taken {
    partition: Partition,
    offset: i64,
    key: Vec<u8>,
    payload: Vec<u8>,
    /// Set when the partition is somebody else's by now: they will be given it again.
    lost: Arc<AtomicBool>,
}

/// A message whose turn has ended; not done where it was given up for another member or
/// another run to be given it again.
struct Ended {
    taken: Taken,
    done: bool,
}

struct Assigned {
    progress: Progress,
    lost: Arc<AtomicBool>,
}

type Lane = (Partition, Vec<u8>);

struct Member {
    consumer: Leaving,
    work: Arc<Work>,
    revocations: mpsc::UnboundedReceiver<Vec<Partition>>,
    partitions: HashMap<Partition, Assigned>,
    /// Messages that wait behind one of the same key.
    lanes: HashMap<Lane, VecDeque<Taken>>,
    running: JoinSet<Ended>,
    /// Heads of lanes that wait for a free hand.
    ready: VecDeque<Taken>,
    taken: usize,
    paused: bool,
}

enum Woke {
    Stop,
    Revoked(Vec<Partition>),
    Ended(Ended),
    Broken,
    Nothing,
}

impl Member {
    fn new(
        consumer: StreamConsumer<Context>,
        work: Arc<Work>,
        revocations: mpsc::UnboundedReceiver<Vec<Partition>>,
    ) -> Self {
        Self {
            consumer: Leaving(Some(consumer)),
            work,
            revocations,
            partitions: HashMap::new(),
            lanes: HashMap::new(),
            running: JoinSet::new(),
            ready: VecDeque::new(),
            taken: 0,
            paused: false,
        }
    }

    /// Works until told to stop, or until something breaks; then leaves the group.
    async fn stay(mut self, stop: &CancellationToken) {
        self.run(stop).await;
        self.consumer.leave().await;
    }

    async fn run(&mut self, stop: &CancellationToken) {
        loop {
            let woke = tokio::select! {
                biased;
                () = stop.cancelled() => Woke::Stop,
                Some(partitions) = self.revocations.recv() => Woke::Revoked(partitions),
                Some(ended) = self.running.join_next(), if !self.running.is_empty() => {
                    ended.map_or(Woke::Broken, Woke::Ended)
                }
                message = self.consumer.get().recv() => match message {
                    Ok(message) => {
                        let taken = read(&message, &mut self.partitions);
                        drop(message);
                        self.enqueue(taken);
                        Woke::Nothing
                    }
                    Err(error) => {
                        tracing::debug!(%error, "Kafka has no messages now");
                        tokio::time::sleep(RETRY_FIRST).await;
                        Woke::Nothing
                    }
                },
            };
            match woke {
                Woke::Stop | Woke::Broken => break,
                Woke::Revoked(partitions) => self.revoke(&partitions),
                Woke::Ended(ended) => self.finish(&ended),
                Woke::Nothing => {}
            }
            self.start();
            self.throttle();
        }
        self.drain().await;
    }

    fn enqueue(&mut self, taken: Option<Taken>) {
        let Some(taken) = taken else { return };
        self.taken += 1;
        let lane = (taken.partition.clone(), taken.key.clone());
        match self.lanes.get_mut(&lane) {
            Some(waiting) => waiting.push_back(taken),
            None => {
                self.lanes.insert(lane, VecDeque::new());
                self.ready.push_back(taken);
            }
        }
    }

    fn start(&mut self) {
        while self.running.len() < AT_ONCE {
            let Some(taken) = self.ready.pop_front() else {
                return;
            };
            let work = self.work.clone();
            self.running.spawn(async move {
                let done = work.handle(&taken).await;
                Ended { taken, done }
            });
        }
    }

    fn finish(&mut self, ended: &Ended) {
        let taken = &ended.taken;
        self.taken = self.taken.saturating_sub(1);
        let lane = (taken.partition.clone(), taken.key.clone());
        match self.lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
            Some(next) => self.ready.push_back(next),
            None => drop(self.lanes.remove(&lane)),
        }
        if !ended.done || taken.lost.load(Ordering::SeqCst) {
            return;
        }
        let assigned = self.partitions.get_mut(&taken.partition);
        if let Some(next) = assigned.and_then(|assigned| assigned.progress.done(taken.offset)) {
            self.store(&taken.partition, next);
        }
    }

    fn store(&self, (topic, partition): &Partition, next: i64) {
        let mut list = TopicPartitionList::new();
        let stored = list
            .add_partition_offset(topic, *partition, Offset::Offset(next))
            .and_then(|()| self.consumer.get().store_offsets(&list));
        if let Err(error) = stored {
            // Not ours any more: whoever has it begins at the last stored offset.
            tracing::debug!(%error, "offset not stored");
        }
    }

    /// Forgets partitions that went to another member, which is given their messages again.
    fn revoke(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if let Some(assigned) = self.partitions.remove(partition) {
                assigned.lost.store(true, Ordering::SeqCst);
            }
        }
        let lost = |taken: &Taken| taken.lost.load(Ordering::SeqCst);
        let before = self.ready.len();
        let dropped: VecDeque<Taken> = {
            let (gone, kept) = std::mem::take(&mut self.ready).into_iter().partition(lost);
            self.ready = kept;
            gone
        };
        self.taken -= before - self.ready.len();
        for taken in dropped {
            if let Some(waiting) = self.lanes.remove(&(taken.partition, taken.key)) {
                self.taken -= waiting.len();
            }
        }
        // Lanes whose head is running keep their place but lose what waits.
        for ((partition, _), waiting) in &mut self.lanes {
            if partitions.contains(partition) {
                self.taken -= waiting.len();
                waiting.clear();
            }
        }
        // Pausing is by partition, and the set of them has just changed.
        self.paused = false;
    }

    /// Asking goes on while paused, so that the group does not take us for dead.
    fn throttle(&mut self) {
        let wanted = self.taken >= TAKEN_MAX || (self.paused && self.taken > TAKEN_MAX / 2);
        if wanted == self.paused {
            return;
        }
        let changed = self.consumer.get().assignment().and_then(|all| {
            if wanted {
                self.consumer.get().pause(&all)
            } else {
                self.consumer.get().resume(&all)
            }
        });
        match changed {
            Ok(()) => self.paused = wanted,
            Err(error) => tracing::debug!(%error, "cannot pause or resume"),
        }
    }

    /// Lets what is under way end; what waits is given again to whoever comes next.
    async fn drain(&mut self) {
        let ended = async {
            while let Some(ended) = self.running.join_next().await {
                if let Ok(ended) = ended {
                    self.finish(&ended);
                }
            }
        };
        let _ = tokio::time::timeout(DRAIN, ended).await;
    }
}

fn read(
    message: &BorrowedMessage<'_>,
    partitions: &mut HashMap<Partition, Assigned>,
) -> Option<Taken> {
    let partition = (message.topic().to_owned(), message.partition());
    let assigned = partitions
        .entry(partition.clone())
        .or_insert_with(|| Assigned {
            progress: Progress::default(),
            lost: Arc::default(),
        });
    if assigned.progress.is_behind(message.offset()) {
        // The broker lost its log, and the partition begins anew (`auto.offset.reset`). What is
        // under way is of the log before: its offsets mean nothing now, and the inbox knows what
        // has acted.
        let (topic, number) = &partition;
        tracing::warn!(
            kafka.topic = topic,
            kafka.partition = number,
            kafka.offset = message.offset(),
            "partition {number} of {topic} goes back to offset {}: the broker has lost data; consuming again from there",
            message.offset()
        );
        assigned.lost.store(true, Ordering::SeqCst);
        *assigned = Assigned {
            progress: Progress::default(),
            lost: Arc::default(),
        };
    }
    assigned.progress.take(message.offset()).then(|| Taken {
        partition,
        offset: message.offset(),
        key: message.key().unwrap_or_default().to_vec(),
        payload: message.payload().unwrap_or_default().to_vec(),
        lost: assigned.lost.clone(),
    })
}

impl Work {
    /// True when the message never needs to come again; false when it is another member's by
    /// now, or we are stopping.
    async fn handle(&self, taken: &Taken) -> bool {
        let mut pause = RETRY_FIRST;
        let mut buried = None;
        while let Err(cause) = self.try_handle(taken, &mut buried).await {
            if taken.lost.load(Ordering::SeqCst) || self.stop.is_cancelled() {
                return false;
            }
            if pause == RETRY_FIRST {
                tracing::warn!(
                    topic = taken.partition.0,
                    partition = taken.partition.1,
                    offset = taken.offset,
                    error = format!("{cause:#}"),
                    "message waits"
                );
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
        true
    }

    /// `buried` remembers why the message was given up, so that a retry only repeats what is left.
    async fn try_handle(
        &self,
        taken: &Taken,
        buried: &mut Option<(&'static str, String)>,
    ) -> Result<(), anyhow::Error> {
        crate::failpoint!("kafka.before_handle");
        if buried.is_none() {
            *buried = self.hand_over(taken).await?;
        }
        crate::failpoint!("kafka.after_handle");
        if let Some((consumer, error)) = buried {
            self.to_dead_topic(taken, consumer, error).await?;
            crate::failpoint!("kafka.after_dead_letter");
        }
        Ok(())
    }

    async fn hand_over(
        &self,
        taken: &Taken,
    ) -> Result<Option<(&'static str, String)>, anyhow::Error> {
        let ((topic, partition), offset) = (&taken.partition, taken.offset);
        let origin = format!("{topic}/{partition}@{offset}");
        let event: Event = match serde_json::from_slice(&taken.payload) {
            Ok(event) => event,
            Err(error) => {
                let reason = format!("no CloudEvent: {error}");
                return self.bury_raw(taken, &origin, &reason).await.map(Some);
            }
        };
        let mut given_up = None;
        for subscription in self.subscriptions.iter().filter(|one| one.wants(&event)) {
            if let Outcome::Buried(error) = consume(subscription, &event, &origin).await? {
                given_up = Some((subscription.consumer, error));
            }
        }
        Ok(given_up)
    }

    async fn bury_raw(
        &self,
        taken: &Taken,
        origin: &str,
        reason: &str,
    ) -> Result<(&'static str, String), anyhow::Error> {
        let first = &self.subscriptions[0];
        // Stable for this place, so that handing it over again makes no second letter.
        let digest = Sha256::digest(origin.as_bytes());
        let id = uuid::Builder::from_custom_bytes(std::array::from_fn(|at| digest[at])).into_uuid();
        let key = String::from_utf8_lossy(&taken.key);
        let payload = String::from_utf8_lossy(&taken.payload);
        let names: (Uuid, &str, &str) = (id, "unreadable", &key);
        dead::bury_raw(&first.pool, first.consumer, origin, names, &payload, reason).await?;
        Ok((first.consumer, reason.to_owned()))
    }

    async fn to_dead_topic(
        &self,
        taken: &Taken,
        consumer: &str,
        error: &str,
    ) -> Result<(), anyhow::Error> {
        let (topic, partition) = &taken.partition;
        let source = topic
            .strip_prefix(&format!("{}.", self.config.prefix))
            .unwrap_or(topic);
        let dead = Dead {
            source,
            consumer,
            key: &taken.key,
            payload: &taken.payload,
            origin: (topic, *partition, taken.offset),
            error,
        };
        self.publisher.bury(&dead).await
    }
}
