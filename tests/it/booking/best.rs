//! `bestAvailable` against a brute-force answer on small halls.

use proptest::{
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, TestRunner},
};
use redis::AsyncCommands;
use serde_json::json;
use ticketping::serve::reservations::{
    catalogue::Stretch,
    scripts::{self, Held, Hold, Keys, Pick},
};
use uuid::Uuid;

use super::world::World;

/// All windows of free seats that stand side by side, then the two rules of the API.
fn brute_force(states: &[u8], stretches: &[Stretch], count: usize) -> Vec<Vec<u32>> {
    let mut tidy = Vec::new();
    let mut adjacent = Vec::new();
    for s in stretches {
        let (low, high) = (s.start as usize, (s.start + s.length) as usize);
        let free = |i: usize| (low..high).contains(&i) && states[i] == b'0';
        let in_row = |i: i64| usize::try_from(i).is_ok_and(free);
        let single = |i: i64| in_row(i) && !in_row(i - 1) && !in_row(i + 1);
        for at in s.from as usize..(s.to as usize + 1).saturating_sub(count) {
            if !(at..at + count).all(free) {
                continue;
            }
            let window: Vec<u32> = (at..at + count)
                .map(|i| u32::try_from(i).unwrap())
                .collect();
            let taken = |i: i64| {
                let i64_at = i64::try_from(at).unwrap();
                (i64_at..i64_at + i64::try_from(count).unwrap()).contains(&i)
            };
            // A neighbour that was not alone and now is.
            let orphan =
                |i: i64, beyond: i64| in_row(i) && !taken(i) && !in_row(beyond) && !single(i);
            let first = i64::try_from(at).unwrap();
            let last = first + i64::try_from(count).unwrap() - 1;
            if !orphan(first - 1, first - 2) && !orphan(last + 1, last + 2) {
                tidy.push(window.clone());
            }
            adjacent.push(window);
        }
    }
    if tidy.is_empty() { adjacent } else { tidy }
}

#[derive(Debug, Clone)]
struct Case {
    states: Vec<u8>,
    stretches: Vec<Stretch>,
    count: u32,
}

fn cases() -> impl Strategy<Value = Case> {
    let row = (1_u32..9, 0_u32..9, 0_u32..9);
    let rows = prop::collection::vec(row, 1..5);
    (rows, any::<u64>(), 1_u32..5).prop_map(|(rows, bits, count)| {
        let mut stretches = Vec::new();
        let mut start = 0;
        for (length, a, b) in rows {
            let (from, to) = (
                start + a.min(b) % (length + 1),
                start + length.min(a.max(b)),
            );
            stretches.push(Stretch {
                start,
                length,
                from: from.min(to),
                to,
            });
            start += length;
        }
        let states = (0..start)
            .map(|i| {
                if bits >> (i % 64) & 1 == 0 {
                    b'0'
                } else {
                    b'1'
                }
            })
            .collect();
        Case {
            states,
            stretches,
            count,
        }
    })
}

async fn pick(world: &World, case: &Case) -> Held {
    let mut redis = world.redis.clone();
    let (schedule, keys) = (Uuid::now_v7(), Keys::new(&world.prefix, world.performance));
    let () = redis.set(keys.seats(schedule), &case.states).await.unwrap();
    let () = redis
        .set(keys.owners(schedule), vec![0_u8; case.states.len() * 16])
        .await
        .unwrap();
    let () = redis.hset(keys.limit(), "built", "1").await.unwrap();
    let pick = Pick::Best {
        count: case.count,
        stretches: case.stretches.clone(),
    };
    let hold = Hold {
        order: Uuid::now_v7(),
        version: 1,
        user: Uuid::now_v7(),
        schedule,
        ttl_ms: 1_000,
        limit: 4,
        place: None,
        counted: None,
        sales_end_ms: i64::MAX / 2,
        starts_ms: i64::MAX / 2,
        pick: &pick,
    };
    scripts::hold(&mut redis, &keys, &hold).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_script_agrees_with_brute_force() {
    let world = World::new(1, 1).await;
    let mut runner = TestRunner::new(Config::default());
    let strategy = cases();
    for _ in 0..400 {
        let case = strategy.new_tree(&mut runner).unwrap().current();
        let windows = brute_force(&case.states, &case.stretches, case.count as usize);
        let wanted: Vec<u32> = case.stretches.iter().flat_map(|s| s.from..s.to).collect();
        let free = wanted
            .iter()
            .filter(|i| case.states[**i as usize] == b'0')
            .count();
        match pick(&world, &case).await {
            Held::Seats { indices, .. } if windows.is_empty() => {
                assert_eq!(indices.len(), case.count as usize, "{case:?}");
                let distinct: std::collections::BTreeSet<_> = indices.iter().collect();
                assert_eq!(distinct.len(), indices.len(), "{case:?}");
                assert!(
                    indices
                        .iter()
                        .all(|i| wanted.contains(i) && case.states[*i as usize] == b'0')
                );
            }
            Held::Seats { indices, .. } => {
                assert!(windows.contains(&indices), "{indices:?} {case:?}")
            }
            Held::Taken(seats) => {
                assert!(seats.is_empty() && free < case.count as usize, "{case:?}");
            }
            other => panic!("{other:?} {case:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_http_the_front_row_s_middle_goes_first() {
    let world = World::new(2, 7).await;
    let buyer = world.admitted().await;
    let body = json!({ "scheduleId": world.schedule, "bestAvailable": { "count": 3 } });
    let order = world.order(&buyer, body, None).await.body;
    let numbers: Vec<_> = order["seats"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["number"].as_i64().unwrap())
        .collect();
    assert_eq!(
        (numbers, &order["seats"][0]["row"]),
        (vec![3, 4, 5], &json!("A"))
    );
    let other = world.admitted().await;
    let body =
        json!({ "scheduleId": world.schedule, "bestAvailable": { "count": 2, "grade": "R" } });
    let order = world.order(&other, body, None).await.body;
    assert_eq!(order["seats"][0]["row"], "B");
    let many = json!({ "scheduleId": world.schedule, "bestAvailable": { "count": 4 } });
    let third = world.admitted().await;
    assert_eq!(
        world
            .order(&third, many.clone(), None)
            .await
            .status
            .as_u16(),
        201
    );
    let fourth = world.admitted().await;
    let full = world.order(&fourth, many.clone(), None).await;
    assert_eq!(
        full.status.as_u16(),
        201,
        "any four are left: {}",
        full.body
    );
    let fifth = world.admitted().await;
    let none = world.order(&fifth, many, None).await;
    assert_eq!(
        (none.code(), &none.body["seatIds"]),
        ("SEATS_TAKEN", &json!([]))
    );
    world.consistent().await;
}
