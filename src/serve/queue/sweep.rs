//! The pulse of every queue this instance knows: a few times a second while
//! somebody asks, once a second while anybody is in it, and at every bell.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use super::{
    State, epochs,
    error::Error,
    live::{Live, now_ms},
    settings, wake,
};
use crate::platform::tasks::{self, Tasks};

/// The age of a snapshot at most, while it is asked for.
const PULSE: Duration = Duration::from_millis(250);
/// The safety net behind lost notifications.
const SWEEP_MS: u64 = 1_000;
/// An idle queue is looked at this often, for who entered elsewhere.
const IDLE_MS: u64 = 10_000;
/// How often changed settings are looked for.
const RULES_EVERY: Duration = Duration::from_millis(500);
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
    let rules = state.clone();
    tasks.every("queue.rules", RULES_EVERY, move || {
        let state = rules.clone();
        async move { state.follow_rules().await }
    });
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
            let snapshot = live.snapshot.load();
            let v = &snapshot.view;
            let every = if live.wanted(now) {
                0
            } else if v.waiting + v.working + v.registered + v.unnoted > 0 {
                SWEEP_MS
            } else {
                IDLE_MS
            };
            if now.saturating_sub(live.ticked_ms.load(Relaxed)) + 50 >= every {
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
                live.ticked_ms.store(now_ms(), Relaxed);
                let ticked = tasks::job("queue.tick", state.tick_once(&live)).await;
                if let Ok(Err(error)) = ticked {
                    tracing::warn!(performance.id = %live.id, %error, "the snapshot stays as it is");
                }
                state.note_soon(&live);
                if !live.ticking.more() {
                    return;
                }
            }
        });
    }

    async fn follow_rules(&self) {
        let now = now_ms();
        let lives = self.lives();
        let wanted: Vec<_> = lives.iter().filter(|l| l.wanted(now)).collect();
        if wanted.is_empty() {
            return;
        }
        let ids: Vec<_> = wanted.iter().map(|l| l.id).collect();
        let versions = match settings::versions(&self.deps().pool, &ids).await {
            Ok(versions) => versions,
            Err(error) => {
                tracing::warn!(%error, "settings stay as they are");
                return;
            }
        };
        for live in wanted {
            let version = versions
                .iter()
                .find(|(id, _)| *id == live.id)
                .map_or(0, |(_, v)| *v);
            if version != live.rules.load().settings.version {
                self.refresh(live).await;
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

    /// Of queues that are neither on sale nor asked for, those of performances that are no more are forgotten.
    async fn let_go(&self, on_sale: &[uuid::Uuid]) {
        let now = now_ms();
        for live in self.lives() {
            if !on_sale.contains(&live.id) && !live.wanted(now) {
                self.refresh(&live).await;
            }
        }
    }
}
