//! `ticketping audit` against Stripe's public API, as an operator runs it where Stripe is not ours.

use serde_json::Value;

use super::sql;
use crate::harness::process;
use crate::harness::server::Server;
use crate::harness::steps::pay;
use ticketping::cmd::audit;

#[tokio::test(flavor = "multi_thread")]
async fn stripes_own_record_is_compared_intent_by_intent() {
    let server = Server::open("4", "60s", &[]).await;
    let mut intents = Vec::new();
    for buyer in &server.sale.buyers[..2] {
        let order = server.hold(buyer).await.str("id");
        let payment = server.begin(buyer, &order).await.expect(201);
        pay(&server.sale, &payment, "pm_card_visa")
            .await
            .expect(200);
        server.until_order(buyer, &order, "CONFIRMED").await;
        intents.push(payment.str("paymentIntentId"));
    }
    // Another installation's, at the same account.
    let body = "amount=5000&currency=krw&confirm=true&payment_method=pm_card_visa\
        &automatic_payment_methods[enabled]=true&automatic_payment_methods[allow_redirects]=never\
        &metadata[installation]=another";
    server
        .at_stripe("/v1/payment_intents", body.to_owned())
        .await
        .expect(200);
    let config = audit::Config::of_running(&server.dir, std::time::Duration::ZERO).unwrap();
    let (stripe_url, key) = config.stripe.unwrap();
    let redis = config.redis_url.unwrap();
    let agrees = async |more: &[&str]| -> (i32, Value) {
        let mut args = vec!["audit", "--json", "--database-url", &config.database_url];
        args.extend([
            "--redis-url",
            &redis,
            "--redis-prefix",
            &config.redis_prefix,
        ]);
        args.extend(["--stripe-url", &stripe_url]);
        args.extend(more);
        let envs = [("STRIPE_SECRET_KEY", key.expose().to_owned())];
        let (code, out, err) = process::run(&args, &envs).await;
        let report: Value =
            serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}{err}"));
        let checks = report["checks"].as_array().unwrap();
        let stripe = checks.iter().find(|c| c["name"] == "stripeAgrees").unwrap();
        (code, stripe.clone())
    };
    let now = ["--grace-period", "0s", "--timeout", "20s"];
    let (code, check) = agrees(&now).await;
    assert_eq!(
        (code, &check["lookedAt"], &check["breaches"]),
        (0, &2.into(), &0.into()),
        "{check}"
    );
    // The names of before still work.
    let (code, _) = agrees(&["--young", "0s", "--wait", "0s"]).await;
    assert_eq!(code, 0);
    // Given back at Stripe, and the books do not say so: whatever the server makes of it, the audit
    // compares what it finds.
    sql(&server, "alter table payments.payments disable trigger all").await;
    let intent = &intents[0];
    let breach = ["--grace-period", "0s", "--timeout", "0s"];
    for (wrong, right) in [
        ("set refunded_amount = 7", "set refunded_amount = 0"),
        ("set state = 'CANCELLED'", "set state = 'SUCCEEDED'"),
    ] {
        let of = format!("where intent_id = '{intent}'");
        sql(&server, &format!("update payments.payments {wrong} {of}")).await;
        let (code, check) = agrees(&breach).await;
        assert_eq!(
            (code, &check["breaches"]),
            (1, &1.into()),
            "{wrong}: {check}"
        );
        assert!(
            check["rows"][0].as_str().unwrap().contains(intent.as_str()),
            "{check}"
        );
        sql(&server, &format!("update payments.payments {right} {of}")).await;
    }
    // Nothing was made since tomorrow.
    let tomorrow = (chrono::Utc::now() + chrono::Duration::days(1)).to_rfc3339();
    let (code, check) = agrees(&["--since", &tomorrow, "--timeout", "0s"]).await;
    assert_eq!((code, &check["lookedAt"]), (0, &0.into()), "{check}");
}
