//! Payments and orders, compared in both directions.
//!
//! From here: a capture whose accounting is not known is asked of reservations, and told again
//! until it is. From there: reservations sends what it has of orders and refunds, and hears what
//! payments knows otherwise. Nothing is decided here: events are published again, and the state
//! machines on both sides know what they have seen.

use axum::extract::State;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::machine::PaymentState;
use super::origin::Origin;
use super::orphans::{ORPHAN_CAPTURE, Rebuilt};
use super::store::{self, Payment};
use super::{Error, Payments};
use crate::platform::alarms::{self, Alarm};
use crate::platform::auth::Internal;
use crate::platform::http::Json;
use crate::platform::scans::Scan;

/// Captures asked about in one call.
const BATCH: i64 = 500;
/// An event may be late; after so many askings a person hears of it (about 35 s).
const ALARM_AFTER: i32 = 3;
const UNACCOUNTED: &str = "PAYMENT_UNACCOUNTED";

/// How reservations has accounted for a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Verdict {
    /// A confirmed order, a refund that was asked for, or a dispute that was lost.
    Accounted,
    /// The order has not heard of it.
    NotYet,
    /// There is no such order.
    NoOrder,
    /// The order names this payment, and is neither confirmed nor refunded.
    Wrong,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    payment_id: Uuid,
    verdict: Verdict,
    /// The newest that reservations knows of its refunds, and of its disputes where they concern
    /// the order.
    refund_version: i64,
    dispute_version: Option<i64>,
}

#[derive(Deserialize)]
struct Answers {
    payments: Vec<Answer>,
}

impl Payments {
    /// One tick of the reconciler.
    pub(super) async fn reconcile(&self, scan: &Scan) -> Result<(), Error> {
        if !scan.hold().await? {
            return Ok(());
        }
        self.account().await
    }

    /// Asks reservations about captures that it is not known to have accounted for.
    async fn account(&self) -> Result<(), Error> {
        let due = store::unaccounted(&self.pool, BATCH).await?;
        if due.is_empty() {
            return Ok(());
        }
        let asked: Vec<_> = due
            .iter()
            .map(|p| serde_json::json!({"paymentId": p.id, "orderId": p.order_id}))
            .collect();
        let answers: Answers = self
            .reservations
            .post_json(
                "/internal/v1/reconcile/payments",
                &serde_json::json!({ "payments": asked }),
            )
            .await
            .map_err(Error::Reservations)?;
        let mut accounted = Vec::new();
        for payment in &due {
            let Some(answer) = (answers.payments.iter()).find(|a| a.payment_id == payment.id)
            else {
                continue;
            };
            let heard = answer.refund_version >= payment.refund_version
                && answer
                    .dispute_version
                    .is_none_or(|version| version >= payment.dispute_version);
            match answer.verdict {
                Verdict::Accounted if heard => accounted.push(payment),
                Verdict::Accounted | Verdict::NotYet => self.tell_again(payment).await?,
                Verdict::NoOrder => self.without_order(payment).await?,
                Verdict::Wrong => {
                    let detail =
                        "the order names this payment, and is neither confirmed nor refunded";
                    self.unaccounted_alarm(payment, detail).await?;
                    self.ask_later(payment).await?;
                }
            }
        }
        self.accounted(&accounted).await
    }

