//! Orders as Postgres has them, and as the API shows them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, PgPool, Row as _, postgres::PgRow};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    catalogue::Catalogue,
    machine::{End, Status},
};

/// An order's row.
#[derive(Clone, Debug)]
pub struct Row {
    /// The order.
    pub id: Uuid,
    /// Its buyer.
    pub user_id: Uuid,
    /// What it is for.
    pub performance_id: Uuid,
    /// When it is for.
    pub schedule_id: Uuid,
    /// `QUEUE` or `BOX_OFFICE`.
    pub channel: String,
    status: Status,
    /// When the order began to wait for its payment's end.
    pub closing_at: Option<DateTime<Utc>>,
    /// Grows with every change of state.
    pub version: i32,
    /// Why the order stands as it does, where that is not plain.
    pub status_reason: Option<String>,
    /// The performance's title when it was ordered.
    pub performance_title: String,
    /// When the show starts.
    pub starts_at: DateTime<Utc>,
    /// How many seats.
    pub seat_count: i32,
    /// In the currency's minor unit.
    pub amount: i64,
    /// ISO 4217, lower case.
    pub currency: String,
    /// How long a hold lasted when it was made.
    pub hold_ttl_ms: i64,
    /// Until when the seats are held.
    pub expires_at: DateTime<Utc>,
    /// Epoch of the place that the order uses up.
    pub place_epoch: Option<i64>,
    /// Its number.
    pub place_number: Option<i64>,
    /// What it was paid with.
    pub payment_id: Option<Uuid>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was confirmed.
    pub confirmed_at: Option<DateTime<Utc>>,
    /// When its ticket was checked at the door.
    pub ticket_used_at: Option<DateTime<Utc>>,
    /// What its disputes come to, as payments tells; none without one.
    pub dispute_state: Option<String>,
    has_refunds: bool,
    /// The database's clock at the reading.
    pub now: DateTime<Utc>,
}

impl sqlx::FromRow<'_, PgRow> for Row {
    fn from_row(row: &PgRow) -> sqlx::Result<Self> {
        let state: String = row.try_get("state")?;
        let closing: Option<String> = row.try_get("closing")?;
        // A newer version may know more states: such an order is an error, and others go on.
        let status = Status::from_columns(&state, closing.as_deref()).ok_or_else(|| {
            let id: Option<Uuid> = row.try_get("id").ok();
            sqlx::Error::Decode(
                format!("order {id:?} is in a state that is not known: {state}, {closing:?}")
                    .into(),
            )
        })?;
        Ok(Self {
            status,
            id: row.try_get("id")?,
            user_id: row.try_get("user_id")?,
            performance_id: row.try_get("performance_id")?,
            schedule_id: row.try_get("schedule_id")?,
            channel: row.try_get("channel")?,
            closing_at: row.try_get("closing_at")?,
            version: row.try_get("version")?,
            status_reason: row.try_get("status_reason")?,
            performance_title: row.try_get("performance_title")?,
            starts_at: row.try_get("starts_at")?,
            seat_count: row.try_get("seat_count")?,
            amount: row.try_get("amount")?,
            currency: row.try_get("currency")?,
            hold_ttl_ms: row.try_get("hold_ttl_ms")?,
            expires_at: row.try_get("expires_at")?,
            place_epoch: row.try_get("place_epoch")?,
            place_number: row.try_get("place_number")?,
            payment_id: row.try_get("payment_id")?,
            created_at: row.try_get("created_at")?,
            confirmed_at: row.try_get("confirmed_at")?,
            ticket_used_at: row.try_get("ticket_used_at")?,
            dispute_state: row.try_get("dispute_state")?,
            has_refunds: row.try_get("has_refunds")?,
            now: row.try_get("now")?,
        })
    }
}

