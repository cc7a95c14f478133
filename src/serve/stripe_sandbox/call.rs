//! One API call as it came in: who asks, with which parameters, under which key,
//! and with which faults.

use std::str::FromStr as _;
use std::time::Instant;

use axum::extract::{FromRequest, MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, header};
use base64::Engine as _;
use subtle::ConstantTimeEq as _;

use super::State;
use super::error::{ApiError, Kind};
use super::faults::{self, Term};
use super::form::Form;
use super::ids;

pub const FAULT_HEADER: HeaderName = HeaderName::from_static("sandbox-fault");
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Larger than any body that our calls can fill.
const BODY_MAX: usize = 128 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The shop's server.
    Secret,
    /// A browser, which needs an intent's client secret for anything.
    Publishable,
}

#[derive(Debug)]
pub struct Call {
    pub id: String,
    pub who: Who,
    pub path: String,
    pub form: Form,
    pub key: Option<String>,
    pub faults: Vec<Term>,
    pub base_url: String,
}

/// An error, and the id of the call it answers.
#[derive(Debug)]
pub struct Rejected(pub String, pub ApiError);

impl axum::response::IntoResponse for Rejected {
    fn into_response(self) -> axum::response::Response {
        let mut response = self.1.into_response();
        super::http::name(&mut response, &self.0);
        super::http::hint(&mut response);
        response
    }
}

impl FromRequest<State> for Call {
    type Rejection = Rejected;

    async fn from_request(request: Request, state: &State) -> Result<Self, Rejected> {
        let id = ids::request();
        read(request, state, id.clone())
            .await
            .map_err(|error| Rejected(id, error))
    }
}

async fn read(request: Request, state: &State, id: String) -> Result<Call, ApiError> {
    let (parts, body) = request.into_parts();
    let mut form = if parts.method == Method::POST {
        check_content_type(&parts.headers)?;
        let body = axum::body::to_bytes(body, BODY_MAX).await.map_err(|_| {
            ApiError::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                Kind::InvalidRequest,
                "The request body is too large or broke off.",
            )
        })?;
        Form::parse(&body)?
    } else {
        Form::parse(parts.uri.query().unwrap_or_default().as_bytes())?
    };
    let in_form = form.take("key");
    // Stripe.js sends its version so.
    form.take("_stripe_version");
    form.take("_stripe_account");
    let given = match given_key(&parts.headers)? {
        Some(key) => Some(key),
        None => in_form.and_then(|key| key.as_str().map(str::to_owned)),
    };
    let who = identify(state, given.as_deref())?;
    // Browsers' calls come from their own addresses; the limits are the server's.
    if who == Who::Secret && parts.uri.path().starts_with("/v1/") {
        let matched = parts.extensions.get::<MatchedPath>();
        let path = matched.map_or("/v1/unknown", MatchedPath::as_str);
        let endpoint = format!("{} {path}", parts.method);
        state.limiter().admit(&endpoint, Instant::now())?;
    }
    let text = |name: &HeaderName| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let faults = match text(&FAULT_HEADER) {
        None => Vec::new(),
        Some(text) => faults::parse(text)
            .map_err(|bad| ApiError::invalid(bad.to_string()).param("Sandbox-Fault"))?,
    };
    let key = (parts.method == Method::POST)
        .then(|| text(&IDEMPOTENCY_KEY))
        .flatten();
    Ok(Call {
        id,
        who,
        path: parts.uri.path().to_owned(),
        form,
        key: key.map(str::to_owned),
        faults,
        base_url: base_url(state, &parts.headers),
    })
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(kind) = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return Ok(());
    };
    if kind.starts_with("application/json") {
        return Err(ApiError::invalid(
            "Invalid request: the content type must be application/x-www-form-urlencoded, not \
             application/json.",
        ));
    }
    Ok(())
}

/// `Bearer sk_…`, or HTTP basic with the key as the user's name.
fn given_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return Ok(None);
    };
    let malformed = || unauthorised("Malformed Authorization header.");
    let value = value.to_str().map_err(|_| malformed())?;
    let (scheme, rest) = value.split_once(' ').ok_or_else(malformed)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Ok(Some(rest.trim().to_owned()));
    }
    if !scheme.eq_ignore_ascii_case("basic") {
        return Err(malformed());
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(rest.trim())
        .map_err(|_| malformed())?;
    let pair = String::from_utf8(decoded).map_err(|_| malformed())?;
    let user = pair.split_once(':').map_or(pair.as_str(), |(user, _)| user);
    Ok(Some(user.to_owned()))
}

pub fn identify(state: &State, given: Option<&str>) -> Result<Who, ApiError> {
    let Some(given) = given.filter(|key| !key.is_empty()) else {
        return Err(unauthorised(
            "You did not provide an API key. You need to provide your API key in the \
             Authorization header, using Bearer auth (e.g. 'Authorization: Bearer \
             YOUR_SECRET_KEY'). See https://stripe.com/docs/api#authentication for details.",
        ));
    };
    let is = |key: &str| bool::from(given.as_bytes().ct_eq(key.as_bytes()));
    if is(state.secret_key()) {
        return Ok(Who::Secret);
    }
    if is(state.publishable_key()) {
        return Ok(Who::Publishable);
    }
    Err(unauthorised(format!(
        "Invalid API Key provided: {}",
        redacted(given)
    )))
}

fn unauthorised(message: impl Into<String>) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, Kind::InvalidRequest, message)
}

pub fn secret_key_required() -> ApiError {
    unauthorised(
        "This API call cannot be made with a publishable API key. Please use a secret API key. \
         You can find a list of your API keys at https://dashboard.stripe.com/account/apikeys.",
    )
    .code("secret_key_required")
}

/// Enough to recognise a wrong key by, as Stripe shows it.
fn redacted(key: &str) -> String {
    let chars: Vec<char> = key.chars().take(80).collect();
    if chars.len() < 16 {
        return "*".repeat(chars.len());
    }
    let head: String = chars[..8].iter().collect();
    let tail: String = chars[chars.len() - 4..].iter().collect();
    format!("{head}{}{tail}", "*".repeat(chars.len() - 12))
}

/// Where the browser that asks, or will be sent, finds this sandbox.
pub fn base_url(state: &State, headers: &HeaderMap) -> String {
    if let Some(url) = state.public_url() {
        return url.to_owned();
    }
    let host = headers
        .get(header::HOST)
        .and_then(|value| value.to_str().ok())
        .and_then(|host| axum::http::uri::Authority::from_str(host).ok());
    match host {
        Some(host) => format!("http://{host}"),
        None => "http://127.0.0.1:12111".to_owned(),
    }
}
