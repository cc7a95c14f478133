//! Stripe's API over HTTP: routes, and what every call goes through.

use std::sync::PoisonError;

use axum::extract::{Path, State as Extract};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::Value;
use tower_http::cors::{Any, CorsLayer};

use super::call::{Call, Who, secret_key_required};
use super::engine::{self, FAULT_METADATA, HANG, Reply};
use super::error::ApiError;
use super::execute::Command;
use super::expand::Expansions;
use super::faults::{self, Faults, Operation};
use super::idempotency::Key;
use super::objects::{self, Origin};
use super::params;
use super::reads::{self, EventFilter, Page, Table};
use super::{State, charging, control, pages};

pub fn router(state: State) -> Router {
    // Browsers call from the shop's page with the publishable key, as Stripe.js
    // does; a key is asked for, so the origin proves nothing.
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(Any)
        .allow_headers(Any)
        .expose_headers(Any);
    Router::new()
        .route("/v1/payment_intents", get(list_intents).post(create))
        .route("/v1/payment_intents/{id}", get(intent).post(update))
        .route("/v1/payment_intents/{id}/confirm", post(confirm))
        .route("/v1/payment_intents/{id}/capture", post(capture))
        .route("/v1/payment_intents/{id}/cancel", post(cancel))
        .route("/v1/charges", get(list_charges))
        .route("/v1/charges/{id}", get(charge))
        .route("/v1/refunds", get(list_refunds).post(refund))
        .route("/v1/refunds/{id}", get(one_refund).post(update_refund))
        .route("/v1/events", get(list_events))
        .route("/v1/events/{id}", get(event))
        .merge(super::dispute_routes::router())
        .merge(control::router())
        .merge(pages::router())
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .layer(cors)
        .with_state(state)
}

/// Every answer carries the id of its call and the version of its shapes.
pub fn name(response: &mut Response, request: &str) {
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(request) {
        headers.insert("request-id", id);
    }
    headers.insert(
        "stripe-version",
        HeaderValue::from_static(objects::API_VERSION),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store"),
    );
}

/// Where nothing was done, Stripe tells its own libraries so.
pub fn hint(response: &mut Response) {
    if matches!(
        response.status(),
        StatusCode::CONFLICT | StatusCode::TOO_MANY_REQUESTS
    ) {
        let headers = response.headers_mut();
        headers.insert("stripe-should-retry", HeaderValue::from_static("true"));
    }
}

async fn unknown(method: Method, uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        super::error::Kind::InvalidRequest,
        format!(
            "Unrecognized request URL ({method}: {}). Please see https://stripe.com/docs or we \
             can help at https://support.stripe.com/.",
            uri.path()
        ),
    )
}

pub fn answer(call: &Call, outcome: Result<Response, ApiError>) -> Response {
    let mut response = outcome.unwrap_or_else(ApiError::into_response);
    name(&mut response, &call.id);
    hint(&mut response);
    if let Some(key) = call
        .key
        .as_deref()
        .and_then(|key| HeaderValue::from_str(key).ok())
    {
        response.headers_mut().insert("idempotency-key", key);
    }
    response
}

/// Faults of this call: those it asked for and those the standing profile deals.
fn draw(state: &State, call: &Call, operation: Operation) -> Faults {
    let mut faults = Faults::default();
    let profile = state.profile();
    let mut dice = state.dice().lock().unwrap_or_else(PoisonError::into_inner);
    dice.cast(&profile.terms, operation, &mut faults);
    dice.cast(&call.faults, operation, &mut faults);
    faults
}

/// A call that changes something: parsed, run by the engine, answered after its
/// commit, with whatever was asked to go wrong on the way back.
pub async fn change(
    state: &State,
    call: &Call,
    command: Result<Command, ApiError>,
) -> Result<Response, ApiError> {
    let command = command?;
    let expansions = Expansions::read(&call.form)?;
    if call.who == Who::Publishable && !browser_may(&command) {
        return Err(secret_key_required());
    }
    let key = match &call.key {
        None => None,
        Some(key) => Some(Key::new(key, &call.path, &call.form)?),
    };
    let running = match &key {
        None => None,
        Some(key) => Some(state.in_flight().begin(key)?),
    };
    let faults = draw(state, call, command.operation());
    let origin = Origin {
        request: Some(call.id.clone()),
        idempotency_key: call.key.clone(),
    };
    let reply = state
        .engine()
        .call(command, key, running, faults, origin, call.base_url.clone())
        .await?;
    let _still_at_work = misbehave(&reply.faults, reply.running.as_ref()).await?;
    respond(state, &expansions, reply).await
}

