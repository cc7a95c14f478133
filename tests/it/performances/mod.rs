//! Performances, over their own routes and a real PostgreSQL that `seed` has filled.

mod counters;
mod input;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use axum::{Router, body::Body};
use chrono::Utc;
use http::{Method, Request, StatusCode, header};
use rand::seq::SliceRandom;
use serde_json::{Value, json, value::RawValue};
use sqlx::PgPool;
use ticketping::{
    cmd::seed,
    platform::{
        auth::{InternalSecret, Signer},
        db,
        events::{Event, HandlerError, Subscription},
        http::finish,
        secret::Secret,
    },
    serve::performances::{self, Performances},
};
use tower::ServiceExt;
use uuid::Uuid;

use crate::harness;

const SECRET: &str = "only between roles";

struct World {
    router: Router,
    pool: PgPool,
    subscription: Subscription,
    _dir: tempfile::TempDir,
}

/// The role over a database with the demo set.
async fn world() -> World {
    let url = harness::fresh_database().await;
    let dir = tempfile::tempdir().unwrap();
    let (signer, _) = Signer::generate().unwrap();
    seed::ensure_demo(&url, dir.path(), signer).await.unwrap();
    let pool = db::pool(&url, performances::SCHEMA, 10).unwrap();
    let state = Performances::new(pool.clone(), InternalSecret(Secret::new(SECRET)));
    let subscription = performances::subscriptions(&state).remove(0);
    let (router, _) = performances::router(state).split_for_parts();
    World {
        router: finish(router),
        pool,
        subscription,
        _dir: dir,
    }
}

struct Answer {
    status: StatusCode,
    etag: Option<String>,
    cache: Option<String>,
    body: Value,
}

impl Answer {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    fn items(&self) -> &[Value] {
        self.body["items"].as_array().unwrap()
    }
}

impl World {
    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let header = |name| {
            response
                .headers()
                .get(name)
                .map(|v| v.to_str().unwrap().to_owned())
        };
        let (etag, cache) = (header(header::ETAG), header(header::CACHE_CONTROL));
        let bytes = axum::body::to_bytes(response.into_body(), 64 << 20)
            .await
            .unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Answer {
            status,
            etag,
            cache,
            body,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path).body(Body::empty()).unwrap())
            .await
    }

    async fn internal(&self, path: &str) -> Answer {
        let request =
            Request::get(path).header(header::AUTHORIZATION, format!("Internal {SECRET}"));
        self.send(request.body(Body::empty()).unwrap()).await
    }

    /// The first performance in this state.
    async fn in_state(&self, booking: &str) -> Value {
        let all = self.get("/api/v1/performances").await;
        let found = all.items().iter().find(|p| p["booking"] == booking);
        found
            .unwrap_or_else(|| panic!("none is {booking}: {}", all.body))
            .clone()
    }

    /// A schedule of it.
    async fn schedule_of(&self, performance: &Value) -> Value {
        let path = format!(
            "/api/v1/performances/{}/schedules",
            performance["id"].as_str().unwrap()
        );
        self.get(&path).await.items()[0].clone()
    }

    async fn tell(&self, event: &Event) -> Result<(), HandlerError> {
        self.subscription.handler.handle(event).await
    }
}

fn event(kind: &str, order: Uuid, schedule: Uuid, seats: i32) -> Event {
    let data = json!({
        "orderId": order, "userId": Uuid::now_v7(), "performanceId": Uuid::now_v7(), "scheduleId": schedule,
        "seatCount": seats, "amount": 1_000, "currency": "krw", "placeEpoch": 1, "placeNumber": 7,
    });
    let data = RawValue::from_string(data.to_string()).unwrap();
    Event::new(
        Uuid::now_v7(),
        "reservations",
        kind,
        order.to_string(),
        Utc::now(),
        data,
    )
}

#[tokio::test]
async fn the_list_has_every_state_and_can_be_read_in_pages() {
    let world = world().await;
    let whole = world.get("/api/v1/performances").await;
    assert_eq!((whole.status, whole.items().len()), (StatusCode::OK, 7));
    assert!(whole.body["nextCursor"].is_null());
    assert_eq!(whole.cache.as_deref(), Some("public, max-age=1"));
    let mut states = HashMap::new();
    for item in whole.items() {
        *states.entry(item["booking"].as_str().unwrap()).or_insert(0) += 1;
        for field in [
            "id",
            "title",
            "runtimeMinutes",
            "ageRating",
            "bookingOpensAt",
            "bookingClosesAt",
            "remainingSeats",
        ] {
            assert!(!item[field].is_null(), "{field}");
        }
        assert!(item["venue"]["id"].is_string() && item["venue"]["name"].is_string());
    }
    assert_eq!(
        states,
        HashMap::from([("OPEN", 3), ("SOLD_OUT", 1), ("UPCOMING", 2), ("CLOSED", 1)])
    );

    let (mut read, mut next) = (Vec::new(), String::new());
    for pages in 1.. {
        let page = world
            .get(&format!("/api/v1/performances?limit=3{next}"))
            .await;
        assert!(page.items().len() <= 3);
        read.extend(page.items().to_vec());
        match page.body["nextCursor"].as_str() {
            Some(cursor) => next = format!("&cursor={cursor}"),
            None => {
                assert_eq!(pages, 3);
                break;
            }
        }
    }
    assert_eq!(read, whole.items());
    let exact = world.get("/api/v1/performances?limit=7").await;
    assert!(
        exact.body["nextCursor"].is_null(),
        "nothing follows a full last page"
    );
}

