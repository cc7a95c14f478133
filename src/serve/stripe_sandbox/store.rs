//! The writer's side of the database: one transaction a batch. What is only read
//! stands in `reads`.

use std::collections::HashMap;

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgConnection, Row as _};

use super::execute::Target;
use super::idempotency::Kept;
use super::model::Intent;

/// Everything one batch changes.
#[derive(Debug, Default)]
pub struct Changes {
    /// The last state of each intent, and whether it is new.
    intents: HashMap<String, (Intent, bool)>,
    /// In the order in which they came to be.
    order: Vec<String>,
    pub events: Vec<NewEvent>,
    pub deliveries: Vec<NewDelivery>,
    pub kept: Vec<(String, Kept)>,
}

#[derive(Debug)]
pub struct NewEvent {
    pub id: String,
    pub kind: &'static str,
    pub created: i64,
    pub intent: String,
    pub doc: Value,
}

#[derive(Debug)]
pub struct NewDelivery {
    pub event: String,
    pub endpoint: i32,
    pub delay_ms: i64,
    pub dropped: bool,
    pub lose: i32,
    pub two_signatures: bool,
    pub forged: bool,
    pub skewed: bool,
}

impl Changes {
    pub fn note_intent(&mut self, intent: &Intent, is_new: bool) {
        match self.intents.get_mut(&intent.id) {
            Some((known, _)) => *known = intent.clone(),
            None => {
                self.order.push(intent.id.clone());
                self.intents
                    .insert(intent.id.clone(), (intent.clone(), is_new));
            }
        }
    }

    pub fn follow_ups(&self) -> bool {
        self.intents
            .values()
            .any(|(intent, _)| intent.due_at_ms.is_some())
    }
}

/// Writers take turns, also those of several processes: then reading, deciding
/// and writing are one step, and sequence numbers follow the order of commits.
pub async fn lock(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_advisory_xact_lock(hashtext('stripe_sandbox writer'))")
        .execute(conn)
        .await?;
    Ok(())
}

pub async fn kept(
    conn: &mut PgConnection,
    keys: &[&str],
) -> Result<HashMap<String, Kept>, sqlx::Error> {
    if keys.is_empty() {
        return Ok(HashMap::new());
    }
    let rows = sqlx::query(
        "select key, path, fingerprint, request_id, status::smallint as status, body
         from idempotency where key = any($1)",
    )
    .bind(keys)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| {
            let status: i16 = row.try_get("status")?;
            Ok((
                row.try_get("key")?,
                Kept {
                    path: row.try_get("path")?,
                    fingerprint: row.try_get("fingerprint")?,
                    request_id: row.try_get("request_id")?,
                    status: u16::try_from(status).unwrap_or(500),
                    body: row.try_get("body")?,
                },
            ))
        })
        .collect()
}

pub async fn targets(
    conn: &mut PgConnection,
    targets: &[Target<'_>],
) -> Result<HashMap<String, Intent>, sqlx::Error> {
    let (mut intents, mut charges, mut refunds) = (Vec::new(), Vec::new(), Vec::new());
    let mut disputes = Vec::new();
    for target in targets {
        match target {
            Target::New => {}
            Target::Intent(id) => intents.push(*id),
            Target::Charge(id) => charges.push(*id),
            Target::Refund(id) => refunds.push(*id),
            Target::Dispute(id) => disputes.push(*id),
        }
    }
    if [&intents, &charges, &refunds, &disputes]
        .iter()
        .all(|ids| ids.is_empty())
    {
        return Ok(HashMap::new());
    }
    let rows: Vec<(Json<Intent>,)> = sqlx::query_as(
        "select doc from intents where id = any(
             $1::text[]
             || array(select intent_id from charges where id = any($2::text[]))
             || array(select intent_id from refunds where id = any($3::text[]))
             || array(select intent_id from disputes where id = any($4::text[])))",
    )
    .bind(intents)
    .bind(charges)
    .bind(refunds)
    .bind(disputes)
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(Json(intent),)| (intent.id.clone(), intent))
        .collect())
}

