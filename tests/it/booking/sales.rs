//! Nothing is sold that cannot be honoured: the end of a schedule's sales, and a catalogue that changes while it is sold.

use http::StatusCode;
use redis::AsyncCommands;
use serde_json::{Value, json};
use ticketping::platform::catalogue_changes::{Changes, Follower};
use uuid::Uuid;

use super::{
    house::pool_of_performances,
    world::{Buyer, World},
};

/// A change of the catalogue by whoever writes it.
async fn change(world: &World, statement: &'static str) {
    let pool = pool_of_performances(&world.database).await;
    sqlx::query(statement).execute(&pool).await.unwrap();
}

async fn follows(world: &World, follower: &mut Follower) {
    world.state.follow_catalogue(follower).await;
}

async fn best(world: &World, buyer: &Buyer) -> (StatusCode, String) {
    let body = json!({ "scheduleId": world.schedule, "bestAvailable": { "count": 2 } });
    let answer = world.order(buyer, body, None).await;
    (answer.status, answer.code().to_owned())
}

fn ended() -> (StatusCode, String) {
    (StatusCode::CONFLICT, "SALES_ENDED".to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_ended_is_neither_held_nor_does_it_remain() {
    let world = World::new(1, 10).await;
    let mut follower = world.state.catalogue_follower();
    follows(&world, &mut follower).await;
    let (buyer, late) = (world.admitted().await, world.admitted().await);
    let wish = json!({ "scheduleId": world.schedule, "seatIds": world.ids(&[0, 1]) });
    let held = world.order(&buyer, wish.clone(), Some("key-1")).await;
    assert_eq!(held.status, StatusCode::CREATED, "{}", held.body);
    assert_eq!(world.remaining().await, 10);

    change(&world, "update schedules set sales_end_at = now()").await;
    follows(&world, &mut follower).await;
    assert_eq!(world.remaining().await, 0, "nothing of it remains");
    let refused = world.order_seats(&late, &[5]).await;
    assert_eq!((refused.status, refused.code().to_owned()), ended());
    assert!(refused.body["salesEndAt"].is_string(), "{}", refused.body);
    assert_eq!(best(&world, &late).await, ended());
    assert_eq!(world.bytes().await, "1100000000");
    let replay = world.order(&buyer, wish, Some("key-1")).await;
    assert_eq!(
        replay.id(),
        held.id(),
        "what was held in time is answered again"
    );

    // It can still be paid, and what is sold then is taken off nothing.
    let begun = world.begin_payment(held.id(), &buyer).await;
    assert_eq!(begun.status, StatusCode::OK, "{}", begun.body);
    assert!(world.paid(Uuid::now_v7(), held.id(), Uuid::now_v7()).await);
    assert_eq!(world.row(held.id()).await.0, "CONFIRMED");
    assert_eq!(world.remaining().await, 0);

    // A wrong end is taken back.
    change(&world, "update schedules set sales_end_at = null").await;
    follows(&world, &mut follower).await;
    assert_eq!(world.remaining().await, 8);
    assert_eq!(best(&world, &late).await.0, StatusCode::CREATED);
    world.consistent().await;
}

/// The store's clock decides, whatever this process believes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clock_of_the_store_ends_the_sales() {
    let world = World::new(1, 4).await;
    let buyer = world.admitted().await;
    let mut redis = world.redis.clone();
    // The show is in thirty days; turns last on.
    let month = 31_i64 * 86_400_000;
    let until = chrono::Utc::now().timestamp_millis() + 2 * month;
    let _: usize = redis
        .zadd(world.key("work"), buyer.id.as_bytes(), until)
        .await
        .unwrap();
    let _: usize = redis.hset(world.key("meta"), "skew", month).await.unwrap();
    let refused = world.order_seats(&buyer, &[0]).await;
    assert_eq!((refused.status, refused.code().to_owned()), ended());
    assert_eq!(world.bytes().await, "0000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn money_that_comes_after_the_end_goes_back() {
    let world = World::new(1, 4).await;
    let mut follower = world.state.catalogue_follower();
    follows(&world, &mut follower).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[1]).await.id();
    world.lapse(order).await;
    assert_eq!(world.bytes().await, "0000");
    change(
        &world,
        "update schedules set sales_end_at = now() - interval '1 minute'",
    )
    .await;
    follows(&world, &mut follower).await;
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    let (state, _, reason) = world.row(order).await;
    assert_eq!(
        (state.as_str(), reason.as_deref()),
        ("EXPIRED", Some("PAID_TOO_LATE_SALES_ENDED"))
    );
    assert_eq!(world.said("refund.requested", order).await, 1);
    assert_eq!(world.bytes().await, "0000");
}

/// An order made just before the show can be paid until it begins, and no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_hold_and_no_renewal_outlasts_the_beginning_of_the_show() {
    let world = World::new(1, 4).await;
    change(&world, "update schedules set starts_at = date_trunc('milliseconds', now() + interval '60 seconds')").await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0]).await;
    assert_eq!(order.status, StatusCode::CREATED, "{}", order.body);
    let starts: Value = order.body["startsAt"].clone();
    assert_eq!(
        order.body["expiresAt"], starts,
        "a hold would last two minutes"
    );
    let begun = world.begin_payment(order.id(), &buyer).await;
    assert_eq!(
        (begun.status, &begun.body["expiresAt"]),
        (StatusCode::OK, &starts)
    );
    let second = world.order_seats(&buyer, &[1]).await.id();
    world
        .sql("update orders set starts_at = now() - interval '1 second'")
        .await;
    let late = world.begin_payment(second, &buyer).await;
    assert_eq!(late.code(), "HOLD_EXPIRED", "{}", late.body);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_price_counts_at_once_and_for_new_holds_alone() {
    let world = World::new(1, 4).await;
    let mut follower = world.state.catalogue_follower();
    follows(&world, &mut follower).await;
    let buyer = world.admitted().await;
    let before = world.order_seats(&buyer, &[0]).await;
    assert_eq!(before.body["amount"], 150_000);
    let map = world.until_map(1).await;
    change(
        &world,
        "update price_grades set price = 170000 where grade = 0",
    )
    .await;
    change(&world, "update performances set title = 'Another play'").await;
    follows(&world, &mut follower).await;
    let path = format!("/api/v1/schedules/{}/seats", world.schedule);
    let mut now = map.body.clone();
    crate::harness::eventually("the map shows the price", async || {
        now = world.call("GET", &path, "", None).await.body;
        now["seats"][1]["price"] == 170_000
    })
    .await;
    let after = world.order_seats(&buyer, &[1]).await;
    assert_eq!(after.body["amount"], 170_000);
    assert_eq!(after.body["performanceTitle"], "Another play");
    let path = format!("/api/v1/orders/{}", before.id());
    let held = world.call("GET", &path, &buyer.token, None).await;
    assert_eq!(held.body["amount"], 150_000, "what is held keeps its price");
}