/// One seat of an order.
#[derive(Clone, Debug)]
pub struct SeatRow {
    order_id: Uuid,
    /// The seat.
    pub seat_id: Uuid,
    /// Its byte in Redis.
    pub seat_index: i32,
    section: String,
    row_label: String,
    seat_number: i32,
    grade: String,
    /// In the currency's minor unit.
    pub price: i64,
}

crate::from_row!(SeatRow {
    order_id,
    seat_id,
    seat_index,
    section,
    row_label,
    seat_number,
    grade,
    price
});

/// Money of an order that goes back, or went.
#[derive(Clone, Debug)]
struct RefundRow {
    order_id: Uuid,
    amount: i64,
    reason: String,
    status: String,
    requested_at: DateTime<Utc>,
}

crate::from_row!(RefundRow {
    order_id,
    amount,
    reason,
    status,
    requested_at
});

/// An order, whole.
#[derive(Clone, Debug)]
pub struct Order {
    /// Its own row.
    pub row: Row,
    /// Its seats, in index order.
    pub seats: Vec<SeatRow>,
    /// In the order in which they were asked for.
    refunds: Vec<RefundRow>,
}

impl Row {
    /// Where the order stands.
    pub fn status(&self) -> Status {
        self.status
    }

    /// A dispute is open: the bank has the money until it decides.
    pub fn is_disputed(&self) -> bool {
        self.dispute_state.as_deref() == Some("OPEN")
    }

    /// Whose limit it counts for; what the box office sold counts for nobody's.
    pub fn counts_for(&self) -> Option<Uuid> {
        (self.channel == "QUEUE").then_some(self.user_id)
    }
}

/// Columns of [`Row`]; every query of orders reads them all. The casts keep the result of a
/// prepared statement as it is when a column is made wider.
macro_rules! order_columns {
    () => {
        "id, user_id, performance_id, schedule_id, channel, state, closing, closing_at, version::int as version, \
         status_reason, performance_title, starts_at, seat_count::int as seat_count, amount, currency, hold_ttl_ms, expires_at, \
         place_epoch, place_number, payment_id, created_at, confirmed_at, ticket_used_at, dispute_state, \
         has_refunds, clock_timestamp() as now"
    };
}

