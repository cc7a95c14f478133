//! The pulse of every queue this instance knows: a few times a second while somebody asks, when
//! something can happen in it, and at every expiry notification.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use uuid::Uuid;

use super::{
    State,
    epochs::{self, Elsewhere},
    error::Error,
    live::{Live, now_ms},
    scripts::Seen,
    wake,
};
use crate::platform::{
    alarms::{self, Alarm},
    redis,
    tasks::{self, Tasks},
};

/// How often queues are looked through for those that are due: the age of a snapshot at most, while
/// it is asked for.
const PULSE: Duration = Duration::from_millis(250);
/// A tick that failed is tried again after this.
const RETRY_MS: u64 = 500;
/// How often is read what other instances have written: changed settings, other epochs, newer readings.
const ELSEWHERE_EVERY: Duration = Duration::from_millis(500);
/// A snapshot that is older than this is compared with what other instances have read.
const AGE_MAX_MS: u64 = 2_000;
/// Another instance is ahead when its reading is so much newer.
const AHEAD_MS: i64 = 500;
/// Others read a queue when one of them wrote a newer reading within this: in a total outage nobody does.
const MOVED_MS: u64 = 4_000;
/// How often progress is written to PostgreSQL.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// How often what can no longer count is removed.
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// The state of a queue leaves Redis so long after booking closed.
const CLOSED_KEPT_MS: i64 = 7 * 86_400_000;
/// Queues of performances that are not on sale are looked up so many at a time.
const LET_GO_MAX: usize = 20;
/// How often a performance's facts are read again, should a change of them have gone unheard.
const FACTS_EVERY: Duration = Duration::from_secs(5);
/// How often queues that live elsewhere are looked for.
const ADOPT_EVERY: Duration = Duration::from_secs(10);

/// Starts what this role does in the background.
pub fn tasks(state: &State, tasks: &Tasks) {
    let pulse = state.clone();
    tasks.every("queue.pulse", PULSE, move || {
        let state = pulse.clone();
        async move { state.pulse() }
    });
    let elsewhere = state.clone();
    tasks.every("queue.elsewhere", ELSEWHERE_EVERY, move || {
        let state = elsewhere.clone();
        async move { state.follow_others().await }
    });
    let checkpoint = state.clone();
    tasks.every("queue.checkpoint", CHECKPOINT_EVERY, move || {
        let state = checkpoint.clone();
        async move { state.checkpoint().await }
    });
    let prune = state.clone();
    tasks.every("queue.prune", PRUNE_EVERY, move || {
        let state = prune.clone();
        async move { state.prune().await }
    });
    let deps = state.deps();
    redis::watch_writes(
        &state.0.writable,
        &deps.redis,
        &deps.prefix,
        &deps.metrics,
        tasks,
    );
    let facts = state.clone();
    tasks.every("queue.facts", FACTS_EVERY, move || {
        let state = facts.clone();
        async move { state.follow_facts().await }
    });
    let adopt = state.clone();
    tasks.every("queue.adopt", ADOPT_EVERY, move || {
        let state = adopt.clone();
        async move { state.adopt().await }
    });
    let (missed, seen) = (state.clone(), Arc::new(super::missed::Seen::default()));
    tasks.every("queue.missed", super::missed::ASK_EVERY, move || {
        let (state, seen) = (missed.clone(), seen.clone());
        async move {
            if let Err(error) = state.end_missed(&seen).await {
                tracing::warn!(?error, "cannot ask what was confirmed; trying again");
            }
            state.watch_dead_letters().await;
        }
    });
    super::catalogue::start(state, tasks);
    wake::start(state, tasks);
    let (ending, draining) = (state.clone(), tasks.draining());
    tasks.spawn_once("queue.streams", move || {
        let (ending, draining) = (ending.clone(), draining.clone());
        async move {
            draining.cancelled().await;
            for live in ending.lives() {
                live.events.send_replace(None);
            }
        }
    });
}

impl State {
    fn pulse(&self) {
        let now = now_ms();
        let lives = self.lives();
        self.0.figures.sum(&lives);
        for live in lives {
            // A queue that is asked for again is not left to its old schedule.
            let neglected = live.wanted(now) && live.age_ms() >= RETRY_MS;
            if live.is_due() || neglected && !live.ticking.is_running() {
                self.tick_soon(&live);
            }
        }
    }

    /// A tick of `live` in the background, now or right after the one that runs.
    pub(super) fn tick_soon(&self, live: &Arc<Live>) {
        if !live.ticking.begin() {
            return;
        }
        let (state, live) = (self.clone(), live.clone());
        tokio::spawn(async move {
            loop {
                live.ticking.round();
                live.schedule(RETRY_MS);
                let ticked = tasks::job("queue.tick", state.tick_once(&live)).await;
                if let Ok(Err(error)) = ticked {
                    tracing::warn!(performance.id = %live.id, %error, "failed to refresh the queue's snapshot; keeping the old one");
                }
                state.note_soon(&live);
                if !live.ticking.more() {
                    return;
                }
            }
        });
    }

