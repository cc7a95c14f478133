//! The HTTP surface of performances: public pages, and what other roles ask.

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::{DateTime, Utc};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Performances,
    board::{Key, Rendered},
    store,
};
use crate::platform::{
    auth::Internal,
    http::{Json, List, Page, Path, Query},
    problem::{Problem, ProblemBody},
};

/// The routes of this role.
pub fn router(state: Performances) -> OpenApiRouter {
    routes().with_state(state)
}

/// The paths alone, for the OpenAPI document.
pub fn routes() -> OpenApiRouter<Performances> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get))
        .routes(routes!(schedules))
        .routes(routes!(schedule))
        .route(
            "/internal/v1/overview",
            axum::routing::get(super::overview::overview),
        )
        .route(
            crate::platform::catalogue_changes::PATH,
            axum::routing::get(super::changes::changes),
        )
        .route("/internal/v1/performances", axum::routing::get(on_sale))
        .route("/internal/v1/sales", axum::routing::post(count_sales))
        .route("/internal/v1/performances/{id}", axum::routing::get(facts))
        .route(
            "/internal/v1/schedules/{id}/catalogue",
            axum::routing::get(catalogue),
        )
}

/// Whether a performance can be booked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Booking {
    /// Not yet.
    Upcoming,
    /// Yes.
    Open,
    /// No more.
    Closed,
    /// It could be, and nothing is left.
    SoldOut,
}

impl Booking {
    fn at(now: DateTime<Utc>, performance: &store::Performance) -> Self {
        if now < performance.booking_opens_at {
            Self::Upcoming
        } else if now >= performance.closes_at() {
            Self::Closed
        } else if performance.remaining_seats == 0 {
            Self::SoldOut
        } else {
            Self::Open
        }
    }
}

/// A hall.
#[derive(Serialize, ToSchema)]
pub struct VenueBody {
    id: Uuid,
    name: String,
    address: String,
}

/// A performance.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PerformanceBody {
    id: Uuid,
    title: String,
    description: String,
    venue: VenueBody,
    runtime_minutes: i32,
    age_rating: String,
    booking_opens_at: DateTime<Utc>,
    booking_closes_at: DateTime<Utc>,
    booking: Booking,
    /// Seats not sold, of all schedules that can still be booked; held ones count.
    remaining_seats: i64,
    total_seats: i64,
}

impl From<store::Performance> for PerformanceBody {
    fn from(row: store::Performance) -> Self {
        Self {
            booking: Booking::at(Utc::now(), &row),
            id: row.id,
            title: row.title,
            description: row.description,
            venue: VenueBody {
                id: row.venue_id,
                name: row.venue_name,
                address: row.venue_address,
            },
            runtime_minutes: row.runtime_minutes,
            age_rating: row.age_rating,
            booking_opens_at: row.booking_opens_at,
            booking_closes_at: row.booking_closes_at,
            remaining_seats: row.remaining_seats,
            total_seats: row.total_seats,
        }
    }
}

/// What a grade of seats costs.
#[derive(Serialize, ToSchema)]
pub struct GradeBody {
    grade: String,
    /// In the currency's minor unit (krw has no decimals).
    price: i64,
    currency: String,
}

/// A performance with its prices.
#[derive(Serialize, ToSchema)]
pub struct PerformanceDetail {
    #[serde(flatten)]
    performance: PerformanceBody,
    /// Dearest first.
    grades: Vec<GradeBody>,
}

/// A showing of a performance.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduleBody {
    id: Uuid,
    performance_id: Uuid,
    starts_at: DateTime<Utc>,
    /// Until when it can be booked: its start, where nothing earlier is set.
    sales_end_at: DateTime<Utc>,
    /// Seats not sold; held ones count. None once sales have ended.
    remaining_seats: i32,
    total_seats: i32,
}

impl From<store::Schedule> for ScheduleBody {
    fn from(row: store::Schedule) -> Self {
        Self {
            id: row.id,
            performance_id: row.performance_id,
            starts_at: row.starts_at,
            sales_end_at: row.sales_end_at,
            remaining_seats: row.remaining_seats,
            total_seats: row.total_seats,
        }
    }
}

fn performance_not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "PERFORMANCE_NOT_FOUND",
        "There is no performance with this id.",
    )
}

fn schedule_not_found() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "SCHEDULE_NOT_FOUND",
        "There is no schedule with this id.",
    )
}

