//! Alarms: what needs a person, open until a person resolves it or the cause is gone.
//!
//! Each role that raises alarms has a table `alarms` in its schema. One alarm is open per kind and
//! key: raising it again refreshes the open one. A role serves its alarms under
//! `/internal/v1/alarms`; the gateway merges the roles' lists. An alarm is written in the
//! transaction of what it is about, so that neither is lost without the other.

mod http;
mod standing;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::{family::Family, gauge::Gauge};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

pub use self::http::{AlarmFilter, REASON_MAX, Resolution, unknown_action};
pub use self::standing::{Standing, keep_standing, watch_dead_letters, watch_events};
use super::metrics::Metrics;
use super::overview::{Notice, OverviewSlice};
use super::problem::Problem;
use super::tasks::Tasks;

/// Who resolved an alarm whose cause is gone.
pub const SYSTEM: &str = "SYSTEM";
/// Longer texts come from outside; the beginning says enough.
const DETAIL_CHARS_MAX: usize = 1_000;
/// An index entry has to fit on a page of PostgreSQL.
const KEY_CHARS_MAX: usize = 255;
/// Fine enough for a dashboard; the query reads an index of open alarms only.
const SAMPLE_EVERY: Duration = Duration::from_secs(2);
/// Resolved alarms are kept for an audit of the year; then this many go at a time.
const KEPT_DAYS: i32 = 400;
const PURGE_MAX: i64 = 1_000;
const PURGE_EVERY: Duration = Duration::from_secs(3_600);

/// What is wrong.
#[derive(Clone, Copy, Debug)]
pub struct Alarm<'a> {
    /// Stable, UPPER_SNAKE: `REFUND_REFUSED`.
    pub kind: &'static str,
    /// What it is about: one alarm is open per kind and key.
    pub key: &'a str,
    /// The order concerned.
    pub order_id: Option<Uuid>,
    /// The payment concerned.
    pub payment_id: Option<Uuid>,
    /// One sentence for a person.
    pub detail: &'a str,
}

/// Raises an alarm: true when it is new. An open one of the same kind and key takes over the
/// detail, and counts the repetition.
///
/// # Errors
/// When the database fails.
pub async fn raise(conn: &mut PgConnection, alarm: &Alarm<'_>) -> sqlx::Result<bool> {
    let (key, detail) = (
        clean(alarm.key, KEY_CHARS_MAX),
        clean(alarm.detail, DETAIL_CHARS_MAX),
    );
    let new: bool = sqlx::query_scalar(
        "insert into alarms as a (id, kind, key, order_id, payment_id, detail)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (kind, key) where resolved_at is null do update set
             detail = excluded.detail, last_seen_at = now(), count = a.count + 1,
             order_id = coalesce(excluded.order_id, a.order_id),
             payment_id = coalesce(excluded.payment_id, a.payment_id)
         returning count = 1",
    )
    .bind(Uuid::now_v7())
    .bind(alarm.kind)
    .bind(&key)
    .bind(alarm.order_id)
    .bind(alarm.payment_id)
    .bind(&detail)
    .fetch_one(conn)
    .await?;
    if new {
        tracing::error!(
            alarm.kind = alarm.kind, alarm.key = key, order.id = ?alarm.order_id,
            payment.id = ?alarm.payment_id, "alarm {}: {detail}", alarm.kind
        );
    }
    Ok(new)
}

/// As [`raise`], unless a person has resolved an alarm of the same kind, key and detail before:
/// for what is found again at every look although nothing changed.
///
/// # Errors
/// When the database fails.
pub async fn raise_once(conn: &mut PgConnection, alarm: &Alarm<'_>) -> sqlx::Result<bool> {
    let resolved: bool = sqlx::query_scalar(
        "select exists (select 1 from alarms where kind = $1 and key = $2 and detail = $3
                            and resolved_at is not null and resolved_by <> $4)",
    )
    .bind(alarm.kind)
    .bind(clean(alarm.key, KEY_CHARS_MAX))
    .bind(clean(alarm.detail, DETAIL_CHARS_MAX))
    .bind(SYSTEM)
    .fetch_one(&mut *conn)
    .await?;
    if resolved {
        return Ok(false);
    }
    raise(conn, alarm).await
}

