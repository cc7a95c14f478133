//! The Stripe sandbox: a stateful stand-in for Stripe's HTTP API, for development
//! and tests. It owns PaymentIntents with their charges and refunds, events,
//! webhook deliveries and idempotency keys, in a schema of its own, and commits
//! before it answers. It speaks Stripe's objects and Stripe's errors, can be made
//! to misbehave as Stripe sometimes does (`faults`), and never sees the rest of
//! Ticketping: what it knows came in by its API, what it tells goes out by
//! webhook.

mod call;
mod cards;
mod charging;
mod control;
mod dispute_routes;
mod disputes;
mod engine;
mod error;
mod execute;
mod expand;
mod faults;
mod follow_ups;
mod form;
mod http;
mod idempotency;
mod ids;
mod limits;
mod machine;
mod model;
mod money;
mod objects;
mod pages;
mod params;
mod reads;
mod signature;
mod store;
mod webhooks;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::PgPool;
use tokio::sync::Notify;

use self::control::Profile;
use self::engine::{Engine, Surroundings};
use self::faults::Dice;
use self::idempotency::InFlight;
use self::limits::{Limiter, Limits};
use self::webhooks::Courier;
use crate::platform::secret::Secret;
use crate::platform::tasks::Tasks;

/// The schema this role owns.
pub const SCHEMA: &str = "stripe_sandbox";
/// One writer, some readers, the courier.
pub const CONNECTIONS_MAX: u32 = 8;

pub static MIGRATIONS: crate::platform::db::Migrations =
    crate::migrations!("stripe_sandbox": "0001_sandbox", "0003_disputes");

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Stripe sandbox")]
#[group(skip)]
pub struct Config {
    /// Address of the sandbox's API and pages
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_LISTEN",
        default_value = "127.0.0.1:12111",
        value_parser = crate::platform::net::listen_address,
        value_name = "ADDRESS"
    )]
    pub stripe_sandbox_listen: SocketAddr,
    /// How browsers reach the sandbox, for the pages it sends buyers to; unset: as they asked for it
    #[arg(long, env = "TICKETPING_STRIPE_SANDBOX_PUBLIC_URL", value_name = "URL")]
    pub stripe_sandbox_public_url: Option<String>,
    /// Where its webhooks go, commas between
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_WEBHOOK_URL",
        value_delimiter = ',',
        value_name = "URL"
    )]
    pub stripe_sandbox_webhook_url: Vec<String>,
    /// What signs its webhooks, commas between: all of them do, as during a rotation
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_WEBHOOK_SECRET",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "SECRET"
    )]
    pub stripe_sandbox_webhook_secret: Vec<Secret>,
    /// Event types to send, commas between; a trailing `*` stands for any
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_WEBHOOK_EVENTS",
        value_delimiter = ',',
        default_value = "payment_intent.*,charge.refunded,charge.dispute.*,refund.*",
        value_name = "TYPES"
    )]
    pub stripe_sandbox_webhook_events: Vec<String>,
    /// Pause after the first failed try of a webhook; it doubles with each
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_RETRY_FIRST",
        value_parser = humantime::parse_duration,
        default_value = "1s",
        value_name = "DURATION"
    )]
    pub stripe_sandbox_retry_first: Duration,
    /// Longest pause between two tries of a webhook
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_RETRY_MAX",
        value_parser = humantime::parse_duration,
        default_value = "30s",
        value_name = "DURATION"
    )]
    pub stripe_sandbox_retry_max: Duration,
    /// Secret key that the sandbox accepts (sk_test_…)
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_SECRET_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub stripe_sandbox_secret_key: Option<Secret>,
    /// Publishable key that the sandbox accepts from browsers (pk_test_…)
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_PUBLISHABLE_KEY",
        value_name = "KEY"
    )]
    pub stripe_sandbox_publishable_key: Option<String>,
    /// Faults that any call may meet, e.g. `webhook_drop@0.1,confirm/error_after@0.05,delay=300ms@0.2`
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_FAULTS",
        default_value = "",
        value_name = "FAULTS"
    )]
    pub stripe_sandbox_faults: String,
    /// Seeds the dice that deal those faults
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_FAULT_SEED",
        default_value_t = 0,
        value_name = "N"
    )]
    pub stripe_sandbox_fault_seed: u64,
    /// Rate limits that it imposes, as Stripe does: calls a second to each endpoint, or with a total, as 25/100
    /// [default: none]
    #[arg(
        long,
        env = "TICKETPING_STRIPE_SANDBOX_RATE",
        default_value = "",
        hide_default_value = true,
        value_name = "RATE"
    )]
    pub stripe_sandbox_rate: Limits,
}

/// A delivery is tried for about three days, as Stripe does it.
const TRIES_MAX: i32 = 8_640;

/// Everything the sandbox stands on. Cheap to clone.
#[derive(Clone)]
pub struct State(Arc<Inner>);

struct Inner {
    pool: PgPool,
    engine: Engine,
    in_flight: InFlight,
    secret_key: Secret,
    publishable_key: String,
    public_url: Option<String>,
    profile: Mutex<Profile>,
    dice: Arc<Mutex<Dice>>,
    follow_ups: Arc<Notify>,
    courier: Courier,
    limiter: Limiter,
}

