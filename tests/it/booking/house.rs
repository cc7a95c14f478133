//! What a world of booking stands on: schemas, a hall, and the roles beside reservations.

use std::sync::{Arc, OnceLock};

use axum::{Router, extract::State, routing::post};
use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgPool;
use ticketping::{
    platform::{auth::InternalSecret, db, upstream::Upstream},
    serve::performances,
};
use uuid::Uuid;

pub(super) async fn pool(
    database: &str,
    schema: &'static str,
    migrator: &sqlx::migrate::Migrator,
) -> PgPool {
    let pool = db::pool(database, schema, 10).unwrap();
    db::migrate(&pool, schema, migrator).await.unwrap();
    pool
}

pub(super) async fn pool_of_performances(database: &str) -> PgPool {
    pool(database, performances::SCHEMA, &performances::MIGRATOR).await
}

pub(super) fn performances_router(pool: PgPool, secret: &InternalSecret) -> Router {
    let role = performances::Performances::new(pool, secret.clone());
    performances::router(role).split_for_parts().0
}

/// Payments apart: its own tests are in another module. It answers as the
/// contract between the two roles says.
pub(super) fn payments_answering(outcome: Arc<std::sync::Mutex<&'static str>>) -> Router {
    let answer = |State(outcome): State<Arc<std::sync::Mutex<&'static str>>>| async move {
        let outcome = *outcome.lock().unwrap();
        axum::Json(json!({ "outcome": outcome }))
    };
    Router::new()
        .route("/internal/v1/orders/{id}/cancel-payment", post(answer))
        .with_state(outcome)
}

pub(super) fn upstream(router: Router, secret: &InternalSecret) -> Upstream {
    let slot = Arc::new(OnceLock::new());
    slot.set(router).unwrap();
    Upstream::local(slot, secret.clone())
}

pub(super) async fn hall(pool: &PgPool, rows: u32, seats_a_row: u32) -> (Uuid, Uuid, Vec<Uuid>) {
    let (venue, performance, schedule) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    let starts_at: DateTime<Utc> = Utc::now() + chrono::Duration::days(30);
    let total = i32::try_from(rows * seats_a_row).unwrap();
    sqlx::query("insert into venues (id, name, address, layout) values ($1, 'Hall', 'Here', '[]')")
        .bind(venue)
        .execute(pool)
        .await
        .unwrap();
    sqlx::query(
        "insert into performances (id, venue_id, title, runtime_minutes, age_rating, booking_opens_at, booking_closes_at)
         values ($1, $2, 'Play', 90, 'ALL', now() - interval '1 day', now() + interval '20 days')",
    )
    .bind(performance).bind(venue).execute(pool).await.unwrap();
    sqlx::query("insert into price_grades (performance_id, grade, name, price) values ($1, 0, 'VIP', 150000), ($1, 1, 'R', 90000)")
        .bind(performance).execute(pool).await.unwrap();
    sqlx::query("insert into schedules (id, performance_id, starts_at, total_seats) values ($1, $2, $3, $4)")
        .bind(schedule).bind(performance).bind(starts_at).bind(total).execute(pool).await.unwrap();
    sqlx::query("insert into sections (venue_id, section, name) values ($1, 0, 'Stalls')")
        .bind(venue)
        .execute(pool)
        .await
        .unwrap();
    let mut seats = Vec::new();
    for row in 0..rows {
        for number in 0..seats_a_row {
            let id = Uuid::now_v7();
            sqlx::query("insert into seats (schedule_id, idx, section, grade, number, row_label, id) values ($1, $2, 0, $3, $4, $5, $6)")
                .bind(schedule)
                .bind(i32::try_from(seats.len()).unwrap())
                .bind(i16::from(row > 0))
                .bind(i16::try_from(number + 1).unwrap())
                .bind(char::from(b'A' + u8::try_from(row % 26).unwrap()).to_string())
                .bind(id)
                .execute(pool).await.unwrap();
            seats.push(id);
        }
    }
    (performance, schedule, seats)
}
