//! Answers that go wrong: what is promised about the effect must hold.

use std::time::Duration;

use super::setup::{Answer, Sandbox, id};

const CREATE: &str = "/v1/payment_intents";
const FORM: &str = "amount=5000&currency=krw";

impl Sandbox {
    async fn faulty(&self, key: &str, fault: &str) -> Answer {
        let headers = [("idempotency-key", key), ("sandbox-fault", fault)];
        self.post_with(CREATE, FORM, &headers).await
    }

    async fn made(&self) -> usize {
        let ledger = self.get("/_sandbox/ledger").await.ok();
        ledger["data"].as_array().unwrap().len()
    }
}

#[tokio::test]
async fn errors_before_after_and_remembered_differ_in_what_is_left() {
    let sandbox = Sandbox::start().await;
    sandbox.faulty("before", "error_before").await.error(503);
    assert_eq!(sandbox.made().await, 0);
    let again = sandbox.faulty("before", "").await;
    assert_eq!(
        again.header("idempotent-replayed"),
        None,
        "the key was not used up"
    );
    again.ok();

    sandbox.faulty("after", "error_after").await.error(500);
    assert_eq!(sandbox.made().await, 2, "committed, though nobody was told");
    let again = sandbox.faulty("after", "").await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    again.ok();

    sandbox.faulty("stored", "error_stored").await.error(500);
    let again = sandbox.faulty("stored", "").await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    again.error(500);
    assert_eq!(sandbox.made().await, 3);

    sandbox.faulty("limit", "error_before=429").await.error(429);
    sandbox.faulty("typo", "eror_before").await.error(400);
    let typo = format!("{FORM}&metadata[sandbox_fault]=webhook_dorp");
    assert_eq!(
        sandbox.post(CREATE, &typo).await.error(400)["param"],
        "metadata[sandbox_fault]"
    );
    assert_eq!(sandbox.made().await, 3);
}

#[tokio::test]
async fn a_call_that_hangs_has_been_done_or_not_as_asked() {
    let sandbox = Sandbox::start().await;
    // Long enough for the call to have arrived on a busy machine.
    let patience = Duration::from_secs(3);
    let hung = tokio::time::timeout(patience, sandbox.faulty("done", "hang")).await;
    assert!(hung.is_err());
    let again = sandbox.faulty("done", "").await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    again.ok();

    // Nothing done: and while it hangs, the key is in use.
    let hung = sandbox.faulty("undone", "hang_before");
    tokio::pin!(hung);
    assert!(tokio::time::timeout(patience, hung.as_mut()).await.is_err());
    let busy = sandbox.faulty("undone", "").await.error(409);
    assert_eq!(busy["code"], "idempotency_key_in_use");
    assert_eq!(sandbox.made().await, 1);
}

#[tokio::test]
async fn an_intent_carries_faults_of_its_own() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox
        .intent(5_000, "metadata[sandbox_fault]=confirm/error_after=502")
        .await;
    sandbox.confirm(&intent, "pm_card_visa").await.error(502);
    assert_eq!(sandbox.read(&intent).await["status"], "succeeded");
    let intent = sandbox
        .intent(5_000, "metadata[sandbox_fault]=refund/error_before")
        .await;
    sandbox.confirm(&intent, "pm_card_visa").await.ok();
    let form = format!("payment_intent={}", id(&intent));
    sandbox.post("/v1/refunds", &form).await.error(503);
    let path = format!("{CREATE}/{}", id(&intent));
    sandbox.post(&path, "metadata[sandbox_fault]=").await.ok();
    sandbox.post("/v1/refunds", &form).await.ok();
}

#[tokio::test]
async fn the_standing_profile_deals_faults_at_its_odds_and_can_be_lifted() {
    let sandbox = Sandbox::with(&[
        "--stripe-sandbox-faults",
        "create/error_before=429@0.5",
        "--stripe-sandbox-fault-seed",
        "7",
    ])
    .await;
    let shown = sandbox.get("/_sandbox/faults").await.ok();
    assert_eq!(shown["faults"], "create/error_before=429@0.5");
    let deal = async || {
        let mut dealt = Vec::new();
        for _ in 0..40 {
            dealt.push(sandbox.post(CREATE, FORM).await.status);
        }
        dealt
    };
    let first = deal().await;
    let refused = first.iter().filter(|status| **status == 429).count();
    assert!((8..32).contains(&refused), "{first:?}");
    let set = "faults=create/error_before%3D429%400.5&seed=7";
    sandbox.post("/_sandbox/faults", set).await.ok();
    assert_eq!(deal().await, first, "the same seed deals the same");
    sandbox.post("/_sandbox/faults", "faults=").await.ok();
    assert!(deal().await.iter().all(|status| *status == 200));
    sandbox
        .post("/_sandbox/faults", "faults=nonsense")
        .await
        .error(400);
}

#[tokio::test]
async fn a_delay_delays_the_answer() {
    let sandbox = Sandbox::start().await;
    let started = std::time::Instant::now();
    sandbox.faulty("slow", "delay=300ms").await.ok();
    assert!(started.elapsed() >= Duration::from_millis(300));
}
