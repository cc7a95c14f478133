//! Performances: halls, what is shown in them and when, every seat and its price, and how
//! many are sold.
//!
//! Owns the schema `performances`. Guarantees: what is read is at most a second old, and
//! a flood of readers costs PostgreSQL next to nothing; an order counts at most once, however often and in
//! whatever order its events come. Never says which seat is free: reservations do.

mod board;
mod changes;
mod events;
mod http;
mod overview;
mod store;

use std::time::Duration;

use axum::extract::FromRef;
use sqlx::PgPool;

use self::board::Board;
pub use self::http::{router, routes};
use crate::platform::{
    alarms::{self, Alarms},
    auth::InternalSecret,
    events::{Subscription, Watch},
    tasks::Tasks,
};

/// The schema of this role.
pub const SCHEMA: &str = "performances";
/// Its migrations.
pub static MIGRATOR: crate::platform::db::Migrations = crate::migrations!("performances": "0001_performances", "0002_leases", "0003_sales_end", "0012_alarms", "0013_sales_told");

/// How often messages that were put aside are looked for.
const WATCH_EVERY: Duration = Duration::from_secs(15);

/// The state of this role. Cheap to clone.
#[derive(Clone)]
pub struct Performances {
    pool: PgPool,
    board: Board,
    secret: InternalSecret,
    events: Watch,
    alarms: Alarms,
}

impl FromRef<Performances> for InternalSecret {
    fn from_ref(state: &Performances) -> Self {
        state.secret.clone()
    }
}

impl Performances {
    /// The role on `pool` (schema [`SCHEMA`], migrated).
    pub fn new(pool: PgPool, secret: InternalSecret) -> Self {
        Self {
            alarms: Alarms::new(SCHEMA, pool.clone()),
            pool,
            board: Board::default(),
            secret,
            events: Watch::default(),
        }
    }

    /// Where the process puts the figures of its events.
    pub fn events(&self) -> &Watch {
        &self.events
    }

    /// What needs a person.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }
}

/// What this role does by itself.
pub fn tasks(state: &Performances, tasks: &Tasks) {
    let state = state.clone();
    tasks.every("performances.watch-events", WATCH_EVERY, move || {
        let state = state.clone();
        async move {
            let watched = async {
                let mut conn = state.pool.acquire().await?;
                alarms::watch_dead_letters(&mut conn).await
            };
            if let Err(error) = watched.await {
                tracing::warn!(%error, "messages put aside are not known now; looking again");
            }
        }
    });
}

/// What this role listens to.
pub fn subscriptions(state: &Performances) -> Vec<Subscription> {
    events::subscriptions(&state.pool)
}

/// Whether this role can answer.
///
/// # Errors
/// What is away.
pub async fn ready(state: &Performances) -> Result<(), String> {
    match sqlx::query("select 1").execute(&state.pool).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("PostgreSQL (performances): {error}")),
    }
}
