//! Writes a plan into PostgreSQL: one transaction, whose bulk travels by COPY. What is there
//! already stays as it is.

use std::collections::HashSet;

use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use super::{
    box_office,
    ids::Ids,
    plan::{Performance, Plan, Schedule, Settings},
    progress::Progress,
};

/// COPY data is handed over in pieces of about this size: large enough that
/// a piece costs one system call, small enough to stay in the cache.
pub const CHUNK_BYTES: usize = 256 * 1024;

/// Held by who seeds, so that two at once do not both find a schedule missing.
const SEED_LOCK: i64 = 7_216_341;

/// What a seed added to what was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Added {
    pub venues: u64,
    pub performances: u64,
    pub schedules: u64,
    pub seats: u64,
    pub members: u64,
}

/// Writes `plan`.
///
/// # Errors
/// When PostgreSQL is away or refuses; nothing is written then.
pub async fn load(
    pool: &PgPool,
    plan: &Plan,
    ids: Ids,
    progress: &Progress,
) -> sqlx::Result<Added> {
    let mut conn = pool.acquire().await?;
    let mut tx = conn.begin().await?;
    lock(&mut tx).await?;
    let venues = insert_venues(&mut tx, plan).await?;
    let performances = insert_performances(&mut tx, plan).await?;
    let new = insert_schedules(&mut tx, plan).await?;
    let mut added = Added {
        venues,
        performances,
        schedules: new.len() as u64,
        ..Added::default()
    };
    let fresh: Vec<_> = plan
        .performances
        .iter()
        .flat_map(|p| p.schedules.iter().map(move |s| (p, s)))
        .filter(|(_, schedule)| new.contains(&schedule.id))
        .collect();
    added.seats = copy_seats(&mut tx, plan, &fresh, ids, progress).await?;
    box_office::sell(&mut tx, plan, &fresh, ids).await?;
    for performance in &plan.performances {
        write_settings(&mut tx, performance, plan.given).await?;
    }
    tx.commit().await?;
    Ok(added)
}

/// Until the end of the transaction, nobody else seeds.
pub async fn lock(conn: &mut PgConnection) -> sqlx::Result<()> {
    // The other seed may be a large one.
    sqlx::query("set local lock_timeout = '60s'")
        .execute(&mut *conn)
        .await?;
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(SEED_LOCK)
        .execute(&mut *conn)
        .await?;
    // A million rows are one statement.
    sqlx::query("set local statement_timeout = 0")
        .execute(conn)
        .await?;
    Ok(())
}

async fn insert_venues(conn: &mut PgConnection, plan: &Plan) -> sqlx::Result<u64> {
    let mut added = 0;
    for venue in &plan.venues {
        let new = sqlx::query(
            "insert into performances.venues (id, name, address, layout) values ($1, $2, $3, $4)
             on conflict do nothing",
        )
        .bind(venue.id)
        .bind(&venue.name)
        .bind(&venue.address)
        .bind(sqlx::types::Json(&venue.hall))
        .execute(&mut *conn)
        .await?
        .rows_affected();
        if new == 0 {
            continue;
        }
        added += new;
        let names: Vec<_> = venue
            .hall
            .0
            .iter()
            .map(|section| section.name.as_str())
            .collect();
        sqlx::query(
            "insert into performances.sections (venue_id, section, name)
             select $1, nth - 1, name from unnest($2::text[]) with ordinality as s (name, nth)",
        )
        .bind(venue.id)
        .bind(names)
        .execute(&mut *conn)
        .await?;
    }
    Ok(added)
}

async fn insert_performances(conn: &mut PgConnection, plan: &Plan) -> sqlx::Result<u64> {
    let mut added = 0;
    for performance in &plan.performances {
        let new = sqlx::query(
            "insert into performances.performances
                 (id, venue_id, title, description, runtime_minutes, age_rating, booking_opens_at, booking_closes_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)
             on conflict do nothing",
        )
        .bind(performance.id)
        .bind(plan.venues[performance.venue].id)
        .bind(&performance.title)
        .bind(&performance.description)
        .bind(performance.genre.runtime_minutes())
        .bind(performance.genre.age_rating())
        .bind(performance.booking_opens_at)
        .bind(performance.booking_closes_at)
        .execute(&mut *conn)
        .await?
        .rows_affected();
        if new == 0 {
            continue;
        }
        added += new;
        let (names, prices): (Vec<_>, Vec<_>) = performance.genre.grades().iter().copied().unzip();
        sqlx::query(
            "insert into performances.price_grades (performance_id, grade, name, price)
             select $1, nth - 1, name, price
             from unnest($2::text[], $3::bigint[]) with ordinality as g (name, price, nth)",
        )
        .bind(performance.id)
        .bind(names)
        .bind(prices)
        .execute(&mut *conn)
        .await?;
    }
    Ok(added)
}

