//! Payments in Postgres. Every change of state is a compare-and-set under the row's lock, in
//! one transaction with what is said about it.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::{PgConnection, PgPool, Postgres};
use uuid::Uuid;

use super::machine::PaymentState;
use super::stripe::{Intent, NewIntent};
use super::worker::Look;
use crate::platform::{
    alarms::{self, Alarm},
    events::{NewEvent, outbox},
};

/// A payment as stored.
#[derive(Clone, Debug)]
pub struct Payment {
    pub id: Uuid,
    pub order_id: Uuid,
    pub user_id: Option<Uuid>,
    pub performance_id: Option<Uuid>,
    pub state: State,
    pub amount: i64,
    pub currency: String,
    pub refunded_amount: i64,
    pub description: String,
    pub attempt: i32,
    pub attempted_at: DateTime<Utc>,
    pub intent_id: Option<String>,
    pub client_secret: Option<String>,
    pub failure_code: Option<String>,
    pub failure_message: Option<String>,
    pub cancel_requested_at: Option<DateTime<Utc>>,
    pub cleanup: bool,
    pub created_at: DateTime<Utc>,
    pub succeeded_at: Option<DateTime<Utc>>,
    pub checks: i32,
}

crate::from_row!(Payment {
    id,
    order_id,
    user_id,
    performance_id,
    state,
    amount,
    currency,
    refunded_amount,
    description,
    attempt,
    attempted_at,
    intent_id,
    client_secret,
    failure_code,
    failure_message,
    cancel_requested_at,
    cleanup,
    created_at,
    succeeded_at,
    checks
});

/// [`PaymentState`] as sqlx reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(pub PaymentState);

impl sqlx::Type<Postgres> for State {
    fn type_info() -> PgTypeInfo {
        <str as sqlx::Type<Postgres>>::type_info()
    }

    fn compatible(ty: &PgTypeInfo) -> bool {
        <str as sqlx::Type<Postgres>>::compatible(ty)
    }
}

impl<'r> sqlx::Decode<'r, Postgres> for State {
    fn decode(value: PgValueRef<'r>) -> Result<Self, sqlx::error::BoxDynError> {
        Ok(Self(value.as_str()?.parse()?))
    }
}

impl Payment {
    pub fn state(&self) -> PaymentState {
        self.state.0
    }

    /// What Stripe is asked to make; the same on every try of this attempt.
    pub fn new_intent(&self) -> NewIntent {
        NewIntent {
            payment_id: self.id,
            order_id: self.order_id,
            user_id: self.user_id.unwrap_or_default(),
            performance_id: self.performance_id,
            amount: self.amount,
            currency: self.currency.clone(),
            description: self.description.clone(),
            attempt: self.attempt,
        }
    }

    /// `payment.succeeded` and its like.
    pub fn said(&self, kind: &'static str) -> NewEvent {
        NewEvent::new(
            kind,
            self.order_id,
            &json!({
                "paymentId": self.id,
                "orderId": self.order_id,
                "userId": self.user_id,
                "amount": self.amount,
                "currency": self.currency,
                "paymentIntentId": self.intent_id,
                "failureCode": self.failure_code,
            }),
        )
    }

    /// Final: nothing can be paid for this order any more.
    pub fn said_cancelled(&self) -> NewEvent {
        // A tombstone is no payment that anybody could look up.
        let payment_id = self.user_id.map(|_| self.id);
        NewEvent::new(
            "payment.cancelled",
            self.order_id,
            &json!({"paymentId": payment_id, "orderId": self.order_id}),
        )
    }

    pub fn said_refunded(&self, amount: i64) -> NewEvent {
        NewEvent::new(
            "payment.refunded",
            self.order_id,
            &json!({
                "paymentId": self.id,
                "orderId": self.order_id,
                "amount": amount,
                "full": amount >= self.amount,
            }),
        )
    }
}

/// A payment about to be attempted.
pub struct NewPayment {
    pub id: Uuid,
    pub order_id: Uuid,
    pub user_id: Uuid,
    pub performance_id: Uuid,
    pub amount: i64,
    pub currency: String,
    pub description: String,
    pub check_after_s: f64,
}

