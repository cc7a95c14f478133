//! What one person and a few meet.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;
use uuid::Uuid;

use super::world::*;
use ticketping::{
    platform::place::PlaceKeys,
    serve::queue::{Config, scripts::Scripts},
};

#[tokio::test]
async fn a_newcomer_with_room_works_at_once_and_the_next_wait_in_order() {
    let world = World::new(Config {
        max_working: 2,
        ..config()
    })
    .await;
    let at = world.instance().await;
    let people: Vec<Uuid> = (0..5).map(|_| Uuid::now_v7()).collect();
    let mut places = Vec::new();
    for (i, user) in people.iter().enumerate() {
        let (code, place) = world.enter(&at, *user).await;
        assert_eq!(code, StatusCode::CREATED, "{place}");
        assert_eq!(number(&place), i as u64 + 1);
        let want = if i < 2 { "WORKING" } else { "WAITING" };
        assert_eq!(status(&place), want, "{place}");
        assert_eq!(place["expiresAt"].is_string(), i < 2);
        if i >= 2 {
            assert_eq!(place["position"], i as u64 - 1, "{place}");
        }
        places.push(place);
    }
    // Entering again keeps the place.
    let (code, again) = world.enter(&at, people[3]).await;
    assert_eq!((code, number(&again)), (StatusCode::OK, 4));

    // A completed order admits the next, whose next poll checks in.
    world.confirm(&at, people[0], 1).await;
    let third = world.admitted(&at, &token(&places[2])).await;
    let (code, _) = world.ask(&at, &token(&places[0])).await;
    assert_eq!(code, StatusCode::GONE);

    // Leaving while waiting moves the others up; leaving while working admits.
    assert_eq!(world.leave(&at, &token(&places[3])).await.0, 204);
    assert_eq!(world.leave(&at, &token(&third)).await.0, 204);
    world.admitted(&at, &token(&places[4])).await;
    assert_eq!(world.ask(&at, &token(&third)).await.0, StatusCode::GONE);
    // Leaving twice is no error.
    assert_eq!(world.leave(&at, &token(&third)).await.0, 204);
    let ended: i64 = sqlx::query_scalar("select count(*) from ended_turns")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(ended, 3, "every ended turn is noted before its end is told");
}

#[tokio::test]
async fn tokens_that_prove_nothing_here_are_refused() {
    let world = World::new(config()).await;
    let at = world.instance().await;
    let user = Uuid::now_v7();
    let (_, place) = world.enter(&at, user).await;
    let good = token(&place);
    let mut tampered = good.clone().into_bytes();
    tampered[40] = if tampered[40] == b'A' { b'B' } else { b'A' };
    let tampered = String::from_utf8(tampered).unwrap();
    for bad in ["", "x", &tampered] {
        let (code, body) = world.ask(&at, bad).await;
        assert_eq!(code, 401);
        assert_eq!(body["code"], "INVALID_QUEUE_TOKEN");
    }
    let me = format!("{}/me", world.tokens());
    let (code, body) = call(&at, Method::GET, &me, &[], None).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (401, &json!("INVALID_QUEUE_TOKEN"))
    );
    // Another performance's.
    let elsewhere = World::new(config()).await;
    let (_, foreign) = elsewhere.enter(&elsewhere.instance().await, user).await;
    assert_eq!(world.ask(&at, &token(&foreign)).await.0, 401);
    // Another user's access token beside it.
    let access = format!("Bearer {}", world.access(Uuid::now_v7()));
    let headers = [("queue-token", good.as_str()), ("authorization", &access)];
    let (code, body) = call(&at, Method::GET, &me, &headers, None).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (401, &json!("INVALID_QUEUE_TOKEN"))
    );
    let access = format!("Bearer {}", world.access(user));
    let headers = [("queue-token", good.as_str()), ("authorization", &access)];
    assert_eq!(call(&at, Method::GET, &me, &headers, None).await.0, 200);
    // Unknown performances.
    let path = format!("/api/v1/queues/{}/tokens", Uuid::now_v7());
    let (code, body) = call(
        &at,
        Method::POST,
        &path,
        &[("authorization", &access)],
        None,
    )
    .await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (404, &json!("PERFORMANCE_NOT_FOUND"))
    );
}

