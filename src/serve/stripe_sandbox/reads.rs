//! What is only read: single objects, Stripe's lists, the ledger. No read waits
//! for the writer.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgPool, Row as _};

use super::error::ApiError;
use super::form::Form;
use super::model::Intent;

pub async fn intent(pool: &PgPool, id: &str) -> Result<Option<Intent>, sqlx::Error> {
    let found: Option<(Json<Intent>,)> = sqlx::query_as("select doc from intents where id = $1")
        .bind(id)
        .fetch_optional(pool)
        .await?;
    Ok(found.map(|(Json(intent),)| intent))
}

pub async fn intent_of_charge(pool: &PgPool, id: &str) -> Result<Option<Intent>, sqlx::Error> {
    let found: Option<(Json<Intent>,)> = sqlx::query_as(
        "select doc from intents where id = (select intent_id from charges where id = $1)",
    )
    .bind(id)
    .fetch_optional(pool)
    .await?;
    Ok(found.map(|(Json(intent),)| intent))
}

pub async fn intent_of_refund(pool: &PgPool, id: &str) -> Result<Option<Intent>, sqlx::Error> {
    let found: Option<(Json<Intent>,)> = sqlx::query_as(
        "select doc from intents where id = (select intent_id from refunds where id = $1)",
    )
    .bind(id)
    .fetch_optional(pool)
    .await?;
    Ok(found.map(|(Json(intent),)| intent))
}

pub async fn intent_of_dispute(pool: &PgPool, id: &str) -> Result<Option<Intent>, sqlx::Error> {
    let found: Option<(Json<Intent>,)> = sqlx::query_as(
        "select doc from intents where id = (select intent_id from disputes where id = $1)",
    )
    .bind(id)
    .fetch_optional(pool)
    .await?;
    Ok(found.map(|(Json(intent),)| intent))
}

/// The tables that Stripe lists, by what they call their rows.
#[derive(Clone, Copy, Debug)]
pub enum Table {
    Intents,
    Charges,
    Refunds,
    Disputes,
    Events,
}

impl Table {
    fn name(self) -> &'static str {
        match self {
            Self::Intents => "intents",
            Self::Charges => "charges",
            Self::Refunds => "refunds",
            Self::Disputes => "disputes",
            Self::Events => "events",
        }
    }

    fn object(self) -> &'static str {
        match self {
            Self::Intents => "payment_intent",
            Self::Charges => "charge",
            Self::Refunds => "refund",
            Self::Disputes => "dispute",
            Self::Events => "event",
        }
    }
}

/// Stripe's pages: newest first, by the id of the last or first one seen.
#[derive(Clone, Copy, Debug)]
pub struct Page {
    limit: i64,
    before: Option<i64>,
    after: Option<i64>,
    created_from: i64,
    created_to: i64,
}

impl Page {
    pub async fn read(pool: &PgPool, table: Table, form: &Form) -> Result<Self, ApiError> {
        let limit = form.integer("limit")?.unwrap_or(10);
        if !(1..=100).contains(&limit) {
            return Err(ApiError::invalid(format!(
                "Limit must be between 1 and 100, not {limit}."
            ))
            .code("parameter_invalid_integer")
            .param("limit"));
        }
        let before = Self::cursor(pool, table, form, "starting_after").await?;
        let after = Self::cursor(pool, table, form, "ending_before").await?;
        let (created_from, created_to) = created(form)?;
        Ok(Self {
            limit,
            before,
            after,
            created_from,
            created_to,
        })
    }

    async fn cursor(
        pool: &PgPool,
        table: Table,
        form: &Form,
        name: &str,
    ) -> Result<Option<i64>, ApiError> {
        let Some(id) = form.text(name)? else {
            return Ok(None);
        };
        // The name comes from an enum, never from a caller.
        let sql = format!("select seq from {} where id = $1", table.name());
        let found: Option<(i64,)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(id)
            .fetch_optional(pool)
            .await
            .map_err(ApiError::internal)?;
        found
            .map(|(seq,)| Some(seq))
            .ok_or_else(|| ApiError::missing(table.object(), id, name))
    }

    /// The order in which rows are read; towards the newer ones they are turned
    /// round afterwards.
    fn direction(&self) -> &'static str {
        if self.after.is_some() { "asc" } else { "desc" }
    }

    fn cut<T>(&self, mut rows: Vec<T>) -> (Vec<T>, bool) {
        let limit = usize::try_from(self.limit).unwrap_or(100);
        let has_more = rows.len() > limit;
        rows.truncate(limit);
        if self.after.is_some() {
            rows.reverse();
        }
        (rows, has_more)
    }
}

fn created(form: &Form) -> Result<(i64, i64), ApiError> {
    let Some(Value::Object(_)) = form.value("created") else {
        return Ok(match form.integer("created")? {
            Some(at) => (at, at),
            None => (0, i64::MAX),
        });
    };
    let range = form.nested("created")?.unwrap_or_default();
    range.allow(&["gt", "gte", "lt", "lte"])?;
    let from = match (range.integer("gt")?, range.integer("gte")?) {
        (Some(gt), _) => gt.saturating_add(1),
        (None, gte) => gte.unwrap_or(0),
    };
    let to = match (range.integer("lt")?, range.integer("lte")?) {
        (Some(lt), _) => lt.saturating_sub(1),
        (None, lte) => lte.unwrap_or(i64::MAX),
    };
    Ok((from, to))
}

