//! Payments: one an order, taken by Stripe.
//!
//! Owns the schema `payments` and every call to Stripe. Guarantees: what Stripe may have done is
//! noted before it is asked, and asked again under the same key; a captured payment is said as
//! `payment.succeeded` exactly because it was captured, late or not; `payment.cancelled` is said
//! only when nothing can be paid any more; a refund asked for is tried until Stripe has done it.
//! Never sees a card, never decides what becomes of an order, never holds a transaction open
//! while it talks to Stripe.

mod begin;
mod cancel;
mod config;
mod disputes;
mod http;
mod machine;
mod origin;
mod orphans;
mod overview;
mod poller;
mod reconcile;
mod refunds;
mod scan;
mod settle;
mod signature;
mod single_flight;
mod store;
mod stripe;
mod webhook;
mod worker;

use std::sync::Arc;
use std::time::Duration;

use ::http::StatusCode;
use axum::response::{IntoResponse, Response};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::{counter::Counter, family::Family};
use serde::Deserialize;
use sqlx::PgPool;
use tokio::sync::Notify;
use uuid::Uuid;

pub use self::config::{Config, Settings};
pub use self::http::{WEBHOOK_BODY_MAX, router, routes};
use self::machine::PaymentState;
use self::signature::Refused;
use self::single_flight::SingleFlight;
pub use self::stripe::{ListedIntent, Page, PaymentMethods, Stretch, Stripe, StripeFailure};
use crate::platform::alarms::{self, Alarms};
use crate::platform::auth::{InternalSecret, Verifier};
use crate::platform::db;
use crate::platform::events::{
    Event, HandlerError, Outbox, OutboxSignal, Subscription, Watch, handler,
};
use crate::platform::idempotency;
use crate::platform::metrics::Metrics;
use crate::platform::problem::Problem;
use crate::platform::scans::Scan;
use crate::platform::tasks::Tasks;
use crate::platform::upstream::{Upstream, UpstreamError};

/// The schema of this role.
pub const SCHEMA: &str = "payments";
/// Its migrations.
pub static MIGRATOR: crate::platform::db::Migrations = crate::migrations!("payments": "0001_payments", "0002_burnt_keys", "0003_traces", "0004_alarms", "0005_stripe_limits", "0007_leases", "0008_payment_totals", "0010_refunds_disputes", "0011_reconciliation");
/// Its name as a consumer of events.
const CONSUMER: &str = "payments";

/// How often captures without an accounting are looked for: an index that is nearly empty.
const RECONCILE_EVERY: Duration = Duration::from_secs(4);
/// How often events that wait for too long, and dead letters, are looked for.
const WATCH_EVERY: Duration = Duration::from_secs(10);
const PURGE_EVERY: Duration = Duration::from_secs(600);
/// How often it is seen whether Stripe was quiet for too long.
const STRIPE_LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Clone, Default)]
struct Counters {
    states: Family<ByState, Counter>,
    alarms: Counter,
    claims_failed: Family<ByKind, Counter>,
    /// Events that were found in Stripe's list.
    polled: Counter,
}

impl Counters {
    /// Work of this kind could not be claimed.
    fn claim_failed(&self, kind: &'static str) {
        self.claims_failed.get_or_create(&ByKind { kind }).inc();
    }

    fn count(&self, state: PaymentState) {
        self.states
            .get_or_create(&ByState {
                state: state.as_str(),
            })
            .inc();
    }
}

/// Does this key of Stripe's move real money?
pub fn moves_real_money(key: &str) -> bool {
    stripe::is_live(key)
}

/// The state of this role. Cheap to clone.
#[derive(Clone)]
pub struct Payments {
    pool: PgPool,
    stripe: Stripe,
    reservations: Upstream,
    verifier: Verifier,
    internal: InternalSecret,
    config: Arc<Settings>,
    signal: OutboxSignal,
    /// Wakes the worker.
    worker: Arc<Notify>,
    /// Wakes the reader of Stripe's list of events: somebody waits for news.
    news: Arc<Notify>,
    /// Intents being made by this instance.
    creates: Arc<SingleFlight<begin::Made>>,
    /// When the last refused webhook was noted.
    refusals: Arc<webhook::Refusals>,
    counters: Counters,
    totals: Arc<overview::Totals>,
    events: Watch,
    alarms: Alarms,
}

