//! Stripe's rate limits, imposed on request: so many calls of the shop's server a second, for each
//! endpoint and for all together. Counted over a sliding second, which is stricter than a bucket:
//! a client that meets no 429 here meets none at Stripe.

use std::collections::{HashMap, VecDeque};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

use super::error::{ApiError, Kind};

const WINDOW: Duration = Duration::from_secs(1);
/// The routes of the sandbox are a dozen.
const ENDPOINTS_MAX: usize = 100;

/// `25`, `25/100`, or nothing at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub endpoint: Option<usize>,
    pub total: Option<usize>,
}

impl FromStr for Limits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(n) if (1..=100_000).contains(&n) => Ok(Some(n)),
            _ => Err(format!(
                "'{text}' is no rate: want calls a second from 1 to 100000, as 25, or with a total, as 25/100"
            )),
        };
        let (endpoint, total) = match text.split_once('/') {
            _ if text.trim().is_empty() => (None, None),
            Some((endpoint, total)) => (number(endpoint)?, number(total)?),
            None => (number(text)?, None),
        };
        Ok(Self { endpoint, total })
    }
}

/// What was called within the last second, and how often since the limits were set.
#[derive(Debug, Default)]
pub struct Limiter(Mutex<Counted>);

#[derive(Debug, Default)]
struct Counted {
    limits: Limits,
    all: VecDeque<Instant>,
    endpoints: HashMap<String, Endpoint>,
}

#[derive(Debug, Default)]
struct Endpoint {
    recent: VecDeque<Instant>,
    calls: u64,
    limited: u64,
}

impl Limiter {
    pub fn new(limits: Limits) -> Self {
        let this = Self::default();
        this.set(limits);
        this
    }

    /// Sets the limits and begins to count anew.
    pub fn set(&self, limits: Limits) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Counted {
            limits,
            ..Counted::default()
        };
    }

    /// Counts a call, or refuses it as Stripe does.
    pub fn admit(&self, endpoint: &str, now: Instant) -> Result<(), ApiError> {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Counted {
            limits,
            all,
            endpoints,
        } = &mut *counted;
        if endpoints.len() >= ENDPOINTS_MAX && !endpoints.contains_key(endpoint) {
            endpoints.clear();
        }
        let of_endpoint = endpoints.entry(endpoint.to_owned()).or_default();
        for recent in [&mut *all, &mut of_endpoint.recent] {
            while recent.front().is_some_and(|at| now - *at >= WINDOW) {
                recent.pop_front();
            }
        }
        let full = |recent: &VecDeque<Instant>, limit: Option<usize>| {
            limit.is_some_and(|limit| recent.len() >= limit)
        };
        let reason = if full(all, limits.total) {
            "global-rate"
        } else if full(&of_endpoint.recent, limits.endpoint) {
            "endpoint-rate"
        } else {
            of_endpoint.calls += 1;
            if *limits != Limits::default() {
                of_endpoint.recent.push_back(now);
                all.push_back(now);
            }
            return Ok(());
        };
        of_endpoint.limited += 1;
        Err(limited(reason))
    }

    /// The limits, and the calls to each endpoint since they were set.
    pub fn shown(&self) -> Value {
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoints: serde_json::Map<String, Value> = counted
            .endpoints
            .iter()
            .map(|(name, one)| {
                let figures = json!({ "calls": one.calls, "limited": one.limited });
                (name.clone(), figures)
            })
            .collect();
        json!({
            "endpoint": counted.limits.endpoint,
            "total": counted.limits.total,
            "endpoints": endpoints,
        })
    }
}

fn limited(reason: &'static str) -> ApiError {
    ApiError::new(
        StatusCode::TOO_MANY_REQUESTS,
        Kind::InvalidRequest,
        "Request rate limit exceeded. Learn more about rate limits here: \
         https://docs.stripe.com/rate-limits.",
    )
    .code("rate_limit")
    .header(
        "stripe-rate-limited-reason",
        HeaderValue::from_static(reason),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_second_sees_more_than_the_limit_of_an_endpoint_or_of_all() {
        let limiter = Limiter::new("3/5".parse().unwrap());
        let begun = Instant::now();
        let at = |ms| begun + Duration::from_millis(ms);
        for ms in [0, 100, 200] {
            assert!(limiter.admit("a", at(ms)).is_ok());
        }
        let refused = limiter.admit("a", at(999)).unwrap_err();
        assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(limiter.admit("b", at(999)).is_ok());
        assert!(limiter.admit("a", at(1_000)).is_ok());
        assert!(limiter.admit("b", at(1_000)).is_ok());
        assert!(
            limiter.admit("c", at(1_050)).is_err(),
            "five of all endpoints"
        );
        assert_eq!(limiter.shown()["endpoints"]["a"]["limited"], 1);
        limiter.set(Limits::default());
        for _ in 0..1_000 {
            assert!(limiter.admit("a", at(1_050)).is_ok());
        }
    }

    #[test]
    fn limits_are_read_as_their_help_says() {
        assert_eq!("".parse(), Ok(Limits::default()));
        let both = Limits {
            endpoint: Some(25),
            total: Some(100),
        };
        assert_eq!("25/100".parse(), Ok(both));
        for bad in ["0", "x", "25/", "/25", "-1", "1.5"] {
            assert!(bad.parse::<Limits>().is_err(), "{bad}");
        }
    }
}
