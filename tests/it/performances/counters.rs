//! Sold counters, under events that come twice and in any order.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sold_counters_are_right_after_duplicates_in_any_order() {
    let world = Arc::new(world().await);
    let open = world.in_state("OPEN").await;
    let schedule = world.schedule_of(&open).await;
    let schedule: Uuid = schedule["id"].as_str().unwrap().parse().unwrap();
    let mut events = Vec::new();
    let mut sold = 0;
    for n in 0..60 {
        let (order, seats) = (Uuid::now_v7(), n % 4 + 1);
        // Of five orders two are refunded, and one refund is all that is ever told of.
        if n % 5 != 4 {
            events.push(event("order.confirmed", order, schedule, seats));
        }
        match n % 5 {
            0 | 1 | 4 => events.push(event("order.refunded", order, schedule, seats)),
            _ => sold += seats,
        }
    }
    // Each comes three times: twice the same message, and once said again under a new id.
    let again: Vec<_> = events
        .iter()
        .map(|e| {
            Event::new(
                Uuid::now_v7(),
                "reservations",
                e.kind.clone(),
                e.subject.clone(),
                e.time,
                e.data.clone(),
            )
        })
        .collect();
    let mut all: Vec<_> = events
        .iter()
        .cloned()
        .chain(events.clone())
        .chain(again)
        .collect();
    all.shuffle(&mut rand::rng());
    let parts: Vec<_> = all
        .chunks(all.len().div_ceil(8))
        .map(|part| {
            let (world, part) = (world.clone(), part.to_vec());
            tokio::spawn(async move {
                for event in part {
                    world.tell(&event).await.unwrap();
                }
            })
        })
        .collect();
    for part in parts {
        part.await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let shown = world.get(&format!("/api/v1/schedules/{schedule}")).await;
    assert_eq!(shown.body["remainingSeats"], 1_200 - sold);
    let id = open["id"].as_str().unwrap();
    let shown = world.get(&format!("/api/v1/performances/{id}")).await;
    assert_eq!(shown.body["remainingSeats"], 3_600 - sold);
}

#[tokio::test]
async fn the_last_seat_sold_is_sold_out_and_a_refund_opens_it_again() {
    let world = world().await;
    let all = world.get("/api/v1/performances").await;
    let few = all
        .items()
        .iter()
        .find(|p| p["remainingSeats"] == 4)
        .unwrap();
    let id = few["id"].as_str().unwrap();
    let schedules = world
        .get(&format!("/api/v1/performances/{id}/schedules"))
        .await;
    let mut orders = Vec::new();
    for schedule in schedules.items() {
        let (order, left) = (
            Uuid::now_v7(),
            schedule["remainingSeats"].as_i64().unwrap() as i32,
        );
        let schedule = schedule["id"].as_str().unwrap().parse().unwrap();
        world
            .tell(&event("order.confirmed", order, schedule, left))
            .await
            .unwrap();
        orders.push((order, schedule, left));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = world.get(&format!("/api/v1/performances/{id}")).await;
    assert_eq!(
        (&after.body["booking"], &after.body["remainingSeats"]),
        (&json!("SOLD_OUT"), &json!(0))
    );
    let (order, schedule, left) = orders[0];
    world
        .tell(&event("order.refunded", order, schedule, left))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after = world.get(&format!("/api/v1/performances/{id}")).await;
    assert_eq!(
        (&after.body["booking"], &after.body["remainingSeats"]),
        (&json!("OPEN"), &json!(left))
    );
}

#[tokio::test]
async fn an_event_that_makes_no_sense_is_poison_and_counts_nothing() {
    let world = world().await;
    let schedule = world.schedule_of(&world.in_state("OPEN").await).await;
    let schedule: Uuid = schedule["id"].as_str().unwrap().parse().unwrap();
    let nonsense = RawValue::from_string("{\"orderId\": 7}".into()).unwrap();
    let id = Uuid::now_v7();
    let bad = [
        Event::new(
            id,
            "reservations",
            "order.confirmed",
            "x",
            Utc::now(),
            nonsense,
        ),
        event("order.confirmed", Uuid::now_v7(), schedule, -5),
        event("order.confirmed", Uuid::now_v7(), Uuid::now_v7(), 1),
    ];
    for event in bad {
        assert!(
            matches!(world.tell(&event).await, Err(HandlerError::Poison(_))),
            "{event:?}"
        );
    }
    let left: i64 = sqlx::query_scalar("select count(*) from inbox")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(left, 0, "the inbox notes what was done, and nothing was");
}
