//! Money on the real binary and the real sandbox: every captured payment ends in one confirmed
//! order or one full refund, whatever Stripe, the network and the process do.

mod alarms;
mod at_stripe;
pub mod crashes;
mod currencies;
mod disputes;
mod free;
mod limits;
mod mismatch;
mod news;
mod refunds;
mod shared;
pub mod support;

use std::time::{Duration, Instant};

use http::Method;
use sqlx::{Connection, PgConnection};

use crate::harness::eventually;
use crate::harness::server::{Server, pause};
use crate::harness::steps::pay;

/// Nobody is told, but the buyer's page asks: the payment heals and the order is confirmed.
#[tokio::test(flavor = "multi_thread")]
async fn lost_webhooks_are_healed_by_asking_and_by_the_reconciler() {
    let server = Server::open("4", "60s", &[("TICKETPING_PAYMENT_RECONCILE_AFTER", "2s")]).await;
    server.faults("webhook_drop").await;
    for (at, asks) in [(0, true), (1, false)] {
        let buyer = &server.sale.buyers[at];
        let order = server.hold(buyer).await.str("id");
        let payment = server.begin(buyer, &order).await.expect(201);
        pay(&server.sale, &payment, "pm_card_visa")
            .await
            .expect(200);
        if asks {
            // One poll is enough: it leads to a read of Stripe's list, soon after.
            server.payment(buyer, &payment.str("id")).await.expect(200);
        }
        server.until_order(buyer, &order, "CONFIRMED").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_twice_late_out_of_order_forged_or_of_another_version_confirm_once() {
    let server = Server::open("8", "60s", &[]).await;
    let faults = [
        "webhook_duplicate=3",
        "webhook_reorder",
        "webhook_delay=1s",
        "webhook_lose=1",
        "webhook_two_signatures",
        "skew",
    ];
    for (buyer, fault) in server.sale.buyers.iter().zip(faults) {
        server.faults(fault).await;
        let order = server.hold(buyer).await.str("id");
        let payment = server.begin(buyer, &order).await.expect(201);
        pay(&server.sale, &payment, "pm_card_chargeDeclined")
            .await
            .expect(402);
        pay(&server.sale, &payment, "pm_card_visa")
            .await
            .expect(200);
        server.until_order(buyer, &order, "CONFIRMED").await;
        let intents = server.intents(&order).await;
        assert_eq!(intents.len(), 1, "{fault}");
        assert_eq!(
            intents[0]["amount_received"], payment.body["amount"],
            "{fault}"
        );
        assert_eq!(
            intents[0]["metadata"]["payment_id"], payment.body["id"],
            "{fault}"
        );
        assert!(
            server
                .refunds(intents[0]["id"].as_str().unwrap())
                .await
                .is_empty(),
            "{fault}"
        );
    }
    // A forged one confirms nothing.
    server.faults("").await;
    let buyer = &server.sale.buyers[6];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    let mut intent = server.intents(&order).await[0].clone();
    intent["status"] = "succeeded".into();
    intent["amount_received"] = payment.body["amount"].clone();
    let forged = serde_json::json!({
        "id": "evt_forged", "object": "event", "type": "payment_intent.succeeded",
        "livemode": false, "created": chrono::Utc::now().timestamp(), "data": {"object": intent},
    });
    let reply = news::signed(&server, "whsec_of_nobody", forged.to_string()).await;
    reply.problem(400, "INVALID_SIGNATURE");
    pause(1.5).await;
    assert_eq!(
        server.order(buyer, &order).await.body["status"],
        "PENDING_PAYMENT"
    );
}

/// Stripe's answer to the creation is lost, or is a failure that its key repeats for ever: the
/// buyer gets one payment that can be paid, and pays once.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_answer_at_creation_leads_to_one_payable_intent() {
    let server = Server::open("6", "60s", &[]).await;
    for (at, fault) in [
        "create/error_after",
        "create/error_before",
        "create/error_stored",
    ]
    .iter()
    .enumerate()
    {
        let buyer = &server.sale.buyers[at];
        let order = server.hold(buyer).await.str("id");
        server.faults(fault).await;
        let first = server.begin_once(buyer, &order).await;
        assert!(
            matches!(first.status.as_u16(), 201 | 503),
            "{fault}: {}",
            first.text
        );
        server.faults("").await;
        // 503 is a right answer for as long as another try is under way.
        let (auth, wish) = (buyer.auth(), serde_json::json!({"orderId": order}));
        let headers = [("authorization", &*auth)];
        let begin = async || {
            let path = "/api/v1/payments";
            let asked = server.sale.api.ask(Method::POST, path, &headers, &wish);
            asked.await.expect(201)
        };
        let payment = begin().await;
        let again = begin().await;
        assert_eq!(again.body["id"], payment.body["id"], "{fault}");
        assert_eq!(
            again.body["clientSecret"], payment.body["clientSecret"],
            "{fault}"
        );
        pay(&server.sale, &payment, "pm_card_visa")
            .await
            .expect(200);
        server.until_order(buyer, &order, "CONFIRMED").await;
        let captured = server.intents(&order).await;
        let captured: Vec<_> = captured
            .iter()
            .filter(|one| one["status"] == "succeeded")
            .collect();
        assert_eq!(captured.len(), 1, "{fault}");
        // Stripe keeps a stored failure under its key for ever; any other answer is found again.
        if *fault != "create/error_stored" {
            let intents = server.intents(&order).await;
            assert_eq!(intents.len(), 1, "{fault}: {intents:?}");
        }
    }
}

/// The order ends while Stripe keeps a failure under the attempt's key: asking under that key again
/// shows nothing, ever, and nobody was given a secret. So nothing is left to do.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_stripe_keeps_failing_is_cleaned_up_with_its_order() {
    let server = Server::open("1", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    server.faults("create/error_stored").await;
    server.begin_once(buyer, &order).await.expect(503);
    let cancelled = server.cancel(buyer, &order).await.expect(200);
    assert_eq!(cancelled.body["status"], "CANCELLED");
    server.faults("").await;
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    eventually("the payment is cleaned up", async || {
        let (state, cleanup): (String, bool) = sqlx::query_as(
            "select state, cleanup from payments.payments where order_id = $1::uuid",
        )
        .bind(&order)
        .fetch_one(&mut books)
        .await
        .unwrap();
        assert_eq!(state, "CANCELLED");
        !cleanup
    })
    .await;
    let (code, report) = server.audit(true).await;
    assert_eq!(code, 0, "{report}");
}

/// The money arrives while the hold has ended: either the same seats, or all of it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_payment_still_processing_when_the_hold_ends_is_not_lost() {
    let server = Server::open("3", "3s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    server.faults("confirm/processing=8s").await;
    pay(&server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    server
        .cancel(buyer, &order)
        .await
        .problem(409, "PAYMENT_IN_PROGRESS");
    server.until_order(buyer, &order, "CONFIRMED").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_order_cannot_be_paid_and_a_confirmed_one_is_refunded_once() {
    let server = Server::open("5", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    assert_eq!(
        server.cancel(buyer, &order).await.expect(200).body["status"],
        "CANCELLED"
    );
    assert!(
        !pay(&server.sale, &payment, "pm_card_visa")
            .await
            .status
            .is_success()
    );
    let again = server.begin_once(buyer, &order).await;
    assert_eq!(again.status.as_u16(), 409, "{}", again.text);

    // Refunds meet every kind of trouble; one refund is made in the end.
    let troubles = [
        "refund/error_after",
        "refund/error_before=400",
        "refund/error_stored",
    ];
    for (buyer, trouble) in server.sale.buyers[1..].iter().zip(troubles) {
        let order = server.hold(buyer).await.str("id");
        let payment = server.begin(buyer, &order).await.expect(201);
        pay(&server.sale, &payment, "pm_card_visa")
            .await
            .expect(200);
        server.until_order(buyer, &order, "CONFIRMED").await;
        server.faults(trouble).await;
        server.cancel(buyer, &order).await.expect(200);
        pause(2.0).await;
        server.faults("").await;
        let auth = buyer.auth();
        let path = format!("/api/v1/payments/{}", payment.str("id"));
        let headers = [("authorization", &*auth)];
        server
            .sale
            .api
            .until(&path, &headers, |reply| reply.body["status"] == "REFUNDED")
            .await;
        server.until_order(buyer, &order, "REFUNDED").await;
        let refunds = server.refunds(&payment.str("paymentIntentId")).await;
        assert_eq!(refunds.len(), 1, "{trouble}: {refunds:?}");
        assert_eq!(refunds[0]["amount"], payment.body["amount"], "{trouble}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_made_at_stripe_reaches_the_order() {
    let server = Server::open("2", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    pay(&server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    server
        .refund_at_stripe(&payment.str("paymentIntentId"), None)
        .await;
    server.until_order(buyer, &order, "REFUNDED").await;
    assert_eq!(
        server.payment(buyer, &payment.str("id")).await.body["status"],
        "REFUNDED"
    );
}

/// Stripe never sends it again: it must be there, though the process dies with its answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_was_answered_is_kept_whatever_dies() {
    let mut server = Server::open("1", "60s", &[]).await;
    let secret = server.webhook_secret();
    assert_eq!(server.webhook("evt_kept", &secret).await, 200);
    let database = server.database_url();
    server.process.take().unwrap().kill().await;
    let mut books = PgConnection::connect(&database).await.unwrap();
    let kept: Vec<String> = sqlx::query_scalar("select id from payments.webhook_events")
        .fetch_all(&mut books)
        .await
        .unwrap();
    assert_eq!(kept, ["evt_kept"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_secrets_count_while_they_are_rotated_and_one_afterwards() {
    let (old, rotating) = ("whsec_before", "STRIPE_WEBHOOK_SECRET_PREVIOUS");
    let server = Server::open("1", "60s", &[(rotating, old)]).await;
    let new = server.webhook_secret();
    assert_eq!(server.webhook("evt_1", old).await, 200);
    assert_eq!(server.webhook("evt_2", &new).await, 200);
    assert_eq!(server.webhook("evt_3", "whsec_of_nobody").await, 400);
    let server = server.again(&[]).await;
    assert_eq!(server.webhook("evt_4", old).await, 400);
    assert_eq!(server.webhook("evt_5", &new).await, 200);
}

/// While Stripe does not answer, the intent may yet be paid, so nobody is told of its end and the
/// seats stay held.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_payment_is_said_once_stripe_has_said_it() {
    let server = Server::open("1", "1s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    server.begin(buyer, &order).await.expect(201);
    server.faults("cancel/error_before").await;
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    let mut look = async || -> (bool, String, i64) {
        sqlx::query_as(
            "select cancel_requested_at is not null, state, (select count(*) from payments.outbox
                 where type = 'payment.cancelled' and key = order_id::text)
             from payments.payments where order_id = $1::uuid",
        )
        .bind(&order)
        .fetch_one(&mut books)
        .await
        .unwrap()
    };
    let begun = Instant::now();
    let asked = loop {
        let seen = look().await;
        if seen.0 {
            break seen;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "never asked");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!((asked.1.as_str(), asked.2), ("REQUIRES_PAYMENT", 0));
    assert_eq!(
        server.order(buyer, &order).await.body["status"],
        "PENDING_PAYMENT"
    );
    server.faults("").await;
    server.until_order(buyer, &order, "EXPIRED").await;
    let done = look().await;
    assert_eq!((done.1.as_str(), done.2), ("CANCELLED", 1));
}

/// From the card to CONFIRMED nobody waits for a poll.
#[tokio::test(flavor = "multi_thread")]
async fn confirmation_is_woken_and_not_polled() {
    let server = Server::open("8", "60s", &[]).await;
    let mut waits = Vec::new();
    for buyer in &server.sale.buyers {
        let order = server.hold(buyer).await.str("id");
        let payment = server.begin(buyer, &order).await.expect(201);
        let begun = Instant::now();
        pay(&server.sale, &payment, "pm_card_visa")
            .await
            .expect(200);
        while server.order(buyer, &order).await.body["status"] != "CONFIRMED" {
            assert!(begun.elapsed() < Duration::from_secs(60));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        waits.push(begun.elapsed());
    }
    waits.sort();
    println!("card to CONFIRMED: {waits:?}");
    // Three polls of a second each stand behind the wake-ups on this way.
    assert!(waits[2] < Duration::from_millis(800), "{waits:?}");
}
