//! From the payment to CONFIRMED, on an idle server: the webhook, the intent's reading, two
//! transactions and the events between them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hdrhistogram::Histogram;
use http::Method;
use serde_json::json;

use super::{
    Bench,
    client::{Http, text},
    row::{Figure, Row},
    server::{Member, Server},
};

/// How often the order is looked at; its share of the figure is half of this.
const LOOK_EVERY: Duration = Duration::from_millis(2);
/// Then something is broken, not slow.
const GIVE_UP: Duration = Duration::from_secs(20);
const P99_MAX_MS: f64 = 250.0;

/// Buys one seat after another.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let orders = if bench.quick { 100 } else { 300 };
    let server = Server::start(&bench.dir, "confirm").await?;
    server
        .seed(&format!(
            "--performances 1 --seats 2000 --users {orders} --max-working 1000000 --queue-factor 0"
        ))
        .await?;
    let performance = server.performances().await?[0];
    let schedule = server.schedules(performance).await?[0];
    let stripe = Http::new(&server.at.stripe_url);
    let mut micros = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    for member in server.members()? {
        let took = buy(
            &server,
            &stripe,
            &member,
            &performance.to_string(),
            &schedule.to_string(),
        )
        .await?;
        micros.record(u64::try_from(took.as_micros())?)?;
    }
    let ms = |quantile: f64| micros.value_at_quantile(quantile) as f64 / 1e3;
    let figure = Figure::once("ms", ms(0.99));
    Ok(vec![
        Row::bound(
            "confirm",
            "payment confirmed at Stripe → order CONFIRMED, p99, idle",
            figure,
            P99_MAX_MS,
        )
        .note(format!(
            "{orders} orders, one after another; p50 {:.0} ms, max {:.0} ms",
            ms(0.5),
            ms(1.0)
        ))
        .detail(json!({ "p50Ms": ms(0.5), "p90Ms": ms(0.9), "p99Ms": ms(0.99), "maxMs": ms(1.0) })),
    ])
}

/// One journey; from the sandbox's answer to the order's reading CONFIRMED.
async fn buy(
    server: &Server,
    stripe: &Http,
    member: &Member,
    performance: &str,
    schedule: &str,
) -> Result<Duration> {
    let api = &server.http;
    let auth = format!("Bearer {}", member.access);
    let entered = server.enter(member, performance).await?;
    let place = text(&entered.json()?, "queueToken")?;
    let headers = [("authorization", &*auth), ("queue-token", &*place)];
    let wish = json!({ "scheduleId": schedule, "bestAvailable": { "count": 1 } });
    let order = text(
        &api.json(Method::POST, "/api/v1/orders", &headers, &wish)
            .await?,
        "id",
    )?;
    let asked = json!({ "orderId": order });
    let payment = api
        .json(Method::POST, "/api/v1/payments", &headers[..1], &asked)
        .await?;
    let secret = text(&payment, "clientSecret")?;
    let intent = secret.split("_secret").next().unwrap_or_default();
    let key = format!("Bearer {}", text(&payment, "publishableKey")?);
    let form = [
        ("authorization", &*key),
        ("content-type", "application/x-www-form-urlencoded"),
    ];
    let body = format!("payment_method=pm_card_visa&client_secret={secret}");
    let path = format!("/v1/payment_intents/{intent}/confirm");
    stripe.send(Method::POST, &path, &form, body).await?;
    let begun = Instant::now();
    let path = format!("/api/v1/orders/{order}");
    loop {
        if api.get(&path, &headers[..1]).await?["status"] == "CONFIRMED" {
            return Ok(begun.elapsed());
        }
        ensure!(begun.elapsed() < GIVE_UP, "order {order} is not confirmed");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
