//! Polls. Who still waits is answered from the token and the snapshot alone.

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use uuid::Uuid;

use super::{
    State,
    error::Error,
    live::now_ms,
    people::{not_open, sold_out},
    place_json::{self, Told},
    snapshot::Snapshot,
};
use crate::platform::{
    overview::Phase,
    place::{Place, PlaceState, Turn},
};

/// A token older than this is made anew, so that after a loss of Redis it proves
/// that its owner polled as told.
const FRESH_MS: u64 = 10_000;
/// A snapshot that is older is one that nobody asked for, unless Redis is away.
const NEGLECTED_MS: u64 = 2_000;

/// What a poll needs.
pub(super) enum Step {
    /// Nothing more.
    Answer(Response),
    /// The number has come up, or the person works: Redis knows.
    CheckIn,
    /// The token is of an earlier epoch.
    PutBack,
    /// The draw was done without this registration: a place behind everybody drawn.
    Anew,
    /// The snapshot is behind the token.
    Refresh,
    /// No.
    Refuse(Error),
}

impl State {
    /// The answer to a waiting poll, from memory alone: one MAC check, one look
    /// at the snapshot, one buffer. None: go the ordinary way ([`super::router`]).
    /// For callers without an access token beside the place.
    pub fn poll_fast(&self, performance: Uuid, queue_token: &str) -> Option<Response> {
        let lives = self.0.lives.load();
        let live = lives.get(&performance)?;
        let place = self.deps().keys.open(queue_token).ok()?;
        // An old snapshot goes the ordinary way, which refreshes it where it can.
        let neglected = live.age_ms() > NEGLECTED_MS && self.0.writable.problem().is_none();
        if place.queue != performance || live.is_cut_off() || neglected {
            return None;
        }
        let now = now_ms();
        match self.look(&live.snapshot.load(), &place, Some(queue_token), now) {
            Step::Answer(response) => {
                live.asked(now);
                Some(response)
            }
            Step::Refuse(abuse @ Error::TooOften { .. }) => Some(abuse.into_response()),
            Step::CheckIn | Step::PutBack | Step::Anew | Step::Refresh | Step::Refuse(_) => None,
        }
    }

    /// Counts a poll of `place`, once; abuse is refused before anything is spent on it.
    pub(super) fn count_poll(&self, place: &Place, now: u64) -> Result<(), Error> {
        let counted = self.0.pace.count(place.queue, place.user, now);
        counted.map_err(|seconds| Error::TooOften { seconds })
    }

    /// What `place` needs, as the snapshot has it.
    pub(super) fn look(
        &self,
        snapshot: &Snapshot,
        place: &Place,
        token: Option<&str>,
        now: u64,
    ) -> Step {
        if place.epoch > snapshot.epoch() {
            return Step::Refresh;
        }
        if place.state == PlaceState::Registered {
            return self.look_registered(snapshot, place, token, now);
        }
        if place.state == PlaceState::Waiting {
            if snapshot.cut(place.number) || snapshot.phase == Phase::Closed {
                if place.number > snapshot.served() || snapshot.cut(place.number) {
                    return suspended(snapshot, place, now);
                }
            } else if snapshot.phase == Phase::SoldOut && place.number > snapshot.served() {
                return suspended(snapshot, place, now);
            }
        }
        if !snapshot.keeps(place) {
            return Step::PutBack;
        }
        if place.state == PlaceState::Waiting && place.number > snapshot.served() {
            return match self.count_poll(place, now) {
                Ok(()) => {
                    Step::Answer(self.waiting(snapshot, place, token, None, now, StatusCode::OK))
                }
                Err(abuse) => Step::Refuse(abuse),
            };
        }
        Step::CheckIn
    }

