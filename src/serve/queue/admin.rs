//! What operators change, and the record of it.

use axum::extract::State as Extract;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    State,
    error::Error,
    settings::{self, Change, Settings},
};
use crate::platform::{
    auth::Admin,
    http::{Json, List, Page, Path, Query},
    overview,
    problem::{FieldError, Problem, ProblemBody},
};

const REASON_MAX: usize = 500;

/// A change of a queue's settings; what is absent stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Patch {
    /// How many work at once.
    max_working: Option<i32>,
    /// The working time.
    working_ttl_seconds: Option<i64>,
    /// The claim window, at least.
    claim_ttl_seconds: Option<i64>,
    /// How long seats are held.
    hold_ttl_seconds: Option<i64>,
    /// The inflow limit; null: none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i32>)]
    admissions_per_minute: Option<Option<i32>>,
    /// Entry ends when this many times the seats not sold wait; 0: never.
    queue_factor: Option<f64>,
    /// Nobody is admitted.
    paused: Option<bool>,
    /// Nobody enters.
    draining: Option<bool>,
    /// When registration for the draw begins; null: no draw.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<DateTime<Utc>>)]
    pre_queue_opens_at: Option<Option<DateTime<Utc>>>,
    /// Why; kept with the change.
    reason: String,
}

/// Tells null (none from now on) from absent (as it was).
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Patch {
    fn check(&self) -> Result<(), Problem> {
        let mut errors = Vec::new();
        let mut within = |field: &str, value: Option<i64>, min: i64, max: i64| {
            if value.is_some_and(|v| !(min..=max).contains(&v)) {
                errors.push(FieldError::new(
                    field,
                    format!("must be from {min} to {max}"),
                ));
            }
        };
        within("maxWorking", self.max_working.map(i64::from), 0, 1_000_000);
        within("workingTtlSeconds", self.working_ttl_seconds, 1, 86_400);
        within("claimTtlSeconds", self.claim_ttl_seconds, 1, 3_600);
        within("holdTtlSeconds", self.hold_ttl_seconds, 1, 86_400);
        within(
            "admissionsPerMinute",
            self.admissions_per_minute.flatten().map(i64::from),
            0,
            10_000_000,
        );
        if self
            .queue_factor
            .is_some_and(|f| !(0.0..=1_000_000.0).contains(&f))
        {
            errors.push(FieldError::new("queueFactor", "must be from 0 to 1000000"));
        }
        let reason = self.reason.trim();
        if reason.is_empty() || reason.chars().count() > REASON_MAX {
            errors.push(FieldError::new(
                "reason",
                format!("must have 1 to {REASON_MAX} characters"),
            ));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::validation(errors))
        }
    }

    fn apply(&self, settings: &mut Settings) {
        fn set<T: Clone>(to: &mut T, from: &Option<T>) {
            if let Some(value) = from {
                *to = value.clone();
            }
        }
        let ms = |seconds: Option<i64>| seconds.map(|s| s * 1000);
        set(&mut settings.max_working, &self.max_working);
        set(&mut settings.working_ttl_ms, &ms(self.working_ttl_seconds));
        set(&mut settings.claim_ttl_ms, &ms(self.claim_ttl_seconds));
        set(&mut settings.hold_ttl_ms, &ms(self.hold_ttl_seconds));
        set(
            &mut settings.admissions_per_minute,
            &self.admissions_per_minute,
        );
        set(&mut settings.queue_factor, &self.queue_factor);
        set(&mut settings.paused, &self.paused);
        set(&mut settings.draining, &self.draining);
        set(&mut settings.pre_queue_opens_at, &self.pre_queue_opens_at);
    }
}

/// Change a queue's settings; in effect at once, and kept with who, when and why.
#[utoipa::path(patch, path = "/admin/v1/queues/{performanceId}", tag = "Operations",
    params(("performanceId" = Uuid, Path)), security(("accessToken" = [])), request_body = Patch,
    responses(
        (status = 200, body = overview::Settings),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub(super) async fn change(
    Extract(state): Extract<State>,
    Admin(operator): Admin,
    Path(performance): Path<Uuid>,
    Json(patch): Json<Patch>,
) -> Result<Json<overview::Settings>, Problem> {
    patch.check()?;
    let live = state.live(performance).await?;
    let deps = state.deps();
    let after = settings::change(
        &deps.pool,
        performance,
        &deps.config,
        operator.user_id,
        patch.reason.trim(),
        |settings| patch.apply(settings),
    )
    .await
    .map_err(Error::from)?;
    state.refresh_rules(&live).await?;
    tracing::info!(performance.id = %performance, actor.id = %operator.user_id, settings = ?after, "queue settings changed");
    Ok(Json(after.shown()))
}

/// Changes of settings, newest first.
#[utoipa::path(get, path = "/admin/v1/audit", tag = "Operations", params(Page), security(("accessToken" = [])),
    responses((status = 200, body = List<Change>), (status = 403, body = ProblemBody)))]
pub(super) async fn audit(
    Extract(state): Extract<State>,
    _: Admin,
    Query(page): Query<Page>,
) -> Result<Json<List<Change>>, Problem> {
    let limit = page.limit()?;
    let cursor: Option<Uuid> = page.cursor()?;
    let mut items = settings::changes(&state.deps().pool, cursor, limit + 1)
        .await
        .map_err(Error::from)?;
    let more = items.len() > usize::try_from(limit).unwrap_or(usize::MAX);
    if more {
        items.pop();
    }
    let next_cursor = items
        .last()
        .filter(|_| more)
        .map(|change| change.id.to_string());
    Ok(Json(List { items, next_cursor }))
}
