//! Disputes followed to their end: nothing is refunded while one is open, won is as before, lost
//! frees the seats without a refund.

use super::support::{resolved, sold, until_green};
use crate::harness::server::Server;

#[tokio::test(flavor = "multi_thread")]
async fn a_dispute_is_won_and_all_is_as_before_or_lost_and_the_seats_are_free() {
    let server = Server::open("2", "60s", &[]).await;
    for (buyer, verdict) in server.sale.buyers.iter().zip(["winning", "losing"]) {
        let sold = sold(&server, buyer, "pm_card_createDispute").await;
        let ticket = sold.ticket().await;
        let order = sold.until_order(|order| order["disputed"] == true).await;
        assert_eq!(order["status"], "CONFIRMED");
        assert!(order["cancellableUntil"].is_null(), "{order}");
        sold.until_alarm("DISPUTE").await;
        sold.cancel().await.problem(409, "PAYMENT_DISPUTED");
        assert_eq!(sold.door(&ticket).await, "DISPUTED");
        assert!(server.refunds(&sold.intent).await.is_empty());
        until_green(&server).await;

        let path = format!("/v1/disputes/{}", sold.dispute().await);
        let form = format!("evidence[uncategorized_text]={verdict}_evidence&submit=true");
        server.stripe_post(&path, &form).await.expect(200);
        if verdict == "winning" {
            sold.until_no_alarm("DISPUTE").await;
            let order = sold.until_order(|order| order["disputed"] == false).await;
            assert!(order["cancellableUntil"].is_string(), "{order}");
            assert_eq!(sold.door(&ticket).await, "VALID");
        } else {
            let order = sold
                .until_order(|order| order["status"] == "CANCELLED")
                .await;
            assert_eq!(order["statusReason"], "DISPUTE_LOST");
            assert_eq!(order["refunds"], serde_json::json!([]));
            assert_eq!(sold.door(&ticket).await, "NOT_CONFIRMED");
            let begun = std::time::Instant::now();
            while sold.seats_shown("AVAILABLE").await < 2 {
                assert!(begun.elapsed().as_secs() < 60, "the seats are not free");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
            sold.cancel().await.expect(200);
            // A person closes it.
            let alarm = sold.until_alarm("DISPUTE").await;
            resolved(&server, alarm["id"].as_str().unwrap())
                .await
                .expect(200);
            sold.until_no_alarm("DISPUTE").await;
        }
        assert!(server.refunds(&sold.intent).await.is_empty());
        until_green(&server).await;
    }
}

/// An inquiry moves no money, so the order can be given up; it may close, or grow into a dispute.
#[tokio::test(flavor = "multi_thread")]
async fn an_inquiry_is_an_alarm_and_no_dispute_until_it_grows() {
    let server = Server::open("3", "60s", &[]).await;
    let [closes, grows, given_up] = &server.sale.buyers[..] else {
        panic!("three buyers");
    };
    let card = "pm_card_createDisputeInquiry";
    let closes = sold(&server, closes, card).await;
    closes.until_alarm("DISPUTE_INQUIRY").await;
    closes
        .decide(&closes.dispute().await, "warning_closed")
        .await;
    closes.until_no_alarm("DISPUTE_INQUIRY").await;

    let grows = sold(&server, grows, card).await;
    let ticket = grows.ticket().await;
    grows.until_alarm("DISPUTE_INQUIRY").await;
    let order = grows.until_order(|_| true).await;
    assert_eq!(order["disputed"], false);
    grows.decide(&grows.dispute().await, "needs_response").await;
    grows.until_order(|order| order["disputed"] == true).await;
    grows.until_alarm("DISPUTE").await;
    grows.until_no_alarm("DISPUTE_INQUIRY").await;
    assert_eq!(grows.door(&ticket).await, "DISPUTED");
    grows.decide(&grows.dispute().await, "won").await;
    grows.until_order(|order| order["disputed"] == false).await;

    let given_up = sold(&server, given_up, card).await;
    given_up.until_alarm("DISPUTE_INQUIRY").await;
    given_up.cancel().await.expect(200);
    given_up
        .until_payment(|payment| payment["refundedAmount"] == given_up.amount)
        .await;
    until_green(&server).await;
}

/// A refund that meets a dispute waits for its end: won, it goes back; lost, it went back already.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_waits_for_the_dispute_of_its_charge() {
    // Stripe is away for refunds until the charge is disputed.
    let server = Server::open("2", "60s", &[]).await;
    for (buyer, verdict) in server.sale.buyers.iter().zip(["won", "lost"]) {
        let sold = sold(&server, buyer, "pm_card_visa").await;
        server.faults("refund/error_before=503,webhook_drop").await;
        sold.cancel().await.expect(200);
        let form = format!("payment_intent={}", sold.intent);
        server
            .stripe_post("/_sandbox/disputes", &form)
            .await
            .expect(200);
        // Nobody tells of it: Stripe's refusal of the refund does.
        server.faults("webhook_drop").await;
        sold.until_alarm("DISPUTE").await;
        let order = sold.until_order(|_| true).await;
        assert_eq!(order["refunds"][0]["status"], "PENDING", "{order}");
        server.faults("").await;
        sold.decide(&sold.dispute().await, verdict).await;
        let order = sold
            .until_order(|order| order["refunds"][0]["status"] == "SUCCEEDED")
            .await;
        assert_eq!(order["status"], "REFUNDED");
        let made = server.refunds(&sold.intent).await;
        assert_eq!(made.len(), usize::from(verdict == "won"), "{made:?}");
        until_green(&server).await;
    }
}