#[tokio::test]
async fn schedules_are_shown_within_the_booking_window_only() {
    let world = world().await;
    let open = world.in_state("OPEN").await;
    let path = format!("/api/v1/performances/{}", open["id"].as_str().unwrap());
    let detail = world.get(&path).await;
    assert_eq!(detail.body["title"], open["title"]);
    assert_eq!(
        detail.body["grades"][0],
        json!({"grade": "VIP", "price": 170_000, "currency": "krw"})
    );

    let schedules = world.get(&format!("{path}/schedules?limit=2")).await;
    let cursor = schedules.body["nextCursor"].as_str().unwrap().to_owned();
    let rest = world
        .get(&format!("{path}/schedules?limit=2&cursor={cursor}"))
        .await;
    let all: Vec<_> = schedules.items().iter().chain(rest.items()).collect();
    assert_eq!(all.len(), 3);
    assert!(
        all.windows(2)
            .all(|pair| pair[0]["startsAt"].as_str() < pair[1]["startsAt"].as_str())
    );
    for schedule in all {
        assert_eq!(schedule["performanceId"], open["id"]);
        assert_eq!(
            (&schedule["remainingSeats"], &schedule["totalSeats"]),
            (&json!(1_200), &json!(1_200))
        );
        let alone = world
            .get(&format!(
                "/api/v1/schedules/{}",
                schedule["id"].as_str().unwrap()
            ))
            .await;
        assert_eq!(&alone.body, schedule);
    }
    for state in ["UPCOMING", "CLOSED"] {
        let performance = world.in_state(state).await;
        let path = format!(
            "/api/v1/performances/{}/schedules",
            performance["id"].as_str().unwrap()
        );
        let answer = world.get(&path).await;
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::CONFLICT, "BOOKING_NOT_OPEN")
        );
        assert_eq!(answer.body["opensAt"], performance["bookingOpensAt"]);
        assert_eq!(answer.body["closesAt"], performance["bookingClosesAt"]);
    }
    let sold_out = world.in_state("SOLD_OUT").await;
    assert_eq!(sold_out["remainingSeats"], 0);
    assert_eq!(world.schedule_of(&sold_out).await["remainingSeats"], 0);
}

#[tokio::test]
async fn what_changed_shows_within_a_second_and_what_did_not_is_304() {
    let world = world().await;
    let open = world.in_state("OPEN").await;
    let path = format!("/api/v1/performances/{}", open["id"].as_str().unwrap());
    let first = world.get(&path).await;
    let again = Request::get(&path).header(header::IF_NONE_MATCH, first.etag.clone().unwrap());
    let again = world.send(again.body(Body::empty()).unwrap()).await;
    assert_eq!(
        (again.status, &again.body),
        (StatusCode::NOT_MODIFIED, &Value::Null)
    );

    sqlx::query("update performances set title = 'Another' where id = $1")
        .bind(open["id"].as_str().unwrap().parse::<Uuid>().unwrap())
        .execute(&world.pool)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(900)).await;
    let changed = world.get(&path).await;
    assert_eq!(changed.body["title"], "Another");
    assert_ne!(changed.etag, first.etag);
}

#[tokio::test]
async fn other_roles_get_the_facts_and_the_whole_catalogue_and_nobody_else_does() {
    let world = world().await;
    let open = world.in_state("OPEN").await;
    let schedule = world.schedule_of(&open).await;
    let facts_path = format!("/internal/v1/performances/{}", open["id"].as_str().unwrap());
    let catalogue_path = format!(
        "/internal/v1/schedules/{}/catalogue",
        schedule["id"].as_str().unwrap()
    );
    for path in [&facts_path, &catalogue_path] {
        assert_eq!(world.get(path).await.status, StatusCode::FORBIDDEN);
    }
    let facts = world.internal(&facts_path).await;
    assert_eq!(facts.body["title"], open["title"]);
    assert_eq!(
        (&facts.body["totalSeats"], &facts.body["venueName"]),
        (&json!(3_600), &open["venue"]["name"])
    );
    assert_eq!(facts.body["scheduleIds"].as_array().unwrap().len(), 3);

    let catalogue = world.internal(&catalogue_path).await.body;
    for field in [
        "scheduleId",
        "performanceId",
        "performanceTitle",
        "startsAt",
        "bookingOpensAt",
        "bookingClosesAt",
    ] {
        assert!(catalogue[field].is_string(), "{field}");
    }
    let seats = catalogue["seats"].as_array().unwrap();
    assert_eq!(seats.len(), 1_200);
    let ids: HashSet<_> = seats.iter().map(|s| s["id"].as_str().unwrap()).collect();
    assert_eq!(ids.len(), 1_200);
    let order: Vec<Uuid> =
        sqlx::query_scalar("select id from seats where schedule_id = $1 order by idx")
            .bind(schedule["id"].as_str().unwrap().parse::<Uuid>().unwrap())
            .fetch_all(&world.pool)
            .await
            .unwrap();
    assert!(
        order
            .iter()
            .map(Uuid::to_string)
            .eq(seats.iter().map(|s| s["id"].as_str().unwrap().to_owned()))
    );
    let front = &seats[0];
    assert_eq!(
        (&front["section"], &front["row"], &front["number"]),
        (&json!("1층 A구역"), &json!("1열"), &json!(1))
    );
    assert_eq!(
        (&front["grade"], &front["price"], &front["currency"]),
        (&json!("R"), &json!(140_000), &json!("krw"))
    );
}
