//! What a buyer does next. A pure step: the buyer, the answer and the plan give
//! the next request and when it is due. Nothing here sends, waits or sleeps.

mod onward;
mod trouble;

use super::args::Scenario;
use super::buyer::{Buyer, Outcome, Stage};
use super::client::{Head, Lost};
use super::notes::Notes;
use super::plan::{Load, Target};
use super::seatmap::SeatMaps;
use super::stats::{Op, Verdict};
use super::wire::{IntentView, OrderView, PaymentView, PlaceView, ProblemView};
pub use onward::note_outside;
use onward::{booking, choose, note_paid, with_order, with_place, with_seats};
use trouble::{after_error, after_refusal};
pub use trouble::{before_leaving, wind_down};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next request, and when it is due.
    Ask(Op, u64),
    /// Give up the place, then end.
    Leave(Outcome),
    End(Outcome),
    /// Nothing follows: polls that come by rate.
    Nothing,
}

/// When a request was due, written and answered.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub due_us: u64,
    pub sent_us: u64,
    pub now_us: u64,
}

/// What buyers share: the plan, what they see, what is noted for the audit.
pub struct World<'a> {
    pub load: &'a Load,
    pub target: &'a Target,
    pub seats: &'a mut SeatMaps,
    pub notes: &'a mut Notes,
    /// Wall clock of the server minus that of the start, to read deadlines with.
    pub started_ms: i64,
}

/// How an answer counts, and what follows from it.
#[derive(Debug)]
pub struct Reading {
    pub verdict: Verdict,
    pub code: String,
    pub detail: String,
    pub next: Next,
}

pub type Reply<'a> = Result<(&'a Head, &'a [u8]), &'a Lost>;

/// Answers that the contract foresees and that are nobody's error.
fn foreseen(op: Op, code: &str) -> bool {
    match op {
        Op::Enter => matches!(
            code,
            "SOLD_OUT" | "QUEUE_FULL" | "BOOKING_NOT_OPEN" | "QUEUE_DRAINING"
        ),
        Op::Poll => matches!(
            code,
            "SOLD_OUT" | "BOOKING_NOT_OPEN" | "QUEUE_TOKEN_EXPIRED"
        ),
        Op::Hold => matches!(
            code,
            "SEATS_TAKEN"
                | "SEAT_LIMIT_EXCEEDED"
                | "HOLDS_EXHAUSTED"
                | "SALES_ENDED"
                | "QUEUE_TOKEN_EXPIRED"
                | "SOLD_OUT"
        ),
        Op::Payment => matches!(code, "HOLD_EXPIRED" | "ORDER_NOT_PAYABLE"),
        Op::Cancel => matches!(code, "PAYMENT_IN_PROGRESS" | "CANCELLATION_CLOSED"),
        Op::Leave => code == "QUEUE_TOKEN_EXPIRED",
        Op::Seats | Op::Confirm | Op::Order => false,
    }
}

/// Reads an answer: counts it, and takes the buyer one step on.
pub fn read(
    buyer: &mut Buyer,
    op: Op,
    reply: Reply<'_>,
    times: Times,
    world: &mut World<'_>,
) -> Reading {
    let (head, body) = match reply {
        Ok(answer) => answer,
        Err(lost) => {
            let next = after_error(buyer, op, None, times, world);
            return Reading {
                verdict: Verdict::Failed,
                code: lost.code.to_owned(),
                detail: lost.detail.clone(),
                next,
            };
        }
    };
    if (200..300).contains(&head.status) {
        return match accept(buyer, op, head, body, times, world) {
            Ok(next) => Reading {
                verdict: Verdict::Fine,
                code: String::new(),
                detail: String::new(),
                next,
            },
            Err(detail) => {
                let next = after_error(buyer, op, Some(head), times, world);
                Reading {
                    verdict: Verdict::Failed,
                    code: "BAD_ANSWER".to_owned(),
                    detail,
                    next,
                }
            }
        };
    }
    let (code, detail) = refusal(op, head, body);
    let declined = op == Op::Confirm && head.status == 402;
    let (verdict, next) = if declined || foreseen(op, &code) {
        (
            Verdict::Refused,
            after_refusal(buyer, op, &code, times, world),
        )
    } else {
        (
            Verdict::Failed,
            after_error(buyer, op, Some(head), times, world),
        )
    };
    Reading {
        verdict,
        code,
        detail,
        next,
    }
}

