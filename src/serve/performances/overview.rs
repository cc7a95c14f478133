//! This role's part of what operators see: the titles of what is or was on sale.

use std::time::Instant;

use axum::extract::State;
use sqlx::Row as _;

use super::Performances;
use crate::platform::{
    auth::Internal,
    http::Json,
    overview::{OverviewSlice, PerformanceSlice, Store},
    problem::Problem,
};

/// No sale room shows more at once; a thousand is what the dashboard is held to.
const TITLES_MAX: i64 = 2000;

pub(super) async fn overview(
    State(state): State<Performances>,
    _: Internal,
) -> Result<Json<OverviewSlice>, Problem> {
    let started = Instant::now();
    let rows = sqlx::query(
        "select p.id, p.title, v.name as venue_name
         from performances p join venues v on v.id = p.venue_id
         order by p.booking_closes_at desc limit $1",
    )
    .bind(TITLES_MAX)
    .fetch_all(&state.pool)
    .await?;
    let mut slice = OverviewSlice::of("performances").with_failing_tasks();
    slice.stores.push(Store {
        name: "postgres".to_owned(),
        latency_ms: Some(started.elapsed().as_secs_f64() * 1000.0),
        ..Store::default()
    });
    for row in rows {
        slice.performances.push(PerformanceSlice {
            performance_id: row.try_get("id")?,
            title: row.try_get("title")?,
            venue_name: row.try_get("venue_name")?,
        });
    }
    state.events.add_to(&mut slice, super::SCHEMA);
    state.alarms.add_to(&mut slice);
    Ok(Json(slice))
}
