//! Disputes: followed at Stripe to their end, told to reservations, and never refunded twice.
//!
//! A dispute takes the money back without asking us. While one is open no refund is attempted;
//! won, all is as before; lost, the money is the buyer's. An inquiry moves no money. What counts is
//! the dispute as Stripe shows it now, and a phase only moves on, so that events may come late,
//! twice and in any order.

use serde_json::json;
use sqlx::{PgConnection, Row as _};

use super::refunds;
use super::store::{self, Payment};
use super::stripe::{StripeDispute, StripeFailure};
use super::{Error, Payments};
use crate::platform::alarms;
use crate::platform::events::NewEvent;

const DISPUTE: &str = "DISPUTE";
const INQUIRY: &str = "DISPUTE_INQUIRY";
/// A disputed amount differs a little from the charge where exchange rates moved in between: so
/// many hundredths of it are the whole.
const WHOLE_PERCENT: i64 = 95;

/// Where a dispute stands, as far as it matters to us; a later phase is never left for an earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The bank asks; no money has moved.
    Inquiry,
    InquiryClosed,
    /// The bank has the money.
    Open,
    Lost,
    /// Also what was lost at first.
    Won,
}

impl Phase {
    fn of(status: &str) -> Self {
        match status {
            "warning_needs_response" | "warning_under_review" => Self::Inquiry,
            "warning_closed" | "prevented" => Self::InquiryClosed,
            "lost" => Self::Lost,
            "won" => Self::Won,
            // A status that Stripe adds later is looked at by a person, and nothing is refunded.
            _ => Self::Open,
        }
    }
}

/// What the disputes of a payment come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DisputeState {
    Open,
    Lost,
    /// Some of the money is lost, and the order stands.
    PartlyLost,
    Inquiry,
    Won,
    Closed,
}

impl DisputeState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "OPEN",
            Self::Lost => "LOST",
            Self::PartlyLost => "PARTLY_LOST",
            Self::Inquiry => "INQUIRY",
            Self::Won => "WON",
            Self::Closed => "CLOSED",
        }
    }
}

/// A dispute as kept.
struct Kept {
    status: String,
    amount: i64,
    currency: String,
}

crate::from_row!(Kept {
    status,
    amount,
    currency
});

/// What they come to, of a capture of which so much was refunded.
fn sum(disputes: &[Kept], captured: i64, refunded: i64, currency: &str) -> DisputeState {
    let any = |phase: Phase| disputes.iter().any(|one| Phase::of(&one.status) == phase);
    let lost: i64 = disputes
        .iter()
        .filter(|one| Phase::of(&one.status) == Phase::Lost)
        .map(|one| match one.currency.eq_ignore_ascii_case(currency) {
            true => one.amount,
            false => captured,
        })
        .sum();
    if any(Phase::Open) {
        DisputeState::Open
    } else if any(Phase::Lost) {
        match (lost + refunded) * 100 >= captured * WHOLE_PERCENT {
            true => DisputeState::Lost,
            false => DisputeState::PartlyLost,
        }
    } else if any(Phase::Inquiry) {
        DisputeState::Inquiry
    } else if any(Phase::Won) {
        DisputeState::Won
    } else {
        DisputeState::Closed
    }
}

impl Payments {
    /// An event told of this dispute: looks at it, and follows it up.
    pub(super) async fn on_dispute(
        &self,
        payment: &Payment,
        told: StripeDispute,
    ) -> Result<(), Error> {
        let now = match self.stripe.dispute(&told.id).await {
            Ok(now) => now,
            // A key that may not read disputes: the event's own word has to do.
            Err(StripeFailure::Refused { code, .. }) => {
                tracing::warn!(
                    dispute.id = told.id,
                    code,
                    "the dispute cannot be read at Stripe"
                );
                told
            }
            Err(unknown) => return Err(Error::Stripe(unknown)),
        };
        self.record_dispute(payment, &now).await?;
        Ok(())
    }

