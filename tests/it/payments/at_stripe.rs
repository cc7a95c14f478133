//! What is done at Stripe itself, and what we ask of it: each request held against Stripe's own
//! description of them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use http::{Request, StatusCode, header};
use http_body_util::BodyExt;
use sqlx::{Connection, PgConnection};

use crate::harness::eventually;
use crate::harness::server::Server;
use crate::harness::steps::{Buyer, pay};
use crate::harness::stripe_mock::stripe_mock;
use ticketping::platform::upstream::{HttpClient, http_client};

/// A confirmed order: its id, its payment's and its intent's.
async fn bought(server: &Server, buyer: &Buyer, card: &str) -> (String, String, String) {
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    pay(&server.sale, &payment, card).await.expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    (order, payment.str("id"), payment.str("paymentIntentId"))
}

/// The kinds of alarm raised about an order, once there is one.
async fn alarms(server: &Server, order: &str) -> Vec<String> {
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    let begun = Instant::now();
    loop {
        let kinds: Vec<String> =
            sqlx::query_scalar("select kind from payments.alarms where order_id = $1::uuid")
                .bind(order)
                .fetch_all(&mut books)
                .await
                .unwrap();
        if !kinds.is_empty() {
            return kinds;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no alarm");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn refunded(server: &Server, buyer: &Buyer, payment: &str, amount: &serde_json::Value) {
    let (auth, path) = (buyer.auth(), format!("/api/v1/payments/{payment}"));
    let headers = [("authorization", &*auth)];
    (server.sale.api)
        .until(&path, &headers, |reply| {
            reply.body["refundedAmount"] == *amount
        })
        .await;
}

/// Some of it: an alarm, and the order stands. The rest: the order is refunded, whoever sent it,
/// and no more goes back than came in.
#[tokio::test(flavor = "multi_thread")]
async fn a_part_refunded_at_stripe_is_an_alarm_and_the_whole_a_refund() {
    let server = Server::open("2", "60s", &[]).await;
    for (buyer, rest_at_stripe) in server.sale.buyers.iter().zip([true, false]) {
        let (order, payment, intent) = bought(&server, buyer, "pm_card_visa").await;
        server.refund_at_stripe(&intent, Some(1_000)).await;
        refunded(&server, buyer, &payment, &1_000.into()).await;
        assert_eq!(alarms(&server, &order).await, ["REFUNDED_AT_STRIPE"]);
        assert_eq!(
            server.order(buyer, &order).await.body["status"],
            "CONFIRMED"
        );
        if rest_at_stripe {
            server.refund_at_stripe(&intent, None).await;
        } else {
            server.cancel(buyer, &order).await.expect(200);
        }
        let found = server.until_order(buyer, &order, "REFUNDED").await;
        refunded(&server, buyer, &payment, &found.body["amount"]).await;
        let back = server.refunds(&intent).await;
        let back: i64 = back.iter().map(|one| one["amount"].as_i64().unwrap()).sum();
        assert_eq!(found.body["amount"], back);
    }
}

/// The bank takes the money back without asking: somebody must answer it; the seats stay sold.
#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_is_an_alarm_and_the_order_stands() {
    let server = Server::open("1", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let (order, payment, _) = bought(&server, buyer, "pm_card_createDispute").await;
    assert_eq!(alarms(&server, &order).await, ["DISPUTE"]);
    assert_eq!(
        server.order(buyer, &order).await.body["status"],
        "CONFIRMED"
    );
    let paid = server.payment(buyer, &payment).await.expect(200);
    assert_eq!(paid.body["status"], "SUCCEEDED");
    assert_eq!(paid.body["refundedAmount"], 0);
}

/// Stands between payments and the sandbox, and shows each request to stripe-mock too.
#[derive(Clone)]
struct Between {
    client: HttpClient,
    sandbox: Arc<OnceLock<String>>,
    /// What was asked for, ids left out.
    asked: Arc<Mutex<BTreeSet<String>>>,
    refused: Arc<Mutex<Vec<String>>>,
}

impl Between {
    async fn start() -> (Self, String) {
        let this = Self {
            client: http_client(),
            sandbox: Arc::default(),
            asked: Arc::default(),
            refused: Arc::default(),
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(Self::pass).with_state(this.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (this, url)
    }

    async fn pass(State(this): State<Self>, request: Request<Body>) -> Response {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let to = |base: &str, key: Option<&str>| {
            let mut copy = Request::builder()
                .method(parts.method.clone())
                .uri(format!("{base}{}", parts.uri));
            for (name, value) in &parts.headers {
                if *name != header::HOST && (key.is_none() || *name != header::AUTHORIZATION) {
                    copy = copy.header(name, value);
                }
            }
            if let Some(key) = key {
                copy = copy.header(header::AUTHORIZATION, format!("Bearer {key}"));
            }
            copy.body(Body::from(body.clone())).unwrap()
        };
        let shape: Vec<&str> = (parts.uri.path().split('/'))
            .map(|part| {
                if part.starts_with("pi_") {
                    "{id}"
                } else {
                    part
                }
            })
            .collect();
        let shape = format!("{} {}", parts.method, shape.join("/"));
        let checked = this
            .client
            .request(to(stripe_mock(), Some("sk_test_123")))
            .await
            .unwrap();
        if !checked.status().is_success() {
            let why = checked.into_body().collect().await.unwrap().to_bytes();
            let (why, body) = (
                String::from_utf8_lossy(&why),
                String::from_utf8_lossy(&body),
            );
            let complaint = format!("{shape} {body}: {why}");
            this.refused.lock().unwrap().push(complaint);
        }
        this.asked.lock().unwrap().insert(shape);
        let Some(sandbox) = this.sandbox.get() else {
            let away = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE);
            return away.body(Body::empty()).unwrap();
        };
        let answer = this.client.request(to(sandbox, None)).await.unwrap();
        answer.map(Body::new)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_ours_is_one_that_stripe_takes() {
    let (between, url) = Between::start().await;
    let quick = ("TICKETPING_PAYMENT_RECONCILE_AFTER", "1s");
    let server = Server::open("2", "60s", &[("STRIPE_URL", &url), quick]).await;
    between
        .sandbox
        .set(server.sale.stripe.base.clone())
        .unwrap();
    let [keeps, gives_up] = &server.sale.buyers[..] else {
        panic!("two buyers");
    };
    let (order, payment, intent) = bought(&server, keeps, "pm_card_visa").await;
    server.cancel(keeps, &order).await.expect(200);
    server.until_order(keeps, &order, "REFUNDED").await;
    let amount = server.payment(keeps, &payment).await.expect(200).body["amount"].clone();
    refunded(&server, keeps, &payment, &amount).await;
    assert_eq!(server.refunds(&intent).await.len(), 1);
    let order = server.hold(gives_up).await.str("id");
    let payment = server.begin(gives_up, &order).await.expect(201);
    server
        .payment(gives_up, &payment.str("id"))
        .await
        .expect(200);
    // What stays open is read after a while; the list of events soon after the buyer asked.
    eventually("the intent and the list are read", async || {
        let asked = between.asked.lock().unwrap();
        asked.contains("GET /v1/payment_intents/{id}") && asked.contains("GET /v1/events")
    })
    .await;
    server.cancel(gives_up, &order).await.expect(200);

    assert_eq!(*between.refused.lock().unwrap(), [""; 0]);
    // Its health is asked for too, now and then.
    let asked = between.asked.lock().unwrap().clone();
    for ours in [
        "GET /v1/payment_intents/{id}",
        "GET /v1/refunds",
        "POST /v1/payment_intents",
        "POST /v1/payment_intents/{id}/cancel",
        "POST /v1/refunds",
    ] {
        assert!(asked.contains(ours), "{ours} was not asked: {asked:?}");
    }
}
