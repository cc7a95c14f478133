//! The gateway: the one door for buyers and operators.
//!
//! It owns no data. It knows which role answers which path, refuses early what
//! cannot succeed (no access token, no place), and passes the rest on: by a
//! plain call to roles of its own process, over HTTP to others. It never lets
//! `/internal` through, and roles trust nothing it says: each verifies the
//! access token itself.

pub(super) mod alarms;
mod early;
mod fast;
mod http;
pub(super) mod overview;
mod routes;
mod web;

use std::{sync::Arc, time::Instant};

use axum::{Router, extract::FromRef};
use tokio_util::sync::CancellationToken;
use tower_http::cors::{AllowOrigin, CorsLayer, ExposeHeaders};

use crate::platform::{
    auth::Verifier, edge::stats::HttpStats, place::PlaceKeys, upstream::Upstream,
};

pub use self::{
    fast::Fast,
    routes::{RoleName, role_of},
};

/// What the gateway is told by flags.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Gateway")]
#[group(skip)]
pub struct Config {
    /// Web origins that browsers may call from, such as https://tickets.example;
    /// several with commas, * for any [default: none, pages of this server only]
    #[arg(
        long,
        env = "TICKETPING_CORS_ORIGINS",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub cors_origins: Vec<String>,
}

/// Where each role is.
#[derive(Clone)]
pub struct Upstreams {
    /// Members.
    pub users: Upstream,
    /// The catalogue.
    pub performances: Upstream,
    /// The waiting room.
    pub queue: Upstream,
    /// Holds, orders, seat maps.
    pub reservations: Upstream,
    /// Payments and webhooks.
    pub payments: Upstream,
}

impl Upstreams {
    fn of(&self, role: RoleName) -> &Upstream {
        match role {
            RoleName::Users => &self.users,
            RoleName::Performances => &self.performances,
            RoleName::Queue => &self.queue,
            RoleName::Reservations => &self.reservations,
            RoleName::Payments => &self.payments,
        }
    }
}

/// The gateway's state. Cheap to clone.
#[derive(Clone)]
pub struct State {
    upstreams: Arc<Upstreams>,
    verifier: Verifier,
    /// Checks the MAC of places early; without it the roles do.
    places: Option<PlaceKeys>,
    stats: Arc<HttpStats>,
    started: Instant,
    openapi: bytes::Bytes,
    draining: CancellationToken,
}

impl State {
    /// A gateway before `upstreams`; `openapi` is the document it serves. Event streams end with
    /// `draining`.
    pub fn new(
        upstreams: Upstreams,
        verifier: Verifier,
        places: Option<PlaceKeys>,
        stats: Arc<HttpStats>,
        openapi: &utoipa::openapi::OpenApi,
        draining: CancellationToken,
    ) -> Result<Self, String> {
        let openapi = openapi
            .to_json()
            .map_err(|e| format!("the OpenAPI document: {e}"))?;
        Ok(Self {
            upstreams: Arc::new(upstreams),
            verifier,
            places,
            stats,
            started: Instant::now(),
            openapi: openapi.into(),
            draining,
        })
    }
}

impl FromRef<State> for Verifier {
    fn from_ref(state: &State) -> Self {
        state.verifier.clone()
    }
}

/// Everything the gateway serves: its own pages, and the roles behind it.
///
/// # Errors
/// When an origin is not one.
pub fn router(state: State, config: &Config) -> Result<Router, String> {
    let router = http::router(state);
    Ok(match cors(&config.cors_origins)? {
        Some(layer) => router.layer(layer),
        None => router,
    })
}

fn cors(origins: &[String]) -> Result<Option<CorsLayer>, String> {
    use ::http::{HeaderName, HeaderValue, Method, header};
    if origins.is_empty() {
        return Ok(None);
    }
    let allowed = if origins.iter().any(|o| o == "*") {
        AllowOrigin::any()
    } else {
        let list = origins
            .iter()
            .map(|origin| {
                let parsed = url::Url::parse(origin).ok().filter(|u| u.has_host());
                let value = parsed.map(|u| u.origin().ascii_serialization());
                value
                    .and_then(|v| HeaderValue::from_str(&v).ok())
                    .ok_or_else(|| {
                        format!("--cors-origins {origin}: not an origin; want https://host[:port]")
                    })
            })
            .collect::<Result<Vec<_>, _>>()?;
        AllowOrigin::list(list)
    };
    let name = HeaderName::from_static;
    Ok(Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([Method::GET, Method::POST, Method::PATCH, Method::DELETE])
            .allow_headers([
                header::AUTHORIZATION,
                header::CONTENT_TYPE,
                header::IF_NONE_MATCH,
                name("queue-token"),
                name("idempotency-key"),
                name("x-request-id"),
            ])
            .expose_headers(ExposeHeaders::list([
                header::ETAG,
                header::RETRY_AFTER,
                name("x-request-id"),
                name("idempotency-replayed"),
            ]))
            .max_age(std::time::Duration::from_secs(3600)),
    ))
}
