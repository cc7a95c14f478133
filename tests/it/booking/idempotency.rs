//! A retry gets the first answer, not a second order.

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::json;
use sqlx::Row;
use ticketping::platform::idempotency;

use super::world::World;

async fn orders(world: &World) -> i64 {
    let row = sqlx::query("select count(*) from orders")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    row.get(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_at_once_with_one_key_make_one_order() {
    let world = World::new(1, 8).await;
    let buyer = world.admitted().await;
    let body = json!({ "scheduleId": world.schedule, "bestAvailable": { "count": 1 } });
    let answers = join_all((0..20).map(|_| world.order(&buyer, body.clone(), Some("k1")))).await;
    let mut ids = std::collections::HashSet::new();
    for answer in &answers {
        match answer.status.as_u16() {
            201 => drop(ids.insert(answer.id())),
            409 => {
                assert_eq!(answer.code(), "IDEMPOTENCY_IN_PROGRESS");
                assert!(answer.headers.contains_key("retry-after"));
            }
            other => panic!("{other}: {}", answer.body),
        }
    }
    assert_eq!((ids.len(), orders(&world).await), (1, 1));
    let replay = world.order(&buyer, body, Some("k1")).await;
    assert_eq!(replay.headers["idempotency-replayed"], "true");
    assert_eq!(replay.status.as_u16(), 201);
    assert!(ids.contains(&replay.id()));
    world.consistent().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_body_is_refused_and_the_same_json_is_the_same() {
    let world = World::new(1, 8).await;
    let buyer = world.admitted().await;
    let body = json!({ "scheduleId": world.schedule, "seatIds": world.ids(&[0]) });
    let first = world.order(&buyer, body.clone(), Some("k")).await;
    assert!(!first.headers.contains_key("idempotency-replayed"));
    let again = world.order(&buyer, body.clone(), Some("k")).await;
    assert_eq!(first.body, again.body);
    let other = json!({ "scheduleId": world.schedule, "seatIds": world.ids(&[1]) });
    let refused = world.order(&buyer, other, Some("k")).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (422, "IDEMPOTENCY_KEY_REUSED")
    );
    // Another person's key is another key.
    let stranger = world.admitted().await;
    let theirs = world.order(&stranger, body, Some("k")).await;
    assert_eq!(theirs.code(), "SEATS_TAKEN");
    for bad in ["", "\u{e9}", "with space", &"x".repeat(256)] {
        let body = json!({ "scheduleId": world.schedule, "seatIds": world.ids(&[2]) });
        assert_eq!(
            world.order(&buyer, body, Some(bad)).await.status.as_u16(),
            422,
            "{bad:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn final_answers_are_kept_and_passing_ones_are_not() {
    let world = World::new(1, 4).await;
    let (holder, buyer) = (world.admitted().await, world.admitted().await);
    let held = world.order_seats(&holder, &[0]).await.id();
    let body = json!({ "scheduleId": world.schedule, "seatIds": world.ids(&[0]) });
    assert_eq!(
        world
            .order(&buyer, body.clone(), Some("taken"))
            .await
            .code(),
        "SEATS_TAKEN"
    );
    world.cancel(held, &holder).await;
    let kept = world.order(&buyer, body.clone(), Some("taken")).await;
    assert_eq!(
        (
            kept.code(),
            kept.headers.contains_key("idempotency-replayed")
        ),
        ("SEATS_TAKEN", true)
    );
    assert_eq!(kept.headers["content-type"], "application/problem+json");

    let mut waits = world.waiting().await;
    assert_eq!(
        world.order(&waits, body.clone(), Some("w")).await.code(),
        "NOT_ADMITTED"
    );
    let admitted = world.admitted().await;
    (waits.id, waits.token, waits.place) = (admitted.id, admitted.token, admitted.place);
    assert_eq!(
        world.order(&waits, body, Some("w")).await.status.as_u16(),
        201
    );
}

/// The process died after the hold, or after the order: whoever takes the key
/// over after five silent seconds finds what it left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_requests_key_is_taken_over_and_makes_the_same_order() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let body = json!({ "scheduleId": world.schedule, "seatIds": world.ids(&[0]) });
    let first = world.order(&buyer, body.clone(), Some("k")).await.id();
    let dead = "update idempotency_keys set status = null, body = null, locked_at = now() - make_interval(secs => $1)";
    sqlx::query(dead)
        .bind(2.0)
        .execute(&world.pool)
        .await
        .unwrap();
    let early = world.order(&buyer, body.clone(), Some("k")).await;
    assert_eq!(early.code(), "IDEMPOTENCY_IN_PROGRESS");
    sqlx::query(dead)
        .bind(5.5)
        .execute(&world.pool)
        .await
        .unwrap();
    let after_order = world.order(&buyer, body.clone(), Some("k")).await;
    assert_eq!(
        (after_order.status.as_u16(), after_order.id()),
        (201, first)
    );
    // Now as if it had died between the hold and the order.
    for table in ["delete from order_seats", "delete from orders"] {
        sqlx::query(table).execute(&world.pool).await.unwrap();
    }
    sqlx::query(dead)
        .bind(5.5)
        .execute(&world.pool)
        .await
        .unwrap();
    let after_hold = world.order(&buyer, body, Some("k")).await;
    assert_eq!((after_hold.status.as_u16(), after_hold.id()), (201, first));
    assert_eq!(orders(&world).await, 1);
    world.consistent().await;
}

/// Slow is not dead: a running request refreshes its key. One that was overtaken all the same (it
/// was frozen) ends without an answer, and stores none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_request_keeps_its_key_and_an_overtaken_one_ends() {
    let world = World::new(1, 4).await;
    let (user, headers) = (uuid::Uuid::now_v7(), |key: &str| {
        let mut headers = http::HeaderMap::new();
        headers.insert(idempotency::HEADER, key.parse().unwrap());
        headers
    });
    let run = |key: &'static str, seconds: f64| {
        let (pool, headers) = (world.pool.clone(), headers(key));
        async move {
            let work = move |id: uuid::Uuid, _| async move {
                tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
                Ok(idempotency::Answer {
                    status: http::StatusCode::CREATED,
                    body: json!({ "id": id }).to_string().into(),
                    kept: false,
                })
            };
            idempotency::run(&pool, user, &headers, &json!({}), work).await
        }
    };
    let slow = tokio::spawn(run("slow", 7.0));
    let frozen = tokio::spawn(run("frozen", 7.0));
    tokio::time::sleep(Duration::from_secs_f64(0.5)).await;
    // As whoever takes a key over does, which only a silent one allows.
    let taken = "update idempotency_keys set fence = fence + 1 where key = 'frozen'";
    sqlx::query(taken).execute(&world.pool).await.unwrap();
    let overtaken = frozen.await.unwrap().unwrap_err();
    assert_eq!(overtaken.code(), "IDEMPOTENCY_IN_PROGRESS");
    let stored = "select status is null from idempotency_keys where key = 'frozen'";
    let none: bool = sqlx::query_scalar(stored)
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert!(none, "an overtaken request stored an answer");

    tokio::time::sleep(Duration::from_secs_f64(4.5)).await;
    let second = run("slow", 0.0).await.unwrap_err();
    assert_eq!(
        second.code(),
        "IDEMPOTENCY_IN_PROGRESS",
        "a running request lost its key"
    );
    assert_eq!(slow.await.unwrap().unwrap().status(), 201);
    let replayed = run("slow", 0.0).await.unwrap();
    assert_eq!(replayed.headers()["idempotency-replayed"], "true");
}
