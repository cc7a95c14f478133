//! Sold out and reopened, closed, paused, drained, limited.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use serde_json::json;
use ticketping::serve::queue::Config;
use uuid::Uuid;

use super::world::*;

async fn phase_is(world: &World, at: &Instance, phase: &str) {
    let mut last = json!(null);
    let seen = until(Duration::from_secs(3), async || {
        last = world.public(at).await;
        last["phase"] == phase
    })
    .await;
    assert!(seen.is_some(), "want {phase}: {last}");
}

#[tokio::test]
async fn sold_out_suspends_waiting_places_and_a_return_brings_them_back_in_order() {
    let world = World::new(Config {
        max_working: 1,
        ..config()
    })
    .await;
    let at = world.instance().await;
    let (_, works) = world.enter(&at, Uuid::now_v7()).await;
    let waiting = Uuid::now_v7();
    let (_, waits) = world.enter(&at, waiting).await;
    world.set_meta("remaining", 0).await;
    phase_is(&world, &at, "SOLD_OUT").await;
    let (code, body) = world.ask(&at, &token(&waits)).await;
    assert_eq!((code.as_u16(), &body["code"]), (409, &json!("SOLD_OUT")));
    assert!(body["pollAfterMs"].as_u64().unwrap() > 1_000, "{body}");
    for user in [waiting, Uuid::now_v7()] {
        let (code, body) = world.enter(&at, user).await;
        assert_eq!((code.as_u16(), &body["code"]), (409, &json!("SOLD_OUT")));
    }
    let (code, still) = world.ask(&at, &token(&works)).await;
    assert_eq!(
        (code.as_u16(), status(&still)),
        (200, "WORKING"),
        "an admitted person goes on"
    );

    world.set_meta("remaining", 3).await;
    phase_is(&world, &at, "OPEN").await;
    let (code, newcomer) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!((code.as_u16(), number(&newcomer)), (201, 3), "{newcomer}");
    let (code, body) = world.ask(&at, &token(&waits)).await;
    assert_eq!((code.as_u16(), number(&body)), (200, 2), "{body}");
    assert_eq!(world.leave(&at, &token(&works)).await.0, 204);
    world.admitted(&at, &token(&waits)).await;

    // Ten minutes later they have ended.
    world.set_meta("remaining", 0).await;
    phase_is(&world, &at, "SOLD_OUT").await;
    world.set_meta("suspendedAt", now_ms() - 601_000).await;
    let ended = until(Duration::from_secs(3), async || {
        let (code, body) = world.ask(&at, &token(&newcomer)).await;
        code == 409 && body["pollAfterMs"].is_null()
    })
    .await;
    assert!(ended.is_some());
    world.set_meta("remaining", 3).await;
    phase_is(&world, &at, "OPEN").await;
    let (code, body) = world.ask(&at, &token(&newcomer)).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (410, &json!("QUEUE_TOKEN_EXPIRED"))
    );
}

#[tokio::test]
async fn a_wrong_closing_time_ends_nothing_when_it_is_taken_back() {
    let world = World::new(Config {
        max_working: 1,
        ..config()
    })
    .await;
    let at = world.instance().await;
    let (_, works) = world.enter(&at, Uuid::now_v7()).await;
    let mut places = Vec::new();
    for _ in 0..5 {
        places.push(world.enter(&at, Uuid::now_v7()).await.1);
    }
    // The next has a claim, and comes while booking is closed.
    assert_eq!(world.leave(&at, &token(&works)).await.0, 204);
    let claimed = until(Duration::from_secs(2), async || {
        world.public(&at).await["servedNumber"] == 2
    })
    .await;
    assert!(claimed.is_some());
    let closes = world.meta("closesAt").await.unwrap();
    world.set_meta("closesAt", now_ms() - 1).await;
    phase_is(&world, &at, "CLOSED").await;
    for place in &places {
        let (code, body) = world.ask(&at, &token(place)).await;
        assert_eq!(
            (code.as_u16(), &body["code"]),
            (409, &json!("BOOKING_NOT_OPEN")),
            "{body}"
        );
        assert!(body["pollAfterMs"].is_u64(), "{body}");
    }
    world.set_meta("closesAt", closes).await;
    phase_is(&world, &at, "OPEN").await;
    world.admitted(&at, &token(&places[0])).await;
    for (i, place) in places.iter().enumerate().skip(1) {
        let (code, body) = world.ask(&at, &token(place)).await;
        assert_eq!(
            (code.as_u16(), number(&body)),
            (200, i as u64 + 2),
            "{body}"
        );
    }
}

