//! Stripe's side: the sandbox's ledger line by line against the payments.

use std::{collections::HashMap, time::Duration};

use axum::body::Body;
use http::{Request, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use sqlx::{PgPool, Row};

use super::Check;
use crate::platform::{
    currency::from_stripe,
    secret::Secret,
    upstream::{HttpClient, http_client},
};

const NAME: &str = "stripeAgrees";
const CLAIM: &str = "what Stripe captured and gave back is what payments says";

#[derive(Deserialize)]
struct Page {
    data: Vec<Line>,
    next: Option<i64>,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    created: i64,
    captured: i64,
    refunded: i64,
    currency: String,
}

impl Line {
    /// In our unit.
    fn ours(mut self) -> Self {
        self.captured = from_stripe(self.captured, &self.currency);
        self.refunded = from_stripe(self.refunded, &self.currency);
        self
    }
}

struct Paid {
    id: String,
    state: String,
    /// What it captured, as payments knows it.
    captured: i64,
    /// Given back, or on its way.
    refunded: i64,
}

pub(super) async fn check(
    pool: &PgPool,
    stripe: Option<&(String, Secret)>,
    young: Duration,
) -> Result<Check, String> {
    let Some((url, key)) = stripe else {
        return Ok(Check::skipped(NAME, CLAIM, "no Stripe sandbox was named"));
    };
    let lines = match ledger(url, key).await {
        Ok(Some(lines)) => lines,
        Ok(None) => {
            return Ok(Check::skipped(
                NAME,
                CLAIM,
                format!("{url} keeps no ledger to compare with"),
            ));
        }
        Err(e) => return Err(format!("the Stripe sandbox at {url}: {e}")),
    };
    let mut payments = payments(pool)
        .await
        .map_err(|e| format!("PostgreSQL: {e}"))?;
    // A payment may just have been captured, its webhook on its way.
    let young = chrono::Utc::now() - young;
    let mut rows = Vec::new();
    for line in &lines {
        let ours = payments.remove(&line.id);
        let breach = match &ours {
            None if line.captured == 0 => None,
            None => Some(format!(
                "{}: captured {}, and payments does not know it",
                line.id, line.captured
            )),
            Some(p) => differs(line, p),
        };
        if let Some(breach) = breach.filter(|_| {
            line.created < young.timestamp()
                || ours.as_ref().is_some_and(|p| p.state == "SUCCEEDED")
        }) {
            rows.push(breach);
        }
    }
    let unknown = payments.into_iter().filter(|(_, p)| p.state == "SUCCEEDED");
    rows.extend(unknown.map(|(intent, p)| {
        format!(
            "payment {}: SUCCEEDED by {intent}, which Stripe does not know",
            p.id
        )
    }));
    Ok(Check::new(NAME, CLAIM, lines.len() as u64, rows))
}

fn differs(line: &Line, p: &Paid) -> Option<String> {
    let captured = p.captured;
    if line.captured == captured && line.refunded == p.refunded && line.refunded <= line.captured {
        return None;
    }
    Some(format!(
        "{} (payment {}, {}): Stripe captured {} and gave back {}; payments says {captured} and {}",
        line.id, p.id, p.state, line.captured, line.refunded, p.refunded
    ))
}

async fn payments(pool: &PgPool) -> sqlx::Result<HashMap<String, Paid>> {
    let rows = sqlx::query(
        "select p.intent_id, p.id::text as id, p.state,
             coalesce(p.captured_amount, case when p.state = 'SUCCEEDED' then p.amount else 0 end) as captured,
             greatest(p.refunded_amount, coalesce((select sum(s.amount) from payments.stripe_refunds s
                 where s.payment_id = p.id and s.status <> 'FAILED'), 0))::bigint as refunded
         from payments.payments p where p.intent_id is not null",
    )
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            let paid = Paid {
                id: row.try_get("id")?,
                state: row.try_get("state")?,
                captured: row.try_get("captured")?,
                refunded: row.try_get("refunded")?,
            };
            Ok((row.try_get("intent_id")?, paid))
        })
        .collect()
}

/// `None`: this is no sandbox of ours.
async fn ledger(url: &str, key: &Secret) -> Result<Option<Vec<Line>>, String> {
    let client = http_client();
    let mut lines = Vec::new();
    let mut after = 0;
    loop {
        let Some(page) = page(&client, url, key, after).await? else {
            return Ok(None);
        };
        lines.extend(page.data.into_iter().map(Line::ours));
        match page.next {
            Some(next) => after = next,
            None => return Ok(Some(lines)),
        }
    }
}

async fn page(
    client: &HttpClient,
    url: &str,
    key: &Secret,
    after: i64,
) -> Result<Option<Page>, String> {
    let request = Request::get(format!(
        "{}/_sandbox/ledger?after={after}",
        url.trim_end_matches('/')
    ))
    .header(header::AUTHORIZATION, format!("Bearer {}", key.expose()))
    .body(Body::empty())
    .map_err(|e| e.to_string())?;
    let answer = client.request(request).await.map_err(|e| e.to_string())?;
    let status = answer.status();
    let body = answer
        .into_body()
        .collect()
        .await
        .map_err(|e| e.to_string())?
        .to_bytes();
    if status == http::StatusCode::NOT_FOUND {
        return Ok(None);
    }
    if !status.is_success() {
        return Err(format!("its ledger answered {status}"));
    }
    serde_json::from_slice(&body)
        .map(Some)
        .map_err(|e| e.to_string())
}
