//! A new order: hold the seats in Redis, then write it to Postgres.
//!
//! The order's id comes with the idempotency key, before anything is done, so
//! that an attempt that takes over finds what the dead one left: its hold, or
//! its order.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    Reservations,
    catalogue::Catalogue,
    scripts::{self, Held, Hold, NoPlace, Pick},
    store::{self, NewOrder, OrderView},
    writer::Written,
};
use crate::{
    failpoint,
    platform::{
        currency,
        idempotency::{Answer, Claim},
        place::{Place, PlaceState},
        problem::{FieldError, Problem},
    },
};

/// Seats in one order.
const SEATS_MAX: usize = 4;
/// A rebuild by another instance may be lost again before we come; not for ever. One try more counts a turn's holds.
const REBUILDS_MAX: u32 = 3;

/// What to book.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct CreateOrder {
    /// When to go.
    pub schedule_id: Uuid,
    /// These seats, 1 to 4 of them.
    #[serde(default)]
    pub seat_ids: Option<Vec<Uuid>>,
    /// Or the best that are free.
    #[serde(default)]
    pub best_available: Option<BestAvailable>,
}

/// Adjacent seats that leave no single seat, else adjacent, else any.
#[derive(Debug, Deserialize, ToSchema)]
pub struct BestAvailable {
    /// How many, 1 to 4.
    pub count: u32,
    /// Only of this price class.
    #[serde(default)]
    pub grade: Option<String>,
}

impl CreateOrder {
    /// # Errors
    /// 422, field by field.
    pub fn validate(&self) -> Result<(), Problem> {
        let mut errors = Vec::new();
        match (&self.seat_ids, &self.best_available) {
            (Some(ids), None) => {
                if !(1..=SEATS_MAX).contains(&ids.len()) {
                    errors.push(FieldError::new("seatIds", "must name 1 to 4 seats"));
                }
                let distinct: std::collections::HashSet<_> = ids.iter().collect();
                if distinct.len() != ids.len() {
                    errors.push(FieldError::new("seatIds", "must not name a seat twice"));
                }
            }
            (None, Some(best)) => {
                if !(1..=SEATS_MAX).contains(&(best.count as usize)) {
                    errors.push(FieldError::new("bestAvailable.count", "must be 1 to 4"));
                }
            }
            (None, None) | (Some(_), Some(_)) => {
                errors.push(FieldError::new(
                    "seatIds",
                    "give either seatIds or bestAvailable",
                ));
            }
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::validation(errors))
        }
    }

    fn pick(&self, catalogue: &Catalogue) -> Result<Pick, Problem> {
        if let Some(best) = &self.best_available {
            let stretches = catalogue.stretches(best.grade.as_deref());
            if stretches.is_empty() {
                return Err(Problem::validation(vec![FieldError::new(
                    "bestAvailable.grade",
                    "is no grade of this schedule",
                )]));
            }
            return Ok(Pick::Best {
                count: best.count,
                stretches,
            });
        }
        let ids = self.seat_ids.as_deref().unwrap_or_default();
        let unknown: Vec<String> = ids
            .iter()
            .filter(|id| catalogue.index_of(**id).is_none())
            .map(Uuid::to_string)
            .collect();
        if !unknown.is_empty() {
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "SEAT_NOT_FOUND",
                "The schedule has no such seats.",
            )
            .with("seatIds", unknown));
        }
        let indices = ids
            .iter()
            .filter_map(|id| catalogue.index_of(*id))
            .collect();
        Ok(Pick::Seats(indices))
    }
}

/// Whether the payment provider takes this amount; nothing to pay needs no provider.
fn payable(amount: i64, currency: &str) -> Result<(), Problem> {
    if amount == 0 {
        return Ok(());
    }
    match currency::payable(amount, currency) {
        Ok(_) => Ok(()),
        Err(why) => Err(Problem::new(
            StatusCode::CONFLICT,
            "AMOUNT_NOT_PAYABLE",
            format!("This order would cost {amount} {currency}, which cannot be paid: {why}."),
        )
        .with("amount", serde_json::json!(amount))
        .with("currency", serde_json::json!(currency))),
    }
}

