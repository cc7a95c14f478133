//! The waiting room: who may book now, and in what order everybody else will.
//!
//! Owns the schema `queue` and, in Redis, what the prelude in `lua/` names. It
//! guarantees, under any interleaving of instances and losses: nobody is admitted
//! while `working >= maxWorking`; nobody before a lower number that waits; one
//! place a person; no slot leaks; a place survives the loss of Redis. It never
//! asks Redis or Postgres for a poll that still waits, and never knows a seat.

mod admin;
mod batch;
mod catalogue;
pub mod draw;
mod epochs;
mod error;
mod events;
mod http;
mod live;
mod loading;
mod missed;
mod notes;
mod overview;
mod pace;
mod people;
mod place_json;
mod poll;
mod recovery;
mod returns;
pub mod scripts;
pub mod settings;
mod snapshot;
mod stream;
mod sweep;
mod takeover;
mod wake;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use arc_swap::ArcSwap;
use axum::extract::FromRef;
use sqlx::PgPool;
use uuid::Uuid;

pub use self::{
    epochs::forget_everything,
    error::Error,
    events::subscriptions,
    http::{router, routes},
    settings::{Config, Settings},
    sweep::tasks,
};
use self::{live::Live, scripts::Scripts};
use crate::platform::{
    alarms::Alarms,
    auth::{InternalSecret, Verifier},
    events::Watch,
    metrics::Metrics,
    place::PlaceKeys,
    readiness::Unready,
    redis::{Redis, Writable},
    upstream::Upstream,
};

/// How often a second one person may enter or leave a queue, on average over five seconds: a page
/// that was reloaded in anger is no abuse, a loop is.
const CHANGES_PER_SECOND: u32 = 20;

/// The schema of this role.
pub const SCHEMA: &str = "queue";
/// Its migrations.
pub static MIGRATOR: crate::platform::db::Migrations = crate::migrations!("queue": "0001_waiting_room", "0002_events", "0003_losses", "0004_leases", "0006_weather", "0009_alarms");

/// What the role stands on.
#[derive(Clone)]
pub struct Deps {
    /// Schema [`SCHEMA`], migrated.
    pub pool: PgPool,
    /// Shared with reservations.
    pub redis: Redis,
    /// In front of every Redis key.
    pub prefix: String,
    /// Seal and open places.
    pub keys: PlaceKeys,
    /// Checks access tokens.
    pub verifier: Verifier,
    /// Between roles.
    pub secret: InternalSecret,
    /// Facts of a performance.
    pub performances: Upstream,
    /// Seats sold.
    pub reservations: Upstream,
    /// Where figures go.
    pub metrics: Metrics,
    /// Defaults of every queue.
    pub config: Config,
}

/// The state of this role. Cheap to clone.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    deps: Deps,
    scripts: Arc<Scripts>,
    lives: ArcSwap<HashMap<Uuid, Arc<Live>>>,
    /// Performances that do not exist, and until when (ms) that is believed.
    missing: Mutex<HashMap<Uuid, u64>>,
    loading: Mutex<HashMap<Uuid, Arc<tokio::sync::Mutex<()>>>>,
    figures: overview::Figures,
    pace: pace::Pace,
    /// Entering and leaving.
    pace_of_changes: pace::Pace,
    notifications: Mutex<Option<String>>,
    /// Whether Redis takes writes, as last probed.
    writable: Writable,
    /// Whether the alarm of it is open; None: not known yet.
    alarmed: Mutex<Option<bool>>,
    events: Watch,
    alarms: Alarms,
}

impl State {
    /// The role on `deps`.
    pub fn new(deps: Deps) -> Self {
        Self::with_scripts(deps, Scripts::default())
    }

    /// The role with other scripts: a test's, with a known defect in them.
    pub fn with_scripts(deps: Deps, scripts: Scripts) -> Self {
        let figures = overview::Figures::new(&deps.metrics);
        let pace = pace::Pace::new(deps.config.polls_per_second, live::now_ms());
        let alarms = Alarms::new(SCHEMA, deps.pool.clone());
        let changes = deps.config.polls_per_second.min(CHANGES_PER_SECOND);
        let pace_of_changes = pace::Pace::new(changes, live::now_ms());
        Self(Arc::new(Inner {
            deps,
            scripts: Arc::new(scripts),
            lives: ArcSwap::default(),
            missing: Mutex::default(),
            loading: Mutex::default(),
            figures,
            pace,
            pace_of_changes,
            notifications: Mutex::default(),
            writable: Writable::default(),
            alarmed: Mutex::default(),
            events: Watch::default(),
            alarms,
        }))
    }

    /// Where the process puts the figures of its events.
    pub fn events(&self) -> &Watch {
        &self.0.events
    }

    /// What this role wants a person to see to.
    pub fn alarms(&self) -> &Alarms {
        &self.0.alarms
    }

    fn deps(&self) -> &Deps {
        &self.0.deps
    }
}

impl FromRef<State> for Verifier {
    fn from_ref(state: &State) -> Self {
        state.deps().verifier.clone()
    }
}

impl FromRef<State> for InternalSecret {
    fn from_ref(state: &State) -> Self {
        state.deps().secret.clone()
    }
}

/// Whether this role can answer.
///
/// # Errors
/// What is away.
pub async fn ready(state: &State) -> Result<(), Unready> {
    sqlx::query("select 1")
        .execute(&state.deps().pool)
        .await
        .map_err(|e| format!("PostgreSQL (queue): {e}"))?;
    if let Some(live) = state.lives().iter().find(|live| live.is_cut_off()) {
        return Err(Unready::Process(format!(
            "cut off from the queue of {}: other instances read it, this one does not",
            live.id
        )));
    }
    wake::usable(&mut state.deps().redis.clone(), &state.deps().prefix).await
}