/// The order's row, locked until the transaction ends.
///
/// # Errors
/// When the database fails.
pub async fn lock(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Row>> {
    sqlx::query_as(concat!(
        "select ",
        order_columns!(),
        " from orders where id = $1 for update"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

/// An order, whole.
///
/// # Errors
/// When the database fails.
pub async fn order(pool: &PgPool, id: Uuid) -> sqlx::Result<Option<Order>> {
    let rows: Vec<Row> = sqlx::query_as(concat!(
        "select ",
        order_columns!(),
        " from orders where id = $1"
    ))
    .bind(id)
    .fetch_all(pool)
    .await?;
    Ok(whole(pool, rows).await?.pop())
}

/// A buyer's orders, newest first, at most `limit`, older than `before`.
///
/// # Errors
/// When the database fails.
pub async fn orders_of(
    pool: &PgPool,
    user: Uuid,
    before: Option<Uuid>,
    limit: i64,
) -> sqlx::Result<Vec<Order>> {
    let rows: Vec<Row> = sqlx::query_as(concat!(
        "select ",
        order_columns!(),
        " from orders where user_id = $1 and id < $2 order by id desc limit $3"
    ))
    .bind(user)
    .bind(before.unwrap_or(Uuid::max()))
    .bind(limit)
    .fetch_all(pool)
    .await?;
    whole(pool, rows).await
}

/// How many orders were made from one place in the queue.
///
/// # Errors
/// When the database fails.
pub async fn orders_of_place(
    pool: &PgPool,
    performance: Uuid,
    user: Uuid,
    number: u64,
) -> sqlx::Result<u64> {
    let made: i64 = sqlx::query_scalar(
        "select count(*) from orders where user_id = $1 and performance_id = $2 and place_number = $3",
    )
    .bind(user)
    .bind(performance)
    .bind(i64::try_from(number).unwrap_or(i64::MAX))
    .fetch_one(pool)
    .await?;
    Ok(made.unsigned_abs())
}

/// The live orders of a performance.
///
/// # Errors
/// When the database fails.
pub async fn live_of(pool: &PgPool, performance: Uuid) -> sqlx::Result<Vec<Order>> {
    let rows: Vec<Row> = sqlx::query_as(concat!(
        "select ",
        order_columns!(),
        " from orders where performance_id = $1 and state in ('PENDING', 'PAYING', 'CONFIRMED')"
    ))
    .bind(performance)
    .fetch_all(pool)
    .await?;
    whole(pool, rows).await
}

async fn whole(pool: &PgPool, rows: Vec<Row>) -> sqlx::Result<Vec<Order>> {
    let ids: Vec<Uuid> = rows.iter().map(|r| r.id).collect();
    let seats: Vec<SeatRow> = sqlx::query_as(
        "select order_id, seat_id, seat_index::int as seat_index, section, row_label,
                seat_number::int as seat_number, grade, price
         from order_seats where order_id = any($1) order by order_seats.seat_index",
    )
    .bind(&ids)
    .fetch_all(pool)
    .await?;
    let refunded: Vec<Uuid> = rows
        .iter()
        .filter(|r| r.has_refunds)
        .map(|r| r.id)
        .collect();
    let refunds: Vec<RefundRow> = if refunded.is_empty() {
        Vec::new()
    } else {
        sqlx::query_as(
            "select order_id, amount, reason, status, requested_at from refunds
             where order_id = any($1) and status <> 'COVERED' order by requested_at, id",
        )
        .bind(&refunded)
        .fetch_all(pool)
        .await?
    };
    let mut orders: Vec<Order> = rows
        .into_iter()
        .map(|row| Order {
            row,
            seats: Vec::new(),
            refunds: Vec::new(),
        })
        .collect();
    let mut at: std::collections::HashMap<Uuid, &mut Order> =
        orders.iter_mut().map(|o| (o.row.id, o)).collect();
    for seat in seats {
        if let Some(order) = at.get_mut(&seat.order_id) {
            order.seats.push(seat);
        }
    }
    for refund in refunds {
        if let Some(order) = at.get_mut(&refund.order_id) {
            order.refunds.push(refund);
        }
    }
    Ok(orders)
}

/// A seat in an order, as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeatView {
    /// The seat.
    pub id: Uuid,
    /// Part of the hall.
    pub section: String,
    /// Row, as the hall calls it.
    pub row: String,
    /// Number in the row.
    pub number: i32,
    /// Price class.
    pub grade: String,
    /// In the currency's minor unit.
    pub price: i64,
    /// ISO 4217, lower case.
    pub currency: String,
    /// Whether it is still the buyer's.
    #[serde(default)]
    pub state: SeatState,
}

/// Whether a seat of an order is still the buyer's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SeatState {
    /// As the order stands.
    #[default]
    Active,
    /// Released: its money goes back.
    Refunded,
}

/// An order's status in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum StatusView {
    /// Seats are held; it is not paid yet.
    PendingPayment,
    /// Paid, the seats are sold.
    Confirmed,
    /// The hold ended before it was paid.
    Expired,
    /// Given up.
    Cancelled,
    /// Paid and given back.
    Refunded,
}

impl From<Status> for StatusView {
    fn from(status: Status) -> Self {
        match status {
            Status::Pending | Status::Paying | Status::Closing(End::Expired | End::Cancelled) => {
                Self::PendingPayment
            }
            Status::Confirmed => Self::Confirmed,
            Status::Expired => Self::Expired,
            Status::Cancelled => Self::Cancelled,
            Status::Refunded => Self::Refunded,
        }
    }
}

/// How far a refund has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RefundStatus {
    /// On its way.
    Requested,
    /// The card company has it.
    Done,
}

