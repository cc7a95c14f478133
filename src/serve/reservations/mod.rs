//! Reservations: who holds which seat, and who bought it.
//!
//! Owns the schema `reservations`, and in Redis the seats of every schedule.
//! Guarantees: a seat of a schedule is sold at most once; every captured payment
//! ends in one confirmed order or is given back; nothing answered with 2xx is
//! lost. Postgres has the last word; Redis decides first, and can be rebuilt.
//! Never talks to Stripe, and never admits anybody: it only asks, in the hold
//! script, whether the queue has.

mod booking;
pub mod catalogue;
mod events;
mod expiry;
mod figures;
mod http;
pub mod machine;
mod overview;
mod rebuild;
mod reconcile;
pub mod refunds;
mod restore;
pub mod scripts;
mod seatmap;
pub mod settle;
pub mod steps;
pub mod store;
mod tickets;
mod writer;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Deref,
    sync::{Arc, atomic::AtomicI64},
    time::{Duration, Instant},
};

use axum::extract::FromRef;
use sqlx::PgPool;
use tokio::sync::{Mutex, Semaphore, mpsc};
use uuid::Uuid;

use self::{
    catalogue::Catalogues,
    figures::Figures,
    seatmap::SeatMaps,
    steps::{Applied, Cause, StepError},
    writer::Writer,
};
pub use self::{
    events::subscriptions,
    http::{router, routes},
    tickets::TicketKey,
};
use crate::platform::{
    alarms::Alarms,
    auth::{InternalSecret, Verifier},
    catalogue_changes::{self, Follower},
    events::{Outbox, OutboxSignal, Watch},
    idempotency,
    metrics::Metrics,
    place::PlaceKeys,
    redis::Redis,
    scans::Scan,
    tasks::Tasks,
    upstream::Upstream,
};

/// The schema of this role.
pub const SCHEMA: &str = "reservations";
/// Its migrations.
pub static MIGRATOR: crate::platform::db::Migrations = crate::migrations!("reservations": "0001_orders", "0002_events", "0003_dead_letters", "0004_traces", "0005_alarms", "0007_leases", "0008_sold_totals", "0010_refunds_disputes", "0011_reconciliation");

/// A repair follows a rebuild after this long: what was on its way has arrived.
const REPAIR_SOON: Duration = Duration::from_secs(1);
/// And all performances are compared this often.
const REPAIR_EVERY: Duration = Duration::from_secs(30);
/// How often events that wait for too long, and dead letters, are looked for.
const WATCH_EVERY: Duration = Duration::from_secs(10);
/// Lapsed holds looked at in the same moment.
const LAPSING_MAX: usize = 16;
/// Performances waiting for a repair; one more is not lost, the minute's repair comes.
const REPAIRS_MAX: usize = 1_024;

/// Flags of the reservations role.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Reservations")]
#[group(skip)]
pub struct Config {
    /// Seats that one person may have of a performance, held and bought together
    #[arg(
        long,
        env = "TICKETPING_SEAT_LIMIT",
        value_name = "SEATS",
        default_value_t = 4,
        value_parser = clap::value_parser!(u32).range(1..=255)
    )]
    pub seat_limit: u32,
    /// How long seats are held, where the performance's own settings do not say (such as 7m)
    #[arg(long, env = "TICKETPING_HOLD_TTL", value_name = "DURATION", default_value = "7m", value_parser = humantime::parse_duration)]
    pub hold_ttl: Duration,
    /// A confirmed order may be cancelled until so long before the show (such as 24h)
    #[arg(long, env = "TICKETPING_CANCEL_CUTOFF", value_name = "DURATION", default_value = "24h", value_parser = humantime::parse_duration)]
    pub cancel_cutoff: Duration,
    /// How long seats whose hold has ended wait for the end of their payment when payments or
    /// Stripe does not answer; paid later, they are taken again or the money goes back (such as 15m)
    #[arg(long, env = "TICKETPING_PAYMENT_WAIT_MAX", value_name = "DURATION", default_value = "15m", value_parser = humantime::parse_duration)]
    pub payment_wait_max: Duration,
}

