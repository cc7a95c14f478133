//! Who may hold what.

use std::sync::Arc;

use futures_util::future::join_all;
use http::StatusCode;
use serde_json::json;
use ticketping::platform::place::PlaceState;

use super::world::{Buyer, World};

/// 500 at once on one seat: one has it, all others are told so, and the books agree.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_seat_and_five_hundred_buyers() {
    let world = Arc::new(World::new(1, 4).await);
    let buyers: Vec<Buyer> = join_all((0..500).map(|_| world.admitted())).await;
    let answers = join_all(buyers.iter().map(|b| world.order_seats(b, &[2]))).await;
    let won = answers
        .iter()
        .filter(|a| a.status == StatusCode::CREATED)
        .count();
    let lost: Vec<_> = answers
        .iter()
        .filter(|a| a.status != StatusCode::CREATED)
        .collect();
    assert_eq!((won, lost.len()), (1, 499));
    for answer in lost {
        assert_eq!(
            (answer.status, answer.code()),
            (StatusCode::CONFLICT, "SEATS_TAKEN")
        );
        assert_eq!(answer.body["seatIds"], json!(world.ids(&[2])));
    }
    assert_eq!(world.bytes().await, "0010");
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_seats_of_an_order_or_none() {
    let world = World::new(1, 6).await;
    let (first, second) = (world.admitted().await, world.admitted().await);
    let order = world.order_seats(&first, &[1, 2]).await;
    assert_eq!(order.status, StatusCode::CREATED);
    assert_eq!(order.body["status"], "PENDING_PAYMENT");
    assert_eq!(order.body["amount"], 300_000);
    let refused = world.order_seats(&second, &[2, 3, 4]).await;
    assert_eq!(refused.code(), "SEATS_TAKEN");
    assert_eq!(refused.body["seatIds"], json!(world.ids(&[2])));
    assert_eq!(world.bytes().await, "011000");
    world.consistent().await;
}

/// Four seats a person, however many requests race for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_holds_under_parallel_requests() {
    let world = World::new(4, 10).await;
    let buyer = world.admitted().await;
    let pairs: Vec<[usize; 2]> = (0..20).map(|i| [2 * i, 2 * i + 1]).collect();
    let answers = join_all(pairs.iter().map(|p| world.order_seats(&buyer, p))).await;
    let won = answers
        .iter()
        .filter(|a| a.status == StatusCode::CREATED)
        .count();
    assert_eq!(won, 2, "two orders of two seats");
    let refused = answers
        .iter()
        .filter(|a| a.code() == "SEAT_LIMIT_EXCEEDED")
        .count();
    assert_eq!(refused, 18);
    world.consistent().await;
}