pub async fn by_id(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as("select * from payments where id = $1")
        .bind(id)
        .fetch_optional(conn)
        .await
}

pub async fn by_order(conn: &mut PgConnection, order_id: Uuid) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as("select * from payments where order_id = $1")
        .bind(order_id)
        .fetch_optional(conn)
        .await
}

pub async fn by_intent(pool: &PgPool, intent_id: &str) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as("select * from payments where intent_id = $1")
        .bind(intent_id)
        .fetch_optional(pool)
        .await
}

pub async fn lock(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as("select * from payments where id = $1 for update")
        .bind(id)
        .fetch_optional(conn)
        .await
}

pub async fn lock_by_order(
    conn: &mut PgConnection,
    order_id: Uuid,
) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as("select * from payments where order_id = $1 for update")
        .bind(order_id)
        .fetch_optional(conn)
        .await
}

/// Notes the attempt before Stripe is called. The order's payment, whoever made it first:
/// one of an earlier request, or the tombstone of a closed order.
pub async fn note_attempt(conn: &mut PgConnection, new: &NewPayment) -> sqlx::Result<Payment> {
    sqlx::query(
        "insert into payments (id, order_id, user_id, performance_id, state, amount, currency,
                               description, next_check_at)
         values ($1, $2, $3, $4, 'CREATING', $5, $6, $7, now() + make_interval(secs => $8))
         on conflict on constraint one_payment_an_order do nothing",
    )
    .bind(new.id)
    .bind(new.order_id)
    .bind(new.user_id)
    .bind(new.performance_id)
    .bind(new.amount)
    .bind(&new.currency)
    .bind(&new.description)
    .bind(new.check_after_s)
    .execute(&mut *conn)
    .await?;
    sqlx::query_as("select * from payments where order_id = $1")
        .bind(new.order_id)
        .fetch_one(conn)
        .await
}

/// The payment of an order that costs nothing: it has succeeded, which is said once. The order's payment, whoever made it.
pub async fn note_free(conn: &mut PgConnection, new: &NewPayment) -> sqlx::Result<Payment> {
    let made = sqlx::query(
        "insert into payments (id, order_id, user_id, performance_id, state, amount, currency,
                               description, succeeded_at, next_check_at)
         values ($1, $2, $3, $4, 'SUCCEEDED', 0, $5, $6, now(), 'infinity')
         on conflict on constraint one_payment_an_order do update set state = 'SUCCEEDED', succeeded_at = now(),
             next_check_at = 'infinity', updated_at = now()
             where payments.state = 'CREATING' and payments.amount = 0",
    )
    .bind(new.id)
    .bind(new.order_id)
    .bind(new.user_id)
    .bind(new.performance_id)
    .bind(&new.currency)
    .bind(&new.description)
    .execute(&mut *conn)
    .await?;
    let payment = by_order(conn, new.order_id)
        .await?
        .ok_or(sqlx::Error::RowNotFound)?;
    if made.rows_affected() == 1 {
        say(conn, &payment.said("payment.succeeded")).await?;
    }
    Ok(payment)
}

/// Makes sure that nobody begins to pay for this order: true when nobody had.
pub async fn entomb(conn: &mut PgConnection, order_id: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "insert into payments (id, order_id, state, amount, currency, next_check_at)
         values ($1, $2, 'CANCELLED', 0, '', 'infinity')
         on conflict on constraint one_payment_an_order do nothing",
    )
    .bind(Uuid::now_v7())
    .bind(order_id)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// This attempt can lead nowhere any more: the next one is another, under another key. `None`
/// when it was moved on already.
pub async fn next_attempt(pool: &PgPool, payment: &Payment) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(
        "update payments set attempt = attempt + 1, attempted_at = now(), updated_at = now()
         where id = $1 and attempt = $2 and state = 'CREATING' and intent_id is null
         returning *",
    )
    .bind(payment.id)
    .bind(payment.attempt)
    .fetch_optional(pool)
    .await
}

