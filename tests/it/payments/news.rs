//! Webhooks that are hostile, missing, forged or old, and Stripe's list of events behind them.

use hmac::{Hmac, KeyInit, Mac};
use http::Method;
use serde_json::{Value, json};
use sha2::Sha256;
use sqlx::{Connection, PgConnection};

use super::support::{open_alarm, open_alarms, sold};
use crate::harness::client::Reply;
use crate::harness::eventually;
use crate::harness::process;
use crate::harness::server::Server;
use crate::harness::steps::pay;

const QUICK: (&str, &str) = ("TICKETPING_STRIPE_EVENTS_EVERY", "2s");

/// Sends `body` as Stripe would, signed with `secret`.
pub async fn signed(server: &Server, secret: &str, body: String) -> Reply {
    let now = chrono::Utc::now().timestamp();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{now}.{body}").as_bytes());
    let signature = format!("t={now},v1={}", hex::encode(mac.finalize().into_bytes()));
    let headers = [
        ("content-type", "application/json"),
        ("stripe-signature", &*signature),
    ];
    let path = "/api/v1/payments/webhook";
    server
        .sale
        .api
        .send(Method::POST, path, &headers, body)
        .await
}

fn event(id: &Value, kind: &Value, object: &Value) -> String {
    json!({
        "id": id, "object": "event", "type": kind, "livemode": false, "created": 1_790_000_000,
        "data": {"object": object},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_signed_webhook_holds_is_kept_or_refused_and_never_a_failure() {
    let server = Server::open("1", "60s", &[]).await;
    let secret = server.webhook_secret();
    let (kind, object) = (json!("payment_intent.succeeded"), json!({"id": "pi_x"}));
    let long = "x".repeat(9_000);
    for id in [
        json!("evt_\u{0}"),
        json!(long),
        json!("evt with spaces"),
        json!(""),
        json!(7),
        json!({"id": "evt"}),
        Value::Null,
    ] {
        let reply = signed(&server, &secret, event(&id, &kind, &object)).await;
        reply.problem(400, "INVALID_WEBHOOK");
    }
    for kind in [json!("\u{0}"), json!(long), json!(1), Value::Null] {
        let reply = signed(&server, &secret, event(&json!("evt_1"), &kind, &object)).await;
        reply.problem(400, "INVALID_WEBHOOK");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let huge = r#"{"id":"evt_1","type":"x","created":1e999}"#.to_owned();
    for body in [
        deep,
        huge,
        "[]".to_owned(),
        "null".to_owned(),
        "{".to_owned(),
    ] {
        let reply = signed(&server, &secret, body).await;
        reply.problem(400, "INVALID_WEBHOOK");
    }
    let large = event(&json!("evt_1"), &kind, &json!({"pad": "x".repeat(300_000)}));
    signed(&server, &secret, large)
        .await
        .problem(413, "BODY_TOO_LARGE");

    // Odd contents are kept, and their work ends: none of them is tried for ever.
    let objects = [
        json!({"id": "pi_\u{0}", "object": "payment_intent"}),
        json!({"id": long, "object": "payment_intent", "metadata": {"payment_id": "\u{0}"}}),
        json!({"object": "payment_intent", "id": 5}),
        json!({"payment_intent": "pi_\u{0}", "object": "charge", "amount": 1e300}),
        json!([[]]),
    ];
    let kinds = [
        "payment_intent.succeeded",
        "charge.dispute.created",
        "refund.failed",
        "x\u{7f}",
    ];
    let (mut sent, mut nth) = (0_i64, 0);
    for object in &objects {
        for kind in &kinds[..3] {
            nth += 1;
            let body = event(&json!(format!("evt_odd_{nth}")), &json!(kind), object);
            assert_eq!(signed(&server, &secret, body).await.status, 200, "{object}");
            sent += 1;
        }
    }
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    eventually("all of them are done", async || {
        let done: i64 = sqlx::query_scalar(
            "select count(*) from payments.webhook_events where processed_at is not null
                 and id like 'evt_odd_%'",
        )
        .fetch_one(&mut books)
        .await
        .unwrap();
        done == sent
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn old_webhooks_are_removed_all_of_them() {
    let server = Server::open("1", "60s", &[]).await;
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    sqlx::query(
        "insert into payments.webhook_events (id, type, payload, received_at, processed_at)
         select 'evt_old_' || n, 'x', '{}', now() - interval '20 days', now() - interval '15 days'
         from generate_series(1, 9000) n
         union all select 'evt_young', 'x', '{}', now(), now() - interval '13 days'",
    )
    .execute(&mut books)
    .await
    .unwrap();
    books.close().await.unwrap();
    let server = server.again(&[]).await;
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    eventually("the old ones are gone", async || {
        let left: Vec<String> =
            sqlx::query_scalar("select id from payments.webhook_events limit 2")
                .fetch_all(&mut books)
                .await
                .unwrap();
        left == ["evt_young"]
    })
    .await;
}

/// No webhook comes: what was done at Stripe is noticed all the same, an operator hears of it, and
/// the alarm closes when they come again.
#[tokio::test(flavor = "multi_thread")]
async fn without_webhooks_payments_refunds_and_disputes_are_found_and_their_absence_is_an_alarm() {
    let server = Server::open("4", "60s", &[QUICK]).await;
    let one = sold(&server, &server.sale.buyers[0], "pm_card_visa").await;
    server.faults("webhook_drop").await;
    let two = sold(&server, &server.sale.buyers[1], "pm_card_visa").await;
    server.refund_at_stripe(&one.intent, None).await;
    one.until_order(|order| order["status"] == "REFUNDED").await;
    let disputed = sold(&server, &server.sale.buyers[2], "pm_card_createDispute").await;
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    eventually("the dispute is known", async || {
        let at: bool = sqlx::query_scalar(
            "select disputed_at is not null from payments.payments where id = $1::uuid",
        )
        .bind(&disputed.payment)
        .fetch_one(&mut books)
        .await
        .unwrap();
        at
    })
    .await;
    let alarm = open_alarm(&server, "WEBHOOKS_MISSING").await;
    let detail = alarm["detail"].as_str().unwrap();
    assert!(detail.contains("payment_intent.succeeded"), "{detail}");

    // Everything of every type comes again.
    server.faults("").await;
    server.refund_at_stripe(&two.intent, None).await;
    sold(&server, &server.sale.buyers[3], "pm_card_createDispute").await;
    eventually("the alarm is closed", async || {
        open_alarms(&server, "WEBHOOKS_MISSING").await.is_empty()
    })
    .await;
}

/// A stranger's webhooks are no alarm; those that Stripe knows of are.
#[tokio::test(flavor = "multi_thread")]
async fn refused_signatures_are_an_alarm_only_where_stripe_knows_the_event() {
    let server = Server::open("2", "60s", &[QUICK]).await;
    sold(&server, &server.sale.buyers[0], "pm_card_visa").await;
    let (kind, object) = (json!("payment_intent.succeeded"), json!({"id": "pi_x"}));
    for n in 0..30 {
        let body = event(&json!(format!("evt_stranger_{n}")), &kind, &object);
        let reply = signed(&server, "whsec_of_nobody", body).await;
        reply.problem(400, "INVALID_SIGNATURE");
        tokio::time::sleep(std::time::Duration::from_millis(150)).await;
    }
    assert!(
        open_alarms(&server, "WEBHOOK_SIGNATURES_FAIL")
            .await
            .is_empty()
    );
    server.faults("webhook_forge").await;
    let forged = sold(&server, &server.sale.buyers[1], "pm_card_visa").await;
    let alarm = open_alarm(&server, "WEBHOOK_SIGNATURES_FAIL").await;
    let detail = alarm["detail"].as_str().unwrap();
    assert!(detail.contains("no signature matches"), "{detail}");
    assert!(forged.amount > 0);
    server.faults("").await;
    // The sandbox repeats what it forged, now and then, and each of those counts as refused again:
    // genuine events of the same types keep coming, as they do where the secret was mended.
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    let mended = server.webhook_secret();
    let mut sent = 0;
    eventually("the alarm is closed", async || {
        let kinds: Vec<String> = sqlx::query_scalar(
            "select distinct e.type from payments.webhook_events e
             join payments.webhook_refusals r on r.id = e.id",
        )
        .fetch_all(&mut books)
        .await
        .unwrap();
        for kind in kinds {
            sent += 1;
            let body = event(&json!(format!("evt_mended_{sent}")), &json!(kind), &object);
            signed(&server, &mended, body).await.expect(200);
        }
        open_alarms(&server, "WEBHOOK_SIGNATURES_FAIL")
            .await
            .is_empty()
    })
    .await;
    assert!(sent > 0, "nothing was refused");
}

/// Events of one intent in every order and of odd versions end where the intent is.
#[tokio::test(flavor = "multi_thread")]
async fn a_decline_that_comes_late_does_not_undo_what_came_after_it() {
    let server = Server::open("1", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    // The decline comes seconds after the success.
    server.faults("webhook_delay=2s").await;
    pay(&server.sale, &payment, "pm_card_chargeDeclined")
        .await
        .expect(402);
    server.faults("").await;
    pay(&server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    eventually("the decline has come and is done", async || {
        let done: i64 = sqlx::query_scalar(
            "select count(*) from payments.webhook_events
             where type = 'payment_intent.payment_failed' and processed_at is not null",
        )
        .fetch_one(&mut books)
        .await
        .unwrap();
        done == 1
    })
    .await;
    let seen = server.payment(buyer, &payment.str("id")).await.expect(200);
    assert_eq!(seen.body["status"], "SUCCEEDED");
}

/// `seed --reset` empties no books of real money, whatever else is said.
#[tokio::test(flavor = "multi_thread")]
async fn a_reset_is_refused_where_real_money_is_taken() {
    let server = Server::open("1", "60s", &[]).await;
    let dir = server.dir.to_str().unwrap();
    let reset = [
        "seed",
        "--data-dir",
        dir,
        "--reset",
        "--yes",
        "--users",
        "1",
    ];
    for key in ["sk_live_x", "rk_live_x"] {
        let envs = [("STRIPE_SECRET_KEY", key.to_owned())];
        let (code, _, err) = process::run(&reset, &envs).await;
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("STRIPE_SECRET_KEY is a live key"), "{err}");
    }
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    sqlx::query("update payments.stripe_account set live_since = now()")
        .execute(&mut books)
        .await
        .unwrap();
    let (code, _, err) = process::run(&reset, &[]).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("the books of real money"), "{err}");
    let members: i64 = sqlx::query_scalar("select count(*) from users.users")
        .fetch_one(&mut books)
        .await
        .unwrap();
    assert_eq!(members, 1);
    sqlx::query("update payments.stripe_account set live_since = null")
        .execute(&mut books)
        .await
        .unwrap();
    let (code, out, err) = process::run(&reset, &[]).await;
    assert_eq!(code, 0, "{out}{err}");
}
