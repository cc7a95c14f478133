//! What an instance knows of a queue without asking: figures, exact ranks at
//! some numbers, and the rate measured. Pure; refreshed a few times a second.

use std::collections::VecDeque;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use serde::Serialize;
use uuid::Uuid;

use super::{draw::Permutation, scripts::View};
use crate::platform::{
    overview::Phase,
    place::{Place, PlaceState},
};

/// How far admissions are looked back on.
const RATE_WINDOW_MS: i64 = 120_000;
/// The nearer past, for the other end of the range.
const RATE_RECENT_MS: i64 = 20_000;
/// Less time than this measures nothing.
const RATE_SPAN_MIN_MS: i64 = 2_000;

/// How often who works asks: often enough to see the end of the turn.
pub const WORKING_POLL_MS: u64 = 5_000;
/// SOLD_OUT and CLOSED suspend waiting places for so long, as the prelude has it.
const SUSPENDED_MS: i64 = 600_000;
/// How often people whose places are suspended ask again, before their spread.
const SUSPENDED_POLL_MS: u64 = 15_000;

/// Exact ranks at some numbers, as they were when `admitted` people had come in.
#[derive(Clone, Debug, Default)]
pub struct Ranks {
    /// `gone` of the state they belong to; −1: none yet.
    pub at: i64,
    front: Vec<u64>,
    bounds: Vec<(u64, u64)>,
    admitted: i64,
    last: u64,
    waiting: u64,
}

impl Ranks {
    /// None yet.
    pub fn none() -> Self {
        Self {
            at: -1,
            ..Self::default()
        }
    }

    /// The ranks that came with `view`.
    pub fn new(view: &View, front: Vec<u64>, bounds: Vec<(u64, u64)>) -> Self {
        Self {
            at: view.gone,
            front,
            bounds,
            admitted: view.admitted,
            last: view.last.unsigned_abs(),
            waiting: view.waiting.unsigned_abs(),
        }
    }

    /// Whether the exact front is used up, so that it is time for fresh ones.
    pub fn stale(&self, view: &View) -> bool {
        !self.bounds.is_empty()
            && view.admitted - self.admitted > i64::try_from(self.front.len() / 2).unwrap_or(0)
    }

    /// The position of `number`: exact in the front and at the boundaries, between them the
    /// least that is certain not to be too small. It only shrinks: boundaries stay where they
    /// are, and what is below them only goes away.
    fn position(&self, number: u64, served: u64, admitted: i64) -> u64 {
        // Numbers are issued one by one, so no more people than numbers can stand between.
        let mut ahead = number.saturating_sub(served + 1);
        let mut at_most = |n: u64| ahead = ahead.min(n);
        let passed = (admitted - self.admitted).max(0).unsigned_abs();
        if number > self.last {
            at_most((self.waiting + (number - self.last - 1)).saturating_sub(passed));
        } else {
            match self.front.last() {
                Some(&end) if number <= end => {
                    let below = self.front.partition_point(|&n| n < number);
                    at_most((below as u64).saturating_sub(passed));
                }
                Some(&end) => {
                    at_most((self.front.len() as u64 + (number - end - 1)).saturating_sub(passed));
                    let next = self.bounds.partition_point(|&(b, _)| b <= number);
                    if let Some(&(bound, below)) = next.checked_sub(1).map(|i| &self.bounds[i]) {
                        at_most((below + (number - bound)).saturating_sub(passed));
                    }
                    if let Some(&(_, below)) = self.bounds.get(next) {
                        at_most(below.saturating_sub(passed + 1));
                    }
                    at_most(self.waiting.saturating_sub(passed + 1));
                }
                None => at_most(0),
            }
        }
        ahead + 1
    }
}

/// Admissions measured by this instance.
#[derive(Debug, Default)]
pub struct RateMeter {
    samples: VecDeque<(i64, i64)>,
}

/// Admissions a second; None where there is nothing to measure.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    slow: Option<f64>,
    fast: Option<f64>,
    /// Over the last minute.
    pub per_minute: f64,
}

