//! Held against Stripe's own description: the same requests go to stripe-mock,
//! which checks them against Stripe's OpenAPI and answers with its fixtures.

use serde_json::Value;

use super::setup::{Answer, Sandbox, id};
use crate::harness::stripe_mock::stripe_mock;

/// What a card payment never has, or has another shape of: fixtures show every
/// kind of payment at once.
fn other_kind(path: &str) -> bool {
    path.starts_with("/payment_method_options/card/")
        || path.ends_with("/metadata")
        || path.ends_with("/fraud_details")
}

/// Fields of `theirs` that ours lacks, or has in another type.
fn differences(theirs: &Value, ours: &Value, path: &str, found: &mut Vec<String>) {
    if other_kind(path) {
        return;
    }
    match (theirs, ours) {
        (Value::Object(theirs), Value::Object(ours)) => {
            for (key, value) in theirs {
                let path = format!("{path}/{key}");
                match ours.get(key) {
                    Some(own) => differences(value, own, &path, found),
                    None => found.push(format!("{path} is missing")),
                }
            }
        }
        (Value::Null, _)
        | (_, Value::Null)
        | (Value::Array(_), Value::Array(_))
        | (Value::Bool(_), Value::Bool(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::String(_), Value::String(_)) => {}
        _ => found.push(format!("{path}: {ours} instead of {theirs}")),
    }
}

/// The same call to both.
async fn both(sandbox: &Sandbox, method: &str, path: &str, form: &str) -> (Answer, Answer) {
    let theirs = sandbox
        .call_at(stripe_mock(), method, path, form, &[])
        .await;
    let ours = sandbox.call(method, path, form, &[]).await;
    (theirs, ours)
}

async fn same(sandbox: &Sandbox, method: &str, path: &str, form: &str) -> Value {
    let (theirs, ours) = both(sandbox, method, path, form).await;
    let (theirs, ours) = (theirs.ok(), ours.ok());
    let mut found = Vec::new();
    differences(&theirs, &ours, "", &mut found);
    if let (Some(Value::Array(theirs)), Some(Value::Array(own))) =
        (theirs.get("data"), ours.get("data"))
    {
        assert!(!own.is_empty(), "nothing to compare in {path}");
        if let Some(first) = theirs.first() {
            differences(first, &own[0], "/data", &mut found);
        }
    }
    found.retain(|difference| !difference.starts_with("/data/data"));
    assert!(found.is_empty(), "{method} {path}:\n{}", found.join("\n"));
    ours
}

#[tokio::test]
async fn answers_have_every_field_of_stripes_fixtures() {
    let sandbox = Sandbox::start().await;
    let form = "amount=150000&currency=krw&automatic_payment_methods[enabled]=true\
                &metadata[orderId]=7&description=2+seats&receipt_email=a@example.com";
    let intent = same(&sandbox, "POST", "/v1/payment_intents", form).await;
    let path = format!("/v1/payment_intents/{}", id(&intent));
    same(&sandbox, "POST", &path, "metadata[orderId]=8").await;
    let confirm = "payment_method=pm_card_visa&return_url=https://shop.example";
    same(&sandbox, "POST", &format!("{path}/confirm"), confirm).await;
    let paid = same(&sandbox, "GET", &path, "").await;
    same(&sandbox, "GET", "/v1/payment_intents?limit=3", "").await;
    let charge = paid["latest_charge"].as_str().unwrap();
    same(&sandbox, "GET", &format!("/v1/charges/{charge}"), "").await;
    same(&sandbox, "GET", "/v1/charges", "").await;
    let form = format!(
        "payment_intent={}&amount=50000&reason=duplicate",
        id(&intent)
    );
    let refund = same(&sandbox, "POST", "/v1/refunds", &form).await;
    same(&sandbox, "GET", &format!("/v1/refunds/{}", id(&refund)), "").await;
    let list = format!("/v1/refunds?payment_intent={}", id(&intent));
    same(&sandbox, "GET", &list, "").await;
    let manual = "amount=150000&currency=krw&capture_method=manual\
                  &payment_method=pm_card_visa&confirm=true";
    let manual = same(&sandbox, "POST", "/v1/payment_intents", manual).await;
    let path = format!("/v1/payment_intents/{}", id(&manual));
    same(
        &sandbox,
        "POST",
        &format!("{path}/capture"),
        "amount_to_capture=1000",
    )
    .await;
    let other = sandbox.intent(5_000, "").await;
    let cancel = format!("/v1/payment_intents/{}/cancel", id(&other));
    same(&sandbox, "POST", &cancel, "cancellation_reason=abandoned").await;
}

#[tokio::test]
async fn events_have_every_field_of_stripes_fixtures() {
    let sandbox = Sandbox::start().await;
    sandbox.paid(5_000).await;
    let list = sandbox.get("/v1/events").await.ok();
    let path = format!("/v1/events/{}", id(&list["data"][0]));
    let (theirs, ours) = both(&sandbox, "GET", &path, "").await;
    let (mut theirs, ours) = (theirs.ok(), ours.ok());
    theirs["data"] = Value::Null;
    let mut found = Vec::new();
    differences(&theirs, &ours, "", &mut found);
    assert!(found.is_empty(), "{found:?}");
}

/// What Stripe's description forbids, the sandbox refuses with the same status.
#[tokio::test]
async fn requests_that_stripe_refuses_are_refused() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.intent(5_000, "").await;
    let confirm = format!("/v1/payment_intents/{}/confirm", id(&intent));
    for (path, form) in [
        ("/v1/payment_intents", "currency=krw"),
        ("/v1/payment_intents", "amount=1000"),
        ("/v1/payment_intents", "amount=1000&currency=krw&colour=red"),
        ("/v1/payment_intents", "amount=ten&currency=krw"),
        (
            "/v1/payment_intents",
            "amount=1000&currency=krw&confirm=perhaps",
        ),
        (
            "/v1/payment_intents",
            "amount=1000&currency=krw&capture_method=later",
        ),
        ("/v1/refunds", "payment_intent=pi_1&reason=boredom"),
        ("/v1/refunds", "payment_intent=pi_1&refund=1"),
        (confirm.as_str(), "payment_method=pm_card_visa&colour=red"),
    ] {
        let (theirs, ours) = both(&sandbox, "POST", path, form).await;
        theirs.error(400);
        ours.error(400);
    }
}