/// Late, twice and out of order; several of one charge; of an order that is refunded already.
#[tokio::test(flavor = "multi_thread")]
async fn disputes_come_as_they_like() {
    let server = Server::open("4", "60s", &[]).await;
    let [reordered, lost_on_the_way, several, refunded] = &server.sale.buyers[..] else {
        panic!("four buyers");
    };
    let open = async |intent: &str, more: &str| {
        let form = format!("payment_intent={intent}{more}");
        let made = server.stripe_post("/_sandbox/disputes", &form).await;
        made.expect(200).str("id")
    };
    // Closed is told before it was opened, and both twice.
    server.faults("webhook_reorder,webhook_duplicate=2").await;
    let one = sold(&server, reordered, "pm_card_visa").await;
    let dispute = open(&one.intent, "").await;
    one.decide(&dispute, "lost").await;
    one.until_order(|order| order["status"] == "CANCELLED")
        .await;

    // Only its end arrives.
    server.faults("").await;
    let two = sold(&server, lost_on_the_way, "pm_card_visa").await;
    server.faults("webhook_drop").await;
    let dispute = open(&two.intent, "").await;
    server.faults("").await;
    two.decide(&dispute, "won").await;
    let order = two.until_order(|_| true).await;
    assert_eq!(
        (&order["status"], &order["disputed"]),
        (&"CONFIRMED".into(), &false.into())
    );

    let three = sold(&server, several, "pm_card_createMultipleDisputes").await;
    three.until_order(|order| order["disputed"] == true).await;
    let path = format!("/v1/disputes?payment_intent={}", three.intent);
    let all = server.stripe_get(&path).await.expect(200);
    let ids: Vec<&str> = (all.body["data"].as_array().unwrap().iter())
        .map(|one| one["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids.len(), 2);
    three.decide(ids[0], "lost").await;
    three.until_alarm("DISPUTE").await;
    let order = three.until_order(|order| order["disputed"] == true).await;
    assert_eq!(order["status"], "CONFIRMED", "one is still open");
    three.decide(ids[1], "lost").await;
    three
        .until_order(|order| order["status"] == "CANCELLED")
        .await;

    let four = sold(&server, refunded, "pm_card_visa").await;
    four.cancel().await.expect(200);
    four.until_payment(|payment| payment["refundedAmount"] == four.amount)
        .await;
    let dispute = open(&four.intent, "").await;
    four.until_alarm("DISPUTE").await;
    four.decide(&dispute, "won").await;
    four.until_no_alarm("DISPUTE").await;
    let order = four.until_order(|_| true).await;
    assert_eq!(order["status"], "REFUNDED");
    assert_eq!(server.refunds(&four.intent).await.len(), 1);
    until_green(&server).await;
}
