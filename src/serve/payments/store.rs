//! Payments in Postgres. Every change of state is a compare-and-set under the row's lock, in
//! one transaction with what is said about it.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::postgres::{PgTypeInfo, PgValueRef};
use sqlx::types::Json;
use sqlx::{PgConnection, PgPool, Postgres};
use uuid::Uuid;

use std::collections::BTreeMap;

use super::machine::{PaymentState, Seen};
use super::stripe::{Intent, NewIntent};
use super::worker::Look;
use super::{disputes, refunds};
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
    /// What Stripe took, where it may be another amount or currency than was asked for.
    pub captured_amount: Option<i64>,
    pub captured_currency: Option<String>,
    pub refund_version: i64,
    pub dispute_state: Option<String>,
    /// Grows with each change that is told of the disputes.
    pub dispute_version: i64,
    /// What the intent's metadata says beyond the ids above.
    pub metadata: Option<Json<BTreeMap<String, String>>>,
    /// Since when reservations is known to have accounted for this capture.
    pub accounted_at: Option<DateTime<Utc>>,
    /// How often it was asked in vain.
    pub account_tries: i32,
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
    checks,
    captured_amount,
    captured_currency,
    refund_version,
    dispute_state,
    dispute_version,
    metadata,
    accounted_at,
    account_tries
});

/// The columns of a [`Payment`], by name and of a fixed type: neither a new column nor a wider
/// one changes what a prepared statement returns.
macro_rules! payment_columns {
    () => {
        "id, order_id, user_id, performance_id, state, amount::bigint as amount, currency, \
         refunded_amount::bigint as refunded_amount, description, attempt::int as attempt, \
         attempted_at, intent_id, client_secret, failure_code, failure_message, \
         cancel_requested_at, cleanup, created_at, succeeded_at, checks::int as checks, \
         captured_amount, captured_currency, refund_version, dispute_state, dispute_version, \
         metadata, accounted_at, account_tries::int as account_tries"
    };
}
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

    /// What Stripe took, or would take.
    pub fn captured(&self) -> i64 {
        self.captured_amount.unwrap_or(self.amount)
    }

    /// The currency of [`Self::captured`].
    pub fn captured_currency(&self) -> &str {
        self.captured_currency.as_deref().unwrap_or(&self.currency)
    }

    /// Stripe refused to make its intent: the code that it gave.
    pub fn refused(&self) -> Option<&str> {
        let never_made = self.state() == PaymentState::Cancelled && self.intent_id.is_none();
        self.failure_code.as_deref().filter(|_| never_made)
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
            extra: self.metadata.clone().map(|Json(m)| m).unwrap_or_default(),
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

    /// `payment.refunded`: the refunds as they stand. The amount may have fallen; the version
    /// orders the news.
    pub fn said_refunded(&self, refunds: serde_json::Value) -> NewEvent {
        let (amount, captured) = (self.refunded_amount, self.captured());
        NewEvent::new(
            "payment.refunded",
            self.order_id,
            &json!({
                "paymentId": self.id,
                "orderId": self.order_id,
                "amount": amount,
                "captured": captured,
                "full": captured > 0 && amount >= captured,
                "version": self.refund_version,
                "refunds": refunds,
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
    pub metadata: BTreeMap<String, String>,
    pub check_after_s: f64,
}

pub async fn by_id(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments where id = $1"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

pub async fn by_order(conn: &mut PgConnection, order_id: Uuid) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments where order_id = $1"
    ))
    .bind(order_id)
    .fetch_optional(conn)
    .await
}

pub async fn by_intent(pool: &PgPool, intent_id: &str) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments where intent_id = $1"
    ))
    .bind(intent_id)
    .fetch_optional(pool)
    .await
}

pub async fn lock(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments where id = $1 for update"
    ))
    .bind(id)
    .fetch_optional(conn)
    .await
}

pub async fn lock_by_order(
    conn: &mut PgConnection,
    order_id: Uuid,
) -> sqlx::Result<Option<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments where order_id = $1 for update"
    ))
    .bind(order_id)
    .fetch_optional(conn)
    .await
}

/// Notes the attempt before Stripe is called. The order's payment, whoever made it first:
/// one of an earlier request, or the tombstone of a closed order. True when it was made now: then
/// the caller has the lease of [`lease_create`].
pub async fn note_attempt(
    conn: &mut PgConnection,
    new: &NewPayment,
) -> sqlx::Result<(Payment, bool)> {
    let made = sqlx::query(
        "insert into payments (id, order_id, user_id, performance_id, state, amount, currency,
                               description, next_check_at, creating_until, metadata)
         values ($1, $2, $3, $4, 'CREATING', $5, $6, $7, now() + make_interval(secs => $8),
                 now() + make_interval(secs => $9), $10)
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
    .bind(CREATE_LEASE_S)
    .bind(Json(&new.metadata))
    .execute(&mut *conn)
    .await?;
    let payment = sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments where order_id = $1"
    ))
    .bind(new.order_id)
    .fetch_one(conn)
    .await?;
    Ok((payment, made.rows_affected() == 1))
}

/// Who makes the intent asks Stripe; others wait for so long for what comes of it. Should both
/// ask, the key makes it one intent.
const CREATE_LEASE_S: f64 = 5.0;

/// Takes the making of this payment's intent, unless another caller has it.
pub async fn lease_create(pool: &PgPool, id: Uuid) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update payments set creating_until = now() + make_interval(secs => $2)
         where id = $1 and state = 'CREATING'
           and (creating_until is null or creating_until < now())",
    )
    .bind(id)
    .bind(CREATE_LEASE_S)
    .execute(pool)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// The making failed for now: the next caller need not wait.
