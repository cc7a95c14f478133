//! Queues on real stores: any number of instances that share one Redis and one
//! PostgreSQL, and people who speak HTTP to them.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use sqlx::PgPool;
use ticketping::{
    platform::{
        auth::{InternalSecret, Jwks, Role, Signer, Verifier},
        db,
        metrics::Metrics,
        place::PlaceKeys,
        redis::Redis,
        secret::Secret,
        tasks::Tasks,
        upstream::Upstream,
    },
    serve::queue::{self, Config, Deps, scripts::Scripts},
};
use tower::ServiceExt;
use uuid::Uuid;

use crate::harness;

/// What the other roles would say of the one performance of a test.
#[derive(Debug)]
pub struct Show {
    pub opens_ms: AtomicI64,
    pub closes_ms: AtomicI64,
    pub seats: AtomicI64,
    pub sold: AtomicI64,
    /// Orders that keep a turn, as reservations tell of them.
    pub unpaid: std::sync::Mutex<Vec<Value>>,
    /// Reservations do not answer.
    pub away: std::sync::atomic::AtomicBool,
}

pub struct World {
    pub show: Arc<Show>,
    pub performance: Uuid,
    pub prefix: String,
    pub redis_url: String,
    pub database_url: String,
    pub pool: PgPool,
    pub signer: Signer,
    pub keys: PlaceKeys,
    pub config: Config,
    others: Router,
}

pub struct Instance {
    pub state: queue::State,
    pub router: Router,
    tasks: Tasks,
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

pub fn config() -> Config {
    Config {
        max_working: 10,
        working_ttl: Duration::from_secs(60),
        claim_ttl: Duration::from_secs(30),
        hold_ttl: Duration::from_secs(60),
        queue_factor: 0.0,
        admissions_per_minute: None,
        polls_per_second: 200,
    }
}

pub fn now_ms() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

impl World {
    pub async fn new(config: Config) -> Self {
        let redis_url = harness::stores().await.redis_url.clone();
        Self::on(config, redis_url, harness::fresh_database().await).await
    }

    pub async fn on(config: Config, redis_url: String, database_url: String) -> Self {
        let show = Arc::new(Show {
            opens_ms: AtomicI64::new(now_ms() - 60_000),
            closes_ms: AtomicI64::new(now_ms() + 86_400_000),
            seats: AtomicI64::new(10_000),
            sold: AtomicI64::new(0),
            unpaid: std::sync::Mutex::default(),
            away: std::sync::atomic::AtomicBool::default(),
        });
        let pool = db::pool(&database_url, queue::SCHEMA, 8).unwrap();
        db::migrate(&pool, queue::SCHEMA, &queue::MIGRATOR)
            .await
            .unwrap();
        let performance = Uuid::now_v7();
        Self {
            others: others(&show, performance),
            show,
            performance,
            prefix: harness::prefix(),
            redis_url,
            database_url,
            pool,
            signer: Signer::generate().unwrap().0,
            keys: PlaceKeys::generate().0,
            config,
        }
    }

    pub async fn instance(&self) -> Instance {
        self.instance_with(Scripts::default()).await
    }

    pub async fn instance_with(&self, scripts: Scripts) -> Instance {
        let secret = InternalSecret(Secret::new("s"));
        let slot = Arc::new(OnceLock::from(self.others.clone()));
        let upstream = Upstream::local(slot, secret.clone());
        let pool = db::pool(&self.database_url, queue::SCHEMA, 4).unwrap();
        let state = queue::State::with_scripts(
            Deps {
                pool,
                redis: Redis::connect(&self.redis_url).await.unwrap(),
                prefix: self.prefix.clone(),
                keys: self.keys.clone(),
                verifier: self.verifier(),
                secret,
                performances: upstream.clone(),
                reservations: upstream,
                metrics: Metrics::default(),
                config: self.config.clone(),
            },
            scripts,
        );
        let tasks = Tasks::new();
        queue::tasks(&state, &tasks);
        let (router, _) = queue::router(state.clone()).split_for_parts();
        Instance {
            router: ticketping::platform::http::finish(router),
            state,
            tasks,
        }
    }

