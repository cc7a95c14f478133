//! Carries out what the machine says of one order: one transaction that locks
//! the row, asks the machine, writes the change with its events, and commits.
//! Redis is told afterwards ([`super::settle`]), never before.

use serde::Serialize;
use sqlx::{PgConnection, PgPool, Row as _};
use uuid::Uuid;

use super::{
    machine::{Capture, End, Happening, Reason, Refusal, Status, Step},
    refunds::{self, Disputed, MoneyBack},
    store::{self, Row},
};
use crate::{
    failpoint,
    platform::{
        db,
        events::{NewEvent, OutboxSignal, inbox, outbox::append},
    },
};

/// Under this name the reservations role keeps its inbox.
pub const CONSUMER: &str = "reservations";

/// A captured payment.
#[derive(Clone, Debug)]
pub struct Payment {
    /// The payment.
    pub id: Uuid,
    /// What was captured, in the currency's minor unit.
    pub amount: i64,
    /// ISO 4217, lower case.
    pub currency: String,
}

/// What happened, with what must be known of it.
#[derive(Clone, Debug)]
pub enum Cause {
    /// Payments asks to begin, for this buyer.
    PaymentBegun(Uuid),
    /// The deadline has passed.
    HoldLapsed,
    /// The buyer gives the order up; a confirmed one until so long before the show.
    BuyerCancels {
        /// The buyer.
        user: Uuid,
        /// How long before the show it is too late.
        cutoff: chrono::Duration,
    },
    /// Money was captured.
    Paid(Payment),
    /// A card was declined.
    PaymentFailed,
    /// The payment is cancelled, for good.
    PaymentCancelled,
    /// Payments has been silent for longer than this.
    WaitedEnough(chrono::Duration),
    /// Money of a payment went back, or a refund failed after all.
    MoneyBack(MoneyBack),
    /// The cardholder disputes the charge, or the dispute moved on.
    Disputed(Disputed),
}

/// Why a step could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// There is no such order (for this buyer).
    #[error("there is no such order")]
    NotFound,
    /// The machine says no.
    #[error("the order's status does not allow it")]
    Refused(Refusal),
    /// Too late before the show.
    #[error("too late before the show to cancel")]
    CutOff,
    /// The ticket was used.
    #[error("the ticket was used")]
    TicketUsed,
    /// The payment is disputed: a refund would give the money back twice.
    #[error("the payment is disputed")]
    Disputed,
    /// The database failed.
    #[error(transparent)]
    Database(sqlx::Error),
}

impl From<sqlx::Error> for StepError {
    fn from(error: sqlx::Error) -> Self {
        db::observe(&error);
        Self::Database(error)
    }
}

/// What was done.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The order as it was before.
    pub before: Row,
    /// What the machine said; [`Step::Reacquire`] and the buyer's
    /// [`Step::AskPayments`] are left to the caller, with nothing written.
    pub step: Step,
}

/// An order, as its events carry it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct OrderEvent<'a> {
    order_id: Uuid,
    user_id: Uuid,
    performance_id: Uuid,
    schedule_id: Uuid,
    seat_count: i32,
    amount: i64,
    currency: &'a str,
    place_epoch: Option<i64>,
    place_number: Option<i64>,
}

fn order_event(kind: &'static str, row: &Row) -> NewEvent {
    let data = OrderEvent {
        order_id: row.id,
        user_id: row.user_id,
        performance_id: row.performance_id,
        schedule_id: row.schedule_id,
        seat_count: row.seat_count,
        amount: row.amount,
        currency: &row.currency,
        place_epoch: row.place_epoch,
        place_number: row.place_number,
    };
    NewEvent::new(kind, row.id, &data)
}

