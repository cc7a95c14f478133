//! The catalogue in PostgreSQL, read only: `ticketping seed` (or whoever runs the
//! halls) writes it.

use chrono::{DateTime, Utc};
use futures_util::TryStreamExt;
use serde::Serialize;
use sqlx::PgPool;
use uuid::Uuid;

/// A performance with its hall and what is left of it.
pub struct Performance {
    pub id: Uuid,
    pub title: String,
    pub description: String,
    pub venue_id: Uuid,
    pub venue_name: String,
    pub venue_address: String,
    pub runtime_minutes: i32,
    pub age_rating: String,
    pub currency: String,
    pub booking_opens_at: DateTime<Utc>,
    pub booking_closes_at: DateTime<Utc>,
    /// When the sales of its last schedule end.
    pub sales_end_at: Option<DateTime<Utc>>,
    pub total_seats: i64,
    /// Seats of the schedules that are still sold.
    pub open_seats: i64,
    pub remaining_seats: i64,
}

impl Performance {
    /// When nothing can be booked any more.
    pub fn closes_at(&self) -> DateTime<Utc> {
        let closes = self.booking_closes_at;
        self.sales_end_at.map_or(closes, |ends| ends.min(closes))
    }
}

crate::from_row!(Performance {
    id,
    title,
    description,
    venue_id,
    venue_name,
    venue_address,
    runtime_minutes,
    age_rating,
    currency,
    booking_opens_at,
    booking_closes_at,
    sales_end_at,
    total_seats,
    open_seats,
    remaining_seats
});

/// One showing.
pub struct Schedule {
    pub id: Uuid,
    pub performance_id: Uuid,
    pub starts_at: DateTime<Utc>,
    pub sales_end_at: DateTime<Utc>,
    pub total_seats: i32,
    pub remaining_seats: i32,
}

crate::from_row!(Schedule {
    id,
    performance_id,
    starts_at,
    sales_end_at,
    total_seats,
    remaining_seats
});

/// The price of one grade of seats.
pub struct Grade {
    pub name: String,
    pub price: i64,
}

crate::from_row!(Grade { name, price });

// A counter may be ahead of or behind what it should be while events are under
// way, so what is shown is kept between nothing and everything.
macro_rules! performance_sql {
    ($tail:literal) => {
        concat!(
            "select p.id, p.title, p.description, p.venue_id, v.name as venue_name,
                    v.address as venue_address, p.runtime_minutes::int as runtime_minutes, p.age_rating, p.currency,
                    p.booking_opens_at, p.booking_closes_at,
                    left_over.sales_end_at,
                    coalesce(left_over.total, 0)::bigint as total_seats,
                    coalesce(left_over.open, 0)::bigint as open_seats,
                    coalesce(left_over.remaining, 0)::bigint as remaining_seats
             from performances p
             join venues v on v.id = p.venue_id
             left join lateral (
                 select sum(s.total_seats) as total,
                        max(least(s.sales_end_at, s.starts_at)) as sales_end_at,
                        sum(s.total_seats) filter (where least(s.sales_end_at, s.starts_at) > now()) as open,
                        sum(least(greatest(s.total_seats - coalesce(sales.sold, 0), 0), s.total_seats))
                            filter (where least(s.sales_end_at, s.starts_at) > now()) as remaining
                 from schedules s left join schedule_sales sales on sales.schedule_id = s.id
                 where s.performance_id = p.id) left_over on true ",
            $tail
        )
    };
}

macro_rules! schedule_sql {
    ($tail:literal) => {
        concat!(
            "select s.id, s.performance_id, s.starts_at, s.total_seats::int as total_seats,
                    least(s.sales_end_at, s.starts_at) as sales_end_at,
                    (case when least(s.sales_end_at, s.starts_at) > now()
                        then least(greatest(s.total_seats - coalesce(sales.sold, 0), 0), s.total_seats)
                        else 0 end)::int as remaining_seats
             from schedules s left join schedule_sales sales on sales.schedule_id = s.id ",
            $tail
        )
    };
}