    pub fn verifier(&self) -> Verifier {
        Verifier::new(&Jwks {
            keys: vec![self.signer.jwk().clone()],
        })
        .unwrap()
    }

    pub fn access(&self, user: Uuid) -> String {
        self.signer
            .sign(user, Role::User, Duration::from_secs(3600))
    }

    pub fn admin(&self) -> String {
        self.signer
            .sign(Uuid::now_v7(), Role::Admin, Duration::from_secs(3600))
    }

    pub async fn redis(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.redis_url.as_str())
            .unwrap()
            .get_multiplexed_async_connection()
            .await
            .unwrap()
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}:{{{}}}:{name}", self.prefix, self.performance)
    }

    pub async fn working(&self) -> i64 {
        let key = self.key("work");
        redis::cmd("ZCARD")
            .arg(key)
            .query_async(&mut self.redis().await)
            .await
            .unwrap()
    }

    pub async fn meta(&self, field: &str) -> Option<i64> {
        redis::cmd("HGET")
            .arg(self.key("meta"))
            .arg(field)
            .query_async(&mut self.redis().await)
            .await
            .unwrap()
    }

    pub async fn set_meta(&self, field: &str, value: i64) {
        redis::cmd("HSET")
            .arg(self.key("meta"))
            .arg(field)
            .arg(value)
            .query_async::<i64>(&mut self.redis().await)
            .await
            .unwrap();
    }

    pub fn tokens(&self) -> String {
        format!("/api/v1/queues/{}/tokens", self.performance)
    }

    pub async fn enter(&self, at: &Instance, user: Uuid) -> (StatusCode, Value) {
        let access = format!("Bearer {}", self.access(user));
        call(
            at,
            Method::POST,
            &self.tokens(),
            &[("authorization", &access)],
            None,
        )
        .await
    }

    pub async fn ask(&self, at: &Instance, token: &str) -> (StatusCode, Value) {
        let path = format!("{}/me", self.tokens());
        call(at, Method::GET, &path, &[("queue-token", token)], None).await
    }

    pub async fn leave(&self, at: &Instance, token: &str) -> (StatusCode, Value) {
        let path = format!("{}/me", self.tokens());
        call(at, Method::DELETE, &path, &[("queue-token", token)], None).await
    }

    pub async fn public(&self, at: &Instance) -> Value {
        let path = format!("/api/v1/queues/{}", self.performance);
        let (status, body) = call(at, Method::GET, &path, &[], None).await;
        assert_eq!(status, 200, "{body}");
        body
    }

    pub async fn patch(&self, at: &Instance, change: Value) -> (StatusCode, Value) {
        let path = format!("/admin/v1/queues/{}", self.performance);
        let access = format!("Bearer {}", self.admin());
        let mut change = change;
        change["reason"] = json!("a test");
        call(
            at,
            Method::PATCH,
            &path,
            &[("authorization", &access)],
            Some(change),
        )
        .await
    }

    /// Asks until the place works, which takes at most a snapshot's age.
    pub async fn admitted(&self, at: &Instance, token: &str) -> Value {
        let mut place = Value::Null;
        until(Duration::from_secs(2), async || {
            place = self.ask(at, token).await.1;
            status(&place) == "WORKING"
        })
        .await;
        assert_eq!(status(&place), "WORKING", "{place}");
        place
    }

    pub async fn confirm(&self, at: &Instance, user: Uuid, number: u64) {
        confirm(at, self.performance, user, number).await;
    }
}

/// Delivers `order.confirmed` as the bus would.
pub async fn confirm(at: &Instance, performance: Uuid, user: Uuid, number: u64) {
    use ticketping::platform::events::Event;
    let data = serde_json::value::to_raw_value(&json!({
        "orderId": Uuid::now_v7(), "userId": user, "performanceId": performance,
        "scheduleId": Uuid::now_v7(), "seatCount": 1, "amount": 1, "currency": "krw",
        "placeEpoch": 1, "placeNumber": number,
    }))
    .unwrap();
    let (id, now) = (Uuid::now_v7(), chrono::Utc::now());
    let subject = performance.to_string();
    let event = Event::new(id, "reservations", "order.confirmed", subject, now, data);
    let subscriptions = queue::subscriptions(&at.state);
    subscriptions[0].handler.handle(&event).await.unwrap();
}