/// Applies `cause` to an order; with `event`, at most once for that event.
///
/// # Errors
/// As [`StepError`] says. Nothing is written then.
pub async fn apply(
    pool: &PgPool,
    signal: &OutboxSignal,
    order: Uuid,
    cause: &Cause,
    event: Option<Uuid>,
) -> Result<Applied, StepError> {
    let mut tx = pool.begin().await?;
    let Some(row) = store::lock(&mut tx, order).await? else {
        return Err(StepError::NotFound);
    };
    if let Some(event) = event
        && !inbox::first_time(&mut tx, CONSUMER, event).await?
    {
        return Ok(Applied {
            before: row,
            step: Step::Same,
        });
    }
    let news = match cause {
        Cause::MoneyBack(news) => refunds::take(&mut tx, row.id, news).await?,
        Cause::Disputed(news) => refunds::take_dispute(&mut tx, &row, news).await?,
        _ => true,
    };
    let step = match news {
        true => decide(&mut tx, &row, cause).await?,
        false => Step::Same,
    };
    match step {
        Step::Reacquire | Step::AskPayments(End::Cancelled) => {
            return Ok(Applied { before: row, step });
        }
        Step::Refuse(refusal) => return Err(StepError::Refused(refusal)),
        Step::Same => {}
        Step::To(status) => to(&mut tx, &row, status, cause).await?,
        Step::AskPayments(End::Expired) => ask_payments(&mut tx, &row).await?,
        Step::Confirm => confirm(&mut tx, &row, cause).await?,
        Step::Refund(reason) => refund_capture(&mut tx, &row, cause, reason).await?,
        Step::GiveBack => give_back(&mut tx, &row).await?,
    }
    if let (Cause::MoneyBack(back), true) = (cause, news) {
        after_money_back(&mut tx, &row, step, back).await?;
    }
    failpoint!("orders.step_before_commit");
    tx.commit().await?;
    failpoint!("orders.step_after_commit");
    signal.wake();
    if step != Step::Same {
        tracing::debug!(order.id = %row.id, order.was = ?row.status(), step = ?step, "order step");
    }
    Ok(Applied { before: row, step })
}

/// Asks the machine, having looked at what it cannot see: clocks, owners, payments.
async fn decide(conn: &mut PgConnection, row: &Row, cause: &Cause) -> Result<Step, StepError> {
    let status = row.status();
    let happening = match cause {
        Cause::PaymentBegun(user) => {
            if *user != row.user_id {
                return Err(StepError::NotFound);
            }
            let over = row.expires_at <= row.now || row.starts_at <= row.now;
            if status == Status::Pending && over {
                return Err(StepError::Refused(Refusal::HoldEnded));
            }
            Happening::PaymentBegun
        }
        // Postgres has the clock that counts; a bell that rings early changes nothing.
        Cause::HoldLapsed if row.expires_at > row.now => return Ok(Step::Same),
        Cause::HoldLapsed => Happening::HoldLapsed,
        Cause::BuyerCancels { user, cutoff } => {
            if *user != row.user_id {
                return Err(StepError::NotFound);
            }
            if status == Status::Confirmed {
                if row.is_disputed() {
                    return Err(StepError::Disputed);
                }
                if row.ticket_used_at.is_some() {
                    return Err(StepError::TicketUsed);
                }
                if row.now + *cutoff >= row.starts_at {
                    return Err(StepError::CutOff);
                }
            }
            Happening::BuyerCancels
        }
        Cause::Paid(payment) => Happening::Paid(capture(conn, row, payment).await?),
        Cause::PaymentFailed => Happening::PaymentFailed,
        Cause::PaymentCancelled => Happening::PaymentCancelled,
        Cause::WaitedEnough(bound) => match row.closing_at {
            Some(since) if since + *bound <= row.now => Happening::WaitedEnough,
            _ => return Ok(Step::Same),
        },
        // Another payment's refund (it was paid twice) is not the order's.
        Cause::MoneyBack(back) if row.payment_id.is_some_and(|p| p != back.payment) => {
            return Ok(Step::Same);
        }
        Cause::MoneyBack(back) if back.full => Happening::RefundedInFull,
        Cause::MoneyBack(_) => Happening::RefundedInPart,
        Cause::Disputed(news) if news.is_lost() => Happening::DisputeLost,
        Cause::Disputed(_) => return Ok(Step::Same),
    };
    Ok(status.on(happening))
}

