//! A small ticket office that speaks the public contract, for testing the
//! generator itself: it can stall on a script and break each promise on request,
//! which a server of ours must never do.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use uuid::Uuid;

/// A promise that the office breaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    None,
    /// Admits more than `maxWorking`, and does not show it.
    Overshoot,
    /// Holds seats that are taken.
    SellTwice,
    /// Admits the last in line first.
    PassOver,
    /// Gives another number on coming back.
    ForgetPlace,
    /// Takes the money and lets the order expire.
    KeepMoney,
    /// Never answers who asks for a payment: the audit, after the run.
    HangAfterwards,
    /// Takes nobody's access token.
    Unauthenticated,
    /// Sends everybody who enters elsewhere.
    Redirect,
}

#[derive(Default)]
pub struct Ledger {
    pub fault: Fault,
    pub max_working: usize,
    next: u64,
    pub places: HashMap<String, u64>,
    pub waiting: VecDeque<String>,
    pub working: HashMap<String, u64>,
    seats: Vec<(Uuid, &'static str)>,
    orders: HashMap<Uuid, Order>,
    changes: u64,
    /// Requests answered, by method and kind.
    pub counts: BTreeMap<&'static str, u64>,
    first_poll: Option<Instant>,
    pub confirmed: u64,
}

struct Order {
    user: String,
    seats: Vec<Uuid>,
    status: &'static str,
    payment: Uuid,
    payment_status: &'static str,
}

#[derive(Clone)]
pub struct Office {
    pub ledger: Arc<Mutex<Ledger>>,
    pub performance: Uuid,
    schedule: Uuid,
    /// Nothing is answered in this stretch, counted from the first poll.
    stall: Option<(Duration, Duration)>,
}

impl Office {
    pub fn new(max_working: usize, seats: usize) -> Self {
        let ledger = Ledger {
            max_working,
            next: 1,
            seats: (0..seats).map(|_| (Uuid::now_v7(), "AVAILABLE")).collect(),
            ..Ledger::default()
        };
        Self {
            ledger: Arc::new(Mutex::new(ledger)),
            performance: Uuid::now_v7(),
            schedule: Uuid::now_v7(),
            stall: None,
        }
    }

    pub fn with_fault(self, fault: Fault) -> Self {
        self.ledger.lock().unwrap().fault = fault;
        self
    }

    pub fn stalling(mut self, from: Duration, until: Duration) -> Self {
        self.stall = Some((from, until));
        self
    }

    pub fn count(&self, kind: &str) -> u64 {
        self.ledger
            .lock()
            .unwrap()
            .counts
            .get(kind)
            .copied()
            .unwrap_or(0)
    }

    /// Serves until dropped; answers the address.
    pub async fn open(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = self.router();
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }

    fn router(&self) -> Router {
        Router::new()
            .route("/api/v1/performances", get(performances))
            .route("/api/v1/performances/{id}/schedules", get(schedules))
            .route("/api/v1/schedules/{id}/seats", get(seats))
            .route("/api/v1/queues/{id}", get(queue))
            .route("/api/v1/queues/{id}/tokens", post(enter))
            .route("/api/v1/queues/{id}/tokens/me", get(poll).delete(leave))
            .route("/api/v1/orders", post(hold))
            .route("/api/v1/orders/{id}", get(order).delete(cancel))
            .route("/api/v1/payments", post(pay))
            .route("/api/v1/payments/{id}", get(payment))
            .route("/v1/payment_intents/{id}/confirm", post(confirm))
            .layer(middleware::from_fn_with_state(self.clone(), stall))
            .with_state(self.clone())
    }
}

async fn stall(State(office): State<Office>, request: Request, next: Next) -> Response {
    if let Some((from, until)) = office.stall {
        let since = office
            .ledger
            .lock()
            .unwrap()
            .first_poll
            .map(|first| first.elapsed());
        if let Some(since) = since.filter(|since| (from..until).contains(since)) {
            tokio::time::sleep(until - since).await;
        }
    }
    next.run(request).await
}

fn problem(status: StatusCode, code: &str) -> Response {
    let body = json!({"type": "about:blank", "title": code, "status": status.as_u16(), "detail": "no", "code": code});
    (
        status,
        [("content-type", "application/problem+json")],
        body.to_string(),
    )
        .into_response()
}

fn answer(status: StatusCode, body: &Value) -> Response {
    (
        status,
        [("content-type", "application/json")],
        body.to_string(),
    )
        .into_response()
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    headers
        .get("authorization")?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
        .map(str::to_owned)
}

fn queue_token(headers: &HeaderMap) -> Option<(String, u64)> {
    let (user, number) = headers.get("queue-token")?.to_str().ok()?.split_once('|')?;
    Some((user.to_owned(), number.parse().ok()?))
}

impl Ledger {
    fn counted(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }

