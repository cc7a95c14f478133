//! Puts roles together: what each needs is found or refused, slots connect
//! those of one process, URLs those of others.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use axum::{Router, extract::FromRef, routing::get};
use sqlx::{PgPool, migrate::Migrator};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use super::{
    args::{Args, Role},
    gateway::RoleName,
    secrets::missing,
};
use crate::platform::{
    alarms::{Alarms, OpenAlarms},
    auth::{Internal, InternalSecret, Signer},
    db,
    events::{Outbox, Subscription, Watch},
    failure::Failure,
    http::{Json, finish},
    metrics::Metrics,
    overview::OverviewSlice,
    readiness::{Check, Readiness, Unready},
    redis::{self, Redis},
    secret::Secret,
    tasks::Tasks,
    upstream::{Upstream, UpstreamMetrics},
};

/// A store that is away at the start is tried again after this.
const WAIT_RETRY: Duration = Duration::from_millis(500);
/// How often the log says that the start still waits.
const WAIT_LOG_EVERY: Duration = Duration::from_secs(5);

/// The router of a role of this process, once it is built.
pub(super) type Slot = Arc<OnceLock<Router>>;

/// What is gathered while the roles of a process are built.
pub(super) struct Build {
    pub(super) args: Args,
    pub(super) metrics: Metrics,
    open_alarms: OpenAlarms,
    pub(super) readiness: Readiness,
    pub(super) tasks: Tasks,
    pub(super) calls: UpstreamMetrics,
    pub(super) internal: InternalSecret,
    pub(super) slots: Vec<(RoleName, Slot)>,
    pub(super) outboxes: Vec<Outbox>,
    pub(super) subscriptions: Vec<Subscription>,
    /// Who shows the figures of this process's events.
    pub(super) watches: Vec<Watch>,
    pub(super) checks: Vec<(&'static str, Check)>,
    /// Signs access tokens, where the users role is here.
    pub(super) signer: Option<Signer>,
    /// Where the Stripe sandbox of this process is; empty without one.
    pub(super) stripe_url: String,
    /// Whether connections to the database are known to be sessions.
    sessions_checked: bool,
    /// Its paths.
    pub(super) sandbox: Option<Router>,
}

impl Build {
    pub(super) fn new(
        args: Args,
        tasks: Tasks,
        metrics: Metrics,
        readiness: Readiness,
    ) -> Result<Self, Failure> {
        // The sandbox talks to nobody: what stands here is never shown or accepted.
        let internal = InternalSecret(match args.role {
            Role::StripeSandbox => Secret::new(uuid::Uuid::new_v4().to_string()),
            _ => args.secrets.internal()?,
        });
        let here: &[RoleName] = match args.role {
            Role::All => &RoleName::ALL,
            Role::Users => &[RoleName::Users],
            Role::Performances => &[RoleName::Performances],
            Role::Queue => &[RoleName::Queue],
            Role::Reservations => &[RoleName::Reservations],
            Role::Payments => &[RoleName::Payments],
            Role::Gateway | Role::StripeSandbox => &[],
        };
        let calls = UpstreamMetrics::new(&metrics);
        Ok(Self {
            args,
            open_alarms: OpenAlarms::new(&metrics),
            metrics,
            readiness,
            tasks,
            calls,
            internal,
            slots: here.iter().map(|role| (*role, Slot::default())).collect(),
            outboxes: Vec::new(),
            subscriptions: Vec::new(),
            watches: Vec::new(),
            checks: Vec::new(),
            signer: None,
            stripe_url: String::new(),
            sessions_checked: false,
            sandbox: None,
        })
    }

    /// Whether `role` is built into this process.
    pub(super) fn has(&self, role: RoleName) -> bool {
        self.slots.iter().any(|(r, _)| *r == role)
    }

    /// How to reach `role`: its slot, or its URL.
    pub(super) fn upstream(&self, role: RoleName) -> Result<Upstream, Failure> {
        if let Some((_, slot)) = self.slots.iter().find(|(r, _)| *r == role) {
            return Ok(Upstream::local(slot.clone(), self.internal.clone()));
        }
        let urls = &self.args.urls;
        let (url, flag, env) = match role {
            RoleName::Users => (&urls.users_url, "--users-url", "TICKETPING_USERS_URL"),
            RoleName::Performances => (
                &urls.performances_url,
                "--performances-url",
                "TICKETPING_PERFORMANCES_URL",
            ),
            RoleName::Queue => (&urls.queue_url, "--queue-url", "TICKETPING_QUEUE_URL"),
            RoleName::Reservations => (
                &urls.reservations_url,
                "--reservations-url",
                "TICKETPING_RESERVATIONS_URL",
            ),
            RoleName::Payments => (
                &urls.payments_url,
                "--payments-url",
                "TICKETPING_PAYMENTS_URL",
            ),
        };
        if url.is_empty() {
            return Err(missing(flag, env));
        }
        Ok(Upstream::remote(
            role.as_str(),
            url,
            self.calls.clone(),
            self.internal.clone(),
        ))
    }