impl Config {
    fn hold_ttl_ms(&self) -> i64 {
        i64::try_from(self.hold_ttl.as_millis()).unwrap_or(i64::MAX / 4)
    }

    fn cancel_cutoff(&self) -> chrono::Duration {
        chrono::Duration::from_std(self.cancel_cutoff).unwrap_or(chrono::Duration::MAX / 4)
    }

    fn payment_wait_max(&self) -> chrono::Duration {
        chrono::Duration::from_std(self.payment_wait_max).unwrap_or(chrono::Duration::MAX / 4)
    }
}

/// What the role stands on.
pub struct Deps {
    /// Its pool: schema [`SCHEMA`], migrated.
    pub pool: PgPool,
    /// The Redis that it shares with the queue.
    pub redis: Redis,
    /// In front of every key in it.
    pub redis_prefix: String,
    /// Verifies access tokens.
    pub verifier: Verifier,
    /// Opens places in the queue.
    pub places: PlaceKeys,
    /// Signs tickets.
    pub tickets: TicketKey,
    /// Between roles.
    pub secret: InternalSecret,
    /// Lists seats.
    pub performances: Upstream,
    /// Cancels payments.
    pub payments: Upstream,
    /// Brings places back after a loss of Redis.
    pub queue: Upstream,
    /// Where the role's metrics go.
    pub metrics: Metrics,
}

/// The state of this role. Cheap to clone.
#[derive(Clone)]
pub struct Reservations(Arc<Inner>);

/// Behind [`Reservations`].
pub struct Inner {
    config: Config,
    pool: PgPool,
    redis: Redis,
    prefix: String,
    verifier: Verifier,
    places: PlaceKeys,
    tickets: TicketKey,
    secret: InternalSecret,
    payments: Upstream,
    performances: Upstream,
    queue: Upstream,
    catalogues: Catalogues,
    maps: SeatMaps,
    writer: Writer,
    signal: OutboxSignal,
    figures: Figures,
    rebuilding: Mutex<()>,
    /// What the last repair of each performance found, and when.
    repaired: std::sync::Mutex<HashMap<Uuid, (Instant, BTreeSet<Uuid>)>>,
    /// The highest count of PostgreSQL's that this process has seen.
    beats: AtomicI64,
    lapsing: Semaphore,
    repairs: mpsc::Sender<Uuid>,
    repairs_asked: std::sync::Mutex<Option<mpsc::Receiver<Uuid>>>,
    events: Watch,
    alarms: Alarms,
    sold: overview::Sold,
}

impl Deref for Reservations {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl FromRef<Reservations> for Verifier {
    fn from_ref(state: &Reservations) -> Self {
        state.verifier.clone()
    }
}

impl FromRef<Reservations> for InternalSecret {
    fn from_ref(state: &Reservations) -> Self {
        state.secret.clone()
    }
}

impl FromRef<Reservations> for PlaceKeys {
    fn from_ref(state: &Reservations) -> Self {
        state.places.clone()
    }
}

impl Reservations {
    /// The role on what it stands on.
    pub fn new(config: Config, deps: Deps) -> Self {
        let (repairs, asked) = mpsc::channel(REPAIRS_MAX);
        Self(Arc::new(Inner {
            config,
            writer: Writer::start(deps.pool.clone()),
            alarms: Alarms::new(SCHEMA, deps.pool.clone()),
            pool: deps.pool,
            redis: deps.redis,
            prefix: deps.redis_prefix,
            verifier: deps.verifier,
            places: deps.places,
            tickets: deps.tickets,
            secret: deps.secret,
            payments: deps.payments,
            queue: deps.queue,
            catalogues: Catalogues::new(deps.performances.clone()),
            performances: deps.performances,
            maps: SeatMaps::default(),
            signal: OutboxSignal::new(),
            figures: Figures::new(&deps.metrics),
            rebuilding: Mutex::default(),
            repaired: std::sync::Mutex::default(),
            beats: AtomicI64::new(0),
            lapsing: Semaphore::new(LAPSING_MAX),
            repairs,
            repairs_asked: std::sync::Mutex::new(Some(asked)),
            events: Watch::default(),
            sold: overview::Sold::default(),
        }))
    }

