//! The API as Stripe documents it: statuses, errors, keys, pages.

use base64::Engine as _;
use serde_json::Value;

use super::setup::{PUBLISHABLE_KEY, SECRET_KEY, Sandbox, id};

#[tokio::test]
async fn wrong_keys_and_unknown_things_get_stripes_errors() {
    let sandbox = Sandbox::start().await;
    let list = "/v1/payment_intents";
    let none = sandbox
        .call("GET", list, "", &[("authorization", "")])
        .await;
    assert_eq!(none.error(401)["type"], "invalid_request_error");
    let wrong = [("authorization", "Bearer sk_test_51SandboxSecretKeX")];
    let wrong = sandbox.call("GET", list, "", &wrong).await.error(401);
    let message = wrong["message"].as_str().unwrap();
    assert!(
        message.starts_with("Invalid API Key provided: sk_test_***"),
        "{message}"
    );
    assert!(!message.contains("SandboxSecret"));

    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{SECRET_KEY}:"));
    let basic = format!("Basic {basic}");
    let basic = sandbox
        .call("GET", list, "", &[("authorization", &basic)])
        .await;
    assert_eq!(basic.ok()["object"], "list");

    let nobody = sandbox.get("/v1/payment_intents/pi_nobody").await;
    assert!(nobody.header("request-id").unwrap().starts_with("req_"));
    let nobody = nobody.error(404);
    assert_eq!(nobody["code"], "resource_missing");
    assert_eq!(nobody["param"], "intent");
    let nowhere = sandbox.get("/v1/cats").await.error(404);
    let message = nowhere["message"].as_str().unwrap();
    assert!(
        message.starts_with("Unrecognized request URL (GET: /v1/cats)"),
        "{message}"
    );
    let json = [("content-type", "application/json")];
    let json = sandbox.post_with(list, "{}", &json).await;
    json.error(400);
    let huge = "a".repeat(1024 * 1024);
    assert_eq!(sandbox.post(list, &huge).await.status, 413);
    for method in ["DELETE", "PUT"] {
        sandbox.call(method, list, "", &[]).await.error(404);
    }
}

#[tokio::test]
async fn a_browser_confirms_with_publishable_key_and_client_secret() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.intent(5_000, "").await;
    let path = format!("/v1/payment_intents/{}", id(&intent));
    let confirm = format!("{path}/confirm");
    let secret = intent["client_secret"].as_str().unwrap();
    let browser = [("authorization", ""), ("origin", "https://shop.example")];

    // As Stripe.js sends it: the key in the form.
    let stolen = format!("key={PUBLISHABLE_KEY}&payment_method=pm_card_visa");
    let stolen = sandbox
        .post_with(&confirm, &stolen, &browser)
        .await
        .error(401);
    assert_eq!(stolen["code"], "secret_key_required");
    let guessed = format!("key={PUBLISHABLE_KEY}&payment_method=pm_card_visa&client_secret=x");
    let guessed = sandbox
        .post_with(&confirm, &guessed, &browser)
        .await
        .error(400);
    assert_eq!(guessed["param"], "client_secret");
    assert_eq!(
        sandbox.read(&intent).await["status"],
        "requires_payment_method"
    );
    let unread = sandbox
        .call(
            "GET",
            &format!("{path}?key={PUBLISHABLE_KEY}"),
            "",
            &browser,
        )
        .await;
    unread.error(401);

    let form = format!(
        "key={PUBLISHABLE_KEY}&client_secret={secret}&payment_method_data[type]=card\
         &payment_method_data[card][number]=4242424242424242"
    );
    let paid = sandbox.post_with(&confirm, &form, &browser).await;
    assert_eq!(paid.header("access-control-allow-origin"), Some("*"));
    assert_eq!(paid.ok()["status"], "succeeded");
    let query = format!("{path}?key={PUBLISHABLE_KEY}&client_secret={secret}");
    let read = sandbox.call("GET", &query, "", &browser).await.ok();
    assert_eq!(read["status"], "succeeded");
}

