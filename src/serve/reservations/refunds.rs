//! What goes back of an order's money: asked of payments once, and shown as payments tells of it.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::store::Row;
use crate::platform::events::{NewEvent, outbox::append};

/// The reason of a refund that was made in Stripe's dashboard.
pub const MADE_AT_STRIPE: &str = "REFUNDED_AT_STRIPE";

/// `payment.refunded`: the refunds of a payment as they stand.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MoneyBack {
    /// The payment.
    #[serde(rename = "paymentId")]
    pub payment: Uuid,
    /// How much is back, all told; it may have fallen.
    pub amount: i64,
    /// Is that all of it?
    pub full: bool,
    /// What was taken.
    #[serde(default)]
    pub captured: Option<i64>,
    /// What is older than the newest known changes nothing. Absent in events of before 2026-12.
    #[serde(default)]
    pub version: Option<i64>,
    /// Each of them.
    #[serde(default)]
    pub refunds: Vec<RefundNews>,
}

/// One refund, as payments tells of it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RefundNews {
    refund_id: Uuid,
    status: Known,
    amount: i64,
    reason: String,
    created_at: DateTime<Utc>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Known {
    Pending,
    Succeeded,
    Failed,
    Covered,
}

impl Known {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Covered => "COVERED",
        }
    }
}

/// Takes the news over: false where newer is known.
///
/// # Errors
/// When the database fails.
pub async fn take(conn: &mut PgConnection, order: Uuid, news: &MoneyBack) -> sqlx::Result<bool> {
    let Some(version) = news.version else {
        return Ok(true);
    };
    let newer = sqlx::query(
        "insert into payment_refunds as known (payment_id, order_id, version, refunded)
         values ($1, $2, $3, $4)
         on conflict (payment_id) do update set version = excluded.version,
             refunded = excluded.refunded
         where known.version < excluded.version",
    )
    .bind(news.payment)
    .bind(order)
    .bind(version)
    .bind(news.amount)
    .execute(&mut *conn)
    .await?;
    if newer.rows_affected() == 0 {
        return Ok(false);
    }
    for one in &news.refunds {
        let back = matches!(one.status, Known::Succeeded | Known::Covered);
        sqlx::query(
            "insert into refunds (id, payment_id, order_id, amount, reason, status, requested_at, settled_at)
             values ($1, $2, $3, $4, $5, $6, $7, case when $8 then now() end)
             on conflict (id) do update set status = excluded.status, amount = excluded.amount,
                 settled_at = case when $8 then coalesce(refunds.settled_at, now()) end",
        )
        .bind(one.refund_id)
        .bind(news.payment)
        .bind(order)
        .bind(one.amount)
        .bind(&one.reason)
        .bind(one.status.as_str())
        .bind(one.created_at)
        .bind(back)
        .execute(&mut *conn)
        .await?;
    }
    if !news.refunds.is_empty() {
        flag(conn, order).await?;
    }
    Ok(true)
}

/// The order has refunds to read.
async fn flag(conn: &mut PgConnection, order: Uuid) -> sqlx::Result<()> {
    sqlx::query("update orders set has_refunds = true where id = $1 and not has_refunds")
        .bind(order)
        .execute(conn)
        .await?;
    Ok(())
}

/// Asks payments to give a capture back: once a payment, whoever asks and however often. The
/// order's row is locked.
///
/// # Errors
/// When the database fails.
pub async fn request(
    conn: &mut PgConnection,
    order: Uuid,
    payment: Uuid,
    amount: i64,
    reason: &str,
) -> sqlx::Result<()> {
    // Of an order with nothing to pay there is nothing to give back.
    if amount == 0 {
        return Ok(());
    }
    let asked: bool = sqlx::query_scalar(
        "select exists (select 1 from refunds where payment_id = $1 and reason <> $2)",
    )
    .bind(payment)
    .bind(MADE_AT_STRIPE)
    .fetch_one(&mut *conn)
    .await?;
    if asked {
        return Ok(());
    }
    ask(conn, order, payment, amount, reason).await
}

