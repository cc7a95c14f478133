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
mod http;
mod looks;
mod machine;
mod overview;
mod refunds;
mod settle;
mod signature;
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
use self::looks::Looks;
use self::machine::PaymentState;
use self::signature::Refused;
use self::stripe::{Stripe, StripeFailure};
use crate::platform::alarms::Alarms;
use crate::platform::auth::{InternalSecret, Verifier};
use crate::platform::events::{
    Event, HandlerError, Outbox, OutboxSignal, Subscription, Watch, handler,
};
use crate::platform::idempotency;
use crate::platform::metrics::Metrics;
use crate::platform::problem::Problem;
use crate::platform::tasks::Tasks;
use crate::platform::upstream::{Upstream, UpstreamError};

/// The schema of this role.
pub const SCHEMA: &str = "payments";
/// Its migrations.
pub static MIGRATOR: crate::platform::db::Migrations = crate::migrations!("payments": "0001_payments", "0002_burnt_keys", "0003_traces", "0004_alarms", "0005_stripe_limits", "0008_payment_totals");
/// Its name as a consumer of events.
const CONSUMER: &str = "payments";

const PURGE_EVERY: Duration = Duration::from_secs(600);
/// How often it is seen whether Stripe was quiet for too long.
const STRIPE_LOOK_EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Clone, Default)]
struct Counters {
    states: Family<ByState, Counter>,
    alarms: Counter,
}

impl Counters {
    fn count(&self, state: PaymentState) {
        self.states
            .get_or_create(&ByState {
                state: state.as_str(),
            })
            .inc();
    }
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
    looks: Arc<Looks>,
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
            looks: Arc::default(),
            counters,
            totals: Arc::default(),
            events: Watch::default(),
        })
    }

    /// What this role wants a person to see to.
    pub fn alarms(&self) -> &Alarms {
        &self.alarms
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
    let stripe = payments.stripe.clone();
    tasks.every("payments.stripe-health", STRIPE_LOOK_EVERY, move || {
        let stripe = stripe.clone();
        async move { stripe.look_when_quiet().await }
    });
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
