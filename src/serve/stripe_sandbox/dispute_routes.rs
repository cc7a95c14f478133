//! Disputes over HTTP: Stripe's own calls, and those by which a test opens and decides one.

use axum::Router;
use axum::extract::{Path, State as Extract};
use axum::response::Response;
use axum::routing::{get, post};
use serde_json::Value;

use super::State;
use super::call::Call;
use super::error::ApiError;
use super::execute::Command;
use super::http::{PAGING, answer, change, read, servers_only};
use super::model::Intent;
use super::reads::{self, Page, Table};
use super::{objects, params};

pub fn router() -> Router<State> {
    Router::new()
        .route("/v1/disputes", get(list))
        .route("/v1/disputes/{id}", get(one).post(update))
        .route("/v1/disputes/{id}/close", post(close))
        .route("/_sandbox/disputes", post(open))
        .route("/_sandbox/disputes/{id}", post(set))
}

fn shown(intent: &Intent, id: &str) -> Option<Value> {
    let mut all = intent
        .charges
        .iter()
        .flat_map(|charge| charge.disputes.iter().map(move |dispute| (charge, dispute)));
    let (charge, dispute) = all.find(|(_, dispute)| dispute.id == id)?;
    Some(objects::dispute(intent, charge, dispute))
}

async fn one(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        let intent = reads::intent_of_dispute(state.pool(), &id)
            .await
            .map_err(ApiError::internal)?;
        let found = intent.and_then(|intent| shown(&intent, &id));
        found.ok_or_else(|| ApiError::missing("dispute", &id, "dispute"))
    };
    read(&state, &call, reading).await
}

async fn list(Extract(state): Extract<State>, call: Call) -> Response {
    let reading = async {
        servers_only(&call)?;
        call.form
            .allow(&[&PAGING[..], &["payment_intent", "charge"]].concat())?;
        let page = Page::read(state.pool(), Table::Disputes, &call.form).await?;
        let of_charge = match call.form.text("charge")? {
            None => None,
            Some(id) => reads::intent_of_charge(state.pool(), id)
                .await
                .map_err(ApiError::internal)?
                .map(|intent| intent.id)
                .or_else(|| Some(String::new())),
        };
        let of = call.form.text("payment_intent")?.or(of_charge.as_deref());
        let (rows, has_more) = reads::parts(state.pool(), Table::Disputes, &page, of)
            .await
            .map_err(ApiError::internal)?;
        let data: Vec<Value> = rows
            .iter()
            .filter_map(|(id, intent)| shown(intent, id))
            .collect();
        Ok(objects::list("/v1/disputes", &data, has_more))
    };
    read(&state, &call, reading).await
}

async fn update(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let command = params::evidence(&call.form).map(|evidence| Command::UpdateDispute(id, evidence));
    answer(&call, change(&state, &call, command).await)
}

async fn close(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let command = call
        .form
        .allow(&["expand"])
        .map(|()| Command::CloseDispute(id));
    answer(&call, change(&state, &call, command).await)
}

/// `payment_intent=…[&amount=…][&inquiry=true][&reason=…]`: the holder disputes a charge.
async fn open(Extract(state): Extract<State>, call: Call) -> Response {
    let command =
        params::opening(&call.form).map(|(intent, opening)| Command::OpenDispute(intent, opening));
    answer(&call, change(&state, &call, command).await)
}

/// `status=…`: what the bank says.
async fn set(Extract(state): Extract<State>, Path(id): Path<String>, call: Call) -> Response {
    let command = params::dispute_status(&call.form).map(|status| Command::SetDispute(id, status));
    answer(&call, change(&state, &call, command).await)
}