pub async fn release_create(pool: &PgPool, id: Uuid) -> sqlx::Result<()> {
    sqlx::query("update payments set creating_until = null where id = $1 and state = 'CREATING'")
        .bind(id)
        .execute(pool)
        .await?;
    Ok(())
}

/// Stripe refuses to make this payment's intent, for good: there is none and will be none.
pub async fn refuse(
    conn: &mut PgConnection,
    id: Uuid,
    code: &str,
    message: &str,
) -> sqlx::Result<()> {
    sqlx::query(
        "update payments set state = 'CANCELLED', failure_code = $2, failure_message = $3,
             cleanup = false, next_check_at = 'infinity', updated_at = now()
         where id = $1 and state = 'CREATING'",
    )
    .bind(id)
    .bind(code)
    .bind(message)
    .execute(conn)
    .await?;
    Ok(())
}

/// When what is known of the intent was true at Stripe (seconds).
pub async fn intent_at(conn: &mut PgConnection, id: Uuid) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar("select intent_at from payments where id = $1")
        .bind(id)
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

pub async fn note_intent_at(conn: &mut PgConnection, id: Uuid, at: i64) -> sqlx::Result<()> {
    sqlx::query("update payments set intent_at = greatest(intent_at, $2) where id = $1")
        .bind(id)
        .bind(at)
        .execute(conn)
        .await?;
    Ok(())
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
    sqlx::query_as(concat!(
        "update payments set attempt = attempt + 1, attempted_at = now(), updated_at = now()
         where id = $1 and attempt = $2 and state = 'CREATING' and intent_id is null
         returning ",
        payment_columns!()
    ))
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
    let paid = intent.seen == Seen::Paid;
    sqlx::query_as(concat!(
        "update payments set
             state = $2,
             intent_id = coalesce(intent_id, $3),
             client_secret = coalesce($4, client_secret),
             failure_code = $5, failure_message = $6,
             succeeded_at = case when $2 = 'SUCCEEDED' then coalesce(succeeded_at, now()) end,
             cleanup = cleanup and $2 = 'CANCELLED',
             captured_amount = coalesce(captured_amount, $7),
             captured_currency = coalesce(captured_currency, $8),
             updated_at = now()
         where id = $1 returning ",
        payment_columns!()
    ))
    .bind(payment.id)
    .bind(state.as_str())
    .bind(&intent.id)
    .bind(&intent.client_secret)
    .bind(&intent.failure_code)
    .bind(&intent.failure_message)
    .bind(paid.then_some(intent.amount_received))
    .bind(paid.then_some(&intent.currency))
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
    sqlx::query_as(concat!(
        "update payments set
             cancel_requested_at = coalesce(cancel_requested_at, now()),
             state = case when $2 then 'CANCELLED' else state end,
             cleanup = cleanup or $2,
             next_check_at = now(), checks = 0, updated_at = now()
         where id = $1 returning ",
        payment_columns!()
    ))
    .bind(id)
    .bind(at_once)
    .fetch_one(conn)
    .await
}

/// Takes payments whose look at Stripe is due, for `lease_s`; whoever dies meanwhile leaves
/// them to the next.
pub async fn claim_due(pool: &PgPool, limit: i64, lease_s: f64) -> sqlx::Result<Vec<Look>> {
    sqlx::query_as(concat!(
        "update payments set next_check_at = now() + make_interval(secs => $2), checks = checks + 1
         where id in (
             select id from payments
             where (state in ('CREATING', 'REQUIRES_PAYMENT', 'FAILED', 'PROCESSING') or cleanup)
               and next_check_at <= now()
             order by next_check_at limit $1 for update skip locked)
         returning ",
        payment_columns!(),
        ", next_check_at as leased_until"
    ))
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

/// Says again what is final: the consumer knows what it has seen.
pub async fn say_again(conn: &mut PgConnection, payment: &Payment) -> sqlx::Result<()> {
    match payment.state() {
        PaymentState::Succeeded => {
            say(conn, &payment.said("payment.succeeded")).await?;
            refunds::record::publish_again(conn, payment).await?;
            disputes::publish_again(conn, payment).await
        }
        PaymentState::Cancelled => say(conn, &payment.said_cancelled()).await,
        PaymentState::Creating
        | PaymentState::RequiresPayment
        | PaymentState::Failed
        | PaymentState::Processing => Ok(()),
    }
}

/// Captures that reservations is not known to have accounted for, and whose time has come.
pub async fn unaccounted(pool: &PgPool, limit: i64) -> sqlx::Result<Vec<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments
         where state = 'SUCCEEDED' and accounted_at is null and account_after <= now()
         order by account_after limit $1"
    ))
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// The payments of these orders.
pub async fn by_orders(pool: &PgPool, orders: &[Uuid]) -> sqlx::Result<Vec<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments
         where order_id = any($1)"
    ))
    .bind(orders)
    .fetch_all(pool)
    .await
}

/// The payments of these intents, or of these ids.
pub async fn by_intents(
    pool: &PgPool,
    intents: &[String],
    ids: &[Uuid],
) -> sqlx::Result<Vec<Payment>> {
    sqlx::query_as(concat!(
        "select ",
        payment_columns!(),
        " from payments
         where intent_id = any($1) or id = any($2)"
    ))
    .bind(intents)
    .bind(ids)
    .fetch_all(pool)
    .await
}
