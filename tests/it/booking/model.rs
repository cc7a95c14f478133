//! Random steps on the real stores, held against a model that knows no machine,
//! no script and no SQL: only who has which seat and whose money is where.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use redis::AsyncCommands;
use serde_json::json;
use uuid::Uuid;

use super::world::{Buyer, World};

const SEATS: usize = 8;
const STEPS: usize = 60;
const LIMIT: usize = 4;

#[derive(Debug)]
struct Order {
    buyer: usize,
    seats: Vec<usize>,
    state: &'static str,
    /// Its hold lapsed while it was being paid.
    closing: bool,
    paid_by: Option<usize>,
    captured: [Option<Uuid>; 2],
    given_back: Vec<Uuid>,
}

impl Order {
    fn live(&self) -> bool {
        matches!(self.state, "PENDING" | "PAYING" | "CONFIRMED")
    }
}

struct Model {
    orders: BTreeMap<Uuid, Order>,
}

impl Model {
    fn free(&self, seats: &[usize]) -> bool {
        let taken = |seat| {
            self.orders
                .values()
                .any(|o| o.live() && o.seats.contains(seat))
        };
        !seats.iter().any(taken)
    }

    fn had(&self, buyer: usize) -> usize {
        let of = |o: &&Order| o.live() && o.buyer == buyer;
        self.orders.values().filter(of).map(|o| o.seats.len()).sum()
    }

    fn bytes(&self) -> String {
        let mut bytes = vec![b'0'; SEATS];
        for order in self.orders.values().filter(|o| o.live()) {
            for seat in &order.seats {
                bytes[*seat] = if order.state == "CONFIRMED" {
                    b'2'
                } else {
                    b'1'
                };
            }
        }
        String::from_utf8(bytes).unwrap()
    }

    fn pay(&mut self, id: Uuid, nth: usize) -> Uuid {
        let (buyer, seats) = (self.orders[&id].buyer, self.orders[&id].seats.clone());
        let again = self.free(&seats) && self.had(buyer) + seats.len() <= LIMIT;
        let order = self.orders.get_mut(&id).unwrap();
        let known = order.captured[nth].is_some();
        let payment = *order.captured[nth].get_or_insert_with(Uuid::now_v7);
        if known {
            return payment;
        }
        let gets_it = match order.state {
            "PENDING" | "PAYING" => true,
            "EXPIRED" => again && order.paid_by.is_none(),
            _ => false,
        };
        if gets_it {
            (order.state, order.closing, order.paid_by) = ("CONFIRMED", false, Some(nth));
        } else {
            order.given_back.push(payment);
        }
        payment
    }
}

async fn readmit(world: &World, buyers: &[Buyer]) {
    let mut redis = world.redis.clone();
    let until = chrono::Utc::now().timestamp_millis() + 420_000;
    for buyer in buyers {
        let id = buyer.id.as_bytes();
        let () = redis.zadd(world.key("work"), id, until).await.unwrap();
        let () = redis
            .hset(world.key("place"), id, format!("{},A", buyer.number))
            .await
            .unwrap();
    }
}

async fn hold(world: &World, model: &mut Model, buyers: &[Buyer], who: usize, seats: Vec<usize>) {
    let (free, had) = (model.free(&seats), model.had(who));
    let answer = world.order_seats(&buyers[who], &seats).await;
    if had + seats.len() > LIMIT {
        assert_eq!(answer.code(), "SEAT_LIMIT_EXCEEDED");
    } else if free {
        assert_eq!(answer.status.as_u16(), 201, "{}", answer.body);
        let order = Order {
            buyer: who,
            seats,
            state: "PENDING",
            closing: false,
            paid_by: None,
            captured: [None; 2],
            given_back: Vec::new(),
        };
        model.orders.insert(answer.id(), order);
    } else {
        assert_eq!(answer.code(), "SEATS_TAKEN");
    }
}

async fn step(world: &World, model: &mut Model, buyers: &[Buyer], kind: u32, id: Uuid) {
    let order = model.orders.get_mut(&id).unwrap();
    let buyer = &buyers[order.buyer];
    match kind {
        0 => {
            world.begin_payment(id, buyer).await;
            if order.state == "PENDING" {
                order.state = "PAYING";
            }
        }
        1 => {
            world.lapse(id).await;
            match order.state {
                "PENDING" => order.state = "EXPIRED",
                "PAYING" => order.closing = true,
                _ => {}
            }
        }
        2 => {
            world.cancel(id, buyer).await;
            match order.state {
                "PENDING" => order.state = "CANCELLED",
                "PAYING" => {
                    order.state = if order.closing {
                        "EXPIRED"
                    } else {
                        "CANCELLED"
                    }
                }
                "CONFIRMED" => {
                    order.state = "REFUNDED";
                    order
                        .given_back
                        .extend(order.captured[order.paid_by.unwrap()]);
                }
                _ => {}
            }
        }
        3 => {
            let data = json!({ "orderId": id, "paymentId": null });
            assert!(world.hear(Uuid::now_v7(), "payment.cancelled", &data).await);
            match order.state {
                "PENDING" => order.state = "CANCELLED",
                "PAYING" => {
                    order.state = if order.closing {
                        "EXPIRED"
                    } else {
                        "CANCELLED"
                    }
                }
                _ => {}
            }
        }
        4 => {
            let data = json!({ "orderId": id, "paymentId": Uuid::now_v7() });
            assert!(world.hear(Uuid::now_v7(), "payment.failed", &data).await);
        }
        nth => {
            let payment = model.pay(id, usize::from(nth == 5));
            assert!(world.paid(Uuid::now_v7(), id, payment).await);
        }
    }
}

async fn agree(world: &World, model: &Model) {
    assert_eq!(world.bytes().await, model.bytes());
    for (id, order) in &model.orders {
        assert_eq!(world.row(*id).await.0, order.state, "{order:?}");
        let back = i64::try_from(order.given_back.len()).unwrap();
        assert_eq!(world.said("refund.requested", *id).await, back, "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_steps_agree_with_the_model() {
    let seed = std::env::var("TICKETPING_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(rand::random);
    eprintln!("TICKETPING_TEST_SEED={seed}");
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let world = World::new(1, u32::try_from(SEATS).unwrap()).await;
    let mut buyers = Vec::new();
    for _ in 0..4 {
        buyers.push(world.admitted().await);
    }
    let mut model = Model {
        orders: BTreeMap::new(),
    };
    for _ in 0..STEPS {
        let ids: Vec<Uuid> = model.orders.keys().copied().collect();
        let kind = rng.random_range(0..14);
        match kind {
            0..7 if !ids.is_empty() => {
                let id = ids[rng.random_range(0..ids.len())];
                step(&world, &mut model, &buyers, kind, id).await;
            }
            12 => drop(world.state.repair(world.performance).await.unwrap()),
            13 => {
                world.flush_redis().await;
                world.reopen_queue().await;
                readmit(&world, &buyers).await;
                world.state.rebuild(world.performance).await.unwrap();
            }
            _ => {
                let (first, count) = (rng.random_range(0..SEATS), rng.random_range(1..4));
                let seats = (first..SEATS.min(first + count)).collect();
                let who = rng.random_range(0..buyers.len());
                hold(&world, &mut model, &buyers, who, seats).await;
            }
        }
        if !model.orders.is_empty() {
            agree(&world, &model).await;
        }
    }
    world.consistent().await;
}