/// With the publishable key only what comes with an intent's client secret.
fn browser_may(command: &Command) -> bool {
    match command {
        Command::Confirm(_, confirm) => confirm.client_secret.is_some(),
        Command::Create(_)
        | Command::Update(..)
        | Command::Capture(..)
        | Command::Cancel(..)
        | Command::Refund(_)
        | Command::UpdateRefund(..)
        | Command::UpdateDispute(..)
        | Command::CloseDispute(_)
        | Command::OpenDispute(..)
        | Command::SetDispute(..)
        | Command::Authenticate { .. }
        | Command::Settle(_) => false,
    }
}

async fn misbehave<T>(faults: &Faults, held: T) -> Result<T, ApiError> {
    if faults.hang || faults.hang_before {
        tokio::time::sleep(HANG).await;
        return Err(engine::edge_error(504));
    }
    if let Some(delay) = faults.delay {
        tokio::time::sleep(delay).await;
    }
    match faults.error_after {
        Some(status) => Err(engine::edge_error(status)),
        None => Ok(held),
    }
}

async fn respond(
    state: &State,
    expansions: &Expansions,
    reply: Reply,
) -> Result<Response, ApiError> {
    let body = if expansions.is_empty() || reply.status != 200 {
        reply.body
    } else {
        let mut value: Value = serde_json::from_str(&reply.body).map_err(ApiError::internal)?;
        expansions.apply(state.pool(), &mut value).await?;
        value.to_string()
    };
    let status = StatusCode::from_u16(reply.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    if let Some(first) = reply.replay_of {
        let headers = response.headers_mut();
        headers.insert("idempotent-replayed", HeaderValue::from_static("true"));
        if let Ok(first) = HeaderValue::from_str(&first) {
            headers.insert("original-request", first);
        }
    }
    Ok(response)
}

/// Faults in metadata are checked when they are set, so that a typo is told.
fn check_metadata(metadata: &super::model::Metadata) -> Result<(), ApiError> {
    match metadata.get(FAULT_METADATA).map(|text| faults::parse(text)) {
        None | Some(Ok(_)) => Ok(()),
        Some(Err(bad)) => Err(ApiError::invalid(bad.to_string()).param("metadata[sandbox_fault]")),
    }
}

async fn create(Extract(state): Extract<State>, call: Call) -> Response {
    let command = params::create(&call.form).and_then(|create| {
        check_metadata(&create.metadata)?;
        Ok(Command::Create(Box::new(create)))
    });
    answer(&call, change(&state, &call, command).await)
}

async fn update(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let command = params::update(&call.form).and_then(|update| {
        check_metadata(&update.metadata)?;
        Ok(Command::Update(id, Box::new(update)))
    });
    answer(&call, change(&state, &call, command).await)
}

async fn confirm(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let command =
        params::confirm(&call.form).map(|confirm| Command::Confirm(id, Box::new(confirm)));
    answer(&call, change(&state, &call, command).await)
}

async fn capture(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let command = params::capture_amount(&call.form).map(|amount| Command::Capture(id, amount));
    answer(&call, change(&state, &call, command).await)
}

async fn cancel(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let command = params::cancellation_reason(&call.form).map(|why| Command::Cancel(id, why));
    answer(&call, change(&state, &call, command).await)
}

async fn refund(Extract(state): Extract<State>, call: Call) -> Response {
    let command = params::refund(&call.form).map(Command::Refund);
    answer(&call, change(&state, &call, command).await)
}

async fn update_refund(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    call: Call,
) -> Response {
    let command =
        params::refund_metadata(&call.form).map(|metadata| Command::UpdateRefund(id, metadata));
    answer(&call, change(&state, &call, command).await)
}

/// A call that only reads: same faults, no key.
pub async fn read(
    state: &State,
    call: &Call,
    reading: impl Future<Output = Result<Value, ApiError>>,
) -> Response {
    let faults = draw(state, call, Operation::Read);
    let outcome = async {
        if let Some(status) = faults.error_before {
            return Err(engine::edge_error(status));
        }
        let expansions = Expansions::read(&call.form)?;
        let mut value = reading.await?;
        misbehave(&faults, ()).await?;
        expansions.apply(state.pool(), &mut value).await?;
        if faults.skew {
            objects::skew(&mut value);
        }
        Ok(Json(value).into_response())
    };
    answer(call, outcome.await)
}

pub fn servers_only(call: &Call) -> Result<(), ApiError> {
    match call.who {
        Who::Secret => Ok(()),
        Who::Publishable => Err(secret_key_required()),
    }
}

async fn intent(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let reading = async {
        call.form
            .allow(&["client_secret", "expand", "is_stripe_sdk"])?;
        let client_secret = call.form.text("client_secret")?;
        if call.who == Who::Publishable && client_secret.is_none() {
            return Err(secret_key_required());
        }
        let intent = reads::intent(state.pool(), &id)
            .await
            .map_err(ApiError::internal)?
            .ok_or_else(|| ApiError::missing("payment_intent", &id, "intent"))?;
        charging::check_client_secret(&intent, client_secret)?;
        Ok(objects::payment_intent(&intent))
    };
    read(&state, &call, reading).await
}

/// As Stripe documents for the list of events.
const EVENT_TYPES_MAX: usize = 20;

pub const PAGING: [&str; 5] = [
    "limit",
    "starting_after",
    "ending_before",
    "created",
    "expand",
];

async fn list_intents(Extract(state): Extract<State>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        call.form
            .allow(&[&PAGING[..], &["customer", "customer_account"]].concat())?;
        let page = Page::read(state.pool(), Table::Intents, &call.form).await?;
        let customer = call.form.text("customer")?;
        let (intents, has_more) = reads::intents(state.pool(), &page, customer)
            .await
            .map_err(ApiError::internal)?;
        let data: Vec<Value> = intents.iter().map(objects::payment_intent).collect();
        Ok(objects::list("/v1/payment_intents", &data, has_more))
    };
    read(&state, &call, reading).await
}