#[tokio::test]
async fn a_browser_may_do_nothing_else() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.paid(5_000).await;
    let confirm = format!("/v1/payment_intents/{}/confirm", id(&intent));
    for (method, path, form) in [
        (
            "POST",
            "/v1/refunds",
            format!("payment_intent={}", id(&intent)),
        ),
        (
            "POST",
            "/v1/payment_intents",
            "amount=1000&currency=krw".to_owned(),
        ),
        ("GET", "/v1/payment_intents", String::new()),
        ("GET", "/v1/events", String::new()),
        ("GET", "/_sandbox/ledger", String::new()),
        ("POST", "/_sandbox/faults", "faults=hang".to_owned()),
    ] {
        let bearer = format!("Bearer {PUBLISHABLE_KEY}");
        let answer = sandbox
            .call(method, path, &form, &[("authorization", &bearer)])
            .await;
        assert_eq!(
            answer.error(401)["code"],
            "secret_key_required",
            "{method} {path}"
        );
    }
    let preflight = sandbox
        .call(
            "OPTIONS",
            &confirm,
            "",
            &[
                ("origin", "https://shop.example"),
                ("access-control-request-method", "POST"),
                ("access-control-request-headers", "authorization"),
            ],
        )
        .await;
    assert_eq!(preflight.status, 200);
    assert_eq!(preflight.header("access-control-allow-methods"), Some("*"));
}

#[tokio::test]
async fn a_payment_can_be_tried_again_until_it_succeeds_and_never_after() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.intent(5_000, "metadata[order]=7").await;
    assert_eq!(
        sandbox
            .confirm(&intent, "pm_card_chargeDeclined")
            .await
            .error(402)["decline_code"],
        "generic_decline"
    );
    let path = format!("/v1/payment_intents/{}/confirm", id(&intent));
    let bare = sandbox.post(&path, "").await.error(400);
    assert_eq!(
        bare["code"], "payment_intent_unexpected_state",
        "a declined card is not kept"
    );
    let paid = sandbox.confirm(&intent, "pm_card_visa").await.ok();
    assert_eq!(paid["status"], "succeeded");
    assert_eq!(paid["last_payment_error"], Value::Null);
    for path in ["confirm", "capture", "cancel"] {
        let path = format!("/v1/payment_intents/{}/{path}", id(&intent));
        let again = sandbox.post(&path, "").await.error(400);
        assert_eq!(again["code"], "payment_intent_unexpected_state", "{path}");
        assert_eq!(again["payment_intent"]["id"], intent["id"], "{path}");
    }
    let charges = sandbox
        .get(&format!("/v1/charges?payment_intent={}", id(&intent)))
        .await
        .ok();
    let statuses: Vec<&Value> = charges["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["status"])
        .collect();
    assert_eq!(statuses, ["succeeded", "failed"]);
    assert_eq!(
        sandbox.event_types().await,
        [
            "payment_intent.created",
            "charge.failed",
            "payment_intent.payment_failed",
            "charge.succeeded",
            "payment_intent.succeeded",
        ]
    );
}

#[tokio::test]
async fn no_more_is_refunded_than_was_captured() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.paid(10_000).await;
    let refund = |amount: u32| format!("payment_intent={}&amount={amount}", id(&intent));
    let too_much = sandbox
        .post("/v1/refunds", &refund(10_001))
        .await
        .error(400);
    assert_eq!(too_much["param"], "amount");
    let first = sandbox.post("/v1/refunds", &refund(4_000)).await.ok();
    assert_eq!(first["status"], "succeeded");
    sandbox.post("/v1/refunds", &refund(6_001)).await.error(400);

    // Thirty at once for the 6,000 that are left: exactly six fit.
    let form = refund(1_000);
    let all = (0..30).map(|_| sandbox.post("/v1/refunds", &form));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|answer| answer.status == 200).count(), 6);
    for refused in all.iter().filter(|answer| answer.status != 200) {
        assert_eq!(refused.error(400)["code"], "charge_already_refunded");
    }
    let charge = sandbox.read(&intent).await["latest_charge"].clone();
    let charge = format!("/v1/charges/{}", charge.as_str().unwrap());
    let charge = sandbox.get(&charge).await.ok();
    assert_eq!(charge["amount_refunded"], 10_000);
    assert_eq!(charge["refunded"], true);
    let ledger = sandbox.get("/_sandbox/ledger").await.ok();
    let line = &ledger["data"][0];
    assert_eq!(
        (&line["captured"], &line["refunded"]),
        (&10_000.into(), &10_000.into())
    );
}

