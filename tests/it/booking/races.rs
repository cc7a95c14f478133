//! What happens at the same instant.

use std::sync::Arc;

use futures_util::future::{join, join_all};
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use super::world::World;

/// The payment succeeds in the very moment the hold ends, over and over: the
/// order is confirmed, or its money goes back; never both, never neither.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paying_against_expiring() {
    let world = Arc::new(World::new(2, 20).await);
    let rounds = join_all((0..30).map(|round| {
        let world = world.clone();
        async move {
            let buyer = world.admitted().await;
            let order = world.order_seats(&buyer, &[round]).await.id();
            if round % 2 == 0 {
                world.begin_payment(order, &buyer).await;
            }
            world.age(order).await;
            let lapse = world.bell(order);
            let ((), paid) = join(lapse, world.paid(Uuid::now_v7(), order, Uuid::now_v7())).await;
            assert!(paid);
            order
        }
    }))
    .await;
    for order in rounds {
        assert_eq!(
            world.row(order).await.0,
            "CONFIRMED",
            "nobody else wanted the seat"
        );
        assert_eq!(world.said("order.confirmed", order).await, 1);
        assert_eq!(world.said("refund.requested", order).await, 0);
    }
    world.consistent().await;
}

/// The same, with rivals who take what is freed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paying_against_expiring_with_rivals() {
    let world = Arc::new(World::new(1, 20).await);
    join_all((0..20).map(|seat| {
        let world = world.clone();
        async move {
            let (buyer, rival) = (world.admitted().await, world.admitted().await);
            let order = world.order_seats(&buyer, &[seat]).await.id();
            world.age(order).await;
            let chase = async {
                for _ in 0..20 {
                    let answer = world.order_seats(&rival, &[seat]).await;
                    if answer.status.is_success() {
                        let won = answer.id();
                        assert!(world.paid(Uuid::now_v7(), won, Uuid::now_v7()).await);
                        return Some(won);
                    }
                }
                None
            };
            let pay = async {
                world.bell(order).await;
                assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
            };
            let (rivals, ()) = join(chase, pay).await;
            let confirmed = world.row(order).await.0 == "CONFIRMED";
            let refunded = world.said("refund.requested", order).await == 1;
            assert!(confirmed != refunded, "one of both");
            if let Some(rivals) = rivals {
                // The rival's own payment may have met the other's live order.
                let theirs = world.row(rivals).await.0 == "CONFIRMED";
                assert!(theirs != confirmed, "one seat, one owner");
            }
        }
    }))
    .await;
    world.consistent().await;
}

/// Everybody does everything at once, seeded: the books balance afterwards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_at_random() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let world = Arc::new(World::new(3, 10).await);
    join_all((0..40_u64).map(|nth| {
        let world = world.clone();
        async move {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed ^ nth);
            let buyer = world.admitted().await;
            for _ in 0..6 {
                let first = rng.random_range(0..29);
                let answer = world.order_seats(&buyer, &[first, first + 1]).await;
                if !answer.status.is_success() {
                    continue;
                }
                let (order, payment) = (answer.id(), Uuid::now_v7());
                for _ in 0..rng.random_range(1..5) {
                    match rng.random_range(0..6) {
                        0 => drop(world.cancel(order, &buyer).await),
                        1 => world.lapse(order).await,
                        2 => drop(world.begin_payment(order, &buyer).await),
                        3 => drop(world.state.repair(world.performance).await),
                        _ => assert!(world.paid(Uuid::now_v7(), order, payment).await),
                    }
                }
            }
        }
    }))
    .await;
    world.state.repair(world.performance).await.unwrap();
    world.consistent().await;
    // Every capture is a confirmed order's, or goes back, and never both.
    let breaches = sqlx::query(
        "select o.id from orders o left join refunds r on r.payment_id = o.payment_id
         where (o.state = 'CONFIRMED' and r.payment_id is not null)
            or (o.state = 'REFUNDED' and r.payment_id is null)",
    )
    .fetch_all(&world.pool)
    .await
    .unwrap();
    assert!(breaches.is_empty(), "seed {seed}");
}
