//! Frozen instances and instances cut off from their stores: the others take over within ten
//! seconds, and a thawed one changes nothing.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use sqlx::{Connection, PgConnection};

use crate::harness::steps::{self, Sale};
use crate::harness::twins::Twins;
use crate::harness::{eventually, send};
use crate::outages::Shopper;

/// From the freeze to the work of the other instance: ten seconds, and as much for a busy machine.
/// Session locks kept it from the work for as long as the freeze lasted.
const TAKEOVER_MAX: Duration = Duration::from_secs(20);

/// One buys at `at` until CONFIRMED; how long that took.
async fn bought(at: &Sale, nth: usize) -> (String, Duration) {
    let begun = Instant::now();
    let bought = steps::buy(at, &at.buyers[nth], 1).await;
    (bought.id, begun.elapsed())
}

async fn sale_of(twins: &mut Twins) {
    let args = [
        ["--performances", "1"],
        ["--schedules", "1"],
        ["--seats", "60"],
        ["--users", "12"],
        ["--max-working", "12"],
    ];
    twins.seed(&args.concat()).await;
}

async fn holders(url: &str) -> Vec<(String, String, i64)> {
    let mut conn = PgConnection::connect(url).await.unwrap();
    sqlx::query_as(
        "select 'payments.' || name, holder::text, fence from payments.leases where name like 'outbox%'
         union all
         select 'reservations.' || name, holder::text, fence from reservations.leases where name like 'outbox%'
         order by 1",
    )
    .fetch_all(&mut conn)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_instance_is_replaced_and_thawed_changes_nothing() {
    let mut twins = Twins::start(&[]).await;
    sale_of(&mut twins).await;
    bought(&twins.at_first, 0).await;
    let before = holders(&twins.database_url).await;
    assert_eq!(before.len(), 16, "{before:?}");

    // Frozen in the middle of its work: buyers of its own are on their way.
    let (performance, schedule) = steps::the_performance(&twins.at_second).await;
    let busy: Vec<_> = (1..4)
        .map(|nth| {
            let shopper = Shopper::new(&twins.at_first, nth);
            let (performance, schedule) = (performance.clone(), schedule.clone());
            tokio::spawn(shopper.go(performance, schedule, format!("key-{nth}")))
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let pid = twins.first.pid().unsigned_abs();
    send(pid, Signal::SIGSTOP);
    let frozen = Instant::now();
    let orders =
        futures_util::future::join_all((4..9).map(|nth| bought(&twins.at_second, nth))).await;
    let slowest = orders.iter().map(|(_, took)| *took).max().unwrap();
    assert!(slowest < TAKEOVER_MAX, "CONFIRMED only after {slowest:?}");
    // On a busy machine the second may have got some of them before the freeze.
    let mut after = Vec::new();
    eventually("no lease is the frozen one's", async || {
        after = holders(&twins.database_url).await;
        (after.iter()).all(|(_, holder, _)| !twins.first_holders.contains(holder))
    })
    .await;
    let of_first = before.iter().zip(&after);
    let of_first: Vec<_> = of_first
        .filter(|((_, holder, _), _)| twins.first_holders.contains(holder))
        .collect();
    assert!(!of_first.is_empty(), "{before:?}");
    for ((name, _, low), (_, _, high)) in of_first {
        assert!(high > low, "{name}: {before:?} {after:?}");
    }
    // Well past the takeover, so that it finds all of its leases gone.
    tokio::time::sleep(Duration::from_secs(11).saturating_sub(frozen.elapsed())).await;
    send(pid, Signal::SIGCONT);
    for one in busy {
        // The thawed instance serves its buyers on.
        let met = one.await.unwrap();
        assert_eq!(met.status, "CONFIRMED", "{met:?}");
    }
    bought(&twins.at_first, 9).await;
    let log = twins.log("first");
    assert!(log.contains("relay lost its leases"), "{log}");
    let report = twins.audit().await;
    assert!(report.ok(), "{}\n{}", report.text(), twins.log("second"));
    twins.stop().await;
}
