//! The role's paths.

use axum::{
    extract::{FromRequestParts, State},
    response::Response,
};
use http::{HeaderMap, StatusCode, request::Parts};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::Row as _;
use tracing::Instrument;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Reservations,
    booking::{Asked, CreateOrder, invalid_token},
    machine::Status,
    machine::{End, Refusal, Step},
    steps::{Cause, StepError},
    store::{self, OrderView},
    tickets::{TicketCheck, TicketVerdict, TicketView},
};
use crate::platform::{
    auth::{Admin, Caller, Internal},
    http::{Json, List, Page, Path, Query},
    idempotency,
    place::{Place, PlaceKeys},
    problem::{Problem, ProblemBody},
};

/// The role's paths, with its state.
pub fn router(state: Reservations) -> OpenApiRouter {
    routes().with_state(state)
}

/// The paths alone, for the OpenAPI document.
pub fn routes() -> OpenApiRouter<Reservations> {
    use axum::routing::{get, post};
    OpenApiRouter::new()
        .routes(routes!(seats))
        .routes(routes!(create, list))
        .routes(routes!(one, cancel))
        .routes(routes!(ticket))
        .routes(routes!(check_ticket))
        .route(
            "/internal/v1/orders/{id}/begin-payment",
            post(begin_payment),
        )
        .route(
            "/internal/v1/orders/{id}/rebuild",
            post(super::rebuild::rebuild),
        )
        .route(
            "/internal/v1/reconcile/payments",
            post(super::reconcile::captures),
        )
        .route("/internal/v1/sales", get(super::reconcile::sales))
        .route("/internal/v1/performances/{id}/sold", get(sold))
        .route("/internal/v1/performances/{id}/unpaid", get(unpaid))
        .route("/internal/v1/overview", get(super::overview::overview))
}

/// The place that the `Queue-Token` header proves.
struct QueueToken(Place);

impl<S> FromRequestParts<S> for QueueToken
where
    S: Send + Sync,
    PlaceKeys: axum::extract::FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        use axum::extract::FromRef;
        let token = parts
            .headers
            .get("queue-token")
            .and_then(|t| t.to_str().ok());
        let keys = PlaceKeys::from_ref(state);
        let place = token.and_then(|t| keys.open(t.trim()).ok());
        place.map(Self).ok_or_else(invalid_token)
    }
}

/// The seat map of a schedule
///
/// At most a second old. Send the `ETag` back as `If-None-Match`: an unchanged map is 304.
#[utoipa::path(
    get, path = "/api/v1/schedules/{id}/seats", tag = "Performances",
    params(("id" = Uuid, Path)),
    responses((status = 200, body = SeatMapView), (status = 304), (status = 404, body = ProblemBody)),
)]
async fn seats(
    State(state): State<Reservations>,
    Path(schedule): Path<Uuid>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    state.seat_map(schedule, &headers).await
}

/// The seats of a schedule and whether they can be had.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SeatMapView {
    schedule_id: Uuid,
    /// When the map was rendered: nothing has changed since.
    as_of: chrono::DateTime<chrono::Utc>,
    seats: Vec<MapSeat>,
}

/// A seat and whether it can be had.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct MapSeat {
    id: Uuid,
    /// Part of the hall.
    section: String,
    row: String,
    number: i32,
    /// Price class.
    grade: String,
    /// In the currency's minor unit.
    price: i64,
    /// ISO 4217, lower case.
    currency: String,
    status: SeatStatus,
}

/// Whether a seat can be had.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(
    dead_code,
    reason = "the map is rendered as bytes; this describes it in the OpenAPI document"
)]
enum SeatStatus {
    Available,
    Held,
    Sold,
}

/// Hold seats
///
/// All or none are held, until `expiresAt`. Needs a WORKING `Queue-Token` for the performance.
#[utoipa::path(
    post, path = "/api/v1/orders", tag = "Booking", security(("bearer" = [])),
    params(
        ("Queue-Token" = String, Header, description = "The newest token of your place"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters"),
    ),
    request_body = CreateOrder,
    responses(
        (status = 201, body = OrderView),
        (status = 401, body = ProblemBody), (status = 403, body = ProblemBody),
        (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "SEATS_TAKEN, SEAT_LIMIT_EXCEEDED, HOLDS_EXHAUSTED (a turn holds ten times at most), SALES_ENDED with salesEndAt, AMOUNT_NOT_PAYABLE (the payment provider does not take this amount), BOOKING_NOT_OPEN, IDEMPOTENCY_IN_PROGRESS"),
        (status = 410, body = ProblemBody, description = "QUEUE_TOKEN_EXPIRED: the turn has ended, or takes no new holds any more while an unpaid order keeps it"),
        (status = 422, body = ProblemBody),
    ),
)]
async fn create(
    State(state): State<Reservations>,
    caller: Caller,
    token: Result<QueueToken, Problem>,
    headers: HeaderMap,
    Json(body): Json<Value>,
) -> Result<Response, Problem> {
    let QueueToken(place) = token?;
    let order: CreateOrder = crate::platform::http::parse_json(body.to_string().as_bytes())?;
    order.validate()?;
    let asked = Asked {
        user: caller.user_id,
        place,
        order,
    };
    let pool = state.pool.clone();
    let book = move |id, claim| async move { state.book(asked, id, claim).await };
    idempotency::run(&pool, caller.user_id, &headers, &body, book).await
}