    /// What changed since it was read is asked again: its `account_after` lies ahead.
    async fn accounted(&self, payments: &[&Payment]) -> Result<(), Error> {
        if payments.is_empty() {
            return Ok(());
        }
        let ids: Vec<Uuid> = payments.iter().map(|p| p.id).collect();
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "update payments set accounted_at = now()
             where id = any($1) and accounted_at is null and account_after <= now()",
        )
        .bind(&ids)
        .execute(&mut *tx)
        .await?;
        for late in payments.iter().filter(|p| p.account_tries > 0) {
            let note = "Reservations has accounted for it.";
            alarms::clear(&mut tx, UNACCOUNTED, &late.id.to_string(), note).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Publishes what is known of the payment again, unless its last event is still on its way.
    async fn tell_again(&self, payment: &Payment) -> Result<(), Error> {
        let mut tx = self.pool.begin().await?;
        let Some(now) = store::lock(&mut tx, payment.id).await? else {
            return Ok(());
        };
        let waiting: bool = sqlx::query_scalar(
            "select exists (select 1 from outbox where published_at is null and key = $1)",
        )
        .bind(payment.order_id.to_string())
        .fetch_one(&mut *tx)
        .await?;
        if !waiting {
            tracing::warn!(
                payment.id = %now.id, order.id = %now.order_id, tries = now.account_tries,
                "payment {} is not accounted for; its events are published again", now.id
            );
            store::say_again(&mut tx, &now).await?;
        }
        tx.commit().await?;
        self.signal.wake();
        self.ask_later(payment).await?;
        if payment.account_tries + 1 >= ALARM_AFTER {
            let detail =
                "captured, and reservations has neither confirmed its order nor asked for a refund";
            self.unaccounted_alarm(payment, detail).await?;
        }
        Ok(())
    }

    async fn ask_later(&self, payment: &Payment) -> sqlx::Result<()> {
        sqlx::query(
            "update payments set account_tries = account_tries + 1,
                 account_after = now() + make_interval(secs => least(600, 10 * 2 ^ account_tries))
             where id = $1 and accounted_at is null and account_after <= now()",
        )
        .bind(payment.id)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn unaccounted_alarm(&self, payment: &Payment, detail: &str) -> sqlx::Result<()> {
        let (key, mut conn) = (payment.id.to_string(), self.pool.acquire().await?);
        alarms::raise(&mut conn, &store::about(UNACCOUNTED, &key, payment, detail)).await?;
        Ok(())
    }

    /// Reservations lost the order: it is built again while its seats are free; otherwise a
    /// person decides.
    async fn without_order(&self, payment: &Payment) -> Result<(), Error> {
        if self.has_refund(payment.id).await? {
            // The money goes back; there is no order to tell.
            return self.accounted(&[payment]).await;
        }
        let key = payment
            .intent_id
            .clone()
            .unwrap_or_else(|| payment.id.to_string());
        let metadata = payment.new_intent().metadata();
        let outcome = match Origin::read(&metadata, payment.amount, &payment.currency) {
            Some(origin) => self.rebuild(&origin).await?,
            None => Rebuilt::Unknown,
        };
        match outcome {
            Rebuilt::Built | Rebuilt::Exists => self.tell_again(payment).await,
            Rebuilt::SeatsTaken | Rebuilt::Closed | Rebuilt::Unknown => {
                let detail = format!(
                    "payment {} of {} {} has no order any more, and it cannot be built again ({outcome:?})",
                    payment.id, payment.amount, payment.currency
                );
                let alarm = Alarm {
                    kind: ORPHAN_CAPTURE,
                    key: &key,
                    order_id: Some(payment.order_id),
                    payment_id: Some(payment.id),
                    detail: &detail,
                };
                alarms::raise_once(&mut *self.pool.acquire().await?, &alarm).await?;
                Ok(self.ask_later(payment).await?)
            }
        }
    }

    async fn has_refund(&self, payment: Uuid) -> sqlx::Result<bool> {
        sqlx::query_scalar("select exists (select 1 from refunds where payment_id = $1)")
            .bind(payment)
            .fetch_one(&self.pool)
            .await
    }
}

/// An order as reservations has it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct OrderFacts {
    order_id: Uuid,
    /// CONFIRMED, or closed: EXPIRED, CANCELLED, REFUNDED.
    state: String,
    payment_id: Option<Uuid>,
    amount: i64,
}

/// A refund that reservations has asked for and not heard of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RefundFacts {
    refund_id: Uuid,
    payment_id: Uuid,
}

/// What reservations has.
#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    #[serde(default)]
    orders: Vec<OrderFacts>,
    #[serde(default)]
    refunds: Vec<RefundFacts>,
}

/// What is wrong with a confirmed order, as payments sees it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Wrong {
    order_id: Uuid,
    why: String,
}

/// What payments knows of a refund.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct KnownRefund {
    refund_id: Uuid,
    /// Is there such a payment?
    payment: bool,
    /// Was the refund asked for, or is the money back anyway?
    refund: bool,
}

/// Where the two differ.
#[derive(Debug, Serialize)]
pub(super) struct Differences {
    wrong: Vec<Wrong>,
    refunds: Vec<KnownRefund>,
}

