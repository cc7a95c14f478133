//! The steps of a sale, each held against the contract.

use std::path::Path;

use http::Method;
use serde_json::{Value, json};

use super::client::{Http, Reply};

/// Somebody with an access token.
#[derive(Clone, Debug)]
pub struct Buyer {
    pub token: String,
}

impl Buyer {
    pub fn auth(&self) -> String {
        format!("Bearer {}", self.token)
    }
}

/// The seeded members, from `tokens.jsonl`.
pub fn buyers(file: &Path) -> Vec<Buyer> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .map(|v| Buyer {
            token: v["accessToken"].as_str().unwrap().to_owned(),
        })
        .collect()
}

/// A server with one open performance and some members.
pub struct Sale {
    pub api: Http,
    pub stripe: Http,
    pub buyers: Vec<Buyer>,
}

/// An order that was confirmed.
pub struct Bought {
    pub id: String,
    pub performance: String,
    pub schedule: String,
}

pub async fn the_performance(sale: &Sale) -> (String, String) {
    let path = "/api/v1/performances";
    let list = sale.api.ask(Method::GET, path, &[], &Value::Null).await;
    let list = list.expect(200);
    let item = list.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["booking"] == "OPEN");
    let performance = item.unwrap_or_else(|| panic!("none open: {}", list.text))["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/api/v1/performances/{performance}/schedules");
    let schedules = sale.api.ask(Method::GET, &path, &[], &Value::Null).await;
    let schedules = schedules.expect(200);
    let schedule = schedules.body["items"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    (performance, schedule)
}

pub async fn enter(sale: &Sale, buyer: &Buyer, performance: &str) -> Reply {
    let path = format!("/api/v1/queues/{performance}/tokens");
    let auth = buyer.auth();
    let headers = [("authorization", &*auth)];
    sale.api
        .ask(Method::POST, &path, &headers, &Value::Null)
        .await
}

/// Polls until it is this place's turn; the newest place.
pub async fn turn(sale: &Sale, performance: &str, place: Reply) -> Reply {
    let path = format!("/api/v1/queues/{performance}/tokens/me");
    let mut place = place;
    let begun = std::time::Instant::now();
    while place.body["status"] != "WORKING" {
        assert_eq!(place.body["status"], "WAITING", "{}", place.text);
        assert!(
            place.body["position"].as_u64().unwrap() >= 1,
            "{}",
            place.text
        );
        assert!(
            place.body["pollAfterMs"].as_u64().unwrap() > 0,
            "{}",
            place.text
        );
        assert!(
            begun.elapsed().as_secs() < 60,
            "the turn never came: {}",
            place.text
        );
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        let token = place.str("queueToken");
        let headers = [("queue-token", &*token)];
        let polled = sale.api.ask(Method::GET, &path, &headers, &Value::Null);
        place = polled.await.expect(200);
    }
    assert!(place.body["expiresAt"].is_string() && place.body["position"].is_null());
    place
}

