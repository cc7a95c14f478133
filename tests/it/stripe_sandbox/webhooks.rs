//! Webhooks: signed, tried again, kept over restarts, and bent as asked.

use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::Value;
use sha2::Sha256;

use super::setup::{Delivery, Sandbox, Shop, WEBHOOK_SECRET, id};

async fn open() -> (Sandbox, Shop) {
    let shop = Shop::open().await;
    let sandbox = Sandbox::with(&["--stripe-sandbox-webhook-url", &shop.url]).await;
    (sandbox, shop)
}

fn of_type(received: &[Delivery], kind: &str) -> Vec<Value> {
    let events = received.iter().map(Delivery::event);
    events.filter(|event| event["type"] == kind).collect()
}

/// The signatures in a header, and whether each is ours.
fn signatures(delivery: &Delivery) -> Vec<bool> {
    let mut parts = delivery.signature.split(',');
    let time = parts.next().unwrap().strip_prefix("t=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(WEBHOOK_SECRET.as_bytes()).unwrap();
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(&delivery.body);
    let ours = hex::encode(mac.finalize().into_bytes());
    let age = chrono::Utc::now().timestamp() - time.parse::<i64>().unwrap();
    assert!((0..60).contains(&age));
    parts
        .map(|part| part.strip_prefix("v1=").unwrap() == ours)
        .collect()
}

#[tokio::test]
async fn each_event_arrives_signed_and_is_in_the_list() {
    let (sandbox, shop) = open().await;
    let intent = sandbox.paid(5_000).await;
    let received = shop
        .until(|got| !of_type(got, "payment_intent.succeeded").is_empty())
        .await;
    for delivery in &received {
        assert_eq!(signatures(delivery), [true]);
    }
    let event = &of_type(&received, "payment_intent.succeeded")[0];
    assert_eq!(event["data"]["object"]["id"], intent["id"]);
    assert_eq!(event["data"]["object"]["status"], "succeeded");
    assert!(
        of_type(&received, "charge.succeeded").is_empty(),
        "nobody asked for it"
    );
    let one = sandbox.get(&format!("/v1/events/{}", id(event))).await.ok();
    assert_eq!(one["data"], event["data"]);
    let only = sandbox
        .get("/v1/events?types[]=payment_intent.succeeded")
        .await
        .ok();
    assert_eq!(only["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_shop_that_fails_is_asked_again_until_it_takes_the_event() {
    let (sandbox, shop) = open().await;
    shop.will_answer(&[500, 404, 302]);
    let intent = sandbox.intent(5_000, "").await;
    let received = shop.until(|got| got.len() >= 4).await;
    assert!(received.iter().all(|d| d.body == received[0].body));
    assert_eq!(received[0].event()["data"]["object"]["id"], intent["id"]);
    let event = received[0].event();
    let path = format!("/v1/events/{}", id(&event));
    for _ in 0..100 {
        if sandbox.get(&path).await.ok()["pending_webhooks"] == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sandbox.get(&path).await.ok()["pending_webhooks"], 0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(shop.received().len(), 4, "taken once, never sent again");
}

#[tokio::test]
async fn what_was_not_delivered_is_after_a_restart() {
    let nobody = "http://127.0.0.1:9/hook";
    let sandbox = Sandbox::with(&["--stripe-sandbox-webhook-url", nobody]).await;
    let intent = sandbox.paid(5_000).await;
    let undelivered = sandbox.get("/v1/events?delivery_success=false").await.ok();
    assert_eq!(undelivered["data"].as_array().unwrap().len(), 2);
    sandbox.stop().await;

    let shop = Shop::open().await;
    let url = sandbox.database_url.clone();
    let next = Sandbox::on(url, &["--stripe-sandbox-webhook-url", &shop.url]).await;
    let received = shop
        .until(|got| !of_type(got, "payment_intent.succeeded").is_empty())
        .await;
    let event = &of_type(&received, "payment_intent.succeeded")[0];
    assert_eq!(event["data"]["object"]["id"], intent["id"]);
    next.stop().await;
}

#[tokio::test]
async fn deliveries_are_bent_as_the_intent_asks() {
    let (sandbox, shop) = open().await;
    let paid = async |fault: &str| {
        let intent = sandbox
            .intent(5_000, &format!("metadata[sandbox_fault]={fault}"))
            .await;
        sandbox.confirm(&intent, "pm_card_visa").await.ok();
        intent
    };
    let about = |got: &[Delivery], intent: &Value| -> Vec<Delivery> {
        let about = |d: &&Delivery| d.event()["data"]["object"]["id"] == intent["id"];
        got.iter().filter(about).cloned().collect()
    };

    let doubled = paid("webhook_duplicate=3").await;
    shop.until(|got| about(got, &doubled).len() == 6).await;

    let reordered = paid("create/webhook_reorder").await;
    let got = shop.until(|got| about(got, &reordered).len() == 2).await;
    let kinds: Vec<Value> = about(&got, &reordered)
        .iter()
        .map(|d| d.event()["type"].clone())
        .collect();
    assert_eq!(
        kinds,
        ["payment_intent.succeeded", "payment_intent.created"]
    );

    let rotated = paid("webhook_two_signatures").await;
    let got = shop.until(|got| about(got, &rotated).len() == 2).await;
    for delivery in about(&got, &rotated) {
        assert_eq!(signatures(&delivery), [false, true]);
    }
    let forged = paid("webhook_forge").await;
    let got = shop.until(|got| about(got, &forged).len() == 2).await;
    assert_eq!(signatures(&about(&got, &forged)[0]), [false]);

    let skewed = paid("skew").await;
    let got = shop.until(|got| about(got, &skewed).len() == 2).await;
    let event = about(&got, &skewed)[1].event();
    assert!(event["sandbox_unknown_field"].is_object());
    assert!(event["data"]["object"]["sandbox_unknown_field"].is_object());

    let lost = paid("webhook_lose=2").await;
    shop.until(|got| about(got, &lost).len() == 2).await;
    let attempts: Vec<i32> = sqlx::query_scalar(
        "select attempts from deliveries join events on events.id = event_id
         where intent_id = $1",
    )
    .bind(id(&lost))
    .fetch_all(&sandbox.pool)
    .await
    .unwrap();
    assert_eq!(attempts, [3, 3]);

    let dropped = paid("webhook_drop").await;
    let last = paid("").await;
    shop.until(|got| about(got, &last).len() == 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(about(&shop.received(), &dropped).len(), 0);
    let ledger = sandbox.get("/_sandbox/ledger").await.ok();
    assert_eq!(ledger["deliveries"]["dropped"], 2);
}

#[tokio::test]
async fn what_stripe_does_later_happens_by_itself() {
    let (sandbox, shop) = open().await;
    let slow = sandbox
        .intent(5_000, "metadata[sandbox_fault]=confirm/processing=300ms")
        .await;
    let waiting = sandbox.confirm(&slow, "pm_card_visa").await.ok();
    assert_eq!(waiting["status"], "processing");
    let cancel = format!("/v1/payment_intents/{}/cancel", id(&slow));
    sandbox.post(&cancel, "").await.error(400);
    shop.until(|got| !of_type(got, "payment_intent.succeeded").is_empty())
        .await;
    assert_eq!(sandbox.read(&slow).await["amount_received"], 5_000);

    let slow = sandbox
        .intent(5_000, "metadata[sandbox_fault]=processing=300ms")
        .await;
    sandbox.confirm(&slow, "pm_card_chargeDeclined").await.ok();
    shop.until(|got| !of_type(got, "payment_intent.payment_failed").is_empty())
        .await;
    assert_eq!(
        sandbox.read(&slow).await["status"],
        "requires_payment_method"
    );

    let disputed = sandbox.intent(5_000, "").await;
    sandbox
        .confirm(&disputed, "pm_card_createDispute")
        .await
        .ok();
    let got = shop
        .until(|got| !of_type(got, "charge.dispute.created").is_empty())
        .await;
    let dispute = &of_type(&got, "charge.dispute.created")[0]["data"]["object"];
    assert_eq!(dispute["payment_intent"], disputed["id"]);

    let failing = sandbox.intent(5_000, "").await;
    sandbox.confirm(&failing, "pm_card_refundFail").await.ok();
    let form = format!("payment_intent={}", id(&failing));
    assert_eq!(
        sandbox.post("/v1/refunds", &form).await.ok()["status"],
        "succeeded"
    );
    shop.until(|got| !of_type(got, "refund.failed").is_empty())
        .await;
    let ledger = sandbox.get("/_sandbox/ledger").await.ok();
    let lines = ledger["data"].as_array().unwrap();
    let line = lines
        .iter()
        .find(|line| line["id"] == failing["id"])
        .unwrap();
    assert_eq!(
        line["refunded"], 0,
        "a refund that failed gave nothing back"
    );
}