    /// The role's outbox, for the relay.
    pub fn outbox(&self) -> Outbox {
        Outbox {
            source: SCHEMA,
            pool: self.pool.clone(),
            signal: self.signal.clone(),
        }
    }

    /// Where the process puts the figures of its events.
    pub fn events(&self) -> &Watch {
        &self.events
    }

    /// What this role wants a person to see to.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
    }

    /// The set of performances whose seats are in Redis.
    fn live_key(&self) -> String {
        format!("{}:seats:live", self.prefix)
    }

    fn repair_soon(&self, performance: Uuid) {
        // A full channel means that the minute's repair is needed anyway.
        let _ = self.repairs.try_send(performance);
    }

    async fn step(
        &self,
        order: Uuid,
        cause: &Cause,
        event: Option<Uuid>,
    ) -> Result<Applied, StepError> {
        let applied = steps::apply(&self.pool, &self.signal, order, cause, event).await;
        if let Ok(applied) = &applied {
            self.figures.stepped(&applied.step);
        }
        applied
    }

    async fn repair_logged(&self, performance: Uuid) {
        match self.repair(performance).await {
            Ok(0) => {}
            Ok(count) => {
                self.figures.repaired.inc_by(count as u64);
            }
            Err(error) => {
                self.figures.repair_failures.inc();
                tracing::warn!(performance.id = %performance, %error, "the repair of seats comes again");
            }
        }
    }

    /// Repairs what was asked for, a second later, each performance once.
    async fn repair_asked(&self, asked: &mut mpsc::Receiver<Uuid>) {
        while let Some(first) = asked.recv().await {
            tokio::time::sleep(REPAIR_SOON).await;
            let mut due = HashSet::from([first]);
            while let Ok(more) = asked.try_recv() {
                due.insert(more);
            }
            for performance in due {
                self.repair_logged(performance).await;
            }
        }
    }

    async fn repair_all(&self) {
        use redis::AsyncCommands;
        let mut redis = self.redis.clone();
        let live: Vec<String> = match redis.smembers(self.live_key()).await {
            Ok(live) => live,
            Err(error) => {
                self.figures.repair_failures.inc();
                tracing::warn!(%error, "cannot list the performances whose seats are in Redis; their repair comes again");
                return;
            }
        };
        for name in live {
            match name.parse() {
                Ok(performance) => self.repair_logged(performance).await,
                Err(error) => {
                    self.figures.repair_failures.inc();
                    tracing::error!(name, %error, "an entry of the set of live performances is no id");
                }
            }
        }
    }

    /// Changed prices, times and ends of sales take effect here: what is cached is asked for again, and the seats that are
    /// not sold are counted anew.
    pub async fn follow_catalogue(&self, follower: &mut Follower) {
        let Some(changes) = follower.next_logged("reservations").await else {
            return;
        };
        if changes.reset {
            self.catalogues.changed(None);
        }
        let changed: HashSet<Uuid> = changes.changed.iter().map(|c| c.performance_id).collect();
        for performance in &changed {
            self.catalogues.changed(Some(*performance));
        }
        for performance in changed.into_iter().chain(changes.ended) {
            if let Err(error) = self.recount(performance).await {
                self.figures.repair_failures.inc();
                tracing::warn!(performance.id = %performance, %error, "the seats that remain are counted again within a minute");
                self.repair_soon(performance);
            }
        }
    }

    /// Asks performances for changes, from now on.
    pub fn catalogue_follower(&self) -> Follower {
        Follower::new(self.performances.clone())
    }
}