/// Where the money of a refund is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RefundProgress {
    /// On its way, or about to be.
    Pending,
    /// The card company has it.
    Succeeded,
    /// It did not arrive; it is tried again.
    Failed,
}

/// One refund of an order.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderRefund {
    /// Where the money is.
    pub status: RefundProgress,
    /// In the currency's minor unit.
    pub amount: i64,
    /// Why: `CANCELLED_BY_BUYER`, `REFUNDED_AT_STRIPE`, …
    pub reason: String,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

impl From<&RefundRow> for OrderRefund {
    fn from(row: &RefundRow) -> Self {
        Self {
            status: match row.status.as_str() {
                "SUCCEEDED" => RefundProgress::Succeeded,
                "FAILED" => RefundProgress::Failed,
                _ => RefundProgress::Pending,
            },
            amount: row.amount,
            reason: row.reason.clone(),
            created_at: row.requested_at,
        }
    }
}

/// Money that goes back to the buyer.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct RefundView {
    /// How far it has come.
    pub status: RefundStatus,
    /// In the currency's minor unit.
    pub amount: i64,
}

/// An order, as the API shows it.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct OrderView {
    /// The order.
    pub id: Uuid,
    /// Where it stands.
    pub status: StatusView,
    /// Why, where that is not plain: `HOLD_EXPIRED`, `PAID_TOO_LATE_SEATS_GONE`, …
    pub status_reason: Option<String>,
    /// What it is for.
    pub performance_id: Uuid,
    /// When it is for.
    pub schedule_id: Uuid,
    /// The performance's title.
    pub performance_title: String,
    /// When the show starts.
    pub starts_at: DateTime<Utc>,
    /// Its seats.
    pub seats: Vec<SeatView>,
    /// The whole price, in the currency's minor unit.
    pub amount: i64,
    /// ISO 4217, lower case.
    pub currency: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// Until when the seats are held.
    pub expires_at: DateTime<Utc>,
    /// When it was confirmed.
    pub confirmed_at: Option<DateTime<Utc>>,
    /// Until when it can be given up; null where it cannot.
    #[serde(default)]
    pub cancellable_until: Option<DateTime<Utc>>,
    /// The payment is disputed: the bank has the money until it decides.
    #[serde(default)]
    pub disputed: bool,
    /// Money on its way back of a closed order, where there is any; `refunds` tells more.
    pub refund: Option<RefundView>,
    /// All refunds, oldest first.
    #[serde(default)]
    pub refunds: Vec<OrderRefund>,
    /// The ticket was used.
    #[serde(skip)]
    used: bool,
}

impl OrderView {
    /// With `cancellableUntil`: so long before the show.
    #[must_use]
    pub fn cancellable(mut self, cutoff: chrono::Duration) -> Self {
        let can = match self.status {
            StatusView::PendingPayment | StatusView::Confirmed => !self.disputed && !self.used,
            StatusView::Expired | StatusView::Cancelled | StatusView::Refunded => false,
        };
        self.cancellable_until = (self.starts_at.checked_sub_signed(cutoff)).filter(|_| can);
        self
    }
}

impl From<&Order> for OrderView {
    fn from(order: &Order) -> Self {
        let row = &order.row;
        let state = match row.status() {
            Status::Refunded => SeatState::Refunded,
            Status::Pending
            | Status::Paying
            | Status::Closing(_)
            | Status::Confirmed
            | Status::Expired
            | Status::Cancelled => SeatState::Active,
        };
        Self {
            id: row.id,
            status: row.status().into(),
            status_reason: row.status_reason.clone(),
            performance_id: row.performance_id,
            schedule_id: row.schedule_id,
            performance_title: row.performance_title.clone(),
            starts_at: row.starts_at,
            seats: order
                .seats
                .iter()
                .map(|s| s.view(&row.currency, state))
                .collect(),
            amount: row.amount,
            currency: row.currency.clone(),
            created_at: row.created_at,
            expires_at: row.expires_at,
            confirmed_at: row.confirmed_at,
            cancellable_until: None,
            disputed: row.is_disputed(),
            refund: order.refund(),
            refunds: order.refunds.iter().map(OrderRefund::from).collect(),
            used: row.ticket_used_at.is_some(),
        }
    }
}

