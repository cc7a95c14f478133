//! How an instance comes to know a queue: once, by the first who asks.

use std::sync::Arc;

use serde::Deserialize;
use uuid::Uuid;

use super::{
    State, epochs,
    error::Error,
    live::{Facts, Live, Rules, now_ms},
    scripts::{Patience, Room, Seats, View},
    settings,
    snapshot::{Ranks, Rate, Snapshot},
};
use crate::platform::redis::RESPONSE_MAX;

/// How long "there is no such performance" is believed: seed adds some at any time.
const MISSING_MS: u64 = 500;
/// Made-up ids must not fill memory.
const MISSING_MAX: usize = 10_000;

#[derive(Deserialize)]
struct Sold {
    sold: i64,
}

/// One of the requests that load a queue. The last of them removes the gate, however it ends: a
/// request whose caller hangs up is dropped in the middle.
struct Loading {
    state: State,
    performance: Uuid,
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl Loading {
    fn begin(state: &State, performance: Uuid) -> Self {
        let gate = state.gates().entry(performance).or_default().clone();
        Self {
            state: state.clone(),
            performance,
            gate,
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        let mut gates = self.state.gates();
        // The map's own, and this one.
        if gates.get(&self.performance).map(Arc::strong_count) == Some(2) {
            gates.remove(&self.performance);
        }
    }
}

type Gates = std::collections::HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>;

impl State {
    fn gates(&self) -> std::sync::MutexGuard<'_, Gates> {
        self.0
            .loading
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// How many queues are being loaded.
    pub fn loading(&self) -> usize {
        self.gates().len()
    }

    /// The queue of `performance`, if this instance knows it.
    pub(super) fn known(&self, performance: Uuid) -> Option<Arc<Live>> {
        self.0.lives.load().get(&performance).cloned()
    }

    /// Every queue this instance knows.
    pub(super) fn lives(&self) -> Vec<Arc<Live>> {
        self.0.lives.load().values().cloned().collect()
    }

    /// The queue of `performance`, read for the first time if need be.
    pub(super) async fn live(&self, performance: Uuid) -> Result<Arc<Live>, Error> {
        let now = now_ms();
        if let Some(live) = self.known(performance) {
            live.asked(now);
            return Ok(live);
        }
        if self.believed_missing(performance, now) {
            return Err(Error::NotFound);
        }
        let loaded = self.load_unasked(performance).await;
        match &loaded {
            Ok(live) => live.asked(now),
            Err(Error::NotFound) => self.remember_missing(performance, now),
            Err(_) => {}
        }
        loaded
    }

    /// The same, though nobody has asked for it yet.
    pub(super) async fn load_unasked(&self, performance: Uuid) -> Result<Arc<Live>, Error> {
        let loading = Loading::begin(self, performance);
        let _one = loading.gate.lock().await;
        match self.known(performance) {
            Some(live) => Ok(live),
            None => self.load(performance).await,
        }
    }

    fn believed_missing(&self, performance: Uuid, now: u64) -> bool {
        self.missing()
            .get(&performance)
            .is_some_and(|&until| now < until)
    }

    fn remember_missing(&self, performance: Uuid, now: u64) {
        let mut missing = self.missing();
        if missing.len() >= MISSING_MAX {
            missing.clear();
        }
        missing.insert(performance, now + MISSING_MS);
    }

    fn missing(&self) -> std::sync::MutexGuard<'_, std::collections::HashMap<Uuid, u64>> {
        self.0
            .missing
            .lock()
            .expect("nothing panics while it holds this lock")
    }

    /// Facts and settings of `performance`, fresh.
    pub(super) async fn rules(&self, performance: Uuid) -> Result<Rules, Error> {
        let path = format!("/internal/v1/performances/{performance}");
        let facts: Facts = self.deps().performances.get_json(&path).await?;
        let settings = settings::load(&self.deps().pool, performance, &self.deps().config).await?;
        Ok(Rules { settings, facts })
    }

    /// Performances that can be booked, now or soon.
    pub(super) async fn on_sale(&self) -> Result<Vec<Uuid>, Error> {
        let path = "/internal/v1/performances";
        Ok(self.deps().performances.get_json(path).await?)
    }

    /// This instance knows the queue no more, until somebody asks for it; its streams end.
    pub(super) fn forget(&self, live: &Live) {
        self.0.lives.rcu(|lives| {
            let mut lives = std::collections::HashMap::clone(lives);
            lives.remove(&live.id);
            lives
        });
        live.events.send_replace(None);
    }

    /// Seats of `performance` that are sold, as Postgres knows it. Reservations look at their own
    /// state in this Redis a moment later: what the queue lost, they may have lost too.
    pub(super) async fn sold(&self, performance: Uuid) -> Result<i64, Error> {
        let path = format!("/internal/v1/performances/{performance}/sold");
        let sold: Sold = self.deps().reservations.get_json(&path).await?;
        Ok(sold.sold)
    }

    async fn load(&self, performance: Uuid) -> Result<Arc<Live>, Error> {
        let rules = self.rules(performance).await?;
        let draw = match rules.settings.pre_queue_opens_at {
            Some(_) => Some(epochs::draw(&self.deps().pool, performance).await?),
            None => None,
        };
        let deps = self.deps();
        let room = Room::new(
            deps.redis.clone(),
            self.0.scripts.clone(),
            &deps.prefix,
            performance,
        )
        .with_patience(Patience::new(RESPONSE_MAX));
        let nothing = Snapshot::new(
            performance,
            View::default(),
            Vec::new(),
            Arc::new(Ranks::none()),
            Rate::default(),
            None,
        );
        let live = Arc::new(Live::new(performance, room, rules, draw, nothing));
        // A recovery by another instance may be under way: the first reading waits for it.
        self.tick_once(&live).await?;
        // The state may carry the rules of another time.
        self.apply_rules(&live).await?;
        self.tick_once(&live).await?;
        self.0.lives.rcu(|lives| {
            let mut lives = std::collections::HashMap::clone(lives);
            lives.insert(performance, live.clone());
            lives
        });
        Ok(live)
    }

    /// What this instance holds for the rules takes effect in Redis.
    pub(super) async fn apply_rules(&self, live: &Live) -> Result<(), Error> {
        let rules = live.rules.load_full();
        self.apply(live, &rules).await
    }

    async fn apply(&self, live: &Live, rules: &Rules) -> Result<(), Error> {
        let known = live.rules.load();
        let capacity = rules.facts.total_seats;
        let moved = (known.facts.total_seats, known.facts.open_schedules())
            != (capacity, rules.facts.open_schedules())
            || live.snapshot.load().view.capacity != capacity;
        let seats = match moved {
            true => Some(Seats {
                schedules: rules.facts.open_schedules(),
                remaining: (rules.facts.open_seats() - self.sold(live.id).await?).max(0),
            }),
            false => None,
        };
        live.room
            .apply(
                live.seen(),
                rules.settings.version,
                capacity,
                seats,
                &rules.fields(),
            )
            .await
            .map_err(Error::from)
    }

    /// Settings that were just written take effect, with the facts as they are known.
    pub(super) async fn apply_settings(
        &self,
        live: &Arc<Live>,
        settings: settings::Settings,
    ) -> Result<(), Error> {
        let rules = Rules {
            settings,
            facts: live.rules.load().facts.clone(),
        };
        self.put_in_force(live, rules).await
    }

    /// Reads facts and settings again; what changed takes effect at once.
    pub(super) async fn refresh_rules(&self, live: &Arc<Live>) -> Result<(), Error> {
        let rules = self.rules(live.id).await?;
        if **live.rules.load() == rules {
            return Ok(());
        }
        self.put_in_force(live, rules).await
    }

    async fn put_in_force(&self, live: &Arc<Live>, rules: Rules) -> Result<(), Error> {
        if rules.settings.pre_queue_opens_at.is_some() && live.draw.load().is_none() {
            let draw = epochs::draw(&self.deps().pool, live.id).await?;
            live.draw.store(Arc::new(Some(draw)));
        }
        self.apply(live, &rules).await?;
        // Only now: what did not take effect is tried again.
        live.rules.store(Arc::new(rules));
        self.tick_once(live).await
    }
}
