//! `/admin/v1/alarms`: the roles' alarms, merged by time.

use axum::extract::State as Axum;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{RoleName, State};
use crate::platform::{
    alarms::{AlarmFilter, AlarmView, Resolution, unknown_action},
    auth::Admin,
    http::{Json, Page, Path, Query},
    problem::{Problem, ProblemBody},
    upstream::UpstreamError,
};

/// The roles that raise alarms.
const RAISING: [RoleName; 4] = [
    RoleName::Performances,
    RoleName::Queue,
    RoleName::Reservations,
    RoleName::Payments,
];

/// One page of alarms.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AlarmList {
    /// The alarms of this page, newest first.
    items: Vec<AlarmView>,
    /// Ask for the next page with this; null on the last.
    next_cursor: Option<String>,
    /// Roles that could not be asked: their alarms are not in this page.
    missing: Vec<String>,
}

/// A role's page.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RolePage {
    items: Vec<AlarmView>,
    next_cursor: Option<String>,
}

/// Why an alarm is resolved.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ResolveAlarm {
    /// Kept with the alarm: 1 to 500 characters.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
    /// What is to be done: `refund` sends the money of an `ORPHAN_CAPTURE` back.
    #[serde(default)]
    action: Option<String>,
}

/// What needs a person, newest first: open alarms, or those of `state`.
#[utoipa::path(
    get, path = "/admin/v1/alarms", tag = "Operations", operation_id = "list_alarms",
    params(Page, AlarmFilter), security(("accessToken" = [])),
    responses(
        (status = 200, body = AlarmList),
        (status = 401, description = "UNAUTHENTICATED, TOKEN_EXPIRED", body = ProblemBody),
        (status = 403, description = "FORBIDDEN", body = ProblemBody),
        (status = 422, description = "VALIDATION_FAILED", body = ProblemBody),
    ),
)]
pub(crate) async fn list(
    _: Admin,
    Axum(state): Axum<State>,
    Query(page): Query<Page>,
    Query(filter): Query<AlarmFilter>,
) -> Result<Json<AlarmList>, Problem> {
    let limit = page.limit()?;
    let before: Option<Uuid> = page.cursor()?;
    let mut path = format!(
        "/internal/v1/alarms?limit={limit}&state={}",
        filter.as_str()
    );
    if let Some(before) = before {
        path = format!("{path}&cursor={before}");
    }
    let asked = RAISING.map(|role| {
        let (upstream, path) = (state.upstreams.of(role).clone(), path.clone());
        async move { (role, upstream.get_json::<RolePage>(&path).await) }
    });
    let mut list = AlarmList {
        items: Vec::new(),
        next_cursor: None,
        missing: Vec::new(),
    };
    let mut more = false;
    for (role, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(page) => {
                more |= page.next_cursor.is_some();
                list.items.extend(page.items);
            }
            Err(error) => {
                tracing::warn!(%error, role = role.as_str(), "alarms of a role are missing");
                list.missing.push(role.as_str().to_owned());
            }
        }
    }
    // The ids are UUIDv7: their order is that of time.
    list.items.sort_by_key(|alarm| std::cmp::Reverse(alarm.id));
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    more |= list.items.len() > limit;
    list.items.truncate(limit);
    list.next_cursor = (list.items.last().filter(|_| more)).map(|alarm| alarm.id.to_string());
    Ok(Json(list))
}

/// Close an alarm: a person has dealt with it. Kept with it are the user, the time and the reason.
#[utoipa::path(
    post, path = "/admin/v1/alarms/{id}/resolve", tag = "Operations", operation_id = "resolve_alarm",
    params(("id" = Uuid, Path)), request_body = ResolveAlarm, security(("accessToken" = [])),
    responses(
        (status = 200, body = AlarmView),
        (status = 401, description = "UNAUTHENTICATED, TOKEN_EXPIRED", body = ProblemBody),
        (status = 403, description = "FORBIDDEN", body = ProblemBody),
        (status = 404, description = "ALARM_NOT_FOUND", body = ProblemBody),
        (status = 409, description = "ALARM_RESOLVED, ACTION_NOT_POSSIBLE", body = ProblemBody),
        (status = 422, description = "VALIDATION_FAILED", body = ProblemBody),
        (status = 503, description = "UNAVAILABLE: a role that may have it is away", body = ProblemBody),
    ),
)]
pub(crate) async fn resolve(
    Admin(caller): Admin,
    Axum(state): Axum<State>,
    Path(id): Path<Uuid>,
    Json(body): Json<ResolveAlarm>,
) -> Result<Json<AlarmView>, Problem> {
    let resolution = Resolution {
        reason: body.reason,
        by: caller.user_id,
        action: body.action,
    };
    resolution.check()?;
    let path = format!("/internal/v1/alarms/{id}/resolve");
    let mut away: Option<UpstreamError> = None;
    for role in RAISING {
        let upstream = state.upstreams.of(role);
        match upstream.post_json::<_, AlarmView>(&path, &resolution).await {
            Ok(alarm) => return Ok(Json(alarm)),
            Err(error) if error.status() == Some(StatusCode::NOT_FOUND) => {}
            Err(error) if error.code().as_deref() == Some("ACTION_NOT_POSSIBLE") => {
                return Err(Problem::new(
                    StatusCode::CONFLICT,
                    "ACTION_NOT_POSSIBLE",
                    "The money of this alarm cannot be refunded so: its order stands, or Stripe does not have it. Cancel the order instead.",
                ));
            }
            Err(error) if error.status() == Some(StatusCode::UNPROCESSABLE_ENTITY) => {
                return Err(unknown_action());
            }
            Err(error) if error.status() == Some(StatusCode::CONFLICT) => {
                return Err(Problem::new(
                    StatusCode::CONFLICT,
                    "ALARM_RESOLVED",
                    "This alarm is resolved already.",
                ));
            }
            Err(error) => away = Some(error),
        }
    }
    Err(match away {
        Some(error) => Problem::unavailable(error),
        None => Problem::new(
            StatusCode::NOT_FOUND,
            "ALARM_NOT_FOUND",
            "There is no such alarm.",
        ),
    })
}
