//! Orders that PostgreSQL has lost, and a PostgreSQL that is older than Redis.

use http::Request;
use redis::AsyncCommands;
use serde_json::{Value, json};
use uuid::Uuid;

use super::world::{Answer, Buyer, World};

async fn internal(world: &World, path: &str, body: &Value) -> Answer {
    let request = Request::builder()
        .method("POST")
        .uri(path)
        .header("authorization", "Internal between roles")
        .header("content-type", "application/json")
        .body(axum::body::Body::from(body.to_string()))
        .unwrap();
    world.send(request).await
}

/// What the payment of an order of these seats says of it.
fn lost(world: &World, buyer: &Buyer, payment: Uuid, seats: &[usize], price: i64) -> Value {
    let count = i64::try_from(seats.len()).unwrap();
    let seats: Vec<Value> = (world.ids(seats).into_iter())
        .map(|id| json!({"id": id, "price": price}))
        .collect();
    json!({
        "paymentId": payment, "userId": buyer.id, "performanceId": world.performance,
        "scheduleId": world.schedule, "seats": seats, "placeEpoch": 1, "placeNumber": buyer.number,
        "amount": count * price, "currency": "krw",
    })
}

async fn rebuild(world: &World, order: Uuid, lost: &Value) -> String {
    let answer = internal(world, &format!("/internal/v1/orders/{order}/rebuild"), lost).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.body["outcome"].as_str().unwrap().to_owned()
}

async fn forget(world: &World, order: Uuid) {
    for table in ["refunds", "order_seats"] {
        world
            .sql(&format!("delete from {table} where order_id = '{order}'"))
            .await;
    }
    world
        .sql(&format!("delete from orders where id = '{order}'"))
        .await;
}