/// Refuses what cannot be paid before anything is held. Of the best seats it is not known which they will be where they
/// have several prices: then only what is certain is refused here.
fn check_amount(pick: &Pick, catalogue: &Catalogue) -> Result<(), Problem> {
    let currency = &*catalogue.currency;
    match pick {
        Pick::Seats(indices) => {
            let seats = indices.iter().filter_map(|i| catalogue.seat(*i));
            payable(seats.map(|s| s.price).sum(), currency)
        }
        Pick::Best { count, stretches } => {
            let wanted = stretches.iter().flat_map(|s| s.from..s.to);
            let prices: BTreeSet<i64> = wanted
                .filter_map(|i| catalogue.seat(i))
                .map(|s| s.price)
                .collect();
            match (prices.first(), prices.last()) {
                (Some(least), Some(most)) if least == most => {
                    payable(least * i64::from(*count), currency)
                }
                _ => Ok(()),
            }
        }
    }
}

fn created(view: &OrderView, kept: bool) -> Result<Answer, Problem> {
    let body = serde_json::to_vec(view).map_err(Problem::internal)?;
    Ok(Answer {
        status: StatusCode::CREATED,
        body: body.into(),
        kept,
    })
}

fn taken(seats: Vec<String>) -> Problem {
    let detail = if seats.is_empty() {
        "There are not so many free seats."
    } else {
        "Somebody else has these seats; none were held for you."
    };
    Problem::new(StatusCode::CONFLICT, "SEATS_TAKEN", detail).with("seatIds", seats)
}

fn no_place(reason: NoPlace) -> Problem {
    match reason {
        NoPlace::Waiting => not_admitted(),
        NoPlace::Ended => Problem::new(
            StatusCode::GONE,
            "QUEUE_TOKEN_EXPIRED",
            "Your turn in the queue has ended. Enter again to book.",
        ),
        NoPlace::Over => Problem::new(
            StatusCode::GONE,
            "QUEUE_TOKEN_EXPIRED",
            "The time of your turn for new holds is over. What you hold can still be paid until its deadline.",
        ),
        NoPlace::Closed => Problem::new(
            StatusCode::CONFLICT,
            "BOOKING_NOT_OPEN",
            "Booking has closed.",
        ),
        // The queue has brought it back, and Redis was lost once more meanwhile.
        NoPlace::Old | NoPlace::Recovering => {
            Problem::unavailable("the queue is being put together again").retry_after(2)
        }
    }
}

fn stopped() -> Problem {
    Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "UNAVAILABLE",
        "Sales are stopped while payments are matched. Your place is kept; try again in a minute.",
    )
    .retry_after(15)
}

fn not_admitted() -> Problem {
    Problem::new(
        StatusCode::FORBIDDEN,
        "NOT_ADMITTED",
        "It is not your turn yet. Wait until your place says WORKING.",
    )
}

/// A place by its token, as asked of the queue and as answered.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Restore {
    queue_token: String,
}

/// What the buyer asks, and by which right.
pub(super) struct Asked {
    pub(super) user: Uuid,
    pub(super) place: Place,
    pub(super) order: CreateOrder,
}

fn over_limit(limit: u32, had: u32) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "SEAT_LIMIT_EXCEEDED",
        format!("One person may have {limit} seats of this performance; you have {had}."),
    )
}

fn exhausted() -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "HOLDS_EXHAUSTED",
        "Your turn has held seats ten times, which is all that one turn allows. Pay what you hold, or enter the queue again.",
    )
}

fn sales_ended(catalogue: &Catalogue) -> Problem {
    Problem::new(
        StatusCode::CONFLICT,
        "SALES_ENDED",
        "Tickets of this schedule are not sold any more.",
    )
    .with("salesEndAt", serde_json::json!(catalogue.sales_end_at))
}

