//! What operators do by mistake, and what is refused, limited and answered truly.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use http::Method;
use serde_json::json;
use ticketping::serve::queue::Config;
use uuid::Uuid;

use super::world::*;

#[tokio::test]
async fn a_pre_queue_changes_only_as_its_draw_allows() {
    let world = World::new(config()).await;
    world.show.opens_ms.store(now_ms() + 3_600_000, Relaxed);
    let at = world.instance().await;
    let rfc = |ms: i64| {
        chrono::DateTime::from_timestamp_millis(ms)
            .unwrap()
            .to_rfc3339()
    };
    for bad in [
        json!({"preQueueOpensAt": rfc(now_ms() + 3_600_001 + 60_000)}),
        json!({"preQueueOpensAt": "+262000-01-01T00:00:00Z"}),
        json!({"preQueueOpensAt": "1970-01-01T00:00:00Z"}),
    ] {
        let (code, body) = world.patch(&at, bad.clone()).await;
        assert_eq!(code, 422, "{bad}: {body}");
    }
    let open = json!({"preQueueOpensAt": rfc(now_ms() - 1_000)});
    assert_eq!(world.patch(&at, open).await.0, 200);
    let (code, place) = world.enter(&at, Uuid::now_v7()).await;
    assert_eq!(
        (code.as_u16(), status(&place), &place["phase"]),
        (201, "REGISTERED", &json!("PRE_QUEUE"))
    );
    let (code, body) = world.patch(&at, json!({"preQueueOpensAt": null})).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (409, &json!("DRAW_FIXED")),
        "{body}"
    );
    let again = json!({"preQueueOpensAt": rfc(now_ms() - 2_000)});
    assert_eq!(
        world.patch(&at, again).await.0,
        200,
        "it moves until the draw is made"
    );
    world.set_meta("opensAt", now_ms() - 1).await;
    let drawn = until(Duration::from_secs(10), async || {
        world.public(&at).await["draw"]["seed"].is_string()
    })
    .await;
    assert!(drawn.is_some());
    let later = json!({"preQueueOpensAt": rfc(now_ms() - 500)});
    assert_eq!(world.patch(&at, later).await.1["code"], "DRAW_FIXED");
}

#[tokio::test]
async fn requests_that_hang_up_while_a_queue_loads_leave_nothing() {
    let world = World::new(config()).await;
    let at = world.instance().await;
    for _ in 0..20 {
        let path = format!("/api/v1/queues/{}", Uuid::now_v7());
        let asked = call(&at, Method::GET, &path, &[], None);
        let _hung_up = tokio::time::timeout(Duration::from_micros(300), asked).await;
    }
    let gone = until(Duration::from_secs(2), async || at.state.loading() == 0).await;
    assert!(gone.is_some(), "{} are left", at.state.loading());
}

#[tokio::test]
async fn leaving_in_a_loop_is_limited_and_written_once() {
    let world = World::new(config()).await;
    let at = world.instance().await;
    let user = Uuid::now_v7();
    let place = token(&world.enter(&at, user).await.1);
    let mut refused = 0;
    let begun = std::time::Instant::now();
    for _ in 0..300 {
        let (code, body) = world.leave(&at, &place).await;
        if code == 429 {
            assert_eq!(body["code"], "RATE_LIMITED");
            refused += 1;
        } else {
            assert_eq!(code, 204, "{body}");
        }
    }
    let earned = begun.elapsed().as_secs() * 20 + 20;
    assert!(refused + earned + 101 >= 300, "{refused} refused");
    let writes: i64 = sqlx::query_scalar(
        "select n_tup_ins + n_tup_upd + n_tup_del from pg_stat_user_tables
         where schemaname = 'queue' and relname = 'ended_turns'",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert!(writes <= 2, "{writes} writes");
    // And nobody else is limited.
    assert_eq!(world.enter(&at, Uuid::now_v7()).await.0, 201);
}

#[tokio::test]
async fn estimates_are_none_while_nobody_can_be_admitted() {
    let world = World::new(Config {
        max_working: 1_000,
        admissions_per_minute: Some(60),
        ..config()
    })
    .await;
    let at = world.instance().await;
    let mut last = json!(null);
    for _ in 0..60 {
        last = world.enter(&at, Uuid::now_v7()).await.1;
    }
    // One a second: the last is about 55 seconds away, whatever was measured at first.
    let measured = until(Duration::from_secs(6), async || {
        last = world.ask(&at, &token(&last)).await.1;
        last["estimatedWaitSeconds"].is_object()
    })
    .await;
    assert!(measured.is_some(), "{last}");
    let position = last["position"].as_u64().unwrap();
    let range = &last["estimatedWaitSeconds"];
    let (min, max) = (
        range["min"].as_u64().unwrap(),
        range["max"].as_u64().unwrap(),
    );
    assert!(min + 1 >= position - 1 && max > min, "{last}");
    for change in [
        json!({"paused": true}),
        json!({"paused": false, "admissionsPerMinute": 0}),
        json!({"admissionsPerMinute": 60, "maxWorking": 0}),
    ] {
        assert_eq!(world.patch(&at, change).await.0, 200);
        let (code, place) = world.ask(&at, &token(&last)).await;
        assert_eq!(code, 200);
        assert!(place["estimatedWaitSeconds"].is_null(), "{place}");
    }
}

/// PostgreSQL stalls: an operator hears within seconds that nothing was changed.
#[tokio::test]
async fn a_change_is_answered_in_seconds_and_truly_while_postgresql_stalls() {
    let world = World::new(config()).await;
    let at = world.instance().await;
    world.public(&at).await;
    let mut stalled = world.pool.begin().await.unwrap();
    sqlx::query("lock table settings in access exclusive mode")
        .execute(&mut *stalled)
        .await
        .unwrap();
    let begun = std::time::Instant::now();
    let (code, body) = world.patch(&at, json!({"maxWorking": 77})).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (503, &json!("UNAVAILABLE")),
        "{body}"
    );
    // Without a bound of its own it would wait for as long as the lock is held.
    assert!(begun.elapsed() < Duration::from_secs(20));
    stalled.rollback().await.unwrap();
    let rows: i64 = sqlx::query_scalar("select count(*) from setting_changes")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(rows, 0);
    assert_eq!(world.patch(&at, json!({"maxWorking": 77})).await.0, 200);
}