/// Adds the schedules that are missing, and says which they were.
async fn insert_schedules(conn: &mut PgConnection, plan: &Plan) -> sqlx::Result<HashSet<Uuid>> {
    let mut new = HashSet::new();
    for performance in &plan.performances {
        let (ids, times): (Vec<_>, Vec<_>) = performance
            .schedules
            .iter()
            .map(|s| (s.id, s.starts_at))
            .unzip();
        let seats = plan.venues[performance.venue].hall.len();
        let added: Vec<Uuid> = sqlx::query_scalar(
            "insert into performances.schedules (id, performance_id, starts_at, total_seats)
             select id, $1, starts_at, $2 from unnest($3::uuid[], $4::timestamptz[]) as s (id, starts_at)
             on conflict do nothing returning id",
        )
        .bind(performance.id)
        .bind(i32::try_from(seats).unwrap_or(i32::MAX))
        .bind(ids)
        .bind(times)
        .fetch_all(&mut *conn)
        .await?;
        if !added.is_empty() {
            // Shows added to a performance that was there keep it open until the last of them.
            sqlx::query(
                "update performances.performances set booking_closes_at = $2
                 where id = $1 and booking_closes_at < $2",
            )
            .bind(performance.id)
            .bind(performance.booking_closes_at)
            .execute(&mut *conn)
            .await?;
        }
        new.extend(added);
    }
    Ok(new)
}

async fn copy_seats(
    conn: &mut PgConnection,
    plan: &Plan,
    fresh: &[(&Performance, &Schedule)],
    ids: Ids,
    progress: &Progress,
) -> sqlx::Result<u64> {
    let halls = fresh
        .iter()
        .map(|(p, _)| u64::from(plan.venues[p.venue].hall.len()));
    let total = halls.sum();
    if total == 0 {
        return Ok(0);
    }
    let bar = progress.bar("seats", total);
    let mut copy = conn
        .copy_in_raw(
            "copy performances.seats (schedule_id, idx, section, grade, number, row_label, id)
             from stdin (format binary)",
        )
        .await?;
    let mut rows = CopyRows::new();
    for (performance, schedule) in fresh {
        let mut seat_ids = box_office::seat_ids(ids, schedule);
        for (idx, seat) in (0_i32..).zip(plan.venues[performance.venue].hall.seats()) {
            rows.row(7);
            rows.field(schedule.id.as_bytes());
            rows.field(&idx.to_be_bytes());
            rows.field(&seat.section.to_be_bytes());
            rows.field(&seat.grade.to_be_bytes());
            rows.field(&seat.number.to_be_bytes());
            rows.field(seat.row.as_bytes());
            rows.field(seat_ids.next().unwrap_or_default().as_bytes());
            if rows.len() >= CHUNK_BYTES {
                bar.set_position(rows.rows);
                copy.send(rows.take()).await?;
            }
        }
    }
    copy.send(rows.finish()).await?;
    let copied = copy.finish().await?;
    bar.finish();
    Ok(copied)
}

/// Rows in PostgreSQL's binary COPY format.
pub struct CopyRows {
    bytes: Vec<u8>,
    /// How many so far.
    pub rows: u64,
}

impl CopyRows {
    pub fn new() -> Self {
        let mut bytes = Vec::with_capacity(CHUNK_BYTES + 4_096);
        bytes.extend_from_slice(b"PGCOPY\n\xff\r\n\0");
        // No flags, no header extension.
        bytes.extend_from_slice(&[0; 8]);
        Self { bytes, rows: 0 }
    }

    /// Begins a row of `fields` fields.
    pub fn row(&mut self, fields: i16) {
        self.rows += 1;
        self.bytes.extend_from_slice(&fields.to_be_bytes());
    }

    pub fn field(&mut self, value: &[u8]) {
        self.bytes
            .extend_from_slice(&(value.len() as i32).to_be_bytes());
        self.bytes.extend_from_slice(value);
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What has gathered since the last time.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.bytes, Vec::with_capacity(CHUNK_BYTES + 4_096))
    }

    /// The rest, and the end of the data.
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&(-1_i16).to_be_bytes());
        self.bytes
    }
}

/// Gives a performance's queue its settings. What the command line gave holds; what it did not stays
/// as it is, since an operator may have changed it.
async fn write_settings(
    conn: &mut PgConnection,
    performance: &Performance,
    given: Settings,
) -> sqlx::Result<()> {
    let first = given.or(performance.settings);
    if first.is_empty() && performance.pre_queue_opens_at.is_none() {
        return Ok(());
    }
    let ms = |ttl: Option<std::time::Duration>| ttl.map(|ttl| ttl.as_millis() as i64);
    // What nobody gave follows the flags of the server.
    sqlx::query(
        "insert into queue.settings as old
             (performance_id, max_working, working_ttl_ms, claim_ttl_ms, hold_ttl_ms, queue_factor,
              admissions_default, pre_queue_opens_at)
         values ($1, $2, $3, $4, $5, $6, true, $7)
         on conflict (performance_id) do update set
             max_working = coalesce($8, old.max_working),
             working_ttl_ms = coalesce($3, old.working_ttl_ms),
             claim_ttl_ms = coalesce($4, old.claim_ttl_ms),
             hold_ttl_ms = coalesce($5, old.hold_ttl_ms),
             queue_factor = coalesce($6, old.queue_factor)
         where (old.max_working, old.working_ttl_ms, old.claim_ttl_ms, old.hold_ttl_ms, old.queue_factor)
             is distinct from
             (coalesce($8, old.max_working), coalesce($3, old.working_ttl_ms), coalesce($4, old.claim_ttl_ms),
              coalesce($5, old.hold_ttl_ms), coalesce($6, old.queue_factor))",
    )
    .bind(performance.id)
    .bind(first.max_working.map(|n| n as i32))
    .bind(ms(first.working_ttl))
    .bind(ms(first.claim_ttl))
    .bind(ms(first.hold_ttl))
    .bind(first.queue_factor)
    .bind(performance.pre_queue_opens_at)
    .bind(given.max_working.map(|n| n as i32))
    .execute(conn)
    .await?;
    Ok(())
}