#[tokio::test]
async fn before_the_opening_and_after_the_close_nobody_enters() {
    let world = World::new(Config {
        max_working: 1,
        ..config()
    })
    .await;
    world.show.opens_ms.store(now_ms() + 3_600_000, Relaxed);
    let at = world.instance().await;
    let (code, body) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (409, &json!("BOOKING_NOT_OPEN"))
    );
    assert!(body["opensAt"].is_string(), "{body}");
    phase_is(&world, &at, "UPCOMING").await;
    world.set_meta("opensAt", now_ms() - 1_000).await;
    let (code, works) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!((code.as_u16(), status(&works)), (201, "WORKING"));
    let (_, waits) = world.enter(&at, Uuid::now_v7()).await;
    world.set_meta("closesAt", now_ms() - 1).await;
    phase_is(&world, &at, "CLOSED").await;
    let (code, body) = world.ask(&at, &token(&waits)).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (409, &json!("BOOKING_NOT_OPEN"))
    );
    assert_eq!(world.enter(&at, Uuid::now_v7()).await.0, 409);
    assert_eq!(
        world.ask(&at, &token(&works)).await.0,
        200,
        "who works sees the turn out"
    );
}

#[tokio::test]
async fn too_many_waiting_for_the_seats_left_refuses_newcomers_only() {
    let world = World::new(Config {
        max_working: 1,
        queue_factor: 2.0,
        ..config()
    })
    .await;
    world.show.seats.store(2, Relaxed);
    let at = world.instance().await;
    let mut people = Vec::new();
    for i in 0..5 {
        let user = Uuid::now_v7();
        people.push(user);
        assert_eq!(world.enter(&at, user).await.0, 201, "{i}");
    }
    let (code, body) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!((code.as_u16(), &body["code"]), (409, &json!("QUEUE_FULL")));
    assert_eq!(world.enter(&at, people[4]).await.0, 200);
}

#[tokio::test]
async fn paused_admits_nobody_and_drained_takes_nobody() {
    let world = World::new(config()).await;
    let at = world.instance().await;
    world.public(&at).await;
    assert_eq!(world.patch(&at, json!({"paused": true})).await.0, 200);
    let (code, place) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!((code.as_u16(), status(&place)), (201, "WAITING"));
    phase_is(&world, &at, "PAUSED").await;
    world
        .patch(&at, json!({"paused": false, "draining": true}))
        .await;
    phase_is(&world, &at, "DRAINING").await;
    world.admitted(&at, &token(&place)).await;
    let (code, body) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (409, &json!("QUEUE_DRAINING"))
    );
    let kept: Vec<String> = sqlx::query_scalar("select reason from setting_changes order by id")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(kept, ["a test", "a test"], "changes are kept");
    for bad in [
        json!({"maxWorking": -1}),
        json!({"workingTtlSeconds": 0}),
        json!({"queueFactor": -0.5}),
    ] {
        assert_eq!(world.patch(&at, bad).await.0, 422);
    }
}

#[tokio::test]
async fn the_inflow_limit_keeps_at_most_a_second_of_credit() {
    let world = World::new(Config {
        max_working: 1_000,
        admissions_per_minute: Some(600),
        ..config()
    })
    .await;
    let at = world.instance().await;
    world.public(&at).await;
    // Three idle seconds must not save up thirty admissions.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let begun = std::time::Instant::now();
    for _ in 0..100 {
        world.enter(&at, Uuid::now_v7()).await;
    }
    tokio::time::sleep(Duration::from_millis(2_000)).await;
    let working = world.working().await;
    let most = 10.0 + begun.elapsed().as_secs_f64() * 10.0 + 1.0;
    assert!(working as f64 <= most, "{working} of at most {most}");
    assert!(working >= 20, "{working}: ten a second come in");
    let place = world.public(&at).await;
    assert_eq!(place["admissionsPerMinute"], 600);
}

#[tokio::test]
async fn settings_written_by_others_take_effect() {
    let world = World::new(Config {
        max_working: 1,
        ..config()
    })
    .await;
    let at = world.instance().await;
    for _ in 0..3 {
        world.enter(&at, Uuid::now_v7()).await;
    }
    sqlx::query(
        "insert into settings (performance_id, max_working, working_ttl_ms, claim_ttl_ms, hold_ttl_ms, queue_factor)
         values ($1, 3, 60000, 30000, 60000, 2)",
    )
    .bind(world.performance)
    .execute(&world.pool)
    .await
    .unwrap();
    let took = until(Duration::from_secs(2), async || world.working().await == 3).await;
    assert!(took.is_some());
}

#[tokio::test]
async fn streams_tell_the_snapshot_when_it_changes() {
    use http_body_util::BodyExt;
    use tower::ServiceExt;
    let world = World::new(Config {
        max_working: 0,
        ..config()
    })
    .await;
    let at = world.instance().await;
    let path = format!("/api/v1/queues/{}/events", world.performance);
    let request = http::Request::get(path)
        .body(axum::body::Body::empty())
        .unwrap();
    let response = at.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut body = response.into_body();
    let mut next = async || {
        let frame = tokio::time::timeout(Duration::from_secs(4), body.frame()).await;
        String::from_utf8(
            frame
                .expect("an event in time")
                .unwrap()
                .unwrap()
                .into_data()
                .unwrap()
                .to_vec(),
        )
        .unwrap()
    };
    assert!(next().await.contains("\"lastNumber\":0"));
    world.enter(&at, Uuid::now_v7()).await;
    let event = next().await;
    assert!(event.starts_with("event: snapshot\ndata: {"), "{event}");
    assert!(
        event.ends_with("}\n\n") && event.contains("\"lastNumber\":1"),
        "{event}"
    );
}