/// Asks for one row more than the page holds, to know whether another page follows.
fn list_of<Row, Item: From<Row>>(
    mut rows: Vec<Row>,
    limit: i64,
    id: impl Fn(&Row) -> Uuid,
) -> List<Item> {
    let limit = usize::try_from(limit).unwrap_or(0);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let next_cursor = rows
        .last()
        .filter(|_| more)
        .map(|last| id(last).simple().to_string());
    List {
        items: rows.into_iter().map(Item::from).collect(),
        next_cursor,
    }
}

/// All performances.
#[utoipa::path(get, path = "/api/v1/performances", tag = "Performances", params(Page), responses(
    (status = 200, body = List<PerformanceBody>),
    (status = 304, description = "Not changed since the ETag sent"),
    (status = 422, description = "VALIDATION_FAILED", body = ProblemBody)))]
async fn list(
    State(state): State<Performances>,
    Query(page): Query<Page>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (after, limit) = (page.cursor::<Uuid>()?, page.limit()?);
    let render = async {
        let rows = store::list(&state.pool, after, limit + 1).await?;
        Rendered::json(&list_of::<_, PerformanceBody>(rows, limit, |row| row.id))
    };
    Ok(state
        .board
        .answer(Key::Performances { after, limit }, &headers, render)
        .await)
}

/// One performance.
#[utoipa::path(get, path = "/api/v1/performances/{id}", tag = "Performances", params(("id" = Uuid, Path)), responses(
    (status = 200, body = PerformanceDetail),
    (status = 304, description = "Not changed since the ETag sent"),
    (status = 404, description = "PERFORMANCE_NOT_FOUND", body = ProblemBody)))]
async fn get(
    State(state): State<Performances>,
    path: Result<Path<Uuid>, Problem>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(id) = path.map_err(|_| performance_not_found())?;
    let render = async {
        let row = store::performance(&state.pool, id)
            .await?
            .ok_or_else(performance_not_found)?;
        let currency = row.currency.clone();
        let grades = store::grades(&state.pool, id).await?.into_iter();
        Rendered::json(&PerformanceDetail {
            performance: row.into(),
            grades: grades
                .map(|g| GradeBody {
                    grade: g.name,
                    price: g.price,
                    currency: currency.clone(),
                })
                .collect(),
        })
    };
    Ok(state
        .board
        .answer(Key::Performance(id), &headers, render)
        .await)
}

/// The schedules of a performance, while it can be booked.
#[utoipa::path(get, path = "/api/v1/performances/{id}/schedules", tag = "Performances", params(("id" = Uuid, Path), Page), responses(
    (status = 200, body = List<ScheduleBody>),
    (status = 304, description = "Not changed since the ETag sent"),
    (status = 404, description = "PERFORMANCE_NOT_FOUND", body = ProblemBody),
    (status = 409, description = "BOOKING_NOT_OPEN, with opensAt and closesAt", body = ProblemBody),
    (status = 422, description = "VALIDATION_FAILED", body = ProblemBody)))]
async fn schedules(
    State(state): State<Performances>,
    path: Result<Path<Uuid>, Problem>,
    Query(page): Query<Page>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(performance) = path.map_err(|_| performance_not_found())?;
    let (after, limit) = (page.cursor::<Uuid>()?, page.limit()?);
    let render = render_schedules(&state.pool, performance, after, limit);
    let key = Key::Schedules {
        performance,
        after,
        limit,
    };
    Ok(state.board.answer(key, &headers, render).await)
}

async fn render_schedules(
    pool: &PgPool,
    performance: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Rendered, Problem> {
    let row = store::performance(pool, performance)
        .await?
        .ok_or_else(performance_not_found)?;
    match Booking::at(Utc::now(), &row) {
        Booking::Open | Booking::SoldOut => {}
        state @ (Booking::Upcoming | Booking::Closed) => {
            let detail = if state == Booking::Upcoming {
                "Booking has not opened yet."
            } else {
                "Booking has closed."
            };
            return Err(
                Problem::new(StatusCode::CONFLICT, "BOOKING_NOT_OPEN", detail)
                    .with("opensAt", serde_json::json!(row.booking_opens_at))
                    .with("closesAt", serde_json::json!(row.closes_at())),
            );
        }
    }
    let rows = store::schedules(pool, performance, after, limit + 1).await?;
    Rendered::json(&list_of::<_, ScheduleBody>(rows, limit, |row| row.id))
}

/// One schedule.
#[utoipa::path(get, path = "/api/v1/schedules/{id}", tag = "Performances", params(("id" = Uuid, Path)), responses(
    (status = 200, body = ScheduleBody),
    (status = 304, description = "Not changed since the ETag sent"),
    (status = 404, description = "SCHEDULE_NOT_FOUND", body = ProblemBody)))]
