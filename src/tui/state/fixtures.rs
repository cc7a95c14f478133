//! States for tests: a sale of four queues, as a server would tell it.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use uuid::Uuid;

use super::{Effect, Event, State};
use crate::platform::overview::{
    Events, Expiries, Health, Http, Overview, Payments, Phase, QueueRow, RoleHealth, RouteFigures,
    Server, Settings, Store, WaitRange,
};

/// 14:00:00 plus some seconds.
pub fn at(second: i64) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339("2026-05-01T14:00:00Z")
        .unwrap()
        .with_timezone(&Utc)
        + TimeDelta::seconds(second)
}

pub fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub fn queue(n: u128, title: &str, phase: Phase, waiting: u64, working: u64) -> QueueRow {
    QueueRow {
        performance_id: id(n),
        title: title.into(),
        venue_name: "Blue Square".into(),
        phase,
        epoch: 1,
        waiting,
        working,
        max_working: 100,
        served_number: 1000,
        last_number: 1000 + waiting,
        estimated_wait_seconds: (waiting > 0).then_some(WaitRange {
            min: waiting / 3,
            max: waiting / 2,
        }),
        remaining_seats: 1800,
        settings: Settings {
            max_working: 100,
            working_ttl_seconds: 420,
            claim_ttl_seconds: 30,
            hold_ttl_seconds: 300,
            queue_factor: 2.0,
            ..Settings::default()
        },
        opens_at: Some(at(-3600)),
        closes_at: Some(at(7 * 86_400)),
        ..QueueRow::default()
    }
}

fn queues(passed: u64) -> Vec<QueueRow> {
    let mut first = queue(
        1,
        "The Phantom of the Opera",
        Phase::Open,
        120_334 - 10 * passed,
        100,
    );
    first.admitted = 1000 + 10 * passed;
    first.completed = 700 + 8 * passed;
    first.no_shows = 12;
    first.admitted_per_minute = 600.0;
    first.settings.admissions_per_minute = Some(600);
    first.held_seats = 211;
    first.sold_seats = 4022;
    first.open_orders = 104;
    first.hold_expiries_next_minute = 14;
    first.place_expiries_next_minute = 9;
    first.hold_expiries = Some(Expiries {
        bucket_seconds: 15,
        counts: (0..32).map(|n| (n * 7 + 3) % 11).collect(),
        later: 5,
    });
    first.place_expiries = Some(Expiries {
        bucket_seconds: 15,
        counts: (0..32).collect(),
        later: 0,
    });
    let mut paused = queue(2, "캐치! 티켓핑 콘서트", Phase::Paused, 900, 37);
    paused.settings.paused = true;
    let mut sold_out = queue(3, "Cats", Phase::SoldOut, 0, 3);
    sold_out.remaining_seats = 0;
    sold_out.sold_seats = 2000;
    let upcoming = QueueRow {
        registered: 5120,
        ..queue(4, "Swan Lake", Phase::PreQueue, 0, 0)
    };
    vec![first, paused, sold_out, upcoming]
}

/// The sale at a second: the first queue shrinks by ten a second, six hundred admitted a minute.
pub fn sale(second: i64) -> Overview {
    let passed = u64::try_from(second).unwrap();
    let up = |name: &str, ms| Store {
        name: name.into(),
        latency_ms: Some(ms),
        ..Store::default()
    };
    let role = |name: &str| RoleHealth {
        role: name.into(),
        ..RoleHealth::default()
    };
    Overview {
        as_of: at(second),
        server: Server {
            version: "0.1.0".into(),
            uptime_seconds: 7385 + passed,
            resident_bytes: Some(58_400_000),
        },
        queues: queues(passed),
        http: Http {
            requests_per_second: 12_345.0,
            client_error_rate: 0.012,
            p50_ms: 0.8,
            p99_ms: 6.1,
            in_flight: 12,
            by_route: vec![RouteFigures {
                route: "POST /api/v1/orders".into(),
                requests_per_second: 40.0,
                ..RouteFigures::default()
            }],
            ..Http::default()
        },
        events: Events {
            delivery: "kafka".into(),
            outbox_pending: 3,
            kafka_lag: Some(17),
            ..Events::default()
        },
        payments: Payments {
            open: 104,
            succeeded: 2011,
            failed: 9,
            refunded: 2,
            ..Payments::default()
        },
        stores: vec![
            up("kafka", 2.0),
            up("postgres", 0.9),
            up("redis", 0.2),
            up("stripe", 48.0),
        ],
        roles: [
            "gateway",
            "payments",
            "performances",
            "queue",
            "reservations",
            "users",
        ]
        .map(role)
        .to_vec(),
        alarms: vec![],
        open_alarms: 0,
    }
}

pub fn new_state() -> State {
    State::new("http://127.0.0.1:8080".into(), false, at(0))
}

pub fn read(state: &mut State, second: i64, overview: Overview) -> Vec<Effect> {
    state.apply(
        at(second),
        Event::Overview {
            overview: Box::new(overview),
            latency: Duration::from_millis(12),
        },
    )
}

/// Live, with as many seconds behind it.
pub fn live(seconds: i64) -> State {
    let mut state = new_state();
    for second in 0..=seconds {
        read(&mut state, second, sale(second));
    }
    state
}

pub fn lose(state: &mut State, second: i64) {
    let retry_at = at(second + 4);
    state.apply(
        at(second),
        Event::Lost {
            error: "Connection refused (os error 111)".into(),
            retry_at,
        },
    );
}

pub fn press(state: &mut State, code: KeyCode) -> Vec<Effect> {
    let now = state.now;
    state.apply(now, Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
}

pub fn type_in(state: &mut State, text: &str) {
    for c in text.chars() {
        press(state, KeyCode::Char(c));
    }
}

pub fn redis_down(mut overview: Overview) -> Overview {
    let redis = overview
        .stores
        .iter_mut()
        .find(|store| store.name == "redis")
        .unwrap();
    redis.state = Health::Down;
    redis.detail = "does not answer: connection refused".into();
    overview
}
