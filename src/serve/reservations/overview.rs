//! This role's part of what operators see.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::extract::State;
use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row as _};
use uuid::Uuid;

use super::Reservations;
use crate::platform::{
    auth::Internal,
    http::{Json, Query},
    overview::{Expiries, Health, OverviewQuery, OverviewSlice, SeatSlice, Store},
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
        ..OverviewSlice::of("reservations").with_failing_tasks()
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
    state.events.add_to(&mut slice, super::SCHEMA);
    state.alarms.add_to(&mut slice);
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

/// Changes of what is sold are folded this seldom; open orders have an index.
const SOLD_EVERY: Duration = Duration::from_secs(5);
/// And without anybody who looks, so that they do not pile up.
pub(super) const FOLD_EVERY: Duration = Duration::from_secs(60);
/// Changes folded in one statement.
const FOLD_MAX: i64 = 5_000;
/// And in one go, so that nobody waits for long: the next go takes the rest.
const FOLDS_MAX: u32 = 20;

/// Folds changes into the totals; any number of instances may.
pub(super) async fn fold(pool: &PgPool) -> sqlx::Result<()> {
    for _ in 0..FOLDS_MAX {
        let folded: i64 = sqlx::query_scalar(
            "with taken as (
                 delete from sold_changes where id in (
                     select id from sold_changes order by id limit $1 for update skip locked)
                 returning performance_id, seats),
             folded as (
                 insert into sold_totals (performance_id, seats)
                 select performance_id, sum(seats) from taken group by performance_id order by performance_id
                 on conflict (performance_id) do update set seats = sold_totals.seats + excluded.seats
                 returning 1)
             select count(*) from taken",
        )
        .bind(FOLD_MAX)
        .fetch_one(pool)
        .await?;
        if folded < FOLD_MAX {
            break;
        }
    }
    Ok(())
}

/// Seats sold, by performance, as last summed.
#[derive(Default)]
pub(super) struct Sold(tokio::sync::Mutex<Option<(Instant, HashMap<Uuid, u64>)>>);

impl Sold {
    /// One sum at a time, and not again while it is fresh.
    async fn read(&self, pool: &PgPool) -> Result<HashMap<Uuid, u64>, sqlx::Error> {
        let mut kept = self.0.lock().await;
        if let Some((at, sold)) = &*kept
            && at.elapsed() < SOLD_EVERY
        {
            return Ok(sold.clone());
        }
        fold(pool).await?;
        let rows = sqlx::query(
            "select performance_id, sum(seats)::bigint as sold
             from (select performance_id, seats from sold_totals
                   union all select performance_id, seats from sold_changes) as counted
             group by performance_id having sum(seats) <> 0",
        )
        .fetch_all(pool)
        .await?;
        let sold = rows
            .iter()
            .map(|row| Ok((row.try_get("performance_id")?, count(row, "sold")?)))
            .collect::<Result<HashMap<_, _>, sqlx::Error>>()?;
        *kept = Some((Instant::now(), sold.clone()));
        Ok(sold)
    }
}

impl Reservations {
    async fn seat_slices(&self) -> Result<Vec<SeatSlice>, sqlx::Error> {
        let mut sold = self.sold.read(&self.pool).await?;
        let rows = sqlx::query(
            "select performance_id, sum(seat_count)::bigint as held, count(*) as open,
                 count(*) filter (where closing is null
                     and expires_at between now() and now() + interval '1 minute') as expiring,
                 count(*) filter (where closing is null
                     and expires_at < now() - interval '1 second') as overdue
             from orders where state in ('PENDING', 'PAYING') group by performance_id",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut slices = rows
            .iter()
            .map(|row| {
                let performance_id = row.try_get("performance_id")?;
                Ok(SeatSlice {
                    performance_id,
                    held_seats: count(row, "held")?,
                    sold_seats: sold.remove(&performance_id).unwrap_or(0),
                    open_orders: count(row, "open")?,
                    hold_expiries_next_minute: count(row, "expiring")?,
                    overdue_holds: count(row, "overdue")?,
                    hold_expiries: None,
                })
            })
            .collect::<Result<Vec<_>, sqlx::Error>>()?;
        // Where nobody holds anything now, there may still be seats sold.
        slices.extend(
            sold.into_iter()
                .map(|(performance_id, sold_seats)| SeatSlice {
                    performance_id,
                    sold_seats,
                    ..SeatSlice::default()
                }),
        );
        Ok(slices)
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
}