async fn charge(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        let missing = || ApiError::missing("charge", &id, "id");
        let intent = reads::intent_of_charge(state.pool(), &id)
            .await
            .map_err(ApiError::internal)?
            .ok_or_else(missing)?;
        let charge = intent.charges.iter().find(|charge| charge.id == id);
        Ok(objects::charge(&intent, charge.ok_or_else(missing)?))
    };
    read(&state, &call, reading).await
}

async fn list_charges(Extract(state): Extract<State>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        call.form
            .allow(&[&PAGING[..], &["payment_intent"]].concat())?;
        let page = Page::read(state.pool(), Table::Charges, &call.form).await?;
        let of = call.form.text("payment_intent")?;
        let (rows, has_more) = reads::parts(state.pool(), Table::Charges, &page, of)
            .await
            .map_err(ApiError::internal)?;
        let data: Vec<Value> = rows
            .iter()
            .flat_map(|(id, intent)| {
                let found = intent.charges.iter().find(|charge| charge.id == *id);
                found.map(|charge| objects::charge(intent, charge))
            })
            .collect();
        Ok(objects::list("/v1/charges", &data, has_more))
    };
    read(&state, &call, reading).await
}

async fn one_refund(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    call: Call,
) -> Response {
    let reading = async {
        servers_only(&call)?;
        let missing = || ApiError::missing("refund", &id, "refund");
        let intent = reads::intent_of_refund(state.pool(), &id)
            .await
            .map_err(ApiError::internal)?
            .ok_or_else(missing)?;
        let refund = intent.refunds.iter().find(|refund| refund.id == id);
        Ok(objects::refund(&intent, refund.ok_or_else(missing)?))
    };
    read(&state, &call, reading).await
}

async fn list_refunds(Extract(state): Extract<State>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        call.form
            .allow(&[&PAGING[..], &["payment_intent", "charge"]].concat())?;
        let page = Page::read(state.pool(), Table::Refunds, &call.form).await?;
        let of_charge = match call.form.text("charge")? {
            None => None,
            Some(id) => reads::intent_of_charge(state.pool(), id)
                .await
                .map_err(ApiError::internal)?
                .map(|intent| intent.id)
                .or_else(|| Some(String::new())),
        };
        let of = call.form.text("payment_intent")?.or(of_charge.as_deref());
        let (rows, has_more) = reads::parts(state.pool(), Table::Refunds, &page, of)
            .await
            .map_err(ApiError::internal)?;
        let data: Vec<Value> = rows
            .iter()
            .flat_map(|(id, intent)| {
                let found = intent.refunds.iter().find(|refund| refund.id == *id);
                found.map(|refund| objects::refund(intent, refund))
            })
            .collect();
        Ok(objects::list("/v1/refunds", &data, has_more))
    };
    read(&state, &call, reading).await
}

async fn event(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        reads::event(state.pool(), &id)
            .await
            .map_err(ApiError::internal)?
            .ok_or_else(|| ApiError::missing("event", &id, "id"))
    };
    read(&state, &call, reading).await
}

async fn list_events(Extract(state): Extract<State>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        call.form
            .allow(&[&PAGING[..], &["type", "types", "delivery_success"]].concat())?;
        let page = Page::read(state.pool(), Table::Events, &call.form).await?;
        let mut types = call.form.list("types")?.unwrap_or_default();
        if types.len() > EVENT_TYPES_MAX {
            return Err(ApiError::invalid(format!(
                "You may pass at most {EVENT_TYPES_MAX} types, not {}.",
                types.len()
            ))
            .param("types"));
        }
        if call.form.has("type") && call.form.has("types") {
            return Err(ApiError::invalid(
                "You may only specify one of these parameters: type, types.",
            ));
        }
        types.extend(call.form.text("type")?.map(str::to_owned));
        let filter = EventFilter {
            types,
            delivered: call.form.boolean("delivery_success")?,
        };
        let (events, has_more) = reads::events(state.pool(), &page, &filter)
            .await
            .map_err(ApiError::internal)?;
        Ok(objects::list("/v1/events", &events, has_more))
    };
    read(&state, &call, reading).await
}
