//! Answers that say no, answers that are none, and the end of the run.

use super::super::args::Scenario;
use super::super::buyer::{Buyer, Outcome, Stage};
use super::super::client::Head;
use super::super::stats::Op;
use super::onward::{CHOICES_MAX, ORDER_POLL_US, booking, note_outside, poll_again};
use super::{Next, Times, World};

/// A buyer who meets errors tries this often before the journey has failed.
const TRIES_MAX: u8 = 6;

/// The contract said no.
pub(super) fn after_refusal(
    buyer: &mut Buyer,
    op: Op,
    code: &str,
    times: Times,
    world: &mut World<'_>,
) -> Next {
    let think = buyer.dice.span_us(world.load.people.think);
    match (op, code) {
        (Op::Confirm, _) => {
            let second_card = buyer.fate.second_card;
            let booking = booking(buyer, world);
            if second_card && !std::mem::replace(&mut booking.card_declined, true) {
                return Next::Ask(Op::Confirm, times.now_us + think);
            }
            buyer.parting = Outcome::Declined;
            Next::Ask(Op::Cancel, times.now_us + think)
        }
        (Op::Hold, "SEATS_TAKEN") if world.load.scenario == Scenario::Surge => {
            buyer.tries += 1;
            let booking = booking(buyer, world);
            let (schedule, wanted) = (booking.schedule, std::mem::take(&mut booking.wanted));
            world.seats.taken(schedule, &wanted);
            if buyer.tries > CHOICES_MAX {
                return Next::Leave(Outcome::NoSeats);
            }
            Next::Ask(Op::Seats, times.now_us + think)
        }
        (Op::Hold, "SEATS_TAKEN") => Next::Leave(Outcome::NoSeats),
        // The turn is used up before the buyer found seats.
        (Op::Hold, "HOLDS_EXHAUSTED") => Next::Leave(Outcome::Lapsed),
        (Op::Hold, "SALES_ENDED") => Next::Leave(Outcome::NotOpen),
        (Op::Hold, "SEAT_LIMIT_EXCEEDED") => Next::Leave(Outcome::SeatLimit),
        (Op::Payment, _) => Next::Leave(Outcome::HoldExpired),
        (Op::Cancel, "PAYMENT_IN_PROGRESS") => Next::Ask(Op::Order, times.now_us + ORDER_POLL_US),
        (Op::Cancel, _) => Next::Leave(buyer.parting),
        (Op::Leave, _) => Next::End(buyer.parting),
        (_, "QUEUE_TOKEN_EXPIRED") => {
            note_outside(buyer, times.sent_us, world);
            buyer.forget_place();
            if world.load.scenario == Scenario::Poll && buyer.twin_of.is_none() {
                return Next::Ask(Op::Enter, times.now_us);
            }
            Next::End(Outcome::Lapsed)
        }
        (_, "SOLD_OUT") => {
            buyer.place = None;
            Next::End(Outcome::SoldOut)
        }
        (_, "QUEUE_FULL") => Next::End(Outcome::QueueFull),
        _ => Next::End(Outcome::NotOpen),
    }
}

/// Asked again, the same request would be answered the same: it was redirected, or is itself at fault. Not so one that
/// came too early, too late or too often.
fn is_final(status: u16) -> bool {
    matches!(status, 300..=499) && !matches!(status, 408 | 409 | 423 | 425 | 429)
}

/// Something went wrong: try again as a person would, after a pause that grows.
pub(super) fn after_error(
    buyer: &mut Buyer,
    op: Op,
    answer: Option<&Head>,
    times: Times,
    world: &World<'_>,
) -> Next {
    let (status, retry_after_s) =
        answer.map_or((0, None), |head| (head.status, head.retry_after_s));
    if is_final(status) && op != Op::Leave {
        return if buyer.place.is_some() && buyer.twin_of.is_none() {
            Next::Leave(Outcome::Failed)
        } else {
            Next::End(Outcome::Failed)
        };
    }
    if op == Op::Poll {
        return poll_again(buyer, op, times, world);
    }
    buyer.tries = buyer.tries.saturating_add(1);
    if op == Op::Leave {
        return Next::End(buyer.parting);
    }
    // Money is under way: the answer is worth waiting for, as long as the run lasts.
    if buyer.tries > TRIES_MAX && op != Op::Order {
        return if buyer.place.is_some() {
            Next::Leave(Outcome::Failed)
        } else {
            Next::End(Outcome::Failed)
        };
    }
    let pause_us = match retry_after_s {
        Some(seconds) => u64::from(seconds.clamp(1, 60)) * 1_000_000,
        None => 500_000 << buyer.tries.min(4),
    };
    let jitter = buyer.dice.below((pause_us / 4) as usize) as u64;
    Next::Ask(op, times.now_us + pause_us + jitter)
}

/// The run is over: what this buyer does instead of the next request.
pub fn wind_down(buyer: &mut Buyer, next: Next, scenario: Scenario) -> Next {
    let unfinished = match scenario {
        Scenario::Poll if buyer.place.is_some() => Outcome::Polled,
        _ => Outcome::Unfinished,
    };
    match next {
        Next::Ask(Op::Order | Op::Cancel | Op::Leave, _) | Next::Leave(_) | Next::End(_) => next,
        Next::Ask(Op::Payment | Op::Confirm, due_us) if buyer.booking.is_some() => {
            buyer.parting = unfinished;
            Next::Ask(Op::Cancel, due_us)
        }
        Next::Ask(..) | Next::Nothing if buyer.place.is_some() && buyer.twin_of.is_none() => {
            Next::Leave(unfinished)
        }
        Next::Ask(..) | Next::Nothing => Next::End(unfinished),
    }
}

/// Before the place is given up: from here on it cannot be counted as held.
pub fn before_leaving(buyer: &mut Buyer, now_us: u64, world: &mut World<'_>) {
    buyer.stage = Stage::Leaving;
    note_outside(buyer, now_us, world);
}
