//! Stripe's rate limits, and what it refuses: what buyers, operators and Stripe itself see of them.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use http::Method;
use serde_json::Value;

use super::support::{open_alarm, open_alarms};
use crate::harness::eventually;
use crate::harness::server::Server;
use crate::harness::steps::pay;

/// Calls that the sandbox counted for an endpoint, and those that it refused with 429.
pub async fn calls(server: &Server, endpoint: &str) -> (u64, u64) {
    let shown = sandbox_limits(server, Method::GET, "").await;
    let one = &shown["endpoints"][endpoint];
    (
        one["calls"].as_u64().unwrap_or(0),
        one["limited"].as_u64().unwrap_or(0),
    )
}

async fn sandbox_limits(server: &Server, method: Method, body: &str) -> Value {
    let headers = server.stripe_headers();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let stripe = &server.sale.stripe;
    stripe
        .send(method, "/_sandbox/limits", &headers, body.to_owned())
        .await
        .expect(200)
        .body
}

const CREATE: &str = "POST /v1/payment_intents";
const READ: &str = "GET /v1/payment_intents/{id}";

/// A rush above the limit: one create for each sale, no read, no 429, and nobody waits long for
/// what the limit allows, however often buyers look.
#[tokio::test(flavor = "multi_thread")]
async fn a_rush_stays_within_the_limits_with_one_create_and_no_read_a_sale() {
    let limits = [
        ("TICKETPING_STRIPE_RATE", "12/12"),
        // On a busy machine calls bunch on their way, which is nobody's doing.
        ("TICKETPING_STRIPE_SANDBOX_RATE", "16/16"),
    ];
    let server = Server::open("24", "60s", &limits).await;
    let orders = join_all(server.sale.buyers.iter().map(|buyer| server.hold(buyer))).await;
    sandbox_limits(&server, Method::POST, "rate=16/16").await;
    let begun = Instant::now();
    let sales = server
        .sale
        .buyers
        .iter()
        .zip(&orders)
        .map(|(buyer, order)| {
            let server = &server;
            async move {
                // A machine under load answers 503 now and then; a client tries again.
                let mut tries = 0;
                let payment = loop {
                    let reply = server.begin_once(buyer, &order.str("id")).await;
                    if reply.status == 201 {
                        break reply;
                    }
                    assert_eq!(reply.status, 503, "{}", reply.text);
                    tries += 1;
                    assert!(tries < 60, "{}", reply.text);
                    tokio::time::sleep(Duration::from_millis(300)).await;
                };
                pay(&server.sale, &payment, "pm_card_visa")
                    .await
                    .expect(200);
                let charged = Instant::now();
                while server.order(buyer, &order.str("id")).await.body["status"] != "CONFIRMED" {
                    server.payment(buyer, &payment.str("id")).await.expect(200);
                    assert!(charged.elapsed() < Duration::from_secs(60));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                (charged.elapsed(), tries)
            }
        });
    let done = join_all(sales).await;
    let again: u64 = done.iter().map(|(_, tries)| tries).sum();
    let mut waits: Vec<Duration> = done.into_iter().map(|(waited, _)| waited).collect();
    waits.sort();
    println!(
        "charge to CONFIRMED: {waits:?}; all in {:?}",
        begun.elapsed()
    );
    assert!(
        waits[waits.len() * 9 / 10] < Duration::from_secs(10),
        "{waits:?}"
    );
    let shown = sandbox_limits(&server, Method::GET, "").await;
    let (creates, limited) = calls(&server, CREATE).await;
    assert!((24..=24 + again).contains(&creates), "{shown}");
    assert_eq!(limited, 0, "{shown}");
    assert_eq!(calls(&server, READ).await, (0, 0), "{shown}");
    let endpoints = shown["endpoints"].as_object().unwrap();
    assert!(endpoints.values().all(|one| one["limited"] == 0), "{shown}");
}

/// Creates wait: an operator hears of it and which admission rate would help, until it is over.
#[tokio::test(flavor = "multi_thread")]
async fn creates_that_wait_are_an_alarm_with_an_admission_rate() {
    let server = Server::open("14", "60s", &[("TICKETPING_STRIPE_RATE", "2")]).await;
    let orders = join_all(server.sale.buyers.iter().map(|buyer| server.hold(buyer))).await;
    let begin = |(buyer, order): (_, &crate::harness::client::Reply)| {
        let id = order.str("id");
        let server = &server;
        async move { server.begin_once(buyer, &id).await }
    };
    let answers = join_all(server.sale.buyers.iter().zip(&orders).map(begin)).await;
    assert!(
        answers
            .iter()
            .all(|one| [201, 503].contains(&one.status.as_u16()))
    );
    let alarm = open_alarm(&server, "STRIPE_CREATES_SLOW").await;
    assert!(
        alarm["detail"]
            .as_str()
            .unwrap()
            .contains("admissionsPerMinute to at most 108"),
        "{alarm}"
    );
    let admin = server.admin();
    let overview = server
        .sale
        .api
        .get("/admin/v1/overview", &[("authorization", &admin)])
        .await
        .expect(200);
    assert_eq!(overview.body["payments"]["createsPerSecondMax"], 2);
    assert!(overview.body["payments"]["createWaitMs"].as_u64().unwrap() > 2_000);
    let stores = overview.body["stores"].as_array().unwrap();
    let stripe = stores.iter().find(|one| one["name"] == "stripe").unwrap();
    assert_eq!(stripe["state"], "UP", "{stripe}");
}

/// Four clicks at once: one create, one answer; Stripe is not away because it was asked twice.
#[tokio::test(flavor = "multi_thread")]
async fn clicks_at_the_same_moment_get_the_same_answer() {
    let server = Server::open("2", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    server.faults("create/delay=1500ms").await;
    sandbox_limits(&server, Method::POST, "").await;
    let clicks = join_all((0..4).map(|_| server.begin_once(buyer, &order))).await;
    let first = clicks[0].body.clone();
    assert!(first["clientSecret"].is_string(), "{first}");
    for click in clicks {
        assert_eq!(click.status, 201, "{}", click.text);
        assert_eq!(click.body, first);
    }
    assert_eq!(calls(&server, CREATE).await.0, 1);
    // Refused half the time for a key in use or the rate: waited out, never "away".
    for fault in ["create/error_before=409@0.6", "create/error_before=429@0.6"] {
        server.faults(fault).await;
        let buyer = &server.sale.buyers[1];
        let order = server.hold(buyer).await.str("id");
        server.begin(buyer, &order).await.expect(201);
        server.faults("").await;
        server.cancel(buyer, &order).await.expect(200);
    }
    let admin = server.admin();
    let headers = [("authorization", &*admin)];
    let overview = server.sale.api.get("/admin/v1/overview", &headers).await;
    let stores = overview.body["stores"].as_array().unwrap();
    let stripe = stores.iter().find(|one| one["name"] == "stripe").unwrap();
    assert_eq!(stripe["state"], "UP", "{stripe}");
}

/// Stripe refuses for good: told once and truly, never asked again, the order closed, an alarm.
/// Our key refused: nothing ends, an alarm stands until the key is mended.
#[tokio::test(flavor = "multi_thread")]
async fn what_stripe_refuses_for_good_is_final_and_a_refused_key_is_not() {
    let quick = [("TICKETPING_PAYMENT_RECONCILE_AFTER", "1s")];
    let server = Server::open("3", "60s", &quick).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    server.faults("create/error_before=400").await;
    sandbox_limits(&server, Method::POST, "").await;
    for _ in 0..2 {
        let refused = server.begin_once(buyer, &order).await;
        refused.problem(409, "PAYMENT_PROVIDER_REFUSED");
    }
    server.until_order(buyer, &order, "CANCELLED").await;
    let alarm = open_alarm(&server, "PAYMENT_CREATE_REFUSED").await;
    assert_eq!(alarm["orderId"], order.as_str());
    server
        .begin_once(buyer, &order)
        .await
        .problem(409, "PAYMENT_PROVIDER_REFUSED");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(calls(&server, CREATE).await.0, 1, "it was asked again");

    for (buyer, status) in server.sale.buyers[1..].iter().zip([401, 403]) {
        let order = server.hold(buyer).await.str("id");
        server
            .faults(&format!("create/error_before={status}"))
            .await;
        let away = server.begin_once(buyer, &order).await;
        assert_eq!(away.status, 503, "{}", away.text);
        let alarm = open_alarm(&server, "STRIPE_KEY_REFUSED").await;
        let detail = alarm["detail"].as_str().unwrap();
        assert!(detail.contains(&status.to_string()), "{detail}");
        server.faults("").await;
        server.begin(buyer, &order).await.expect(201);
        eventually("the alarm is closed", async || {
            open_alarms(&server, "STRIPE_KEY_REFUSED").await.is_empty()
        })
        .await;
    }
}

/// Only what settles at once is offered, and that is set for the account.
#[tokio::test(flavor = "multi_thread")]
async fn payment_methods_are_those_that_settle_at_once_unless_set_otherwise() {
    let server = Server::open("2", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    server.begin(buyer, &order).await.expect(201);
    let intent = &server.intents(&order).await[0];
    assert_eq!(intent["automatic_payment_methods"], Value::Null, "{intent}");
    assert_eq!(intent["payment_method_types"], serde_json::json!(["card"]));
    let methods = ("TICKETPING_STRIPE_PAYMENT_METHODS", "automatic");
    let server = server.again(&[methods]).await;
    let buyer = &server.sale.buyers[1];
    let order = server.hold(buyer).await.str("id");
    server.begin(buyer, &order).await.expect(201);
    let intent = &server.intents(&order).await[0];
    assert_eq!(
        intent["automatic_payment_methods"]["enabled"], true,
        "{intent}"
    );
}

/// The sandbox answers above its limits as Stripe documents it.
#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_imposes_limits_as_stripe_documents_them() {
    let server = Server::open("1", "60s", &[]).await;
    let headers = server.stripe_headers();
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let stripe = &server.sale.stripe;
    let bad = stripe
        .send(Method::POST, "/_sandbox/limits", &headers, "rate=x")
        .await;
    assert_eq!(bad.status, 400, "{}", bad.text);
    sandbox_limits(&server, Method::POST, "rate=3/5").await;
    let mut reasons = Vec::new();
    for path in [
        "/v1/charges",
        "/v1/charges",
        "/v1/charges",
        "/v1/charges",
        "/v1/events",
        "/v1/refunds",
        "/v1/refunds",
    ] {
        let reply = stripe.get(path, &headers).await;
        if reply.status == 429 {
            assert_eq!(reply.body["error"]["code"], "rate_limit");
            assert_eq!(reply.headers["stripe-should-retry"], "true");
            let reason = &reply.headers["stripe-rate-limited-reason"];
            reasons.push(reason.to_str().unwrap().to_owned());
        }
    }
    assert_eq!(reasons, ["endpoint-rate", "global-rate"]);
    eventually("the second is over", async || {
        stripe.get("/v1/charges", &headers).await.status == 200
    })
    .await;
}
