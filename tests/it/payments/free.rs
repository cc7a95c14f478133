//! Orders with nothing to pay: no provider is asked, and confirmation follows as usual.

use serde_json::json;
use sqlx::PgPool;

use crate::harness::process;
use crate::harness::server::Server;
use crate::harness::steps::{self, pay};

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_costs_nothing_is_confirmed_without_stripe_and_voided_without_a_refund() {
    // Held for longer than any step waits: the end of a hold asks what became of the payment,
    // and would hide that nobody was told.
    let server = Server::open("4", "600s", &[]).await;
    let (sale, api) = (&server.sale, &server.sale.api);
    let (performance, schedule) = steps::the_performance(sale).await;
    let pool = PgPool::connect(&server.database_url()).await.unwrap();
    // The first seats are of one grade, the last of another; one of the two is free from now on.
    let map = format!("/api/v1/schedules/{schedule}/seats");
    let before = api.get(&map, &[]).await.expect(200);
    let seats = before.body["seats"].as_array().unwrap().clone();
    let grade = seats[0]["grade"].clone();
    let paid = seats
        .iter()
        .find(|s| s["grade"] != grade)
        .expect("two grades");
    sqlx::query("update performances.price_grades set price = 0 where name = $1")
        .bind(grade.as_str().unwrap())
        .execute(&pool)
        .await
        .unwrap();
    api.until(&map, &[], |r| r.body["seats"][0]["price"] == 0)
        .await;

    let place = steps::enter(sale, &sale.buyers[0], &performance).await;
    let (auth, token) = (sale.buyers[0].auth(), place.str("queueToken"));
    let headers = [("authorization", &*auth), ("queue-token", &*token)];
    let wish = json!({"scheduleId": schedule, "seatIds": [seats[0]["id"], seats[1]["id"]]});
    let free = api.post("/api/v1/orders", &headers, wish).await.expect(201);
    assert_eq!(free.body["amount"], 0);
    let id = free.str("id");
    let begun = server.begin(&sale.buyers[0], &id).await.expect(201);
    assert_eq!(begun.body["status"], "SUCCEEDED", "{}", begun.text);
    assert_eq!(begun.body["clientSecret"], json!(null));
    let again = server.begin(&sale.buyers[0], &id).await;
    assert_eq!(again.body["id"], begun.body["id"], "{}", again.text);
    server.until_order(&sale.buyers[0], &id, "CONFIRMED").await;
    assert!(
        server.intents(&id).await.is_empty(),
        "Stripe knows nothing of it"
    );
    let read = server
        .payment(&sale.buyers[0], &begun.str("id"))
        .await
        .expect(200);
    assert_eq!(read.body["status"], "SUCCEEDED");

    // Beside a seat that costs something, it is an order like any other.
    let place = steps::enter(sale, &sale.buyers[1], &performance).await;
    let (auth, token) = (sale.buyers[1].auth(), place.str("queueToken"));
    let headers = [("authorization", &*auth), ("queue-token", &*token)];
    let wish = json!({"scheduleId": schedule, "seatIds": [seats[2]["id"], paid["id"]]});
    let mixed = api.post("/api/v1/orders", &headers, wish).await.expect(201);
    assert_eq!(mixed.body["amount"], paid["price"]);
    let payment = server
        .begin(&sale.buyers[1], &mixed.str("id"))
        .await
        .expect(201);
    pay(sale, &payment, "pm_card_visa").await.expect(200);
    server
        .until_order(&sale.buyers[1], &mixed.str("id"), "CONFIRMED")
        .await;

    // Voided: the seats are free again, and there is no refund of nothing.
    let voided = server.cancel(&sale.buyers[0], &id).await.expect(200);
    assert_eq!(voided.body["status"], "REFUNDED", "{}", voided.text);
    for table in ["payments.refunds", "reservations.refunds"] {
        let count = format!("select count(*) from {table}");
        let rows: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(count))
            .fetch_one(&pool)
            .await
            .unwrap();
        assert_eq!(rows, 0, "{table}");
    }
    api.until(&map, &[], |r| r.body["seats"][0]["status"] == "AVAILABLE")
        .await;
    let data_dir = server.dir.to_str().unwrap();
    let (code, out, err) =
        process::run(&["audit", "--data-dir", data_dir, "--young", "0s"], &[]).await;
    assert_eq!(code, 0, "{out}\n{err}");
}
