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
        (code, "NOT_CONFIRMED"),
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
