//! The audit is clean on true books, and names the rows of every kind of breach.

use redis::AsyncCommands;
use ticketping::{
    cmd::audit::{Config, Report, run_checks},
    platform::db,
    serve::payments,
};
use uuid::Uuid;

use super::world::World;
use crate::harness;

async fn audit(world: &World) -> Report {
    run_checks(&config(world).await).await.unwrap()
}

async fn config(world: &World) -> Config {
    Config {
        database_url: world.database.clone(),
        redis_url: Some(harness::stores().await.redis_url.clone()),
        redis_prefix: world.prefix.clone(),
        redis_ca: None,
        stripe: None,
        wait: std::time::Duration::ZERO,
        young: std::time::Duration::from_secs(60),
        since: None,
        statement_timeout: std::time::Duration::from_secs(30),
        progress: false,
    }
}

/// One confirmed and paid order, one that is held, one refunded; no event under way.
async fn books() -> (World, Uuid) {
    let world = World::new(1, 8).await;
    let pool = db::pool(&world.database, payments::SCHEMA, 2).unwrap();
    db::migrate(&pool, payments::SCHEMA, &payments::MIGRATOR)
        .await
        .unwrap();
    let buyer = world.admitted().await;
    let sold = world.order_seats(&buyer, &[0, 1]).await.id();
    let payment = Uuid::now_v7();
    assert!(world.paid(Uuid::now_v7(), sold, payment).await);
    world.order_seats(&buyer, &[3]).await;
    sqlx::query(
        "insert into payments (id, order_id, state, amount, currency, next_check_at, succeeded_at)
         values ($1, $2, 'SUCCEEDED', 300000, 'krw', now(), now() - interval '1 hour')",
    )
    .bind(payment)
    .bind(sold)
    .execute(&pool)
    .await
    .unwrap();
    world.sql("update outbox set published_at = now()").await;
    world.sql("update orders set confirmed_at = confirmed_at - interval '1 hour' where confirmed_at is not null").await;
    (world, sold)
}