async fn capture(
    conn: &mut PgConnection,
    row: &Row,
    payment: &Payment,
) -> Result<Capture, sqlx::Error> {
    if row.payment_id == Some(payment.id) {
        return Ok(Capture::Known);
    }
    // Asked back by us, or all of it back by others. A part that the dashboard gave back says
    // nothing about whether the order knows of its payment.
    let refunded: bool = sqlx::query_scalar(
        "select exists (select 1 from refunds where payment_id = $1 and reason <> $2)
             or exists (select 1 from refunds where payment_id = $1 and status = 'SUCCEEDED' and amount >= $3)",
    )
    .bind(payment.id)
    .bind(refunds::MADE_AT_STRIPE)
    .bind(payment.amount)
    .fetch_one(conn)
    .await?;
    Ok(if refunded {
        Capture::Known
    } else if row.dispute_state.as_deref() == Some("LOST") {
        Capture::Lost
    } else if row.payment_id.is_some() {
        Capture::Again
    } else if payment.amount != row.amount || !payment.currency.eq_ignore_ascii_case(&row.currency)
    {
        Capture::Wrong
    } else {
        Capture::First
    })
}

async fn to(
    conn: &mut PgConnection,
    row: &Row,
    status: Status,
    cause: &Cause,
) -> Result<(), sqlx::Error> {
    if status == Status::Paying {
        // The one renewal: the buyer has a whole hold's time to pay, though never beyond the beginning of the show.
        sqlx::query(
            "update orders set state = 'PAYING', version = version + 1,
                 expires_at = greatest(expires_at,
                     least(starts_at, now() + make_interval(secs => hold_ttl_ms / 1000.0)))
             where id = $1",
        )
        .bind(row.id)
        .execute(conn)
        .await?;
        return Ok(());
    }
    let reason = match (status, cause) {
        (Status::Expired, Cause::WaitedEnough(_)) => Some("PAYMENT_UNANSWERED"),
        (Status::Expired, _) => Some("HOLD_EXPIRED"),
        (Status::Cancelled, Cause::Disputed(_) | Cause::Paid(_)) => Some("DISPUTE_LOST"),
        (Status::Cancelled, Cause::BuyerCancels { .. }) => Some("CANCELLED_BY_BUYER"),
        (Status::Cancelled, _) => Some("PAYMENT_CANCELLED"),
        (Status::Refunded, _) => Some("REFUNDED_BY_SELLER"),
        _ => None,
    };
    close(conn, row, status, reason).await?;
    let kind = match status {
        Status::Expired => "order.expired",
        // Consumers that count sales count back those that they had counted.
        Status::Cancelled | Status::Refunded if row.status() == Status::Confirmed => {
            "order.refunded"
        }
        Status::Cancelled => "order.cancelled",
        Status::Refunded => "order.cancelled",
        Status::Pending | Status::Paying | Status::Closing(_) | Status::Confirmed => return Ok(()),
    };
    append(conn, &order_event(kind, row)).await
}

/// The state and the seats, together.
async fn close(
    conn: &mut PgConnection,
    row: &Row,
    status: Status,
    reason: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update orders set state = $2, closing = null, version = version + 1, closed_at = now(),
             status_reason = coalesce($3, status_reason)
         where id = $1",
    )
    .bind(row.id)
    .bind(status.to_columns().0)
    .bind(reason)
    .execute(&mut *conn)
    .await?;
    sqlx::query("update order_seats set live = false where order_id = $1")
        .bind(row.id)
        .execute(conn)
        .await?;
    Ok(())
}

async fn ask_payments(conn: &mut PgConnection, row: &Row) -> Result<(), sqlx::Error> {
    sqlx::query(
        "update orders set closing = 'EXPIRED', closing_at = now(), version = version + 1 where id = $1",
    )
    .bind(row.id)
    .execute(&mut *conn)
    .await?;
    let data = serde_json::json!({ "orderId": row.id, "reason": "HOLD_EXPIRED" });
    append(
        conn,
        &NewEvent::new("payment.cancel.requested", row.id, &data),
    )
    .await
}

async fn confirm(conn: &mut PgConnection, row: &Row, cause: &Cause) -> Result<(), sqlx::Error> {
    let Cause::Paid(payment) = cause else {
        return Ok(());
    };
    sqlx::query(
        "update orders set state = 'CONFIRMED', closing = null, version = version + 1, payment_id = $2,
             confirmed_at = now(), closed_at = null, status_reason = null
         where id = $1",
    )
    .bind(row.id)
    .bind(payment.id)
    .execute(&mut *conn)
    .await?;
    if !row.status().is_live() {
        // The unique index decides whether an expired order gets its seats back.
        sqlx::query("update order_seats set live = true where order_id = $1")
            .bind(row.id)
            .execute(&mut *conn)
            .await?;
    }
    append(conn, &order_event("order.confirmed", row)).await
}

