//! Places as JSON, written by hand into one buffer: this is what most answers of
//! the whole system are.

use std::io::Write;

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};

use super::snapshot::rfc3339;
use crate::platform::place::{Place, PlaceKeys, PlaceState, TOKEN_LEN};

/// Longer than any place's JSON.
const CAPACITY: usize = TOKEN_LEN + 256;

/// What an answer says beside the place itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
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
    let write = |body: &mut Vec<u8>, args: std::fmt::Arguments<'_>| {
        body.write_fmt(args).expect("writing to memory cannot fail");
    };
    match place.state {
        PlaceState::Registered => write(
            body,
            format_args!(
                "\",\"status\":\"REGISTERED\",\"number\":null,\"position\":null,\"registration\":{}",
                place.number
            ),
        ),
        PlaceState::Waiting => write(
            body,
            format_args!(
                "\",\"status\":\"WAITING\",\"number\":{},\"position\":{}",
                place.number, told.position
            ),
        ),
        PlaceState::Working => write(
            body,
            format_args!(
                "\",\"status\":\"WORKING\",\"number\":{},\"position\":null",
                place.number
            ),
        ),
    }
    match told.estimate {
        Some((min, max)) => write(
            body,
            format_args!(",\"estimatedWaitSeconds\":{{\"min\":{min},\"max\":{max}}}"),
        ),
        None => body.extend_from_slice(b",\"estimatedWaitSeconds\":null"),
    }
    write(
        body,
        format_args!(",\"pollAfterMs\":{}", told.poll_after_ms),
    );
    let until = (place.state == PlaceState::Working)
        .then(|| rfc3339(i64::try_from(place.deadline_ms).unwrap_or(i64::MAX)))
        .flatten();
    match until {
        Some(at) => write(body, format_args!(",\"expiresAt\":\"{at}\"}}")),
        None => body.extend_from_slice(b",\"expiresAt\":null}"),
    }
}
