//! A flood shares its commits.

use std::time::Instant;

use futures_util::StreamExt as _;

use super::setup::Sandbox;

#[tokio::test]
async fn calls_that_arrive_together_are_committed_together() {
    const BUYERS: u32 = 300;
    const AT_ONCE: usize = 60;
    let sandbox = Sandbox::start().await;
    let started = Instant::now();
    futures_util::stream::iter(0..BUYERS)
        .for_each_concurrent(AT_ONCE, |_| async {
            sandbox.paid(5_000).await;
        })
        .await;
    let rate = f64::from(BUYERS) / started.elapsed().as_secs_f64();
    println!("{rate:.0} payments made and confirmed a second, unoptimised");
    // The last write of each row names its transaction.
    let (rows, transactions): (i64, i64) =
        sqlx::query_as("select count(*), count(distinct xmin::text) from intents")
            .fetch_one(&sandbox.pool)
            .await
            .unwrap();
    assert_eq!(rows, i64::from(BUYERS));
    assert!(
        transactions * 3 < rows,
        "{transactions} transactions for {rows} payments"
    );
}