    /// Reads all disputes of an intent, where a refusal says that there is one: true when one is
    /// open or lost.
    pub(super) async fn look_for_disputes(
        &self,
        payment: &Payment,
        intent_id: &str,
    ) -> Result<bool, Error> {
        let found = self
            .stripe
            .disputes(intent_id)
            .await
            .map_err(Error::Stripe)?;
        let mut forbids = false;
        for dispute in &found {
            forbids |= matches!(Phase::of(&dispute.status), Phase::Open | Phase::Lost);
            self.record_dispute(payment, dispute).await?;
        }
        Ok(forbids)
    }

    pub(super) async fn record_dispute(
        &self,
        payment: &Payment,
        dispute: &StripeDispute,
    ) -> sqlx::Result<()> {
        let mut tx = self.pool.begin().await?;
        let Some(payment) = store::lock(&mut tx, payment.id).await? else {
            return Err(sqlx::Error::RowNotFound);
        };
        let before: Option<String> =
            sqlx::query_scalar("select status from disputes where id = $1")
                .bind(&dispute.id)
                .fetch_optional(&mut *tx)
                .await?;
        let phase = Phase::of(&dispute.status);
        let stale = before
            .as_ref()
            .is_some_and(|status| *status == dispute.status || Phase::of(status) > phase);
        if stale {
            return Ok(());
        }
        sqlx::query(
            "insert into disputes (id, payment_id, status, reason, amount, currency)
             values ($1, $2, $3, $4, $5, $6)
             on conflict (id) do update set status = excluded.status, reason = excluded.reason,
                 amount = excluded.amount, currency = excluded.currency, changed_at = now()",
        )
        .bind(&dispute.id)
        .bind(payment.id)
        .bind(&dispute.status)
        .bind(&dispute.reason)
        .bind(dispute.amount)
        .bind(&dispute.currency)
        .execute(&mut *tx)
        .await?;
        let state = disputes_come_to(&mut tx, &payment).await?;
        if alarm(&mut tx, &payment, dispute, phase).await? {
            self.counters.alarms.inc();
        }
        publish(&mut tx, &payment, dispute, state).await?;
        refunds::after_dispute(&mut tx, &payment, state).await?;
        tx.commit().await?;
        self.signal.wake();
        self.worker.notify_one();
        Ok(())
    }
}

async fn disputes_come_to(
    conn: &mut PgConnection,
    payment: &Payment,
) -> sqlx::Result<DisputeState> {
    let all: Vec<Kept> =
        sqlx::query_as("select status, amount, currency from disputes where payment_id = $1")
            .bind(payment.id)
            .fetch_all(conn)
            .await?;
    Ok(sum(
        &all,
        payment.captured(),
        payment.refunded_amount,
        payment.captured_currency(),
    ))
}

/// The alarm closes by itself when no money is missing; after a loss a person closes it.
async fn alarm(
    conn: &mut PgConnection,
    payment: &Payment,
    dispute: &StripeDispute,
    phase: Phase,
) -> sqlx::Result<bool> {
    let id = &dispute.id;
    let what = format!(
        "{id}: {} over {} {}, {}",
        dispute.reason, dispute.amount, dispute.currency, dispute.status
    );
    let raise = async |conn: &mut PgConnection, kind, detail: String| {
        alarms::raise_once(conn, &store::about(kind, id, payment, &detail)).await
    };
    match phase {
        Phase::Inquiry => {
            raise(
                conn,
                INQUIRY,
                format!("the bank asks about a charge: {what}; answer it at Stripe"),
            )
            .await
        }
        Phase::InquiryClosed => {
            alarms::clear(conn, INQUIRY, id, "the inquiry is closed; no money moved").await?;
            Ok(false)
        }
        Phase::Open => {
            alarms::clear(conn, INQUIRY, id, "the inquiry became a dispute").await?;
            raise(
                conn,
                DISPUTE,
                format!("a charge is disputed: {what}; answer it at Stripe"),
            )
            .await
        }
        Phase::Lost => {
            alarms::clear(conn, INQUIRY, id, "the dispute is lost").await?;
            raise(
                conn,
                DISPUTE,
                format!("a dispute is lost: {what}; the money is gone"),
            )
            .await
        }
        Phase::Won => {
            alarms::clear(conn, INQUIRY, id, "the dispute is won").await?;
            alarms::clear(conn, DISPUTE, id, "the dispute is won").await?;
            Ok(false)
        }
    }
}