/// What was bought counts; what has lapsed does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_counts_confirmed_and_not_lapsed_orders() {
    let world = World::new(1, 10).await;
    let buyer = world.admitted().await;
    let bought = world.order_seats(&buyer, &[0, 1]).await.id();
    assert!(
        world
            .paid(uuid::Uuid::now_v7(), bought, uuid::Uuid::now_v7())
            .await
    );
    let lapsed = world.order_seats(&buyer, &[2, 3]).await.id();
    assert_eq!(
        world.order_seats(&buyer, &[4]).await.code(),
        "SEAT_LIMIT_EXCEEDED"
    );
    world.lapse(lapsed).await;
    let again = world.order_seats(&buyer, &[4, 5]).await;
    assert_eq!(again.status, StatusCode::CREATED, "{}", again.body);
    assert_eq!(
        world.order_seats(&buyer, &[6]).await.code(),
        "SEAT_LIMIT_EXCEEDED"
    );
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_working_place_of_ones_own_may_hold() {
    let world = World::new(1, 4).await;
    let waits = world.waiting().await;
    let answer = world.order_seats(&waits, &[0]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (403, "NOT_ADMITTED")
    );

    let registered = world.person(PlaceState::Registered);
    let answer = world.order_seats(&registered, &[0]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (403, "NOT_ADMITTED")
    );

    let gone = world.person(PlaceState::Working);
    let answer = world.order_seats(&gone, &[0]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (410, "QUEUE_TOKEN_EXPIRED")
    );

    let mut thief = world.admitted().await;
    thief.place = world.admitted().await.place;
    let answer = world.order_seats(&thief, &[0]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (401, "INVALID_QUEUE_TOKEN")
    );
    thief.place = "nonsense".into();
    assert_eq!(
        world.order_seats(&thief, &[0]).await.code(),
        "INVALID_QUEUE_TOKEN"
    );
    assert_eq!(world.bytes().await.replace('0', ""), "", "nothing is held");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_requests_are_told_what_is_wrong() {
    let world = World::new(1, 6).await;
    let buyer = world.admitted().await;
    let schedule = world.schedule;
    let stranger = uuid::Uuid::now_v7();
    for (body, status, code) in [
        (json!({}), 422, "VALIDATION_FAILED"),
        (json!({ "scheduleId": schedule }), 422, "VALIDATION_FAILED"),
        (
            json!({ "scheduleId": schedule, "seatIds": [] }),
            422,
            "VALIDATION_FAILED",
        ),
        (
            json!({ "scheduleId": schedule, "seatIds": world.ids(&[0, 1, 2, 3, 4]) }),
            422,
            "VALIDATION_FAILED",
        ),
        (
            json!({ "scheduleId": schedule, "seatIds": world.ids(&[0, 0]) }),
            422,
            "VALIDATION_FAILED",
        ),
        (
            json!({ "scheduleId": schedule, "seatIds": ["x"] }),
            422,
            "VALIDATION_FAILED",
        ),
        (
            json!({ "scheduleId": schedule, "bestAvailable": { "count": 5 } }),
            422,
            "VALIDATION_FAILED",
        ),
        (
            json!({ "scheduleId": schedule, "bestAvailable": { "count": 1, "grade": "?" } }),
            422,
            "VALIDATION_FAILED",
        ),
        (
            json!({ "scheduleId": schedule, "seatIds": world.ids(&[0]), "bestAvailable": { "count": 1 } }),
            422,
            "VALIDATION_FAILED",
        ),
        (
            json!({ "scheduleId": schedule, "seatIds": [stranger] }),
            404,
            "SEAT_NOT_FOUND",
        ),
        (
            json!({ "scheduleId": stranger, "seatIds": [stranger] }),
            404,
            "SCHEDULE_NOT_FOUND",
        ),
    ] {
        let answer = world.order(&buyer, body.clone(), None).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code()),
            (status, code),
            "{body}"
        );
    }
    let missing = format!("/api/v1/orders/{stranger}");
    assert_eq!(
        world
            .call("GET", &missing, &buyer.token, None)
            .await
            .status
            .as_u16(),
        404
    );
    let odd = world
        .call("GET", "/api/v1/orders/not-a-uuid", &buyer.token, None)
        .await;
    assert_eq!(odd.status.as_u16(), 404);
    let other = world.admitted().await;
    let order = world.order_seats(&other, &[0]).await.id();
    let path = format!("/api/v1/orders/{order}");
    assert_eq!(
        world
            .call("GET", &path, &buyer.token, None)
            .await
            .status
            .as_u16(),
        404
    );
    assert_eq!(
        world
            .call("DELETE", &path, &buyer.token, None)
            .await
            .status
            .as_u16(),
        404
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_buyers_orders_are_listed_in_pages_newest_first() {
    let world = World::new(1, 6).await;
    let buyer = world.admitted().await;
    let mut ids = Vec::new();
    for seat in 0..3 {
        ids.push(world.order_seats(&buyer, &[seat]).await.id().to_string());
    }
    ids.reverse();
    let page = world
        .call("GET", "/api/v1/orders?limit=2", &buyer.token, None)
        .await
        .body;
    let listed: Vec<_> = page["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|o| o["id"].as_str().unwrap())
        .collect();
    assert_eq!(listed, ids[..2]);
    let next = format!(
        "/api/v1/orders?limit=2&cursor={}",
        page["nextCursor"].as_str().unwrap()
    );
    let page = world.call("GET", &next, &buyer.token, None).await.body;
    assert_eq!(page["items"][0]["id"], ids[2].as_str());
    assert!(page["nextCursor"].is_null());
}

/// The map follows what is held, and says 304 while nothing changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_seat_map_follows_what_is_held() {
    let world = World::new(1, 4).await;
    let path = format!("/api/v1/schedules/{}/seats", world.schedule);
    let map = world.call("GET", &path, "", None).await;
    assert_eq!(map.status.as_u16(), 200);
    assert_eq!(map.body["seats"].as_array().unwrap().len(), 4);
    let etag = map.headers["etag"].to_str().unwrap().to_owned();
    let buyer = world.admitted().await;
    world.order_seats(&buyer, &[1]).await;
    let map = world.until_map(1).await;
    assert_eq!(map.body["seats"][1]["status"], "HELD");
    assert_eq!(map.body["seats"][0]["status"], "AVAILABLE");
    assert_ne!(map.headers["etag"], etag.as_str());
    let request = http::Request::get(&path)
        .header("if-none-match", &map.headers["etag"])
        .body(axum::body::Body::empty())
        .unwrap();
    assert_eq!(world.send(request).await.status.as_u16(), 304);
}
