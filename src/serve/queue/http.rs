//! The waiting room over HTTP.

use axum::{
    body::Body,
    extract::{Query, State as Extract},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{State, admin, error::Error, stream};
use crate::platform::{
    auth::{Caller, Internal, Verifier},
    edge::FastPath,
    http::{Json, Path},
    overview::{OverviewQuery, OverviewSlice, Phase, WaitRange},
    problem::{Problem, ProblemBody},
};

/// The header that proves a place.
const QUEUE_TOKEN: &str = "queue-token";

/// All paths, with what they do.
pub fn router(state: State) -> OpenApiRouter {
    routes().with_state(state)
}

/// The paths, public and for other roles, without a state: enough to describe them.
pub fn routes() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(snapshot))
        .routes(routes!(enter))
        .routes(routes!(ask, leave))
        .routes(routes!(events))
        .routes(routes!(admin::change))
        .routes(routes!(admin::audit))
        .route("/internal/v1/overview", axum::routing::get(overview))
        .route(
            "/internal/v1/queues/{performanceId}/restore",
            axum::routing::post(restore),
        )
}

/// A place in a queue.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes what place_json writes by hand")]
struct PlaceBody {
    /// Proves the place; always keep the newest.
    queue_token: String,
    status: PlaceStatus,
    /// The queue's.
    phase: Phase,
    /// Never changes; null while REGISTERED.
    number: Option<u64>,
    /// 1 for the next in line, never grows; null unless WAITING.
    position: Option<u64>,
    /// While REGISTERED: the index that the draw permutes.
    #[schema(required = false)]
    registration: u64,
    /// From measured admissions and the limit on them; null until there is something to measure, and
    /// while nobody can be admitted.
    estimated_wait_seconds: Option<WaitRange>,
    /// When to ask again.
    poll_after_ms: u64,
    /// When the turn ends; null unless WORKING.
    expires_at: Option<chrono::DateTime<chrono::Utc>>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(dead_code, reason = "describes what place_json writes by hand")]
enum PlaceStatus {
    Registered,
    Waiting,
    Working,
}

/// The draw of the pre-queue.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "describes the public snapshot")]
struct DrawBody {
    /// SHA-256 of the seed, in hexadecimal.
    commitment: String,
    /// The seed, in hexadecimal, once the draw is done.
    seed: Option<String>,
    /// The first number that was drawn.
    first: Option<u64>,
    /// How many were drawn.
    count: Option<u64>,
}

/// A queue, as everybody may see it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(
    dead_code,
    reason = "describes the public snapshot, which is written once a reading"
)]
struct QueueBody {
    performance_id: Uuid,
    phase: Phase,
    /// The turn of everybody at or below has come.
    served_number: u64,
    last_number: u64,
    waiting: u64,
    registered: u64,
    working: u64,
    max_working: u64,
    /// Seats not sold; held ones count.
    remaining_seats: u64,
    admissions_per_minute: Option<u64>,
    /// What somebody who entered now would be told.
    poll_after_ms: u64,
    opens_at: Option<chrono::DateTime<chrono::Utc>>,
    closes_at: Option<chrono::DateTime<chrono::Utc>>,
    pre_queue_opens_at: Option<chrono::DateTime<chrono::Utc>>,
    draw: Option<DrawBody>,
    as_of: chrono::DateTime<chrono::Utc>,
}

/// The public snapshot: cacheable by any CDN.
#[utoipa::path(get, path = "/api/v1/queues/{performanceId}", tag = "Waiting room",
    params(("performanceId" = Uuid, Path)),
    responses((status = 200, body = QueueBody), (status = 404, body = ProblemBody, description = "PERFORMANCE_NOT_FOUND")))]
async fn snapshot(
    Extract(state): Extract<State>,
    Path(performance): Path<Uuid>,
) -> Result<Response, Error> {
    let live = state.live(performance).await?;
    if live.is_cut_off() {
        return Err(Error::CutOff);
    }
    state.freshen(&live).await;
    let mut response = Response::new(Body::from(live.snapshot.load().public.clone()));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, max-age=1"),
    );
    Ok(response)
}

/// Enter the queue, or get the place there is. A `Queue-Token` beside it brings its place back after a loss.
#[utoipa::path(post, path = "/api/v1/queues/{performanceId}/tokens", tag = "Waiting room",
    params(("performanceId" = Uuid, Path)), security(("accessToken" = [])),
    responses(
        (status = 201, body = PlaceBody, description = "A new place"),
        (status = 200, body = PlaceBody, description = "The place there is"),
        (status = 404, body = ProblemBody, description = "PERFORMANCE_NOT_FOUND"),
        (status = 409, body = ProblemBody, description = "SOLD_OUT, QUEUE_FULL, BOOKING_NOT_OPEN or QUEUE_DRAINING")))]
