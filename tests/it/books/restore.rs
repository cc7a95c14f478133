//! The drill of docs/restore.md: PostgreSQL is restored to an older state while Redis stays.

use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::{alarm, balanced, count, sql, until_count};
use crate::harness::server::Server;
use crate::harness::steps::{self, Buyer, pay};

const MINUTE: Duration = Duration::from_secs(60);
/// Stripe is not in the backup: the sandbox keeps its schema.
const OURS: [&str; 5] = ["users", "performances", "queue", "reservations", "payments"];

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {args:?}: {error}");
}

async fn bought(server: &Server, buyer: &Buyer) -> (String, String) {
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    pay(&server.sale, &payment, "pm_card_visa")
        .await
        .expect(200);
    server.until_order(buyer, &order, "CONFIRMED").await;
    (order, payment.str("paymentIntentId"))
}

async fn wish(server: &Server, buyer: &Buyer) -> crate::harness::client::Reply {
    let (performance, schedule) = steps::the_performance(&server.sale).await;
    let place = steps::enter(&server.sale, buyer, &performance).await;
    let place = steps::turn(&server.sale, &performance, place).await;
    let (auth, token) = (buyer.auth(), place.str("queueToken"));
    let headers = [("authorization", &*auth), ("queue-token", &*token)];
    let wish = json!({"scheduleId": schedule, "bestAvailable": {"count": 1}});
    server.sale.api.post("/api/v1/orders", &headers, wish).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_postgresql_sells_nothing_until_every_payment_is_matched() {
    let mut server = Server::open("12", "300s", &[]).await;
    let buyers = server.sale.buyers.clone();
    let (before, _) = bought(&server, &buyers[0]).await;
    // Given back after the backup: Stripe knows, the restored PostgreSQL does not.
    let (rued, rued_intent) = bought(&server, &buyers[1]).await;

    let url = server.database_url();
    let dump = server.dir.join("backup.dump");
    let dump = dump.to_str().unwrap();
    let mut args = vec!["--format=custom", "--file", dump, "--dbname", &url];
    for schema in OURS {
        args.extend(["--schema", schema]);
    }
    run("pg_dump", &args);
    let beats = count(&server, "select beats from reservations.restore_guard").await;

    server.cancel(&buyers[1], &rued).await.expect(200);
    server.until_order(&buyers[1], &rued, "REFUNDED").await;
    let back = "select count(*) from payments.refunds where state = 'SUCCEEDED'";
    until_count(&server, back, 1, MINUTE).await;
    let mut lost = Vec::new();
    for buyer in &buyers[2..5] {
        lost.push(bought(&server, buyer).await);
    }
    // Held and never paid; and one whose buyer pays while PostgreSQL is away.
    server.hold(&buyers[5]).await;
    let late = server.hold(&buyers[6]).await.str("id");
    let paying = server.begin(&buyers[6], &late).await.expect(201);
    let seen = "select count(*) from reservations.restore_guard where beats > ";
    until_count(&server, &format!("{seen}{}", beats + 1), 1, MINUTE).await;

    // Nobody was told of this one when all went down.
    server.faults("webhook_drop").await;
    pay(&server.sale, &paying, "pm_card_visa").await.expect(200);
    server.kill().await;
    for schema in OURS {
        sql(&server, &format!("drop schema {schema} cascade")).await;
    }
    run("pg_restore", &["--dbname", &url, "--exit-on-error", dump]);

    let server = server.again(&[]).await;
    server.faults("read/error_before").await;
    let restored = alarm(&server, "POSTGRES_RESTORED", None, MINUTE).await;
    assert_eq!(restored["role"], "reservations");
    // Stripe is away: nothing is sold, and the alarm says why.
    let refused = wish(&server, &buyers[7]).await.expect(503);
    assert_eq!(refused.body["code"], "UNAVAILABLE");
    assert!(
        refused.str("detail").contains("stopped"),
        "{}",
        refused.text
    );
    tokio::time::sleep(Duration::from_secs(4)).await;
    wish(&server, &buyers[7]).await.expect(503);
    assert_eq!(
        count(&server, "select count(*) from reservations.sales_stops").await,
        1
    );

    server.faults("").await;
    until_count(
        &server,
        "select count(*) from reservations.sales_stops",
        0,
        MINUTE,
    )
    .await;
    for (buyer, (order, intent)) in buyers[2..5].iter().zip(&lost) {
        server.until_order(buyer, order, "CONFIRMED").await;
        assert!(
            server.refunds(intent).await.is_empty(),
            "{order} was paid once"
        );
    }
    server.until_order(&buyers[6], &late, "CONFIRMED").await;
    server.until_order(&buyers[0], &before, "CONFIRMED").await;
    server.until_order(&buyers[1], &rued, "REFUNDED").await;
    assert_eq!(server.refunds(&rued_intent).await.len(), 1);
    // What nobody paid for is free again, and sold on.
    let open = wish(&server, &buyers[7]).await.expect(201);
    steps::confirm(&server.sale, &buyers[7], &open).await;
    let sold = "select count(*) from reservations.order_seats where live";
    assert_eq!(count(&server, sold).await, 2 * 5 + 1);
    balanced(&server, MINUTE).await;
}
