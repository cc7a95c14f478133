//! Every captured payment ends in one confirmed order or goes back.

use serde_json::json;
use uuid::Uuid;

use super::world::World;
use crate::harness;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_confirms_once_however_often_it_is_told() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    let begun = world.begin_payment(order, &buyer).await;
    assert_eq!(begun.body["amount"], 300_000);
    assert_eq!(begun.body["seatLabels"][0], "Stalls, row A, seat 1");
    let (event, payment) = (Uuid::now_v7(), Uuid::now_v7());
    for id in [event, event, Uuid::now_v7()] {
        assert!(world.paid(id, order, payment).await);
    }
    assert_eq!(world.row(order).await.0, "CONFIRMED");
    assert_eq!(world.said("order.confirmed", order).await, 1);
    assert_eq!(world.said("refund.requested", order).await, 0);
    assert_eq!(world.bytes().await, "2200");
    assert_eq!(world.remaining().await, 2);
    let again = world.begin_payment(order, &buyer).await;
    assert_eq!(again.code(), "ORDER_NOT_PAYABLE");
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paying_renews_the_hold_once() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await;
    let id = order.id();
    sqlx::query("update orders set expires_at = now() + interval '5 seconds' where id = $1")
        .bind(id)
        .execute(&world.pool)
        .await
        .unwrap();
    let first = world.begin_payment(id, &buyer).await.body["expiresAt"].clone();
    let until: chrono::DateTime<chrono::Utc> = first.as_str().unwrap().parse().unwrap();
    assert!(
        until > chrono::Utc::now() + chrono::Duration::seconds(100),
        "{until}"
    );
    assert_eq!(
        world.begin_payment(id, &buyer).await.body["expiresAt"],
        first
    );
    let stranger = world.admitted().await;
    assert_eq!(
        world.begin_payment(id, &stranger).await.status.as_u16(),
        404
    );
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_is_not_paid_ends_and_frees_its_seats() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    world.lapse(order).await;
    assert_eq!(world.row(order).await.0, "EXPIRED");
    assert_eq!(world.said("order.expired", order).await, 1);
    assert_eq!(world.bytes().await, "0000");
    assert_eq!(
        world.begin_payment(order, &buyer).await.code(),
        "HOLD_EXPIRED"
    );
    world.consistent().await;
}

/// While a payment may still succeed, the seats stay; they go when it is final.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_that_is_being_paid_waits_for_what_is_final() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    world.begin_payment(order, &buyer).await;
    world.lapse(order).await;
    world.lapse(order).await;
    assert_eq!(world.row(order).await.0, "PAYING");
    assert_eq!(world.said("payment.cancel.requested", order).await, 1);
    assert_eq!(world.bytes().await, "1000", "still held");
    assert_eq!(
        world.begin_payment(order, &buyer).await.code(),
        "HOLD_EXPIRED"
    );
    world.consistent().await;
    let data = json!({ "orderId": order, "paymentId": null });
    assert!(world.hear(Uuid::now_v7(), "payment.cancelled", &data).await);
    assert_eq!(world.row(order).await.0, "EXPIRED");
    assert_eq!(world.bytes().await, "0000");
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_payments_has_a_bound() {
    let mut config = super::world::config();
    config.payment_wait_max = std::time::Duration::from_millis(10);
    let world = World::with(1, 2, config).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    world.begin_payment(order, &buyer).await;
    world.lapse(order).await;
    assert_eq!(world.row(order).await.0, "PAYING");
    harness::eventually("nobody waits any more", async || {
        world.state.sweep().await.unwrap();
        world.row(order).await.0 != "PAYING"
    })
    .await;
    let (state, _, reason) = world.row(order).await;
    assert_eq!(
        (state.as_str(), reason.as_deref()),
        ("EXPIRED", Some("PAYMENT_UNANSWERED"))
    );
    assert_eq!(world.bytes().await, "00");
    // And the payment that succeeded after all is not lost.
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    assert_eq!(world.row(order).await.0, "CONFIRMED");
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paid_too_late_takes_the_same_seats_again() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[1, 2]).await.id();
    world.lapse(order).await;
    let (event, payment) = (Uuid::now_v7(), Uuid::now_v7());
    for _ in 0..2 {
        assert!(world.paid(event, order, payment).await);
    }
    assert_eq!(world.row(order).await.0, "CONFIRMED");
    assert_eq!(world.said("order.confirmed", order).await, 1);
    assert_eq!(world.said("refund.requested", order).await, 0);
    assert_eq!(world.bytes().await, "0220");
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paid_too_late_and_the_seats_are_gone_goes_back_and_says_why() {
    let world = World::new(1, 4).await;
    let (slow, quick) = (world.admitted().await, world.admitted().await);
    let late = world.order_seats(&slow, &[1, 2]).await.id();
    world.lapse(late).await;
    let won = world.order_seats(&quick, &[2]).await.id();
    let (event, payment) = (Uuid::now_v7(), Uuid::now_v7());
    for id in [event, event, Uuid::now_v7()] {
        assert!(world.paid(id, late, payment).await);
    }
    let path = format!("/api/v1/orders/{late}");
    let seen = world.call("GET", &path, &slow.token, None).await.body;
    assert_eq!(seen["status"], "EXPIRED");
    assert_eq!(seen["statusReason"], "PAID_TOO_LATE_SEATS_GONE");
    assert_eq!(
        seen["refund"],
        json!({ "status": "REQUESTED", "amount": 300_000 })
    );
    assert_eq!(world.said("refund.requested", late).await, 1);
    assert_eq!(world.bytes().await, "0010");
    let data = json!({ "paymentId": payment, "orderId": late, "amount": 300_000, "full": true });
    assert!(world.hear(Uuid::now_v7(), "payment.refunded", &data).await);
    let seen = world.call("GET", &path, &slow.token, None).await.body;
    assert_eq!(
        (&seen["status"], &seen["refund"]["status"]),
        (&json!("EXPIRED"), &json!("DONE"))
    );
    assert!(world.paid(Uuid::now_v7(), won, Uuid::now_v7()).await);
    world.consistent().await;
}