/// What another transaction has not committed yet is reported once it has, though a later one came first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_commits_late_is_not_missed() {
    let world = World::new(1, 1).await;
    let pool = pool_of_performances(&world.database).await;
    let mut follower = world.state.catalogue_follower();
    follower.next().await.unwrap();
    let mut slow = pool.begin().await.unwrap();
    sqlx::query("update price_grades set price = 1 where grade = 0")
        .execute(&mut *slow)
        .await
        .unwrap();
    let other = Uuid::now_v7();
    sqlx::query("insert into catalogue_changes (performance_id) values ($1)")
        .bind(other)
        .execute(&pool)
        .await
        .unwrap();
    // The server's other databases have transactions of their own. While one of them is open, what this one made
    // earlier may be reported as well: then it is of a version of its own.
    let ours = |changes: &Changes| -> Vec<String> {
        let of_ours = changes
            .changed
            .iter()
            .filter(|c| c.performance_id == world.performance);
        of_ours.map(|c| c.version.clone()).collect()
    };
    let is_told_of = |changes: &Changes| changes.changed.iter().any(|c| c.performance_id == other);
    let first = follower.next().await.unwrap();
    assert!(is_told_of(&first), "{first:?}");
    slow.commit().await.unwrap();
    let second = follower.next().await.unwrap();
    let late = ours(&second);
    assert_eq!(late.len(), 1, "{second:?}");
    assert!(!ours(&first).contains(&late[0]), "before it committed");
    assert!(!is_told_of(&second), "the other is not reported again");
    let third = follower.next().await.unwrap();
    assert!(ours(&third).is_empty() && !is_told_of(&third), "{third:?}");
}

