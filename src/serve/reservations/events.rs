//! What payments tells: each event acts once, in the transaction that notes it
//! in the inbox; Redis is shown the outcome afterwards, however often.

use serde::Deserialize;
use uuid::Uuid;

use super::{
    Reservations,
    machine::Step,
    scripts::{self, Held, Hold, Pick},
    steps::{self, CONSUMER, Cause, Payment, StepError},
    store,
};
use crate::{
    failpoint,
    platform::events::{Event, HandlerError, Subscription, handler},
};

const TYPES: &[&str] = &[
    "payment.succeeded",
    "payment.failed",
    "payment.cancelled",
    "payment.refunded",
    "payment.disputed",
];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    order_id: Uuid,
    #[serde(default)]
    payment_id: Option<Uuid>,
    #[serde(default)]
    amount: Option<i64>,
    #[serde(default)]
    currency: Option<String>,
}

/// What this role listens to.
pub fn subscriptions(state: &Reservations) -> Vec<Subscription> {
    let this = state.clone();
    vec![Subscription {
        consumer: CONSUMER,
        sources: &["payments"],
        types: TYPES,
        handler: handler(move |event| {
            let this = this.clone();
            async move { this.heard(&event).await }
        }),
        pool: state.pool.clone(),
    }]
}

fn lacks(what: &str) -> HandlerError {
    HandlerError::poison(anyhow::anyhow!("the event has no {what}"))
}

fn cause(event: &Event, data: &Data) -> Result<Cause, HandlerError> {
    Ok(match event.kind.as_str() {
        "payment.succeeded" => Cause::Paid(Payment {
            id: data.payment_id.ok_or_else(|| lacks("paymentId"))?,
            amount: data.amount.ok_or_else(|| lacks("amount"))?,
            currency: data.currency.clone().ok_or_else(|| lacks("currency"))?,
        }),
        "payment.failed" => Cause::PaymentFailed,
        "payment.cancelled" => Cause::PaymentCancelled,
        "payment.refunded" => Cause::MoneyBack(event.data()?),
        "payment.disputed" => Cause::Disputed(event.data()?),
        other => {
            return Err(HandlerError::poison(anyhow::anyhow!(
                "unknown event {other}"
            )));
        }
    })
}

impl Reservations {
    async fn heard(&self, event: &Event) -> Result<(), HandlerError> {
        let data: Data = event.data()?;
        let cause = cause(event, &data)?;
        let applied = match self.step(data.order_id, &cause, Some(event.id)).await {
            Ok(applied) => applied,
            Err(StepError::Database(error)) => return Err(error.into()),
            // PostgreSQL has lost the order. Of a capture, payments asks until it is accounted
            // for; of all else there is nobody to tell.
            Err(StepError::NotFound) => {
                tracing::warn!(
                    order.id = %data.order_id, event.type = event.kind,
                    "{} is about order {}, which is not known", event.kind, data.order_id
                );
                return Ok(());
            }
            Err(error) => return Err(HandlerError::poison(error)),
        };
        if let (Step::Reacquire, Cause::Paid(payment)) = (applied.step, &cause) {
            self.reacquire(data.order_id, payment, event.id).await?;
        }
        self.show(applied.before.performance_id, data.order_id)
            .await?;
        Ok(())
    }

    /// Paid after the hold had ended: the same seats and the limit once more,
    /// else the money goes back. Redis is asked first, Postgres has the last word.
    async fn reacquire(
        &self,
        id: Uuid,
        payment: &Payment,
        event: Uuid,
    ) -> Result<(), HandlerError> {
        let Some(version) = steps::begin_reacquire(&self.pool, id).await? else {
            return Ok(());
        };
        let Some(order) = store::order(&self.pool, id).await? else {
            return Ok(());
        };
        let row = &order.row;
        let lost = if row.starts_at <= row.now {
            Some("PAID_TOO_LATE_SHOW_STARTED")
        } else {
            // As the schedule is now; it may have been moved since.
            let catalogue = self.catalogues.get(row.schedule_id).await;
            let catalogue =
                catalogue.map_err(|p| HandlerError::retry(anyhow::anyhow!("{}", p.code())))?;
            let pick = Pick::Seats(order.indices());
            let hold = Hold {
                order: id,
                version,
                user: row.user_id,
                schedule: row.schedule_id,
                ttl_ms: u64::try_from(row.hold_ttl_ms).unwrap_or(0),
                limit: self.config.seat_limit,
                place: None,
                counted: None,
                sales_end_ms: catalogue.sales_end_at.timestamp_millis(),
                starts_ms: catalogue.starts_at.timestamp_millis(),
                pick: &pick,
            };
            self.seats_again(row.performance_id, &hold).await?
        };
        failpoint!("orders.reacquire_after_hold");
        let ended = steps::end_reacquire(&self.pool, &self.signal, id, payment, event, lost).await;
        match ended {
            Err(StepError::Database(error)) if seat_is_taken(&error) => {
                let lost = Some("PAID_TOO_LATE_SEATS_GONE");
                match steps::end_reacquire(&self.pool, &self.signal, id, payment, event, lost).await
                {
                    Err(StepError::Database(error)) => Err(error.into()),
                    Err(error) => Err(HandlerError::poison(error)),
                    Ok(()) => Ok(()),
                }
            }
            Err(StepError::Database(error)) => Err(error.into()),
            Err(error) => Err(HandlerError::poison(error)),
            Ok(()) => Ok(()),
        }
    }

    /// `None`: the seats are held again; else why not.
    async fn seats_again(
        &self,
        performance: Uuid,
        hold: &Hold<'_>,
    ) -> Result<Option<&'static str>, HandlerError> {
        let keys = self.keys(performance);
        let mut redis = self.redis.clone();
        match scripts::hold(&mut redis, &keys, hold).await? {
            Held::Seats { .. } => Ok(None),
            Held::Taken(_) => Ok(Some("PAID_TOO_LATE_SEATS_GONE")),
            Held::Limit(_) => Ok(Some("PAID_TOO_LATE_LIMIT_REACHED")),
            Held::SalesEnded => Ok(Some("PAID_TOO_LATE_SALES_ENDED")),
            Held::Absent => {
                self.rebuild(performance).await?;
                Err(HandlerError::retry(anyhow::anyhow!(
                    "the seats were just rebuilt"
                )))
            }
            Held::NoPlace(_)
            | Held::Lost(_)
            | Held::Exhausted
            | Held::Uncounted
            | Held::Stopped => Err(HandlerError::retry(anyhow::anyhow!(
                "the hold of a paid order does not ask for a place"
            ))),
        }
    }
}

fn seat_is_taken(error: &sqlx::Error) -> bool {
    matches!(error, sqlx::Error::Database(cause)
        if cause.constraint() == Some("one_live_order_a_seat"))
}
