use sqlx::PgConnection;

use super::{start::environment, *};
use crate::harness::process;

async fn migrate(database: &str, more: &[&str]) -> (i32, String) {
    let mut args = vec!["migrate", "--database-url", database];
    args.extend(more);
    let (code, out, err) = process::run(&args, &[]).await;
    (code, out + &err)
}

async fn run(conn: &mut PgConnection, statement: &'static str) {
    sqlx::query(statement).execute(conn).await.unwrap();
}

#[tokio::test]
async fn schemas_are_brought_up_to_date_apart_from_serving() {
    let (dir, database) = (harness::data_dir(), harness::fresh_database().await);
    let mut envs = environment(&database, &dir);
    envs.push(("TICKETPING_OPS_LISTEN", "127.0.0.1:0".to_owned()));
    envs.push(("TICKETPING_STORE_WAIT", "1s".to_owned()));

    let (code, told) = migrate(&database, &["--check"]).await;
    assert_eq!(code, 1, "{told}");
    assert!(
        told.contains("users: ") && !told.contains("users: 0 pending"),
        "{told}"
    );
    let (code, _, err) = process::run(&["serve", "users", "--no-migrate"], &envs).await;
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("schema users lacks"), "{err}");

    // Somebody else migrates right now, and takes a while.
    let mut other = PgConnection::connect(&database).await.unwrap();
    run(&mut other, "select pg_advisory_lock(7216340)").await;
    let (migrated, ()) = tokio::join!(migrate(&database, &[]), async {
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        run(&mut other, "select pg_advisory_unlock(7216340)").await;
    });
    assert_eq!(migrated.0, 0, "{}", migrated.1);
    let (code, told) = migrate(&database, &["--check"]).await;
    assert_eq!(code, 0, "{told}");
    assert!(told.contains("payments: 0 pending"), "{told}");

    // A newer version has been here: this one serves all the same, migrating or not.
    run(
        &mut other,
        "insert into users._sqlx_migrations (version, description, success, checksum, execution_time)
         values (9999, 'from the future', true, '\\x00', 1)",
    )
    .await;
    let (code, told) = migrate(&database, &["users", "--check"]).await;
    assert_eq!(
        (code, told.trim()),
        (0, "users: 0 pending, 1 newer than this binary")
    );
    for more in [&["serve", "users"][..], &["serve", "users", "--no-migrate"]] {
        let log = harness::data_dir().with_extension("log");
        let process = process::Process::start(more, &envs, &log);
        eventually("it serves", async || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("serving"))
        })
        .await;
        assert_eq!(process.interrupt().await, Some(0));
    }
}
