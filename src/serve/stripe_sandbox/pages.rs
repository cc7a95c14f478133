//! Small pages for people: the list of payments, a pay page that stands in for
//! Stripe's Payment Element, and the page on which a buyer proves who they are.
//! Plain HTML in the binary; nothing is fetched from anywhere else.

use axum::Router;
use axum::extract::{Form, Path, Query, State as Extract};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use axum::routing::get;
use serde::Deserialize;

use super::State;
use super::call::base_url;
use super::charging::check_client_secret;
use super::error::ApiError;
use super::execute::Command;
use super::faults::Faults;
use super::ids;
use super::machine::Status;
use super::model::Intent;
use super::money;
use super::objects::Origin;
use super::params;
use super::reads;

/// The list shows the newest only; the API pages through the rest.
const LISTED_MAX: i64 = 100;

const STYLE: &str = include_str!("pages/style.css");

/// The cards on the pay page: what a tester reaches for first.
const BUTTONS: [(&str, &str); 6] = [
    ("pm_card_visa", "Visa ···· 4242: succeeds"),
    (
        "pm_card_threeDSecure2Required",
        "Visa ···· 3220: asks who you are",
    ),
    ("pm_card_chargeDeclined", "Visa ···· 0002: declined"),
    (
        "pm_card_chargeDeclinedInsufficientFunds",
        "Visa ···· 9995: insufficient funds",
    ),
    (
        "pm_card_chargeDeclinedExpiredCard",
        "Visa ···· 0069: expired",
    ),
    (
        "pm_card_createDispute",
        "Visa ···· 0259: succeeds, disputed later",
    ),
];

pub fn router() -> Router<State> {
    Router::new()
        .route("/", get(list))
        .route("/pay/{id}", get(pay_page).post(pay))
        .route("/3ds/{id}", get(challenge_page).post(challenge))
}

#[derive(Debug, Deserialize)]
struct Link {
    #[serde(default)]
    client_secret: String,
    return_url: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Choice {
    #[serde(default)]
    client_secret: String,
    return_url: Option<String>,
    #[serde(default)]
    payment_method: String,
    #[serde(default)]
    outcome: String,
}

fn page(status: StatusCode, title: &str, body: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content='width=device-width,initial-scale=1'>\
         <title>{title} · Stripe sandbox</title><style>{STYLE}</style>\
         <header><b>Stripe sandbox</b> no real money moves here</header><main>{body}</main></html>"
    );
    let mut response = (status, Html(html)).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}

fn failed(error: &ApiError) -> Response {
    let message = error
        .field("message")
        .and_then(|message| message.as_str())
        .unwrap_or("Something went wrong.");
    page(
        error.status(),
        "Error",
        &format!("<h1>That did not work</h1><p>{}</p>", escaped(message)),
    )
}

fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
        out
    })
}

async fn list(Extract(state): Extract<State>) -> Response {
    let intents = match reads::newest(state.pool(), LISTED_MAX).await {
        Ok(intents) => intents,
        Err(error) => return failed(&ApiError::internal(error)),
    };
    let rows: String = intents.iter().map(row).collect();
    let body = if rows.is_empty() {
        "<h1>Payments</h1><p>None yet: create a PaymentIntent and it shows here.</p>".to_owned()
    } else {
        format!(
            "<h1>Payments</h1><table><thead><tr><th>Payment<th>Amount<th>Status<th>Captured\
             <th>Refunded<th>Metadata<th>Created</thead>{rows}</table>"
        )
    };
    page(StatusCode::OK, "Payments", &body)
}

fn row(intent: &Intent) -> String {
    let metadata: Vec<String> = intent
        .metadata
        .iter()
        .map(|(key, value)| format!("{}={}", escaped(key), escaped(value)))
        .collect();
    let created = chrono::DateTime::from_timestamp(intent.created, 0)
        .map(|at| at.format("%Y-%m-%d %H:%M:%S").to_string())
        .unwrap_or_default();
    format!(
        "<tr><td><code>{}</code><td class=n>{}<td class={status}>{status}<td class=n>{}<td class=n>{}\
         <td>{}<td>{created}",
        intent.id,
        money::show(intent.amount, &intent.currency),
        money::show(intent.captured(), &intent.currency),
        money::show(intent.refunded(), &intent.currency),
        metadata.join("<br>"),
        status = intent.status.as_str(),
    )
}

