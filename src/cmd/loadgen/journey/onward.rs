//! Good answers: a place, seats, an order, and what follows from each.

use super::super::args::Scenario;
use super::super::buyer::{Booking, Buyer, Outcome, Stage, Walk};
use super::super::notes::Paid;
use super::super::stats::Op;
use super::super::wire::{OrderView, PlaceStatus, PlaceView};
use super::{Next, Times, World};

/// A buyer whose seats are always taken by others looks for new ones this often.
pub(super) const CHOICES_MAX: u8 = 25;
/// How long a buyer looks at "payment received" before asking again: 100 ms, doubled up to a second.
pub(super) const ORDER_POLL_US: u64 = 100_000;
const ORDER_POLL_MAX_US: u64 = 1_000_000;
/// Without a word from the server: the shortest interval it would ever tell.
const POLL_DEFAULT_MS: u32 = 1_000;

pub(super) fn with_place(
    buyer: &mut Buyer,
    op: Op,
    place: &PlaceView<'_>,
    times: Times,
    world: &mut World<'_>,
) -> Next {
    buyer.keep_token(place.queue_token);
    buyer.poll_after_ms = place.poll_after_ms;
    if let Some(number) = place.number {
        if buyer.number != 0 && op == Op::Enter {
            world.notes.same_place(buyer.number, number, "coming back");
        } else if buyer.number != 0 && buyer.number != number {
            world.notes.same_place(buyer.number, number, "a poll");
        }
        buyer.number = number;
    }
    if let Some(position) = place.position {
        world.notes.position(buyer.number, buyer.position, position);
        buyer.position = u32::try_from(position).unwrap_or(u32::MAX);
    }
    let scenario = world.load.scenario;
    if place.status == PlaceStatus::Working {
        note_working(buyer, place, times, world);
        if scenario == Scenario::Enter {
            return Next::End(Outcome::Entered);
        }
        if scenario == Scenario::Poll {
            return poll_again(buyer, op, times, world);
        }
        if buyer.twin_of.is_some() {
            return Next::End(Outcome::WalkedAway);
        }
        if buyer.fate.walks_away == Some(Walk::OnceAdmitted) {
            return Next::End(Outcome::WalkedAway);
        }
        // Which schedule, is chosen on the way in.
        booking(buyer, world);
        let think = buyer.dice.span_us(world.load.people.think);
        return Next::Ask(
            if scenario == Scenario::Surge {
                Op::Seats
            } else {
                Op::Hold
            },
            times.now_us + think,
        );
    }
    buyer.stage = Stage::Waiting;
    if place.status == PlaceStatus::Waiting && !buyer.was_inside {
        world.notes.waiting(buyer.number, times.sent_us);
    }
    if scenario == Scenario::Enter {
        return Next::End(Outcome::Entered);
    }
    if buyer.fate.walks_away == Some(Walk::WhileWaiting) && op == Op::Poll {
        return Next::End(Outcome::WalkedAway);
    }
    if buyer.fate.comes_back && !buyer.came_back {
        buyer.came_back = true;
        let think = buyer.dice.span_us(world.load.people.think);
        return Next::Ask(
            Op::Enter,
            times.now_us + think.max(u64::from(buyer.poll_after_ms) * 500),
        );
    }
    poll_again(buyer, op, times, world)
}

/// The next poll is due one interval after this one was, however late this one was answered.
/// At a fixed interval people keep their own beat: were the first poll due one interval after the entry,
/// all who entered in one instant would poll in one instant for ever, which no crowd does.
pub(super) fn poll_again(buyer: &mut Buyer, op: Op, times: Times, world: &World<'_>) -> Next {
    if world.load.polls.is_some() {
        return Next::Nothing;
    }
    let told_ms = if buyer.poll_after_ms == 0 {
        POLL_DEFAULT_MS
    } else {
        buyer.poll_after_ms
    };
    let every_us = world.load.poll_every.map(|every| every.as_micros() as u64);
    let interval_us = every_us.unwrap_or(u64::from(told_ms) * 1_000);
    if op == Op::Poll {
        return Next::Ask(Op::Poll, times.due_us + interval_us);
    }
    let beat_us = every_us.map_or(0, |every| buyer.dice.below(every as usize) as u64);
    // Nobody can poll before there is a place.
    Next::Ask(
        Op::Poll,
        (times.due_us + interval_us + beat_us).max(times.now_us),
    )
}

