//! Whole sales, struck by the hour: buyers walk their whole way while roles, Redis, PostgreSQL and
//! Kafka die of SIGKILL and come back or freeze, links between them swallow what they are given, and
//! webhooks are lost, late, doubled and out of order. In the end everything is at rest, the books balance, and every answer of 2xx still holds.
//!
//! `make chaos` runs many rounds of it and prints each; `make test` one short round a shape.
//! `TICKETPING_CHAOS_SEED` repeats a round's plan and its buyers' choices (the first round's; later
//! ones count on from it). What the machine makes of them is its own.

mod buyer;
mod plan;
mod told;
mod verdict;
mod world;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display, Write as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use self::buyer::{Shop, Shopper};
use self::plan::{Shape, Size};
use self::told::{Ending, Record};
use self::world::World;
use crate::harness::steps::{Buyer, Sale, the_performance};

/// One round in `make test`.
const SHORT: Size = Size {
    buyers: 24,
    storm: Duration::from_secs(5),
    strikes: 6,
    // Long after the last strike, on a machine that runs every other test beside it: who has
    // to give up shows nothing.
    patience: Duration::from_secs(60),
    standstill: Duration::from_secs(3),
};
/// One of many in `make chaos`: five of them are a thousand journeys.
const LONG: Size = Size {
    buyers: 200,
    storm: Duration::from_secs(40),
    strikes: 40,
    patience: Duration::from_secs(240),
    standstill: Duration::from_secs(20),
};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
    )
}

async fn run(shape: Shape) {
    let rounds = number("TICKETPING_CHAOS_ROUNDS");
    let first = number("TICKETPING_CHAOS_SEED").unwrap_or_else(rand::random);
    let mut size = rounds.map_or(SHORT, |_| LONG);
    if let Some(buyers) = number("TICKETPING_CHAOS_BUYERS") {
        size.buyers = usize::try_from(buyers).unwrap();
    }
    for nth in 0..rounds.unwrap_or(1) {
        round(shape, size, first.wrapping_add(nth)).await;
    }
}

async fn round(shape: Shape, size: Size, seed: u64) {
    println!(
        "chaos {shape:?}: TICKETPING_CHAOS_SEED={seed}, {} buyers",
        size.buyers
    );
    let begun = Instant::now();
    let mut world = World::open(shape, size, seed).await;
    let opened = begun.elapsed();
    let shop = Arc::new(shop(&world).await);
    let (endings, journeys) = storm(
        &mut world,
        &shop,
        plan::strikes(shape, size, seed),
        size,
        seed,
    )
    .await;
    let stormed = begun.elapsed() - opened;
    world.calm().await;
    let (breaches, rested) = verdict::judge(&mut world, &shop, &journeys).await;
    let told = tell(&world, &endings, &journeys);
    println!(
        "{told}  opened in {opened:.1?}, storm {stormed:.1?}, at rest after {rested:.1?}; breaches: {}",
        breaches.len()
    );
    let words = if breaches.is_empty() {
        String::new()
    } else {
        world.last_words()
    };
    world.close().await;
    // What matters stands last, where a log that is cut short still has it.
    assert!(
        breaches.is_empty(),
        "{words}\n{told}seed {seed}, {} breaches:\n{}",
        breaches.len(),
        breaches.join("\n")
    );
    // Nobody got anywhere: then nothing was shown either.
    let orders: usize = journeys.iter().map(|(_, record)| record.orders.len()).sum();
    assert!(
        orders * 10 >= size.buyers,
        "seed {seed}: only {orders} orders"
    );
}

async fn shop(world: &World) -> Shop {
    let sale = Sale {
        api: world.api.clone(),
        stripe: world.stripe.clone(),
        buyers: Vec::new(),
    };
    let (performance, schedule) = the_performance(&sale).await;
    let path = format!("/api/v1/schedules/{schedule}/seats");
    let map = world.api.get(&path, &[]).await.expect(200);
    let seats = map.body["seats"].as_array().unwrap();
    Shop {
        api: sale.api,
        stripe: sale.stripe,
        performance,
        schedule,
        seats: (seats.iter())
            .map(|seat| seat["id"].as_str().unwrap().to_owned())
            .collect(),
    }
}

type Journeys = (BTreeMap<Ending, usize>, Vec<(Buyer, Record)>);

async fn storm(
    world: &mut World,
    shop: &Arc<Shop>,
    strikes: Vec<plan::Strike>,
    size: Size,
    seed: u64,
) -> Journeys {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let walks: Vec<_> = (world.buyers.iter().cloned())
        .map(|buyer| {
            let comes = size.storm.mul_f64(rng.random_range(0.0..0.8));
            let (shop, own) = (shop.clone(), rng.random());
            tokio::spawn(async move {
                tokio::time::sleep(comes).await;
                let walk = Shopper::new(shop, buyer.clone(), own, size.patience);
                (walk.go().await, buyer)
            })
        })
        .collect();
    world
        .storm(&strikes, || walks.iter().any(|walk| !walk.is_finished()))
        .await;
    let (mut endings, mut journeys) = (BTreeMap::new(), Vec::new());
    for walk in walks {
        let ((ending, record), buyer) = walk.await.unwrap();
        *endings.entry(ending).or_default() += 1;
        journeys.push((buyer, record));
    }
    (endings, journeys)
}

/// What happened, for people.
fn tell(world: &World, endings: &BTreeMap<Ending, usize>, journeys: &[(Buyer, Record)]) -> String {
    let mut faults: BTreeMap<&str, u32> = BTreeMap::new();
    for (kind, n) in journeys.iter().flat_map(|(_, record)| &record.faults) {
        *faults.entry(kind).or_default() += n;
    }
    let mut waited_for: BTreeMap<&str, u32> = BTreeMap::new();
    for heard in journeys.iter().filter_map(|(_, r)| r.waited_for.as_ref()) {
        *waited_for.entry(heard).or_default() += 1;
    }
    let away: u32 = journeys.iter().map(|(_, record)| record.away).sum();
    let mut out = String::new();
    let mut line = |what: &str, counts: String| {
        let _ = writeln!(out, "  {what}: {counts}");
    };
    line("strikes", counts(&world.struck));
    line("at Stripe", counts(&faults));
    line(
        "journeys",
        counts(endings.iter().map(|(k, n)| (format!("{k:?}"), n))),
    );
    if !waited_for.is_empty() {
        line("gave up waiting for", counts(&waited_for));
    }
    line(
        "recoveries",
        format!("{}, asked again {away} times", world.recoveries),
    );
    out
}

fn counts<K: Display, N: Debug>(of: impl IntoIterator<Item = (K, N)>) -> String {
    let each: Vec<String> = of
        .into_iter()
        .map(|(kind, n)| format!("{kind} {n:?}"))
        .collect();
    each.join(", ")
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_apart_keep_their_word_whoever_dies() {
    run(Shape::Apart).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_keeps_its_word_whoever_dies() {
    run(Shape::All).await;
}
