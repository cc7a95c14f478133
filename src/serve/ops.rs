//! The operations listener: alive, ready, metrics. It answers from memory and never waits for a
//! store.

use axum::{
    Router,
    extract::State,
    response::{IntoResponse, Response},
    routing::get,
};
use http::{HeaderValue, StatusCode, header};

use crate::platform::{http::finish, metrics::Metrics, readiness::Readiness};

/// What the operations listener shows.
#[derive(Clone)]
pub struct Ops {
    metrics: Metrics,
    readiness: Readiness,
}

impl Ops {
    /// Shows `metrics` and `readiness`.
    pub fn new(metrics: Metrics, readiness: Readiness) -> Self {
        Self { metrics, readiness }
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
    let (ready, report) = ops.readiness.report();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let kind = (
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    let mut response = (status, [kind], report.to_string()).into_response();
    if !ready {
        let soon = HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, soon);
    }
    response
}

async fn metrics(State(ops): State<Ops>) -> Response {
    let kind =
        HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, kind)], ops.metrics.render()).into_response()
}