impl RateMeter {
    /// Takes a reading of the counter of admissions.
    pub fn read(&mut self, now_ms: i64, admitted: i64) -> Rate {
        if self.samples.back().is_some_and(|&(_, n)| n > admitted) {
            self.samples.clear(); // the counter began anew
        }
        if self
            .samples
            .back()
            .is_none_or(|&(at, _)| now_ms - at >= 1_000)
        {
            self.samples.push_back((now_ms, admitted));
        }
        while self
            .samples
            .front()
            .is_some_and(|&(at, _)| now_ms - at > RATE_WINDOW_MS)
        {
            self.samples.pop_front();
        }
        let over = |window: i64| {
            let &(at, n) = self
                .samples
                .iter()
                .find(|&&(at, _)| now_ms - at <= window)?;
            let span = now_ms - at;
            #[allow(
                clippy::cast_precision_loss,
                reason = "counts of people and ms are far below 2^53"
            )]
            let rate = (admitted - n) as f64 * 1000.0 / span as f64;
            (span >= RATE_SPAN_MIN_MS && rate > 0.0).then_some(rate)
        };
        let (a, b) = (over(RATE_WINDOW_MS), over(RATE_RECENT_MS));
        let of = |pick: fn(f64, f64) -> f64| match (a, b) {
            (Some(a), Some(b)) => Some(pick(a, b)),
            (one, other) => one.or(other),
        };
        Rate {
            slow: of(f64::min),
            fast: of(f64::max),
            per_minute: over(60_000).unwrap_or(0.0) * 60.0,
        }
    }
}

/// The draw as the public sees it.
#[derive(Clone, Debug)]
pub struct DrawView {
    /// SHA-256 of the seed.
    pub commitment: String,
    /// The seed, and the permutation that it makes, once published.
    pub revealed: Option<(Vec<u8>, Permutation)>,
}

/// One reading of a queue.
#[derive(Debug)]
pub struct Snapshot {
    /// Which queue.
    pub performance: Uuid,
    /// The figures.
    pub view: View,
    /// Where it stands.
    pub phase: Phase,
    /// Epochs that were taken over, each with its last number.
    pub kept: Vec<(u64, u64)>,
    /// Ranks.
    pub ranks: std::sync::Arc<Ranks>,
    /// Measured admissions.
    pub rate: Rate,
    /// The draw, from the opening of the pre-queue.
    pub draw: Option<DrawView>,
    /// `GET /queues/{id}`, ready to send.
    pub public: Bytes,
    /// The same without its time: what makes an event.
    pub changes: String,
}