#[tokio::test]
async fn a_claim_not_taken_is_a_no_show_and_a_turn_not_used_lapses() {
    let world = World::new(Config {
        max_working: 1,
        working_ttl: Duration::from_millis(1_500),
        claim_ttl: Duration::from_secs(1),
        ..config()
    })
    .await;
    let at = world.instance().await;
    let mut places = Vec::new();
    for _ in 0..3 {
        places.push(world.enter(&at, Uuid::now_v7()).await.1);
    }
    assert_eq!(status(&places[0]), "WORKING");
    // The first lapses; the second is admitted and never comes; the third is admitted.
    let took = until(Duration::from_secs(8), async || {
        world.meta("noShows").await == Some(1)
    })
    .await;
    assert!(took.is_some(), "the second's claim window ends");
    assert_eq!(world.meta("lapsed").await, Some(1));
    let (code, third) = world.ask(&at, &token(&places[2])).await;
    assert_eq!((code.as_u16(), status(&third)), (200, "WORKING"));
    for gone in &places[..2] {
        let (code, body) = world.ask(&at, &token(gone)).await;
        assert_eq!(
            (code.as_u16(), &body["code"]),
            (410, &json!("QUEUE_TOKEN_EXPIRED"))
        );
    }
    let reasons: Vec<String> = sqlx::query_scalar("select reason from ended_turns order by number")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    assert_eq!(reasons, ["LAPSED", "NO_SHOW"]);
}

/// Twenty people wait, told to ask 2 s later for each place further back; then all are admitted at once. Whether each
/// has one and a half of the interval that it was told to show up.
async fn claims_are_long_enough(scripts: Scripts) -> bool {
    let world = World::new(Config {
        max_working: 1,
        working_ttl: Duration::from_secs(900),
        claim_ttl: Duration::from_secs(1),
        ..config()
    })
    .await;
    sqlx::query(
        "insert into settings (performance_id, max_working, poll_step_ms, queue_factor, admissions_default)
         values ($1, 1, 2000, 0, true)",
    )
    .bind(world.performance)
    .execute(&world.pool)
    .await
    .unwrap();
    let at = world.instance_with(scripts).await;
    world.enter(&at, Uuid::now_v7()).await;
    let mut told = Vec::new();
    for _ in 0..20 {
        let user = Uuid::now_v7();
        let place = world.enter(&at, user).await.1;
        told.push((user, place["pollAfterMs"].as_i64().unwrap()));
    }
    assert!(told[19].1 > 30_000, "{told:?}");
    let begun = now_ms();
    assert_eq!(world.patch(&at, json!({"maxWorking": 50})).await.0, 200);
    let claims: Vec<(Vec<u8>, i64)> = redis::cmd("ZRANGE")
        .arg(world.key("work"))
        .arg(0)
        .arg(-1)
        .arg("WITHSCORES")
        .query_async(&mut world.redis().await)
        .await
        .unwrap();
    let claims: std::collections::HashMap<_, _> = claims.into_iter().collect();
    told.iter().all(|(user, told)| {
        let until = claims.get(user.as_bytes().as_slice());
        until.is_some_and(|until| until - begun >= told * 3 / 2 && until - begun < 95_000)
    })
}

#[tokio::test]
async fn a_client_that_polls_as_told_never_misses_its_turn() {
    assert!(claims_are_long_enough(Scripts::default()).await);
    // The check is one: without the rule it fails.
    for (from, to) in [
        (
            "local function q_claim_window(q, number, served_then)\n",
            "local function q_claim_window(q, number, served_then)\n  if true then return q.claimTtl end\n",
        ),
        ("* q.pollStep)", "* 0)"),
        (
            "q_interval(q, number, served_then) * 1.5",
            "q_interval(q, number, served_then) * 0.7",
        ),
    ] {
        let defect = Scripts::with(|text| text.replace(from, to));
        assert!(!claims_are_long_enough(defect).await, "not noticed: {to}");
    }
}

