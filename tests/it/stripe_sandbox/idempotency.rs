//! Idempotency keys: one effect, one answer, compared parameters, across
//! concurrency and restarts.

use std::collections::HashSet;

use super::setup::{Answer, Sandbox, id};

const CREATE: &str = "/v1/payment_intents";
const FORM: &str = "amount=5000&currency=krw";

impl Sandbox {
    async fn keyed(&self, path: &str, form: &str, key: &str) -> Answer {
        self.post_with(path, form, &[("idempotency-key", key)])
            .await
    }

    async fn count(&self) -> i64 {
        sqlx::query_scalar("select count(*) from intents")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn the_first_answer_is_given_again_byte_for_byte() {
    let sandbox = Sandbox::start().await;
    let first = sandbox.keyed(CREATE, FORM, "k1").await;
    assert_eq!(first.header("idempotency-key"), Some("k1"));
    assert_eq!(first.header("idempotent-replayed"), None);
    // The intent moves on; the remembered answer does not.
    sandbox.confirm(&first.ok(), "pm_card_visa").await.ok();
    let again = sandbox
        .keyed(CREATE, "currency=krw&amount=5000", "k1")
        .await;
    assert_eq!(again.header("idempotent-replayed"), Some("true"));
    assert_eq!(again.header("original-request"), first.header("request-id"));
    assert_ne!(again.header("request-id"), first.header("request-id"));
    assert_eq!(again.text, first.text);
    assert_eq!(sandbox.count().await, 1);
}

#[tokio::test]
async fn other_parameters_or_another_endpoint_are_an_error() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.keyed(CREATE, FORM, "k1").await.ok();
    let other = sandbox
        .keyed(CREATE, "amount=6000&currency=krw", "k1")
        .await
        .error(400);
    assert_eq!(other["type"], "idempotency_error");
    let cancel = format!("{CREATE}/{}/cancel", id(&intent));
    let other = sandbox.keyed(&cancel, "", "k1").await.error(400);
    assert_eq!(other["type"], "idempotency_error");
    assert_eq!(
        sandbox.read(&intent).await["status"],
        "requires_payment_method"
    );
    let long = "k".repeat(256);
    sandbox.keyed(CREATE, FORM, &long).await.error(400);
}

#[tokio::test]
async fn declines_are_remembered_and_failed_validation_is_not() {
    let sandbox = Sandbox::start().await;
    sandbox.keyed(CREATE, "amount=5000", "k1").await.error(400);
    let intent = sandbox.keyed(CREATE, FORM, "k1").await.ok();
    let confirm = format!("{CREATE}/{}/confirm", id(&intent));
    let card = "payment_method=pm_card_chargeDeclined";
    let first = sandbox.keyed(&confirm, card, "k2").await;
    first.error(402);
    let again = sandbox.keyed(&confirm, card, "k2").await;
    assert_eq!((again.status, &again.text), (402, &first.text));
    let charges = sandbox.get("/v1/charges").await.ok();
    assert_eq!(charges["data"].as_array().unwrap().len(), 1, "charged once");
}

/// Thirty at once: some are told that the first still runs, and whoever gets an
/// answer gets the same one. Nobody makes a second intent.
#[tokio::test]
async fn thirty_at_once_make_one_intent() {
    let sandbox = Sandbox::start().await;
    for round in 0..10 {
        let key = format!("round-{round}");
        let calls = (0..30).map(|_| sandbox.keyed(CREATE, FORM, &key));
        let answers = futures_util::future::join_all(calls).await;
        let mut bodies = HashSet::new();
        for answer in &answers {
            match answer.status {
                200 => {
                    bodies.insert(answer.text.clone());
                }
                409 => assert_eq!(answer.error(409)["code"], "idempotency_key_in_use"),
                other => panic!("{other}: {}", answer.text),
            }
        }
        assert_eq!(bodies.len(), 1);
        assert_eq!(sandbox.count().await, round + 1);
    }
}

#[tokio::test]
async fn a_key_outlives_the_process() {
    let sandbox = Sandbox::start().await;
    let first = sandbox.keyed(CREATE, FORM, "k1").await;
    let paid = sandbox.confirm(&first.ok(), "pm_card_visa").await.ok();
    sandbox.stop().await;
    let next = Sandbox::on(sandbox.database_url.clone(), &[]).await;
    let again = next.keyed(CREATE, FORM, "k1").await;
    assert_eq!(again.text, first.text);
    assert_eq!(next.read(&paid).await["status"], "succeeded");
    assert_eq!(next.count().await, 1);
}

/// Two processes on one database: the database decides.
#[tokio::test]
async fn two_sandboxes_on_one_database_make_one_intent() {
    let one = Sandbox::start().await;
    let two = Sandbox::on(one.database_url.clone(), &[]).await;
    for round in 0..10 {
        let key = format!("round-{round}");
        let (a, b) = tokio::join!(one.keyed(CREATE, FORM, &key), two.keyed(CREATE, FORM, &key));
        assert_eq!(a.text, b.text);
        let replayed = |answer: &Answer| answer.header("idempotent-replayed").is_some();
        assert!(replayed(&a) ^ replayed(&b), "exactly one was first");
    }
    assert_eq!(one.count().await, 10);
}