async fn schedule(
    State(state): State<Performances>,
    path: Result<Path<Uuid>, Problem>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(id) = path.map_err(|_| schedule_not_found())?;
    let render = async {
        let row = store::schedule(&state.pool, id)
            .await?
            .ok_or_else(schedule_not_found)?;
        Rendered::json(&ScheduleBody::from(row))
    };
    Ok(state
        .board
        .answer(Key::Schedule(id), &headers, render)
        .await)
}

/// Whose queues people come to, today or soon.
async fn on_sale(
    _: Internal,
    State(state): State<Performances>,
) -> Result<Json<Vec<Uuid>>, Problem> {
    Ok(Json(store::on_sale(&state.pool).await?))
}

/// What the queue and reservations need to know of a performance.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Facts {
    id: Uuid,
    title: String,
    venue_name: String,
    booking_opens_at: DateTime<Utc>,
    /// When nothing can be booked any more: also when the sales of the last schedule have ended.
    booking_closes_at: DateTime<Utc>,
    total_seats: i64,
    schedule_ids: Vec<Uuid>,
    /// Of the schedules that are still sold.
    open_seats: i64,
    open_schedule_ids: Vec<Uuid>,
}

async fn facts(
    _: Internal,
    State(state): State<Performances>,
    Path(id): Path<Uuid>,
) -> Result<Json<Facts>, Problem> {
    let row = store::performance(&state.pool, id)
        .await?
        .ok_or_else(performance_not_found)?;
    Ok(Json(Facts {
        schedule_ids: store::schedule_ids(&state.pool, id).await?,
        open_schedule_ids: store::open_schedule_ids(&state.pool, id).await?,
        open_seats: row.open_seats,
        booking_closes_at: row.closes_at(),
        id,
        title: row.title,
        venue_name: row.venue_name,
        booking_opens_at: row.booking_opens_at,
        total_seats: row.total_seats,
    }))
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CatalogueHead {
    schedule_id: Uuid,
    performance_id: Uuid,
    performance_title: String,
    venue_name: String,
    starts_at: DateTime<Utc>,
    sales_end_at: DateTime<Utc>,
    booking_opens_at: DateTime<Utc>,
    booking_closes_at: DateTime<Utc>,
}

/// What reservations has sold.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sold {
    sales: Vec<super::events::Sale>,
    /// All that was sold from here on up to there; nothing is said by an earlier version.
    #[serde(default)]
    from: Option<DateTime<Utc>>,
    #[serde(default)]
    up_to: Option<DateTime<Utc>>,
}

/// How many of them no event had told.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Missed {
    missed: usize,
    /// Up to when this role knows all sales: less than where the caller began, when this
    /// schema was restored to an older state.
    known_up_to: DateTime<Utc>,
}

/// Counts the sales that no event told.
async fn count_sales(
    _: Internal,
    State(state): State<Performances>,
    Json(sold): Json<Sold>,
) -> Result<Json<Missed>, Problem> {
    let missed = super::events::count_missed(&state.pool, &sold.sales).await?;
    let known_up_to = super::events::told(&state.pool, sold.from, sold.up_to).await?;
    Ok(Json(Missed {
        missed,
        known_up_to,
    }))
}

async fn catalogue(
    _: Internal,
    State(state): State<Performances>,
    Path(id): Path<Uuid>,
) -> Result<Response, Problem> {
    let schedule = store::schedule(&state.pool, id)
        .await?
        .ok_or_else(schedule_not_found)?;
    let performance = store::performance(&state.pool, schedule.performance_id)
        .await?
        .ok_or_else(performance_not_found)?;
    let head = serde_json::to_vec(&CatalogueHead {
        schedule_id: id,
        performance_id: performance.id,
        performance_title: performance.title,
        venue_name: performance.venue_name,
        starts_at: schedule.starts_at,
        sales_end_at: schedule.sales_end_at,
        booking_opens_at: performance.booking_opens_at,
        booking_closes_at: performance.booking_closes_at,
    })
    .map_err(Problem::internal)?;
    let mut body = head;
    // The seats are the last member of the same object.
    body.pop();
    body.extend_from_slice(b",\"seats\":");
    body.extend_from_slice(&store::seats_json(&state.pool, &schedule).await?);
    body.push(b'}');
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], body).into_response())
}