fn others(show: &Arc<Show>, performance: Uuid) -> Router {
    let (facts, sold, unpaid) = (show.clone(), show.clone(), show.clone());
    let time = |ms: i64| chrono::DateTime::from_timestamp_millis(ms);
    Router::new()
        .route(
            "/internal/v1/performances",
            get(async move || axum::Json([performance])),
        )
        .route(
            &format!("/internal/v1/performances/{performance}"),
            get(async move || {
                axum::Json(json!({
                    "id": performance, "title": "A show", "venueName": "A hall",
                    "bookingOpensAt": time(facts.opens_ms.load(Relaxed)),
                    "bookingClosesAt": time(facts.closes_ms.load(Relaxed)),
                    "totalSeats": facts.seats.load(Relaxed), "scheduleIds": [],
                }))
            }),
        )
        .route(
            &format!("/internal/v1/performances/{performance}/unpaid"),
            get(async move || axum::Json(unpaid.unpaid.lock().unwrap().clone())),
        )
        .route(
            &format!("/internal/v1/performances/{performance}/sold"),
            get(async move || match sold.away.load(Relaxed) {
                true => Err(StatusCode::SERVICE_UNAVAILABLE),
                false => Ok(axum::Json(json!({ "sold": sold.sold.load(Relaxed) }))),
            }),
        )
}

pub async fn call(
    at: &Instance,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Value>,
) -> (StatusCode, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = match body {
        Some(body) => {
            request = request.header("content-type", "application/json");
            Body::from(body.to_string())
        }
        None => Body::empty(),
    };
    let response = at
        .router
        .clone()
        .oneshot(request.body(body).unwrap())
        .await
        .unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        serde_json::from_slice(&bytes).unwrap_or(Value::Null),
    )
}

pub fn token(place: &Value) -> String {
    place["queueToken"]
        .as_str()
        .unwrap_or_else(|| panic!("no place: {place}"))
        .to_owned()
}

pub fn number(place: &Value) -> u64 {
    place["number"]
        .as_u64()
        .unwrap_or_else(|| panic!("no number: {place}"))
}

pub fn status(place: &Value) -> &str {
    place["status"].as_str().unwrap_or("none")
}

/// After the primary died: who works keeps the place as soon as there is a new one, gives it up
/// by an order, and the next in line comes in. `works` is of `first`, number 1 of a queue where
/// one may work.
pub async fn carries_on(world: &World, at: &Instance, first: Uuid, works: Value, next: Value) {
    let mut place = works;
    let back = until(Duration::from_secs(20), async || {
        let (code, body) = world.ask(at, &token(&place)).await;
        if code == 200 {
            place = body;
        } else {
            assert_eq!(code, 503, "{body}");
        }
        code == 200
    })
    .await;
    assert!(back.is_some(), "the new primary is found");
    assert_eq!((status(&place), number(&place)), ("WORKING", 1), "{place}");
    world.confirm(at, first, 1).await;
    let mut next = next;
    let came = until(Duration::from_secs(12), async || {
        let (code, body) = world.ask(at, &token(&next)).await;
        if code == 200 {
            next = body;
        }
        status(&next) == "WORKING"
    })
    .await;
    assert!(came.is_some(), "the next comes in: {next}");
}

/// Waits until `done`, at most `within` on a machine that has nothing else to do, and up to five
/// times as long on one that has; how long it took.
pub async fn until(within: Duration, mut done: impl AsyncFnMut() -> bool) -> Option<Duration> {
    let begun = std::time::Instant::now();
    while begun.elapsed() < 5 * within {
        if done().await {
            return Some(begun.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    None
}
