//! Every event between payments and orders is lost once: its outbox row is marked published and
//! nobody got it. All ends well within a minute all the same.

use std::time::Duration;

use super::{alarm, alarms, balanced, count, no_alarm, sql, until_count};
use crate::harness::eventually;
use crate::harness::server::Server;
use crate::harness::steps::pay;

const MINUTE: Duration = Duration::from_secs(60);

/// The first event of each type about an order is lost.
const LOSE: &str = "
    create table public.lost (schema text, key text, type text, primary key (schema, key, type));
    create function public.lose() returns trigger language plpgsql as $$
    begin
        insert into public.lost values (tg_table_schema, new.key, new.type) on conflict do nothing;
        if found then new.published_at := now(); end if;
        return new;
    end $$;
    create trigger lose before insert on payments.outbox for each row execute function public.lose();
    create trigger lose before insert on reservations.outbox for each row execute function public.lose();";

#[tokio::test(flavor = "multi_thread")]
async fn each_event_lost_once_costs_a_minute_and_not_the_money() {
    let server = Server::open("6", "10s", &[]).await;
    sql(&server, LOSE).await;
    let [paid, unpaid, rued] = &server.sale.buyers[..3] else {
        panic!("three buyers");
    };
    // Two pay in time and are confirmed although nobody was told; one never pays, and neither
    // the request to end its payment nor the answer arrives.
    let mut orders = Vec::new();
    for buyer in [paid, rued, unpaid] {
        let order = server.hold(buyer).await.str("id");
        let payment = server.begin(buyer, &order).await.expect(201);
        orders.push((order, payment));
    }
    for (_, payment) in &orders[..2] {
        pay(&server.sale, payment, "pm_card_visa").await.expect(200);
    }
    for (buyer, at) in [(paid, 0), (rued, 1)] {
        let confirmed = server.until_order(buyer, &orders[at].0, "CONFIRMED").await;
        assert!(confirmed.body["refund"].is_null(), "{}", confirmed.text);
    }
    // Given up: neither the request for the refund arrives, nor the news that it is done.
    server.cancel(rued, &orders[1].0).await.expect(200);
    let settled = "select count(*) from reservations.refunds where settled_at is not null";
    until_count(&server, settled, 1, MINUTE).await;
    server.until_order(unpaid, &orders[2].0, "EXPIRED").await;
    server.until_order(rued, &orders[1].0, "REFUNDED").await;
    let intents = server.intents(&orders[1].0).await;
    let refunds = server.refunds(intents[0]["id"].as_str().unwrap()).await;
    assert_eq!(refunds.len(), 1, "the money goes back once");
    // Each first event was lost indeed.
    let lost = count(&server, "select count(*) from public.lost").await;
    assert!(lost >= 8, "{lost}");
    // The places of confirmed orders are given up, and the sales counted, all the same.
    let sold = "select coalesce(sum(sold), 0)::bigint from performances.schedule_sales";
    until_count(&server, sold, 2, MINUTE).await;
    let turns = "select count(*) from queue.ended_turns where reason = 'COMPLETED'";
    until_count(&server, turns, 2, MINUTE).await;
    balanced(&server, MINUTE).await;
}

/// The roles that listen to events.
const CONSUMERS: [&str; 4] = ["performances", "queue", "reservations", "payments"];

