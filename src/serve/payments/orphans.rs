//! Captured intents of this installation that have no payment: PostgreSQL lost them.
//!
//! Each raises an alarm. Its order is built again from the intent's metadata while its seats are
//! free; otherwise the money goes back only when a person says so, by resolving the alarm with
//! the action `refund`. An intent of another installation is never touched.

use serde::Deserialize;
use sqlx::types::Json;
use uuid::Uuid;

use super::machine::{PaymentState, Seen};
use super::origin::Origin;
use super::store::{self, Payment};
use super::stripe::{Intent, RefundState};
use super::{Error, Payments, refunds};
use crate::platform::alarms::{self, Alarm};

/// The alarm of money without an order.
pub const ORPHAN_CAPTURE: &str = "ORPHAN_CAPTURE";
/// What resolving [`ORPHAN_CAPTURE`] may do.
pub const REFUND: &str = "refund";

/// What reservations made of the wish to have an order again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) enum Rebuilt {
    /// The order was built again; its seats are held until it is confirmed.
    Built,
    /// There is such an order, and this payment pays for it.
    Exists,
    /// Its seats are another order's by now.
    SeatsTaken,
    /// There is such an order, and it is closed or paid otherwise.
    Closed,
    /// The schedule, or a seat of it, is no longer known; or the amount is not that of the seats.
    Unknown,
}

#[derive(Deserialize)]
struct RebuiltBody {
    outcome: Rebuilt,
}

impl Rebuilt {
    fn why(self) -> &'static str {
        match self {
            Self::Built | Self::Exists => "its order stands again",
            Self::SeatsTaken => "its seats belong to another order by now",
            Self::Closed => "its order is closed, or was paid otherwise",
            Self::Unknown => {
                "its seats are no longer in the catalogue, or the amount is not theirs"
            }
        }
    }
}

impl Payments {
    /// The id that stands in every intent of ours. `seed --reset` removes it; then another begins.
    pub(super) async fn installation(&self) -> sqlx::Result<Uuid> {
        let known: Option<Uuid> = sqlx::query_scalar("select id from installation")
            .fetch_optional(&self.pool)
            .await?;
        if let Some(known) = known {
            return Ok(known);
        }
        sqlx::query("insert into installation default values on conflict do nothing")
            .execute(&self.pool)
            .await?;
        sqlx::query_scalar("select id from installation")
            .fetch_one(&self.pool)
            .await
    }

    /// Is this intent of this installation?
    pub(super) async fn is_ours(&self, intent: &Intent) -> sqlx::Result<bool> {
        let Some(named) = intent.metadata.get("installation") else {
            return Ok(false);
        };
        Ok(intent.live == self.stripe.live() && *named == self.installation().await?.to_string())
    }

    /// An intent that no payment knows. `None`: nothing to account for, or nothing that we can
    /// do by ourselves.
    ///
    /// `restoring`: one alarm stands for all that the restore lost; those whose order stands
    /// again need no person each.
    pub(super) async fn adopt(
        &self,
        intent: &Intent,
        restoring: bool,
    ) -> Result<Option<Payment>, Error> {
        if intent.seen != Seen::Paid || !self.is_ours(intent).await? {
            return Ok(None);
        }
        if self.given_back(intent).await? || self.was_resolved(&intent.id).await? {
            return Ok(None);
        }
        let origin = Origin::read(&intent.metadata, intent.amount_received, &intent.currency);
        let Some(origin) = origin.filter(|_| intent.amount == intent.amount_received) else {
            let detail = format!(
                "Stripe captured {} {} by intent {}, which no payment knows and whose metadata \
                 does not tell its order",
                intent.amount_received, intent.currency, intent.id
            );
            self.orphan_alarm(intent, None, &detail).await?;
            return Ok(None);
        };
        // Before anything is done: whatever becomes of it, somebody hears of it.
        self.orphan_alarm(
            intent,
            Some(&origin),
            &about(intent, &origin, "its order is being built again"),
        )
        .await?;
        let outcome = self.rebuild(&origin).await?;
        let adopted = match outcome {
            Rebuilt::Built | Rebuilt::Exists => self.insert_adopted(intent, &origin).await?,
            Rebuilt::SeatsTaken | Rebuilt::Closed | Rebuilt::Unknown => None,
        };
        let why = match (&adopted, outcome) {
            (None, Rebuilt::Built | Rebuilt::Exists) => "its order has another payment",
            _ => outcome.why(),
        };
        self.orphan_alarm(intent, Some(&origin), &about(intent, &origin, why))
            .await?;
        tracing::warn!(
            intent.id = intent.id, order.id = %origin.order_id, outcome = ?outcome,
            "intent {} was captured and not known: {why}", intent.id
        );
        if restoring && adopted.is_some() {
            let mut conn = self.pool.acquire().await?;
            let note = "Its order was built again after the restore.";
            alarms::clear(&mut conn, ORPHAN_CAPTURE, &intent.id, note).await?;
        }
        Ok(adopted)
    }