/// Closes the open alarm of this kind and key: its cause is gone. Returns how many were open.
///
/// # Errors
/// When the database fails.
pub async fn clear(
    conn: &mut PgConnection,
    kind: &str,
    key: &str,
    note: &str,
) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "update alarms set resolved_at = now(), resolved_by = $3, reason = $4
         where kind = $1 and key = $2 and resolved_at is null",
    )
    .bind(kind)
    .bind(clean(key, KEY_CHARS_MAX))
    .bind(SYSTEM)
    .bind(clean(note, DETAIL_CHARS_MAX))
    .execute(conn)
    .await?;
    if done.rows_affected() > 0 {
        tracing::info!(
            alarm.kind = kind,
            alarm.key = key,
            "alarm {kind} closed: {note}"
        );
    }
    Ok(done.rows_affected())
}

/// Closes every open alarm of these kinds about this payment. Returns how many were open.
///
/// # Errors
/// When the database fails.
pub async fn clear_of_payment(
    conn: &mut PgConnection,
    kinds: &[&str],
    payment: Uuid,
    note: &str,
) -> sqlx::Result<u64> {
    let done = sqlx::query(
        "update alarms set resolved_at = now(), resolved_by = $3, reason = $4
         where kind = any($1) and payment_id = $2 and resolved_at is null",
    )
    .bind(kinds)
    .bind(payment)
    .bind(SYSTEM)
    .bind(clean(note, DETAIL_CHARS_MAX))
    .execute(conn)
    .await?;
    if done.rows_affected() > 0 {
        tracing::info!(payment.id = %payment, ?kinds, "alarms of a payment closed: {note}");
    }
    Ok(done.rows_affected())
}

/// PostgreSQL takes no NUL in a text.
fn clean(text: &str, chars_max: usize) -> String {
    text.chars()
        .take(chars_max)
        .map(|c| if c == '\0' { '\u{fffd}' } else { c })
        .collect()
}

/// An alarm, as operators see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AlarmView {
    /// The alarm.
    pub id: Uuid,
    /// The role that raised it.
    pub role: String,
    /// Stable, UPPER_SNAKE: `REFUND_REFUSED`.
    pub kind: String,
    /// What it is about, such as a payment's id; one alarm is open per kind and key.
    pub key: String,
    /// The order concerned.
    pub order_id: Option<Uuid>,
    /// The payment concerned.
    pub payment_id: Option<Uuid>,
    /// What is wrong, for a person.
    pub detail: String,
    /// When it was first seen.
    pub raised_at: DateTime<Utc>,
    /// When it was last seen.
    pub last_seen_at: DateTime<Utc>,
    /// How often it was seen.
    pub count: i64,
    /// When it was resolved; null while it is open.
    pub resolved_at: Option<DateTime<Utc>>,
    /// The user who resolved it, or `SYSTEM` where the cause went away.
    pub resolved_by: Option<String>,
    /// Why it is resolved.
    pub reason: Option<String>,
}

struct Row {
    id: Uuid,
    kind: String,
    key: String,
    order_id: Option<Uuid>,
    payment_id: Option<Uuid>,
    detail: String,
    raised_at: DateTime<Utc>,
    last_seen_at: DateTime<Utc>,
    count: i64,
    resolved_at: Option<DateTime<Utc>>,
    resolved_by: Option<String>,
    reason: Option<String>,
}

crate::from_row!(Row {
    id,
    kind,
    key,
    order_id,
    payment_id,
    detail,
    raised_at,
    last_seen_at,
    count,
    resolved_at,
    resolved_by,
    reason
});

impl Row {
    fn view(self, role: &str) -> AlarmView {
        AlarmView {
            id: self.id,
            role: role.to_owned(),
            kind: self.kind,
            key: self.key,
            order_id: self.order_id,
            payment_id: self.payment_id,
            detail: self.detail,
            raised_at: self.raised_at,
            last_seen_at: self.last_seen_at,
            count: self.count,
            resolved_at: self.resolved_at,
            resolved_by: self.resolved_by,
            reason: self.reason,
        }
    }
}

/// The open alarms of one kind.
#[derive(Clone, Debug)]
struct OpenKind {
    kind: String,
    open: i64,
    order_id: Option<Uuid>,
    detail: String,
}

crate::from_row!(OpenKind {
    kind,
    open,
    order_id,
    detail
});

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    role: &'static str,
    kind: String,
}

/// The process's gauge `alarms_open`, shared by its roles. Cheap to clone.
#[derive(Clone, Default)]
pub struct OpenAlarms(Family<Labels, Gauge>);

