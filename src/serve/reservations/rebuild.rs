//! An order that PostgreSQL has lost, built again for a payment that was captured.
//!
//! Its seats are held again as they are for an order paid late, without a place in the queue; it
//! is confirmed as every order is, by `payment.succeeded`. Asked twice, it is built once. What
//! another order has by now is left to it.

use axum::extract::State;
use chrono::{DateTime, Utc};
use redis::AsyncCommands;
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use uuid::Uuid;

use super::{
    Reservations,
    catalogue::Catalogue,
    machine::Status,
    scripts::{self, Held, Hold, Pick},
    store,
};
use crate::platform::{
    auth::Internal,
    http::{Json, Path},
    problem::Problem,
};

/// Later than any show, and exact in Lua.
const FAR_AHEAD_MS: i64 = 1 << 52;
/// A seat that was paid for.
#[derive(Clone, Debug, Deserialize)]
struct PaidSeat {
    id: Uuid,
    price: i64,
}

/// The order as its payment tells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Lost {
    payment_id: Uuid,
    user_id: Uuid,
    schedule_id: Uuid,
    seats: Vec<PaidSeat>,
    place_epoch: Option<i64>,
    place_number: Option<i64>,
    amount: i64,
    currency: String,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Outcome {
    /// Built again, its seats held until it is confirmed.
    Built,
    /// There is such an order, and this payment pays for it.
    Exists,
    /// The seats are another order's by now.
    SeatsTaken,
    /// There is such an order, and it is closed or paid otherwise.
    Closed,
    /// The schedule, or a seat of it, is not in the catalogue; or the amount is not the seats'.
    Unknown,
}

#[derive(Debug, Serialize)]
pub(super) struct Answer {
    outcome: Outcome,
}

/// Builds an order again.
pub(super) async fn rebuild(
    State(state): State<Reservations>,
    _: Internal,
    Path(id): Path<Uuid>,
    Json(lost): Json<Lost>,
) -> Result<Json<Answer>, Problem> {
    let outcome = state.rebuild_order(id, &lost).await?;
    tracing::warn!(
        order.id = %id, payment.id = %lost.payment_id, outcome = ?outcome,
        "order {id} was paid and asked for again: {outcome:?}"
    );
    Ok(Json(Answer { outcome }))
}

/// When an order was made: its id says so, to the millisecond.
pub(super) fn made_at(order: Uuid) -> Option<DateTime<Utc>> {
    let (seconds, nanos) = order.get_timestamp()?.to_unix();
    DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)
}

impl Reservations {
    async fn rebuild_order(&self, id: Uuid, lost: &Lost) -> Result<Outcome, Problem> {
        if let Some(order) = store::order(&self.pool, id).await? {
            return self.stands(&order, lost).await;
        }
        let catalogue = match self.catalogues.get(lost.schedule_id).await {
            Ok(catalogue) => catalogue,
            Err(problem) if problem.code() == "SCHEDULE_NOT_FOUND" => return Ok(Outcome::Unknown),
            Err(problem) => return Err(problem),
        };
        let indices: Option<Vec<u32>> = (lost.seats.iter())
            .map(|seat| catalogue.index_of(seat.id))
            .collect();
        let sum: i64 = lost.seats.iter().map(|seat| seat.price).sum();
        let Some(indices) = indices.filter(|i| !i.is_empty() && sum == lost.amount) else {
            return Ok(Outcome::Unknown);
        };
        let Some((version, until)) = self.hold_again(id, lost, &catalogue, &indices).await? else {
            return Ok(Outcome::SeatsTaken);
        };
        let mut tx = self.pool.begin().await?;
        let built = insert(&mut tx, id, lost, &catalogue, &indices, version, until).await?;
        if !built {
            tx.rollback().await?;
            self.repair_soon(catalogue.performance_id);
            // Another instance was faster, or Postgres has the last word about the seats.
            return match store::order(&self.pool, id).await? {
                Some(order) => self.stands(&order, lost).await,
                None => {
                    let freed = self
                        .free_hold(catalogue.performance_id, lost.schedule_id, id)
                        .await;
                    freed.map_err(Problem::from)?;
                    Ok(Outcome::SeatsTaken)
                }
            };
        }
        tx.commit().await?;
        if let Err(error) = self.show(catalogue.performance_id, id).await {
            tracing::warn!(order.id = %id, %error, "the order built again will be shown later");
            self.repair_soon(catalogue.performance_id);
        }
        Ok(Outcome::Built)
    }

    /// Does this payment pay for the order as it stands?
    async fn stands(&self, order: &store::Order, lost: &Lost) -> Result<Outcome, Problem> {
        let row = &order.row;
        let refunded: bool =
            sqlx::query_scalar("select exists (select 1 from refunds where payment_id = $1)")
                .bind(lost.payment_id)
                .fetch_one(&self.pool)
                .await?;
        let mine = row.payment_id == Some(lost.payment_id);
        Ok(match row.status() {
            _ if refunded => Outcome::Exists,
            Status::Pending | Status::Paying | Status::Closing(_) => Outcome::Exists,
            Status::Confirmed if mine => Outcome::Exists,
            Status::Expired if self.seats_are_free(order).await? => Outcome::Exists,
            Status::Expired => Outcome::SeatsTaken,
            Status::Confirmed | Status::Cancelled | Status::Refunded => Outcome::Closed,
        })
    }

