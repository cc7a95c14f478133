//! What operators change, and the record of it.

use axum::extract::State as Extract;
use chrono::{DateTime, Utc};
use http::StatusCode;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    State,
    epochs::{self, Registrations},
    error::Error,
    live::Live,
    settings::{self, Change, ChangeError, Stored},
};
use crate::platform::{
    auth::Admin,
    http::{Json, List, Page, Path, Query},
    overview,
    problem::{FieldError, Problem, ProblemBody},
};

const REASON_MAX: usize = 500;
/// A store that takes longer than this counts as away: an operator waits seconds, not a minute.
const STORES_MAX: std::time::Duration = std::time::Duration::from_secs(3);
/// The year 2000.
const EARLIEST_S: i64 = 946_684_800;

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

    fn apply(&self, row: &mut Stored) {
        let ms = |seconds: Option<i64>| seconds.map(|s| s * 1000);
        row.max_working = self.max_working.or(row.max_working);
        row.working_ttl_ms = ms(self.working_ttl_seconds).or(row.working_ttl_ms);
        row.claim_ttl_ms = ms(self.claim_ttl_seconds).or(row.claim_ttl_ms);
        row.hold_ttl_ms = ms(self.hold_ttl_seconds).or(row.hold_ttl_ms);
        row.queue_factor = self.queue_factor.or(row.queue_factor);
        row.paused = self.paused.unwrap_or(row.paused);
        row.draining = self.draining.unwrap_or(row.draining);
        if let Some(limit) = self.admissions_per_minute {
            (row.admissions_per_minute, row.admissions_default) = (limit, false);
        }
        if let Some(at) = self.pre_queue_opens_at {
            row.pre_queue_opens_at = at;
        }
    }

    /// The pre-queue opens before booking does, and stays while it has registrations.
    async fn check_pre_queue(&self, state: &State, live: &Live) -> Result<(), Problem> {
        let Some(at) = self.pre_queue_opens_at else {
            return Ok(());
        };
        let before = live.rules.load().settings.pre_queue_opens_at;
        if at == before {
            return Ok(());
        }
        let pool = &state.deps().pool;
        let draw = tokio::time::timeout(STORES_MAX, epochs::registrations(pool, live.id))
            .await
            .map_err(|_| unavailable("PostgreSQL did not answer in time; nothing was changed"))?
            .map_err(Error::from)?;
        let fixed = |detail: &str| Problem::new(StatusCode::CONFLICT, "DRAW_FIXED", detail);
        match (at, draw) {
            (_, Registrations::Drawn) => Err(fixed(
                "The draw of this pre-queue is made; its time cannot be changed any more.",
            )),
            (None, Registrations::Some) => Err(fixed(
                "People have registered for this pre-queue; it cannot be removed.",
            )),
            (Some(at), _) => within(at, live.rules.load().facts.booking_opens_at),
            (None, Registrations::None) => Ok(()),
        }
    }
}

/// A pre-queue opens before the booking, in a year that a calendar has.
fn within(at: DateTime<Utc>, opens: Option<DateTime<Utc>>) -> Result<(), Problem> {
    let wrong = |message: &str| {
        let field = FieldError::new("preQueueOpensAt", message);
        Err(Problem::validation(vec![field]))
    };
    match opens {
        None => wrong("needs a performance whose booking has an opening time"),
        Some(opens) if at >= opens => wrong("must be before bookingOpensAt"),
        Some(_) if at.timestamp() < EARLIEST_S => wrong("must not be before the year 2000"),
        Some(_) => Ok(()),
    }
}

fn unavailable(detail: &'static str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", detail).retry_after(2)
}

/// Change a queue's settings; in effect at once, and kept with who, when and why.
#[utoipa::path(patch, path = "/admin/v1/queues/{performanceId}", tag = "Operations",
    params(("performanceId" = Uuid, Path)), security(("accessToken" = [])), request_body = Patch,
    responses(
        (status = 200, body = overview::Settings),
        (status = 403, body = ProblemBody), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "DRAW_FIXED: the change would remove a pre-queue that has registrations, or move a draw that is made"),
        (status = 422, body = ProblemBody),
        (status = 503, body = ProblemBody, description = "UNAVAILABLE: nothing was changed; CHANGE_UNKNOWN: PostgreSQL did not say whether it was")))]
pub(super) async fn change(
    Extract(state): Extract<State>,
    Admin(operator): Admin,
    Path(performance): Path<Uuid>,
    Json(patch): Json<Patch>,
) -> Result<Json<overview::Settings>, Problem> {
    patch.check()?;
    let live = tokio::time::timeout(STORES_MAX, state.live(performance))
        .await
        .map_err(|_| unavailable("The queue did not load in time; nothing was changed."))??;
    patch.check_pre_queue(&state, &live).await?;
    let deps = state.deps();
    let made = settings::change(
        &deps.pool,
        performance,
        &deps.config,
        operator.user_id,
        patch.reason.trim(),
        |row| {
            patch.apply(row);
            Ok(())
        },
    )
    .await;
    let after = match made {
        Ok(after) => after,
        Err(ChangeError::Refused(problem)) => return Err(problem),
        Err(ChangeError::NotMade(error)) => {
            tracing::warn!(performance.id = %performance, error, "failed to change queue settings");
            return Err(unavailable("The change was not made; try again."));
        }
        Err(ChangeError::Unknown(error)) => {
            tracing::error!(performance.id = %performance, error, "failed to confirm a change of queue settings");
            return Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "CHANGE_UNKNOWN",
                "PostgreSQL did not say whether the change was made; read the settings before you try again.",
            )
            .retry_after(2));
        }
    };
    tracing::info!(performance.id = %performance, actor.id = %operator.user_id, settings = ?after, "queue settings changed");
    // The change holds; Redis is told now, or by the next look at the settings' versions.
    let applied = state.apply_settings(&live, after.clone());
    match tokio::time::timeout(STORES_MAX, applied).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(performance.id = %performance, %error, "failed to apply changed queue settings; trying again");
        }
        Err(_) => {
            tracing::warn!(performance.id = %performance, "changed queue settings are applied late: a store is slow");
        }
    }
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
