//! A ticket opens the door once.

use futures_util::future::join_all;
use serde_json::json;
use uuid::Uuid;

use super::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_is_valid_once_even_at_two_doors() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    let path = format!("/api/v1/orders/{order}/ticket");
    let early = world.call("GET", &path, &buyer.token, None).await;
    assert_eq!(
        (early.status.as_u16(), early.code()),
        (409, "ORDER_NOT_CONFIRMED")
    );
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    let ticket = world.call("GET", &path, &buyer.token, None).await.body;
    assert!(ticket["qrSvg"].as_str().unwrap().contains("<svg"));
    let check = json!({ "code": ticket["code"] });
    let admin = world.admin();
    let doors = join_all((0..8).map(|_| {
        world.call(
            "POST",
            "/admin/v1/tickets/check",
            &admin,
            Some(check.clone()),
        )
    }))
    .await;
    let valid = doors.iter().filter(|a| a.body["result"] == "VALID").count();
    let used = doors
        .iter()
        .filter(|a| a.body["result"] == "ALREADY_USED")
        .count();
    assert_eq!((valid, used), (1, 7));
    let refused = world.cancel(order, &buyer).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (409, "TICKET_USED")
    );
    let buyers = world
        .call("POST", "/admin/v1/tickets/check", &buyer.token, Some(check))
        .await;
    assert_eq!((buyers.status.as_u16(), buyers.code()), (403, "FORBIDDEN"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refunded_or_forged_ticket_does_not_open() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    let path = format!("/api/v1/orders/{order}/ticket");
    let code = world.call("GET", &path, &buyer.token, None).await.body["code"].clone();
    world.cancel(order, &buyer).await;
    let admin = world.admin();
    let mut forged = code.as_str().unwrap().to_owned();
    forged.replace_range(forged.len() - 4.., "AAAA");
    for (code, result) in [
        (code, "REFUNDED"),
        (json!(forged), "INVALID"),
        (json!("x"), "INVALID"),
    ] {
        let answer = world
            .call(
                "POST",
                "/admin/v1/tickets/check",
                &admin,
                Some(json!({ "code": code })),
            )
            .await;
        assert_eq!(answer.body["result"], result);
    }
}

/// Used, and the money went back all the same (at Stripe, or by hand): REFUNDED at the door, not ALREADY_USED.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_door_says_what_has_become_of_the_order_before_what_of_the_ticket() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    let payment = Uuid::now_v7();
    assert!(world.paid(Uuid::now_v7(), order, payment).await);
    let path = format!("/api/v1/orders/{order}/ticket");
    let code = world.call("GET", &path, &buyer.token, None).await.body["code"].clone();
    let admin = world.admin();
    let check = async |schedule: Option<Uuid>| {
        let body = json!({ "code": code, "scheduleId": schedule });
        let answer = world
            .call("POST", "/admin/v1/tickets/check", &admin, Some(body))
            .await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["result"].as_str().unwrap().to_owned()
    };
    let elsewhere = Some(Uuid::now_v7());
    assert_eq!(
        check(elsewhere).await,
        "WRONG_SCHEDULE",
        "and it is not used up"
    );
    assert_eq!(check(Some(world.schedule)).await, "VALID");
    assert_eq!(check(None).await, "ALREADY_USED");
    assert_eq!(check(elsewhere).await, "WRONG_SCHEDULE");
    let data = json!({ "paymentId": payment, "orderId": order, "amount": 150_000, "full": true });
    assert!(world.hear(Uuid::now_v7(), "payment.refunded", &data).await);
    assert_eq!(world.row(order).await.0, "REFUNDED");
    assert_eq!(check(Some(world.schedule)).await, "REFUNDED");
    assert_eq!(check(elsewhere).await, "REFUNDED");
}