/// The intent, for whoever holds its client secret.
async fn held(state: &State, id: &str, client_secret: &str) -> Result<Intent, ApiError> {
    let intent = reads::intent(state.pool(), id)
        .await
        .map_err(ApiError::internal)?
        .ok_or_else(|| ApiError::missing("payment_intent", id, "intent"))?;
    check_client_secret(&intent, Some(client_secret))?;
    Ok(intent)
}

async fn pay_page(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    Query(link): Query<Link>,
) -> Response {
    match held(&state, &id, &link.client_secret).await {
        Ok(intent) => show_pay(&intent, link.return_url.as_deref(), StatusCode::OK),
        Err(error) => failed(&error),
    }
}

fn show_pay(intent: &Intent, return_url: Option<&str>, status: StatusCode) -> Response {
    let amount = money::show(intent.amount, &intent.currency);
    let description = intent
        .echoed
        .get("description")
        .and_then(|text| text.as_str())
        .map(escaped)
        .unwrap_or_default();
    let error = intent
        .last_error
        .as_ref()
        .map(|error| format!("<p class=error role=alert>{}</p>", escaped(&error.message)))
        .unwrap_or_default();
    let open = matches!(
        intent.status,
        Status::RequiresPaymentMethod | Status::RequiresConfirmation | Status::RequiresAction
    );
    let rest = if open {
        let buttons: String = BUTTONS
            .iter()
            .map(|(method, label)| {
                format!("<button name=payment_method value={method}>{label}</button>")
            })
            .collect();
        format!(
            "{error}<p>Pay with a test card:</p><form method=post class=cards>{}{buttons}</form>",
            hidden(intent, return_url)
        )
    } else {
        format!(
            "<p class={status}>This payment is <b>{status}</b>.</p>{}",
            way_back(intent, return_url),
            status = intent.status.as_str()
        )
    };
    page(
        status,
        "Pay",
        &format!("<h1>{amount}</h1><p>{description}</p>{rest}"),
    )
}

fn hidden(intent: &Intent, return_url: Option<&str>) -> String {
    let back = return_url
        .map(|url| {
            format!(
                "<input type=hidden name=return_url value=\"{}\">",
                escaped(url)
            )
        })
        .unwrap_or_default();
    format!(
        "<input type=hidden name=client_secret value=\"{}\">{back}",
        escaped(&intent.client_secret)
    )
}

/// Only where a browser may be sent: never `javascript:` and the like.
fn web_url(text: &str) -> Option<url::Url> {
    url::Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"))
}

/// The `return_url` as Stripe completes it.
fn returning(intent: &Intent, return_url: &str) -> Option<String> {
    let mut url = web_url(return_url)?;
    let status = match intent.status {
        Status::Succeeded | Status::RequiresCapture => "succeeded",
        Status::Processing => "pending",
        Status::RequiresPaymentMethod
        | Status::RequiresConfirmation
        | Status::RequiresAction
        | Status::Canceled => "failed",
    };
    url.query_pairs_mut()
        .append_pair("payment_intent", &intent.id)
        .append_pair("payment_intent_client_secret", &intent.client_secret)
        .append_pair("redirect_status", status);
    Some(url.into())
}

fn way_back(intent: &Intent, return_url: Option<&str>) -> String {
    return_url
        .and_then(|url| returning(intent, url))
        .map(|url| format!("<p><a href=\"{}\">Back to the shop</a></p>", escaped(&url)))
        .unwrap_or_default()
}

