//! The books heal: events that are lost, rows that are lost, and a whole PostgreSQL that is older
//! than it was end as if nothing had been lost, or in an alarm.

mod audit_stripe;
mod lost_events;
mod orphans;
mod restore;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use ticketping::cmd::audit;

use crate::harness::server::Server;

pub async fn sql(server: &Server, text: &str) {
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(text.to_owned()))
        .execute(&mut books)
        .await
        .unwrap_or_else(|e| panic!("{text}: {e}"));
}

pub async fn count(server: &Server, text: &str) -> i64 {
    let mut books = PgConnection::connect(&server.database_url()).await.unwrap();
    sqlx::query_scalar(sqlx::AssertSqlSafe(text.to_owned()))
        .fetch_one(&mut books)
        .await
        .unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// Until this count is `want`.
pub async fn until_count(server: &Server, text: &str, want: i64, patience: Duration) {
    let begun = Instant::now();
    loop {
        let now = count(server, text).await;
        if now == want {
            return;
        }
        assert!(begun.elapsed() < 3 * patience, "{text}: {now}, not {want}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Open alarms, as an operator reads them.
pub async fn alarms(server: &Server) -> Vec<Value> {
    let admin = server.admin();
    let list = (server.sale.api)
        .get("/admin/v1/alarms?limit=100", &[("authorization", &*admin)])
        .await
        .expect(200);
    list.body["items"].as_array().unwrap().clone()
}

/// The first open alarm of this kind that is about `order`, or about anything.
pub async fn alarm(server: &Server, kind: &str, order: Option<&str>, patience: Duration) -> Value {
    let begun = Instant::now();
    loop {
        let open = alarms(server).await;
        let found = (open.iter())
            .find(|a| a["kind"] == kind && order.is_none_or(|order| a["orderId"] == order));
        if let Some(found) = found {
            return found.clone();
        }
        assert!(begun.elapsed() < 3 * patience, "no {kind}: {open:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Until no alarm of this kind is open.
pub async fn no_alarm(server: &Server, kind: &str, patience: Duration) {
    let begun = Instant::now();
    while let Some(open) = (alarms(server).await.iter()).find(|a| a["kind"] == kind) {
        assert!(begun.elapsed() < 3 * patience, "{open}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

pub async fn resolve(server: &Server, alarm: &Value, action: Option<&str>) -> u16 {
    let admin = server.admin();
    let path = format!("/admin/v1/alarms/{}/resolve", alarm["id"].as_str().unwrap());
    let mut body = json!({"reason": "looked into it"});
    if let Some(action) = action {
        body["action"] = action.into();
    }
    let reply = (server.sale.api)
        .post(&path, &[("authorization", &*admin)], body)
        .await;
    reply.status.as_u16()
}

/// The audit is clean within `wait`, with nothing taken for young.
pub async fn balanced(server: &Server, wait: Duration) {
    let mut config = audit::Config::of_running(&server.dir, wait).unwrap();
    config.young = Duration::ZERO;
    let report = audit::run_checks(&config).await.unwrap();
    assert!(report.ok(), "{}", report.text());
}
