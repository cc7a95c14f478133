//! Whether the turns of one queue move: what is remembered of it between overviews.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};

use crate::platform::overview::{Phase, QueueRow};

/// Promotion runs with every freed slot and every second.
const STALLED_AFTER: TimeDelta = TimeDelta::seconds(10);
/// Of those admitted in the last minute; and not on a handful.
const NO_SHOW_SHARE: f64 = 0.5;
const NO_SHOW_MIN: u64 = 20;
const NO_SHOW_WINDOW: TimeDelta = TimeDelta::seconds(60);

#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    pub(super) admitted: u64,
    pub(super) ended: u64,
    pub(super) working: u64,
    pub(super) max_working: u64,
    pub(super) admitted_at: DateTime<Utc>,
    pub(super) ended_at: DateTime<Utc>,
    pub(super) turns: VecDeque<(DateTime<Utc>, u64, u64)>,
}

pub(super) fn remember(now: DateTime<Utc>, row: &QueueRow, before: Option<Seen>) -> Seen {
    let ended = row.completed + row.expired + row.left + row.no_shows;
    let mut seen = before.unwrap_or_else(|| Seen {
        admitted: row.admitted,
        ended,
        admitted_at: now,
        ended_at: now,
        ..Seen::default()
    });
    // Nobody waiting, or not letting in, is no standstill: the clock starts when it could go on.
    let closed = row.phase != Phase::Open || row.settings.admissions_per_minute == Some(0);
    let idle = row.waiting == 0 || closed;
    if idle || row.admitted != seen.admitted {
        seen.admitted_at = now;
    }
    if idle || ended != seen.ended {
        seen.ended_at = now;
    }
    if row.admitted < seen.admitted {
        seen.turns.clear();
    }
    seen.turns.push_back((now, row.admitted, row.no_shows));
    while seen
        .turns
        .front()
        .is_some_and(|(at, ..)| now - *at > NO_SHOW_WINDOW)
    {
        seen.turns.pop_front();
    }
    Seen {
        admitted: row.admitted,
        ended,
        working: row.working,
        max_working: row.max_working,
        ..seen
    }
}

pub(super) fn stuck(
    now: DateTime<Utc>,
    row: &QueueRow,
    seen: &Seen,
) -> Option<(String, &'static str)> {
    let still = now - seen.admitted_at;
    if row.working < row.max_working {
        // A low rate admits one now and then: wait for three of its beats.
        let beat = row
            .settings
            .admissions_per_minute
            .filter(|rate| *rate > 0)
            .map_or(0, |rate| 180 / rate);
        let patience = STALLED_AFTER + TimeDelta::seconds(i64::try_from(beat).unwrap_or(180));
        return (still >= patience).then(|| {
            (
                format!(
                    "nobody admitted for {} s with {} waiting and room for {}",
                    still.num_seconds(),
                    row.waiting,
                    row.max_working - row.working
                ),
                "the queue role: its log and its Redis; admissions/min here (a)",
            )
        });
    }
    let ttl = i64::try_from(row.settings.working_ttl_seconds).unwrap_or(i64::MAX / 2_000);
    let full_still = now - seen.ended_at;
    (full_still >= TimeDelta::seconds(ttl.max(30)) + STALLED_AFTER).then(|| {
        (
            format!(
                "full, and no turn has ended for {} s, longer than the working time",
                full_still.num_seconds()
            ),
            "the queue role's expiry: its log, and Redis's notify-keyspace-events",
        )
    })
}

pub(super) fn no_show_share(seen: &Seen) -> Option<(u64, u64)> {
    let (first, last) = (seen.turns.front()?, seen.turns.back()?);
    let admitted = last.1.saturating_sub(first.1);
    let no_shows = last.2.saturating_sub(first.2);
    let many = super::table::share(no_shows, admitted) >= NO_SHOW_SHARE;
    (admitted >= NO_SHOW_MIN && many).then_some((no_shows, admitted))
}