/// Compares orders and refunds of reservations with what payments has.
pub(super) async fn compare(
    State(payments): State<Payments>,
    _: Internal,
    Json(facts): Json<Facts>,
) -> Result<Json<Differences>, Error> {
    Ok(Json(Differences {
        wrong: payments.compare_orders(&facts.orders).await?,
        refunds: payments.compare_refunds(&facts.refunds).await?,
    }))
}

impl Payments {
    async fn compare_orders(&self, orders: &[OrderFacts]) -> Result<Vec<Wrong>, Error> {
        let ids: Vec<Uuid> = orders.iter().map(|o| o.order_id).collect();
        let payments = store::by_orders(&self.pool, &ids).await?;
        let mut wrong = Vec::new();
        let (mut again, mut end) = (Vec::new(), Vec::new());
        for order in orders {
            let payment = payments.iter().find(|p| p.order_id == order.order_id);
            let back = payment.is_some_and(|p| {
                p.amount > 0 && p.refunded_amount >= p.captured()
                    || p.dispute_state.as_deref() == Some("LOST")
            });
            let confirmed = order.state == "CONFIRMED";
            match payment {
                Some(p) if confirmed && p.state() == PaymentState::Succeeded => {
                    if back {
                        again.push(p.id);
                    } else if let Some(why) = not_paid(order, p) {
                        wrong.push(why);
                    }
                }
                Some(p) if confirmed => {
                    wrong.push(order.wrong(format!("payment {} is {}", p.id, p.state().as_str())))
                }
                None if confirmed => wrong.push(order.wrong("payments has no payment of it")),
                // Closed: a capture has a refund, and nothing can be captured any more.
                Some(p) if p.state() == PaymentState::Succeeded => again.push(p.id),
                Some(p) if p.state().is_open() && p.cancel_requested_at.is_none() => {
                    end.push(order.order_id);
                }
                Some(_) | None => {}
            }
        }
        self.account_again(&again).await?;
        for order in end {
            let mut tx = self.pool.begin().await?;
            self.note_cancel(&mut tx, order, true).await?;
            tx.commit().await?;
            self.signal.wake();
            self.worker.notify_one();
        }
        Ok(wrong)
    }

    /// Has the reconciler ask about these at its next tick.
    async fn account_again(&self, payments: &[Uuid]) -> sqlx::Result<()> {
        if payments.is_empty() {
            return Ok(());
        }
        sqlx::query(
            "update payments set accounted_at = null, account_after = now(), account_tries = 0
             where id = any($1) and accounted_at is not null",
        )
        .bind(payments)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn compare_refunds(&self, asked: &[RefundFacts]) -> Result<Vec<KnownRefund>, Error> {
        let (refunds, payments): (Vec<Uuid>, Vec<Uuid>) =
            asked.iter().map(|r| (r.refund_id, r.payment_id)).unzip();
        let known: Vec<(Uuid, Uuid, bool, bool, bool)> = sqlx::query_as(
            "select t.refund_id, t.payment_id, p.id is not null, r.id is not null,
                 coalesce(r.state in ('SUCCEEDED', 'DISPUTED')
                     or p.refunded_amount >= coalesce(p.captured_amount, p.amount), false)
             from unnest($1::uuid[], $2::uuid[]) as t (refund_id, payment_id)
             left join payments p on p.id = t.payment_id
             left join refunds r on r.request_id = t.refund_id",
        )
        .bind(&refunds)
        .bind(&payments)
        .fetch_all(&self.pool)
        .await?;
        let back: Vec<Uuid> = (known.iter()).filter(|k| k.4).map(|k| k.1).collect();
        // Reservations has not heard that the money is back.
        self.account_again(&back).await?;
        Ok(known
            .into_iter()
            .map(|(refund_id, _, payment, refund, back)| KnownRefund {
                refund_id,
                payment,
                refund: refund || back,
            })
            .collect())
    }
}

impl OrderFacts {
    fn wrong(&self, why: impl Into<String>) -> Wrong {
        Wrong {
            order_id: self.order_id,
            why: why.into(),
        }
    }
}

/// Why a captured payment does not pay for a confirmed order.
fn not_paid(order: &OrderFacts, payment: &Payment) -> Option<Wrong> {
    if order.payment_id != Some(payment.id) {
        Some(order.wrong(format!("it names another payment than {}", payment.id)))
    } else if order.amount != payment.amount {
        Some(order.wrong(format!(
            "it costs {}, and payment {} captured {}",
            order.amount, payment.id, payment.amount
        )))
    } else {
        None
    }
}
