//! The process dies at each commit and I/O edge of payments and events, once each; the next one
//! finishes what was begun.

use std::time::{Duration, Instant};

use ticketping::platform::failpoint::FAILPOINTS;

use super::shop::Shop;
use crate::journey::steps::{Buyer, pay};

/// A purchase and its cancellation, as far as the server lives to answer.
async fn journey(shop: &Shop, buyer: &Buyer, order: &str) {
    let payment = shop.begin(buyer, order).await;
    if payment.status != 201 {
        return;
    }
    if pay(&shop.sale, &payment, "pm_card_visa").await.status == 200 {
        shop.until_order(buyer, order, "CONFIRMED").await;
        shop.cancel(buyer, order).await;
        shop.until_order(buyer, order, "REFUNDED").await;
    }
}

/// Points on the way of a purchase and its refund.
fn on_the_way() -> impl Iterator<Item = &'static str> {
    FAILPOINTS
        .iter()
        .copied()
        .filter(|name| name.starts_with("events.") || name.starts_with("payments."))
        .filter(|name| !name.contains("cancel"))
}

#[tokio::test(flavor = "multi_thread")]
async fn dying_at_any_edge_neither_loses_nor_doubles_money() {
    let points: Vec<&str> = on_the_way().collect();
    let users = points.len().to_string();
    let quick = ("TICKETPING_PAYMENT_RECONCILE_AFTER", "2s");
    let mut shop = Shop::open(&users, "10m", &[quick]).await;
    let mut hit = 0;
    for (at, point) in points.iter().enumerate() {
        let buyer = shop.sale.buyers[at].clone();
        let order = shop.hold(&buyer).await.str("id");
        shop = shop.again(&[quick, ("TICKETPING_FAILPOINT", point)]).await;
        let died = tokio::select! {
            () = lives_until(&mut shop) => true,
            () = tokio::time::sleep(Duration::ZERO) => false,
        };
        assert!(!died, "{point}: died before anything was asked");
        let (api, stripe) = (shop.sale.api.clone(), shop.sale.stripe.clone());
        let walk = {
            let walker = Shop::walker(&shop, api, stripe);
            let (buyer, order) = (buyer.clone(), order.clone());
            tokio::spawn(async move { journey(&walker, &buyer, &order).await })
        };
        tokio::time::timeout(Duration::from_secs(30), lives_until(&mut shop))
            .await
            .unwrap_or_else(|_| panic!("{point} was never passed"));
        hit += 1;
        walk.abort();
        shop = shop.again(&[quick]).await;
        finish(&shop, &buyer, &order, point).await;
    }
    println!("failpoints hit: {hit}/{}", points.len());
    assert_eq!(hit, points.len());
}

async fn lives_until(shop: &mut Shop) {
    while !shop.dead() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// After the restart the buyer goes on; the books must come out even.
async fn finish(shop: &Shop, buyer: &Buyer, order: &str, point: &str) {
    let begun = Instant::now();
    loop {
        assert!(
            begun.elapsed() < Duration::from_secs(40),
            "{point}: never settled"
        );
        let status = shop.order(buyer, order).await.str("status");
        match status.as_str() {
            "REFUNDED" => break,
            "CONFIRMED" => drop(shop.cancel(buyer, order).await),
            "PENDING_PAYMENT" => {
                let payment = shop.begin(buyer, order).await;
                if payment.status == 201 && payment.body["clientSecret"].is_string() {
                    pay(&shop.sale, &payment, "pm_card_visa").await;
                }
            }
            other => panic!("{point}: the order became {other}"),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    loop {
        let intents = shop.intents(order).await;
        let captured: Vec<_> = intents
            .iter()
            .filter(|one| one["status"] == "succeeded")
            .collect();
        assert_eq!(captured.len(), 1, "{point}: captured {intents:?}");
        let refunds = shop.refunds(captured[0]["id"].as_str().unwrap()).await;
        assert!(refunds.len() <= 1, "{point}: refunded twice");
        if let [refund] = refunds.as_slice() {
            assert_eq!(refund["amount"], captured[0]["amount_received"], "{point}");
            return;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(40),
            "{point}: never refunded"
        );
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