/// Redis forgot that the seats were sold; Postgres did not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paid_too_late_and_redis_is_wrong_goes_back_all_the_same() {
    use redis::AsyncCommands;
    let world = World::new(1, 4).await;
    let (slow, quick) = (world.admitted().await, world.admitted().await);
    let late = world.order_seats(&slow, &[1]).await.id();
    world.lapse(late).await;
    world.order_seats(&quick, &[1]).await;
    let mut redis = world.redis.clone();
    let seats = world.key(&format!("seats:{}", world.schedule));
    let _: usize = redis.setrange(&seats, 0, "0000").await.unwrap();
    assert!(world.paid(Uuid::now_v7(), late, Uuid::now_v7()).await);
    assert_eq!(world.row(late).await.0, "EXPIRED");
    assert_eq!(world.said("refund.requested", late).await, 1);
    world.state.repair(world.performance).await.unwrap();
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paid_too_late_and_the_limit_is_used_up_goes_back() {
    let world = World::new(1, 8).await;
    let buyer = world.admitted().await;
    let late = world.order_seats(&buyer, &[0, 1]).await.id();
    world.lapse(late).await;
    world.order_seats(&buyer, &[4, 5, 6]).await;
    assert!(world.paid(Uuid::now_v7(), late, Uuid::now_v7()).await);
    let (state, _, reason) = world.row(late).await;
    assert_eq!(
        (state.as_str(), reason.as_deref()),
        ("EXPIRED", Some("PAID_TOO_LATE_LIMIT_REACHED"))
    );
    assert_eq!(world.said("refund.requested", late).await, 1);
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_for_a_cancelled_order_or_a_second_payment_goes_back() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    let answer = world.cancel(order, &buyer).await;
    assert_eq!(answer.body["status"], "CANCELLED");
    assert_eq!(world.bytes().await, "0000");
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    assert_eq!(world.row(order).await.0, "CANCELLED");
    assert_eq!(world.said("refund.requested", order).await, 1);

    let twice = world.order_seats(&buyer, &[1]).await.id();
    for _ in 0..2 {
        assert!(world.paid(Uuid::now_v7(), twice, Uuid::now_v7()).await);
    }
    assert_eq!(world.row(twice).await.0, "CONFIRMED");
    assert_eq!(world.said("refund.requested", twice).await, 1);

    let wrong = world.order_seats(&buyer, &[2]).await.id();
    let data =
        json!({ "paymentId": Uuid::now_v7(), "orderId": wrong, "amount": 1, "currency": "krw" });
    assert!(world.hear(Uuid::now_v7(), "payment.succeeded", &data).await);
    assert_eq!(world.row(wrong).await.0, "CANCELLED");
    assert_eq!(world.said("refund.requested", wrong).await, 1);
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_confirmed_order_is_refunded_and_its_seats_sold_again() {
    let world = World::new(1, 4).await;
    let (first, second) = (world.admitted().await, world.admitted().await);
    let order = world.order_seats(&first, &[0, 1]).await.id();
    let payment = Uuid::now_v7();
    assert!(world.paid(Uuid::now_v7(), order, payment).await);
    assert_eq!(world.remaining().await, 2);
    for _ in 0..2 {
        let answer = world.cancel(order, &first).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["status"]),
            (200, &json!("REFUNDED"))
        );
    }
    assert_eq!(world.said("refund.requested", order).await, 1);
    assert_eq!(world.said("order.refunded", order).await, 1);
    assert_eq!(world.remaining().await, 4);
    let again = world.order_seats(&second, &[0]).await.id();
    assert!(world.paid(Uuid::now_v7(), again, Uuid::now_v7()).await);
    // News of the first payment that come late touch nobody's seat.
    assert!(world.paid(Uuid::now_v7(), order, payment).await);
    let data = json!({ "paymentId": payment, "orderId": order, "amount": 300_000, "full": true });
    assert!(world.hear(Uuid::now_v7(), "payment.refunded", &data).await);
    assert_eq!(world.bytes().await, "2000");
    assert_eq!(world.said("refund.requested", order).await, 1);
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_made_at_stripe_reaches_the_order() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    let payment = Uuid::now_v7();
    assert!(world.paid(Uuid::now_v7(), order, payment).await);
    let part = json!({ "paymentId": payment, "orderId": order, "amount": 1, "full": false });
    assert!(world.hear(Uuid::now_v7(), "payment.refunded", &part).await);
    assert_eq!(world.row(order).await.0, "CONFIRMED");
    let full = json!({ "paymentId": payment, "orderId": order, "amount": 150_000, "full": true });
    assert!(world.hear(Uuid::now_v7(), "payment.refunded", &full).await);
    assert_eq!(world.row(order).await.0, "REFUNDED");
    assert_eq!(world.said("refund.requested", order).await, 0);
    assert_eq!(world.said("order.refunded", order).await, 1);
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_being_paid_is_cancelled_only_with_its_payment() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    world.begin_payment(order, &buyer).await;
    for busy in ["PROCESSING", "SUCCEEDED"] {
        *world.payments.lock().unwrap() = busy;
        let answer = world.cancel(order, &buyer).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (409, "PAYMENT_IN_PROGRESS")
        );
        assert_eq!(world.row(order).await.0, "PAYING");
    }
    *world.payments.lock().unwrap() = "NONE";
    assert_eq!(
        world.cancel(order, &buyer).await.body["status"],
        "CANCELLED"
    );
    assert_eq!(world.bytes().await, "0000");
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_to_the_show_nothing_is_cancelled() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    sqlx::query("update orders set starts_at = now() + interval '23 hours'")
        .execute(&world.pool)
        .await
        .unwrap();
    let answer = world.cancel(order, &buyer).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (409, "CANCELLATION_CLOSED")
    );
    world.consistent().await;
}