async fn refund_capture(
    conn: &mut PgConnection,
    row: &Row,
    cause: &Cause,
    reason: Reason,
) -> Result<(), sqlx::Error> {
    let Cause::Paid(payment) = cause else {
        return Ok(());
    };
    match row.status() {
        status @ (Status::Pending | Status::Paying | Status::Closing(_)) => {
            debug_assert!(status.is_live(), "an open order keeps its seats");
            close(conn, row, Status::Cancelled, Some(reason.code())).await?;
            append(conn, &order_event("order.cancelled", row)).await?;
        }
        Status::Expired | Status::Cancelled => note_reason(conn, row, reason.code()).await?,
        Status::Confirmed | Status::Refunded => {}
    }
    refunds::request(conn, row.id, payment.id, payment.amount, reason.code()).await
}

async fn note_reason(conn: &mut PgConnection, row: &Row, reason: &str) -> Result<(), sqlx::Error> {
    sqlx::query("update orders set status_reason = $2 where id = $1")
        .bind(row.id)
        .bind(reason)
        .execute(conn)
        .await?;
    Ok(())
}

async fn give_back(conn: &mut PgConnection, row: &Row) -> Result<(), sqlx::Error> {
    close(conn, row, Status::Refunded, Some("CANCELLED_BY_BUYER")).await?;
    if let Some(payment) = row.payment_id {
        refunds::request(conn, row.id, payment, row.amount, "CANCELLED_BY_BUYER").await?;
    }
    append(conn, &order_event("order.refunded", row)).await
}

/// What a change of the refunds means beyond the order's own status.
async fn after_money_back(
    conn: &mut PgConnection,
    row: &Row,
    step: Step,
    back: &MoneyBack,
) -> Result<(), sqlx::Error> {
    refunds::note_full(conn, row.id, back).await?;
    let now = match step {
        Step::To(status) => status,
        _ => row.status(),
    };
    if now.is_live() {
        return Ok(());
    }
    refunds::owe_what_failed(conn, row, back).await
}

/// Begins to take an expired order's seats again: its version grows, so that
/// whatever is still under way for its old hold changes nothing in Redis.
///
/// # Errors
/// When the database fails.
pub async fn begin_reacquire(pool: &PgPool, order: Uuid) -> sqlx::Result<Option<i32>> {
    let row = sqlx::query(
        "update orders set version = version + 1 where id = $1 and state = 'EXPIRED'
         returning version::int as version",
    )
    .bind(order)
    .fetch_optional(pool)
    .await?;
    row.map(|r| r.try_get("version")).transpose()
}

/// Ends it: confirmed when Redis gave the seats and Postgres agrees, else the
/// money goes back. `lost` says why there is no chance any more.
///
/// # Errors
/// As [`StepError`] says.
pub async fn end_reacquire(
    pool: &PgPool,
    signal: &OutboxSignal,
    order: Uuid,
    payment: &Payment,
    event: Uuid,
    lost: Option<&'static str>,
) -> Result<(), StepError> {
    let mut tx = pool.begin().await?;
    let Some(row) = store::lock(&mut tx, order).await? else {
        return Err(StepError::NotFound);
    };
    if !inbox::first_time(&mut tx, CONSUMER, event).await? {
        return Ok(());
    }
    let cause = Cause::Paid(payment.clone());
    if decide(&mut tx, &row, &cause).await? != Step::Reacquire {
        // Another instance was faster; its step stands.
        return Ok(());
    }
    match lost {
        None => confirm(&mut tx, &row, &cause).await?,
        Some(reason) => {
            note_reason(&mut tx, &row, reason).await?;
            refunds::request(&mut tx, row.id, payment.id, payment.amount, reason).await?;
        }
    }
    tx.commit().await?;
    signal.wake();
    tracing::info!(order.id = %order, order.refund = lost, "paid after the hold had ended");
    Ok(())
}