    fn promote(&mut self) {
        let limit = if self.fault == Fault::Overshoot {
            self.max_working + 3
        } else {
            self.max_working
        };
        while self.working.len() < limit {
            let next = if self.fault == Fault::PassOver {
                self.waiting.pop_back()
            } else {
                self.waiting.pop_front()
            };
            let Some(user) = next else { break };
            let number = self.places[&user];
            self.working.insert(user, number);
        }
    }

    fn give_up(&mut self, user: &str) {
        self.places.remove(user);
        self.working.remove(user);
        self.waiting.retain(|waiting| waiting != user);
        self.promote();
    }

    fn place(&self, user: &str) -> Value {
        let number = self.places[user];
        let working = self.working.contains_key(user);
        let deadline = chrono::Utc::now() + chrono::Duration::minutes(7);
        let position = self
            .waiting
            .iter()
            .position(|waiting| waiting == user)
            .map(|at| at + 1);
        json!({
            "queueToken": format!("{user}|{number}"),
            "status": if working { "WORKING" } else { "WAITING" },
            "number": number,
            "position": position,
            "estimatedWaitSeconds": null,
            "pollAfterMs": 200,
            "expiresAt": working.then(|| deadline.to_rfc3339()),
        })
    }

    fn order(&self, id: Uuid, schedule: Uuid) -> Value {
        let order = &self.orders[&id];
        let seats: Vec<Value> = order.seats.iter().map(|seat| json!({"id": seat})).collect();
        json!({"id": id, "status": order.status, "scheduleId": schedule, "seats": seats, "amount": 1})
    }

