//! The process dies at each commit and I/O edge of orders, payments and events, once each; the
//! next one finishes what was begun.

use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use ticketping::platform::failpoint::FAILPOINTS;

use crate::harness::client::Reply;
use crate::harness::eventually;
use crate::harness::server::Server;
use crate::harness::steps::{self, Buyer, pay};

/// Soon after a restart, what was open is looked at again.
const QUICK: (&str, &str) = ("TICKETPING_PAYMENT_RECONCILE_AFTER", "2s");
const SETTLED_WITHIN: Duration = Duration::from_secs(40);

fn points(wanted: fn(&str) -> bool) -> Vec<&'static str> {
    FAILPOINTS
        .iter()
        .copied()
        .filter(|name| wanted(name))
        .collect()
}

/// Points on the way of a purchase and its refund.
pub fn of_a_purchase() -> Vec<&'static str> {
    points(|name| {
        ["events.", "payments.", "orders.step_"]
            .iter()
            .any(|family| name.starts_with(family))
            && !name.contains("cancel")
    })
}

/// Of giving up an order whose payment was begun.
pub fn of_a_cancellation() -> Vec<&'static str> {
    points(|name| name.starts_with("payments.") && name.contains("cancel"))
}

/// Of taking a hold.
pub fn of_a_hold() -> Vec<&'static str> {
    points(|name| {
        name.starts_with("orders.")
            && !name.starts_with("orders.step_")
            && !name.starts_with("orders.reacquire_")
    })
}

/// Of money that comes when the hold has ended.
pub fn of_a_late_payment() -> Vec<&'static str> {
    points(|name| name.starts_with("orders.reacquire_"))
}

/// One buyer's order, and somebody to walk on it while the process lives.
struct Walk {
    server: Server,
    buyer: Buyer,
    /// Empty where none was made before.
    order: String,
}

type Steps = for<'a> fn(&'a Walk) -> BoxFuture<'a, ()>;

