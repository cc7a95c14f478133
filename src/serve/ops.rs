//! The operations listener: alive, ready, metrics.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use futures_util::future::BoxFuture;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use crate::platform::{http::finish, metrics::Metrics};

/// A check must answer within this, or counts as failed: probes have little patience.
const CHECK_MAX: Duration = Duration::from_secs(3);

/// Says whether one part can do its work now, and if not, why.
pub type Check = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// What the operations listener asks.
#[derive(Clone)]
pub struct Ops {
    metrics: Metrics,
    checks: Arc<Vec<(&'static str, Check)>>,
}

impl Ops {
    /// Serves `metrics` and the outcome of `checks`.
    pub fn new(metrics: Metrics, checks: Vec<(&'static str, Check)>) -> Self {
        Self {
            metrics,
            checks: Arc::new(checks),
        }
    }
}

/// `/livez`, `/readyz`, `/metrics`.
pub fn router(ops: Ops) -> Router {
    finish(
        Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(ops),
    )
}

async fn readyz(State(ops): State<Ops>) -> Response {
    let asked = ops.checks.iter().map(|(name, check)| async move {
        let outcome = tokio::time::timeout(CHECK_MAX, check())
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()));
        (*name, outcome)
    });
    let outcomes = futures_util::future::join_all(asked).await;
    let ready = outcomes.iter().all(|(_, outcome)| outcome.is_ok());
    let parts: serde_json::Map<_, _> = outcomes
        .into_iter()
        .map(|(name, outcome)| (name.to_owned(), json!(outcome.err().unwrap_or("ok".into()))))
        .collect();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let mut response = (
        status,
        [(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        )],
        json!({ "ready": ready, "parts": parts }).to_string(),
    )
        .into_response();
    if !ready {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let kind =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], ops.metrics.render()).into_response()
}