async fn enter(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(performance): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Error> {
    state
        .enter(performance, caller.user_id, token(&headers))
        .await
}

/// Ask for one's place. WORKING checks in.
#[utoipa::path(get, path = "/api/v1/queues/{performanceId}/tokens/me", tag = "Waiting room",
    params(("performanceId" = Uuid, Path), ("Queue-Token" = String, Header)),
    responses(
        (status = 200, body = PlaceBody),
        (status = 401, body = ProblemBody, description = "INVALID_QUEUE_TOKEN"),
        (status = 409, body = ProblemBody, description = "SOLD_OUT or BOOKING_NOT_OPEN, for waiting places; with pollAfterMs while they may go on"),
        (status = 410, body = ProblemBody, description = "QUEUE_TOKEN_EXPIRED"),
        (status = 429, body = ProblemBody, description = "RATE_LIMITED: asked for far more often than told")))]
async fn ask(
    Extract(state): Extract<State>,
    Path(performance): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let caller = beside(&state, &headers)?;
    // An error of this role is an answer of its own: one of them ends the connection.
    Ok(
        match state.ask(performance, token(&headers), caller).await {
            Ok(response) => response,
            Err(error) => error.into_response(),
        },
    )
}

/// Give one's place up.
#[utoipa::path(delete, path = "/api/v1/queues/{performanceId}/tokens/me", tag = "Waiting room",
    params(("performanceId" = Uuid, Path), ("Queue-Token" = String, Header)),
    responses((status = 204), (status = 401, body = ProblemBody, description = "INVALID_QUEUE_TOKEN")))]
async fn leave(
    Extract(state): Extract<State>,
    Path(performance): Path<Uuid>,
    headers: HeaderMap,
) -> Result<StatusCode, Problem> {
    let caller = beside(&state, &headers)?;
    state.leave(performance, token(&headers), caller).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The public snapshot as server-sent events, when it changes.
#[utoipa::path(get, path = "/api/v1/queues/{performanceId}/events", tag = "Waiting room",
    params(("performanceId" = Uuid, Path)),
    responses((status = 200, content_type = "text/event-stream", body = String), (status = 404, body = ProblemBody)))]
async fn events(
    Extract(state): Extract<State>,
    Path(performance): Path<Uuid>,
) -> Result<Response, Error> {
    let live = state.live(performance).await?;
    state.freshen(&live).await;
    Ok(stream::response(&live))
}

async fn overview(
    _: Internal,
    Extract(state): Extract<State>,
    Query(query): Query<OverviewQuery>,
) -> Json<OverviewSlice> {
    Json(state.overview(query.detail).await)
}

/// A place that a hold brings back after a loss, by its token.
#[derive(Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Restore {
    queue_token: String,
}

/// What a poll by the token answers: for a hold by a token of an earlier epoch.
async fn restore(
    _: Internal,
    Extract(state): Extract<State>,
    Path(performance): Path<Uuid>,
    Json(asked): Json<Restore>,
) -> Result<Response, Error> {
    state.ask(performance, Some(&asked.queue_token), None).await
}

fn token(headers: &HeaderMap) -> Option<&str> {
    headers.get(QUEUE_TOKEN)?.to_str().ok()
}

/// Who calls, when there is an access token beside the place; a bad one is refused.
fn beside(state: &State, headers: &HeaderMap) -> Result<Option<Uuid>, Problem> {
    if !headers.contains_key(header::AUTHORIZATION) {
        return Ok(None);
    }
    let verifier: &Verifier = &state.deps().verifier;
    let claims = verifier.bearer(headers)?;
    Ok(Some(claims.sub))
}

const POLL_BEFORE: &str = "/api/v1/queues/";
const POLL_AFTER: &str = "/tokens/me";

impl FastPath for State {
    /// A waiting poll, from memory alone.
    fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let performance = uri
            .path()
            .strip_prefix(POLL_BEFORE)?
            .strip_suffix(POLL_AFTER)?;
        // An access token beside the place must be held against it: the ordinary way does.
        if method != Method::GET || headers.contains_key(header::AUTHORIZATION) {
            return None;
        }
        let token = token(headers)?;
        self.poll_fast(Uuid::try_parse(performance).ok()?, token)
    }
}

/// Unknown queues answer as problems too.
impl From<Error> for Response {
    fn from(error: Error) -> Self {
        error.into_response()
    }
}
