//! After the storm: everything comes to rest, the books balance, and all that was answered holds.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use ticketping::cmd::audit;
use ticketping::platform::db;

use super::buyer::Shop;
use super::told::{Record, Told};
use super::world::World;
use crate::harness::client::{Http, Reply};
use crate::harness::steps::Buyer;

/// Longer than any lease, session or retry that must run out first.
const REST_MAX: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// What a repair was asked for comes a second later; the minute's must not be needed.
const AUDIT_WITHIN: Duration = Duration::from_secs(10);

/// What is still open, each with its count.
const OPEN: &str = "
    select 'orders open' as what, count(*) as n from reservations.orders where state in ('PENDING', 'PAYING')
    union all select 'payments open', count(*) from payments.payments
        where state not in ('SUCCEEDED', 'CANCELLED') or cleanup
    union all select 'refunds open', count(*) from payments.refunds where state <> 'SUCCEEDED'
    union all select 'refunds not heard of', count(*) from reservations.refunds where settled_at is null
    union all select 'webhooks kept', count(*) from payments.webhook_events where processed_at is null
    union all select 'events of reservations', count(*) from reservations.outbox where published_at is null
    union all select 'events of payments', count(*) from payments.outbox where published_at is null";

/// All that is wrong; and how long it took to come to rest.
pub async fn judge(
    world: &mut World,
    shop: &Shop,
    journeys: &[(Buyer, Record)],
) -> (Vec<String>, Duration) {
    let begun = Instant::now();
    let books = world.books(AUDIT_WITHIN);
    let pool = db::pool(&books.database_url, "public", 2).unwrap();
    let mut breaches: Vec<String> = (journeys.iter())
        .flat_map(|(_, record)| record.breaches.clone())
        .collect();
    if let Err(open) = world.tended(rest(&pool)).await {
        breaches.push(format!("never came to rest: {open:?}"));
    }
    let rested = begun.elapsed();
    match world.tended(audit::run_checks(&books)).await {
        Ok(report) if report.ok() => {}
        Ok(report) => breaches.push(report.text()),
        Err(error) => breaches.push(format!("no audit: {error}")),
    }
    breaches.extend(world.tended(promises(&pool, shop, journeys)).await);
    pool.close().await;
    (breaches, rested)
}

async fn rest(pool: &PgPool) -> Result<(), Vec<(String, i64)>> {
    let until = Instant::now() + REST_MAX;
    loop {
        // A pool that was cut off says so once for each connection.
        let open: Option<Vec<(String, i64)>> = sqlx::query_as(OPEN).fetch_all(pool).await.ok();
        let open = open.map(|rows| rows.into_iter().filter(|(_, n)| *n > 0).collect::<Vec<_>>());
        match open {
            Some(open) if open.is_empty() => return Ok(()),
            open if Instant::now() >= until => {
                return Err(open.unwrap_or_else(|| vec![("PostgreSQL is away".to_owned(), 1)]));
            }
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Asks until there is an answer.
async fn read(api: &Http, path: &str, headers: &[(&str, &str)]) -> Option<Reply> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        let asked = api.try_send(http::Method::GET, path, headers, "");
        if let Ok(reply) = asked.await
            && reply.status != 503
        {
            return Some(reply);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    None
}

/// Every order that was answered, as its buyer finds it now.
async fn promises(pool: &PgPool, shop: &Shop, journeys: &[(Buyer, Record)]) -> Vec<String> {
    let mut breaches = Vec::new();
    let mut sold = BTreeSet::new();
    for (buyer, record) in journeys {
        let auth = buyer.auth();
        for told in &record.orders {
            let path = format!("/api/v1/orders/{}", told.order);
            let found = read(&shop.api, &path, &[("authorization", &auth)]).await;
            let Some(found) = found.filter(|reply| reply.status == 200) else {
                breaches.push(format!("{told:?} is gone"));
                continue;
            };
            breaches.extend(kept(pool, told, &found).await);
            if found.body["status"] == "CONFIRMED" {
                let twice = told
                    .seats
                    .iter()
                    .filter(|seat| !sold.insert((*seat).clone()));
                breaches.extend(twice.map(|seat| format!("seat {seat} is sold twice")));
            }
        }
    }
    breaches.extend(seat_map(pool, shop, &sold).await);
    breaches
}

async fn kept(pool: &PgPool, told: &Told, found: &Reply) -> Vec<String> {
    let mut breaches = Vec::new();
    let status = found.body["status"].as_str().unwrap_or_default();
    if !told.allows(status) || status == "PENDING_PAYMENT" {
        breaches.push(format!("{told:?} became {}", found.text));
    }
    let seats: BTreeSet<String> = (found.body["seats"].as_array().into_iter().flatten())
        .filter_map(|seat| seat["id"].as_str().map(str::to_owned))
        .collect();
    if seats != told.seats {
        breaches.push(format!("{told:?} has other seats: {}", found.text));
    }
    // What Stripe took is the order's, or all of it went back.
    let paid: Result<Option<(String, i64, i64)>, _> = sqlx::query_as(
        "select state, amount, refunded_amount from payments.payments where order_id = $1::uuid",
    )
    .bind(&told.order)
    .fetch_optional(pool)
    .await;
    let fine = match paid.unwrap() {
        Some((state, amount, back)) if state == "SUCCEEDED" => {
            (status == "CONFIRMED") == (back == 0) && (back == 0 || back == amount)
        }
        Some(_) | None => !told.captured && status != "CONFIRMED" && status != "REFUNDED",
    };
    if !fine {
        breaches.push(format!("{told:?}: the money is elsewhere: {}", found.text));
    }
    breaches
}

/// Sold is what somebody has, and everything else is free. An order whose 201 was never heard
/// belongs to nobody here, but it may have been made; it was not paid, so it is over.
async fn seat_map(pool: &PgPool, shop: &Shop, sold: &BTreeSet<String>) -> Vec<String> {
    let path = format!("/api/v1/schedules/{}/seats", shop.schedule);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        let Some(map) = read(&shop.api, &path, &[]).await else {
            return vec!["no seat map".to_owned()];
        };
        let wrong: Vec<String> = (map.body["seats"].as_array().into_iter().flatten())
            .filter(|seat| {
                let ours = seat["id"].as_str().is_some_and(|id| sold.contains(id));
                seat["status"] != if ours { "SOLD" } else { "AVAILABLE" }
            })
            .map(|seat| format!("the map shows {seat}"))
            .collect();
        if wrong.is_empty() {
            return wrong;
        }
        // The map may be a second old.
        if Instant::now() >= until {
            let live: i64 =
                sqlx::query_scalar("select count(*) from reservations.order_seats where live")
                    .fetch_one(pool)
                    .await
                    .unwrap();
            return [
                wrong,
                vec![format!("{} sold, {live} live in PostgreSQL", sold.len())],
            ]
            .concat();
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
