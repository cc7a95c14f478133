//! Writes new orders. What arrives while a transaction is under way goes into
//! the next one together: no timer, no latency when idle, and one commit for
//! many when busy.
//!
//! The partial unique index has the last word. An order whose seats are not all
//! free is left out of the transaction; the others in it are not harmed.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use http::StatusCode;
use sqlx::{PgConnection, PgPool, Row};
use tokio::sync::{Semaphore, mpsc, oneshot};
use uuid::Uuid;

use super::store::NewOrder;
use crate::{
    failpoint,
    platform::{
        db::{self, Failed},
        idempotency::Claim,
        tasks,
    },
};

/// Orders in one transaction: at 4 seats each some 1,000 rows, a few milliseconds.
const BATCH_MAX: usize = 256;
/// Orders that may wait; beyond it callers wait to be let in.
const WAITING_MAX: usize = 4_096;
/// Transactions under way at once: one writes while another commits.
const WRITERS: usize = 2;

/// Of one transaction, where each was rolled back for no fault of its own.
const TRIES_MAX: u32 = 3;

/// What became of an order's writing.
#[derive(Clone, Debug)]
pub enum Written {
    /// It is in Postgres now.
    New,
    /// It was there before.
    Before,
    /// A seat of it belongs to another live order.
    Taken,
    /// The database failed; whether it was written is not known.
    Unknown(Arc<sqlx::Error>),
}

struct Job {
    order: NewOrder,
    /// The answer to keep in the same transaction.
    keep: Option<(Claim, Bytes)>,
    done: oneshot::Sender<Written>,
}

/// Hands orders to the writing task. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Starts the writing task; it ends when the last handle is gone.
    pub fn start(pool: PgPool) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(run(pool, waiting));
        Self { jobs }
    }

    /// Writes `order`, and keeps the answer with it where there is a claim.
    pub async fn write(&self, order: NewOrder, keep: Option<(Claim, Bytes)>) -> Written {
        let (done, written) = oneshot::channel();
        let stopped = || Written::Unknown(Arc::new(sqlx::Error::WorkerCrashed));
        if self.jobs.send(Job { order, keep, done }).await.is_err() {
            return stopped();
        }
        written.await.unwrap_or_else(|_| stopped())
    }
}

async fn run(pool: PgPool, mut waiting: mpsc::Receiver<Job>) {
    let writers = Arc::new(Semaphore::new(WRITERS));
    loop {
        let permit = writers
            .clone()
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let mut jobs = Vec::new();
        if waiting.recv_many(&mut jobs, BATCH_MAX).await == 0 {
            return;
        }
        let pool = pool.clone();
        tokio::spawn(async move {
            // Callers of a batch that panics are told that it is not known what was written.
            let _ = tasks::job("orders.writer", write_all(&pool, jobs)).await;
            drop(permit);
        });
    }
}

type Outcome = Result<HashMap<Uuid, Written>, Arc<sqlx::Error>>;

async fn write_all(pool: &PgPool, jobs: Vec<Job>) {
    match write_repeated(pool, &jobs).await {
        // One bad order, or a deadlock with another instance's batch, must not
        // fail the rest: each gets a transaction of its own.
        Err(error) if jobs.len() > 1 && !is_away(&error) => {
            for job in jobs {
                let alone = vec![job];
                let outcome = write_repeated(pool, &alone).await.map_err(Arc::new);
                answer(alone, &outcome);
            }
        }
        outcome => answer(jobs, &outcome.map_err(Arc::new)),
    }
}

/// Repeats a transaction that was rolled back for no fault of its own, on another connection.
async fn write_repeated(pool: &PgPool, jobs: &[Job]) -> sqlx::Result<HashMap<Uuid, Written>> {
    let mut tries = 1;
    loop {
        let outcome = write_together(pool, jobs).await;
        let Err(error) = &outcome else { return outcome };
        db::observe(error);
        if db::failed(error) != Failed::RolledBack || tries == TRIES_MAX {
            return outcome;
        }
        tries += 1;
    }
}

/// Would trying again at once fail the same way?
fn is_away(error: &sqlx::Error) -> bool {
    matches!(db::failed(error), Failed::Disconnected | Failed::Away)
}