    /// The pool of a role, its schema brought up to date.
    pub(super) async fn pool(
        &mut self,
        schema: &'static str,
        migrator: &Migrator,
    ) -> Result<PgPool, Failure> {
        let url = self.args.stores.database()?;
        db::check_url(url).map_err(Failure::Usage)?;
        if !self.sessions_checked {
            self.wait_for("PostgreSQL", async || db::check_sessions(url).await)
                .await?;
            self.sessions_checked = true;
        }
        let url = self.args.stores.database()?;
        let pool =
            db::pool(url, schema, self.args.stores.database_connections).map_err(Failure::Usage)?;
        self.wait_for(&format!("PostgreSQL ({schema})"), async || {
            if !self.args.stores.no_migrate {
                return db::migrate(&pool, schema, migrator).await;
            }
            let versions = db::versions(&pool, schema, migrator).await?;
            match versions.pending {
                0 => Ok(()),
                pending => Err(db::StartError::Away(format!(
                    "schema {schema} lacks {pending} migrations; run `ticketping migrate`, or serve without --no-migrate"
                ))),
            }
        })
        .await?;
        Ok(pool)
    }

    /// The Redis of the waiting room and the seats.
    pub(super) async fn redis(&self) -> Result<Redis, Failure> {
        let url = self.args.stores.redis()?;
        redis::check_url(url).map_err(Failure::Usage)?;
        let trust = self.args.stores.redis_trust()?;
        self.wait_for("Redis", async || {
            Redis::connect_trusting(url, trust.clone())
                .await
                .map_err(db::StartError::Away)
        })
        .await
    }

    /// Tries `start` until it succeeds or fails for good; a store that is away is waited for, as
    /// long as `--store-wait` allows.
    async fn wait_for<T>(
        &self,
        store: &str,
        mut start: impl AsyncFnMut() -> Result<T, db::StartError>,
    ) -> Result<T, Failure> {
        let (begun, patience) = (Instant::now(), self.args.stores.store_wait);
        let mut said = None;
        loop {
            let cause = match start().await {
                Ok(started) => {
                    self.readiness.waits_for(None);
                    return Ok(started);
                }
                Err(db::StartError::Failed(cause)) => return Err(Failure::Failed(cause)),
                Err(db::StartError::Away(cause)) => cause,
            };
            if begun.elapsed() >= patience {
                let waited = humantime::format_duration(patience);
                return Err(Failure::Failed(format!(
                    "{cause}; waited {waited} for it (--store-wait)"
                )));
            }
            if said.is_none_or(|at: Instant| at.elapsed() >= WAIT_LOG_EVERY) {
                said = Some(Instant::now());
                let waited_s = begun.elapsed().as_secs();
                tracing::warn!(
                    store,
                    waited_s,
                    error = cause,
                    "the start waits for {store}"
                );
            }
            self.readiness.waits_for(Some(format!("{store}: {cause}")));
            tokio::time::sleep(WAIT_RETRY.min(patience)).await;
        }
    }

    /// Adds a role: its paths to its slot, its readiness to the probes.
    pub(super) fn add(&mut self, role: RoleName, router: Router, check: Check) {
        if let Some((_, slot)) = self.slots.iter().find(|(r, _)| *r == role) {
            // Each role is built once, so the slot is empty.
            let _already_set = slot.set(finish(router)).is_err();
        }
        self.checks.push((role.as_str(), check));
    }

    /// Keeps the gauge of a role's alarms fresh; the routes that list and resolve them.
    pub(super) fn alarms(&self, alarms: &Alarms) -> Router {
        alarms.start(&self.open_alarms, &self.tasks);
        alarms.router(self.internal.clone())
    }

    /// The one role of a process that runs one role.
    pub(super) fn only(&self) -> Option<Router> {
        self.slots.first().and_then(|(_, slot)| slot.get().cloned())
    }
}

/// A readiness check from a state and the role's own function.
pub(super) fn check<S, F, Fut, E>(state: &S, ready: F) -> Check
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<Unready>,
{
    let state = state.clone();
    Arc::new(move || {
        let asked = ready(state.clone());
        Box::pin(async move { asked.await.map_err(Into::into) })
    })
}

#[derive(Clone)]
struct BareOverview(InternalSecret, &'static str);

impl FromRef<BareOverview> for InternalSecret {
    fn from_ref(state: &BareOverview) -> Self {
        state.0.clone()
    }
}

/// `/internal/v1/overview` of a role that has no figures: that it answers is all.
pub(super) fn bare_overview(role: &'static str, secret: InternalSecret) -> Router {
    let answer = |_: Internal, axum::extract::State(state): axum::extract::State<BareOverview>| {
        std::future::ready(Json(OverviewSlice::of(state.1).with_failing_tasks()))
    };
    Router::new()
        .route("/internal/v1/overview", get(answer))
        .with_state(BareOverview(secret, role))
}

/// Splits a role's router into its paths and their description.
pub(super) fn split(router: OpenApiRouter) -> (Router, OpenApi) {
    router.split_for_parts()
}
