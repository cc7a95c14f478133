//! Errors as the client sees them: RFC 9457 `application/problem+json`.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::db::{self, Failed};

/// What was wrong with one field of a request.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct FieldError {
    /// The field's path in the body, `name` or `seatIds[2]`.
    pub field: String,
    /// One clause that says what would be right.
    pub message: String,
}

impl FieldError {
    /// An error about `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            message: message.into(),
        }
    }
}

/// An error answer. `code` is API: stable, UPPER_SNAKE.
#[derive(Clone, Debug)]
pub struct Problem {
    status: StatusCode,
    code: &'static str,
    detail: String,
    extra: Map<String, Value>,
    retry_after_s: Option<u64>,
    /// What is wrong on our side: for the log, never for the client.
    cause: Option<String>,
    failed: Option<Failed>,
}

/// The media type of every error (RFC 9457).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The body of every error, for the OpenAPI document.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProblemBody {
    /// A URI that names the kind of problem.
    pub r#type: String,
    /// The status in words.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened, for a human.
    pub detail: String,
    /// Stable and UPPER_SNAKE, for a program.
    pub code: String,
    /// The `X-Request-Id` of this answer.
    pub request_id: Option<String>,
    /// Validation errors, field by field.
    pub errors: Option<Vec<FieldError>>,
}

impl Problem {
    /// A problem with `status`, `code` and one sentence of detail.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status,
            code,
            detail: detail.into(),
            extra: Map::new(),
            retry_after_s: None,
            cause: None,
            failed: None,
        }
    }

    /// How a query failed, where that is the cause: the request may be worth repeating.
    pub fn failed_query(&self) -> Option<Failed> {
        self.failed
    }

    /// Adds a member beside the standard ones.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    /// Tells the client when to come back, in whole seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds);
        self
    }

    /// 422 `VALIDATION_FAILED`, field by field.
    pub fn validation(errors: Vec<FieldError>) -> Self {
        let detail = errors
            .iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect::<Vec<_>>()
            .join("; ");
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "VALIDATION_FAILED",
            detail,
        )
        .with("errors", serde_json::to_value(errors).unwrap_or_default())
    }

    /// 404 `NOT_FOUND`.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", detail)
    }

    /// Why it happened, for the line that the edge logs when it is answered.
    #[must_use]
    pub fn because(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// What [`Problem::because`] was told.
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// 500. `cause` is logged when the problem is answered, and kept out of the answer.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "INTERNAL",
            "Something went wrong on our side. Please try again.",
        )
        .because(cause)
    }

    /// 503 with `Retry-After: 1`: a store or another role is away. `cause` is logged when the
    /// problem is answered.
    pub fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "UNAVAILABLE",
            "A part of the service is away for the moment. Nothing was lost; please try again.",
        )
        .retry_after(1)
        .because(cause)
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The stable code.
    pub fn code(&self) -> &'static str {
        self.code
    }

    /// The body, with the request's id where it is known.
    pub fn body(&self, request_id: Option<&str>) -> Vec<u8> {
        let mut body = Map::new();
        let kind = self.code.to_ascii_lowercase().replace('_', "-");
        body.insert(
            "type".into(),
            format!("urn:ticketping:problem:{kind}").into(),
        );
        body.insert(
            "title".into(),
            self.status.canonical_reason().unwrap_or("Error").into(),
        );
        body.insert("status".into(), self.status.as_u16().into());
        body.insert("detail".into(), self.detail.clone().into());
        body.insert("code".into(), self.code.into());
        if let Some(id) = request_id {
            body.insert("requestId".into(), id.into());
        }
        body.extend(self.extra.clone());
        serde_json::to_vec(&body).unwrap_or_default()
    }

    /// The whole answer, with the request's id where it is known.
    pub fn response(&self, request_id: Option<&str>) -> Response {
        let mut response = (self.status, self.body(request_id)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        // The edge knows the request's id and renders the problem again with it.
        let mut response = self.response(None);
        response.extensions_mut().insert(std::sync::Arc::new(self));
        response
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        db::observe(&error);
        let failed = db::failed(&error);
        let mut problem = match failed {
            Failed::RolledBack | Failed::Disconnected | Failed::Away => Self::unavailable(error),
            Failed::Other => Self::internal(error),
        };
        problem.failed = Some(failed);
        problem
    }
}

impl From<redis::RedisError> for Problem {
    fn from(error: redis::RedisError) -> Self {
        // Every Redis failure that is not a bug of ours is the store being away,
        // loading or failing over; a script error is a bug, and says so.
        match error.kind() {
            redis::ErrorKind::UnexpectedReturnType | redis::ErrorKind::InvalidClientConfig => {
                Self::internal(error)
            }
            _ => Self::unavailable(error),
        }
    }
}
