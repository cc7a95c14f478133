//! A sandbox of its own for each test, and a shop that takes its webhooks.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode};
use clap::Parser as _;
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use sqlx::PgPool;
use ticketping::platform::edge::{self, Edge, Limits};
use ticketping::platform::tasks::Tasks;
use ticketping::platform::{db, metrics::Metrics};
use ticketping::serve::stripe_sandbox::{self, Config, State};
use tokio::net::TcpListener;

use crate::harness;

pub const SECRET_KEY: &str = "sk_test_51SandboxSecretKey";
pub const PUBLISHABLE_KEY: &str = "pk_test_51SandboxPublishableKey";
pub const WEBHOOK_SECRET: &str = "whsec_sandbox";

#[derive(clap::Parser)]
struct Flags {
    #[command(flatten)]
    config: Config,
}

pub struct Sandbox {
    pub url: String,
    pub pool: PgPool,
    pub database_url: String,
    tasks: Tasks,
    http: Client<HttpConnector, Full<Bytes>>,
}

impl Sandbox {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    pub async fn with(flags: &[&str]) -> Self {
        let database_url = harness::fresh_database().await;
        Self::on(database_url, flags).await
    }

    pub async fn on(database_url: String, flags: &[&str]) -> Self {
        let pool = db::pool(
            &database_url,
            stripe_sandbox::SCHEMA,
            stripe_sandbox::CONNECTIONS_MAX,
        )
        .unwrap();
        db::migrate(&pool, stripe_sandbox::SCHEMA, &stripe_sandbox::MIGRATIONS)
            .await
            .unwrap();
        let keys = [
            "sandbox",
            "--stripe-sandbox-secret-key",
            SECRET_KEY,
            "--stripe-sandbox-publishable-key",
            PUBLISHABLE_KEY,
            "--stripe-sandbox-webhook-secret",
            WEBHOOK_SECRET,
            "--stripe-sandbox-retry-first",
            "50ms",
        ];
        let config = Flags::parse_from(keys.iter().chain(flags)).config;
        let state = State::new(pool.clone(), &config).unwrap();
        let tasks = Tasks::new();
        stripe_sandbox::tasks(&state, &tasks);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = stripe_sandbox::router(state);
        let edge = Edge::new(router, None, &Metrics::default(), Arc::default());
        let served = edge::serve(listener, edge, Limits::default(), tasks.token());
        let mut served = Some(served);
        tasks.spawn("http", move || served.take().expect("it never panics"));
        Self {
            url,
            pool,
            database_url,
            tasks,
            http: Client::builder(TokioExecutor::new()).build_http(),
        }
    }

    pub async fn stop(&self) {
        assert!(self.tasks.stop(Duration::from_secs(10)).await);
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "", &[]).await
    }

    pub async fn post(&self, path: &str, form: &str) -> Answer {
        self.call("POST", path, form, &[]).await
    }

    pub async fn post_with(&self, path: &str, form: &str, headers: &[(&str, &str)]) -> Answer {
        self.call("POST", path, form, headers).await
    }

    /// With the secret key, unless `headers` name another authorization.
    pub async fn call(
        &self,
        method: &str,
        path: &str,
        form: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        self.call_at(&self.url, method, path, form, headers).await
    }

    /// The same at another server.
    pub async fn call_at(
        &self,
        url: &str,
        method: &str,
        path: &str,
        form: &str,
        headers: &[(&str, &str)],
    ) -> Answer {
        let mut request = http::Request::builder()
            .method(method)
            .uri(format!("{url}{path}"));
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.header("authorization", format!("Bearer {SECRET_KEY}"));
        }
        if method == "POST" {
            request = request.header("content-type", "application/x-www-form-urlencoded");
        }
        for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        let request = request
            .body(Full::new(Bytes::from(form.to_owned())))
            .unwrap();
        let response = self.http.request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            text: String::from_utf8(bytes.to_vec()).unwrap(),
        }
    }

    /// A new intent over `amount` won.
    pub async fn intent(&self, amount: i64, more: &str) -> Value {
        let form =
            format!("amount={amount}&currency=krw&automatic_payment_methods[enabled]=true&{more}");
        self.post("/v1/payment_intents", &form).await.ok()
    }

    pub async fn confirm(&self, intent: &Value, card: &str) -> Answer {
        let path = format!("/v1/payment_intents/{}/confirm", id(intent));
        self.post(&path, &format!("payment_method={card}")).await
    }

    /// An intent, paid.
    pub async fn paid(&self, amount: i64) -> Value {
        let intent = self.intent(amount, "").await;
        self.confirm(&intent, "pm_card_visa").await.ok()
    }

    pub async fn read(&self, intent: &Value) -> Value {
        self.get(&format!("/v1/payment_intents/{}", id(intent)))
            .await
            .ok()
    }

    pub async fn event_types(&self) -> Vec<String> {
        let events = self.get("/v1/events?limit=100").await.ok();
        let events = events["data"].as_array().unwrap().iter().rev();
        events
            .map(|e| e["type"].as_str().unwrap().to_owned())
            .collect()
    }
}

pub fn id(object: &Value) -> &str {
    object["id"].as_str().unwrap()
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|e| panic!("{e}: {} {}", self.status, self.text))
    }

    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()
    }

    /// Stripe's error object, with its status.
    pub fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        let error = self.json()["error"].clone();
        assert!(
            error["message"].is_string() && error["type"].is_string(),
            "{error}"
        );
        error
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A webhook as it arrived.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub signature: String,
    pub body: Bytes,
}

impl Delivery {
    pub fn event(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// A shop's webhook endpoint. It answers as told, then with 200.
#[derive(Clone)]
pub struct Shop {
    pub url: String,
    received: Arc<Mutex<Vec<Delivery>>>,
    answers: Arc<Mutex<VecDeque<u16>>>,
}

impl Shop {
    pub async fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shop = Self {
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
            received: Arc::default(),
            answers: Arc::default(),
        };
        let taken = shop.clone();
        let router = axum::Router::new().route(
            "/hook",
            axum::routing::post(move |headers: HeaderMap, body: Bytes| {
                let status = taken.take(&headers, body);
                async move { status }
            }),
        );
        tokio::spawn(async move { axum::serve(listener, router).await });
        shop
    }

    fn take(&self, headers: &HeaderMap, body: Bytes) -> StatusCode {
        let signature = headers["stripe-signature"].to_str().unwrap().to_owned();
        self.received
            .lock()
            .unwrap()
            .push(Delivery { signature, body });
        let status = self.answers.lock().unwrap().pop_front().unwrap_or(200);
        StatusCode::from_u16(status).unwrap()
    }

    pub fn will_answer(&self, statuses: &[u16]) {
        self.answers.lock().unwrap().extend(statuses);
    }

    pub fn received(&self) -> Vec<Delivery> {
        self.received.lock().unwrap().clone()
    }

    pub fn types(&self) -> Vec<String> {
        self.received()
            .iter()
            .map(|d| d.event()["type"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Waits until `enough` holds of what was received.
    pub async fn until(&self, enough: impl Fn(&[Delivery]) -> bool) -> Vec<Delivery> {
        for _ in 0..400 {
            let received = self.received();
            if enough(&received) {
                return received;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("still not after 10 s: {:?}", self.types());
    }
}
