//! The gateway's own paths, and the passing on of all others.

use std::net::SocketAddr;

use axum::{
    Router,
    extract::{ConnectInfo, Request, State as Axum},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{State, alarms, early, overview, role_of, web};
use crate::platform::{event_stream, problem::Problem, upstream::UpstreamError};

pub(super) fn router(state: State) -> Router {
    Router::new()
        .route("/openapi.json", get(openapi))
        .route("/admin/v1/overview", get(overview::get))
        .route("/admin/v1/alarms", get(alarms::list))
        .route("/admin/v1/alarms/{id}/resolve", post(alarms::resolve))
        .with_state(state.clone())
        .merge(web::router())
        .method_not_allowed_fallback(|| async {
            Problem::new(
                http::StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "This path does not take this method.",
            )
        })
        .fallback_service(axum::handler::Handler::with_state(pass_on, state))
}

async fn openapi(Axum(state): Axum<State>) -> Response {
    let json = HeaderValue::from_static("application/json");
    let public = HeaderValue::from_static("public, max-age=60");
    let headers = [
        (header::CONTENT_TYPE, json),
        (header::CACHE_CONTROL, public),
    ];
    (headers, state.openapi).into_response()
}

/// Tells a role elsewhere whose request this is: the proxies so far, then who
/// connected to us. It believes as much of it as it is configured to.
fn forwarded_for(request: &mut Request) {
    let Some(ConnectInfo(peer)) = request.extensions().get::<ConnectInfo<SocketAddr>>() else {
        return;
    };
    let name = HeaderName::from_static("x-forwarded-for");
    let before = request.headers().get(&name).and_then(|v| v.to_str().ok());
    let all = match before {
        Some(before) => format!("{before}, {}", peer.ip()),
        None => peer.ip().to_string(),
    };
    if let Ok(value) = HeaderValue::from_str(&all) {
        request.headers_mut().insert(name, value);
    }
}

async fn pass_on(Axum(state): Axum<State>, mut request: Request) -> Response {
    let path = request.uri().path();
    let Some(role) = role_of(path) else {
        return Problem::not_found("There is nothing at this path.").into_response();
    };
    if let Err(problem) = early::check(&state, request.method(), path, request.headers()) {
        return problem.into_response();
    }
    let upstream = state.upstreams.of(role);
    if upstream.is_remote() {
        forwarded_for(&mut request);
    }
    match upstream.call(request).await {
        Ok(response) => event_stream::until(response, &state.draining),
        Err(UpstreamError::Body {
            too_large: true, ..
        }) => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BODY_TOO_LARGE",
            "The request body is larger than this path takes.",
        )
        .into_response(),
        Err(error @ UpstreamError::Body { .. }) => {
            tracing::debug!(%error, "a request was not passed on");
            let detail = "The request body broke off.";
            Problem::new(StatusCode::BAD_REQUEST, "BODY_UNREADABLE", detail).into_response()
        }
        Err(error) => Problem::unavailable(error).into_response(),
    }
}