    async fn seats_are_free(&self, order: &store::Order) -> sqlx::Result<bool> {
        sqlx::query_scalar(
            "select not exists (
                 select 1 from order_seats mine join order_seats other using (schedule_id, seat_id)
                 where mine.order_id = $1 and other.live and other.order_id <> $1)",
        )
        .bind(order.row.id)
        .fetch_one(&self.pool)
        .await
    }

    /// Holds the seats in Redis, unless it shows them as this order's all along. The version that
    /// the order is to have, and its deadline; `None`: another has a seat.
    async fn hold_again(
        &self,
        id: Uuid,
        lost: &Lost,
        catalogue: &Catalogue,
        indices: &[u32],
    ) -> Result<Option<(i32, DateTime<Utc>)>, Problem> {
        let keys = self.keys(catalogue.performance_id);
        let mut redis = self.redis.clone();
        let known: Option<i32> = redis.hget(keys.hold(id), "v").await?;
        // Above whatever is still under way for the order that was lost.
        let version = known.unwrap_or(0).saturating_add(1);
        let ttl_ms = self.config.hold_ttl_ms();
        let until = Utc::now() + chrono::Duration::milliseconds(ttl_ms);
        let mut mine = true;
        for index in indices {
            let at = isize::try_from(*index).unwrap_or(isize::MAX / 32) * 16;
            let owner: Vec<u8> = redis
                .getrange(keys.owners(catalogue.schedule_id), at, at + 15)
                .await?;
            mine &= owner == id.as_bytes();
        }
        if mine {
            return Ok(Some((version, until)));
        }
        let pick = Pick::Seats(indices.to_vec());
        let hold = Hold {
            order: id,
            version,
            user: lost.user_id,
            schedule: catalogue.schedule_id,
            ttl_ms: u64::try_from(ttl_ms).unwrap_or(0),
            // It was within the limit when it was bought.
            limit: u32::MAX,
            place: None,
            counted: None,
            // It was bought in time, whatever the time is now.
            sales_end_ms: FAR_AHEAD_MS,
            starts_ms: FAR_AHEAD_MS,
            pick: &pick,
        };
        match scripts::hold(&mut redis, &keys, &hold).await? {
            Held::Seats { .. } => Ok(Some((version, until))),
            Held::Taken(_) | Held::Limit(_) => Ok(None),
            Held::Absent => {
                self.rebuild(catalogue.performance_id).await?;
                Err(Problem::unavailable("the seats were just rebuilt").retry_after(1))
            }
            Held::NoPlace(_)
            | Held::Lost(_)
            | Held::Stopped
            | Held::Exhausted
            | Held::SalesEnded
            | Held::Uncounted => Err(Problem::internal(
                "a hold without a place was asked for its place",
            )),
        }
    }
}

/// False when the order is there, or one of its seats is another order's.
async fn insert(
    conn: &mut PgConnection,
    id: Uuid,
    lost: &Lost,
    catalogue: &Catalogue,
    indices: &[u32],
    version: i32,
    until: DateTime<Utc>,
) -> sqlx::Result<bool> {
    let order = sqlx::query(
        "insert into orders (id, user_id, performance_id, schedule_id, performance_title, starts_at,
             seat_count, amount, currency, hold_ttl_ms, expires_at, created_at, place_epoch,
             place_number, state, version)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 'PENDING', $15)
         on conflict do nothing",
    )
    .bind(id)
    .bind(lost.user_id)
    .bind(catalogue.performance_id)
    .bind(catalogue.schedule_id)
    .bind(&catalogue.title)
    .bind(catalogue.starts_at)
    .bind(i32::try_from(indices.len()).unwrap_or(i32::MAX))
    .bind(lost.amount)
    .bind(&lost.currency)
    .bind((until - Utc::now()).num_milliseconds())
    .bind(until)
    .bind(made_at(id).unwrap_or_else(Utc::now))
    .bind(lost.place_epoch)
    .bind(lost.place_number)
    .bind(version)
    .execute(&mut *conn)
    .await?;
    if order.rows_affected() == 0 {
        return Ok(false);
    }
    let mut inserted = 0;
    for (paid, index) in lost.seats.iter().zip(indices) {
        let Some(seat) = catalogue.seat(*index) else {
            return Ok(false);
        };
        inserted += sqlx::query(
            "insert into order_seats (order_id, schedule_id, seat_id, seat_index, section, row_label,
                 seat_number, grade, price)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9) on conflict do nothing",
        )
        .bind(id)
        .bind(catalogue.schedule_id)
        .bind(paid.id)
        .bind(i32::try_from(*index).unwrap_or(i32::MAX))
        .bind(&*seat.section)
        .bind(&*seat.row)
        .bind(seat.number)
        .bind(&*seat.grade)
        .bind(paid.price)
        .execute(&mut *conn)
        .await?
        .rows_affected();
    }
    Ok(inserted == indices.len() as u64)
}
