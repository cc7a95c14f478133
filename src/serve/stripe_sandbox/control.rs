//! The sandbox's own endpoints, which Stripe does not have: the standing faults
//! of a chaos run, the rate limits, and the books for an audit. All want the secret key.

use axum::extract::State as Extract;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::State;
use super::call::{Call, Who, secret_key_required};
use super::error::ApiError;
use super::faults::{self, Term};
use super::limits::Limits;
use super::reads;

/// A page of the ledger: small lines, read by machines.
const LEDGER_PAGE_MAX: i64 = 10_000;

/// The faults that every call may meet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    pub text: String,
    pub seed: u64,
    pub terms: Vec<Term>,
}

impl Profile {
    pub fn new(text: &str, seed: u64) -> Result<Self, faults::BadFault> {
        Ok(Self {
            text: text.to_owned(),
            seed,
            terms: faults::parse(text)?,
        })
    }
}

pub fn router() -> Router<State> {
    Router::new()
        .route("/_sandbox/faults", get(profile).post(set_profile))
        .route("/_sandbox/ledger", get(ledger))
        .route("/_sandbox/limits", get(limits).post(set_limits))
}

fn shown(profile: &Profile) -> Value {
    json!({ "faults": profile.text, "seed": profile.seed })
}

fn secret_only(call: &Call) -> Result<(), ApiError> {
    match call.who {
        Who::Secret => Ok(()),
        Who::Publishable => Err(secret_key_required()),
    }
}

async fn profile(Extract(state): Extract<State>, call: Call) -> Response {
    match secret_only(&call) {
        Ok(()) => Json(shown(&state.profile())).into_response(),
        Err(error) => error.into_response(),
    }
}

/// `faults=…&seed=…`: replaces the whole of it; empty means none.
async fn set_profile(Extract(state): Extract<State>, call: Call) -> Response {
    let set = || -> Result<Value, ApiError> {
        secret_only(&call)?;
        call.form.allow(&["faults", "seed"])?;
        let text = call.form.text("faults")?.unwrap_or_default();
        let seed = call.form.integer("seed")?.unwrap_or(0);
        let profile = Profile::new(text, seed.unsigned_abs())
            .map_err(|bad| ApiError::invalid(bad.to_string()).param("faults"))?;
        let answer = shown(&profile);
        state.set_profile(profile);
        Ok(answer)
    };
    match set() {
        Ok(value) => Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}

async fn limits(Extract(state): Extract<State>, call: Call) -> Response {
    match secret_only(&call) {
        Ok(()) => Json(state.limiter().shown()).into_response(),
        Err(error) => error.into_response(),
    }
}

/// `rate=25/100`: calls a second to each endpoint, and to all; empty means none. Counts begin anew.
async fn set_limits(Extract(state): Extract<State>, call: Call) -> Response {
    let set = || -> Result<Value, ApiError> {
        secret_only(&call)?;
        call.form.allow(&["rate"])?;
        let text = call.form.text("rate")?.unwrap_or_default();
        let limits = text
            .parse::<Limits>()
            .map_err(|bad| ApiError::invalid(bad).param("rate"))?;
        state.limiter().set(limits);
        Ok(state.limiter().shown())
    };
    match set() {
        Ok(value) => Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}

/// Every intent, oldest first, with what was captured and refunded. `next` asks
/// for the rest.
async fn ledger(Extract(state): Extract<State>, call: Call) -> Response {
    let read = async {
        secret_only(&call)?;
        call.form.allow(&["after", "limit"])?;
        let after = call.form.integer("after")?.unwrap_or(0);
        let limit = call.form.integer("limit")?.unwrap_or(LEDGER_PAGE_MAX);
        let limit = limit.clamp(1, LEDGER_PAGE_MAX);
        let lines = reads::ledger(state.pool(), after, limit)
            .await
            .map_err(ApiError::internal)?;
        let deliveries = reads::deliveries(state.pool())
            .await
            .map_err(ApiError::internal)?;
        let full = i64::try_from(lines.len()).unwrap_or(limit) == limit;
        let next = lines.last().filter(|_| full).map(|line| line.seq);
        let deliveries: serde_json::Map<String, Value> = deliveries
            .into_iter()
            .map(|(state, count)| (state, count.into()))
            .collect();
        Ok::<_, ApiError>(json!({ "data": lines, "next": next, "deliveries": deliveries }))
    };
    match read.await {
        Ok(value) => Json(value).into_response(),
        Err(error) => error.into_response(),
    }
}