    fn mark(&mut self, seats: &[Uuid], status: &'static str) {
        self.changes += 1;
        for seat in self.seats.iter_mut().filter(|seat| seats.contains(&seat.0)) {
            seat.1 = status;
        }
    }
}

async fn performances(State(office): State<Office>) -> Response {
    let item = json!({"id": office.performance, "title": "A Night", "booking": "OPEN", "remainingSeats": 1});
    answer(
        StatusCode::OK,
        &json!({"items": [item], "nextCursor": null}),
    )
}

async fn schedules(State(office): State<Office>) -> Response {
    answer(
        StatusCode::OK,
        &json!({"items": [{"id": office.schedule}], "nextCursor": null}),
    )
}

async fn seats(State(office): State<Office>) -> Response {
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("seats");
    let all: Vec<Value> = ledger
        .seats
        .iter()
        .map(|(id, status)| json!({"id": id, "status": status}))
        .collect();
    let body = json!({"scheduleId": office.schedule, "seats": all});
    let mut response = answer(StatusCode::OK, &body);
    response
        .headers_mut()
        .insert("etag", format!("\"{}\"", ledger.changes).parse().unwrap());
    response
}

async fn queue(State(office): State<Office>) -> Response {
    let ledger = office.ledger.lock().unwrap();
    let free = ledger.seats.iter().filter(|seat| seat.1 != "SOLD").count();
    answer(
        StatusCode::OK,
        &json!({
            "performanceId": office.performance, "phase": "OPEN", "servedNumber": 0, "lastNumber": ledger.next - 1,
            "waiting": ledger.waiting.len(), "working": ledger.working.len().min(ledger.max_working),
            "maxWorking": ledger.max_working, "remainingSeats": free, "asOf": chrono::Utc::now().to_rfc3339(),
        }),
    )
}

async fn enter(State(office): State<Office>, headers: HeaderMap) -> Response {
    let Some(user) = bearer(&headers) else {
        return problem(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED");
    };
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("enter");
    match ledger.fault {
        Fault::Unauthenticated => return problem(StatusCode::UNAUTHORIZED, "UNAUTHENTICATED"),
        Fault::Redirect => {
            let to = [("location", "https://elsewhere.example/")];
            return (StatusCode::MOVED_PERMANENTLY, to).into_response();
        }
        _ => {}
    }
    let known = ledger.places.contains_key(&user);
    if known && ledger.fault == Fault::ForgetPlace {
        ledger.give_up(&user);
    }
    if !ledger.places.contains_key(&user) {
        let number = ledger.next;
        ledger.next += 1;
        ledger.places.insert(user.clone(), number);
        ledger.waiting.push_back(user.clone());
        ledger.promote();
    }
    answer(
        if known {
            StatusCode::OK
        } else {
            StatusCode::CREATED
        },
        &ledger.place(&user),
    )
}

async fn poll(State(office): State<Office>, headers: HeaderMap) -> Response {
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("poll");
    ledger.first_poll.get_or_insert_with(Instant::now);
    match queue_token(&headers) {
        Some((user, number)) if ledger.places.get(&user) == Some(&number) => {
            answer(StatusCode::OK, &ledger.place(&user))
        }
        Some(_) => problem(StatusCode::GONE, "QUEUE_TOKEN_EXPIRED"),
        None => problem(StatusCode::UNAUTHORIZED, "INVALID_QUEUE_TOKEN"),
    }
}

async fn leave(State(office): State<Office>, headers: HeaderMap) -> Response {
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("leave");
    if let Some((user, _)) = queue_token(&headers) {
        ledger.give_up(&user);
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn hold(State(office): State<Office>, headers: HeaderMap, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("hold");
    let Some((user, _)) = queue_token(&headers) else {
        return problem(StatusCode::UNAUTHORIZED, "INVALID_QUEUE_TOKEN");
    };
    if !ledger.working.contains_key(&user) {
        return problem(StatusCode::FORBIDDEN, "NOT_ADMITTED");
    }
    let is_free = |seat: &(Uuid, &str)| seat.1 == "AVAILABLE";
    let wanted: Vec<Uuid> = match body.get("seatIds") {
        Some(ids) => ids
            .as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_str().unwrap().parse().unwrap())
            .collect(),
        None => {
            let count = body["bestAvailable"]["count"].as_u64().unwrap() as usize;
            ledger
                .seats
                .iter()
                .filter(|seat| is_free(seat))
                .take(count)
                .map(|seat| seat.0)
                .collect()
        }
    };
    let taken = wanted.is_empty()
        || ledger
            .seats
            .iter()
            .any(|seat| wanted.contains(&seat.0) && !is_free(seat));
    if taken && ledger.fault != Fault::SellTwice {
        return problem(StatusCode::CONFLICT, "SEATS_TAKEN");
    }
    if ledger.fault != Fault::SellTwice {
        ledger.mark(&wanted, "HELD");
    }
    let id = Uuid::now_v7();
    let order = Order {
        user,
        seats: wanted,
        status: "PENDING_PAYMENT",
        payment: Uuid::now_v7(),
        payment_status: "REQUIRES_PAYMENT",
    };
    ledger.orders.insert(id, order);
    answer(StatusCode::CREATED, &ledger.order(id, office.schedule))
}

async fn order(State(office): State<Office>, Path(id): Path<Uuid>) -> Response {
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("order");
    answer(StatusCode::OK, &ledger.order(id, office.schedule))
}

async fn cancel(State(office): State<Office>, Path(id): Path<Uuid>) -> Response {
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("cancel");
    let order = ledger.orders.get_mut(&id).unwrap();
    order.status = "CANCELLED";
    let seats = order.seats.clone();
    ledger.mark(&seats, "AVAILABLE");
    answer(StatusCode::OK, &ledger.order(id, office.schedule))
}

async fn pay(State(office): State<Office>, body: Bytes) -> Response {
    let body: Value = serde_json::from_slice(&body).unwrap();
    let id: Uuid = body["orderId"].as_str().unwrap().parse().unwrap();
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("payment");
    let order = &ledger.orders[&id];
    let secret = format!("pi_{}_secret_x", id.simple());
    let body = json!({"id": order.payment, "orderId": id, "status": order.payment_status, "clientSecret": secret, "publishableKey": "pk_test"});
    answer(StatusCode::CREATED, &body)
}

async fn payment(State(office): State<Office>, Path(id): Path<Uuid>) -> Response {
    let hangs = {
        let mut ledger = office.ledger.lock().unwrap();
        ledger.counted("audited");
        ledger.fault == Fault::HangAfterwards
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let ledger = office.ledger.lock().unwrap();
    let (order, found) = ledger
        .orders
        .iter()
        .find(|(_, order)| order.payment == id)
        .unwrap();
    answer(
        StatusCode::OK,
        &json!({"id": id, "orderId": order, "status": found.payment_status}),
    )
}

async fn confirm(
    State(office): State<Office>,
    Path(intent): Path<String>,
    body: String,
) -> Response {
    let mut ledger = office.ledger.lock().unwrap();
    ledger.counted("confirm");
    if body.contains("pm_card_chargeDeclined") {
        let error = json!({"error": {"code": "card_declined", "message": "Your card was declined.", "type": "card_error"}});
        return answer(StatusCode::PAYMENT_REQUIRED, &error);
    }
    let id: Uuid = intent.trim_start_matches("pi_").parse().unwrap();
    let keeps = ledger.fault == Fault::KeepMoney;
    let order = ledger.orders.get_mut(&id).unwrap();
    order.payment_status = "SUCCEEDED";
    order.status = if keeps { "EXPIRED" } else { "CONFIRMED" };
    let (user, seats) = (order.user.clone(), order.seats.clone());
    if !keeps {
        ledger.confirmed += 1;
        ledger.mark(&seats, "SOLD");
        ledger.give_up(&user);
    }
    answer(
        StatusCode::OK,
        &json!({"id": intent, "object": "payment_intent", "status": "succeeded"}),
    )
}