impl Reservations {
    /// Holds the seats and writes the order under `id`.
    pub(super) async fn book(
        &self,
        asked: Asked,
        id: Uuid,
        claim: Option<Claim>,
    ) -> Result<Answer, Problem> {
        if claim.as_ref().is_some_and(|c| c.fence > 1)
            && let Some(answer) = self.booked_before(id, asked.user).await?
        {
            return Ok(answer);
        }
        let catalogue = self.catalogues.get(asked.order.schedule_id).await?;
        let place = &asked.place;
        if place.queue != catalogue.performance_id || place.user != asked.user {
            return Err(invalid_token());
        }
        match place.state {
            PlaceState::Registered => return Err(not_admitted()),
            PlaceState::Waiting | PlaceState::Working => {}
        }
        let pick = asked.order.pick(&catalogue)?;
        check_amount(&pick, &catalogue)?;
        let started = std::time::Instant::now();
        let held = self.hold(&asked, &catalogue, &pick, id).await?;
        self.figures.held(&held, started.elapsed());
        let (indices, times) = match held {
            Held::Seats {
                deadline_ms,
                ttl_ms,
                indices,
            } => (indices, (deadline_ms, ttl_ms)),
            Held::Taken(indices) => {
                let seats = indices.iter().filter_map(|i| catalogue.seat(*i));
                return Err(taken(seats.map(|s| s.id.to_string()).collect()));
            }
            Held::Limit(had) => return Err(over_limit(self.config.seat_limit, had)),
            Held::SalesEnded => {
                return Err(sales_ended(&catalogue));
            }
            Held::Exhausted => return Err(exhausted()),
            Held::NoPlace(reason) => return Err(no_place(reason)),
            Held::Stopped => return Err(stopped()),
            Held::Lost(why) => {
                return Err(Problem::unavailable(format!("the queue's state: {why}")));
            }
            Held::Absent | Held::Uncounted => {
                return Err(Problem::unavailable(
                    "the seats vanish as fast as they are rebuilt",
                ));
            }
        };
        failpoint!("orders.after_hold");
        let place = (place.epoch, place.number);
        let mut order = NewOrder::new(id, asked.user, &catalogue, indices, times, place)
            .ok_or_else(|| Problem::internal("the hold names seats that the catalogue has not"))?;
        order.view = order.view.cancellable(self.config.cancel_cutoff());
        if let Err(refused) = payable(order.view.amount, &order.view.currency) {
            // The best seats, of several prices: they are not kept.
            let view = &order.view;
            if let Err(error) = self
                .free_hold(view.performance_id, view.schedule_id, id)
                .await
            {
                tracing::warn!(order.id = %id, %error, "a hold without an order stays until its deadline");
            }
            return Err(refused);
        }
        self.write(order, claim).await
    }

    async fn hold(
        &self,
        asked: &Asked,
        catalogue: &Catalogue,
        pick: &Pick,
        order: Uuid,
    ) -> Result<Held, Problem> {
        let keys = self.keys(catalogue.performance_id);
        let mut hold = Hold {
            order,
            version: 1,
            user: asked.user,
            schedule: catalogue.schedule_id,
            ttl_ms: u64::try_from(self.config.hold_ttl_ms()).unwrap_or(0),
            limit: self.config.seat_limit,
            place: Some((asked.place.epoch, asked.place.number)),
            counted: None,
            sales_end_ms: catalogue.sales_end_at.timestamp_millis(),
            starts_ms: catalogue.starts_at.timestamp_millis(),
            pick,
        };
        let mut redis = self.redis.clone();
        let mut restored = false;
        for _ in 0..=REBUILDS_MAX + 1 {
            match scripts::hold(&mut redis, &keys, &hold).await? {
                Held::Absent => self.rebuild(catalogue.performance_id).await?,
                // Redis has lost the place, or the token is of an earlier epoch: the queue brings it back, once.
                Held::Lost(_) | Held::NoPlace(NoPlace::Old)
                    if !std::mem::replace(&mut restored, true) =>
                {
                    let place = self.restore_place(&asked.place).await?;
                    hold.place = Some((place.epoch, place.number));
                }
                // It worked in the moments that Redis has lost, as its token proves.
                Held::NoPlace(NoPlace::Waiting)
                    if asked.place.state == PlaceState::Working
                        && !std::mem::replace(&mut restored, true) =>
                {
                    let place = self.restore_place(&asked.place).await?;
                    hold.place = Some((place.epoch, place.number));
                }
                // After a loss: the turn goes on, and so does the count of its holds.
                Held::Uncounted => {
                    let (performance, number) = (catalogue.performance_id, asked.place.number);
                    let made = store::orders_of_place(&self.pool, performance, asked.user, number);
                    hold.counted = Some(made.await?);
                }
                held => return Ok(held),
            }
        }
        Ok(Held::Absent)
    }