/// `payment.disputed`: what the disputes of the payment come to. The version orders the news.
async fn publish(
    conn: &mut PgConnection,
    payment: &Payment,
    dispute: &StripeDispute,
    state: DisputeState,
) -> sqlx::Result<()> {
    let version: i64 = sqlx::query_scalar(
        "update payments set dispute_state = $2, dispute_version = dispute_version + 1,
             disputed_at = coalesce(disputed_at, now()), updated_at = now()
         where id = $1 returning dispute_version",
    )
    .bind(payment.id)
    .bind(state.as_str())
    .fetch_one(&mut *conn)
    .await?;
    let event = NewEvent::new(
        "payment.disputed",
        payment.order_id,
        &json!({
            "paymentId": payment.id,
            "orderId": payment.order_id,
            "disputeId": dispute.id,
            "status": dispute.status,
            "reason": dispute.reason,
            "amount": dispute.amount,
            "state": state.as_str(),
            "version": version,
        }),
    );
    store::say(conn, &event).await
}

/// Tells once more what was told last, under the version that it had: a consumer that has heard it
/// ignores it.
pub(super) async fn publish_again(conn: &mut PgConnection, payment: &Payment) -> sqlx::Result<()> {
    let Some(state) = &payment.dispute_state else {
        return Ok(());
    };
    let newest = sqlx::query(
        "select id, status, reason, amount::bigint as amount from disputes
         where payment_id = $1 order by changed_at desc limit 1",
    )
    .bind(payment.id)
    .fetch_optional(&mut *conn)
    .await?;
    let Some(dispute) = newest else {
        return Ok(());
    };
    let event = NewEvent::new(
        "payment.disputed",
        payment.order_id,
        &json!({
            "paymentId": payment.id,
            "orderId": payment.order_id,
            "disputeId": dispute.try_get::<String, _>("id")?,
            "status": dispute.try_get::<String, _>("status")?,
            "reason": dispute.try_get::<String, _>("reason")?,
            "amount": dispute.try_get::<i64, _>("amount")?,
            "state": state,
            "version": payment.dispute_version,
        }),
    );
    store::say(conn, &event).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(status: &str, amount: i64) -> Kept {
        Kept {
            status: status.to_owned(),
            amount,
            currency: "krw".to_owned(),
        }
    }

    #[test]
    fn disputes_come_to_the_worst_of_them() {
        let whole = |statuses: &[&str]| {
            let all: Vec<Kept> = statuses.iter().map(|one| kept(one, 1_000)).collect();
            sum(&all, 1_000, 0, "krw")
        };
        assert_eq!(whole(&["won"]), DisputeState::Won);
        assert_eq!(whole(&["won", "lost"]), DisputeState::Lost);
        assert_eq!(whole(&["lost", "needs_response"]), DisputeState::Open);
        assert_eq!(whole(&["warning_closed"]), DisputeState::Closed);
        assert_eq!(
            whole(&["warning_needs_response", "won"]),
            DisputeState::Inquiry
        );
        assert_eq!(whole(&["something_new"]), DisputeState::Open);
        let part = [kept("lost", 400)];
        assert_eq!(sum(&part, 1_000, 0, "krw"), DisputeState::PartlyLost);
        assert_eq!(sum(&part, 1_000, 600, "krw"), DisputeState::Lost);
        // The exchange rate moved.
        assert_eq!(
            sum(&[kept("lost", 960)], 1_000, 0, "krw"),
            DisputeState::Lost
        );
    }

    #[test]
    fn a_phase_is_left_for_a_later_one_only() {
        for (earlier, later) in [
            ("warning_needs_response", "warning_closed"),
            ("warning_closed", "needs_response"),
            ("under_review", "lost"),
            ("needs_response", "won"),
            ("lost", "won"),
        ] {
            assert!(Phase::of(earlier) < Phase::of(later), "{earlier} {later}");
        }
    }
}
