//! Each alarm: that it comes, when, and that it does not come when all is well.

use super::*;
use crate::tui::state::fixtures::{at, id, queue, redis_down, sale};

/// Shows the watch one overview a second and answers the codes found at the end.
fn codes(seconds: i64, mut make: impl FnMut(i64) -> Overview) -> Vec<String> {
    let mut watch = Watch::default();
    let mut found = Vec::new();
    for second in 0..=seconds {
        found = watch.observe(at(second), &make(second));
    }
    found.into_iter().map(|finding| finding.code).collect()
}

fn with(second: i64, change: impl FnOnce(&mut QueueRow)) -> Overview {
    let mut overview = sale(second);
    change(&mut overview.queues[0]);
    overview
}

#[test]
fn a_healthy_sale_raises_nothing() {
    assert_eq!(codes(600, sale), [""; 0]);
}

#[test]
fn every_finding_says_what_to_look_at() {
    let mut bad = redis_down(sale(0));
    bad.payments.refunds_stuck = 1;
    bad.events.dlq = 2;
    bad.events.oldest_seconds = 99;
    bad.roles[0].state = Health::Down;
    bad.queues[0].phase = Phase::Recovering;
    let found = Watch::default().observe(at(0), &bad);
    let codes: Vec<&str> = found.iter().map(|finding| finding.code.as_str()).collect();
    assert_eq!(
        codes,
        [
            "STORE_DOWN",
            "ROLE_DOWN",
            "LAG_GROWING",
            "DEAD_LETTERS",
            "REFUND_STUCK",
            "RECOVERING"
        ]
    );
    assert!(
        found
            .iter()
            .all(|finding| finding.look_at.len() > 10 && !finding.message.is_empty())
    );
}

#[test]
fn room_and_people_but_nobody_admitted_is_stuck_after_ten_seconds() {
    let still = |_| {
        with(0, |row| {
            row.working = 40;
            row.settings.admissions_per_minute = None;
        })
    };
    assert_eq!(codes(9, still), [""; 0]);
    assert_eq!(codes(10, still), ["WORKING_STUCK"]);
}

#[test]
fn a_slow_rate_is_given_three_of_its_beats() {
    let still = |_| {
        with(0, |row| {
            row.working = 40;
            row.settings.admissions_per_minute = Some(6);
        })
    };
    assert_eq!(codes(39, still), [""; 0]);
    assert_eq!(codes(40, still), ["WORKING_STUCK"]);
}

#[test]
fn paused_or_empty_queues_are_never_stuck() {
    assert_eq!(
        codes(900, |_| with(0, |row| {
            row.phase = Phase::Paused;
            row.working = 1
        })),
        [""; 0]
    );
    assert_eq!(
        codes(900, |_| with(0, |row| {
            row.waiting = 0;
            row.working = 1
        })),
        [""; 0]
    );
}

#[test]
fn after_a_pause_the_clock_starts_anew() {
    let resumed = |second| {
        with(0, |row| {
            row.working = 40;
            row.settings.admissions_per_minute = None;
            row.phase = if second < 100 {
                Phase::Paused
            } else {
                Phase::Open
            };
        })
    };
    assert_eq!(codes(105, resumed), [""; 0]);
    assert_eq!(codes(110, resumed), ["WORKING_STUCK"]);
}

#[test]
fn a_full_set_where_no_turn_ends_within_the_working_time_is_stuck() {
    assert_eq!(codes(429, |_| sale(0)), [""; 0]);
    assert_eq!(codes(430, |_| sale(0)), ["WORKING_STUCK"]);
}

#[test]
fn overdue_places_are_a_leak_only_when_they_stay() {
    let leak = |second| with(second, |row| row.overdue_places = 2);
    assert_eq!(codes(4, leak), [""; 0]);
    assert_eq!(codes(5, leak), ["SLOT_LEAK"]);
    assert_eq!(
        codes(60, |second| with(second, |row| row.overdue_places =
            u64::from(second % 3 == 0))),
        [""; 0]
    );
    assert_eq!(
        codes(60, |second| with(second, |row| row.overdue_holds = 1)),
        ["HOLD_LEAK"]
    );
}

#[test]
fn above_the_limit_is_an_overshoot_unless_the_limit_came_down() {
    assert_eq!(
        codes(1, |second| with(second, |row| row.working =
            100 + second.unsigned_abs())),
        ["OVERSHOOT"]
    );
    let lowered = |second| {
        with(second, |row| {
            row.max_working = if second == 0 { 100 } else { 50 }
        })
    };
    assert_eq!(codes(1, lowered), [""; 0]);
}

#[test]
fn errors_must_last_and_slowness_longer() {
    let failing = |second| {
        let mut overview = sale(second);
        overview.http.error_rate = 0.02;
        overview
    };
    assert_eq!(codes(2, failing), [""; 0]);
    assert_eq!(codes(3, failing), ["ERROR_BURST"]);
    let slow = |second| {
        let mut overview = sale(second);
        overview.http.p99_ms = 900.0;
        overview
    };
    assert_eq!(codes(9, slow), [""; 0]);
    assert_eq!(codes(10, slow), ["SLOW"]);
}

#[test]
fn a_lag_that_grows_alarms_and_one_that_shrinks_does_not() {
    let lag = |of: fn(u64) -> u64| {
        move |second: i64| {
            let mut overview = sale(second);
            overview.events.outbox_pending = of(second.unsigned_abs());
            overview
        }
    };
    assert_eq!(codes(30, lag(|second| 50 + second * 40)), ["LAG_GROWING"]);
    assert_eq!(codes(30, lag(|second| 5000 - second * 40)), [""; 0]);
    assert_eq!(
        codes(30, lag(|second| second)),
        [""; 0],
        "a handful is no lag"
    );
}

#[test]
fn no_shows_count_over_the_last_minute() {
    let absent = |second: i64| with(second, |row| row.no_shows = 6 * second.unsigned_abs());
    assert_eq!(codes(30, absent), ["NO_SHOWS"]);
    assert_eq!(
        codes(30, |second| with(second, |row| row.no_shows =
            2 * second.unsigned_abs())),
        [""; 0]
    );
}

#[test]
fn a_thousand_queues_cost_little() {
    let mut overview = sale(0);
    overview.queues = (0..1000)
        .map(|n| queue(n, "Show", Phase::Open, 5, 100))
        .collect();
    let mut watch = Watch::default();
    let started = std::time::Instant::now();
    for second in 0..20 {
        watch.observe(at(second), &overview);
    }
    assert!(watch.queues.contains_key(&id(999)));
    // Unoptimised, a second's work must still be far from a second.
    assert!(
        started.elapsed().as_millis() < 20 * 100,
        "{:?}",
        started.elapsed()
    );
}