pub async fn intents(
    pool: &PgPool,
    page: &Page,
    customer: Option<&str>,
) -> Result<(Vec<Intent>, bool), sqlx::Error> {
    let sql = format!(
        "select doc from intents
         where ($1::bigint is null or seq < $1) and ($2::bigint is null or seq > $2)
           and created between $3 and $4 and ($5::text is null or customer = $5)
         order by seq {} limit $6",
        page.direction()
    );
    let rows: Vec<(Json<Intent>,)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(page.before)
        .bind(page.after)
        .bind(page.created_from)
        .bind(page.created_to)
        .bind(customer)
        .bind(page.limit + 1)
        .fetch_all(pool)
        .await?;
    let (rows, has_more) = page.cut(rows);
    Ok((
        rows.into_iter().map(|(Json(intent),)| intent).collect(),
        has_more,
    ))
}

/// Charges or refunds, each with the intent it belongs to.
pub async fn parts(
    pool: &PgPool,
    table: Table,
    page: &Page,
    intent: Option<&str>,
) -> Result<(Vec<(String, Intent)>, bool), sqlx::Error> {
    let sql = format!(
        "select part.id, intents.doc from {} part join intents on intents.id = part.intent_id
         where ($1::bigint is null or part.seq < $1) and ($2::bigint is null or part.seq > $2)
           and ($3::text is null or part.intent_id = $3)
         order by part.seq {} limit $4",
        table.name(),
        page.direction()
    );
    let rows: Vec<(String, Json<Intent>)> = sqlx::query_as(AssertSqlSafe(sql))
        .bind(page.before)
        .bind(page.after)
        .bind(intent)
        .bind(page.limit + 1)
        .fetch_all(pool)
        .await?;
    let (rows, has_more) = page.cut(rows);
    Ok((
        rows.into_iter()
            .map(|(id, Json(intent))| (id, intent))
            .collect(),
        has_more,
    ))
}

#[derive(Debug, Default)]
pub struct EventFilter {
    pub types: Vec<String>,
    pub delivered: Option<bool>,
}

const EVENT: &str = "select e.doc,
        (select count(*) from deliveries d where d.event_id = e.id and d.state = 'pending') as open
    from events e";

pub async fn event(pool: &PgPool, id: &str) -> Result<Option<Value>, sqlx::Error> {
    let sql = format!("{EVENT} where e.id = $1");
    let row = sqlx::query(AssertSqlSafe(sql))
        .bind(id)
        .fetch_optional(pool)
        .await?;
    row.as_ref().map(event_row).transpose()
}

fn event_row(row: &sqlx::postgres::PgRow) -> Result<Value, sqlx::Error> {
    let Json(mut doc): Json<Value> = row.try_get("doc")?;
    let open: i64 = row.try_get("open")?;
    doc["pending_webhooks"] = open.into();
    Ok(doc)
}

pub async fn events(
    pool: &PgPool,
    page: &Page,
    filter: &EventFilter,
) -> Result<(Vec<Value>, bool), sqlx::Error> {
    // `types[]=payment_intent.*` is Stripe's own wildcard; nothing else in a
    // type's name means anything to LIKE but `_`, which matches itself too.
    let patterns: Option<Vec<String>> = (!filter.types.is_empty()).then(|| {
        filter
            .types
            .iter()
            .map(|kind| kind.replace('%', "").replace('*', "%"))
            .collect()
    });
    let sql = format!(
        "{EVENT}
         where ($1::bigint is null or e.seq < $1) and ($2::bigint is null or e.seq > $2)
           and e.created between $3 and $4
           and e.created > extract(epoch from now() - interval '30 days')
           and ($5::text[] is null or e.type like any($5))
           and ($6::bool is null or $6 = not exists (
                select 1 from deliveries d where d.event_id = e.id and d.state <> 'delivered'))
         order by e.seq {} limit $7",
        page.direction()
    );
    let rows = sqlx::query(AssertSqlSafe(sql))
        .bind(page.before)
        .bind(page.after)
        .bind(page.created_from)
        .bind(page.created_to)
        .bind(patterns)
        .bind(filter.delivered)
        .bind(page.limit + 1)
        .fetch_all(pool)
        .await?;
    let (rows, has_more) = page.cut(rows);
    let events = rows.iter().map(event_row).collect::<Result<_, _>>()?;
    Ok((events, has_more))
}

/// One line of the books: what was taken, what was given back.
#[derive(Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LedgerLine {
    #[serde(skip)]
    pub seq: i64,
    pub id: String,
    pub created: i64,
    pub status: String,
    pub amount: i64,
    pub currency: String,
    pub captured: i64,
    pub refunded: i64,
    pub metadata: Value,
}

crate::from_row!(LedgerLine {
    seq,
    id,
    created,
    status,
    amount,
    currency,
    captured,
    refunded,
    metadata
});

pub async fn ledger(pool: &PgPool, after: i64, limit: i64) -> Result<Vec<LedgerLine>, sqlx::Error> {
    sqlx::query_as(
        "select seq, id, created, status, amount, currency, captured, refunded,
                doc -> 'metadata' as metadata
         from intents where seq > $1 order by seq limit $2",
    )
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Deliveries by state, for the books and the operator.
pub async fn deliveries(pool: &PgPool) -> Result<Vec<(String, i64)>, sqlx::Error> {
    sqlx::query_as("select state, count(*) from deliveries group by state order by state")
        .fetch_all(pool)
        .await
}

/// The newest payments, for the page that lists them.
pub async fn newest(pool: &PgPool, limit: i64) -> Result<Vec<Intent>, sqlx::Error> {
    let rows: Vec<(Json<Intent>,)> =
        sqlx::query_as("select doc from intents order by seq desc limit $1")
            .bind(limit)
            .fetch_all(pool)
            .await?;
    Ok(rows.into_iter().map(|(Json(intent),)| intent).collect())
}