/// Your orders, newest first
#[utoipa::path(
    get, path = "/api/v1/orders", tag = "Booking", security(("bearer" = [])),
    params(Page), responses((status = 200, body = List<OrderView>), (status = 422, body = ProblemBody)),
)]
async fn list(
    State(state): State<Reservations>,
    caller: Caller,
    Query(page): Query<Page>,
) -> Result<Json<List<OrderView>>, Problem> {
    let (limit, before) = (page.limit()?, page.cursor::<Uuid>()?);
    let mut orders = store::orders_of(&state.pool, caller.user_id, before, limit + 1).await?;
    let more = orders.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    orders.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let last = orders.last().filter(|_| more).map(|o| o.row.id.to_string());
    Ok(Json(List {
        items: orders.iter().map(|order| state.view(order)).collect(),
        next_cursor: last,
    }))
}

/// One of your orders
#[utoipa::path(
    get, path = "/api/v1/orders/{id}", tag = "Booking", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = OrderView), (status = 404, body = ProblemBody)),
)]
async fn one(
    State(state): State<Reservations>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<OrderView>, Problem> {
    let order = state.order_of(id, caller.user_id).await?;
    Ok(Json(state.view(&order)))
}

/// Give an order up
///
/// A pending one frees its seats; a confirmed one is refunded, until the cutoff before the show.
#[utoipa::path(
    delete, path = "/api/v1/orders/{id}", tag = "Booking", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = OrderView),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
    ),
)]
async fn cancel(
    State(state): State<Reservations>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<OrderView>, Problem> {
    let this = state.clone();
    // In a task of its own: a client that hangs up must not stop it half way.
    let work = async move { this.cancel_order(id, caller.user_id).await };
    let done = tokio::spawn(work.in_current_span());
    done.await.map_err(Problem::internal)??;
    let order = state.order_of(id, caller.user_id).await?;
    Ok(Json(state.view(&order)))
}

/// The ticket of a confirmed order
#[utoipa::path(
    get, path = "/api/v1/orders/{id}/ticket", tag = "Booking", security(("bearer" = [])),
    params(("id" = Uuid, Path)),
    responses(
        (status = 200, body = TicketView),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody),
    ),
)]
async fn ticket(
    State(state): State<Reservations>,
    caller: Caller,
    Path(id): Path<Uuid>,
) -> Result<Json<TicketView>, Problem> {
    state.ticket(id, caller.user_id).await.map(Json)
}