pub async fn save(conn: &mut PgConnection, mut changes: Changes) -> Result<(), sqlx::Error> {
    let mut new = Vec::new();
    let mut known = Vec::new();
    for id in std::mem::take(&mut changes.order) {
        match changes.intents.remove(&id) {
            Some((intent, true)) => new.push(intent),
            Some((intent, false)) => known.push(intent),
            None => {}
        }
    }
    if !new.is_empty() {
        insert_intents(conn, &new).await?;
    }
    if !known.is_empty() {
        update_intents(conn, &known).await?;
    }
    new.append(&mut known);
    index_parts(conn, &new).await?;
    if !changes.events.is_empty() {
        insert_events(conn, &changes.events).await?;
    }
    if !changes.deliveries.is_empty() {
        insert_deliveries(conn, &changes.deliveries).await?;
    }
    if !changes.kept.is_empty() {
        insert_kept(conn, &changes.kept).await?;
    }
    Ok(())
}

/// Columns for `unnest`, one array a column.
#[derive(Default)]
struct Columns<'a> {
    id: Vec<&'a str>,
    created: Vec<i64>,
    amount: Vec<i64>,
    currency: Vec<&'a str>,
    status: Vec<&'a str>,
    captured: Vec<i64>,
    refunded: Vec<i64>,
    customer: Vec<Option<&'a str>>,
    due_at_ms: Vec<Option<i64>>,
    doc: Vec<Json<&'a Intent>>,
}

impl<'a> Columns<'a> {
    fn of(intents: &'a [Intent]) -> Self {
        let mut columns = Self::default();
        for intent in intents {
            columns.id.push(&intent.id);
            columns.created.push(intent.created);
            columns.amount.push(intent.amount);
            columns.currency.push(&intent.currency);
            columns.status.push(intent.status.as_str());
            columns.captured.push(intent.captured());
            columns.refunded.push(intent.refunded());
            columns
                .customer
                .push(intent.echoed.get("customer").and_then(Value::as_str));
            columns.due_at_ms.push(intent.due_at_ms);
            columns.doc.push(Json(intent));
        }
        columns
    }
}

async fn insert_intents(conn: &mut PgConnection, intents: &[Intent]) -> Result<(), sqlx::Error> {
    let columns = Columns::of(intents);
    sqlx::query(
        "insert into intents
             (id, created, amount, currency, status, captured, refunded, customer, due_at_ms, doc)
         select id, created, amount, currency, status, captured, refunded, customer, due_at_ms, doc
         from unnest($1::text[], $2::bigint[], $3::bigint[], $4::text[], $5::text[],
                     $6::bigint[], $7::bigint[], $8::text[], $9::bigint[], $10::jsonb[])
              as new (id, created, amount, currency, status, captured, refunded, customer, due_at_ms, doc)",
    )
    .bind(columns.id)
    .bind(columns.created)
    .bind(columns.amount)
    .bind(columns.currency)
    .bind(columns.status)
    .bind(columns.captured)
    .bind(columns.refunded)
    .bind(columns.customer)
    .bind(columns.due_at_ms)
    .bind(columns.doc)
    .execute(conn)
    .await?;
    Ok(())
}

async fn update_intents(conn: &mut PgConnection, intents: &[Intent]) -> Result<(), sqlx::Error> {
    let columns = Columns::of(intents);
    sqlx::query(
        "update intents set
             amount = new.amount, currency = new.currency, status = new.status,
             captured = new.captured, refunded = new.refunded, customer = new.customer,
             due_at_ms = new.due_at_ms, doc = new.doc
         from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::bigint[],
                     $6::bigint[], $7::text[], $8::bigint[], $9::jsonb[])
              as new (id, amount, currency, status, captured, refunded, customer, due_at_ms, doc)
         where intents.id = new.id",
    )
    .bind(columns.id)
    .bind(columns.amount)
    .bind(columns.currency)
    .bind(columns.status)
    .bind(columns.captured)
    .bind(columns.refunded)
    .bind(columns.customer)
    .bind(columns.due_at_ms)
    .bind(columns.doc)
    .execute(conn)
    .await?;
    Ok(())
}

