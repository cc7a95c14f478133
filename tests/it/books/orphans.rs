//! Captured intents whose rows are lost: rebuilt while the seats are free, else a person decides.

use std::time::Duration;

use serde_json::json;

use super::{alarm, alarms, balanced, count, resolve, sql, until_count};
use crate::harness::server::Server;
use crate::harness::steps::{Buyer, pay};

const MINUTE: Duration = Duration::from_secs(60);

/// A confirmed order and its intent.
async fn bought(server: &Server, buyer: &Buyer) -> (String, String) {
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    pay(&server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    (order, payment.str("paymentIntentId"))
}

/// Everything that PostgreSQL has of an order and its payment.
async fn forget(server: &Server, order: &str) {
    sql(
        server,
        &format!(
            "delete from payments.refunds where order_id = '{order}';
             delete from payments.payments where order_id = '{order}';
             delete from reservations.refunds where order_id = '{order}';
             delete from reservations.order_seats where order_id = '{order}';
             delete from reservations.orders where id = '{order}';"
        ),
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_without_rows_gets_its_order_again_or_waits_for_a_person() {
    let server = Server::open("6", "60s", &[]).await;
    let (order, intent) = bought(&server, &server.sale.buyers[0]).await;
    // Enough stands at Stripe to tell what was bought.
    let listed = server.intents(&order).await;
    let metadata = &listed[0]["metadata"];
    let installation = metadata["installation"].as_str().unwrap().to_owned();
    for key in [
        "user_id",
        "performance_id",
        "schedule_id",
        "seat_ids",
        "prices",
        "place",
    ] {
        assert!(metadata[key].is_string(), "{key}: {metadata}");
    }
    let seats = server.order(&server.sale.buyers[0], &order).await.body["seats"].clone();

    // The payment alone is lost: its order stands, and it is found again.
    sql(
        &server,
        &format!("delete from payments.payments where order_id = '{order}'"),
    )
    .await;
    let known = format!(
        "select count(*) from payments.payments where order_id = '{order}' and state = 'SUCCEEDED'"
    );
    until_count(&server, &known, 1, MINUTE).await;
    let found = alarm(&server, "ORPHAN_CAPTURE", Some(&order), MINUTE).await;
    assert_eq!(found["key"], intent.as_str());
    assert_eq!(resolve(&server, &found, Some("steal")).await, 422);
    // Its order stands: the money is not given back on the side.
    super::until_count(
        &server,
        &format!("select count(*) from payments.payments where order_id = '{order}' and accounted_at is not null"),
        1,
        MINUTE,
    )
    .await;
    assert_eq!(resolve(&server, &found, Some("refund")).await, 409);
    assert_eq!(resolve(&server, &found, None).await, 200);
    server
        .until_order(&server.sale.buyers[0], &order, "CONFIRMED")
        .await;

    // Order and payment are lost, the seats free: all of it comes back as it was.
    let (second, intent) = bought(&server, &server.sale.buyers[1]).await;
    let was = server.order(&server.sale.buyers[1], &second).await.body;
    forget(&server, &second).await;
    let now = server
        .until_order(&server.sale.buyers[1], &second, "CONFIRMED")
        .await;
    for key in [
        "seats",
        "amount",
        "currency",
        "performanceId",
        "scheduleId",
        "startsAt",
    ] {
        assert_eq!(now.body[key], was[key], "{key}");
    }
    alarm(&server, "ORPHAN_CAPTURE", Some(&second), MINUTE).await;
    assert!(server.refunds(&intent).await.is_empty());

    // Somebody else has the seats by now: nothing happens until a person resolves the alarm.
    let (third, intent) = bought(&server, &server.sale.buyers[2]).await;
    sql(
        &server,
        &format!(
            "insert into reservations.orders (id, user_id, performance_id, schedule_id, state,
                 performance_title, starts_at, seat_count, amount, currency, expires_at, channel, confirmed_at)
             select '{other}', user_id, performance_id, schedule_id, 'CONFIRMED', performance_title, starts_at,
                 seat_count, amount, currency, expires_at, 'BOX_OFFICE', now()
             from reservations.orders where id = '{third}';
             update reservations.order_seats set live = false where order_id = '{third}';
             insert into reservations.order_seats (order_id, schedule_id, seat_id, seat_index, section,
                 row_label, seat_number, grade, price)
             select '{other}', schedule_id, seat_id, seat_index, section, row_label, seat_number, grade, price
             from reservations.order_seats where order_id = '{third}';",
            other = uuid::Uuid::now_v7()
        ),
    )
    .await;
    forget(&server, &third).await;
    let found = alarm(&server, "ORPHAN_CAPTURE", Some(&third), MINUTE).await;
    assert!(
        found["detail"].as_str().unwrap().contains(&intent),
        "{found}"
    );
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert!(
        server.refunds(&intent).await.is_empty(),
        "nobody decided yet"
    );
    assert_eq!(
        count(
            &server,
            &format!("select count(*) from reservations.orders where id = '{third}'")
        )
        .await,
        0
    );
    let found = alarm(&server, "ORPHAN_CAPTURE", Some(&third), MINUTE).await;
    assert_eq!(resolve(&server, &found, Some("refund")).await, 200);
    let back = format!(
        "select count(*) from payments.refunds where order_id = '{third}' and state = 'SUCCEEDED'"
    );
    until_count(&server, &back, 1, MINUTE).await;
    assert_eq!(server.refunds(&intent).await.len(), 1);

    // Another installation's capture is none of ours.
    stranger(&server, &uuid::Uuid::now_v7().to_string(), &seats).await;
    // Ours, and it does not tell its order: only an alarm.
    let nameless = stranger(&server, &installation, &json!(null)).await;
    tokio::time::sleep(Duration::from_secs(16)).await;
    let open = alarms(&server).await;
    let strangers: Vec<_> = (open.iter())
        .filter(|a| a["kind"] == "ORPHAN_CAPTURE" && a["orderId"].is_null())
        .collect();
    assert_eq!(strangers.len(), 1, "{open:?}");
    assert_eq!(strangers[0]["key"], nameless.as_str());
    assert_eq!(resolve(&server, strangers[0], Some("refund")).await, 200);
    let back = "select count(*) from payments.refunds where state = 'SUCCEEDED'";
    until_count(&server, back, 2, MINUTE).await;
    assert_eq!(server.refunds(&nameless).await.len(), 1);
    balanced(&server, MINUTE).await;
}

/// Somebody pays an intent that we never made, with this installation in its metadata.
async fn stranger(server: &Server, installation: &str, _seats: &serde_json::Value) -> String {
    let body = format!(
        "amount=5000&currency=krw&confirm=true&payment_method=pm_card_visa&automatic_payment_methods[enabled]=true\
         &automatic_payment_methods[allow_redirects]=never&metadata[installation]={installation}"
    );
    server
        .at_stripe("/v1/payment_intents", body)
        .await
        .expect(200)
        .str("id")
}
