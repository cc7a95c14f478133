//! What is lost in Redis comes back from Postgres; a missing seat is never free.

use redis::AsyncCommands;
use ticketping::serve::reservations::scripts::{self, Keys, Settle, Settled, Show};
use uuid::Uuid;

use super::world::World;
use crate::harness;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_redis_is_rebuilt_and_sells_nothing_twice() {
    let world = World::new(1, 6).await;
    let (buyer, other) = (world.admitted().await, world.admitted().await);
    let sold = world.order_seats(&buyer, &[0]).await.id();
    assert!(world.paid(Uuid::now_v7(), sold, Uuid::now_v7()).await);
    world.order_seats(&buyer, &[1, 2]).await;
    world.flush_redis().await;
    world.reopen_queue().await;
    let map = world.until_map(3).await.body;
    assert_eq!(map["seats"][0]["status"], "SOLD");
    assert_eq!(map["seats"][1]["status"], "HELD");
    let back = world.admitted().await;
    for taken in [0, 1, 2] {
        assert_eq!(
            world.order_seats(&back, &[taken]).await.code(),
            "SEATS_TAKEN"
        );
    }
    assert_eq!(world.bytes().await, "211000");
    world.consistent().await;
    drop(other);
}

/// The limit comes back as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebuilt_limit_still_counts() {
    let world = World::new(1, 10).await;
    let buyer = world.admitted().await;
    world.order_seats(&buyer, &[0, 1, 2]).await;
    world.flush_redis().await;
    world.reopen_queue().await;
    let mut redis = world.redis.clone();
    let until = chrono::Utc::now().timestamp_millis() + 60_000;
    let _: usize = redis
        .zadd(world.key("work"), buyer.id.as_bytes(), until)
        .await
        .unwrap();
    let _: usize = redis
        .hset(
            world.key("place"),
            buyer.id.as_bytes(),
            format!("{},A", buyer.number),
        )
        .await
        .unwrap();
    assert_eq!(
        world.order_seats(&buyer, &[5, 6]).await.code(),
        "SEAT_LIMIT_EXCEEDED"
    );
    assert_eq!(world.order_seats(&buyer, &[5]).await.status.as_u16(), 201);
    world.consistent().await;
}

/// Redis is back with an older state, where what was sold meanwhile is held still: PostgreSQL has
/// the sale already, and its settling must not take it off the seats left once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_epoch_counts_a_sale_once_that_is_settled_after_it() {
    let world = World::new(1, 6).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    world.until_bytes("220000").await;
    assert_eq!(world.remaining().await, 4);
    world.older_seats("110000").await;
    world.begin_epoch(4).await;
    assert_eq!(world.remaining().await, 6, "as the seats here say");
    world.state.show(world.performance, order).await.unwrap();
    assert_eq!(world.bytes().await, "220000");
    assert_eq!(world.remaining().await, 4);
    // An older state in which all was sold ends nobody's place.
    world.older_seats("222222").await;
    world.begin_epoch(4).await;
    assert_eq!(world.remaining().await, 4);
    // Seats that are gone altogether say nothing.
    world.flush_redis().await;
    world.reopen_queue().await;
    world.begin_epoch(4).await;
    assert_eq!(world.remaining().await, 4);
    world.state.show(world.performance, order).await.unwrap();
    assert_eq!(world.remaining().await, 4);
    world.consistent().await;
}

/// Nobody books or pays: that the queue began anew is enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seats_of_an_older_state_are_repaired_when_an_epoch_begins() {
    let world = World::new(1, 6).await;
    let tasks = ticketping::platform::tasks::Tasks::new();
    ticketping::serve::reservations::tasks(&world.state, &tasks);
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    world.until_bytes("220000").await;
    world.older_seats("110000").await;
    let sold = world.sold().await;
    assert_eq!(sold.body["sold"], 2);
    world.begin_epoch(4).await;
    world.until_bytes("220000").await;
    harness::eventually("counted anew", async || world.remaining().await == 4).await;
    world.consistent().await;
    tasks.stop(std::time::Duration::from_secs(1)).await;
}