impl Payments {
    /// The role on `pool` (schema [`SCHEMA`], migrated).
    ///
    /// # Errors
    /// When Stripe's URL or key cannot be used.
    pub fn new(
        settings: Settings,
        pool: PgPool,
        reservations: Upstream,
        verifier: Verifier,
        internal: InternalSecret,
        metrics: &Metrics,
    ) -> Result<Self, String> {
        let counters = Counters::default();
        let stripe = Stripe::new(
            &settings.stripe_url,
            &settings.secret_key,
            settings.rate,
            settings.methods.clone(),
        )?;
        metrics.register(|registry| {
            stripe.budget().register(registry);
            let c = counters.clone();
            registry.register(
                "payments_settled",
                "Payments by the state they reached",
                c.states,
            );
            registry.register(
                "payments_alarms",
                "Things that a person must look at",
                c.alarms,
            );
            registry.register(
                "payments_claims_failed",
                "Times that due work could not be claimed",
                c.claims_failed,
            );
            registry.register(
                "payments_events_polled",
                "Events found in Stripe's list before a webhook brought them",
                c.polled,
            );
        });
        Ok(Self {
            alarms: Alarms::new(SCHEMA, pool.clone()),
            stripe,
            pool,
            reservations,
            verifier,
            internal,
            config: Arc::new(settings),
            signal: OutboxSignal::new(),
            worker: Arc::default(),
            news: Arc::default(),
            creates: Arc::default(),
            refusals: Arc::default(),
            counters,
            totals: Arc::default(),
            events: Watch::default(),
        })
    }

    /// What this role wants a person to see to.
    pub fn alarms(&self) -> Alarms {
        let state = self.clone();
        self.alarms.clone().acting(Arc::new(move |alarm, action| {
            let state = state.clone();
            Box::pin(async move {
                if alarm.kind != orphans::ORPHAN_CAPTURE || action != orphans::REFUND {
                    return Err(alarms::unknown_action());
                }
                match state.refund_orphan(&alarm.key).await {
                    Err(Error::OrderNotPayable | Error::PaymentNotFound) => Err(Problem::new(
                        StatusCode::CONFLICT,
                        "ACTION_NOT_POSSIBLE",
                        "Its order stands, or Stripe does not have it.",
                    )),
                    done => done.map_err(Problem::from),
                }
            })
        }))
    }

    /// The same role, whose calls to Stripe yield to those of buyers.
    fn background(&self) -> Self {
        Self {
            stripe: self.stripe.background(),
            ..self.clone()
        }
    }

    /// Where the process puts the figures of its events.
    pub fn events(&self) -> &Watch {
        &self.events
    }
}

/// Starts what runs in the background.
pub fn tasks(payments: &Payments, tasks: &Tasks) {
    let (state, stop) = (payments.clone(), tasks.token());
    tasks.spawn("payments.worker", move || {
        worker::run(state.clone(), stop.clone())
    });
    let (stripe, pool, stop) = (
        payments.stripe.clone(),
        payments.pool.clone(),
        tasks.token(),
    );
    tasks.spawn("payments.stripe-shares", move || {
        stripe::shares::run(stripe.clone(), pool.clone(), stop.clone())
    });
    let (state, stop) = (payments.clone(), tasks.token());
    tasks.spawn("payments.stripe-events", move || {
        poller::run(state.clone(), stop.clone())
    });
    let stripe = payments.stripe.clone();
    tasks.every("payments.stripe-health", STRIPE_LOOK_EVERY, move || {
        let stripe = stripe.clone();
        async move { stripe.look_when_quiet().await }
    });
    let this = payments.background();
    tasks.every("payments.overdue", payments.overdue_every(), move || {
        let this = this.clone();
        async move {
            if let Err(error) = this.look_for_overdue().await {
                tracing::warn!(?error, "the age of refunds is not known now; looking again");
            }
        }
    });
    reconcilers(payments, tasks);
    let pool = payments.pool.clone();
    tasks.every("payments.totals", overview::FOLD_EVERY, move || {
        let pool = pool.clone();
        async move {
            if let Err(error) = overview::fold(&pool).await {
                tracing::warn!(%error, "totals are added up later");
            }
        }
    });
    let pool = payments.pool.clone();
    tasks.every("payments.purge", PURGE_EVERY, move || {
        let pool = pool.clone();
        async move {
            let purged = [webhook::purge(&pool).await, idempotency::purge(&pool).await];
            for error in purged.into_iter().filter_map(Result::err) {
                tracing::warn!(%error, "cannot delete old webhooks and keys; trying again later");
            }
        }
    });
}