fn answer(jobs: Vec<Job>, outcome: &Outcome) {
    for job in jobs {
        let written = match outcome {
            Ok(written) => written.get(&job.order.view.id).cloned(),
            Err(error) => Some(Written::Unknown(error.clone())),
        };
        // A caller that is gone left its order behind; it expires like any other.
        let _ = job.done.send(written.unwrap_or(Written::Before));
    }
}

/// One transaction. Orders missing from the answer were there before.
async fn write_together(pool: &PgPool, jobs: &[Job]) -> sqlx::Result<HashMap<Uuid, Written>> {
    let mut tx = pool.begin().await?;
    let inserted = insert(&mut tx, jobs).await?;
    let mut written = HashMap::with_capacity(inserted.len());
    let mut incomplete = Vec::new();
    for (id, seats) in inserted {
        let wanted = jobs
            .iter()
            .find(|j| j.order.view.id == id)
            .map_or(0, |j| j.order.indices.len());
        if usize::try_from(seats) == Ok(wanted) {
            written.insert(id, Written::New);
        } else {
            incomplete.push(id);
            written.insert(id, Written::Taken);
        }
    }
    if !incomplete.is_empty() {
        withdraw(&mut tx, &incomplete).await?;
    }
    keep_answers(&mut tx, jobs, &written).await?;
    failpoint!("orders.before_commit");
    tx.commit().await?;
    failpoint!("orders.after_commit");
    Ok(written)
}

#[derive(Default)]
struct Columns {
    id: Vec<Uuid>,
    user: Vec<Uuid>,
    performance: Vec<Uuid>,
    schedule: Vec<Uuid>,
    title: Vec<String>,
    starts_at: Vec<chrono::DateTime<chrono::Utc>>,
    seat_count: Vec<i32>,
    amount: Vec<i64>,
    currency: Vec<String>,
    hold_ttl_ms: Vec<i64>,
    expires_at: Vec<chrono::DateTime<chrono::Utc>>,
    created_at: Vec<chrono::DateTime<chrono::Utc>>,
    epoch: Vec<i64>,
    number: Vec<i64>,
    seat_order: Vec<Uuid>,
    seat_schedule: Vec<Uuid>,
    seat: Vec<Uuid>,
    seat_index: Vec<i32>,
    section: Vec<String>,
    row: Vec<String>,
    seat_number: Vec<i32>,
    grade: Vec<String>,
    price: Vec<i64>,
}

impl Columns {
    fn push(&mut self, order: &NewOrder) {
        let view = &order.view;
        self.id.push(view.id);
        self.user.push(order.user_id);
        self.performance.push(view.performance_id);
        self.schedule.push(view.schedule_id);
        self.title.push(view.performance_title.clone());
        self.starts_at.push(view.starts_at);
        self.seat_count
            .push(i32::try_from(view.seats.len()).unwrap_or(i32::MAX));
        self.amount.push(view.amount);
        self.currency.push(view.currency.clone());
        self.hold_ttl_ms.push(order.hold_ttl_ms);
        self.expires_at.push(view.expires_at);
        self.created_at.push(view.created_at);
        self.epoch.push(i64::from(order.place.0));
        self.number
            .push(i64::try_from(order.place.1).unwrap_or(i64::MAX));
        for (seat, index) in view.seats.iter().zip(&order.indices) {
            self.seat_order.push(view.id);
            self.seat_schedule.push(view.schedule_id);
            self.seat.push(seat.id);
            self.seat_index
                .push(i32::try_from(*index).unwrap_or(i32::MAX));
            self.section.push(seat.section.clone());
            self.row.push(seat.row.clone());
            self.seat_number.push(seat.number);
            self.grade.push(seat.grade.clone());
            self.price.push(seat.price);
        }
    }
}

