//! What every HTTP handler shares: extractors whose rejections are problems,
//! paging, and the server loop.

use axum::{
    Router,
    extract::{FromRequest, FromRequestParts, Request, rejection::BytesRejection},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header, request::Parts};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utoipa::{IntoParams, ToSchema};

use super::{
    problem::{FieldError, Problem},
    repeat,
};

/// No request body is larger (webhooks set their own limit).
pub const BODY_MAX: usize = 64 * 1024;

/// A JSON body, in and out.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(pub T);

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "UNSUPPORTED_MEDIA_TYPE",
                "Send the body as Content-Type: application/json.",
            ));
        }
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|e| body_problem(&e))?;
        parse_json(&bytes).map(Self)
    }
}

fn is_json(headers: &http::HeaderMap) -> bool {
    let Some(Ok(value)) = headers.get(header::CONTENT_TYPE).map(HeaderValue::to_str) else {
        return false;
    };
    let essence = value
        .split(';')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_lowercase();
    essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
}

/// The problem of a body that could not be read.
pub fn body_problem(rejection: &BytesRejection) -> Problem {
    if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
        Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "BODY_TOO_LARGE",
            "The request body is larger than this path takes.",
        )
    } else {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "BODY_UNREADABLE",
            "The request body broke off.",
        )
    }
}

/// Parses a JSON body.
///
/// # Errors
/// 400 `MALFORMED_JSON` where it is no JSON, 422 `VALIDATION_FAILED` naming the
/// field where it is JSON of another shape.
pub fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let field = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data => {
                let field = if field == "." {
                    "body".to_owned()
                } else {
                    field
                };
                Problem::validation(vec![FieldError::new(field, plain(&inner))])
            }
            _ => malformed(&inner),
        }
    })?;
    deserializer.end().map_err(|e| malformed(&e))?;
    Ok(value)
}

/// Serde's message without its "at line 1 column 7".
fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

fn malformed(error: &serde_json::Error) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        "MALFORMED_JSON",
        format!("The request body is not valid JSON: {error}."),
    )
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => (
                [(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/json"),
                )],
                body,
            )
                .into_response(),
            Err(e) => Problem::internal(e).into_response(),
        }
    }
}

/// Path parameters. What does not parse (an id that is no UUID) cannot exist: 404.
#[derive(Clone, Copy, Debug)]
pub struct Path<T>(pub T);

impl<S, T> FromRequestParts<S> for Path<T>
where
    S: Send + Sync,
    T: DeserializeOwned + Send,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Path::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(value)| Self(value))
            .map_err(|e| Problem::not_found(format!("Nothing is there: {}.", e.body_text())))
    }
}

/// Query parameters; what does not parse is 422.
#[derive(Clone, Copy, Debug)]
pub struct Query<T>(pub T);

impl<S, T> FromRequestParts<S> for Query<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Query::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|e| Problem::validation(vec![FieldError::new("query", e.body_text())]))
    }
}

/// `?limit=` and `?cursor=` of a list.
#[derive(Clone, Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Page {
    /// How many items at most: 1..100, 20 by default.
    #[serde(default)]
    limit: Option<String>,
    /// Where the last page ended: its `nextCursor`.
    #[serde(default)]
    cursor: Option<String>,
}

impl Page {
    /// The limit asked for.
    ///
    /// # Errors
    /// 422 when it is not a number from 1 to 100.
    pub fn limit(&self) -> Result<i64, Problem> {
        let Some(text) = &self.limit else {
            return Ok(20);
        };
        match text.parse() {
            Ok(limit @ 1..=100) => Ok(limit),
            _ => Err(Problem::validation(vec![FieldError::new(
                "limit",
                "must be a whole number from 1 to 100",
            )])),
        }
    }

    /// The cursor, as the last page gave it out.
    ///
    /// # Errors
    /// 422 when it is not one of ours.
    pub fn cursor<T: std::str::FromStr>(&self) -> Result<Option<T>, Problem> {
        let Some(text) = &self.cursor else {
            return Ok(None);
        };
        text.parse().map(Some).map_err(|_| {
            Problem::validation(vec![FieldError::new(
                "cursor",
                "must be the nextCursor of the page before",
            )])
        })
    }
}

/// One page of a list.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct List<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// Ask for the next page with this; null on the last.
    pub next_cursor: Option<String>,
}

/// Adds what every router ends with: problems for unknown paths and wrong
/// methods, the limit on bodies, and the repeating of requests whose query failed.
pub fn finish(router: Router) -> Router {
    router
        .fallback(|| async { Problem::not_found("There is nothing at this path.") })
        .method_not_allowed_fallback(|| async {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "METHOD_NOT_ALLOWED",
                "This path does not take this method.",
            )
        })
        .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
        .layer(axum::middleware::from_fn(repeat::repeat))
}