async fn price(world: &World, order: Uuid) -> i64 {
    sqlx::query_scalar("select price from order_seats where order_id = $1 limit 1")
        .bind(order)
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_order_is_built_once_and_takes_nobodys_seats() {
    let world = World::new(1, 8).await;
    let (buyer, other) = (world.admitted().await, world.admitted().await);
    let payment = Uuid::now_v7();
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    let price = price(&world, order).await;
    assert!(world.paid(Uuid::now_v7(), order, payment).await);
    world.until_bytes("22000000").await;
    let body = lost(&world, &buyer, payment, &[0, 1], price);

    // Redis still shows it sold: it is taken for what it was.
    forget(&world, order).await;
    assert_eq!(rebuild(&world, order, &body).await, "BUILT");
    assert_eq!(rebuild(&world, order, &body).await, "EXISTS");
    assert!(world.paid(Uuid::now_v7(), order, payment).await);
    assert_eq!(world.row(order).await.0, "CONFIRMED");
    world.until_bytes("22000000").await;
    assert_eq!(
        world.said("order.confirmed", order).await,
        2,
        "before and after"
    );
    assert_eq!(rebuild(&world, order, &body).await, "EXISTS");
    // The same order, paid by another payment: not this one's.
    let again = lost(&world, &buyer, Uuid::now_v7(), &[0, 1], price);
    assert_eq!(rebuild(&world, order, &again).await, "CLOSED");

    // A seat of it is somebody else's by now: nothing is built, and none of its seats are held.
    let late = Uuid::now_v7();
    let theirs = world.order_seats(&other, &[4]).await.id();
    let body = lost(&world, &buyer, Uuid::now_v7(), &[3, 4], price);
    assert_eq!(rebuild(&world, late, &body).await, "SEATS_TAKEN");
    // So does Postgres say where Redis has lost it.
    let mut redis = world.redis.clone();
    let seats = world.key(&format!("seats:{}", world.schedule));
    let _: usize = redis.setrange(&seats, 4, "0").await.unwrap();
    assert_eq!(rebuild(&world, late, &body).await, "SEATS_TAKEN");
    world.state.repair(world.performance).await.unwrap();
    world.until_bytes("22001000").await;
    assert_eq!(world.row(theirs).await.0, "PENDING");

    // What cannot be true is not built.
    let mut wrong = lost(&world, &buyer, Uuid::now_v7(), &[6], price);
    wrong["amount"] = json!(price + 1);
    assert_eq!(rebuild(&world, Uuid::now_v7(), &wrong).await, "UNKNOWN");
    let mut wrong = lost(&world, &buyer, Uuid::now_v7(), &[6], price);
    wrong["seats"][0]["id"] = json!(Uuid::now_v7());
    assert_eq!(rebuild(&world, Uuid::now_v7(), &wrong).await, "UNKNOWN");
    wrong["scheduleId"] = json!(Uuid::now_v7());
    assert_eq!(rebuild(&world, Uuid::now_v7(), &wrong).await, "UNKNOWN");
    // Given up by its buyer: the money is a person's to decide.
    world.cancel(theirs, &other).await;
    let body = lost(&world, &other, Uuid::now_v7(), &[4], price);
    assert_eq!(rebuild(&world, theirs, &body).await, "CLOSED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seats_sold_to_orders_that_postgresql_lost_stop_the_sales() {
    let world = World::new(1, 8).await;
    let (buyer, other) = (world.admitted().await, world.admitted().await);
    world
        .sql("insert into restore_guard (created_at) values (now() - interval '1 hour')")
        .await;
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    let held = world.order_seats(&buyer, &[2]).await.id();
    world.until_bytes("22100000").await;
    forget(&world, order).await;
    forget(&world, held).await;
    // Whoever looks first stops the sales, and frees nothing.
    world.state.repair(world.performance).await.unwrap();
    let refused = world.order_seats(&other, &[5]).await;
    assert_eq!(
        (refused.status.as_u16(), refused.code()),
        (503, "UNAVAILABLE")
    );
    assert!(refused.headers.contains_key("retry-after"));
    world.bell(held).await;
    world.state.repair(world.performance).await.unwrap();
    assert_eq!(world.bytes().await, "22100000");
    let open: i64 =
        sqlx::query_scalar("select count(*) from alarms where kind = 'POSTGRES_RESTORED'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    assert_eq!(open, 1);
    // A Redis that forgets does not let them go on.
    let mut redis = world.redis.clone();
    let _: usize = redis.del(world.key("limit")).await.unwrap();
    let refused = world.order_seats(&other, &[5]).await;
    assert_eq!(refused.status.as_u16(), 503, "{}", refused.body);
}

/// Orders that were removed on purpose, before the counter began, are no restore.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_removed_before_is_freed() {
    let world = World::new(1, 8).await;
    let buyer = world.admitted().await;
    let order = world.order_seats(&buyer, &[0, 1]).await.id();
    assert!(world.paid(Uuid::now_v7(), order, Uuid::now_v7()).await);
    world.until_bytes("22000000").await;
    forget(&world, order).await;
    world.sql("insert into restore_guard default values").await;
    world.state.repair(world.performance).await.unwrap();
    world.until_bytes("00000000").await;
    assert_eq!(world.remaining().await, 8);
    assert_eq!(
        world
            .order_seats(&world.admitted().await, &[0])
            .await
            .status,
        201
    );
    assert_eq!(world.state.repair(world.performance).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_hears_how_each_capture_is_accounted_for() {
    let world = World::new(1, 8).await;
    let buyer = world.admitted().await;
    let (paid, payment) = (world.order_seats(&buyer, &[0]).await.id(), Uuid::now_v7());
    assert!(world.paid(Uuid::now_v7(), paid, payment).await);
    let open = world.order_seats(&buyer, &[1]).await.id();
    let (given_up, late) = (world.order_seats(&buyer, &[2]).await.id(), Uuid::now_v7());
    world.cancel(given_up, &buyer).await;
    assert!(world.paid(Uuid::now_v7(), given_up, late).await);
    let asked = [
        (payment, paid, "ACCOUNTED"),
        (Uuid::now_v7(), open, "NOT_YET"),
        (late, given_up, "ACCOUNTED"),
        (Uuid::now_v7(), Uuid::now_v7(), "NO_ORDER"),
    ];
    let body = json!({"payments": asked.iter()
        .map(|(payment, order, _)| json!({"paymentId": payment, "orderId": order}))
        .collect::<Vec<_>>()});
    let answer = internal(&world, "/internal/v1/reconcile/payments", &body).await;
    for (payment, _, verdict) in asked {
        let all = answer.body["payments"].as_array().unwrap();
        let one = all
            .iter()
            .find(|a| a["paymentId"] == json!(payment))
            .unwrap();
        assert_eq!(one["verdict"], verdict, "{}", answer.body);
    }
    // A capture that was told twice is still the order's, and one of an unknown order kills nobody.
    assert!(world.paid(Uuid::now_v7(), paid, payment).await);
    let stray = json!({"paymentId": Uuid::now_v7(), "orderId": Uuid::now_v7(), "amount": 5, "currency": "krw"});
    assert!(
        world
            .hear(Uuid::now_v7(), "payment.succeeded", &stray)
            .await
    );
    assert_eq!(world.said("order.confirmed", paid).await, 1);
}