    /// Asks reservations for the order of a captured payment.
    pub(super) async fn rebuild(&self, origin: &Origin) -> Result<Rebuilt, Error> {
        let path = format!("/internal/v1/orders/{}/rebuild", origin.order_id);
        let answer: RebuiltBody = self
            .reservations
            .post_json(&path, origin)
            .await
            .map_err(Error::Reservations)?;
        Ok(answer.outcome)
    }

    /// All of it went back already, or is on its way: nothing is owed.
    async fn given_back(&self, intent: &Intent) -> Result<bool, Error> {
        let refunds = self
            .stripe
            .refunds(&intent.id)
            .await
            .map_err(Error::Stripe)?;
        let total: i64 = refunds
            .iter()
            .filter(|one| one.state != RefundState::Failed)
            .map(|one| one.amount)
            .sum();
        Ok(total >= intent.amount_received)
    }

    /// A person has decided about it: nothing is done by ourselves any more.
    async fn was_resolved(&self, intent_id: &str) -> sqlx::Result<bool> {
        sqlx::query_scalar(
            "select exists (select 1 from alarms where kind = $1 and key = $2
                            and resolved_at is not null and resolved_by <> $3)",
        )
        .bind(ORPHAN_CAPTURE)
        .bind(intent_id)
        .bind(alarms::SYSTEM)
        .fetch_one(&self.pool)
        .await
    }

    async fn orphan_alarm(
        &self,
        intent: &Intent,
        origin: Option<&Origin>,
        detail: &str,
    ) -> sqlx::Result<()> {
        let named = |name: &str| intent.metadata.get(name).and_then(|id| id.parse().ok());
        let alarm = Alarm {
            kind: ORPHAN_CAPTURE,
            key: &intent.id,
            order_id: origin.map(|o| o.order_id).or_else(|| named("order_id")),
            payment_id: origin.map(|o| o.payment_id).or_else(|| named("payment_id")),
            detail,
        };
        let mut conn = self.pool.acquire().await?;
        if alarms::raise(&mut conn, &alarm).await? {
            self.counters.alarms.inc();
        }
        Ok(())
    }

    /// The payment as it was, SUCCEEDED, with its event. `None` when the order has another one.
    async fn insert_adopted(
        &self,
        intent: &Intent,
        origin: &Origin,
    ) -> sqlx::Result<Option<Payment>> {
        let mut tx = self.pool.begin().await?;
        let payment = insert(&mut tx, intent, origin).await?;
        if let Some(payment) = &payment {
            store::say(&mut tx, &payment.said("payment.succeeded")).await?;
        }
        tx.commit().await?;
        self.signal.wake();
        if payment.is_some() {
            self.counters.count(PaymentState::Succeeded);
        }
        Ok(payment)
    }

    /// A person resolved [`ORPHAN_CAPTURE`] with `refund`: the money of this intent goes back,
    /// once, however often this is called.
    pub(super) async fn refund_orphan(&self, intent_id: &str) -> Result<(), Error> {
        let intent = self.stripe.intent(intent_id).await.map_err(Error::Stripe)?;
        if intent.seen != Seen::Paid || !self.is_ours(&intent).await? {
            return Err(Error::PaymentNotFound);
        }
        let known = match intent.payment_id {
            Some(id) => store::by_id(&mut *self.pool.acquire().await?, id).await?,
            None => None,
        };
        let origin = Origin::read(&intent.metadata, intent.amount_received, &intent.currency);
        let mut tx = self.pool.begin().await?;
        let payment = match (known, origin) {
            (Some(known), _) if known.intent_id.as_ref() == Some(&intent.id) => known,
            (_, origin) => {
                let origin = origin.unwrap_or_else(|| nameless(&intent));
                let adopted = insert(&mut tx, &intent, &origin).await?;
                adopted.ok_or(Error::OrderNotPayable)?
            }
        };
        if payment.accounted_at.is_some() {
            // Its order stands: that is cancelled, and refunded, as any other.
            return Err(Error::OrderNotPayable);
        }
        // Asked twice, it goes back once: the payment is the request.
        let (request, amount) = (payment.id, intent.amount_received);
        refunds::request(&mut tx, &payment, request, amount, "ORPHAN_CAPTURE").await?;
        tx.commit().await?;
        self.worker.notify_one();
        Ok(())
    }
}

