//! One performance on real stores: the reservations role with the real
//! performances role behind it, and a waiting room whose state is written as
//! lua/prelude.lua documents it.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use axum::{
    Router,
    body::{Body, to_bytes},
};
use chrono::Utc;
use http::{HeaderMap, Request, StatusCode};
use redis::AsyncCommands;
use serde_json::{Value, json};
use sqlx::{PgPool, Row};
use ticketping::{
    platform::{
        auth::{InternalSecret, Jwks, Role, Signer, Verifier},
        events::{Event, Handler, HandlerError},
        http::finish,
        metrics::Metrics,
        place::{Place, PlaceKeys, PlaceState, Turn},
        redis::Redis,
        secret::Secret,
    },
    serve::{
        queue::scripts::{Room, Scripts, Start},
        reservations::{self, Config, Deps, Reservations, TicketKey},
    },
};
use tower::ServiceExt;
use uuid::Uuid;

use super::house::{
    hall, payments_answering, performances_router, pool, pool_of_performances, upstream,
};
use crate::harness;

pub struct World {
    pub state: Reservations,
    pub pool: PgPool,
    pub redis: Redis,
    pub prefix: String,
    pub database: String,
    pub performance: Uuid,
    pub schedule: Uuid,
    pub seats: Vec<Uuid>,
    router: Router,
    signer: Signer,
    places: PlaceKeys,
    handler: Arc<dyn Handler>,
    last_number: AtomicU64,
    /// What payments answers to cancel-payment.
    pub payments: Arc<std::sync::Mutex<&'static str>>,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Value,
}

impl Answer {
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or("")
    }

    pub fn id(&self) -> Uuid {
        self.body["id"].as_str().expect("an id").parse().unwrap()
    }
}

pub struct Buyer {
    pub id: Uuid,
    pub token: String,
    pub place: String,
    pub number: u64,
}

/// Seconds-long times, so that nothing lapses unless a test makes it.
pub fn config() -> Config {
    Config {
        seat_limit: 4,
        hold_ttl: std::time::Duration::from_secs(120),
        cancel_cutoff: std::time::Duration::from_secs(24 * 3600),
        payment_wait_max: std::time::Duration::from_secs(600),
    }
}

impl World {
    pub async fn new(rows: u32, seats_a_row: u32) -> Self {
        Self::with(rows, seats_a_row, config()).await
    }

    pub async fn with(rows: u32, seats_a_row: u32, config: Config) -> Self {
        let database = harness::fresh_database().await;
        let redis_url = &harness::stores().await.redis_url;
        let pool = pool(&database, reservations::SCHEMA, &reservations::MIGRATOR).await;
        let catalogue = pool_of_performances(&database).await;
        let (performance, schedule, seats) = hall(&catalogue, rows, seats_a_row).await;
        let (signer, _) = Signer::generate().unwrap();
        let verifier = Verifier::new(&Jwks {
            keys: vec![signer.jwk().clone()],
        })
        .unwrap();
        let secret = InternalSecret(Secret::new("between roles"));
        let (places, _) = PlaceKeys::generate();
        let redis = Redis::connect(redis_url).await.unwrap();
        let payments = Arc::new(std::sync::Mutex::new("CANCELLED"));
        let prefix = harness::prefix();
        let state = Reservations::new(
            config,
            Deps {
                pool: pool.clone(),
                redis: redis.clone(),
                redis_prefix: prefix.clone(),
                verifier,
                places: places.clone(),
                tickets: TicketKey::from_hex(&"5a".repeat(32)).unwrap(),
                secret: secret.clone(),
                performances: upstream(performances_router(catalogue, &secret), &secret),
                payments: upstream(payments_answering(payments.clone()), &secret),
                // Nobody brings places back here.
                queue: upstream(axum::Router::new(), &secret),
                metrics: Metrics::default(),
            },
        );
        let (router, _) = reservations::router(state.clone()).split_for_parts();
        let handler = reservations::subscriptions(&state).remove(0).handler;
        let world = Self {
            router: finish(router),
            state,
            pool,
            redis,
            prefix,
            database,
            performance,
            schedule,
            seats,
            signer,
            places,
            handler,
            last_number: AtomicU64::new(0),
            payments,
        };
        world.open_queue().await;
        world
    }