/// Starts what the role does in the background.
pub fn tasks(state: &Reservations, tasks: &Tasks) {
    state.spawn_expiry(tasks);
    let asked = state
        .repairs_asked
        .lock()
        .expect("nothing panics while it holds this")
        .take();
    if let Some(asked) = asked {
        let (this, token) = (state.clone(), tasks.token());
        let asked = Arc::new(tokio::sync::Mutex::new(asked));
        tasks.spawn("seat-repairs", move || {
            let (this, token, asked) = (this.clone(), token.clone(), asked.clone());
            async move {
                let mut asked = asked.lock().await;
                tokio::select! {
                    () = token.cancelled() => {}
                    () = this.repair_asked(&mut asked) => {}
                }
            }
        });
    }
    let this = state.clone();
    tasks.every("seat-repair", REPAIR_EVERY, move || {
        let this = this.clone();
        async move { this.repair_all().await }
    });
    reconcilers(state, tasks);
    let (this, follower) = (state.clone(), state.catalogue_follower());
    let follower = Arc::new(Mutex::new(follower));
    tasks.every("catalogue-changes", catalogue_changes::EVERY, move || {
        let (this, follower) = (this.clone(), follower.clone());
        async move { this.follow_catalogue(&mut *follower.lock().await).await }
    });
    let pool = state.pool.clone();
    tasks.every("sold-totals", overview::FOLD_EVERY, move || {
        let pool = pool.clone();
        async move {
            if let Err(error) = overview::fold(&pool).await {
                tracing::warn!(%error, "totals are added up later");
            }
        }
    });
    let pool = state.pool.clone();
    tasks.every("idempotency-keys", Duration::from_secs(600), move || {
        let pool = pool.clone();
        async move {
            if let Err(error) = idempotency::purge(&pool).await {
                tracing::warn!(%error, "old idempotency keys stay for now");
            }
        }
    });
}

/// Compares orders with payments, and PostgreSQL with what it was.
fn reconcilers(state: &Reservations, tasks: &Tasks) {
    fn logged(what: &str, done: Result<(), impl std::fmt::Display>) {
        if let Err(error) = done {
            tracing::warn!(%error, "cannot compare {what} now; trying again");
        }
    }
    let (this, scan) = (state.clone(), Scan::new(state.pool.clone(), "overdue"));
    tasks.every("orders.overdue", reconcile::OVERDUE_EVERY, move || {
        let (this, scan) = (this.clone(), scan.clone());
        async move { logged("what payments owes", this.ask_overdue(&scan).await) }
    });
    let (this, scan) = (state.clone(), Scan::new(state.pool.clone(), "orders"));
    tasks.every("orders.compare", reconcile::COMPARE_EVERY, move || {
        let (this, scan) = (this.clone(), scan.clone());
        async move { logged("orders and payments", this.compare_orders(&scan).await) }
    });
    let (this, scan) = (state.clone(), Scan::new(state.pool.clone(), "sales"));
    tasks.every("orders.tell-sales", reconcile::COMPARE_EVERY, move || {
        let (this, scan) = (this.clone(), scan.clone());
        async move { logged("sales with what was counted", this.tell_sales(&scan).await) }
    });
    let (this, scan) = (
        state.clone(),
        Scan::new(state.pool.clone(), "restore-guard"),
    );
    tasks.every("orders.restore-guard", restore::BEAT_EVERY, move || {
        let (this, scan) = (this.clone(), scan.clone());
        async move { logged("PostgreSQL with what it was", this.guard(&scan).await) }
    });
    let this = state.clone();
    tasks.every("orders.watch-events", WATCH_EVERY, move || {
        let this = this.clone();
        async move { logged("events that wait", restore::watch_events(&this).await) }
    });
}

/// Whether this role can answer.
///
/// # Errors
/// What is away.
pub async fn ready(state: &Reservations) -> Result<(), String> {
    sqlx::query("select 1")
        .execute(&state.pool)
        .await
        .map_err(|e| format!("PostgreSQL (reservations): {e}"))?;
    let mut redis = state.redis.clone();
    redis::cmd("PING")
        .query_async::<()>(&mut redis)
        .await
        .map_err(|e| format!("Redis (reservations): {e}"))
}