#[tokio::test]
async fn an_unpaid_intent_has_nothing_to_refund_and_a_cancelled_one_nothing_to_pay() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.intent(5_000, "").await;
    let refund = format!("payment_intent={}", id(&intent));
    sandbox.post("/v1/refunds", &refund).await.error(400);
    let nobody = sandbox
        .post("/v1/refunds", "payment_intent=pi_nobody")
        .await;
    assert_eq!(nobody.error(404)["code"], "resource_missing");
    assert_eq!(
        sandbox.post("/v1/refunds", "").await.error(400)["code"],
        "parameter_missing"
    );
    let path = format!("/v1/payment_intents/{}/cancel", id(&intent));
    let cancelled = sandbox
        .post(&path, "cancellation_reason=abandoned")
        .await
        .ok();
    assert_eq!(cancelled["status"], "canceled");
    assert_eq!(cancelled["cancellation_reason"], "abandoned");
    sandbox.confirm(&intent, "pm_card_visa").await.error(400);
    assert_eq!(sandbox.read(&intent).await["amount_received"], 0);
}

#[tokio::test]
async fn confirm_and_cancel_at_once_end_in_one_of_the_two() {
    let sandbox = Sandbox::start().await;
    for _ in 0..10 {
        let intent = sandbox.intent(5_000, "").await;
        let cancel = format!("/v1/payment_intents/{}/cancel", id(&intent));
        let (paid, cancelled) = tokio::join!(
            sandbox.confirm(&intent, "pm_card_visa"),
            sandbox.post(&cancel, "")
        );
        let now = sandbox.read(&intent).await;
        match (paid.status, cancelled.status) {
            (200, 400) => assert_eq!(now["status"], "succeeded"),
            (400, 200) => assert_eq!(now["status"], "canceled"),
            both => panic!("{both:?}"),
        }
    }
}

#[tokio::test]
async fn lists_page_both_ways_without_gap_or_repeat() {
    let sandbox = Sandbox::start().await;
    let mut ids = Vec::new();
    for amount in 1_000..1_007 {
        ids.push(id(&sandbox.intent(amount, "").await).to_owned());
    }
    ids.reverse();
    let page = async |query: &str| {
        let list = sandbox
            .get(&format!("/v1/payment_intents?{query}"))
            .await
            .ok();
        let data = list["data"].as_array().unwrap();
        let ids: Vec<String> = data.iter().map(|intent| id(intent).to_owned()).collect();
        (ids, list["has_more"].as_bool().unwrap())
    };
    assert_eq!(page("limit=3").await, (ids[..3].to_vec(), true));
    let second = format!("limit=3&starting_after={}", ids[2]);
    assert_eq!(page(&second).await, (ids[3..6].to_vec(), true));
    let last = format!("limit=3&starting_after={}", ids[5]);
    assert_eq!(page(&last).await, (ids[6..].to_vec(), false));
    let back = format!("limit=3&ending_before={}", ids[6]);
    assert_eq!(page(&back).await, (ids[3..6].to_vec(), true));
    let future = "created[gt]=4000000000";
    assert_eq!(page(future).await, (vec![], false));
    sandbox
        .get("/v1/payment_intents?limit=101")
        .await
        .error(400);
    sandbox
        .get("/v1/payment_intents?starting_after=pi_x")
        .await
        .error(404);
}
