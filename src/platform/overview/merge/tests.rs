use chrono::DateTime;
use proptest::prelude::*;

use super::super::{Expiries, Phase};
use super::*;

const ROLES: [&str; 5] = [
    "gateway",
    "payments",
    "performances",
    "queue",
    "reservations",
];

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn any_health() -> impl Strategy<Value = Health> {
    prop_oneof![Just(Health::Up), Just(Health::Degraded), Just(Health::Down)]
}

prop_compose! {
    fn any_slice(role: &'static str)(
        queues in proptest::collection::btree_map(0..8u128, (0..1000u64, 1..100u64), 0..6),
        seats in proptest::collection::btree_map(0..8u128, (0..50u64, 0..50u64), 0..6),
        titles in proptest::collection::btree_set(0..8u128, 0..6),
        outbox in 0..100u64,
        oldest in 0..100u64,
        lag in proptest::option::of(0..100u64),
        store in any_health(),
        // Quarters: serde_json reads other fractions back a last bit off.
        latency in proptest::option::of((0..200u32).prop_map(|quarters| f64::from(quarters) / 4.0)),
        down in proptest::bool::weighted(0.1),
    ) -> OverviewSlice {
        if down {
            return OverviewSlice::down(role, "connection refused");
        }
        OverviewSlice {
            queues: if role == "queue" {
                queues.into_iter().map(|(n, (waiting, working))| QueueSlice {
                    performance_id: id(n), phase: Phase::Open, waiting, working, ..QueueSlice::default()
                }).collect()
            } else { vec![] },
            seats: if role == "reservations" {
                seats.into_iter().map(|(n, (held, sold))| SeatSlice {
                    performance_id: id(n), held_seats: held, sold_seats: sold, ..SeatSlice::default()
                }).collect()
            } else { vec![] },
            performances: if role == "performances" {
                titles.into_iter().map(|n| PerformanceSlice {
                    performance_id: id(n), title: format!("Show {n}"), venue_name: "Hall".into(),
                }).collect()
            } else { vec![] },
            events: Some(Events { outbox_pending: outbox, oldest_seconds: oldest, kafka_lag: lag, ..Events::default() }),
            stores: vec![Store { name: "postgres".into(), state: store, detail: format!("{role} says"), latency_ms: latency }],
            ..OverviewSlice::of(role)
        }
    }
}

fn all_slices() -> impl Strategy<Value = Vec<OverviewSlice>> {
    (
        any_slice(ROLES[0]),
        any_slice(ROLES[1]),
        any_slice(ROLES[2]),
        any_slice(ROLES[3]),
        any_slice(ROLES[4]),
    )
        .prop_map(|(a, b, c, d, e)| vec![a, b, c, d, e])
}

fn merged(slices: Vec<OverviewSlice>) -> Overview {
    Overview::merge(DateTime::UNIX_EPOCH, Server::default(), slices)
}

proptest! {
    #[test]
    fn the_order_of_slices_does_not_matter(slices in all_slices(), seed in any::<prop::sample::Index>()) {
        let mut turned = slices.clone();
        turned.rotate_left(seed.index(slices.len()));
        turned.swap(0, seed.index(slices.len()));
        prop_assert_eq!(merged(slices), merged(turned));
    }

    #[test]
    fn nothing_is_lost_and_nothing_invented(slices in all_slices()) {
        let overview = merged(slices.clone());
        let queues: Vec<_> = slices.iter().flat_map(|slice| &slice.queues).collect();
        let seats: Vec<_> = slices.iter().flat_map(|slice| &slice.seats).collect();
        let waiting: u64 = overview.queues.iter().map(|row| row.waiting).sum();
        let held: u64 = overview.queues.iter().map(|row| row.held_seats).sum();
        prop_assert_eq!(waiting, queues.iter().map(|queue| queue.waiting).sum::<u64>());
        prop_assert_eq!(held, seats.iter().map(|seats| seats.held_seats).sum::<u64>());
        let mut known: Vec<Uuid> = queues.iter().map(|queue| queue.performance_id)
            .chain(seats.iter().map(|seats| seats.performance_id)).collect();
        known.sort();
        known.dedup();
        prop_assert_eq!(overview.queues.iter().map(|row| row.performance_id).collect::<Vec<_>>(), known);
        for row in &overview.queues {
            let titled = slices.iter().flat_map(|slice| &slice.performances)
                .any(|performance| performance.performance_id == row.performance_id);
            prop_assert_eq!(!row.title.is_empty(), titled);
        }
        let outbox: u64 = slices.iter().filter_map(|slice| slice.events.as_ref()).map(|events| events.outbox_pending).sum();
        prop_assert_eq!(overview.events.outbox_pending, outbox);
    }

    #[test]
    fn a_store_and_a_role_show_their_worst(slices in all_slices()) {
        let overview = merged(slices.clone());
        let worst = slices.iter().flat_map(|slice| &slice.stores).map(|store| store.state).max();
        prop_assert_eq!(overview.stores.first().map(|store| store.state), worst);
        for slice in &slices {
            let role = overview.roles.iter().find(|role| role.role == slice.role).unwrap();
            prop_assert_eq!(role.state == Health::Down, slice.down.is_some());
        }
    }

    #[test]
    fn every_deadline_lands_in_one_bucket(deadlines in proptest::collection::vec(-10_000..1_000_000i64, 0..200)) {
        let expiries = Expiries::from_deadlines(0, deadlines.iter().copied());
        prop_assert_eq!(expiries.counts.iter().sum::<u64>() + expiries.later, deadlines.len() as u64);
        let first = deadlines.iter().filter(|ms| **ms < 15_000).count() as u64;
        prop_assert_eq!(expiries.counts[0], first);
    }

    #[test]
    fn json_keeps_everything(slices in all_slices()) {
        let overview = merged(slices);
        let text = serde_json::to_string(&overview).unwrap();
        let again: Overview = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(overview, again);
    }
}

#[test]
fn names_on_the_wire_are_camel_case() {
    let slice = OverviewSlice {
        queues: vec![QueueSlice {
            performance_id: id(7),
            phase: Phase::PreQueue,
            ..QueueSlice::default()
        }],
        ..OverviewSlice::of("queue")
    };
    let value = serde_json::to_value(merged(vec![slice])).unwrap();
    let row = &value["queues"][0];
    assert_eq!(row["phase"], "PRE_QUEUE");
    for name in [
        "performanceId",
        "maxWorking",
        "servedNumber",
        "estimatedWaitSeconds",
        "holdExpiriesNextMinute",
    ] {
        assert!(row.get(name).is_some(), "{name} is missing from {row}");
    }
    assert_eq!(value["roles"][0]["state"], "UP");
}

#[test]
fn a_phase_of_a_later_version_is_not_an_error() {
    let row: QueueRow = serde_json::from_str(r#"{"phase":"HIBERNATING"}"#).unwrap();
    assert_eq!(row.phase, Phase::Unknown);
}

#[test]
fn percentiles_of_two_gateways_are_the_worst_and_shares_are_weighted() {
    let gateway = |rps, error_rate, p99_ms| OverviewSlice {
        http: Some(Http {
            requests_per_second: rps,
            error_rate,
            p99_ms,
            ..Http::default()
        }),
        ..OverviewSlice::of("gateway")
    };
    let http = merged(vec![gateway(300.0, 0.0, 4.0), gateway(100.0, 0.4, 9.0)]).http;
    assert_eq!((http.requests_per_second, http.p99_ms), (400.0, 9.0));
    assert!((http.error_rate - 0.1).abs() < 1e-9);
}
