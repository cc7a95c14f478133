//! One queue as an instance sees it: its room in Redis, the newest snapshot, and
//! the requests that wait to go with the next call.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::watch;
use uuid::Uuid;

use super::{
    batch::Batcher,
    epochs::{Draw, Progress},
    error::{Error, ms},
    scripts::{Bounds, Outcome, Room, Seen},
    settings::Settings,
    snapshot::{Ranks, RateMeter, Snapshot},
};
use crate::platform::place::Place;

/// Who asked for a queue keeps it fresh for this long.
const ASKED_MS: u64 = 60_000;

/// What performances tell of a performance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// When booking opens.
    pub booking_opens_at: Option<chrono::DateTime<chrono::Utc>>,
    /// When it closes.
    pub booking_closes_at: Option<chrono::DateTime<chrono::Utc>>,
    /// Seats of all its schedules.
    pub total_seats: i64,
    /// Which schedules those are.
    pub schedule_ids: Vec<uuid::Uuid>,
    /// Seats of the schedules that are still sold, and which those are.
    #[serde(default)]
    pub open_seats: Option<i64>,
    /// See `open_seats`.
    #[serde(default)]
    pub open_schedule_ids: Option<Vec<uuid::Uuid>>,
}

impl Facts {
    /// Seats of the schedules that are still sold.
    pub fn open_seats(&self) -> i64 {
        self.open_seats.unwrap_or(self.total_seats)
    }

    /// The schedules that are still sold.
    pub fn open_schedules(&self) -> &[uuid::Uuid] {
        self.open_schedule_ids
            .as_deref()
            .unwrap_or(&self.schedule_ids)
    }
}

/// Settings and facts, together in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    /// Ours.
    pub settings: Settings,
    /// Theirs.
    pub facts: Facts,
}

impl Rules {
    /// Fields of the meta hash.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        let time = |t| match ms(t) {
            -1 => String::new(),
            at => at.to_string(),
        };
        let mut fields = self.settings.fields();
        fields.push(("opensAt", time(self.facts.booking_opens_at)));
        fields.push(("closesAt", time(self.facts.booking_closes_at)));
        fields
    }
}

/// What is noted of the epochs before one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Before {
    /// The one.
    pub epoch: u32,
    /// What they had served.
    pub served: u64,
    /// No place of an earlier epoch than this comes back.
    pub fresh_from: u32,
    /// How long nobody could be served before it began: turns of earlier epochs last so much longer.
    pub lost_ms: u64,
}

/// The answer to one person of a batch.
pub type Answer = Result<Outcome, Error>;

/// A tick never runs twice at once; a wish during one is granted after it.
#[derive(Debug, Default)]
pub struct OneAtATime {
    running: AtomicBool,
    again: AtomicBool,
}

impl OneAtATime {
    /// True: run now. False: it runs already, and will run once more.
    pub fn begin(&self) -> bool {
        self.again.store(true, Relaxed);
        !self.running.swap(true, std::sync::atomic::Ordering::AcqRel)
    }

    /// Whether a round runs.
    pub fn is_running(&self) -> bool {
        self.running.load(Relaxed)
    }

    /// Before each round: forget wishes so far.
    pub fn round(&self) {
        self.again.store(false, Relaxed);
    }

    /// After a round: true when there is another.
    pub fn more(&self) -> bool {
        if self.again.load(Relaxed) {
            return true;
        }
        self.running
            .store(false, std::sync::atomic::Ordering::Release);
        // A wish that fell between the two lines above must not be lost.
        self.again.load(Relaxed) && !self.running.swap(true, std::sync::atomic::Ordering::AcqRel)
    }
}