/// What cannot be repaired for certain raises an alarm, and the alarm goes with its cause.
#[tokio::test(flavor = "multi_thread")]
async fn what_audit_detects_and_nobody_can_repair_is_an_alarm() {
    let server = Server::open("4", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    pay(&server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    sql(
        &server,
        "update reservations.orders set confirmed_at = confirmed_at - interval '1 hour'",
    )
    .await;
    let troubles = [
        (
            "update reservations.order_seats set live = false",
            "update reservations.order_seats set live = true",
            "ORDER_SEATS_DIFFER",
        ),
        (
            "update reservations.orders set amount = amount + 1",
            "update reservations.orders set amount = amount - 1",
            "ORDER_AMOUNT_DIFFERS",
        ),
        (
            "update payments.payments set amount = amount + 2",
            "update payments.payments set amount = amount - 2",
            "ORDER_NOT_PAID",
        ),
        (
            "alter index reservations.one_live_order_a_seat rename to elsewhere",
            "alter index reservations.elsewhere rename to one_live_order_a_seat",
            "SEAT_INDEX_MISSING",
        ),
        (
            "insert into reservations.outbox (id, shard, key, type, payload, created_at)
             values (gen_random_uuid(), 99, 'k', 'x', '{}', now() - interval '2 minutes')",
            "delete from reservations.outbox where shard = 99",
            "EVENTS_WAIT",
        ),
    ];
    for (wrong, _, _) in troubles {
        sql(&server, wrong).await;
    }
    for role in CONSUMERS {
        let put_aside = format!(
            "insert into {role}.dead_letters (id, consumer, event_id, origin, type, key, payload, error, attempts)
             values (gen_random_uuid(), '{role}', gen_random_uuid(), 'other', 'x', 'k', '{{}}', 'bad', 5)"
        );
        sql(&server, &put_aside).await;
    }
    for (_, _, kind) in troubles {
        alarm(&server, kind, None, MINUTE).await;
    }
    eventually("each role's messages put aside are an alarm", async || {
        let open = alarms(&server).await;
        CONSUMERS
            .iter()
            .all(|role| (open.iter()).any(|a| a["kind"] == "DEAD_LETTER" && a["role"] == *role))
    })
    .await;
    for role in CONSUMERS {
        let dealt_with = format!("update {role}.dead_letters set resolved_at = now()");
        sql(&server, &dealt_with).await;
    }
    for (_, right, _) in troubles {
        sql(&server, right).await;
    }
    no_alarm(&server, "DEAD_LETTER", MINUTE).await;
    for (_, _, kind) in troubles {
        no_alarm(&server, kind, MINUTE).await;
    }
    // A row that says something else than Stripe is brought up to what Stripe says.
    sql(
        &server,
        "update payments.payments set state = 'CANCELLED', succeeded_at = null",
    )
    .await;
    let succeeded = "select count(*) from payments.payments where state = 'SUCCEEDED'";
    until_count(&server, succeeded, 1, MINUTE).await;
    server.until_order(buyer, &order, "CONFIRMED").await;
    assert!(
        server
            .refunds(&payment.str("paymentIntentId"))
            .await
            .is_empty()
    );
    no_alarm(&server, "ORDER_NOT_PAID", MINUTE).await;
    balanced(&server, MINUTE).await;
    assert_eq!(alarms(&server).await.len(), 0);
    // The schema of performances alone is restored to a state before the sale.
    let told = "select count(*) from performances.sales_told where up_to > '2020-01-01'";
    until_count(&server, told, 1, MINUTE).await;
    let sold = "select coalesce(sum(sold), 0)::bigint from performances.schedule_sales";
    let before = count(&server, sold).await;
    assert!(before > 0);
    for lost in ["counted_orders", "schedule_sales", "sales_told"] {
        sql(&server, &format!("delete from performances.{lost}")).await;
    }
    until_count(&server, sold, before, MINUTE).await;
    balanced(&server, MINUTE).await;
}

/// Asked for the end of a payment that has succeeded, payments says so, as often as it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_payment_that_succeeded_is_that_it_succeeded() {
    let server = Server::open("2", "60s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    pay(&server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    let said = "select count(*) from payments.outbox where type = 'payment.succeeded'";
    assert_eq!(count(&server, said).await, 1);
    let ask = format!(
        "insert into reservations.outbox (id, shard, key, type, payload)
         values (gen_random_uuid(), 1, '{order}', 'payment.cancel.requested', '{{\"orderId\": \"{order}\"}}')"
    );
    sql(&server, &ask).await;
    until_count(&server, said, 2, Duration::from_secs(10)).await;
    server.until_order(buyer, &order, "CONFIRMED").await;
}