    /// What other instances have written: settings take effect, another epoch stops this one, and a newer
    /// reading shows that this instance is cut off.
    async fn follow_others(&self) {
        self.alarm_writes().await;
        let lives = self.lives();
        if lives.is_empty() {
            return;
        }
        let ids: Vec<_> = lives.iter().map(|l| l.id).collect();
        let found = match epochs::elsewhere(&self.deps().pool, &ids).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "failed to read what other instances wrote; settings stay as they are");
                return;
            }
        };
        let found: HashMap<Uuid, Elsewhere> =
            found.into_iter().map(|e| (e.performance, e)).collect();
        for live in lives {
            if let Some(elsewhere) = found.get(&live.id) {
                self.follow(&live, elsewhere).await;
            }
        }
    }

    /// A Redis that takes no writes needs a person: an alarm is open while it lasts.
    async fn alarm_writes(&self) {
        let problem = self.0.writable.problem();
        let raised = || {
            self.0
                .alarmed
                .lock()
                .expect("nothing panics while it holds this lock")
        };
        let known = *raised();
        if known == Some(problem.is_some()) {
            return;
        }
        let told = async {
            let mut conn = self.deps().pool.acquire().await?;
            match &problem {
                Some(why) => {
                    let alarm = Alarm {
                        kind: "REDIS_TAKES_NO_WRITES",
                        key: &self.deps().prefix,
                        order_id: None,
                        payment_id: None,
                        detail: why,
                    };
                    alarms::raise(&mut conn, &alarm).await.map(drop)
                }
                None => {
                    let (kind, key) = ("REDIS_TAKES_NO_WRITES", &self.deps().prefix);
                    let cleared = alarms::clear(&mut conn, kind, key, "Redis takes writes again");
                    cleared.await.map(drop)
                }
            }
        };
        match told.await {
            Ok(()) => *raised() = Some(problem.is_some()),
            Err(error) => {
                tracing::warn!(%error, "failed to write the alarm of a Redis that takes no writes; trying again");
            }
        }
    }

    async fn follow(&self, live: &Arc<Live>, elsewhere: &Elsewhere) {
        let epoch = u32::try_from(elsewhere.epoch).unwrap_or(0);
        let before = live.elsewhere.swap(elsewhere.clock, Relaxed);
        if before > 0 && elsewhere.clock > before {
            live.elsewhere_moved_ms.store(live.uptime_ms(), Relaxed);
        }
        let moved = live.elsewhere_moved_ms.load(Relaxed);
        let others_read = moved > 0 && live.uptime_ms() - moved < MOVED_MS;
        if epoch > live.seen().epoch {
            // No script admits anybody any more on a Redis that has an older one.
            live.saw(Seen { epoch, last: 0 });
            self.tick_soon(live);
        }
        let shown = live.snapshot.load();
        if live.age_ms() > AGE_MAX_MS
            && live.wanted(now_ms())
            && others_read
            && epoch >= shown.epoch()
            && elsewhere.clock > shown.view.now + AHEAD_MS
            && !live.cut_off.swap(true, Relaxed)
        {
            tracing::error!(performance.id = %live.id, age_ms = live.age_ms(),
                "cut off from Redis while other instances are not; this instance answers nothing for the queue");
        }
        if elsewhere.settings != live.rules.load().settings.version {
            self.refresh(live).await;
        }
    }

    async fn prune(&self) {
        match epochs::prune_ended(&self.deps().pool).await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "turns that ended long ago were removed"),
            Err(error) => tracing::warn!(%error, "failed to remove turns that ended long ago"),
        }
        for live in self.lives() {
            let shown = live.snapshot.load_full();
            let view = &shown.view;
            let closed = view.closes_at > 0 && view.wall - view.closes_at > CLOSED_KEPT_MS;
            if !closed || view.working + view.unnoted > 0 || live.wanted(now_ms()) {
                continue;
            }
            match live.room.remove().await {
                Ok(()) => {
                    tracing::info!(performance.id = %live.id, "booking closed long ago; the queue's state was removed from Redis");
                    self.forget(&live);
                }
                Err(error) => {
                    tracing::warn!(performance.id = %live.id, %error, "failed to remove the state of a queue that closed long ago");
                }
            }
        }
    }

    async fn follow_facts(&self) {
        let now = now_ms();
        for live in self.lives().iter().filter(|l| l.wanted(now)) {
            self.refresh(live).await;
        }
    }

    pub(super) async fn refresh(&self, live: &Arc<Live>) {
        match self.refresh_rules(live).await {
            Ok(()) => {}
            Err(Error::NotFound) => {
                tracing::info!(performance.id = %live.id, "there is no such performance any more");
                self.forget(live);
            }
            Err(error) => {
                tracing::warn!(performance.id = %live.id, %error, "rules stay as they are");
            }
        }
    }

    /// Takes up the queues that have people in them elsewhere, and those on sale now or soon: the
    /// first of a flood finds them ready, and operators see them before that.
    async fn adopt(&self) {
        let mut ids = match epochs::live(&self.deps().pool).await {
            Ok(ids) => ids,
            Err(error) => {
                tracing::warn!(%error, "cannot look for queues of other instances");
                return;
            }
        };
        match self.on_sale().await {
            Ok(on_sale) => {
                self.let_go(&on_sale).await;
                ids.extend(on_sale);
            }
            Err(error) => tracing::warn!(%error, "cannot look for performances on sale"),
        }
        for id in ids {
            if self.known(id).is_none()
                && let Err(error) = self.load_unasked(id).await
            {
                tracing::debug!(performance.id = %id, %error, "cannot take the queue up");
            }
        }
    }

    /// Of queues that are neither on sale nor asked for, those of performances that are no more are
    /// forgotten: some at a time, the longest unread first.
    async fn let_go(&self, on_sale: &[Uuid]) {
        let now = now_ms();
        let mut lives = self.lives();
        lives.retain(|live| !on_sale.contains(&live.id) && !live.wanted(now));
        lives.sort_by_key(|live| std::cmp::Reverse(live.age_ms()));
        for live in lives.into_iter().take(LET_GO_MAX) {
            self.refresh(&live).await;
        }
    }
}