pub(super) fn note_working(
    buyer: &mut Buyer,
    place: &PlaceView<'_>,
    times: Times,
    world: &mut World<'_>,
) {
    buyer.stage = Stage::Inside;
    buyer.was_inside = true;
    let until_ms = place
        .expires_at
        .map_or(0, |at| (at.timestamp_millis() - world.started_ms).max(0));
    let until_ms = u32::try_from(until_ms).unwrap_or(u32::MAX);
    // A second tab shows the same place: one admission.
    if buyer.twin_of.is_some() {
        return;
    }
    match buyer.admission {
        Some(index) => world.notes.admissions[index as usize].until_ms = until_ms,
        None => buyer.admission = Some(world.notes.admitted(buyer.number, times.now_us, until_ms)),
    }
}

/// From this moment on the place may be gone.
pub fn note_outside(buyer: &mut Buyer, now_us: u64, world: &mut World<'_>) {
    if let Some(index) = buyer.admission.take() {
        let admission = &mut world.notes.admissions[index as usize];
        admission.until_ms = admission.until_ms.min((now_us / 1_000) as u32);
    }
}

pub(super) fn booking<'a>(buyer: &'a mut Buyer, world: &World<'_>) -> &'a mut Booking {
    if buyer.booking.is_none() {
        let schedules = &world.target.schedules;
        let schedule = schedules
            .get(buyer.dice.below(schedules.len()))
            .copied()
            .unwrap_or_default();
        buyer.booking = Some(Box::new(Booking {
            schedule,
            ..Booking::default()
        }));
    }
    buyer.booking.get_or_insert_default()
}

/// Picks seats from the map, as a person would.
pub(super) fn choose(buyer: &mut Buyer, tries: u8, times: Times, world: &mut World<'_>) -> Next {
    let (count, first) = (usize::from(buyer.fate.seats), buyer.fate.same_seat);
    let schedule = booking(buyer, world).schedule;
    let wanted = world.seats.choose(schedule, count, first, &mut buyer.dice);
    buyer.tries = tries;
    if wanted.is_empty() {
        // Held seats come back when they are not paid: look again, a while.
        buyer.tries += 1;
        if buyer.tries > CHOICES_MAX {
            return Next::Leave(Outcome::NoSeats);
        }
        return Next::Ask(Op::Seats, times.now_us + 1_000_000);
    }
    booking(buyer, world).wanted = wanted;
    Next::Ask(
        Op::Hold,
        times.now_us + buyer.dice.span_us(world.load.people.think),
    )
}

pub(super) fn with_seats(
    buyer: &mut Buyer,
    order: &OrderView<'_>,
    times: Times,
    world: &mut World<'_>,
) -> Next {
    let think = buyer.dice.span_us(world.load.people.think);
    let booking = booking(buyer, world);
    booking.order = order.id;
    booking.schedule = order.schedule_id;
    booking.wanted = order.seats.iter().map(|seat| seat.id).collect();
    if world.load.scenario == Scenario::Hold {
        return Next::Ask(Op::Cancel, times.now_us + think);
    }
    if buyer.fate.walks_away == Some(Walk::WithSeats) {
        return Next::End(Outcome::WalkedAway);
    }
    Next::Ask(Op::Payment, times.now_us + think)
}

/// Notes the payment of this buyer's order, once.
pub(super) fn note_paid<'a>(buyer: &mut Buyer, world: &'a mut World<'_>) -> &'a mut Paid {
    let member = buyer.member;
    let booking = booking(buyer, world);
    let paid = &mut world.notes.paid;
    // Newest last: the search is short.
    let known = paid.iter().rposition(|paid| paid.order == booking.order);
    let index = known.unwrap_or_else(|| {
        paid.push(Paid {
            member,
            order: booking.order,
            payment: booking.payment,
            confirmed: false,
            schedule: booking.schedule,
            seats: Vec::new(),
        });
        paid.len() - 1
    });
    &mut paid[index]
}

pub(super) fn with_order(
    buyer: &mut Buyer,
    order: &OrderView<'_>,
    times: Times,
    world: &mut World<'_>,
) -> Next {
    match &*order.status {
        "CONFIRMED" => {
            let noted = note_paid(buyer, world);
            noted.confirmed = true;
            noted.seats = order.seats.iter().map(|seat| seat.id).collect();
            buyer.place = None;
            Next::End(Outcome::Confirmed)
        }
        "PENDING_PAYMENT" => {
            let wait = (ORDER_POLL_US << buyer.tries.min(4)).min(ORDER_POLL_MAX_US);
            buyer.tries = buyer.tries.saturating_add(1);
            Next::Ask(Op::Order, times.now_us + wait)
        }
        _ => Next::Leave(Outcome::PaidNotConfirmed),
    }
}
