//! An intent that somebody altered at Stripe confirms nothing, and holds nothing either.

use super::support::until_green;
use crate::harness::server::Server;
use crate::harness::steps::pay;

#[tokio::test(flavor = "multi_thread")]
async fn an_altered_intent_lets_the_order_be_closed() {
    let server = Server::open("3", "60s", &[]).await;
    let [given_up, pays, other_currency] = &server.sale.buyers[..] else {
        panic!("three buyers");
    };
    // Never paid: the buyer gives it up.
    let order = server.hold(given_up).await.str("id");
    let payment = server.begin(given_up, &order).await.expect(201);
    let path = format!("/v1/payment_intents/{}", payment.str("paymentIntentId"));
    server.stripe_post(&path, "amount=1234").await.expect(200);
    let seen = server
        .payment(given_up, &payment.str("id"))
        .await
        .expect(200);
    assert_eq!(seen.body["status"], "REQUIRES_PAYMENT");
    let closed = server.cancel(given_up, &order).await.expect(200);
    assert_eq!(closed.body["status"], "CANCELLED");
    let intent = server.stripe_get(&path).await.expect(200);
    assert_eq!(intent.body["status"], "canceled");

    // Paid as it was altered: all that was taken goes back, and the order is closed.
    for (buyer, change) in [
        (pays, "amount=1234"),
        (other_currency, "amount=150000&currency=isk"),
    ] {
        let order = server.hold(buyer).await.str("id");
        let payment = server.begin(buyer, &order).await.expect(201);
        let intent = payment.str("paymentIntentId");
        let path = format!("/v1/payment_intents/{intent}");
        server.stripe_post(&path, change).await.expect(200);
        pay(&server.sale, &payment, "pm_card_visa")
            .await
            .expect(200);
        let closed = server.until_order(buyer, &order, "CANCELLED").await;
        assert_eq!(closed.body["seats"][0]["state"], "ACTIVE");
        let taken = server.stripe_get(&path).await.expect(200).body["amount_received"].clone();
        super::support::until_refunds(&server, &intent, 1).await;
        assert_eq!(
            server.refunds(&intent).await[0]["amount"],
            taken,
            "{change}"
        );
    }
    until_green(&server).await;
}

/// Not paid and not given up: the hold ends, and the seats are free.
#[tokio::test(flavor = "multi_thread")]
async fn an_altered_intent_keeps_no_seat_past_its_hold() {
    let server = Server::open("1", "1s", &[]).await;
    let buyer = &server.sale.buyers[0];
    let order = server.hold(buyer).await.str("id");
    let payment = server.begin(buyer, &order).await.expect(201);
    let path = format!("/v1/payment_intents/{}", payment.str("paymentIntentId"));
    let form = "metadata[payment_id]=somebody-elses";
    server.stripe_post(&path, form).await.expect(200);
    server.until_order(buyer, &order, "EXPIRED").await;
    until_green(&server).await;
}