/// At most `limit` performances after the one with the id `after`.
pub async fn list(
    pool: &PgPool,
    after: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Performance>> {
    sqlx::query_as(performance_sql!(
        "where $1::uuid is null or p.id > $1 order by p.id limit $2"
    ))
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
}

pub async fn performance(pool: &PgPool, id: Uuid) -> sqlx::Result<Option<Performance>> {
    sqlx::query_as(performance_sql!("where p.id = $1"))
        .bind(id)
        .fetch_optional(pool)
        .await
}

/// Performances that can be booked now, or from within a day on; the latest to open first.
pub async fn on_sale(pool: &PgPool) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "select id from performances
         where booking_closes_at > now() and booking_opens_at < now() + interval '1 day'
         order by booking_opens_at desc, id limit 1000",
    )
    .fetch_all(pool)
    .await
}

/// The grades of a performance, dearest first.
pub async fn grades(pool: &PgPool, performance: Uuid) -> sqlx::Result<Vec<Grade>> {
    sqlx::query_as("select name, price from price_grades where performance_id = $1 order by grade")
        .bind(performance)
        .fetch_all(pool)
        .await
}

/// At most `limit` schedules of a performance after the one with the id `after`, in order of time.
pub async fn schedules(
    pool: &PgPool,
    performance: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Schedule>> {
    sqlx::query_as(schedule_sql!(
        "where s.performance_id = $1
           and ($2::uuid is null or (s.starts_at, s.id) >
                (select last.starts_at, last.id from schedules last where last.id = $2))
         order by s.starts_at, s.id limit $3"
    ))
    .bind(performance)
    .bind(after)
    .bind(limit)
    .fetch_all(pool)
    .await
}

pub async fn schedule_ids(pool: &PgPool, performance: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar("select id from schedules where performance_id = $1 order by starts_at, id")
        .bind(performance)
        .fetch_all(pool)
        .await
}

/// The schedules that are still sold.
pub async fn open_schedule_ids(pool: &PgPool, performance: Uuid) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "select id from schedules where performance_id = $1 and least(sales_end_at, starts_at) > now()
         order by starts_at, id",
    )
    .bind(performance)
    .fetch_all(pool)
    .await
}

pub async fn schedule(pool: &PgPool, id: Uuid) -> sqlx::Result<Option<Schedule>> {
    sqlx::query_as(schedule_sql!("where s.id = $1"))
        .bind(id)
        .fetch_optional(pool)
        .await
}

/// A seat as the catalogue has it.
#[derive(Serialize)]
pub struct Seat {
    id: Uuid,
    section: String,
    row: String,
    number: i16,
    grade: String,
    price: i64,
    currency: String,
}

crate::from_row!(Seat {
    id,
    section,
    row,
    number,
    grade,
    price,
    currency
});

/// The seats of a schedule as a JSON array in seat order, written as they arrive: a
/// stadium would be several times as big as rows.
pub async fn seats_json(pool: &PgPool, schedule: &Schedule) -> sqlx::Result<Vec<u8>> {
    let capacity = usize::try_from(schedule.total_seats).unwrap_or(0) * 170;
    let mut json = Vec::with_capacity(capacity);
    json.push(b'[');
    let mut rows = sqlx::query_as::<_, Seat>(
        "select seats.id, sections.name as section, seats.row_label as row, seats.number::smallint as number,
                grades.name as grade, grades.price, p.currency
         from seats
         join performances p on p.id = $2
         join sections on sections.venue_id = p.venue_id and sections.section = seats.section
         join price_grades grades on grades.performance_id = p.id and grades.grade = seats.grade
         where seats.schedule_id = $1
         order by seats.idx",
    )
    .bind(schedule.id)
    .bind(schedule.performance_id)
    .fetch(pool);
    while let Some(seat) = rows.try_next().await? {
        if json.len() > 1 {
            json.push(b',');
        }
        serde_json::to_writer(&mut json, &seat).map_err(|e| sqlx::Error::Encode(e.into()))?;
    }
    json.push(b']');
    Ok(json)
}
