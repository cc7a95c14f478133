//! This role's part of what operators see.

use std::time::Instant;

use axum::extract::State;
use chrono::{DateTime, Utc};
use sqlx::Row as _;
use uuid::Uuid;

use super::Reservations;
use crate::platform::{
    auth::Internal,
    events::outbox,
    http::{Json, Query},
    overview::{Events, Expiries, Health, OverviewQuery, OverviewSlice, SeatSlice, Store},
    problem::Problem,
};

/// Figures of every performance with live orders; for one of them, deadlines too.
pub(super) async fn overview(
    State(state): State<Reservations>,
    _: Internal,
    Query(query): Query<OverviewQuery>,
) -> Result<Json<OverviewSlice>, Problem> {
    let started = Instant::now();
    let mut slice = OverviewSlice {
        seats: state.seat_slices().await?,
        events: Some(state.event_figures().await?),
        ..OverviewSlice::of("reservations")
    };
    slice.stores.push(store("postgres", Ok(()), started));
    if let Some(performance) = query.detail {
        let expiries = state.expiries(performance).await?;
        if let Some(seats) = slice
            .seats
            .iter_mut()
            .find(|s| s.performance_id == performance)
        {
            seats.hold_expiries = Some(expiries);
        }
    }
    let started = Instant::now();
    let mut redis = state.redis.clone();
    let pong = redis::cmd("PING").query_async::<()>(&mut redis).await;
    slice
        .stores
        .push(store("redis", pong.map_err(|e| e.to_string()), started));
    Ok(Json(slice))
}

fn store(name: &str, answer: Result<(), String>, asked: Instant) -> Store {
    Store {
        name: name.to_owned(),
        state: if answer.is_ok() {
            Health::Up
        } else {
            Health::Down
        },
        detail: answer.err().unwrap_or_default(),
        latency_ms: Some(asked.elapsed().as_secs_f64() * 1000.0),
    }
}

fn count(row: &sqlx::postgres::PgRow, column: &str) -> Result<u64, sqlx::Error> {
    let value: i64 = row.try_get(column)?;
    Ok(u64::try_from(value).unwrap_or(0))
}

impl Reservations {
    async fn seat_slices(&self) -> Result<Vec<SeatSlice>, sqlx::Error> {
        let rows = sqlx::query(
            "select performance_id,
                 coalesce(sum(seat_count) filter (where state <> 'CONFIRMED'), 0)::bigint as held,
                 coalesce(sum(seat_count) filter (where state = 'CONFIRMED'), 0)::bigint as sold,
                 count(*) filter (where state <> 'CONFIRMED') as open,
                 count(*) filter (where state <> 'CONFIRMED' and closing is null
                     and expires_at between now() and now() + interval '1 minute') as expiring,
                 count(*) filter (where state <> 'CONFIRMED' and closing is null
                     and expires_at < now() - interval '1 second') as overdue
             from orders where state in ('PENDING', 'PAYING', 'CONFIRMED') group by performance_id",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(SeatSlice {
                    performance_id: row.try_get("performance_id")?,
                    held_seats: count(row, "held")?,
                    sold_seats: count(row, "sold")?,
                    open_orders: count(row, "open")?,
                    hold_expiries_next_minute: count(row, "expiring")?,
                    overdue_holds: count(row, "overdue")?,
                    hold_expiries: None,
                })
            })
            .collect()
    }

    async fn expiries(&self, performance: Uuid) -> Result<Expiries, sqlx::Error> {
        let rows = sqlx::query(
            "select expires_at from orders where performance_id = $1 and state in ('PENDING', 'PAYING')",
        )
        .bind(performance)
        .fetch_all(&self.pool)
        .await?;
        let deadlines_ms: Vec<i64> = rows
            .iter()
            .map(|row| {
                Ok(row
                    .try_get::<DateTime<Utc>, _>("expires_at")?
                    .timestamp_millis())
            })
            .collect::<Result<_, sqlx::Error>>()?;
        Ok(Expiries::from_deadlines(
            Utc::now().timestamp_millis(),
            deadlines_ms,
        ))
    }

    async fn event_figures(&self) -> Result<Events, sqlx::Error> {
        let mut conn = self.pool.acquire().await?;
        let backlog = outbox::backlog(&mut conn).await?;
        let dead =
            sqlx::query("select count(*) as dead from dead_letters where resolved_at is null")
                .fetch_one(&mut *conn)
                .await?;
        Ok(Events {
            outbox_pending: u64::try_from(backlog.pending).unwrap_or(0),
            oldest_seconds: u64::try_from(backlog.oldest_ms / 1000).unwrap_or(0),
            dlq: count(&dead, "dead")?,
            ..Events::default()
        })
    }
}