/// Inserts all orders that are not there yet, with those of their seats that are
/// free: (order, seats inserted). Seats go in one order everywhere, so that two
/// instances' batches wait for each other and do not deadlock.
async fn insert(conn: &mut PgConnection, jobs: &[Job]) -> sqlx::Result<Vec<(Uuid, i64)>> {
    let mut c = Columns::default();
    for job in jobs {
        c.push(&job.order);
    }
    let rows = sqlx::query(
        "with o as (
             insert into orders (id, user_id, performance_id, schedule_id, performance_title, starts_at,
                 seat_count, amount, currency, hold_ttl_ms, expires_at, created_at, place_epoch,
                 place_number, state)
             select id, user_id, performance_id, schedule_id, title, starts_at, seat_count, amount,
                 currency, hold_ttl_ms, expires_at, created_at, epoch, number, 'PENDING'
             from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::uuid[], $5::text[],
                 $6::timestamptz[], $7::int[], $8::bigint[], $9::text[], $10::bigint[],
                 $11::timestamptz[], $12::timestamptz[], $13::bigint[], $14::bigint[])
                 as t (id, user_id, performance_id, schedule_id, title, starts_at, seat_count, amount,
                       currency, hold_ttl_ms, expires_at, created_at, epoch, number)
             on conflict do nothing
             returning id
         ), s as (
             insert into order_seats (order_id, schedule_id, seat_id, seat_index, section, row_label,
                 seat_number, grade, price)
             select t.order_id, t.schedule_id, t.seat_id, t.seat_index, t.section, t.row_label,
                 t.seat_number, t.grade, t.price
             from unnest($15::uuid[], $16::uuid[], $17::uuid[], $18::int[], $19::text[],
                 $20::text[], $21::int[], $22::text[], $23::bigint[])
                 as t (order_id, schedule_id, seat_id, seat_index, section, row_label, seat_number, grade, price)
             where t.order_id in (select id from o)
             order by t.schedule_id, t.seat_id
             on conflict do nothing
             returning order_id
         )
         select o.id, count(s.order_id) as seats from o left join s on s.order_id = o.id group by o.id",
    )
    .bind(c.id)
    .bind(c.user)
    .bind(c.performance)
    .bind(c.schedule)
    .bind(c.title)
    .bind(c.starts_at)
    .bind(c.seat_count)
    .bind(c.amount)
    .bind(c.currency)
    .bind(c.hold_ttl_ms)
    .bind(c.expires_at)
    .bind(c.created_at)
    .bind(c.epoch)
    .bind(c.number)
    .bind(c.seat_order)
    .bind(c.seat_schedule)
    .bind(c.seat)
    .bind(c.seat_index)
    .bind(c.section)
    .bind(c.row)
    .bind(c.seat_number)
    .bind(c.grade)
    .bind(c.price)
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("id")?, row.try_get("seats")?)))
        .collect()
}

/// Takes back what this same transaction inserted of orders that are not whole.
async fn withdraw(conn: &mut PgConnection, orders: &[Uuid]) -> sqlx::Result<()> {
    for delete in [
        "delete from order_seats where order_id = any($1)",
        "delete from orders where id = any($1)",
    ] {
        sqlx::query(delete).bind(orders).execute(&mut *conn).await?;
    }
    Ok(())
}

async fn keep_answers(
    conn: &mut PgConnection,
    jobs: &[Job],
    written: &HashMap<Uuid, Written>,
) -> sqlx::Result<()> {
    let kept: Vec<_> = jobs
        .iter()
        .filter(|j| matches!(written.get(&j.order.view.id), Some(Written::New)))
        .filter_map(|j| j.keep.as_ref())
        .collect();
    if kept.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update idempotency_keys k set status = $5, body = t.body
         from unnest($1::uuid[], $2::text[], $3::int[], $4::bytea[]) as t (user_id, key, fence, body)
         where k.user_id = t.user_id and k.key = t.key and k.fence = t.fence and k.status is null",
    )
    .bind(kept.iter().map(|(c, _)| c.user_id).collect::<Vec<_>>())
    .bind(kept.iter().map(|(c, _)| c.key.clone()).collect::<Vec<_>>())
    .bind(kept.iter().map(|(c, _)| c.fence).collect::<Vec<_>>())
    .bind(kept.iter().map(|(_, b)| b.to_vec()).collect::<Vec<_>>())
    .bind(i16::try_from(StatusCode::CREATED.as_u16()).unwrap_or(i16::MAX))
    .execute(conn)
    .await?;
    Ok(())
}