/// Take a ticket at the door
///
/// The first check answers VALID and uses the ticket up; later ones answer ALREADY_USED. A ticket whose order is not
/// CONFIRMED any more says so, used or not. Name the schedule at the door, and another one's ticket is WRONG_SCHEDULE.
#[utoipa::path(
    post, path = "/admin/v1/tickets/check", tag = "Operations", security(("bearer" = [])),
    request_body = TicketCheck,
    responses(
        (status = 200, body = TicketVerdict),
        (status = 403, body = ProblemBody), (status = 422, body = ProblemBody),
    ),
)]
async fn check_ticket(
    State(state): State<Reservations>,
    Admin(caller): Admin,
    Json(check): Json<TicketCheck>,
) -> Result<Json<TicketVerdict>, Problem> {
    state.check_ticket(&check, caller.user_id).await.map(Json)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BeginPayment {
    user_id: Uuid,
}

/// Payments asks: may this order be paid now, and what is due?
async fn begin_payment(
    State(state): State<Reservations>,
    _: Internal,
    Path(id): Path<Uuid>,
    Json(asked): Json<BeginPayment>,
) -> Result<Json<Value>, Problem> {
    let applied = state
        .step(id, &Cause::PaymentBegun(asked.user_id), None)
        .await
        .map_err(problem)?;
    // A renewal that Redis does not hear of now, it hears of at the old deadline.
    if let Err(error) = state.show(applied.before.performance_id, id).await {
        tracing::warn!(order.id = %id, %error, "the renewed hold will be shown later");
    }
    let order = state.order_of(id, asked.user_id).await?;
    let labels: Vec<String> = order.seats.iter().map(store::SeatRow::label).collect();
    Ok(Json(json!({
        "orderId": id,
        "amount": order.row.amount,
        "currency": order.row.currency,
        "expiresAt": order.row.expires_at,
        "performanceId": order.row.performance_id,
        "performanceTitle": order.row.performance_title,
        "seatLabels": labels,
        "scheduleId": order.row.schedule_id,
        "seats": (order.seats.iter())
            .map(|s| json!({"id": s.seat_id, "price": s.price}))
            .collect::<Vec<_>>(),
        "placeEpoch": order.row.place_epoch,
        "placeNumber": order.row.place_number,
    })))
}

/// How many seats are sold, of a performance's schedules that are still sold: the queue asks when an epoch begins. Redis may have
/// lost seats as well, or hold an older state of them: they are repaired, and counted for the
/// queue, a second later.
async fn sold(
    State(state): State<Reservations>,
    _: Internal,
    Path(performance): Path<Uuid>,
) -> Result<Json<Value>, Problem> {
    let schedules = state.catalogues.schedules_of(performance).await?;
    let sold: i64 = sqlx::query(
        "select coalesce(sum(seat_count), 0)::bigint as sold from orders
         where performance_id = $1 and state = 'CONFIRMED' and schedule_id = any($2)",
    )
    .bind(performance)
    .bind(schedules.open())
    .fetch_one(&state.pool)
    .await?
    .try_get("sold")?;
    state.repair_soon(performance);
    Ok(Json(json!({ "sold": sold })))
}

/// Orders that keep the turn they were made in: the queue gives them their slots back after a loss of Redis.
async fn unpaid(
    State(state): State<Reservations>,
    _: Internal,
    Path(performance): Path<Uuid>,
) -> Result<Json<Value>, Problem> {
    let orders = store::live_of(&state.pool, performance).await?;
    let now = chrono::Utc::now();
    let kept = orders.iter().filter_map(|order| {
        let row = &order.row;
        let unpaid = matches!(row.status(), Status::Pending | Status::Paying);
        let user = row
            .counts_for()
            .filter(|_| unpaid && row.expires_at > now)?;
        Some(json!({
            "orderId": row.id, "userId": user, "placeNumber": row.place_number?,
            "keepsMs": row.expires_at.timestamp_millis(),
        }))
    });
    Ok(Json(Value::Array(kept.collect())))
}

/// Why a step was refused, as the API says it.
fn problem(error: StepError) -> Problem {
    let conflict = |code, detail| Problem::new(StatusCode::CONFLICT, code, detail);
    match error {
        StepError::NotFound => no_order(),
        StepError::Refused(Refusal::HoldEnded) => conflict(
            "HOLD_EXPIRED",
            "The seats are no longer held for this order.",
        ),
        StepError::Refused(Refusal::NotPayable) => conflict(
            "ORDER_NOT_PAYABLE",
            "This order is not waiting for a payment.",
        ),
        StepError::CutOff => conflict(
            "CANCELLATION_CLOSED",
            "It is too close to the show to cancel.",
        ),
        StepError::Disputed => conflict(
            "PAYMENT_DISPUTED",
            "The payment is disputed: the bank decides where the money goes.",
        ),
        StepError::TicketUsed => conflict("TICKET_USED", "The ticket was used at the door."),
        StepError::Database(error) => error.into(),
    }
}

fn no_order() -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        "ORDER_NOT_FOUND",
        "You have no such order.",
    )
}

#[derive(Deserialize)]
struct CancelOutcome {
    outcome: String,
}

impl Reservations {
    /// A buyer's order; another's is as good as none.
    pub(super) async fn order_of(&self, id: Uuid, user: Uuid) -> Result<store::Order, Problem> {
        let order = store::order(&self.pool, id).await?;
        order.filter(|o| o.row.user_id == user).ok_or_else(no_order)
    }

    /// An order as the API shows it.
    pub(super) fn view(&self, order: &store::Order) -> OrderView {
        OrderView::from(order).cancellable(self.config.cancel_cutoff())
    }

    async fn cancel_order(&self, id: Uuid, user: Uuid) -> Result<(), Problem> {
        let cutoff = self.config.cancel_cutoff();
        let cause = Cause::BuyerCancels { user, cutoff };
        let mut applied = self.step(id, &cause, None).await.map_err(problem)?;
        if applied.step == Step::AskPayments(End::Cancelled) {
            self.cancel_payment(id).await?;
            applied = self
                .step(id, &Cause::PaymentCancelled, None)
                .await
                .map_err(problem)?;
        }
        let shown = self.show(applied.before.performance_id, id).await;
        if let Err(error) = shown {
            tracing::warn!(order.id = %id, %error, "the freed seats will be shown later");
            self.repair_soon(applied.before.performance_id);
        }
        Ok(())
    }

    /// No payment can succeed once this returns.
    async fn cancel_payment(&self, order: Uuid) -> Result<(), Problem> {
        let path = format!("/internal/v1/orders/{order}/cancel-payment");
        let answer: CancelOutcome = self
            .payments
            .post_json(&path, &json!({ "reason": "CANCELLED_BY_BUYER" }))
            .await
            .map_err(Problem::unavailable)?;
        match answer.outcome.as_str() {
            "CANCELLED" | "NONE" => Ok(()),
            "PROCESSING" | "SUCCEEDED" => Err(Problem::new(
                StatusCode::CONFLICT,
                "PAYMENT_IN_PROGRESS",
                "The payment of this order is under way.",
            )),
            other => Err(Problem::internal(format!("payments answered {other}"))),
        }
    }
}
