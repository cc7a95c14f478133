//! The buyer's page: plain files, carried in the binary, nothing fetched from
//! elsewhere but Stripe's own form when a real Stripe is configured.

use axum::{
    Router,
    extract::Path,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use http::header;
use sha2::{Digest, Sha256};

/// Only what stands here runs or loads. Stripe's origins are for the Payment Element.
const POLICY: &str = "default-src 'none'; script-src 'self' https://js.stripe.com https://*.js.stripe.com; style-src 'self'; \
    img-src 'self' data:; connect-src 'self' https://api.stripe.com; \
    frame-src https://js.stripe.com https://*.js.stripe.com https://hooks.stripe.com; form-action 'self'; base-uri 'none'; \
    frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! files {
    ($($name:literal: $kind:expr),+ $(,)?) => {
        &[$(($name, $kind, include_str!(concat!("../../../web/", $name)))),+]
    };
}

const FILES: &[(&str, &str, &str)] = files! {
    "index.html": HTML,
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    "api.js": SCRIPT,
    "app.js": SCRIPT,
    "clock.js": SCRIPT,
    "dom.js": SCRIPT,
    "members.js": SCRIPT,
    "orders.js": SCRIPT,
    "queue.js": SCRIPT,
    "seats.js": SCRIPT,
    "shows.js": SCRIPT,
};

pub(super) fn router() -> Router {
    Router::new()
        .route(
            "/",
            get(|headers| async move { serve("index.html", &headers) }),
        )
        .route(
            "/web/{file}",
            get(|Path(file): Path<String>, headers| async move { serve(&file, &headers) }),
        )
}

fn serve(name: &str, asked: &HeaderMap) -> Response {
    let Some((_, kind, text)) = FILES.iter().find(|(known, ..)| *known == name) else {
        return crate::platform::problem::Problem::not_found("There is nothing at this path.")
            .into_response();
    };
    // A new build is seen at once: asked for every time, sent only when changed.
    let etag = format!("\"{}\"", hex::encode(&Sha256::digest(text)[..8]));
    let known = asked
        .get(header::IF_NONE_MATCH)
        .is_some_and(|value| value.as_bytes() == etag.as_bytes());
    let headers = [
        (header::CONTENT_TYPE, (*kind).to_owned()),
        (header::CACHE_CONTROL, "public, no-cache".to_owned()),
        (header::ETAG, etag),
        (header::CONTENT_SECURITY_POLICY, POLICY.to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
    ];
    if known {
        (StatusCode::NOT_MODIFIED, headers).into_response()
    } else {
        (headers, Bytes::from_static(text.as_bytes())).into_response()
    }
}