/// The events of this role.
pub fn outbox(payments: &Payments) -> Outbox {
    Outbox {
        source: SCHEMA,
        pool: payments.pool.clone(),
        signal: payments.signal.clone(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CancelRequested {
    order_id: Uuid,
}

/// Compares payments with orders, and with Stripe's list.
fn reconcilers(payments: &Payments, tasks: &Tasks) {
    // Buyers go first at Stripe.
    let payments = &payments.background();
    let (state, scan) = (
        payments.clone(),
        Scan::new(payments.pool.clone(), "reconcile"),
    );
    tasks.every("payments.reconcile", RECONCILE_EVERY, move || {
        let (state, scan) = (state.clone(), scan.clone());
        async move { logged("payments and orders", state.reconcile(&scan).await) }
    });
    let (state, scan) = (payments.clone(), Scan::new(payments.pool.clone(), "stripe"));
    let late = Arc::new(scan::Late::default());
    tasks.every("payments.stripe-scan", scan::SCAN_EVERY, move || {
        let (state, scan, late) = (state.clone(), scan.clone(), late.clone());
        async move { logged("payments and Stripe", state.scan_stripe(&scan, &late).await) }
    });
    let (state, scan) = (
        payments.clone(),
        Scan::new(payments.pool.clone(), "restore"),
    );
    tasks.every("payments.restore", scan::MATCH_EVERY, move || {
        let (state, scan) = (state.clone(), scan.clone());
        async move { logged("a restore and Stripe", state.match_restores(&scan).await) }
    });
    let state = payments.clone();
    tasks.every("payments.watch-events", WATCH_EVERY, move || {
        let state = state.clone();
        async move { logged("events that wait", scan::watch_events(&state).await) }
    });
}

fn logged(what: &str, done: Result<(), Error>) {
    if let Err(error) = done {
        tracing::warn!(?error, "cannot compare {what} now; trying again");
    }
}

/// What this role wants to hear.
pub fn subscriptions(payments: &Payments) -> Vec<Subscription> {
    let state = payments.clone();
    let handle = handler(move |event: Event| {
        let state = state.clone();
        async move {
            match event.kind.as_str() {
                "payment.cancel.requested" => {
                    let asked: CancelRequested = event.data()?;
                    state.on_cancel_requested(event.id, asked.order_id).await
                }
                "refund.requested" => state.on_refund_requested(&event).await,
                other => Err(HandlerError::Poison(anyhow::anyhow!(
                    "unexpected type {other}"
                ))),
            }
        }
    });
    vec![Subscription {
        consumer: CONSUMER,
        sources: &["reservations"],
        types: &["payment.cancel.requested", "refund.requested"],
        handler: handle,
        pool: payments.pool.clone(),
    }]
}

/// Whether this role can answer. Stripe being away is not asked here: what is known still is
/// answered then, and what comes in is kept.
///
/// # Errors
/// What is away.
pub async fn ready(payments: &Payments) -> Result<(), String> {
    match sqlx::query("select 1").execute(&payments.pool).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("PostgreSQL (payments): {error}")),
    }
}

/// Why a request was not granted.
#[derive(Debug)]
pub(crate) enum Error {
    OrderNotFound,
    PaymentNotFound,
    HoldExpired,
    OrderNotPayable,
    /// Stripe does not take this payment, and never will; its code for why.
    ProviderRefused(String),
    BadSignature(Refused),
    BadWebhook(&'static str),
    Reservations(UpstreamError),
    Stripe(StripeFailure),
    Store(sqlx::Error),
}

impl Error {
    /// Not known now; the same request will find out.
    fn busy(cause: &str) -> Self {
        Self::Stripe(StripeFailure::Unknown(cause.to_owned()))
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        db::observe(&error);
        Self::Store(error)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code, detail) = match error {
            Error::Store(error) => return error.into(),
            Error::Reservations(error) => return Self::unavailable(error),
            Error::Stripe(failure @ (StripeFailure::Unknown(_) | StripeFailure::Burnt(_))) => {
                return Self::unavailable(failure);
            }
            Error::Stripe(failure @ StripeFailure::Refused { .. }) => {
                tracing::error!(error = %failure, "Stripe refused a payment");
                (
                    StatusCode::BAD_GATEWAY,
                    "PAYMENT_PROVIDER_REFUSED",
                    "The payment provider does not take this payment. Nothing was charged.",
                )
            }
            Error::ProviderRefused(code) => {
                return Self::new(
                    StatusCode::CONFLICT,
                    "PAYMENT_PROVIDER_REFUSED",
                    format!(
                        "The payment provider does not take this payment ({code}), and trying again cannot help. Nothing was charged, and the seats are free again."
                    ),
                );
            }
            Error::OrderNotFound => (
                StatusCode::NOT_FOUND,
                "ORDER_NOT_FOUND",
                "There is no such order.",
            ),
            Error::PaymentNotFound => (
                StatusCode::NOT_FOUND,
                "PAYMENT_NOT_FOUND",
                "There is no such payment.",
            ),
            Error::HoldExpired => (
                StatusCode::CONFLICT,
                "HOLD_EXPIRED",
                "The seats were held for too long and have been freed. Choose again.",
            ),
            Error::OrderNotPayable => (
                StatusCode::CONFLICT,
                "ORDER_NOT_PAYABLE",
                "This order is not waiting to be paid.",
            ),
            Error::BadSignature(refused) => {
                tracing::warn!(reason = %refused, "webhook refused");
                (
                    StatusCode::BAD_REQUEST,
                    "INVALID_SIGNATURE",
                    "The Stripe-Signature header does not prove this body.",
                )
            }
            Error::BadWebhook(what) => {
                tracing::warn!(reason = what, "webhook refused");
                (
                    StatusCode::BAD_REQUEST,
                    "INVALID_WEBHOOK",
                    "The body is not a Stripe event.",
                )
            }
        };
        Self::new(status, code, detail)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