fn about(intent: &Intent, origin: &Origin, why: &str) -> String {
    let seats: Vec<String> = origin.seats.iter().map(|s| s.id.to_string()).collect();
    format!(
        "Stripe captured {} {} by intent {}, which no payment knew: {why}. User {}, schedule {}, seats {}",
        intent.amount_received,
        intent.currency,
        intent.id,
        origin.user_id,
        origin.schedule_id,
        seats.join(" ")
    )
}

/// For money whose order nobody can tell: it can only go back.
fn nameless(intent: &Intent) -> Origin {
    let named = |name: &str| {
        let id = intent.metadata.get(name).and_then(|id| id.parse().ok());
        id.unwrap_or_else(Uuid::now_v7)
    };
    Origin {
        order_id: named("order_id"),
        payment_id: named("payment_id"),
        user_id: named("user_id"),
        performance_id: named("performance_id"),
        schedule_id: named("schedule_id"),
        seats: Vec::new(),
        place_epoch: None,
        place_number: None,
        amount: intent.amount_received,
        currency: intent.currency.clone(),
    }
}

/// In place of the tombstone that may stand there: the order was closed when nobody knew of this
/// payment any more.
async fn insert(
    conn: &mut sqlx::PgConnection,
    intent: &Intent,
    origin: &Origin,
) -> sqlx::Result<Option<Payment>> {
    sqlx::query(
        "delete from payments where order_id = $1 and user_id is null and state = 'CANCELLED'
             and intent_id is null",
    )
    .bind(origin.order_id)
    .execute(&mut *conn)
    .await?;
    let inserted = sqlx::query(
        "insert into payments (id, order_id, user_id, performance_id, state, amount, currency,
             intent_id, metadata, description, created_at, succeeded_at, next_check_at)
         values ($1, $2, $3, $4, 'SUCCEEDED', $5, $6, $7, $8, 'found again at Stripe',
             to_timestamp($9), to_timestamp($9), 'infinity')
         on conflict do nothing",
    )
    .bind(origin.payment_id)
    .bind(origin.order_id)
    .bind(origin.user_id)
    .bind(origin.performance_id)
    .bind(origin.amount)
    .bind(&origin.currency)
    .bind(&intent.id)
    .bind(Json(&intent.metadata))
    .bind(intent.created as f64)
    .execute(&mut *conn)
    .await?;
    if inserted.rows_affected() == 0 {
        return Ok(None);
    }
    store::by_id(conn, origin.payment_id).await
}