/// Where a charge or refund is found by its own id. Those already there stay:
/// parts are added to an intent, never taken away.
async fn index_parts(conn: &mut PgConnection, intents: &[Intent]) -> Result<(), sqlx::Error> {
    let (mut charges, mut of_charges) = (Vec::new(), Vec::new());
    let (mut refunds, mut of_refunds) = (Vec::new(), Vec::new());
    let (mut disputes, mut of_disputes) = (Vec::new(), Vec::new());
    for intent in intents {
        for charge in &intent.charges {
            charges.push(charge.id.as_str());
            of_charges.push(intent.id.as_str());
            for dispute in &charge.disputes {
                disputes.push(dispute.id.as_str());
                of_disputes.push(intent.id.as_str());
            }
        }
        for refund in &intent.refunds {
            refunds.push(refund.id.as_str());
            of_refunds.push(intent.id.as_str());
        }
    }
    if !charges.is_empty() {
        sqlx::query(
            "insert into charges (id, intent_id)
             select id, intent_id from unnest($1::text[], $2::text[]) as new (id, intent_id)
             on conflict (id) do nothing",
        )
        .bind(charges)
        .bind(of_charges)
        .execute(&mut *conn)
        .await?;
    }
    if !refunds.is_empty() {
        sqlx::query(
            "insert into refunds (id, intent_id)
             select id, intent_id from unnest($1::text[], $2::text[]) as new (id, intent_id)
             on conflict (id) do nothing",
        )
        .bind(refunds)
        .bind(of_refunds)
        .execute(&mut *conn)
        .await?;
    }
    if !disputes.is_empty() {
        sqlx::query(
            "insert into disputes (id, intent_id) select t.id, t.intent_id from unnest($1::text[], $2::text[]) as t (id, intent_id)
             on conflict (id) do nothing",
        )
        .bind(disputes)
        .bind(of_disputes)
        .execute(conn)
        .await?;
    }
    Ok(())
}

async fn insert_events(conn: &mut PgConnection, events: &[NewEvent]) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into events (id, type, created, intent_id, doc)
         select id, type, created, intent_id, doc
         from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::jsonb[])
              as new (id, type, created, intent_id, doc)",
    )
    .bind(events.iter().map(|e| e.id.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.kind).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.created).collect::<Vec<_>>())
    .bind(events.iter().map(|e| e.intent.as_str()).collect::<Vec<_>>())
    .bind(events.iter().map(|e| Json(&e.doc)).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

async fn insert_deliveries(
    conn: &mut PgConnection,
    deliveries: &[NewDelivery],
) -> Result<(), sqlx::Error> {
    let states = deliveries
        .iter()
        .map(|d| if d.dropped { "dropped" } else { "pending" });
    sqlx::query(
        "insert into deliveries
             (event_id, endpoint, state, due_at, lose, two_signatures, forged, skewed)
         select event, endpoint, state, clock_timestamp() + delay_ms * interval '1 millisecond',
                lose, two_signatures, forged, skewed
         from unnest($1::text[], $2::int[], $3::text[], $4::bigint[], $5::int[], $6::bool[],
                     $7::bool[], $8::bool[])
              as new (event, endpoint, state, delay_ms, lose, two_signatures, forged, skewed)",
    )
    .bind(
        deliveries
            .iter()
            .map(|d| d.event.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(deliveries.iter().map(|d| d.endpoint).collect::<Vec<_>>())
    .bind(states.collect::<Vec<_>>())
    .bind(deliveries.iter().map(|d| d.delay_ms).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|d| d.lose).collect::<Vec<_>>())
    .bind(
        deliveries
            .iter()
            .map(|d| d.two_signatures)
            .collect::<Vec<_>>(),
    )
    .bind(deliveries.iter().map(|d| d.forged).collect::<Vec<_>>())
    .bind(deliveries.iter().map(|d| d.skewed).collect::<Vec<_>>())
    .execute(conn)
    .await?;
    Ok(())
}

async fn insert_kept(conn: &mut PgConnection, kept: &[(String, Kept)]) -> Result<(), sqlx::Error> {
    let status = |k: &Kept| i16::try_from(k.status).unwrap_or(500);
    sqlx::query(
        "insert into idempotency (key, path, fingerprint, request_id, status, body)
         select key, path, fingerprint, request_id, status, body
         from unnest($1::text[], $2::text[], $3::bytea[], $4::text[], $5::smallint[], $6::text[])
              as new (key, path, fingerprint, request_id, status, body)",
    )
    .bind(kept.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>())
    .bind(
        kept.iter()
            .map(|(_, k)| k.path.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(
        kept.iter()
            .map(|(_, k)| k.fingerprint.as_slice())
            .collect::<Vec<_>>(),
    )
    .bind(
        kept.iter()
            .map(|(_, k)| k.request_id.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(kept.iter().map(|(_, k)| status(k)).collect::<Vec<_>>())
    .bind(
        kept.iter()
            .map(|(_, k)| k.body.as_str())
            .collect::<Vec<_>>(),
    )
    .execute(conn)
    .await?;
    Ok(())
}
