//! Leases: one holder at a time, replaced within their term, and fenced.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::PgPool;
use ticketping::platform::lease::{self, Held, Leases};
use ticketping::platform::{db, metrics::Metrics};
use tokio_util::sync::CancellationToken;

use crate::harness;

/// Long enough for a commit on a busy machine.
const SHORT: Duration = Duration::from_secs(2);

async fn schema() -> String {
    let url = harness::fresh_database().await;
    let pool = db::pool(&url, "role", 2).unwrap();
    for sql in ["create schema role", lease::DDL] {
        let sql = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
        sql.execute(&pool).await.unwrap();
    }
    url
}

/// The leases as one more instance sees them.
fn instance(url: &str) -> (Leases, PgPool, Metrics) {
    let pool = db::pool(url, "role", 4).unwrap();
    let metrics = Metrics::default();
    (Leases::new(pool.clone(), "role", &metrics), pool, metrics)
}

async fn confirmed(held: &Held, pool: &PgPool) -> bool {
    let mut tx = pool.begin().await.unwrap();
    held.confirm(&mut tx).await.unwrap()
}

#[tokio::test]
async fn one_holder_at_a_time_and_the_next_has_a_higher_fence() {
    let url = schema().await;
    let ((one, pool, _), (two, ..)) = (instance(&url), instance(&url));
    let first = one.try_acquire("work", SHORT).await.unwrap().unwrap();
    assert!(two.try_acquire("work", SHORT).await.unwrap().is_none());
    assert!(two.try_acquire("other", SHORT).await.unwrap().is_some());
    assert!(first.renew().await.unwrap() && confirmed(&first, &pool).await);

    // Held up for longer than its term: it stops by its own clock, before anybody else begins.
    let begun = Instant::now();
    let second = loop {
        let valid = first.is_valid();
        if let Some(held) = two.try_acquire("work", SHORT).await.unwrap() {
            assert!(!valid || begun.elapsed() >= SHORT, "two holders at once");
            break held;
        }
        assert!(begun.elapsed() < SHORT * 40, "never taken over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert!(second.fence() > first.fence());
    assert!(!first.is_valid());
    assert!(
        !first.renew().await.unwrap_or(false),
        "an overtaken holder renews"
    );
    assert!(!confirmed(&first, &pool).await && confirmed(&second, &pool).await);

    // Given up, it is free at once.
    second.release().await;
    assert!(one.try_acquire("work", SHORT).await.unwrap().is_some());
}

/// Fifty instances ask at the same moment: one of them has it.
#[tokio::test]
async fn a_free_lease_goes_to_one_of_many() {
    let url = schema().await;
    let (leases, ..) = instance(&url);
    for round in 0..5 {
        let name = format!("work-{round}");
        let tries = (0..50).map(|_| leases.try_acquire(&name, SHORT));
        let held = futures_util::future::join_all(tries).await;
        let held = held
            .into_iter()
            .filter(|one| one.as_ref().unwrap().is_some());
        assert_eq!(held.count(), 1);
    }
}

/// Work runs at one instance; when that loses its lease the work is cut off and goes on
/// elsewhere, never at both.
#[tokio::test(flavor = "multi_thread")]
async fn work_runs_at_one_instance_and_moves_on() {
    let url = schema().await;
    let stop = CancellationToken::new();
    let (at_work, most) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    struct Leave(Arc<AtomicU32>);
    impl Drop for Leave {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let mut runs = Vec::new();
    for _ in 0..3 {
        let (leases, _, metrics) = instance(&url);
        let (stop, at_work, most) = (stop.clone(), at_work.clone(), most.clone());
        let run = tokio::spawn(async move {
            let work = |_: Held| {
                most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let leave = Leave(at_work.clone());
                async move {
                    std::future::pending::<()>().await;
                    drop(leave);
                }
            };
            leases.run_while_held("work", SHORT, &stop, work).await;
        });
        runs.push((run, metrics));
    }
    let (_, admin, _) = instance(&url);
    for _ in 0..3 {
        harness::eventually("somebody works", async || {
            at_work.load(Ordering::SeqCst) == 1
        })
        .await;
        // Somebody else has it now: the holder finds out at its next renewal, before any third can.
        sqlx::query("update leases set holder = gen_random_uuid(), until = clock_timestamp() + interval '5 s'")
            .execute(&admin)
            .await
            .unwrap();
        harness::eventually("the work is cut off", async || {
            at_work.load(Ordering::SeqCst) == 0
        })
        .await;
    }
    harness::eventually("somebody works again", async || {
        at_work.load(Ordering::SeqCst) == 1
    })
    .await;
    assert_eq!(most.load(Ordering::SeqCst), 1);
    let shown: String = runs.iter().map(|(_, metrics)| metrics.render()).collect();
    assert!(
        shown.contains("lease_held{role=\"role\",lease=\"work\"} 1"),
        "{shown}"
    );
    assert!(shown.contains("change=\"lost\""), "{shown}");
    stop.cancel();
    for (run, _) in runs {
        run.await.unwrap();
    }
    assert_eq!(at_work.load(Ordering::SeqCst), 0);
    let free: bool = sqlx::query_scalar("select until <= now() from leases where name = 'work'")
        .fetch_one(&admin)
        .await
        .unwrap();
    assert!(free, "a stopping instance gives its lease up");
}