async fn ask(
    conn: &mut PgConnection,
    order: Uuid,
    payment: Uuid,
    amount: i64,
    reason: &str,
) -> sqlx::Result<()> {
    let id = Uuid::now_v7();
    sqlx::query(
        "insert into refunds (id, payment_id, order_id, amount, reason) values ($1, $2, $3, $4, $5)",
    )
    .bind(id)
    .bind(payment)
    .bind(order)
    .bind(amount)
    .bind(reason)
    .execute(&mut *conn)
    .await?;
    flag(conn, order).await?;
    let data = serde_json::json!({
        "refundId": id, "orderId": order, "paymentId": payment, "amount": amount, "reason": reason,
    });
    append(conn, &NewEvent::new("refund.requested", order, &data)).await
}

/// A refund made at Stripe failed after all, and the order is closed: what it gave back is ours to
/// give back now. Failed refunds of ours are owed by payments already.
///
/// # Errors
/// When the database fails.
pub async fn owe_what_failed(
    conn: &mut PgConnection,
    row: &Row,
    news: &MoneyBack,
) -> sqlx::Result<()> {
    let failed = |one: &RefundNews| one.status == Known::Failed && one.reason == MADE_AT_STRIPE;
    let Some(captured) = news.captured.filter(|_| news.refunds.iter().any(failed)) else {
        return Ok(());
    };
    if row.dispute_state.as_deref() == Some("LOST") {
        return Ok(());
    }
    let covered: i64 = sqlx::query_scalar(
        "select coalesce(sum(amount), 0)::bigint from refunds
         where payment_id = $1 and (status in ('PENDING', 'SUCCEEDED')
             or status = 'FAILED' and reason <> $2)",
    )
    .bind(news.payment)
    .bind(MADE_AT_STRIPE)
    .fetch_one(&mut *conn)
    .await?;
    if covered >= captured {
        return Ok(());
    }
    ask(
        conn,
        row.id,
        news.payment,
        captured - covered,
        "REFUND_FAILED",
    )
    .await
}

/// Notes that money is back, told without a version: by payments of before 2026-12.
///
/// # Errors
/// When the database fails.
pub async fn note_full(conn: &mut PgConnection, order: Uuid, news: &MoneyBack) -> sqlx::Result<()> {
    if news.version.is_some() || !news.full {
        return Ok(());
    }
    let known = sqlx::query(
        "update refunds set settled_at = coalesce(settled_at, now()), status = 'SUCCEEDED'
         where payment_id = $1",
    )
    .bind(news.payment)
    .execute(&mut *conn)
    .await?;
    if known.rows_affected() == 0 {
        sqlx::query(
            "insert into refunds (id, payment_id, order_id, amount, reason, status, settled_at)
             values ($1, $1, $2, $3, $4, 'SUCCEEDED', now()) on conflict (id) do nothing",
        )
        .bind(news.payment)
        .bind(order)
        .bind(news.amount)
        .bind(MADE_AT_STRIPE)
        .execute(&mut *conn)
        .await?;
    }
    flag(conn, order).await
}

/// `payment.disputed`: what the disputes of a payment come to.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Disputed {
    /// The payment.
    #[serde(rename = "paymentId")]
    pub payment: Uuid,
    /// `OPEN`, `LOST`, `PARTLY_LOST`, `INQUIRY`, `WON` or `CLOSED`.
    #[serde(default = "open")]
    pub state: String,
    /// What is older than the newest known changes nothing. Absent in events of before 2026-12.
    #[serde(default)]
    pub version: Option<i64>,
}

fn open() -> String {
    "OPEN".to_owned()
}

impl Disputed {
    /// The bank has given all of the money back for good.
    pub fn is_lost(&self) -> bool {
        self.state == "LOST"
    }
}

/// Takes the dispute's news over: false where newer is known, or it is about another payment.
///
/// # Errors
/// When the database fails.
pub async fn take_dispute(
    conn: &mut PgConnection,
    row: &Row,
    news: &Disputed,
) -> sqlx::Result<bool> {
    if row
        .payment_id
        .is_some_and(|payment| payment != news.payment)
    {
        return Ok(false);
    }
    let newer = sqlx::query(
        "update orders set dispute_state = $2, dispute_version = coalesce($3, dispute_version)
         where id = $1 and (dispute_version < $3 or $3 is null and dispute_state is null)",
    )
    .bind(row.id)
    .bind(&news.state)
    .bind(news.version)
    .execute(conn)
    .await?;
    Ok(newer.rows_affected() == 1)
}