/// The stable code of a refusal and what it said.
fn refusal(op: Op, head: &Head, body: &[u8]) -> (String, String) {
    if let Some(to) = &head.location {
        let detail = format!("redirected to {to}: --url names where the server itself is");
        return (format!("HTTP_{}", head.status), detail);
    }
    let raw = || String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned();
    if op == Op::Confirm {
        let intent = serde_json::from_slice::<IntentView<'_>>(body)
            .ok()
            .and_then(|view| view.error);
        if let Some(error) = intent {
            let code = error.code.map_or_else(
                || format!("HTTP_{}", head.status),
                std::borrow::Cow::into_owned,
            );
            return (code, error.message.unwrap_or_default().into_owned());
        }
    }
    match serde_json::from_slice::<ProblemView<'_>>(body) {
        Ok(problem) if !problem.code.is_empty() => {
            (problem.code.into_owned(), problem.detail.into_owned())
        }
        _ => (format!("HTTP_{}", head.status), raw()),
    }
}

/// A whole, good answer.
fn accept(
    buyer: &mut Buyer,
    op: Op,
    head: &Head,
    body: &[u8],
    times: Times,
    world: &mut World<'_>,
) -> Result<Next, String> {
    let wrong = |err: serde_json::Error| format!("{}: {err}", op.name());
    let tries = std::mem::take(&mut buyer.tries);
    match op {
        Op::Enter | Op::Poll => {
            let place: PlaceView<'_> = serde_json::from_slice(body).map_err(wrong)?;
            Ok(with_place(buyer, op, &place, times, world))
        }
        Op::Seats => {
            let schedule = booking(buyer, world).schedule;
            world.seats.take_in(schedule, head, body)?;
            Ok(choose(buyer, tries, times, world))
        }
        Op::Hold => {
            let order: OrderView<'_> = serde_json::from_slice(body).map_err(wrong)?;
            Ok(with_seats(buyer, &order, times, world))
        }
        Op::Payment => {
            let payment: PaymentView<'_> = serde_json::from_slice(body).map_err(wrong)?;
            if payment.status == "SUCCEEDED" && payment.client_secret.is_none() {
                // Nothing to pay.
                booking(buyer, world).payment = payment.id;
                note_outside(buyer, times.sent_us, world);
                buyer.stage = Stage::Paid;
                note_paid(buyer, world);
                return Ok(Next::Ask(Op::Order, times.now_us));
            }
            let secret = payment.client_secret.ok_or("payment: no clientSecret")?;
            let (intent, _) = secret
                .split_once("_secret_")
                .ok_or("payment: a clientSecret of another form")?;
            let booking = booking(buyer, world);
            booking.payment = payment.id;
            booking.intent = intent.to_owned();
            booking.publishable_key = payment.publishable_key.unwrap_or_default().into_owned();
            booking.client_secret = secret.into_owned();
            Ok(Next::Ask(
                Op::Confirm,
                times.now_us + buyer.dice.span_us(world.load.people.think),
            ))
        }
        Op::Confirm => {
            let intent: IntentView<'_> = serde_json::from_slice(body).map_err(wrong)?;
            match intent.status.as_deref() {
                Some("succeeded" | "processing" | "requires_capture") => {
                    // From here on the server may give the place up at any moment.
                    note_outside(buyer, times.sent_us, world);
                    buyer.stage = Stage::Paid;
                    note_paid(buyer, world);
                    Ok(Next::Ask(Op::Order, times.now_us))
                }
                other => Err(format!("confirm: the intent is {other:?}")),
            }
        }
        Op::Order => {
            let order: OrderView<'_> = serde_json::from_slice(body).map_err(wrong)?;
            buyer.tries = tries;
            Ok(with_order(buyer, &order, times, world))
        }
        Op::Cancel if world.load.scenario == Scenario::Hold => Ok(Next::Leave(Outcome::Held)),
        Op::Cancel => Ok(Next::Leave(buyer.parting)),
        Op::Leave => Ok(Next::End(buyer.parting)),
    }
}
