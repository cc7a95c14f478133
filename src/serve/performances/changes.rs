//! What has changed in the catalogue, for the caches of every instance: see [`catalogue_changes`].

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::Deserialize;
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use super::Performances;
use crate::platform::{
    auth::Internal,
    catalogue_changes::{Changed, Changes},
    http::{Json, Query},
    problem::Problem,
};

/// An instance that has just started is told of the sales that ended in these days: nobody may have been there to notice.
const ENDED_DAYS: i64 = 7;

#[derive(Deserialize)]
pub(super) struct Since {
    #[serde(default)]
    since: Option<String>,
}

/// Up to which transaction, and up to which moment (microseconds), a caller knows.
struct Cursor {
    transaction: u64,
    micros: i64,
}

impl Cursor {
    fn parse(text: &str) -> Option<Self> {
        let (transaction, micros) = text.split_once('.')?;
        Some(Self {
            transaction: transaction.parse().ok()?,
            micros: micros.parse().ok()?,
        })
    }
}

pub(super) async fn changes(
    _: Internal,
    State(state): State<Performances>,
    Query(asked): Query<Since>,
) -> Result<Json<Changes>, Problem> {
    let cursor = match &asked.since {
        Some(text) => Some(Cursor::parse(text).ok_or_else(|| {
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "VALIDATION_FAILED",
                "since: is no cursor of ours",
            )
        })?),
        None => None,
    };
    Ok(Json(read(&state.pool, cursor).await?))
}

async fn read(pool: &PgPool, cursor: Option<Cursor>) -> sqlx::Result<Changes> {
    let since = cursor.as_ref().map(|c| c.transaction.to_string());
    // One statement, one snapshot: what it does not see yet has a transaction of `upto` or later.
    let rows = sqlx::query(
        "with reading as (
             select pg_snapshot_xmin(pg_current_snapshot()) as upto, clock_timestamp() as now)
         select reading.upto::text as upto, reading.now,
             coalesce($1::text::xid8 > reading.upto, false) as ahead,
             c.performance_id, c.changed_by::text as version
         from reading left join catalogue_changes c on c.changed_by >= $1::text::xid8",
    )
    .bind(since)
    .fetch_all(pool)
    .await?;
    let head = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (upto, now): (String, DateTime<Utc>) = (head.try_get("upto")?, head.try_get("now")?);
    let mut changes = Changes {
        cursor: format!("{upto}.{}", now.timestamp_micros()),
        reset: head.try_get("ahead")?,
        ..Changes::default()
    };
    for row in &rows {
        let performance: Option<Uuid> = row.try_get("performance_id")?;
        if let Some(performance_id) = performance {
            changes.changed.push(Changed {
                performance_id,
                version: row.try_get("version")?,
            });
        }
    }
    let from = cursor
        .and_then(|c| DateTime::from_timestamp_micros(c.micros))
        .filter(|_| !changes.reset)
        .unwrap_or_else(|| now - chrono::Duration::days(ENDED_DAYS));
    changes.ended = sqlx::query_scalar(
        "select distinct performance_id from schedules
         where least(sales_end_at, starts_at) > $1 and least(sales_end_at, starts_at) <= $2",
    )
    .bind(from)
    .bind(now)
    .fetch_all(pool)
    .await?;
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cursor_of_ours_is_read() {
        let cursor = Cursor::parse("754.1790000000000000").unwrap();
        assert_eq!(
            (cursor.transaction, cursor.micros),
            (754, 1_790_000_000_000_000)
        );
        for odd in ["", ".", "7", "x.1", "1.x", "-1.5", "1.2.3"] {
            assert!(Cursor::parse(odd).is_none(), "{odd}");
        }
    }
}