async fn breached(world: &World) -> Vec<&'static str> {
    let report = audit(world).await;
    let red: Vec<_> = report.checks.iter().filter(|c| c.breaches > 0).collect();
    for check in &red {
        assert!(!check.rows.is_empty(), "{} says which", check.name);
    }
    assert_eq!(report.ok(), red.is_empty());
    red.iter().map(|c| c.name).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn true_books_are_clean() {
    let (world, _) = books().await;
    let report = audit(&world).await;
    assert!(report.ok(), "{}", report.text());
    let looked = |name: &str| {
        report
            .checks
            .iter()
            .find(|c| c.name == name)
            .unwrap()
            .looked_at
    };
    assert_eq!(looked("oneLiveOrderASeat"), Some(3));
    assert_eq!(looked("confirmedOrdersArePaid"), Some(1));
    assert_eq!(looked("redisShowsTheBooks"), Some(8));
    assert_eq!(looked("noHoldPastItsDeadlineInRedis"), Some(1));
    assert!(report.text().contains("The books balance."));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_kind_of_breach_is_named() {
    let (world, sold) = books().await;
    let mut redis = world.redis.clone();
    let seats = world.key(&format!("seats:{}", world.schedule));
    for (byte, name) in [("0", "redisShowsTheBooks"), ("2", "")] {
        let _: usize = redis.setrange(&seats, 0, byte).await.unwrap();
        let want: Vec<&str> = if name.is_empty() { vec![] } else { vec![name] };
        assert_eq!(breached(&world).await, want);
    }
    let _: () = redis
        .hincr(world.key("meta"), "remaining", 1)
        .await
        .unwrap();
    assert_eq!(breached(&world).await, ["remainingIsRight"]);
    let _: () = redis
        .hincr(world.key("meta"), "remaining", -1)
        .await
        .unwrap();

    for (wrong, right, names) in [
        (
            "update payments.payments set state = 'CANCELLED'",
            "update payments.payments set state = 'SUCCEEDED'",
            &["confirmedOrdersArePaid"][..],
        ),
        (
            "update orders set expires_at = now() - interval '1 minute' where state = 'PENDING'",
            "update orders set expires_at = now() + interval '1 minute' where state = 'PENDING'",
            &["noHoldPastItsDeadline"],
        ),
        (
            "update orders set amount = amount + 1 where state = 'PENDING'",
            "update orders set amount = amount - 1 where state = 'PENDING'",
            &["amountsAddUp"],
        ),
        (
            "update outbox set published_at = null, created_at = now() - interval '2 minutes'",
            "update outbox set published_at = now()",
            &["eventsLeave"],
        ),
        (
            "insert into dead_letters (id, consumer, event_id, origin, type, key, payload, error, attempts)
             values (gen_random_uuid(), 'reservations', gen_random_uuid(), 'payments', 'x', 'k', '{}', 'bad', 5)",
            "update dead_letters set resolved_at = now()",
            &["noDeadLetters"],
        ),
        (
            "insert into payments.payments (id, order_id, state, amount, currency, next_check_at, succeeded_at)
             values (gen_random_uuid(), gen_random_uuid(), 'SUCCEEDED', 5, 'krw', now(), now() - interval '1 hour')",
            "delete from payments.payments where amount = 5",
            &["paymentsAreKeptOrGivenBack"],
        ),
        (
            "insert into payments.refunds (id, payment_id, order_id, amount, reason, state)
             select gen_random_uuid(), id, order_id, amount, 'x', 'SUCCEEDED' from payments.payments",
            "delete from payments.refunds",
            &["confirmedOrdersArePaid"],
        ),
        (
            "insert into refunds (payment_id, order_id, amount, reason, requested_at)
             select gen_random_uuid(), id, 5, 'x', now() - interval '1 hour' from orders limit 1",
            "delete from refunds",
            &["refundsAgree"],
        ),
    ] {
        world.sql(wrong).await;
        assert_eq!(breached(&world).await, names, "{wrong}");
        world.sql(right).await;
        assert_eq!(breached(&world).await, [""; 0], "{right}");
    }

    world.sql("update order_seats set live = false").await;
    let red = breached(&world).await;
    assert!(red.contains(&"seatsFollowTheirOrder"), "{red:?}");
    world.sql("update order_seats set live = true").await;

    world.sql("drop index one_live_order_a_seat").await;
    sqlx::query(
        "insert into order_seats (order_id, schedule_id, seat_id, seat_index, section, row_label, seat_number, grade, price)
         select (select id from orders where id <> $1 limit 1), schedule_id, seat_id, seat_index, section, row_label,
             seat_number, grade, price from order_seats where order_id = $1 limit 1",
    )
    .bind(sold)
    .execute(&world.pool)
    .await
    .unwrap();
    assert!(breached(&world).await.contains(&"oneLiveOrderASeat"));
}

/// A long history is read in stretches: no query grows with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_history_is_audited_in_short_queries() {
    let (world, _) = books().await;
    const ORDERS: u64 = 300_000;
    let id =
        |kind: u32| format!("('01890000-0000-7000-{kind}-' || lpad(to_hex(n), 12, '0'))::uuid");
    let (order, payment) = (id(8000), id(9000));
    let series = format!("from generate_series(1, {ORDERS}) n");
    // One in six was sold, the others expired.
    for insert in [
        format!(
            "insert into orders (id, user_id, performance_id, schedule_id, state, performance_title, starts_at,
                 seat_count, amount, currency, expires_at, payment_id, created_at, confirmed_at)
             select {order}, gen_random_uuid(), '01890000-0000-7000-a000-000000000000',
                 '01890000-0000-7000-b000-000000000000', case when n % 6 = 0 then 'CONFIRMED' else 'EXPIRED' end,
                 'x', now(), 1, 500, 'krw', now(), case when n % 6 = 0 then {payment} end,
                 now() - interval '2 days', case when n % 6 = 0 then now() - interval '2 days' end {series}"
        ),
        format!(
            "insert into order_seats (order_id, schedule_id, seat_id, seat_index, section, row_label,
                 seat_number, grade, price, live)
             select {order}, '01890000-0000-7000-b000-000000000000', {order}, n, 'x', 'x', n, 'x', 500, n % 6 = 0 {series}"
        ),
        format!(
            "insert into payments.payments (id, order_id, state, amount, currency, next_check_at, succeeded_at)
             select {payment}, {order}, 'SUCCEEDED', 500, 'krw', now(), now() - interval '2 days' {series} where n % 6 = 0"
        ),
    ] {
        world.sql(&insert).await;
    }
    let mut config = config(&world).await;
    config.statement_timeout = std::time::Duration::from_secs(2);
    let report = run_checks(&config).await.unwrap();
    assert!(report.ok(), "{}", report.text());
    let looked = |report: &Report, name: &str| {
        let check = report.checks.iter().find(|c| c.name == name).unwrap();
        check.looked_at.unwrap()
    };
    assert_eq!(looked(&report, "seatsFollowTheirOrder"), ORDERS + 2);
    assert_eq!(looked(&report, "oneLiveOrderASeat"), ORDERS / 6 + 3);
    assert_eq!(
        looked(&report, "paymentsAreKeptOrGivenBack"),
        ORDERS / 6 + 1
    );
    // One wrong row among them is found.
    world
        .sql("update orders set amount = 1 where id = '01890000-0000-7000-8000-0000000212d0'")
        .await;
    let report = run_checks(&config).await.unwrap();
    let red: Vec<_> = report.checks.iter().filter(|c| c.breaches > 0).collect();
    let names: Vec<_> = red.iter().map(|c| (c.name, c.breaches)).collect();
    assert_eq!(names, [("amountsAddUp", 1), ("confirmedOrdersArePaid", 1)]);
    assert!(red[0].rows[0].contains("01890000-0000-7000-8000-0000000212d0"));
    // And not looked for where only what is newer is asked.
    config.since = Some(chrono::Utc::now() - chrono::Duration::hours(1));
    let report = run_checks(&config).await.unwrap();
    assert!(report.ok(), "{}", report.text());
    assert_eq!(looked(&report, "seatsFollowTheirOrder"), 2);
}
