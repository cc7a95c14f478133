//! Places as JSON, written by hand into one buffer: this is what most answers of
//! the whole system are.

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};

use super::snapshot::rfc3339;
use crate::platform::{
    overview::Phase,
    place::{Place, PlaceKeys, PlaceState, TOKEN_LEN},
};

/// Longer than any place's JSON.
const CAPACITY: usize = TOKEN_LEN + 288;

/// What an answer says beside the place itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    /// The queue's phase.
    pub phase: Phase,
    /// 1 for the next in line; 0: none.
    pub position: u64,
    /// Seconds until the turn.
    pub estimate: Option<(u64, u64)>,
    /// When to ask again.
    pub poll_after_ms: u64,
}

/// The answer that shows `place`; `token` is its token when that is still good, else it is sealed.
pub fn response(
    keys: &PlaceKeys,
    place: &Place,
    token: Option<&str>,
    told: Told,
    status: StatusCode,
) -> Response {
    let mut body = Vec::with_capacity(CAPACITY);
    write(&mut body, keys, place, token, told);
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.reserve(4);
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn write(body: &mut Vec<u8>, keys: &PlaceKeys, place: &Place, token: Option<&str>, told: Told) {
    let mut sealed = [0_u8; TOKEN_LEN];
    body.extend_from_slice(b"{\"queueToken\":\"");
    match token {
        Some(token) => body.extend_from_slice(token.as_bytes()),
        None => {
            keys.seal_into(place, &mut sealed);
            body.extend_from_slice(&sealed);
        }
    }
    match place.state {
        PlaceState::Registered => {
            let known =
                b"\",\"status\":\"REGISTERED\",\"number\":null,\"position\":null,\"registration\":";
            number(body, known, place.number);
        }
        PlaceState::Waiting => {
            number(body, b"\",\"status\":\"WAITING\",\"number\":", place.number);
            number(body, b",\"position\":", told.position);
        }
        PlaceState::Working => {
            number(body, b"\",\"status\":\"WORKING\",\"number\":", place.number);
            body.extend_from_slice(b",\"position\":null");
        }
    }
    body.extend_from_slice(b",\"phase\":\"");
    body.extend_from_slice(told.phase.as_str().as_bytes());
    body.push(b'"');
    match told.estimate {
        Some((min, max)) => {
            number(body, b",\"estimatedWaitSeconds\":{\"min\":", min);
            number(body, b",\"max\":", max);
            body.push(b'}');
        }
        None => body.extend_from_slice(b",\"estimatedWaitSeconds\":null"),
    }
    number(body, b",\"pollAfterMs\":", told.poll_after_ms);
    let until = (place.state == PlaceState::Working)
        .then(|| rfc3339(i64::try_from(place.turn.deadline_ms).unwrap_or(i64::MAX)))
        .flatten();
    match until {
        Some(at) => {
            body.extend_from_slice(b",\"expiresAt\":\"");
            body.extend_from_slice(at.as_bytes());
            body.extend_from_slice(b"\"}");
        }
        None => body.extend_from_slice(b",\"expiresAt\":null}"),
    }
}

/// `before`, then `n`, without the machinery of `std::fmt`: every poll writes four.
fn number(body: &mut Vec<u8>, before: &[u8], n: u64) {
    body.extend_from_slice(before);
    body.extend_from_slice(itoa::Buffer::new().format(n).as_bytes());
}