    /// The place as the queue has it after a loss; it must work.
    async fn restore_place(&self, place: &Place) -> Result<Place, Problem> {
        let path = format!("/internal/v1/queues/{}/restore", place.queue);
        let asked = Restore {
            queue_token: self.places.seal(place),
        };
        let restored: Restore = self.queue.post_json(&path, &asked).await.map_err(|error| {
            match (error.status(), error.code().as_deref()) {
                (Some(StatusCode::GONE), _) => no_place(NoPlace::Ended),
                (_, Some("BOOKING_NOT_OPEN")) => no_place(NoPlace::Closed),
                // It waits in line again, and the seats are gone.
                (_, Some("SOLD_OUT")) => not_admitted(),
                _ => Problem::unavailable(format!("the queue: {error}")).retry_after(2),
            }
        })?;
        let place = self.places.open(&restored.queue_token);
        let place = place.map_err(|_| Problem::internal("the queue's token is not one of ours"))?;
        match place.state {
            PlaceState::Working => Ok(place),
            PlaceState::Registered | PlaceState::Waiting => Err(not_admitted()),
        }
    }

    async fn write(&self, order: NewOrder, claim: Option<Claim>) -> Result<Answer, Problem> {
        let (id, user) = (order.view.id, order.user_id);
        let (performance, schedule) = (order.view.performance_id, order.view.schedule_id);
        let answer = created(&order.view, claim.is_some())?;
        let seats: Vec<String> = order.view.seats.iter().map(|s| s.id.to_string()).collect();
        let keep = claim.map(|c| (c, Bytes::clone(&answer.body)));
        match self.writer.write(order, keep).await {
            Written::New => {
                self.figures.opened.inc();
                Ok(answer)
            }
            Written::Before => self
                .booked_before(id, user)
                .await?
                .ok_or_else(|| Problem::internal("an order's id belongs to another buyer")),
            Written::Taken => {
                // Redis was behind: Postgres has the last word. Free what we
                // held, and bring Redis up to what is true.
                if let Err(error) = self.free_hold(performance, schedule, id).await {
                    tracing::warn!(order.id = %id, %error, "a hold without an order stays until its deadline");
                }
                self.repair_soon(performance);
                Err(taken(seats))
            }
            // Perhaps written, perhaps not: the hold stays, and at its deadline
            // Postgres says which.
            Written::Unknown(error) => Err(Problem::unavailable(error)),
        }
    }

    async fn booked_before(&self, id: Uuid, user: Uuid) -> Result<Option<Answer>, Problem> {
        let Some(order) = store::order(&self.pool, id).await? else {
            return Ok(None);
        };
        if order.row.user_id != user {
            return Ok(None);
        }
        created(&self.view(&order), false).map(Some)
    }
}

pub(super) fn invalid_token() -> Problem {
    Problem::new(
        StatusCode::UNAUTHORIZED,
        "INVALID_QUEUE_TOKEN",
        "Send the newest queue token of your own place in this performance's queue: Queue-Token: <token>.",
    )
}
