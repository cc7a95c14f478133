//! Alarms that stand as long as something is so: raised when it is found, closed when it is gone.

use std::collections::BTreeSet;

use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{Alarm, clear, raise_once};

/// An event that waits longer than this for its relay is a breach for the audit.
const EVENTS_WAIT_MAX_S: f64 = 45.0;
/// Dead letters named one by one; more of them have one cause.
const DEAD_LETTERS_MAX: i64 = 50;
const EVENTS_WAIT: &str = "EVENTS_WAIT";
const DEAD_LETTER: &str = "DEAD_LETTER";

/// Something found that a person must look at, as long as it is so.
#[derive(Clone, Debug)]
pub struct Standing {
    /// As [`Alarm::key`].
    pub key: String,
    /// The order concerned.
    pub order_id: Option<Uuid>,
    /// The payment concerned.
    pub payment_id: Option<Uuid>,
    /// One sentence for a person.
    pub detail: String,
}

impl Standing {
    /// About an order, by its id.
    pub fn of_order(order: Uuid, detail: String) -> Self {
        Self {
            key: order.to_string(),
            order_id: Some(order),
            payment_id: None,
            detail,
        }
    }

    /// As an alarm of this kind.
    pub fn alarm(&self, kind: &'static str) -> Alarm<'_> {
        Alarm {
            kind,
            key: &self.key,
            order_id: self.order_id,
            payment_id: self.payment_id,
            detail: &self.detail,
        }
    }
}

/// Raises an alarm for each thing found, and closes the open ones of this kind that were looked at
/// (`None`: all of them) and not found.
///
/// # Errors
/// When the database fails.
pub async fn keep_standing(
    conn: &mut PgConnection,
    kind: &'static str,
    found: &[Standing],
    looked_at: Option<&[String]>,
) -> sqlx::Result<()> {
    for one in found {
        raise_once(conn, &one.alarm(kind)).await?;
    }
    if looked_at.is_some_and(<[String]>::is_empty) {
        return Ok(());
    }
    let open: Vec<String> =
        sqlx::query_scalar("select key from alarms where kind = $1 and resolved_at is null")
            .bind(kind)
            .fetch_all(&mut *conn)
            .await?;
    let found: BTreeSet<&str> = found.iter().map(|one| &*one.key).collect();
    for key in open.iter().filter(|key| !found.contains(key.as_str())) {
        if looked_at.is_none_or(|keys| keys.contains(key)) {
            clear(conn, kind, key, "It is no longer so.").await?;
        }
    }
    Ok(())
}

/// Alarms about events of this schema that do not leave, and messages that were put aside. Only
/// for schemas that have an outbox.
///
/// # Errors
/// When the database fails.
pub async fn watch_events(conn: &mut PgConnection, schema: &'static str) -> sqlx::Result<()> {
    let row = sqlx::query(
        "select count(*) as waiting, min(created_at)::text as since from outbox
         where published_at is null and created_at < now() - make_interval(secs => $1)",
    )
    .bind(EVENTS_WAIT_MAX_S)
    .fetch_one(&mut *conn)
    .await?;
    let since: Option<String> = row.try_get("since")?;
    let waiting = since.map(|since| Standing {
        key: schema.to_owned(),
        order_id: None,
        payment_id: None,
        // No count: the same trouble is not a new one when it grows.
        detail: format!("events of {schema} wait to be published since {since}"),
    });
    let waiting: Vec<Standing> = waiting.into_iter().collect();
    keep_standing(conn, EVENTS_WAIT, &waiting, None).await?;
    watch_dead_letters(conn).await
}

/// Alarms about messages that were put aside in this schema.
///
/// # Errors
/// When the database fails.
pub async fn watch_dead_letters(conn: &mut PgConnection) -> sqlx::Result<()> {
    let rows = sqlx::query(
        "select consumer || ':' || event_id as key, type || ' of ' || key || ': ' || left(error, 300) as detail
         from dead_letters where resolved_at is null order by created_at desc limit $1",
    )
    .bind(DEAD_LETTERS_MAX)
    .fetch_all(&mut *conn)
    .await?;
    let dead = rows
        .iter()
        .map(|row| {
            Ok(Standing {
                key: row.try_get("key")?,
                order_id: None,
                payment_id: None,
                detail: row.try_get("detail")?,
            })
        })
        .collect::<sqlx::Result<Vec<_>>>()?;
    keep_standing(conn, DEAD_LETTER, &dead, None).await
}