/// Redis forgets that a seat is sold: Postgres has the last word, and Redis is put right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_has_the_last_word() {
    let world = World::new(1, 4).await;
    let (first, second) = (world.admitted().await, world.admitted().await);
    let order = world.order_seats(&first, &[0]).await.id();
    let mut redis = world.redis.clone();
    let seats = world.key(&format!("seats:{}", world.schedule));
    let _: usize = redis.setrange(&seats, 0, "0").await.unwrap();
    let answer = world.order_seats(&second, &[0, 1]).await;
    assert_eq!(
        (answer.status.as_u16(), answer.code()),
        (409, "SEATS_TAKEN")
    );
    world.state.repair(world.performance).await.unwrap();
    assert_eq!(world.bytes().await, "1000");
    assert_eq!(world.row(order).await.0, "PENDING");
    world.consistent().await;
}

/// A step that was held up on its way to Redis finds that time has moved on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_step_of_an_old_hold_changes_nothing() {
    let world = World::new(1, 4).await;
    let (buyer, next) = (world.admitted().await, world.admitted().await);
    let order = world.order_seats(&buyer, &[0]).await.id();
    let (_, version, _) = world.row(order).await;
    world.lapse(order).await;
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    let keys = Keys::new(&world.prefix, world.performance);
    let mut redis = world.redis.clone();
    let mut late = Settle {
        order,
        version,
        user: Some(buyer.id),
        schedule: world.schedule,
        show: Show::Free,
        place: None,
        keeps_ms: 0,
        sales_end_ms: 0,
        indices: &[0],
    };
    assert_eq!(
        scripts::settle(&mut redis, &keys, &late).await.unwrap(),
        Settled::Stale
    );
    assert_eq!(world.bytes().await, "2000");
    // And once the seat is another's, not even a newer version of this order frees it.
    world.cancel(order, &buyer).await;
    world.order_seats(&next, &[0]).await;
    late.version = 1_000;
    assert_eq!(
        scripts::settle(&mut redis, &keys, &late).await.unwrap(),
        Settled::Done
    );
    assert_eq!(world.bytes().await, "1000");
    world.consistent().await;
}

/// A process died between the hold and the order: at its deadline the hold goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_without_an_order_goes_at_its_deadline() {
    let mut config = super::world::config();
    config.hold_ttl = std::time::Duration::from_millis(300);
    let world = World::with(1, 4, config).await;
    let buyer = world.admitted().await;
    world.order_seats(&buyer, &[0, 1]).await;
    for table in ["delete from order_seats", "delete from orders"] {
        sqlx::query(table).execute(&world.pool).await.unwrap();
    }
    world.state.sweep().await.unwrap();
    assert_eq!(world.bytes().await, "1100", "not before its deadline");
    harness::eventually("the hold is gone", async || {
        world.state.sweep().await.unwrap();
        world.bytes().await == "0000"
    })
    .await;
    world.consistent().await;
}

/// The bell rings by itself: nobody sweeps here but the role's own tasks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hold_ends_by_its_bell_within_a_moment() {
    let mut config = super::world::config();
    config.hold_ttl = std::time::Duration::from_millis(1_500);
    let world = World::with(1, 4, config).await;
    let tasks = ticketping::platform::tasks::Tasks::new();
    ticketping::serve::reservations::tasks(&world.state, &tasks);
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await.id();
    let started = std::time::Instant::now();
    harness::eventually("bell or sweep", async || {
        world.row(order).await.0 == "EXPIRED"
    })
    .await;
    let ms = started.elapsed().as_millis();
    assert!((1_300..4_000).contains(&ms), "after {ms} ms");
    world.until_bytes("0000").await;
    world.consistent().await;
    tasks.stop(std::time::Duration::from_secs(1)).await;
}