/// Dies at each of `points` while `steps` are walked; `finish` then finds all in order. With
/// `held`, the order is made before.
async fn sweep(
    points: &[&'static str],
    hold_ttl: &str,
    envs: &[(&str, &str)],
    held: bool,
    (steps, finish): (Steps, Steps),
) {
    assert!(!points.is_empty());
    let users = points.len().to_string();
    let mut server = Server::open(&users, hold_ttl, envs).await;
    for (at, point) in points.iter().enumerate() {
        let buyer = server.sale.buyers[at].clone();
        let order = match held {
            true => server.hold(&buyer).await.str("id"),
            false => String::new(),
        };
        at_rest(&server).await;
        let armed = [envs, &[("TICKETPING_FAILPOINT", *point)]].concat();
        server = server.again(&armed).await;
        assert!(!server.dead(), "{point}: died before anything was asked");
        let on = walk(&server, &buyer, &order);
        let walking = tokio::spawn(async move { steps(&on).await });
        tokio::time::timeout(Duration::from_secs(30), lives_until(&mut server))
            .await
            .unwrap_or_else(|_| panic!("{point} was never passed"));
        walking.abort();
        server = server.again(envs).await;
        let on = walk(&server, &buyer, &order);
        let settled = tokio::time::timeout(SETTLED_WITHIN, finish(&on));
        settled
            .await
            .unwrap_or_else(|_| panic!("{point}: never settled"));
        println!("{point}: died, and was finished");
    }
}

/// Nothing is on its way any more: a webhook or an event of the buyer before would meet the
/// armed point while the server still starts.
async fn at_rest(server: &Server) {
    let open = "select (select count(*) from stripe_sandbox.deliveries where state = 'pending')
        + (select count(*) from payments.webhook_events where processed_at is null)
        + (select count(*) from payments.outbox where published_at is null)
        + (select count(*) from reservations.outbox where published_at is null)";
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    eventually("nothing is on its way", async || {
        let open: i64 = sqlx::query_scalar(open)
            .fetch_one(&mut books)
            .await
            .unwrap();
        open == 0
    })
    .await;
}

fn walk(server: &Server, buyer: &Buyer, order: &str) -> Walk {
    Walk {
        server: server.walker(server.sale.api.clone(), server.sale.stripe.clone()),
        buyer: buyer.clone(),
        order: order.to_owned(),
    }
}

async fn lives_until(server: &mut Server) {
    while !server.dead() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

impl Walk {
    async fn status(&self) -> String {
        self.server
            .order(&self.buyer, &self.order)
            .await
            .str("status")
    }

    /// The same key whenever it is asked.
    async fn hold(&self) -> Reply {
        let (performance, schedule) = steps::the_performance(&self.server.sale).await;
        let place = steps::enter(&self.server.sale, &self.buyer, &performance).await;
        let place = steps::turn(&self.server.sale, &performance, place).await;
        let (auth, token) = (self.buyer.auth(), place.str("queueToken"));
        let headers = [
            ("authorization", &*auth),
            ("queue-token", &*token),
            ("idempotency-key", "the-hold"),
        ];
        let wish = json!({"scheduleId": schedule, "bestAvailable": {"count": 2}});
        self.server
            .sale
            .api
            .post("/api/v1/orders", &headers, wish)
            .await
    }

    /// The only capture of this order, when there is exactly one.
    async fn captured(&self) -> Option<Value> {
        let intents = self.server.intents(&self.order).await;
        let mut captured = intents.iter().filter(|one| one["status"] == "succeeded");
        let first = captured.next().cloned();
        assert!(captured.next().is_none(), "captured twice: {intents:?}");
        first
    }

    async fn sql(&self, sql: &'static str) {
        let mut conn = PgConnection::connect(&self.server.database_url())
            .await
            .unwrap();
        sqlx::query(sql).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_at_any_edge_neither_loses_nor_doubles_money() {
    sweep(
        &of_a_purchase(),
        "10m",
        &[QUICK],
        true,
        (
            |walk| Box::pin(purchase_and_refund(walk)),
            |walk| Box::pin(refunded_once(walk)),
        ),
    )
    .await;
}

/// A purchase and its cancellation, as far as the server lives to answer.
async fn purchase_and_refund(walk: &Walk) {
    let payment = walk.server.begin(&walk.buyer, &walk.order).await;
    if payment.status != 201 {
        return;
    }
    if pay(&walk.server.sale, &payment, "pm_card_visa")
        .await
        .status
        == 200
    {
        walk.server
            .until_order(&walk.buyer, &walk.order, "CONFIRMED")
            .await;
        walk.server.cancel(&walk.buyer, &walk.order).await;
        walk.server
            .until_order(&walk.buyer, &walk.order, "REFUNDED")
            .await;
    }
}

/// The buyer goes on; the books must come out even.
async fn refunded_once(walk: &Walk) {
    loop {
        match walk.status().await.as_str() {
            "REFUNDED" => break,
            "CONFIRMED" => drop(walk.server.cancel(&walk.buyer, &walk.order).await),
            "PENDING_PAYMENT" => {
                let payment = walk.server.begin(&walk.buyer, &walk.order).await;
                if payment.status == 201 && payment.body["clientSecret"].is_string() {
                    pay(&walk.server.sale, &payment, "pm_card_visa").await;
                }
            }
            other => panic!("the order became {other}"),
        }
        pause().await;
    }
    loop {
        let captured = walk.captured().await.expect("it was paid");
        let refunds = walk.server.refunds(captured["id"].as_str().unwrap()).await;
        assert!(refunds.len() <= 1, "refunded twice");
        if let [refund] = refunds.as_slice() {
            assert_eq!(refund["amount"], captured["amount_received"]);
            return;
        }
        pause().await;
    }
}

/// What Stripe made for a process that died before it noted it is found by its key.
#[tokio::test(flavor = "multi_thread")]
async fn the_intent_of_a_dead_process_is_found_again() {
    sweep(
        &["payments.after_stripe_create"],
        "10m",
        &[QUICK],
        true,
        (
            |walk| Box::pin(begun_and_nobody_told(walk)),
            |walk| Box::pin(one_intent(walk)),
        ),
    )
    .await;
}

async fn begun_and_nobody_told(walk: &Walk) {
    // Stripe's own news of the intent would lead to it as well.
    walk.server.faults("webhook_drop").await;
    walk.server.begin(&walk.buyer, &walk.order).await;
}

async fn one_intent(walk: &Walk) {
    let payment = walk
        .server
        .begin(&walk.buyer, &walk.order)
        .await
        .expect(201);
    let intents = walk.server.intents(&walk.order).await;
    let ids: Vec<&Value> = intents.iter().map(|one| &one["id"]).collect();
    assert_eq!(ids, [&payment.body["paymentIntentId"]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_while_a_payment_is_given_up_leaves_nothing_to_pay() {
    sweep(
        &of_a_cancellation(),
        "10m",
        &[QUICK],
        true,
        (
            |walk| Box::pin(begun_and_given_up(walk)),
            |walk| Box::pin(given_up(walk)),
        ),
    )
    .await;
}

async fn begun_and_given_up(walk: &Walk) {
    walk.server
        .begin(&walk.buyer, &walk.order)
        .await
        .expect(201);
    walk.server.cancel(&walk.buyer, &walk.order).await;
}

async fn given_up(walk: &Walk) {
    loop {
        let reply = walk.server.cancel(&walk.buyer, &walk.order).await;
        if reply.status == 200 {
            assert_eq!(reply.body["status"], "CANCELLED");
            break;
        }
        pause().await;
    }
    while walk
        .server
        .intents(&walk.order)
        .await
        .iter()
        .any(|one| one["status"] != "canceled")
    {
        assert!(walk.captured().await.is_none());
        pause().await;
    }
    assert_eq!(walk.status().await, "CANCELLED");
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_while_seats_are_held_makes_one_order_for_one_key() {
    sweep(
        &of_a_hold(),
        "10m",
        &[],
        false,
        (
            |walk| Box::pin(async move { drop(walk.hold().await) }),
            |walk| Box::pin(one_order(walk)),
        ),
    )
    .await;
}

async fn one_order(walk: &Walk) {
    // As if the half minute had passed after which a dead request's key is taken over.
    walk.sql("update reservations.idempotency_keys set locked_at = 'epoch' where status is null")
        .await;
    let order = walk.hold().await.expect(201);
    let again = walk.hold().await.expect(201);
    assert_eq!(again.body["id"], order.body["id"]);
    let auth = walk.buyer.auth();
    let headers = [("authorization", &*auth)];
    let list = walk
        .server
        .sale
        .api
        .get("/api/v1/orders", &headers)
        .await
        .expect(200);
    let ids: Vec<&Value> = list.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(ids, [&order.body["id"]]);
    // And no seat is held for nobody: all that are held are this order's, and the map says so.
    let path = format!("/api/v1/schedules/{}/seats", order.str("scheduleId"));
    let seats: Vec<&Value> = order.body["seats"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(seats.len(), 2);
    let id = order.str("id");
    let held_by_it = |map: &Reply| {
        let held = map.body["seats"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|one| one["status"] == "HELD");
        let held: Vec<&Value> = held.map(|one| &one["id"]).collect();
        held.len() == 2 && seats.iter().all(|seat| held.contains(seat))
    };
    walk.server.sale.api.until(&path, &[], held_by_it).await;
    // The next one begins with an empty house.
    walk.server.cancel(&walk.buyer, &id).await.expect(200);
}

/// The hold ends and the payment is still at the bank; it succeeds when the order is EXPIRED.
#[tokio::test(flavor = "multi_thread")]
async fn dying_while_late_money_takes_its_seats_again_confirms_once() {
    let impatient = ("TICKETPING_PAYMENT_WAIT_MAX", "100ms");
    sweep(
        &of_a_late_payment(),
        "10m",
        &[QUICK, impatient],
        true,
        (
            |walk| Box::pin(paid_late(walk)),
            |walk| Box::pin(confirmed_late(walk)),
        ),
    )
    .await;
}

async fn paid_late(walk: &Walk) {
    walk.server.faults("confirm/processing=3s").await;
    let payment = walk
        .server
        .begin(&walk.buyer, &walk.order)
        .await
        .expect(201);
    pay(&walk.server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    // Restarts take longer than a hold that would end by itself.
    walk.sql("update reservations.orders set expires_at = now()")
        .await;
    walk.server
        .until_order(&walk.buyer, &walk.order, "EXPIRED")
        .await;
}

async fn confirmed_late(walk: &Walk) {
    walk.server
        .until_order(&walk.buyer, &walk.order, "CONFIRMED")
        .await;
    let captured = walk.captured().await.expect("it was paid");
    let refunds = walk.server.refunds(captured["id"].as_str().unwrap()).await;
    assert!(refunds.is_empty(), "{refunds:?}");
}