    pub fn key(&self, name: &str) -> String {
        format!("{}:{{{}}}:{name}", self.prefix, self.performance)
    }

    async fn open_queue(&self) {
        let mut redis = self.redis.clone();
        let field = |info: &str, name: &str| -> String {
            let line = info.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.trim_start_matches(':').trim().to_owned()
        };
        let replication: String = redis::cmd("INFO")
            .arg("replication")
            .query_async(&mut redis)
            .await
            .unwrap();
        let server: String = redis::cmd("INFO")
            .arg("server")
            .query_async(&mut redis)
            .await
            .unwrap();
        let fields = [
            ("replid", field(&replication, "master_replid")),
            ("runid", field(&server, "run_id")),
            ("epoch", "1".into()),
            ("last", "1000000".into()),
            ("served", "1000000".into()),
            ("ceiling", "2000000".into()),
            ("maxWorking", "100000".into()),
            ("workingTtl", "420000".into()),
            ("claimTtl", "30000".into()),
            ("queueFactor", "2".into()),
            ("pollMin", "1000".into()),
            ("pollMax", "60000".into()),
            ("pollStep", "10".into()),
            ("remaining", self.seats.len().to_string()),
            ("capacity", self.seats.len().to_string()),
        ];
        let () = redis
            .hset_multiple(self.key("meta"), &fields)
            .await
            .unwrap();
    }

    /// A person, not in the queue.
    pub fn person(&self, state: PlaceState) -> Buyer {
        let id = Uuid::now_v7();
        let number = self.last_number.fetch_add(1, Ordering::Relaxed) + 1;
        Buyer {
            id,
            token: self
                .signer
                .sign(id, Role::User, std::time::Duration::from_secs(600)),
            place: self.places.seal(&Place {
                queue: self.performance,
                user: id,
                epoch: 1,
                number,
                state,
                issued_ms: 0,
                turn: Turn::default(),
                position: 0,
            }),
            number,
        }
    }

    /// The same person with a token of the place that the queue gave.
    pub fn with_place(&self, buyer: Buyer, epoch: u32, number: u64) -> Buyer {
        let place = self.places.seal(&Place {
            queue: self.performance,
            user: buyer.id,
            epoch,
            number,
            state: PlaceState::Waiting,
            issued_ms: 0,
            turn: Turn::default(),
            position: 0,
        });
        Buyer {
            place,
            number,
            ..buyer
        }
    }

    /// Somebody who was admitted and is there.
    pub async fn admitted(&self) -> Buyer {
        let buyer = self.person(PlaceState::Working);
        let mut redis = self.redis.clone();
        let until = Utc::now().timestamp_millis() + 420_000;
        let (id, place) = (buyer.id.as_bytes(), format!("{},A", buyer.number));
        let () = redis.zadd(self.key("work"), id, until).await.unwrap();
        let () = redis.hset(self.key("place"), id, place).await.unwrap();
        buyer
    }

    /// Somebody still in line.
    pub async fn waiting(&self) -> Buyer {
        let buyer = self.person(PlaceState::Waiting);
        let mut redis = self.redis.clone();
        let () = redis
            .zadd(self.key("wait"), buyer.id.as_bytes(), buyer.number)
            .await
            .unwrap();
        buyer
    }

    pub fn admin(&self) -> String {
        self.signer.sign(
            Uuid::now_v7(),
            Role::Admin,
            std::time::Duration::from_secs(600),
        )
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = to_bytes(answer.into_body(), 1 << 24).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Answer {
            status,
            headers,
            body,
        }
    }