/// Of two schedules one has ended: what is settled of it then changes nothing of what remains of the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_sale_takes_nothing_off_another_schedule() {
    let world = World::new(1, 6).await;
    let mut follower = world.state.catalogue_follower();
    follows(&world, &mut follower).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    change(
        &world,
        "with second as (
             insert into schedules (id, performance_id, starts_at, total_seats)
             select '01890000-0000-7000-8000-00000000000a', performance_id, starts_at, 3 from schedules returning id)
         insert into seats (schedule_id, idx, section, grade, number, row_label, id)
         select second.id, nth, 0, 0, nth + 1, 'A', gen_random_uuid() from second, generate_series(0, 2) as nth",
    )
    .await;
    follows(&world, &mut follower).await;
    assert_eq!(world.remaining().await, 9, "two schedules");
    // Redis shows the sale as held still; its sales end; then it is settled.
    let first = "update schedules set sales_end_at = now() where total_seats = 6";
    change(&world, first).await;
    follows(&world, &mut follower).await;
    assert_eq!(world.remaining().await, 3, "only what can still be bought");
    let known = world.order_seats(&buyer, &[2]).await;
    assert_eq!(known.code(), "SALES_ENDED");
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    assert!(world.bytes().await.starts_with("22"));
    assert_eq!(world.remaining().await, 3);
    world.cancel(order, &buyer).await;
    assert_eq!(
        world.remaining().await,
        3,
        "nor does its refund add anything"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_amount_that_the_provider_refuses_holds_no_seat() {
    let world = World::new(2, 4).await;
    // The first row costs 60 won and the second 30; the provider takes 100 at least.
    change(&world, "update price_grades set price = 60 - 30 * grade").await;
    let buyer = world.admitted().await;
    let refused = |answer: &super::world::Answer| {
        assert_eq!(answer.status, StatusCode::CONFLICT, "{}", answer.body);
        assert_eq!(answer.code(), "AMOUNT_NOT_PAYABLE");
    };
    refused(&world.order_seats(&buyer, &[0]).await);
    refused(&world.order_seats(&buyer, &[4, 5, 6]).await);
    let best = |count: u32, grade: Option<&str>| json!({ "scheduleId": world.schedule, "bestAvailable": { "count": count, "grade": grade } });
    refused(&world.order(&buyer, best(3, Some("R")), None).await);
    refused(&world.order(&buyer, best(1, None), None).await);
    assert!(!world.bytes().await.contains('1'), "nothing is held");
    let both = world.order(&buyer, best(2, Some("VIP")), None).await;
    assert_eq!(
        (both.status, &both.body["amount"]),
        (StatusCode::CREATED, &json!(120))
    );
    world.consistent().await;
    change(&world, "update price_grades set price = 100000000").await;
    let mut follower = world.state.catalogue_follower();
    follows(&world, &mut follower).await;
    change(&world, "update price_grades set price = 100000001").await;
    follows(&world, &mut follower).await;
    refused(&world.order_seats(&buyer, &[7]).await);
}

/// What operators see as sold is kept as it changes, and is what a sum over all orders would be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_overview_knows_what_is_sold_without_summing_all_orders() {
    let world = World::new(1, 8).await;
    let buyers = [world.admitted().await, world.admitted().await];
    let mut orders = Vec::new();
    for (at, buyer) in buyers.iter().enumerate() {
        let order = world.order_seats(buyer, &[4 * at, 4 * at + 1]).await.id();
        assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
        orders.push(order);
    }
    let sold = async || {
        let fresh = world.overview().await;
        fresh["seats"][0]["soldSeats"].as_i64().unwrap_or(0)
    };
    assert_eq!(sold().await, 4);
    world.cancel(orders[0], &buyers[0]).await;
    let counted: i64 = sqlx::query_scalar(
        "select sum(seats)::bigint from (select seats from sold_totals union all select seats from sold_changes) as c",
    )
    .fetch_one(&world.pool)
    .await
    .unwrap();
    assert_eq!(counted, 2);
    world.sql("delete from order_seats").await;
    world
        .sql("delete from orders where state = 'CONFIRMED'")
        .await;
    let unfolded: i64 = sqlx::query_scalar("select count(*) from sold_changes")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(unfolded, 2, "what was folded is gone: {unfolded}");
}