/// Writes what a look at Stripe showed, under the row's lock.
pub async fn set_state(
    conn: &mut PgConnection,
    payment: &Payment,
    state: PaymentState,
    intent: &Intent,
) -> sqlx::Result<Payment> {
    sqlx::query_as(
        "update payments set
             state = $2,
             intent_id = coalesce(intent_id, $3),
             client_secret = coalesce($4, client_secret),
             failure_code = $5, failure_message = $6,
             succeeded_at = case when $2 = 'SUCCEEDED' then coalesce(succeeded_at, now()) end,
             cleanup = cleanup and $2 = 'CANCELLED',
             updated_at = now()
         where id = $1 returning *",
    )
    .bind(payment.id)
    .bind(state.as_str())
    .bind(&intent.id)
    .bind(&intent.client_secret)
    .bind(&intent.failure_code)
    .bind(&intent.failure_message)
    .fetch_one(conn)
    .await
}

/// An intent came to light for a payment that was given up meanwhile: remember to cancel it.
pub async fn leave_to_cleanup(
    conn: &mut PgConnection,
    payment: &Payment,
    intent_id: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "update payments set intent_id = coalesce(intent_id, $2), cleanup = true,
             next_check_at = now(), updated_at = now()
         where id = $1 and state = 'CANCELLED'",
    )
    .bind(payment.id)
    .bind(intent_id)
    .execute(conn)
    .await?;
    Ok(())
}

/// Nothing is left at Stripe.
pub async fn cleaned(pool: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query("update payments set cleanup = false, next_check_at = 'infinity' where id = $1")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(())
}

/// The order is being closed. `at_once`: nobody can have seen the intent, so it is final here.
pub async fn request_cancel(
    conn: &mut PgConnection,
    id: Uuid,
    at_once: bool,
) -> sqlx::Result<Payment> {
    sqlx::query_as(
        "update payments set
             cancel_requested_at = coalesce(cancel_requested_at, now()),
             state = case when $2 then 'CANCELLED' else state end,
             cleanup = cleanup or $2,
             next_check_at = now(), checks = 0, updated_at = now()
         where id = $1 returning *",
    )
    .bind(id)
    .bind(at_once)
    .fetch_one(conn)
    .await
}

/// Takes payments whose look at Stripe is due, for `lease_s`; whoever dies meanwhile leaves
/// them to the next.
pub async fn claim_due(pool: &PgPool, limit: i64, lease_s: f64) -> sqlx::Result<Vec<Look>> {
    sqlx::query_as(
        "update payments set next_check_at = now() + make_interval(secs => $2), checks = checks + 1
         where id in (
             select id from payments
             where (state in ('CREATING', 'REQUIRES_PAYMENT', 'FAILED', 'PROCESSING') or cleanup)
               and next_check_at <= now()
             order by next_check_at limit $1 for update skip locked)
         returning *, next_check_at as leased_until",
    )
    .bind(limit)
    .bind(lease_s)
    .fetch_all(pool)
    .await
}

/// When to look next, unless the look leased until then is somebody else's by now.
pub async fn check_again_in(
    pool: &PgPool,
    id: Uuid,
    leased_until: DateTime<Utc>,
    seconds: f64,
) -> sqlx::Result<()> {
    sqlx::query(
        "update payments set next_check_at = now() + make_interval(secs => $3)
         where id = $1 and next_check_at = $2",
    )
    .bind(id)
    .bind(leased_until)
    .bind(seconds)
    .execute(pool)
    .await?;
    Ok(())
}

/// Something about this payment that a person must look at; false when it is known already.
pub async fn alarm(
    conn: &mut PgConnection,
    kind: &'static str,
    payment: &Payment,
    detail: &str,
) -> sqlx::Result<bool> {
    let key = payment.id.to_string();
    alarms::raise_once(conn, &about(kind, &key, payment, detail)).await
}

/// An alarm about this payment.
pub fn about<'a>(
    kind: &'static str,
    key: &'a str,
    payment: &Payment,
    detail: &'a str,
) -> Alarm<'a> {
    Alarm {
        kind,
        key,
        order_id: Some(payment.order_id),
        payment_id: Some(payment.id),
        detail,
    }
}

/// Says what happened, in the transaction of it.
pub async fn say(conn: &mut PgConnection, event: &NewEvent) -> sqlx::Result<()> {
    outbox::append(conn, event).await
}
