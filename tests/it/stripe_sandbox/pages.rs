//! The pages, as a browser without scripts uses them.

use super::setup::{Answer, Sandbox, id};

const BACK: &str = "https%3A%2F%2Fshop.example%2Fdone%3Forder%3D7";

impl Sandbox {
    async fn submit(&self, path: &str, form: &str) -> Answer {
        self.post_with(path, form, &[("authorization", "")]).await
    }
}

#[tokio::test]
async fn a_buyer_pays_on_the_page_and_comes_back() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.intent(150_000, "description=%3Cb%3E2+seats").await;
    let secret = intent["client_secret"].as_str().unwrap();
    let pay = format!("/pay/{}", id(&intent));
    let shown = sandbox
        .call(
            "GET",
            &format!("{pay}?client_secret={secret}&return_url={BACK}"),
            "",
            &[("authorization", "")],
        )
        .await;
    assert_eq!(shown.status, 200);
    assert!(shown.text.contains("₩150,000") && shown.text.contains("&lt;b&gt;2 seats"));
    assert!(
        shown
            .header("content-security-policy")
            .unwrap()
            .contains("default-src 'none'")
    );

    let choose =
        |card: &str| format!("client_secret={secret}&return_url={BACK}&payment_method={card}");
    let declined = sandbox
        .submit(&pay, &choose("pm_card_chargeDeclined"))
        .await;
    assert_eq!(declined.status, 402);
    assert!(declined.text.contains("Your card was declined."));
    let paid = sandbox.submit(&pay, &choose("pm_card_visa")).await;
    assert_eq!(paid.status, 303);
    let back = paid.header("location").unwrap();
    assert!(
        back.starts_with("https://shop.example/done?order=7&payment_intent=pi_"),
        "{back}"
    );
    assert!(back.ends_with("redirect_status=succeeded"), "{back}");
    assert_eq!(sandbox.read(&intent).await["status"], "succeeded");

    let list = sandbox.call("GET", "/", "", &[("authorization", "")]).await;
    assert!(list.text.contains(id(&intent)) && !list.text.contains(secret));
}

#[tokio::test]
async fn the_page_asks_for_the_secret_and_sends_nobody_astray() {
    let sandbox = Sandbox::start().await;
    let intent = sandbox.intent(5_000, "").await;
    let secret = intent["client_secret"].as_str().unwrap();
    let pay = format!("/pay/{}", id(&intent));
    for secret in ["", "client_secret=x"] {
        let path = format!("{pay}?{secret}");
        let shown = sandbox
            .call("GET", &path, "", &[("authorization", "")])
            .await;
        assert_eq!(shown.status, 400);
        let tried = sandbox
            .submit(&pay, &format!("{secret}&payment_method=pm_card_visa"))
            .await;
        assert_eq!(tried.status, 400);
    }
    assert_eq!(
        sandbox.read(&intent).await["status"],
        "requires_payment_method"
    );
    sandbox.confirm(&intent, "pm_card_visa").await.ok();
    let evil = format!("{pay}?client_secret={secret}&return_url=javascript:alert(1)");
    let shown = sandbox
        .call("GET", &evil, "", &[("authorization", "")])
        .await;
    assert!(!shown.text.contains("javascript"));
}

#[tokio::test]
async fn a_challenge_passed_pays_and_one_failed_does_not() {
    let sandbox = Sandbox::start().await;
    for (outcome, status, redirected) in [
        ("complete", "succeeded", "succeeded"),
        ("fail", "requires_payment_method", "failed"),
    ] {
        let intent = sandbox.intent(5_000, "").await;
        let path = format!("/v1/payment_intents/{}/confirm", id(&intent));
        let form = format!("payment_method=pm_card_authenticationRequired&return_url={BACK}");
        let waiting = sandbox.post(&path, &form).await.ok();
        assert_eq!(waiting["status"], "requires_action");
        assert_eq!(waiting["amount_received"], 0);
        let url = waiting["next_action"]["redirect_to_url"]["url"]
            .as_str()
            .unwrap();
        let page = url.strip_prefix(&sandbox.url).unwrap();
        let shown = sandbox
            .call("GET", page, "", &[("authorization", "")])
            .await;
        assert!(shown.text.contains("value=complete") && shown.text.contains("₩5,000"));
        let (page, secret) = page.split_once("?client_secret=").unwrap();
        let guess = format!("client_secret=guess&outcome={outcome}");
        assert_eq!(sandbox.submit(page, &guess).await.status, 400);
        let form = format!("client_secret={secret}&return_url={BACK}&outcome={outcome}");
        let done = sandbox.submit(page, &form).await;
        assert_eq!(done.status, 303, "{}", done.text);
        let end = format!("redirect_status={redirected}");
        assert!(done.header("location").unwrap().ends_with(&end));
        assert_eq!(sandbox.read(&intent).await["status"], status);
        assert_eq!(sandbox.submit(page, &form).await.status, 400, "only once");
    }
}