impl SeatRow {
    fn view(&self, currency: &str, state: SeatState) -> SeatView {
        SeatView {
            id: self.seat_id,
            section: self.section.clone(),
            row: self.row_label.clone(),
            number: self.seat_number,
            grade: self.grade.clone(),
            price: self.price,
            currency: currency.to_owned(),
            state,
        }
    }

    /// "Stalls, row C, seat 12".
    pub fn label(&self) -> String {
        format!(
            "{}, row {}, seat {}",
            self.section, self.row_label, self.seat_number
        )
    }
}

impl Order {
    /// The refund of a closed order, as it was shown before there were many.
    fn refund(&self) -> Option<RefundView> {
        if self.row.status().is_live() {
            return None;
        }
        let ours = |r: &&RefundRow| r.reason != super::refunds::MADE_AT_STRIPE;
        let last = (self.refunds.iter().rfind(ours)).or(self.refunds.last())?;
        Some(RefundView {
            status: match last.status.as_str() {
                "SUCCEEDED" => RefundStatus::Done,
                _ => RefundStatus::Requested,
            },
            amount: last.amount,
        })
    }

    /// The bytes of its seats in Redis.
    pub fn indices(&self) -> Vec<u32> {
        self.seats
            .iter()
            .map(|s| u32::try_from(s.seat_index).expect("an index of a catalogue"))
            .collect()
    }
}

/// An order about to be written.
#[derive(Clone, Debug)]
pub struct NewOrder {
    /// As it will be answered.
    pub view: OrderView,
    /// Its buyer.
    pub user_id: Uuid,
    /// Bytes of its seats in Redis, beside `view.seats`.
    pub indices: Vec<u32>,
    /// How long its hold lasts.
    pub hold_ttl_ms: i64,
    /// The place it uses up.
    pub place: (u32, u64),
}

impl NewOrder {
    /// An order for `indices` of `catalogue`; `None` when an index is not of it.
    pub fn new(
        id: Uuid,
        user_id: Uuid,
        catalogue: &Catalogue,
        indices: Vec<u32>,
        (deadline_ms, hold_ttl_ms): (i64, i64),
        place: (u32, u64),
    ) -> Option<Self> {
        let seats = indices
            .iter()
            .map(|index| catalogue.seat(*index))
            .collect::<Option<Vec<_>>>()?;
        let currency: String = (*catalogue.currency).into();
        let view = OrderView {
            id,
            status: StatusView::PendingPayment,
            status_reason: None,
            performance_id: catalogue.performance_id,
            schedule_id: catalogue.schedule_id,
            performance_title: catalogue.title.clone(),
            starts_at: catalogue.starts_at,
            amount: seats.iter().map(|s| s.price).sum(),
            seats: seats
                .into_iter()
                .map(|s| SeatView {
                    id: s.id,
                    section: (*s.section).into(),
                    row: (*s.row).into(),
                    number: s.number,
                    grade: (*s.grade).into(),
                    price: s.price,
                    currency: currency.clone(),
                    state: SeatState::Active,
                })
                .collect(),
            currency,
            // Postgres keeps microseconds; the answer must read the same later.
            created_at: DateTime::from_timestamp_micros(Utc::now().timestamp_micros())?,
            expires_at: DateTime::from_timestamp_millis(deadline_ms)?,
            confirmed_at: None,
            cancellable_until: None,
            disputed: false,
            refund: None,
            refunds: Vec::new(),
            used: false,
        };
        Some(Self {
            view,
            user_id,
            indices,
            hold_ttl_ms,
            place,
        })
    }
}