impl State {
    /// Must be called inside a runtime: the writer starts with it.
    ///
    /// # Errors
    /// When a key is missing, a URL or a fault malformed; names the flag.
    pub fn new(pool: PgPool, config: &Config) -> Result<Self, String> {
        let secret_key = config
            .stripe_sandbox_secret_key
            .clone()
            .ok_or("--stripe-sandbox-secret-key is missing")?;
        let publishable_key = config
            .stripe_sandbox_publishable_key
            .clone()
            .ok_or("--stripe-sandbox-publishable-key is missing")?;
        let endpoints = config
            .stripe_sandbox_webhook_url
            .iter()
            .map(|url| {
                url.parse::<::http::Uri>()
                    .ok()
                    .filter(|uri| uri.host().is_some() && uri.scheme().is_some())
                    .ok_or_else(|| format!("--stripe-sandbox-webhook-url: not a URL: '{url}'"))
            })
            .collect::<Result<Arc<[_]>, _>>()?;
        if !endpoints.is_empty() && config.stripe_sandbox_webhook_secret.is_empty() {
            return Err("--stripe-sandbox-webhook-secret is missing".into());
        }
        let profile = Profile::new(
            &config.stripe_sandbox_faults,
            config.stripe_sandbox_fault_seed,
        )
        .map_err(|bad| format!("--stripe-sandbox-faults: {bad}"))?;
        let dice = Arc::new(Mutex::new(Dice::new(profile.seed)));
        let deliveries = Arc::new(Notify::new());
        let follow_ups = Arc::new(Notify::new());
        let engine = Engine::start(Surroundings {
            pool: pool.clone(),
            dice: dice.clone(),
            deliveries: deliveries.clone(),
            follow_ups: follow_ups.clone(),
            endpoints: endpoints.len(),
            event_types: config.stripe_sandbox_webhook_events.clone().into(),
        });
        let courier = Courier {
            pool: pool.clone(),
            client: webhooks::client(),
            endpoints,
            secrets: config.stripe_sandbox_webhook_secret.clone().into(),
            wake: deliveries,
            retry_first: config.stripe_sandbox_retry_first,
            retry_max: config.stripe_sandbox_retry_max,
            tries_max: TRIES_MAX,
        };
        Ok(Self(Arc::new(Inner {
            pool,
            engine,
            in_flight: InFlight::default(),
            secret_key,
            publishable_key,
            public_url: config
                .stripe_sandbox_public_url
                .as_ref()
                .map(|url| url.trim_end_matches('/').to_owned()),
            profile: Mutex::new(profile),
            dice,
            follow_ups,
            courier,
            limiter: Limiter::new(config.stripe_sandbox_rate),
        })))
    }

    fn pool(&self) -> &PgPool {
        &self.0.pool
    }

    fn engine(&self) -> &Engine {
        &self.0.engine
    }

    fn in_flight(&self) -> &InFlight {
        &self.0.in_flight
    }

    fn secret_key(&self) -> &str {
        self.0.secret_key.expose()
    }

    fn publishable_key(&self) -> &str {
        &self.0.publishable_key
    }

    fn public_url(&self) -> Option<&str> {
        self.0.public_url.as_deref()
    }

    fn limiter(&self) -> &Limiter {
        &self.0.limiter
    }

    fn dice(&self) -> &Mutex<Dice> {
        &self.0.dice
    }

    fn profile(&self) -> Profile {
        self.0
            .profile
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set_profile(&self, profile: Profile) {
        *self.dice().lock().unwrap_or_else(PoisonError::into_inner) = Dice::new(profile.seed);
        *self
            .0
            .profile
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = profile;
    }
}

/// Stripe's API under `/v1`, pages at `/`, controls under `/_sandbox`.
pub fn router(state: State) -> axum::Router {
    http::router(state)
}

/// Webhooks, what follows by itself, and throwing old things away.
pub fn tasks(state: &State, tasks: &Tasks) {
    let (courier, stop) = (state.0.courier.clone(), tasks.token());
    tasks.spawn("stripe-sandbox-webhooks", move || {
        courier.clone().run(stop.clone())
    });
    let (this, stop) = (state.clone(), tasks.token());
    tasks.spawn("stripe-sandbox-follow-ups", move || {
        follow_ups::run(this.clone(), stop.clone())
    });
    let pool = state.pool().clone();
    tasks.every(
        "stripe-sandbox-pruning",
        Duration::from_secs(3600),
        move || {
            let pool = pool.clone();
            async move {
                if let Err(error) = follow_ups::prune(&pool).await {
                    tracing::warn!(%error, "old sandbox rows stay for another hour");
                }
            }
        },
    );
}

/// Whether the sandbox can work.
///
/// # Errors
/// When its database does not answer.
pub async fn ready(state: &State) -> Result<(), String> {
    sqlx::query("select 1 from intents limit 1")
        .execute(state.pool())
        .await
        .map(|_| ())
        .map_err(|e| format!("the Stripe sandbox's database: {e}"))
}