/// Confirms the intent of `payment` in the sandbox, as Stripe.js does.
pub async fn pay(sale: &Sale, payment: &Reply, method: &str) -> Reply {
    let secret = payment.str("clientSecret");
    let intent = secret.split("_secret").next().unwrap();
    let key = format!("Bearer {}", payment.str("publishableKey"));
    let headers = [
        ("authorization", &*key),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let body = format!("payment_method={method}&client_secret={secret}");
    let path = format!("/v1/payment_intents/{intent}/confirm");
    sale.stripe.send(Method::POST, &path, &headers, body).await
}

/// The whole way of one buyer to `count` seats.
pub async fn buy(sale: &Sale, buyer: &Buyer, count: u32) -> Bought {
    let (performance, schedule) = the_performance(sale).await;
    let place = enter(sale, buyer, &performance).await;
    assert!(place.status.is_success(), "{}", place.text);
    let place = turn(sale, &performance, place).await;
    let auth = buyer.auth();
    let token = place.str("queueToken");
    let key = uuid::Uuid::now_v7().to_string();
    let headers = [
        ("authorization", &*auth),
        ("queue-token", &*token),
        ("idempotency-key", &*key),
    ];
    let wish = json!({ "scheduleId": schedule, "bestAvailable": { "count": count } });
    let order = sale
        .api
        .ask(Method::POST, "/api/v1/orders", &headers, &wish)
        .await
        .expect(201);
    confirm(sale, buyer, &order).await;
    Bought {
        id: order.str("id"),
        performance,
        schedule,
    }
}

/// Pays `order` and waits until it is CONFIRMED.
pub async fn confirm(sale: &Sale, buyer: &Buyer, order: &Reply) -> Reply {
    let auth = buyer.auth();
    let auth = [("authorization", &*auth)];
    let id = order.str("id");
    let body = json!({ "orderId": id });
    let payment = sale
        .api
        .ask(Method::POST, "/api/v1/payments", &auth, &body)
        .await
        .expect(201);
    assert_eq!(payment.body["amount"], order.body["amount"]);
    let again = sale.api.post("/api/v1/payments", &auth, body).await;
    assert!(again.status.is_success(), "{}", again.text);
    assert_eq!(
        again.body["id"], payment.body["id"],
        "asking again gives the same payment"
    );
    let declined = pay(sale, &payment, "pm_card_chargeDeclined")
        .await
        .expect(402);
    assert_eq!(declined.body["error"]["code"], "card_declined");
    let paid = pay(sale, &payment, "pm_card_visa").await.expect(200);
    assert_eq!(paid.body["status"], "succeeded");
    let path = format!("/api/v1/orders/{id}");
    let order = sale
        .api
        .until(&path, &auth, |r| r.body["status"] == "CONFIRMED")
        .await;
    let path = format!("/api/v1/payments/{}", payment.str("id"));
    let payment = sale.api.get(&path, &auth).await.expect(200);
    assert_eq!(payment.body["status"], "SUCCEEDED");
    order
}

/// Everything a sale goes through: two may work at once, the house has 40 seats.
pub async fn whole_sale(sale: &Sale) {
    members(sale).await;
    let (performance, schedule) = the_performance(sale).await;
    let api = &sale.api;
    let queue = api
        .get(&format!("/api/v1/queues/{performance}"), &[])
        .await
        .expect(200);
    assert_eq!(queue.body["phase"], "OPEN", "{}", queue.text);
    assert_eq!(queue.headers["cache-control"], "public, max-age=1");

    // Six enter; two work, four wait in the order they came.
    let mut places = Vec::new();
    for buyer in &sale.buyers {
        let place = enter(sale, buyer, &performance).await.expect(201);
        let again = enter(sale, buyer, &performance).await.expect(200);
        assert_eq!(
            again.body["number"], place.body["number"],
            "entering again keeps the place"
        );
        places.push(again);
    }
    let numbers: Vec<u64> = places
        .iter()
        .map(|p| p.body["number"].as_u64().unwrap())
        .collect();
    assert!(numbers.is_sorted(), "{numbers:?}");
    let working = places
        .iter()
        .filter(|p| p.body["status"] == "WORKING")
        .count();
    assert_eq!(working, 2);

    let seats = seat_map(sale, &schedule).await;
    let first = hold_and_conflict(sale, &places, &schedule, &seats).await;
    let confirmed = confirm(sale, &sale.buyers[0], &first).await;
    ticket(sale, &confirmed).await;

    // The place is given up, so the third is admitted, and the old token is done.
    let path = format!("/api/v1/queues/{performance}/tokens/me");
    let old = places[0].str("queueToken");
    api.until(&path, &[("queue-token", &old)], |r| r.status == 410)
        .await;
    let third = places.swap_remove(2);
    turn(sale, &performance, third).await;
    unpaid_hold_expires(sale, &places[1], &schedule, &seats).await;
}

async fn members(sale: &Sale) {
    let api = &sale.api;
    let email = format!("{}@example.com", uuid::Uuid::now_v7());
    let who = json!({ "email": email, "password": "correct horse battery", "name": "Ada" });
    let user = api
        .post("/api/v1/users", &[], who.clone())
        .await
        .expect(201);
    api.post("/api/v1/users", &[], who)
        .await
        .problem(409, "EMAIL_TAKEN");
    let login = json!({ "email": email, "password": "correct horse battery" });
    let tokens = api.post("/api/v1/auth/login", &[], login).await.expect(200);
    let wrong = json!({ "email": email, "password": "wrong horse battery" });
    api.post("/api/v1/auth/login", &[], wrong)
        .await
        .problem(401, "INVALID_CREDENTIALS");
    let auth = format!("Bearer {}", tokens.str("accessToken"));
    let me = api
        .get("/api/v1/users/me", &[("authorization", &auth)])
        .await
        .expect(200);
    assert_eq!(me.body["id"], user.body["id"]);
    let refresh = json!({ "refreshToken": tokens.str("refreshToken") });
    let fresh = api
        .post("/api/v1/auth/refresh", &[], refresh.clone())
        .await
        .expect(200);
    api.post("/api/v1/auth/refresh", &[], refresh)
        .await
        .problem(401, "REFRESH_REUSED");
    let revoked = json!({ "refreshToken": fresh.str("refreshToken") });
    assert_eq!(
        api.post("/api/v1/auth/refresh", &[], revoked).await.status,
        401
    );
    let jwks = api.get("/.well-known/jwks.json", &[]).await.expect(200);
    assert_eq!(jwks.body["keys"][0]["crv"], "Ed25519");
}

async fn seat_map(sale: &Sale, schedule: &str) -> Vec<String> {
    let path = format!("/api/v1/schedules/{schedule}/seats");
    let map = sale.api.get(&path, &[]).await.expect(200);
    let etag = map.headers["etag"].to_str().unwrap().to_owned();
    sale.api
        .get(&path, &[("if-none-match", &etag)])
        .await
        .expect(304);
    let seats = map.body["seats"].as_array().unwrap();
    assert_eq!(seats.len(), 40);
    assert!(seats.iter().all(|s| s["status"] == "AVAILABLE"));
    seats
        .iter()
        .map(|s| s["id"].as_str().unwrap().to_owned())
        .collect()
}

/// The first holds two seats; the second wants one of them; who waits may not.
async fn hold_and_conflict(
    sale: &Sale,
    places: &[Reply],
    schedule: &str,
    seats: &[String],
) -> Reply {
    let api = &sale.api;
    let auths: Vec<String> = sale.buyers.iter().map(Buyer::auth).collect();
    let tokens: Vec<String> = places.iter().map(|p| p.str("queueToken")).collect();
    let of = |i: usize| [("authorization", &*auths[i]), ("queue-token", &*tokens[i])];
    let wish = |ids: &[&String]| json!({ "scheduleId": schedule, "seatIds": ids });

    let keyed = [of(0)[0], of(0)[1], ("idempotency-key", "first-hold")];
    let body = wish(&[&seats[0], &seats[1]]);
    let order = api
        .post("/api/v1/orders", &keyed, body.clone())
        .await
        .expect(201);
    assert_eq!(order.body["status"], "PENDING_PAYMENT");
    let replay = api.post("/api/v1/orders", &keyed, body).await.expect(201);
    assert_eq!(replay.headers["idempotency-replayed"], "true");
    assert_eq!(replay.body["id"], order.body["id"]);
    let other = wish(&[&seats[5]]);
    api.post("/api/v1/orders", &keyed, other)
        .await
        .problem(422, "IDEMPOTENCY_KEY_REUSED");

    let taken = api
        .post("/api/v1/orders", &of(1), wish(&[&seats[1], &seats[2]]))
        .await;
    let taken = taken.problem(409, "SEATS_TAKEN");
    assert_eq!(taken.body["seatIds"], json!([seats[1]]));
    api.post("/api/v1/orders", &of(3), wish(&[&seats[3]]))
        .await
        .problem(403, "NOT_ADMITTED");
    let none = [("authorization", &*auths[1])];
    let bare = api.post("/api/v1/orders", &none, wish(&[&seats[3]])).await;
    bare.problem(401, "INVALID_QUEUE_TOKEN");
    let foreign = [("authorization", &*auths[1]), ("queue-token", &*tokens[0])];
    let foreign = api
        .post("/api/v1/orders", &foreign, wish(&[&seats[3]]))
        .await;
    foreign.problem(401, "INVALID_QUEUE_TOKEN");
    let theirs = format!("/api/v1/orders/{}", order.str("id"));
    assert_eq!(
        api.get(&theirs, &[("authorization", &auths[1])])
            .await
            .status,
        404
    );
    order
}

async fn ticket(sale: &Sale, order: &Reply) {
    let auth = sale.buyers[0].auth();
    let path = format!("/api/v1/orders/{}/ticket", order.str("id"));
    let ticket = sale
        .api
        .get(&path, &[("authorization", &auth)])
        .await
        .expect(200);
    assert!(!ticket.str("code").is_empty());
    assert!(ticket.str("qrSvg").contains("<svg"));
}

/// The second holds and does not pay: the order expires and the seat is free again.
async fn unpaid_hold_expires(sale: &Sale, place: &Reply, schedule: &str, seats: &[String]) {
    let auth = sale.buyers[1].auth();
    let token = place.str("queueToken");
    let headers = [("authorization", &*auth), ("queue-token", &*token)];
    let wish = json!({ "scheduleId": schedule, "seatIds": [seats[7]] });
    let order = sale
        .api
        .post("/api/v1/orders", &headers, wish)
        .await
        .expect(201);
    let path = format!("/api/v1/orders/{}", order.str("id"));
    let auth = [("authorization", &*auth)];
    sale.api
        .until(&path, &auth, |r| r.body["status"] == "EXPIRED")
        .await;
    let late = json!({ "orderId": order.str("id") });
    sale.api
        .post("/api/v1/payments", &auth, late)
        .await
        .problem(409, "HOLD_EXPIRED");
    let map = format!("/api/v1/schedules/{schedule}/seats");
    let free = |r: &Reply| {
        let seats_now = r.body["seats"].as_array().unwrap();
        seats_now
            .iter()
            .any(|s| s["id"] == *seats[7] && s["status"] == "AVAILABLE")
    };
    sale.api.until(&map, &[], free).await;
}

/// What is wrong is told as a problem, never as a 500.
pub async fn bad_input(sale: &Sale) {
    let api = &sale.api;
    let auth = sale.buyers[5].auth();
    let json_type = ("content-type", "application/json");
    let signed = [("authorization", &*auth), json_type];
    let post = |path: &'static str, body: String| {
        let (api, signed) = (api.clone(), signed);
        async move { api.send(Method::POST, path, &signed, body).await }
    };
    post("/api/v1/users", "{".into())
        .await
        .problem(400, "MALFORMED_JSON");
    post("/api/v1/users", String::new())
        .await
        .problem(400, "MALFORMED_JSON");
    let typed = post(
        "/api/v1/users",
        r#"{"email":7,"password":"x","name":"y"}"#.into(),
    )
    .await;
    let typed = typed.problem(422, "VALIDATION_FAILED");
    assert_eq!(typed.body["errors"][0]["field"], "email");
    let big = format!(r#"{{"email":"{}"}}"#, "x".repeat(1 << 20));
    post("/api/v1/users", big)
        .await
        .problem(413, "BODY_TOO_LARGE");
    let plain = [("content-type", "text/plain")];
    let plain = api.send(Method::POST, "/api/v1/users", &plain, "{}").await;
    plain.problem(415, "UNSUPPORTED_MEDIA_TYPE");
    unknown_things(sale, &auth).await;
}

async fn unknown_things(sale: &Sale, auth: &str) {
    let api = &sale.api;
    let json_type = ("content-type", "application/json");
    let signed = [("authorization", auth)];
    api.get("/api/v1/nothing", &[])
        .await
        .problem(404, "NOT_FOUND");
    api.delete("/api/v1/performances", &[])
        .await
        .problem(405, "METHOD_NOT_ALLOWED");
    let nobody = "/api/v1/performances/01890000-0000-7000-8000-000000000000";
    api.get(nobody, &[])
        .await
        .problem(404, "PERFORMANCE_NOT_FOUND");
    for path in [
        "/api/v1/performances/x",
        "/api/v1/schedules/x/seats",
        "/api/v1/queues/x",
    ] {
        let status = api.get(path, &[]).await.status.as_u16();
        assert!((400..500).contains(&status), "{path}: {status}");
    }
    let orders = api.get("/api/v1/orders", &[]).await;
    orders.problem(401, "UNAUTHENTICATED");
    let forged = [("authorization", "Bearer nonsense")];
    api.get("/api/v1/orders", &forged)
        .await
        .problem(401, "UNAUTHENTICATED");
    api.get("/admin/v1/overview", &signed)
        .await
        .problem(403, "FORBIDDEN");
    let limit = api.get("/api/v1/performances?limit=0", &[]).await;
    limit.problem(422, "VALIDATION_FAILED");
    let hook = api
        .send(Method::POST, "/api/v1/payments/webhook", &[json_type], "{}")
        .await;
    assert_eq!(hook.status, 400, "{}", hook.text);
    api.get("/internal/v1/overview", &[])
        .await
        .problem(404, "NOT_FOUND");
    let page = api
        .get("/", &[("x-request-id", "my-own.id")])
        .await
        .expect(200);
    assert!(page.text.contains("<html") && page.headers["x-request-id"] == "my-own.id");
    let document = api.get("/openapi.json", &[]).await.expect(200);
    every_operation_names_its_errors(&document.body);
    for path in [
        "/api/v1/orders",
        "/api/v1/queues/{performanceId}/tokens",
        "/admin/v1/overview",
    ] {
        assert!(
            document.body["paths"][path].is_object(),
            "{path} is not described"
        );
    }
}

/// Each operation says what the listener may answer to it, and every error is a problem.
fn every_operation_names_its_errors(document: &Value) {
    let mut operations = 0;
    let of = document["paths"].as_object().unwrap().iter();
    for (path, method, operation) in of.flat_map(|(path, item)| {
        let methods = item.as_object().unwrap().iter();
        methods
            .filter(|(method, _)| ["get", "put", "post", "delete", "patch"].contains(&&***method))
            .map(move |(method, operation)| (path, method, operation))
    }) {
        operations += 1;
        let responses = operation["responses"].as_object().unwrap();
        let bodies = ["413", "415"].into_iter();
        let bodies = bodies.filter(|_| operation.get("requestBody").is_some());
        for status in bodies.chain(["400", "408", "414", "431"]) {
            assert!(responses.contains_key(status), "{method} {path}: {status}");
        }
        let errors = responses.iter().filter(|(status, _)| ***status >= *"400");
        for (status, response) in errors {
            let Some(content) = response["content"].as_object() else {
                continue;
            };
            let types: Vec<_> = content.keys().collect();
            assert_eq!(
                types,
                ["application/problem+json"],
                "{method} {path}: {status}"
            );
        }
    }
    assert!(operations > 20, "{operations}");
}
