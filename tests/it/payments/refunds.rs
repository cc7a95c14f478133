//! Refunds followed to their end: what fails after it succeeded is owed again, and everybody who
//! looks is told the truth meanwhile.

use serde_json::json;

use super::support::{sold, until_green};
use crate::harness::server::Server;

/// Stripe says succeeded and then failed, each time: the total falls, the buyer is told, an alarm
/// is raised, and the audit is red without the sandbox. Once the bank takes it, all is well again.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_fails_after_all_is_owed_again() {
    let server = Server::open("3", "60s", &[]).await;
    let card = sold(&server, &server.sale.buyers[0], "pm_card_refundFail").await;
    card.cancel().await.expect(200);
    card.until_alarm("REFUND_FAILED").await;
    let order = card
        .until_order(|order| order["refunds"][0]["status"] == "FAILED")
        .await;
    assert_eq!(order["status"], "REFUNDED");
    assert_eq!(order["refunds"][0]["amount"], card.amount);
    assert_eq!(order["refunds"][0]["reason"], "CANCELLED_BY_BUYER");
    assert_eq!(order["refund"]["status"], "REQUESTED");
    let states: Vec<&serde_json::Value> = order["seats"].as_array().unwrap().iter().collect();
    assert!(states.iter().all(|seat| seat["state"] == "REFUNDED"));
    let payment = card
        .until_payment(|payment| payment["refundedAmount"] == 0)
        .await;
    assert_eq!(payment["status"], "SUCCEEDED");
    let (code, said) = server.audit(false).await;
    assert!(code == 1 && said.contains("BREACHED"), "{said}");

    // A second attempt, under a new key: another refund at Stripe.
    super::support::until_refunds(&server, &card.intent, 2).await;

    server.faults("refund/refund_fail").await;
    let once = sold(&server, &server.sale.buyers[1], "pm_card_visa").await;
    once.cancel().await.expect(200);
    once.until_alarm("REFUND_FAILED").await;
    server.faults("").await;
    let order = once
        .until_order(|order| order["refunds"][0]["status"] == "SUCCEEDED")
        .await;
    assert_eq!(order["refunds"].as_array().unwrap().len(), 1);
    once.until_no_alarm("REFUND_FAILED").await;
    once.until_payment(|payment| payment["refundedAmount"] == once.amount)
        .await;
    let tried = server.refunds(&once.intent).await;
    let statuses: Vec<&serde_json::Value> = tried.iter().map(|one| &one["status"]).collect();
    assert_eq!(statuses, [&json!("succeeded"), &json!("failed")]);

    // The webhooks of all of it twice and in reverse change nothing.
    server.faults("webhook_duplicate=2,webhook_reorder").await;
    let twice = sold(&server, &server.sale.buyers[2], "pm_card_visa").await;
    twice.cancel().await.expect(200);
    twice
        .until_order(|order| order["refunds"][0]["status"] == "SUCCEEDED")
        .await;
    twice
        .until_payment(|payment| payment["refundedAmount"] == twice.amount)
        .await;
}

/// A refund may be under way for so long; then somebody looks, until it arrives by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_refund_that_takes_too_long_is_an_alarm_until_it_arrives() {
    let server = Server::open("2", "60s", &[("TICKETPING_REFUND_PENDING_MAX", "1s")]).await;
    server.faults("refund/refund_pending=6s").await;
    let ours = sold(&server, &server.sale.buyers[0], "pm_card_visa").await;
    ours.cancel().await.expect(200);
    let theirs = sold(&server, &server.sale.buyers[1], "pm_card_visa").await;
    server.refund_at_stripe(&theirs.intent, None).await;
    ours.until_alarm("REFUND_OVERDUE").await;
    let order = ours.until_order(|_| true).await;
    assert_eq!(order["refunds"][0]["status"], "PENDING");
    theirs.until_alarm("REFUND_OVERDUE").await;
    let order = theirs.until_order(|_| true).await;
    assert_eq!(order["status"], "CONFIRMED");
    assert_eq!(order["refunds"][0]["status"], "PENDING");
    assert_eq!(order["refunds"][0]["reason"], "REFUNDED_AT_STRIPE");
    server.faults("").await;
    for sold in [&ours, &theirs] {
        sold.until_no_alarm("REFUND_OVERDUE").await;
        sold.until_order(|order| {
            order["status"] == "REFUNDED" && order["refunds"][0]["status"] == "SUCCEEDED"
        })
        .await;
    }
    until_green(&server).await;
}

/// In parts, in whole, and failing later: the totals are Stripe's, and an order whose money came
/// back to us is refunded by us.
#[tokio::test(flavor = "multi_thread")]
async fn refunds_made_at_stripe_are_followed_to_their_end() {
    let server = Server::open("3", "60s", &[]).await;
    let parts = sold(&server, &server.sale.buyers[0], "pm_card_visa").await;
    for amount in [1_000, 2_000] {
        server.refund_at_stripe(&parts.intent, Some(amount)).await;
    }
    parts
        .until_payment(|payment| payment["refundedAmount"] == 3_000)
        .await;
    parts.until_alarm("REFUNDED_AT_STRIPE").await;
    let order = parts
        .until_order(|order| {
            order["refunds"]
                .as_array()
                .is_some_and(|all| all.len() == 2)
        })
        .await;
    assert_eq!(order["status"], "CONFIRMED");
    // Stripe tells seconds: the order of two within one is not known.
    let first = order["refunds"][0]["amount"].as_i64().unwrap();
    assert!([1_000, 2_000].contains(&first), "{order}");
    // The buyer gives it up: the rest goes back, and no more.
    parts.cancel().await.expect(200);
    parts
        .until_payment(|payment| payment["refundedAmount"] == parts.amount)
        .await;
    let rest = parts.amount - 3_000;
    parts
        .until_order(|order| {
            let refunds = order["refunds"].as_array().unwrap();
            (refunds.iter()).any(|one| one["amount"] == rest && one["status"] == "SUCCEEDED")
        })
        .await;
    parts.until_no_alarm("REFUNDED_AT_STRIPE").await;

    // The whole of it, which fails after the order was closed by it.
    server.faults("refund/refund_fail").await;
    let whole = sold(&server, &server.sale.buyers[1], "pm_card_visa").await;
    server.refund_at_stripe(&whole.intent, None).await;
    server.faults("").await;
    whole.until_alarm("REFUND_FAILED").await;
    let order = whole
        .until_order(|order| {
            let refunds = order["refunds"].as_array().cloned().unwrap_or_default();
            let is = |status: &str| refunds.iter().any(|one| one["status"] == status);
            let again = (refunds.iter()).any(|one| one["reason"] == "REFUND_FAILED");
            is("FAILED") && is("SUCCEEDED") && again
        })
        .await;
    assert_eq!(order["status"], "REFUNDED");
    whole
        .until_payment(|payment| payment["refundedAmount"] == whole.amount)
        .await;
    whole.until_no_alarm("REFUND_FAILED").await;

    // A part that fails: the order stands, and nothing is owed.
    server.faults("refund/refund_fail").await;
    let part = sold(&server, &server.sale.buyers[2], "pm_card_visa").await;
    server.refund_at_stripe(&part.intent, Some(500)).await;
    server.faults("").await;
    part.until_alarm("REFUND_FAILED").await;
    part.until_payment(|payment| payment["refundedAmount"] == 0)
        .await;
    let order = part
        .until_order(|order| order["refunds"][0]["status"] == "FAILED")
        .await;
    assert_eq!(order["status"], "CONFIRMED");
    until_green(&server).await;
}
