//! `/internal/v1/alarms`: the same in every role; the gateway asks it.

use ::http::StatusCode;
use axum::{
    Router,
    extract::{FromRef, State},
    routing::{get, post},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::{AlarmView, Alarms, Row};
use crate::platform::{
    auth::{Internal, InternalSecret},
    http::{Json, List, Page, Path, Query},
    problem::{FieldError, Problem},
};

/// A reason is a sentence or two.
pub const REASON_MAX: usize = 500;

/// Which alarms a list shows.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct AlarmFilter {
    /// Open ones by default.
    #[serde(default)]
    pub state: AlarmState,
}

/// Where an alarm stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AlarmState {
    /// Waits for a person.
    #[default]
    Open,
    /// Dealt with, or gone by itself.
    Resolved,
    /// Both.
    All,
}

impl AlarmFilter {
    /// `Some(true)`: open ones; `None`: all.
    pub(super) fn open(self) -> Option<bool> {
        match self.state {
            AlarmState::Open => Some(true),
            AlarmState::Resolved => Some(false),
            AlarmState::All => None,
        }
    }

    /// As the query of an address says it.
    pub fn as_str(self) -> &'static str {
        match self.state {
            AlarmState::Open => "OPEN",
            AlarmState::Resolved => "RESOLVED",
            AlarmState::All => "ALL",
        }
    }
}

/// A person's answer to an alarm, on its way from the gateway to the role.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Resolution {
    /// Why it is resolved.
    pub reason: String,
    /// The user who resolved it.
    pub by: Uuid,
    /// What is to be done with it: `refund`, where the alarm is money without an order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}

impl Resolution {
    /// # Errors
    /// 422 when there is no reason, or too long a one.
    pub fn check(&self) -> Result<(), Problem> {
        let reason = self.reason.trim();
        if reason.is_empty() || reason.chars().count() > REASON_MAX || reason.contains('\0') {
            return Err(Problem::validation(vec![FieldError::new(
                "reason",
                format!("must have 1 to {REASON_MAX} characters, none of them NUL"),
            )]));
        }
        Ok(())
    }
}

#[derive(Clone)]
struct Role(Alarms, InternalSecret);

impl FromRef<Role> for InternalSecret {
    fn from_ref(role: &Role) -> Self {
        role.1.clone()
    }
}

impl Alarms {
    /// The internal routes of this role's alarms.
    pub fn router(&self, secret: InternalSecret) -> Router {
        Router::new()
            .route("/internal/v1/alarms", get(list))
            .route("/internal/v1/alarms/{id}/resolve", post(resolve))
            .with_state(Role(self.clone(), secret))
    }
}

async fn list(
    State(Role(alarms, _)): State<Role>,
    _: Internal,
    Query(page): Query<Page>,
    Query(filter): Query<AlarmFilter>,
) -> Result<Json<List<AlarmView>>, Problem> {
    let limit = page.limit()?;
    let mut items = alarms.list(filter, page.cursor()?, limit + 1).await?;
    let more = items.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    if more {
        items.pop();
    }
    let next_cursor = (items.last().filter(|_| more)).map(|alarm| alarm.id.to_string());
    Ok(Json(List { items, next_cursor }))
}

async fn resolve(
    State(Role(alarms, _)): State<Role>,
    _: Internal,
    Path(id): Path<Uuid>,
    Json(resolution): Json<Resolution>,
) -> Result<Json<AlarmView>, Problem> {
    resolution.check()?;
    if let Some(action) = &resolution.action {
        act(&alarms, id, action).await?;
    }
    let row: Option<Row> = sqlx::query_as(
        "update alarms set resolved_at = now(), resolved_by = $2, reason = $3
         where id = $1 and resolved_at is null
         returning id, kind, key, order_id, payment_id, detail, raised_at, last_seen_at, count,
             resolved_at, resolved_by, reason",
    )
    .bind(id)
    .bind(resolution.by.to_string())
    .bind(resolution.reason.trim())
    .fetch_optional(&alarms.pool)
    .await?;
    if let Some(row) = row {
        tracing::info!(
            alarm.id = %id, alarm.kind = row.kind, user.id = %resolution.by,
            "alarm {} resolved by a person", row.kind
        );
        return Ok(Json(row.view(alarms.role)));
    }
    let known: bool = sqlx::query_scalar("select exists (select 1 from alarms where id = $1)")
        .bind(id)
        .fetch_one(&alarms.pool)
        .await?;
    Err(if known {
        Problem::new(
            StatusCode::CONFLICT,
            "ALARM_RESOLVED",
            "This alarm is resolved already.",
        )
    } else {
        Problem::new(
            StatusCode::NOT_FOUND,
            "ALARM_NOT_FOUND",
            "There is no such alarm.",
        )
    })
}

/// Carries the action out first: an alarm is not closed over something that was not done. Actions
/// are harmless when they are repeated.
async fn act(alarms: &Alarms, id: Uuid, action: &str) -> Result<(), Problem> {
    let open: Option<Row> = sqlx::query_as(
        "select id, kind, key, order_id, payment_id, detail, raised_at, last_seen_at, count,
             resolved_at, resolved_by, reason
         from alarms where id = $1 and resolved_at is null",
    )
    .bind(id)
    .fetch_optional(&alarms.pool)
    .await?;
    match (open, &alarms.actor) {
        // Resolved, or not here: the answer follows.
        (None, _) => Ok(()),
        (Some(row), Some(actor)) => actor(row.view(alarms.role), action.to_owned()).await,
        (Some(_), None) => Err(unknown_action()),
    }
}

/// There is no such action for such an alarm.
pub fn unknown_action() -> Problem {
    Problem::validation(vec![FieldError::new(
        "action",
        "is nothing that can be done about this alarm; ORPHAN_CAPTURE takes \"refund\"",
    )])
}