async fn pay(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(choice): Form<Choice>,
) -> Response {
    let encoded = form_of(&choice);
    let confirmed = async {
        // Through the same parameters as a call by Stripe.js.
        let form = super::form::Form::parse(encoded.as_bytes())?;
        let mut confirm = params::confirm(&form)?;
        // An empty one reads as none, and none is what only a server may leave out.
        confirm.client_secret = Some(choice.client_secret.clone());
        let command = Command::Confirm(id.clone(), Box::new(confirm));
        run(&state, command, base_url(&state, &headers)).await
    };
    if let Err(error) = confirmed.await {
        return failed(&error);
    }
    let intent = match held(&state, &id, &choice.client_secret).await {
        Ok(intent) => intent,
        Err(error) => return failed(&error),
    };
    let return_url = choice.return_url.as_deref();
    if let Some(next) = &intent.next_action {
        return Redirect::to(&next.url).into_response();
    }
    match (
        intent.status,
        return_url.and_then(|url| returning(&intent, url)),
    ) {
        (Status::Succeeded | Status::RequiresCapture | Status::Processing, Some(url)) => {
            Redirect::to(&url).into_response()
        }
        (Status::RequiresPaymentMethod, _) => {
            show_pay(&intent, return_url, StatusCode::PAYMENT_REQUIRED)
        }
        _ => show_pay(&intent, return_url, StatusCode::OK),
    }
}

fn form_of(choice: &Choice) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    form.append_pair("client_secret", &choice.client_secret)
        .append_pair("payment_method", &choice.payment_method);
    if let Some(url) = &choice.return_url {
        form.append_pair("return_url", url);
    }
    form.finish()
}

/// A decline is shown on the page, so only other errors come back as such.
async fn run(state: &State, command: Command, base_url: String) -> Result<(), ApiError> {
    let origin = Origin {
        request: Some(ids::request()),
        idempotency_key: None,
    };
    let reply = state
        .engine()
        .call(command, None, None, Faults::default(), origin, base_url)
        .await?;
    match reply.status {
        200 | 402 => Ok(()),
        status => {
            let body: serde_json::Value = serde_json::from_str(&reply.body).unwrap_or_default();
            let message = body["error"]["message"].as_str().unwrap_or("unknown error");
            Err(ApiError::new(
                StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
                super::error::Kind::InvalidRequest,
                message,
            ))
        }
    }
}

async fn challenge_page(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    Query(link): Query<Link>,
) -> Response {
    let intent = match held(&state, &id, &link.client_secret).await {
        Ok(intent) => intent,
        Err(error) => return failed(&error),
    };
    let Some(next) = &intent.next_action else {
        return show_pay(&intent, link.return_url.as_deref(), StatusCode::OK);
    };
    let body = format!(
        "<h1>Is it you?</h1><p>Your bank asks you to approve {} before it pays.</p>\
         <form method=post class=cards>{}<button name=outcome value=complete>Complete</button>\
         <button name=outcome value=fail>Fail</button></form>",
        money::show(intent.amount, &intent.currency),
        hidden(&intent, next.return_url.as_deref())
    );
    page(StatusCode::OK, "Authenticate", &body)
}

async fn challenge(
    Extract(state): Extract<State>,
    Path(id): Path<String>,
    headers: HeaderMap,
    Form(choice): Form<Choice>,
) -> Response {
    let passed = match choice.outcome.as_str() {
        "complete" => true,
        "fail" => false,
        _ => return failed(&ApiError::invalid("Choose one of the two buttons.")),
    };
    let command = Command::Authenticate {
        intent: id.clone(),
        client_secret: choice.client_secret.clone(),
        passed,
    };
    if let Err(error) = run(&state, command, base_url(&state, &headers)).await {
        return failed(&error);
    }
    match held(&state, &id, &choice.client_secret).await {
        Err(error) => failed(&error),
        Ok(intent) => {
            let back = choice.return_url.as_deref();
            match back.and_then(|url| returning(&intent, url)) {
                Some(url) => Redirect::to(&url).into_response(),
                None => show_pay(&intent, None, StatusCode::OK),
            }
        }
    }
}
