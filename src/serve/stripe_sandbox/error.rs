//! Stripe's error objects. The sandbox speaks these, and no problems.

use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Api,
    Card,
    Idempotency,
    InvalidRequest,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api_error",
            Self::Card => "card_error",
            Self::Idempotency => "idempotency_error",
            Self::InvalidRequest => "invalid_request_error",
        }
    }
}

/// Boxed inside, so that a `Result` that carries one stays small.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiError(Box<Inner>);

#[derive(Clone, Debug, PartialEq)]
struct Inner {
    status: StatusCode,
    kind: Kind,
    fields: Map<String, Value>,
    header: Option<(&'static str, HeaderValue)>,
}

impl ApiError {
    pub fn new(status: StatusCode, kind: Kind, message: impl Into<String>) -> Self {
        let mut fields = Map::new();
        fields.insert("message".into(), Value::String(message.into()));
        fields.insert("type".into(), kind.as_str().into());
        Self(Box::new(Inner {
            status,
            kind,
            fields,
            header: None,
        }))
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, Kind::InvalidRequest, message)
    }

    pub fn missing(what: &str, id: &str, param: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            Kind::InvalidRequest,
            format!("No such {what}: '{id}'"),
        )
        .code("resource_missing")
        .param(param)
    }

    /// Something of ours broke: the cause is logged here, once, and not told.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        tracing::error!(error = %cause, "the Stripe sandbox failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            Kind::Api,
            "An unknown error occurred",
        )
    }

    pub fn unexpected_state(message: impl Into<String>, intent: Value) -> Self {
        Self::invalid(message)
            .code("payment_intent_unexpected_state")
            .with("payment_intent", intent)
    }

    pub fn code(self, code: &str) -> Self {
        let doc = format!(
            "https://stripe.com/docs/error-codes/{}",
            code.replace('_', "-")
        );
        self.with("code", code.into()).with("doc_url", doc.into())
    }

    pub fn param(self, param: &str) -> Self {
        self.with("param", param.into())
    }

    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.0.fields.insert(key.to_owned(), value);
        self
    }

    /// A header beside the body.
    pub fn header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.0.header = Some((name, value));
        self
    }

    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// A declined card is an answer: what it changed stays. All other errors
    /// leave everything as it was.
    pub fn keeps_effects(&self) -> bool {
        self.0.kind == Kind::Card
    }

    pub fn body(&self) -> Value {
        json!({ "error": self.0.fields })
    }

    pub fn field(&self, name: &str) -> Option<&Value> {
        self.0.fields.get(name)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status(), axum::Json(self.body())).into_response();
        if let Some((name, value)) = self.0.header {
            response.headers_mut().insert(name, value);
        }
        response
    }
}