/// Each event tells the whole state under a version: what is older, or comes twice, changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn older_news_of_refunds_and_disputes_change_nothing() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    let (payment, refund) = (Uuid::now_v7(), Uuid::now_v7());
    assert!(world.paid(Uuid::now_v7(), order, payment).await);
    let refunded = |version: i64, status: &str, amount: i64| {
        json!({
            "paymentId": payment, "orderId": order, "amount": amount, "captured": 150_000,
            "full": false, "version": version, "refunds": [{
                "refundId": refund, "status": status, "amount": 1_000,
                "reason": "REFUNDED_AT_STRIPE", "createdAt": "2026-11-26T00:00:00Z",
            }],
        })
    };
    let path = format!("/api/v1/orders/{order}");
    let shown = async || {
        let seen = world.call("GET", &path, &buyer.token, None).await.body;
        let status = seen["refunds"][0]["status"].as_str().unwrap_or_default();
        (status.to_owned(), seen["disputed"] == true)
    };
    for (version, status, amount, expected) in [
        (2, "SUCCEEDED", 1_000, "SUCCEEDED"),
        (1, "PENDING", 0, "SUCCEEDED"),
        (3, "FAILED", 0, "FAILED"),
        (2, "SUCCEEDED", 1_000, "FAILED"),
        (3, "FAILED", 0, "FAILED"),
    ] {
        let data = refunded(version, status, amount);
        assert!(world.hear(Uuid::now_v7(), "payment.refunded", &data).await);
        assert_eq!(shown().await.0, expected, "{version}");
    }
    for (version, state, disputed) in [
        (2, "OPEN", true),
        (1, "INQUIRY", true),
        (3, "WON", false),
        (2, "OPEN", false),
    ] {
        let data = json!({
            "paymentId": payment, "orderId": order, "state": state, "version": version,
        });
        assert!(world.hear(Uuid::now_v7(), "payment.disputed", &data).await);
        assert_eq!(shown().await.1, disputed, "{version}");
    }
    // Lost before the news of the payment itself: the money is the bank's, and nothing goes back.
    let early = world.order_seats(&buyer, &[1]).await.id();
    let (paid_with, payment) = (payment, Uuid::now_v7());
    let lost = json!({ "paymentId": payment, "orderId": early, "state": "LOST", "version": 1 });
    assert!(world.hear(Uuid::now_v7(), "payment.disputed", &lost).await);
    assert!(world.paid(Uuid::now_v7(), early, payment).await);
    let (state, _, reason) = world.row(early).await;
    assert_eq!(
        (state.as_str(), reason.as_deref()),
        ("CANCELLED", Some("DISPUTE_LOST"))
    );
    assert_eq!(world.said("refund.requested", early).await, 0);
    // Lost after it was confirmed: the seats are sold again.
    let lost = json!({ "paymentId": paid_with, "orderId": order, "state": "LOST", "version": 4 });
    for _ in 0..2 {
        assert!(world.hear(Uuid::now_v7(), "payment.disputed", &lost).await);
    }
    assert_eq!(world.row(order).await.0, "CANCELLED");
    assert_eq!(world.said("order.refunded", order).await, 1);
    assert_eq!(world.said("refund.requested", order).await, 0);
    assert_eq!(world.remaining().await, 4);
    world.consistent().await;
}