    fn look_registered(
        &self,
        snapshot: &Snapshot,
        place: &Place,
        token: Option<&str>,
        now: u64,
    ) -> Step {
        if let Some(number) = snapshot.drawn(place.number) {
            let drawn = Place {
                number,
                state: PlaceState::Waiting,
                position: 0,
                ..*place
            };
            return self.look(snapshot, &drawn, None, now);
        }
        match snapshot.phase {
            Phase::SoldOut => return Step::Refuse(sold_out(snapshot, place.number)),
            Phase::Closed => return Step::Refuse(not_open(snapshot, place.number)),
            _ => {}
        }
        if snapshot.draw.as_ref().is_some_and(|d| d.revealed.is_some()) {
            return Step::Anew;
        }
        if !snapshot.keeps(place) {
            return Step::PutBack;
        }
        match self.count_poll(place, now) {
            Ok(()) => Step::Answer(self.registered(snapshot, place, token, now, StatusCode::OK)),
            Err(abuse) => Step::Refuse(abuse),
        }
    }

    /// WAITING; `position` when Redis gave it.
    pub(super) fn waiting(
        &self,
        snapshot: &Snapshot,
        place: &Place,
        token: Option<&str>,
        position: Option<u64>,
        now: u64,
        status: StatusCode,
    ) -> Response {
        let position = position.map_or_else(
            || snapshot.position(place.number, place.position),
            |known| match place.position {
                0 => known,
                told => known.min(u64::from(told)),
            },
        );
        let told = Told {
            phase: snapshot.phase,
            position,
            estimate: snapshot.estimate(position),
            poll_after_ms: snapshot.poll_after_ms(position, place.number),
        };
        let token = token.filter(|_| now.saturating_sub(place.issued_ms) < FRESH_MS);
        let place = Place {
            state: PlaceState::Waiting,
            // What an epoch took over belongs to it.
            epoch: snapshot.epoch().max(place.epoch),
            issued_ms: now,
            turn: Turn::default(),
            position: u32::try_from(position).unwrap_or(u32::MAX),
            ..*place
        };
        place_json::response(&self.deps().keys, &place, token, told, status)
    }

    /// REGISTERED.
    pub(super) fn registered(
        &self,
        snapshot: &Snapshot,
        place: &Place,
        token: Option<&str>,
        now: u64,
        status: StatusCode,
    ) -> Response {
        let told = Told {
            phase: snapshot.phase,
            poll_after_ms: snapshot.poll_registered_ms(place.number),
            ..Told::default()
        };
        let token = token.filter(|_| now.saturating_sub(place.issued_ms) < FRESH_MS);
        let place = Place {
            issued_ms: now,
            ..*place
        };
        place_json::response(&self.deps().keys, &place, token, told, status)
    }

    /// WORKING, for `turn`.
    pub(super) fn working(
        &self,
        snapshot: &Snapshot,
        place: &Place,
        epoch: u32,
        turn: Turn,
        status: StatusCode,
    ) -> Response {
        let place = Place {
            state: PlaceState::Working,
            epoch,
            turn,
            issued_ms: 0,
            position: 0,
            ..*place
        };
        let told = Told {
            phase: snapshot.phase,
            poll_after_ms: snapshot.poll_working_ms(),
            ..Told::default()
        };
        place_json::response(&self.deps().keys, &place, None, told, status)
    }
}

/// SOLD_OUT and CLOSED suspend the places that wait. One of an earlier epoch comes back meanwhile, so that it
/// stands in its order when the seats do.
fn suspended(snapshot: &Snapshot, place: &Place, now: u64) -> Step {
    let returns = snapshot.poll_suspended_ms(place.number).is_some()
        && !snapshot.cut(place.number)
        && !snapshot.keeps(place);
    // Once in a while is enough: the token stays one of the earlier epoch.
    if returns && now.saturating_sub(place.issued_ms) > FRESH_MS {
        return Step::PutBack;
    }
    Step::Refuse(match snapshot.phase {
        Phase::SoldOut => sold_out(snapshot, place.number),
        Phase::Closed => not_open(snapshot, place.number),
        _ => Error::Ended,
    })
}
