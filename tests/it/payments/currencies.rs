//! Currencies that Stripe counts otherwise than we do: sold, refunded in part and in whole, and the
//! books balance in both units.

use sqlx::{Connection, PgConnection};

use super::support::{sold, until_green};
use crate::harness::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn currencies_that_stripe_counts_otherwise_leave_the_books_green() {
    for (currency, factor) in [("isk", 100), ("kwd", 1)] {
        let server = Server::open("2", "60s", &[]).await;
        let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
        sqlx::query("update performances.performances set currency = $1")
            .bind(currency)
            .execute(&mut books)
            .await
            .unwrap();
        let kept = sold(&server, &server.sale.buyers[0], "pm_card_visa").await;
        let intents = server.intents(&kept.order).await;
        assert_eq!(intents[0]["currency"], currency);
        assert_eq!(intents[0]["amount"], kept.amount * factor);
        server.refund_at_stripe(&kept.intent, Some(1_000)).await;
        kept.until_payment(|payment| payment["refundedAmount"] == 1_000 / factor)
            .await;

        let back = sold(&server, &server.sale.buyers[1], "pm_card_visa").await;
        back.cancel().await.expect(200);
        back.until_payment(|payment| payment["refundedAmount"] == back.amount)
            .await;
        let made = server.refunds(&back.intent).await;
        assert_eq!(made[0]["amount"], back.amount * factor);
        until_green(&server).await;
    }
}