    pub async fn call(&self, method: &str, path: &str, token: &str, body: Option<Value>) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(body.map_or(Body::empty(), |b| Body::from(b.to_string())))
            .unwrap();
        self.send(request).await
    }

    pub async fn order(&self, buyer: &Buyer, body: Value, key: Option<&str>) -> Answer {
        let mut request = Request::builder()
            .method("POST")
            .uri("/api/v1/orders")
            .header("authorization", format!("Bearer {}", buyer.token))
            .header("queue-token", &buyer.place)
            .header("content-type", "application/json");
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        self.send(request.body(Body::from(body.to_string())).unwrap())
            .await
    }

    pub async fn order_seats(&self, buyer: &Buyer, seats: &[usize]) -> Answer {
        let body = json!({ "scheduleId": self.schedule, "seatIds": self.ids(seats) });
        self.order(buyer, body, None).await
    }

    pub fn ids(&self, seats: &[usize]) -> Vec<Uuid> {
        seats.iter().map(|i| self.seats[*i]).collect()
    }

    /// As payments calls it.
    pub async fn begin_payment(&self, order: Uuid, buyer: &Buyer) -> Answer {
        let request = Request::builder()
            .method("POST")
            .uri(format!("/internal/v1/orders/{order}/begin-payment"))
            .header("authorization", "Internal between roles")
            .header("content-type", "application/json")
            .body(Body::from(json!({ "userId": buyer.id }).to_string()))
            .unwrap();
        self.send(request).await
    }

    pub async fn cancel(&self, order: Uuid, buyer: &Buyer) -> Answer {
        let path = format!("/api/v1/orders/{order}");
        self.call("DELETE", &path, &buyer.token, None).await
    }

    /// Hands an event of payments to the role's own handler, as the relay does.
    pub async fn hear(&self, id: Uuid, kind: &str, data: &Value) -> bool {
        let raw = serde_json::value::to_raw_value(data).unwrap();
        let key = data["orderId"].as_str().unwrap();
        let event = Event::new(id, "payments", kind, key, Utc::now(), raw);
        // What passes is tried again, as the relay does; false: a dead letter.
        let mut handled = None;
        harness::eventually(&format!("{kind} of {key} is handled"), async || {
            handled = match self.handler.handle(&event).await {
                Ok(()) => Some(true),
                Err(HandlerError::Retry(_)) => None,
                Err(HandlerError::Poison(_)) => Some(false),
            };
            handled.is_some()
        })
        .await;
        handled.unwrap_or_default()
    }

    pub async fn paid(&self, event: Uuid, order: Uuid, payment: Uuid) -> bool {
        let amount: i64 = sqlx::query("select amount from orders where id = $1")
            .bind(order)
            .fetch_one(&self.pool)
            .await
            .unwrap()
            .get(0);
        let data = json!({
            "paymentId": payment, "orderId": order, "amount": amount, "currency": "krw",
        });
        self.hear(event, "payment.succeeded", &data).await
    }

    /// An order with its hold over, as if the time had passed.
    pub async fn age(&self, order: Uuid) {
        sqlx::query("update orders set expires_at = now() - interval '1 second' where id = $1")
            .bind(order)
            .execute(&self.pool)
            .await
            .unwrap();
    }

    pub async fn lapse(&self, order: Uuid) {
        self.age(order).await;
        self.bell(order).await;
    }

    /// The bell of a hold rings, and again while a store is busy, as the sweep would.
    pub async fn bell(&self, order: Uuid) {
        for _ in 0..50 {
            if self.state.lapse(self.performance, order).await.is_ok() {
                return;
            }
        }
        panic!("the hold of {order} was looked at for too long");
    }

    /// State, version and reason of an order.
    pub async fn row(&self, order: Uuid) -> (String, i32, Option<String>) {
        let row = sqlx::query("select state, version, status_reason from orders where id = $1")
            .bind(order)
            .fetch_one(&self.pool)
            .await
            .unwrap();
        (row.get(0), row.get(1), row.get(2))
    }

    /// The bytes of the schedule's seats.
    pub async fn bytes(&self) -> String {
        let mut redis = self.redis.clone();
        let key = self.key(&format!("seats:{}", self.schedule));
        redis
            .get::<_, Option<String>>(key)
            .await
            .unwrap()
            .unwrap_or_default()
    }

    /// Waits until Redis shows these bytes.
    pub async fn until_bytes(&self, wanted: &str) {
        harness::eventually(wanted, async || self.bytes().await == wanted).await;
    }

    /// The schedule's seat map, once it shows `wanted` seats otherwise than AVAILABLE.
    pub async fn until_map(&self, wanted: usize) -> Answer {
        let path = format!("/api/v1/schedules/{}/seats", self.schedule);
        let mut map = self.call("GET", &path, "", None).await;
        harness::eventually("the seat map follows", async || {
            map = self.call("GET", &path, "", None).await;
            let seats = map.body["seats"].as_array().unwrap();
            seats
                .iter()
                .filter(|seat| seat["status"] != "AVAILABLE")
                .count()
                == wanted
        })
        .await;
        map
    }

    pub async fn remaining(&self) -> i64 {
        let mut redis = self.redis.clone();
        redis.hget(self.key("meta"), "remaining").await.unwrap()
    }

    /// How many events of a type were said about an order.
    pub async fn said(&self, kind: &str, order: Uuid) -> i64 {
        sqlx::query("select count(*) from outbox where type = $1 and key = $2")
            .bind(kind)
            .bind(order.to_string())
            .fetch_one(&self.pool)
            .await
            .unwrap()
            .get(0)
    }

    /// Redis and Postgres say the same of every seat, hold and limit.
    pub async fn consistent(&self) {
        let expected = self.bytes_in_postgres().await;
        assert_eq!(
            self.bytes().await,
            expected,
            "Redis shows what Postgres says"
        );
        let sold = expected.bytes().filter(|b| *b == b'2').count();
        let left = i64::try_from(self.seats.len() - sold).unwrap();
        assert_eq!(
            self.remaining().await,
            left,
            "remaining counts the seats not sold"
        );
        assert_eq!(
            self.state.repair(self.performance).await.unwrap(),
            0,
            "nothing to repair"
        );
    }

    async fn bytes_in_postgres(&self) -> String {
        let mut bytes = vec![b'0'; self.seats.len()];
        let rows = sqlx::query(
            "select s.seat_index, o.state from order_seats s join orders o on o.id = s.order_id where s.live",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        for row in rows {
            let at = usize::try_from(row.get::<i32, _>(0)).unwrap();
            assert_eq!(bytes[at], b'0', "one live order a seat");
            bytes[at] = if row.get::<String, _>(1) == "CONFIRMED" {
                b'2'
            } else {
                b'1'
            };
        }
        String::from_utf8(bytes).unwrap()
    }

    pub async fn sql(&self, statement: &str) {
        let statement = sqlx::AssertSqlSafe(statement.to_owned());
        sqlx::query(statement).execute(&self.pool).await.unwrap();
    }

    pub async fn flush_redis(&self) {
        let mut redis = self.redis.clone();
        let pattern = format!("{}:{{{}}}:*", self.prefix, self.performance);
        let keys: Vec<String> = redis.keys(pattern).await.unwrap();
        let () = redis.del(keys).await.unwrap();
    }

    pub async fn reopen_queue(&self) {
        self.open_queue().await;
    }

    /// The schedule's seats as a Redis of an older state has them.
    pub async fn older_seats(&self, bytes: &str) {
        let mut redis = self.redis.clone();
        let key = self.key(&format!("seats:{}", self.schedule));
        let () = redis.set(key, bytes).await.unwrap();
    }

    /// The queue begins its next epoch, and was told by PostgreSQL that `left` seats are not sold.
    pub async fn begin_epoch(&self, left: usize) {
        let mut redis = self.redis.clone();
        let epoch: Option<u32> = redis.hget(self.key("meta"), "epoch").await.unwrap();
        let room = Room::new(
            self.redis.clone(),
            Arc::new(Scripts::default()),
            &self.prefix,
            self.performance,
        );
        let start = Start {
            epoch: epoch.unwrap_or(1) + 1,
            base: 2_000_000,
            ceiling: 3_000_000,
            served: 0,
            recover_ms: 1_500,
            served_then: 0,
            skips: Vec::new(),
            survival: None,
            orders: false,
            fields: vec![("remaining", left.to_string())],
            schedules: vec![self.schedule],
        };
        room.init(&start).await.unwrap();
    }

    /// The role's part of what operators see.
    pub async fn overview(&self) -> Value {
        let request = Request::builder()
            .uri("/internal/v1/overview")
            .header("authorization", "Internal between roles")
            .body(Body::empty())
            .unwrap();
        self.send(request).await.body
    }

    /// What the queue asks when it begins an epoch.
    pub async fn sold(&self) -> Answer {
        let path = format!("/internal/v1/performances/{}/sold", self.performance);
        let request = Request::builder()
            .uri(path)
            .header("authorization", "Internal between roles")
            .body(Body::empty())
            .unwrap();
        self.send(request).await
    }
}