/// One queue of this instance.
pub struct Live {
    /// The performance.
    pub id: Uuid,
    /// Its state in Redis.
    pub room: Room,
    /// What is in force, as this instance knows it.
    pub rules: ArcSwap<Rules>,
    /// The newest reading.
    pub snapshot: ArcSwap<Snapshot>,
    /// The draw, where there is a pre-queue.
    pub draw: ArcSwap<Option<Draw>>,
    /// Ranks of the newest reading.
    pub ranks: Mutex<Arc<Ranks>>,
    /// Admissions as measured here.
    pub rate: Mutex<RateMeter>,
    /// People who enter.
    pub entering: Batcher<Uuid, Answer>,
    /// People who come back by a token of an earlier epoch.
    pub returning: Batcher<Place, Answer>,
    /// One tick at a time.
    pub ticking: OneAtATime,
    /// One round of notes to Postgres at a time.
    pub noting: OneAtATime,
    /// One recovery at a time.
    pub recovering: tokio::sync::Mutex<()>,
    /// What is noted of the epochs before.
    pub before: Mutex<Before>,
    /// The public snapshot for event streams; `None` ends them.
    pub events: watch::Sender<Option<Bytes>>,
    /// When the streams last heard something, ms.
    pub told_ms: AtomicU64,
    /// Something changed that the streams have not heard.
    pub untold: AtomicBool,
    /// What Postgres knows of the draw by this instance, and in which epoch.
    pub draw_noted: Mutex<Option<(u32, Bounds)>>,
    /// The progress that this instance wrote down last, and when (ms of this process).
    pub checkpoint: Mutex<Option<(Progress, u64)>>,
    /// The newest reading of this epoch that another instance wrote down.
    pub elsewhere: AtomicI64,
    /// When that was last newer than before, ms of this process.
    pub elsewhere_moved_ms: AtomicU64,
    /// When the next tick is due, ms of this process.
    pub next_ms: AtomicU64,
    /// One refresh at a time, of a snapshot that nobody kept fresh.
    pub refreshing: tokio::sync::Mutex<()>,
    /// Other instances read this queue, and this one does not: it must not answer.
    pub cut_off: AtomicBool,
    /// Places whose deadline had passed at the last tick.
    pub overdue: AtomicU64,
    /// Places that end within a minute, at the last tick.
    pub soon: AtomicU64,
    began: Instant,
    fresh_ms: AtomicU64,
    asked_ms: AtomicU64,
    seen: Mutex<Seen>,
}

/// Milliseconds since 1970, by this machine's clock.
pub fn now_ms() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

impl Live {
    /// A queue of which nothing has been read yet.
    pub fn new(id: Uuid, room: Room, rules: Rules, draw: Option<Draw>, nothing: Snapshot) -> Self {
        Self {
            id,
            room,
            rules: ArcSwap::from_pointee(rules),
            snapshot: ArcSwap::from_pointee(nothing),
            draw: ArcSwap::from_pointee(draw),
            ranks: Mutex::new(Arc::new(Ranks::none())),
            rate: Mutex::default(),
            entering: Batcher::default(),
            returning: Batcher::default(),
            ticking: OneAtATime::default(),
            noting: OneAtATime::default(),
            recovering: tokio::sync::Mutex::default(),
            before: Mutex::default(),
            events: watch::Sender::new(Some(Bytes::new())),
            told_ms: AtomicU64::new(0),
            untold: AtomicBool::new(false),
            draw_noted: Mutex::default(),
            checkpoint: Mutex::default(),
            elsewhere: AtomicI64::new(0),
            elsewhere_moved_ms: AtomicU64::new(0),
            next_ms: AtomicU64::new(0),
            refreshing: tokio::sync::Mutex::default(),
            cut_off: AtomicBool::new(false),
            overdue: AtomicU64::new(0),
            soon: AtomicU64::new(0),
            began: Instant::now(),
            fresh_ms: AtomicU64::new(0),
            asked_ms: AtomicU64::new(0),
            seen: Mutex::default(),
        }
    }

    /// This process's own clock, which nobody sets, ms.
    pub fn uptime_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The next tick is due in so many milliseconds.
    pub fn schedule(&self, in_ms: u64) {
        self.next_ms
            .store(self.uptime_ms().saturating_add(in_ms), Relaxed);
    }

    /// Whether the next tick is due.
    pub fn is_due(&self) -> bool {
        self.uptime_ms() + 50 >= self.next_ms.load(Relaxed)
    }

    /// A reading was taken just now.
    pub fn read_now(&self) {
        self.fresh_ms.store(self.uptime_ms(), Relaxed);
    }

    /// How old the snapshot is, ms.
    pub fn age_ms(&self) -> u64 {
        self.uptime_ms().saturating_sub(self.fresh_ms.load(Relaxed))
    }

    /// Whether this instance must not answer for the queue: others read it, and this one does not.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.load(Relaxed)
    }

    /// Somebody asked.
    pub fn asked(&self, now: u64) {
        // Written once a second at most: the line is shared by every core.
        if now.saturating_sub(self.asked_ms.load(Relaxed)) > 1_000 {
            self.asked_ms.store(now, Relaxed);
        }
    }

    /// Whether somebody asked within the last minute, or listens.
    pub fn wanted(&self, now: u64) -> bool {
        now.saturating_sub(self.asked_ms.load(Relaxed)) < ASKED_MS
            || self.events.receiver_count() > 0
    }

    /// What is known of the state, to hold against what Redis has.
    pub fn seen(&self) -> Seen {
        *self.lock_seen()
    }

    /// Something newer was seen.
    pub fn saw(&self, seen: Seen) {
        let mut known = self.lock_seen();
        *known = (*known).max(seen);
    }

    fn lock_seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen
            .lock()
            .expect("nothing panics while it holds this lock")
    }
}
