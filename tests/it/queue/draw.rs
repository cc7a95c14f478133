//! The pre-queue: registered by arrival, numbered by a draw that anyone can recompute.

use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed, time::Duration};

use serde_json::Value;
use ticketping::serve::queue::{
    Config,
    draw::{Permutation, commitment},
};
use uuid::Uuid;

use super::world::*;

#[tokio::test]
async fn the_draw_is_what_the_published_seed_says() {
    let world = World::new(Config {
        max_working: 3,
        ..config()
    })
    .await;
    world.show.opens_ms.store(now_ms() + 4_000, Relaxed);
    sqlx::query(
        "insert into settings (performance_id, max_working, working_ttl_ms, claim_ttl_ms, hold_ttl_ms, queue_factor, pre_queue_opens_at)
         values ($1, 3, 60000, 30000, 60000, 0, now() - interval '1 second')",
    )
    .bind(world.performance)
    .execute(&world.pool)
    .await
    .unwrap();
    let (a, b) = (world.instance().await, world.instance().await);
    let mut people = Vec::new();
    for i in 0..40 {
        let user = Uuid::now_v7();
        let (code, place) = world.enter(if i % 2 == 0 { &a } else { &b }, user).await;
        assert_eq!(
            (code.as_u16(), status(&place)),
            (201, "REGISTERED"),
            "{place}"
        );
        assert_eq!(
            (&place["number"], &place["position"]),
            (&Value::Null, &Value::Null)
        );
        assert_eq!(place["registration"], i + 1);
        people.push((user, token(&place)));
    }
    // Registering twice keeps the registration; one gives up.
    assert_eq!(world.enter(&a, people[7].0).await.1["registration"], 8);
    assert_eq!(world.leave(&a, &people[5].1).await.0, 204);
    let before = world.public(&a).await;
    assert_eq!(before["phase"], "PRE_QUEUE", "{before}");
    assert_eq!(before["draw"]["seed"], Value::Null);
    let committed = before["draw"]["commitment"].as_str().unwrap().to_owned();

    let mut after = before;
    let drawn = until(Duration::from_secs(8), async || {
        after = world.public(&a).await;
        after["draw"]["seed"].is_string() && after["phase"] == "OPEN"
    })
    .await;
    assert!(drawn.is_some(), "{after}");
    let seed = hex::decode(after["draw"]["seed"].as_str().unwrap()).unwrap();
    assert_eq!(commitment(&seed), committed);
    assert_eq!(after["draw"]["count"], 40);
    let draw = Permutation::new(&seed, 40);
    let (code, late) = world.enter(&b, Uuid::now_v7()).await;
    assert_eq!(
        (code.as_u16(), number(&late)),
        (201, 41),
        "later arrivals follow"
    );
    let mut numbers = BTreeSet::new();
    for (i, (_, registered)) in people.iter().enumerate() {
        if i == 5 {
            continue; // gave up: WAITING until the number comes up, then 410
        }
        // The other instance's snapshot may be a moment older.
        let (mut code, mut place) = world.ask(&b, registered).await;
        until(Duration::from_secs(2), async || {
            (code, place) = world.ask(&b, registered).await;
            place["number"].is_u64()
        })
        .await;
        assert_eq!(code, 200, "{place}");
        assert_eq!(number(&place), draw.permute(i as u64) + 1, "recomputed");
        let works = status(&place) == "WORKING";
        assert!(
            works || number(&place) > 3,
            "the lowest work first: {place}"
        );
        numbers.insert(number(&place));
    }
    assert_eq!(numbers.len(), 39);
}
