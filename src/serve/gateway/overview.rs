//! `GET /admin/v1/overview`: the roles' slices, put together.

use axum::extract::State as Axum;
use chrono::Utc;

use super::{RoleName, State};
use crate::platform::{
    auth::Admin,
    http::{Json, Query},
    overview::{Overview, OverviewQuery, OverviewSlice, Server},
    problem::Problem,
};

/// Everything `ticketping top` shows, in one read. A role that is away is shown
/// as such; the others' figures stand.
#[utoipa::path(
    get, path = "/admin/v1/overview", tag = "Operations",
    params(OverviewQuery),
    responses(
        (status = 200, body = Overview),
        (status = 401, body = crate::platform::problem::ProblemBody),
        (status = 403, body = crate::platform::problem::ProblemBody),
    ),
    security(("accessToken" = []))
)]
pub(crate) async fn get(
    _: Admin,
    Axum(state): Axum<State>,
    Query(query): Query<OverviewQuery>,
) -> Result<Json<Overview>, Problem> {
    let path = match query.detail {
        Some(id) => format!("/internal/v1/overview?detail={id}"),
        None => "/internal/v1/overview".to_owned(),
    };
    let asked = RoleName::ALL.map(|role| {
        let (upstream, path) = (state.upstreams.of(role).clone(), path.clone());
        async move {
            upstream
                .get_json::<OverviewSlice>(&path)
                .await
                .unwrap_or_else(|e| OverviewSlice::down(role.as_str(), e.to_string()))
        }
    });
    let mut slices = futures_util::future::join_all(asked).await;
    let mut own = OverviewSlice::of("gateway").with_failing_tasks();
    own.http = Some(state.stats.snapshot());
    slices.push(own);
    let server = Server {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: state.started.elapsed().as_secs(),
        resident_bytes: resident_bytes(),
    };
    Ok(Json(Overview::merge(Utc::now(), server, slices)))
}

/// This process's resident memory, where `/proc` tells.
fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}