impl OpenAlarms {
    /// Registers the gauge.
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            registry.register(
                "alarms_open",
                "Alarms that wait for a person, by the role that raised them and their kind",
                this.0.clone(),
            );
        });
        this
    }
}

/// Carries out what a person decides with the resolution of an alarm: the alarm, and the action.
pub type Actor =
    Arc<dyn Fn(AlarmView, String) -> BoxFuture<'static, Result<(), Problem>> + Send + Sync>;

/// One role's alarms. Cheap to clone.
#[derive(Clone)]
pub struct Alarms {
    role: &'static str,
    actor: Option<Actor>,
    pool: PgPool,
    /// As of the last sample.
    open: Arc<Mutex<Vec<OpenKind>>>,
}

impl Alarms {
    /// The alarms of `role`, in the schema of `pool`.
    pub fn new(role: &'static str, pool: PgPool) -> Self {
        Self {
            role,
            actor: None,
            pool,
            open: Arc::default(),
        }
    }

    /// With `actor`, which carries out actions before an alarm is resolved.
    #[must_use]
    pub fn acting(mut self, actor: Actor) -> Self {
        self.actor = Some(actor);
        self
    }

    /// Adds the open alarms to this role's part of the overview.
    pub fn add_to(&self, slice: &mut OverviewSlice) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        for one in &*open {
            let count = u64::try_from(one.open).unwrap_or(0);
            let order = one
                .order_id
                .map(|id| format!("order {id}: "))
                .unwrap_or_default();
            let message = match count {
                1 => format!("{order}{}", one.detail),
                n => format!("{n} open, the newest: {order}{}", one.detail),
            };
            slice.open_alarms += count;
            slice.alarms.push(Notice {
                code: one.kind.clone(),
                performance_id: None,
                message,
                look_at: "GET /admin/v1/alarms; once it is dealt with, POST /admin/v1/alarms/{id}/resolve"
                    .to_owned(),
                critical: true,
            });
        }
    }

    /// Keeps the gauge and the overview fresh, and removes what was resolved long ago.
    pub fn start(&self, gauge: &OpenAlarms, tasks: &Tasks) {
        let (this, gauge) = (self.clone(), gauge.clone());
        tasks.every("alarms.sample", SAMPLE_EVERY, move || {
            let (this, gauge) = (this.clone(), gauge.clone());
            async move {
                if let Err(error) = this.sample(&gauge).await {
                    tracing::debug!(%error, role = this.role, "open alarms not known now");
                }
            }
        });
        let this = self.clone();
        tasks.every("alarms.purge", PURGE_EVERY, move || {
            let this = this.clone();
            async move {
                if let Err(error) = this.purge().await {
                    tracing::warn!(%error, role = this.role, "old alarms stay for now");
                }
            }
        });
    }

    async fn sample(&self, gauge: &OpenAlarms) -> sqlx::Result<()> {
        let open: Vec<OpenKind> = sqlx::query_as(
            "select distinct on (kind) kind, count(*) over (partition by kind) as open, order_id, detail
             from alarms where resolved_at is null order by kind, id desc",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut known = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let labels = |kind: &str| Labels {
            role: self.role,
            kind: kind.to_owned(),
        };
        for gone in known
            .iter()
            .filter(|old| !open.iter().any(|new| new.kind == old.kind))
        {
            gauge.0.get_or_create(&labels(&gone.kind)).set(0);
        }
        for one in &open {
            gauge.0.get_or_create(&labels(&one.kind)).set(one.open);
        }
        *known = open;
        Ok(())
    }

    async fn purge(&self) -> sqlx::Result<()> {
        sqlx::query(
            "delete from alarms where id in (select id from alarms
                 where resolved_at < now() - make_interval(days => $1) limit $2)",
        )
        .bind(KEPT_DAYS)
        .bind(PURGE_MAX)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Newest first, older than `before`.
    async fn list(
        &self,
        filter: AlarmFilter,
        before: Option<Uuid>,
        limit: i64,
    ) -> sqlx::Result<Vec<AlarmView>> {
        let rows: Vec<Row> = sqlx::query_as(
            "select id, kind, key, order_id, payment_id, detail, raised_at, last_seen_at, count,
                 resolved_at, resolved_by, reason
             from alarms where id < $1 and ($2::boolean is null or (resolved_at is null) = $2)
             order by id desc limit $3",
        )
        .bind(before.unwrap_or(Uuid::max()))
        .bind(filter.open())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| row.view(self.role)).collect())
    }
}