/// The phase of a queue, from its figures alone.
pub fn phase(v: &View) -> Phase {
    let is = |at: i64| at >= 0 && v.wall >= at;
    let undrawn = v.draw_lo >= 0 && (v.draw_hi < 0 || v.draw_next <= v.draw_hi);
    if is(v.closes_at) {
        Phase::Closed
    } else if v.opens_at >= 0 && !is(v.opens_at) {
        if is(v.pre_queue_opens_at) {
            Phase::PreQueue
        } else {
            Phase::Upcoming
        }
    } else if v.remaining == 0 {
        Phase::SoldOut
    } else if v.now < v.recover_until {
        Phase::Recovering
    } else if undrawn {
        Phase::PreQueue
    } else if v.draining == 1 {
        Phase::Draining
    } else if v.paused == 1 {
        Phase::Paused
    } else {
        Phase::Open
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PublicDraw {
    commitment: String,
    seed: Option<String>,
    first: Option<u64>,
    count: Option<u64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Public {
    performance_id: Uuid,
    phase: Phase,
    served_number: u64,
    last_number: u64,
    waiting: u64,
    registered: u64,
    working: u64,
    max_working: u64,
    remaining_seats: u64,
    admissions_per_minute: Option<u64>,
    poll_after_ms: u64,
    opens_at: Option<String>,
    closes_at: Option<String>,
    pre_queue_opens_at: Option<String>,
    draw: Option<PublicDraw>,
    #[serde(skip_serializing_if = "Option::is_none")]
    as_of: Option<String>,
}

/// RFC 3339, milliseconds, UTC.
pub fn rfc3339(ms: i64) -> Option<String> {
    DateTime::<Utc>::from_timestamp_millis(ms)
        .filter(|_| ms >= 0)
        .map(|t| t.to_rfc3339_opts(SecondsFormat::Millis, true))
}

impl Snapshot {
    /// Puts a reading together.
    pub fn new(
        performance: Uuid,
        view: View,
        kept: Vec<(u64, u64)>,
        ranks: std::sync::Arc<Ranks>,
        rate: Rate,
        draw: Option<DrawView>,
    ) -> Self {
        let mut snapshot = Self {
            performance,
            phase: phase(&view),
            view,
            kept,
            ranks,
            rate,
            draw,
            public: Bytes::new(),
            changes: String::new(),
        };
        let mut public = snapshot.shown();
        snapshot.changes = json(&public);
        public.as_of = rfc3339(snapshot.view.wall);
        snapshot.public = json(&public).into();
        snapshot
    }

    fn shown(&self) -> Public {
        let v = &self.view;
        let count = |n: i64| n.max(0).unsigned_abs();
        let newcomer = self.position(count(v.last) + 1, 0);
        Public {
            performance_id: self.performance,
            phase: self.phase,
            served_number: count(v.served),
            last_number: count(v.last),
            waiting: count(v.waiting),
            registered: count(v.registered),
            working: count(v.working),
            max_working: count(v.max_working),
            remaining_seats: count(v.remaining),
            admissions_per_minute: (v.admissions_per_minute >= 0)
                .then(|| count(v.admissions_per_minute)),
            poll_after_ms: self.interval_ms(newcomer),
            opens_at: rfc3339(v.opens_at),
            closes_at: rfc3339(v.closes_at),
            pre_queue_opens_at: rfc3339(v.pre_queue_opens_at),
            draw: self.draw.as_ref().map(|d| PublicDraw {
                commitment: d.commitment.clone(),
                seed: d.revealed.as_ref().map(|(seed, _)| hex::encode(seed)),
                first: d.revealed.as_ref().map(|_| count(v.draw_lo) + 1),
                count: d.revealed.as_ref().map(|(_, p)| p.count()),
            }),
            as_of: None,
        }
    }

    /// The epoch it belongs to.
    pub fn epoch(&self) -> u32 {
        u32::try_from(self.view.epoch).unwrap_or(0)
    }

    /// Everybody at or below has had the turn come up.
    pub fn served(&self) -> u64 {
        self.view.served.unsigned_abs()
    }

    /// The position of a number that waits; never above `told`, unless that is 0.
    pub fn position(&self, number: u64, told: u32) -> u64 {
        let position = self
            .ranks
            .position(number, self.served(), self.view.admitted);
        match told {
            0 => position,
            told => position.min(u64::from(told)),
        }
    }

    /// The poll interval at a position, before jitter; jitter only shortens it.
    pub fn interval_ms(&self, position: u64) -> u64 {
        let v = &self.view;
        (v.poll_min.unsigned_abs()
            + position
                .saturating_sub(1)
                .saturating_mul(v.poll_step.unsigned_abs()))
        .min(v.poll_max.unsigned_abs())
    }

    /// The interval told: a fifth is spread by the number, so that a crowd that
    /// entered together does not poll together.
    pub fn poll_after_ms(&self, position: u64, number: u64) -> u64 {
        let interval = self.interval_ms(position);
        interval - spread(number ^ self.view.now.unsigned_abs(), interval / 5)
    }

    /// When somebody who works should ask again.
    pub fn poll_working_ms(&self) -> u64 {
        WORKING_POLL_MS.min(self.view.poll_max.unsigned_abs())
    }

    /// When a registration should ask again: soon after the opening, spread by how many there are.
    pub fn poll_registered_ms(&self, index: u64) -> u64 {
        let v = &self.view;
        let crowd = (v.registered.unsigned_abs() / 5).clamp(2_000, 60_000);
        let opening = v.opens_at.saturating_sub(v.wall).max(0).unsigned_abs();
        (opening + spread(index, crowd)).clamp(v.poll_min.unsigned_abs(), v.poll_max.unsigned_abs())
    }

    /// Seconds until the turn, from the rates measured and the limit on admissions; None while nobody
    /// can be admitted, or nothing was measured.
    pub fn estimate(&self, position: u64) -> Option<(u64, u64)> {
        let admits = match self.phase {
            Phase::Open | Phase::Draining => true,
            Phase::Upcoming
            | Phase::PreQueue
            | Phase::Paused
            | Phase::Recovering
            | Phase::SoldOut
            | Phase::Closed
            | Phase::Unknown => false,
        };
        let limit = self.view.admissions_per_minute;
        if !admits || self.view.paused == 1 || self.view.max_working <= 0 || limit == 0 {
            return None;
        }
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "positions are far below 2^53, and the cast saturates"
        )]
        let seconds = |rate: f64, slack: f64| (position as f64 / rate * slack) as u64;
        let (slow, fast) = (self.rate.slow?, self.rate.fast?);
        let (min, max) = (seconds(fast, 0.8), seconds(slow, 1.25) + 1);
        // No sooner than the limit allows: what is saved up is a second's worth, or one.
        let limit = limit.max(0).unsigned_abs();
        let saved = (limit / 60).max(1);
        let soonest = position
            .saturating_sub(saved)
            .saturating_mul(60)
            .checked_div(limit)
            .unwrap_or(0);
        let min = min.max(soonest);
        Some((min, max.max(min + min / 4 + 1)))
    }

    /// Whether the token of `place` counts as it is: its epoch is this one, or was taken over.
    pub fn keeps(&self, place: &Place) -> bool {
        let (epoch, number) = (u64::from(place.epoch), place.number);
        if place.epoch == self.epoch() {
            return true;
        }
        let from = u64::try_from(self.view.kept_from).ok();
        from.is_some_and(|from| (from..u64::from(self.epoch())).contains(&epoch))
            && self
                .kept
                .iter()
                .all(|&(upto, last)| epoch > upto || number <= last)
    }

    /// While waiting places are suspended: when the person with `number` should ask again.
    pub fn poll_suspended_ms(&self, number: u64) -> Option<u64> {
        let v = &self.view;
        let suspended = v.suspended_at >= 0 && v.now < v.suspended_at + SUSPENDED_MS;
        suspended.then(|| {
            let most = v.poll_max.unsigned_abs();
            let interval = SUSPENDED_POLL_MS.min(most).max(1);
            interval - spread(number ^ v.now.unsigned_abs(), interval / 5)
        })
    }

    /// Whether `number` waited when all waiting places were ended together.
    pub fn cut(&self, number: u64) -> bool {
        let v = &self.view;
        v.cut_lo >= 0 && number > v.cut_lo.unsigned_abs() && number <= v.cut_hi.unsigned_abs()
    }

    /// The number that registration `index` has drawn, once that is known.
    pub fn drawn(&self, index: u64) -> Option<u64> {
        let (_, permutation) = self.draw.as_ref()?.revealed.as_ref()?;
        let lo = u64::try_from(self.view.draw_lo).ok()?;
        let i = index.checked_sub(lo + 1)?;
        (i < permutation.count()).then(|| lo + 1 + permutation.permute(i))
    }

    /// The registration that has drawn `number`, where one has.
    fn registration(&self, number: u64) -> Option<u64> {
        let (_, permutation) = self.draw.as_ref()?.revealed.as_ref()?;
        let lo = u64::try_from(self.view.draw_lo).ok()?;
        let i = number.checked_sub(lo + 1)?;
        (i < permutation.count()).then(|| lo + 1 + permutation.invert(i))
    }

    /// What `place` is called in Redis and in Postgres, before and after its number is written:
    /// its number, and its registration as a negative one, since somebody else may draw a number
    /// that equals it.
    pub fn names(&self, place: &Place) -> Vec<i64> {
        let (number, registration) = match place.state {
            PlaceState::Registered => (self.drawn(place.number), Some(place.number)),
            PlaceState::Waiting | PlaceState::Working => {
                (Some(place.number), self.registration(place.number))
            }
        };
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let registration = registration.map(|index| -signed(index));
        number.map(signed).into_iter().chain(registration).collect()
    }
}

fn json(public: &Public) -> String {
    serde_json::to_string(public).expect("plain fields serialise")
}

fn spread(seed: u64, range: u64) -> u64 {
    if range == 0 {
        return 0;
    }
    let mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (mixed ^ mixed >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) % range
}