#[tokio::test]
async fn keys_of_places_rotate_under_the_people_when_the_new_one_is_added_first() {
    let (old, new) = ("o".repeat(32), "n".repeat(32));
    let ring = |text: String| PlaceKeys::parse(&text).unwrap();
    let mut world = World::new(Config {
        max_working: 0,
        ..config()
    })
    .await;
    // Two instances, restarted one after the other: add the new key behind the old one, then swap them, then
    // remove the old one.
    let rings = [
        format!("1:{old}"),
        format!("1:{old},2:{new}"),
        format!("2:{new},1:{old}"),
        format!("2:{new}"),
    ];
    world.keys = ring(rings[0].clone());
    let mut instances = [world.instance().await, world.instance().await];
    let mut place = token(&world.enter(&instances[0], Uuid::now_v7()).await.1);
    let first = place.clone();
    for next in &rings[1..] {
        for i in [0, 1] {
            world.keys = ring(next.clone());
            instances[i] = world.instance().await;
            // A token of either instance is good at the other, all the time.
            for at in [&instances[0], &instances[1], &instances[0]] {
                let (code, body) = world.ask(at, &place).await;
                assert_eq!((code.as_u16(), number(&body)), (200, 1), "{next}: {body}");
                place = token(&body);
            }
        }
    }
    let (code, body) = world.ask(&instances[0], &first).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (401, &json!("INVALID_QUEUE_TOKEN")),
        "a token that was not polled with since is of the old key"
    );
    // The same id with another secret is not the same key.
    world.keys = ring(format!("2:{old}"));
    let wrong = world.instance().await;
    assert_eq!(world.ask(&wrong, &place).await.0, 401);
}

#[tokio::test]
async fn a_place_polled_like_mad_is_limited_and_nobody_else_is() {
    let world = World::new(Config {
        max_working: 0,
        polls_per_second: 10,
        ..config()
    })
    .await;
    let at = world.instance().await;
    let mad = token(&world.enter(&at, Uuid::now_v7()).await.1);
    let calm = token(&world.enter(&at, Uuid::now_v7()).await.1);
    let poll = |place: &str| at.state.poll_fast(world.performance, place).unwrap();
    let begun = std::time::Instant::now();
    let answered = (0..200).filter(|_| poll(&mad).status() == 200).count();
    let earned = begun.elapsed().as_millis() as usize / 100 + 1;
    assert!(
        (51..=51 + earned).contains(&answered),
        "five seconds' worth: {answered}"
    );
    let refused = poll(&mad);
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(
        refused.headers()["content-type"],
        "application/problem+json"
    );
    let (code, body) = world.ask(&at, &mad).await;
    assert_eq!(
        (code.as_u16(), &body["code"]),
        (429, &json!("RATE_LIMITED")),
        "{body}"
    );
    assert_eq!(poll(&calm).status(), 200);
    // As it was told: a second later polls are answered again.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(poll(&mad).status(), 200);
    // Who works is counted, too: a check-in costs Redis something.
    world.patch(&at, json!({"maxWorking": 2})).await;
    let mut place = world.admitted(&at, &calm).await;
    let mut codes = std::collections::BTreeMap::<u16, u32>::new();
    for _ in 0..80 {
        let (code, body) = world.ask(&at, &token(&place)).await;
        *codes.entry(code.as_u16()).or_default() += 1;
        if code == 200 {
            place = body;
        }
    }
    assert!(codes.keys().eq(&[200, 429]), "{codes:?}");
}

#[tokio::test]
async fn queues_on_sale_are_ready_before_anybody_asks() {
    let world = World::new(config()).await;
    let at = world.instance().await;
    let mut slice = at.state.overview(None).await;
    let there = until(Duration::from_secs(5), async || {
        slice = at.state.overview(None).await;
        slice.queues.len() == 1
    })
    .await;
    assert!(there.is_some());
    assert_eq!(slice.queues[0].performance_id, world.performance);
    assert_eq!(slice.queues[0].max_working, 10);
}
