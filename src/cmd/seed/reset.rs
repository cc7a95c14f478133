//! `--reset`: empties every schema of Ticketping's, and the live state in Redis with it.

use std::{
    io::{BufRead, IsTerminal, Write},
    path::Path,
};

use chrono::{DateTime, Utc};
use redis::AsyncCommands;
use sqlx::PgPool;

use crate::{
    platform::{
        failure::Failure,
        redis::{Redis, Trust},
        secret::Secret,
    },
    serve::{payments, queue},
};

/// The schemas of all roles; those that are not there are passed over.
const SCHEMAS: &[&str] = &[
    "users",
    "performances",
    "queue",
    "reservations",
    "payments",
    "stripe_sandbox",
];

/// Keys fetched and removed at a time.
const BATCH: usize = 1_000;

/// Asks, unless told `yes`.
///
/// # Errors
/// When there is nobody to ask, or the answer is no.
pub fn confirm(yes: bool, what: &str) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let mut input = std::io::stdin().lock();
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!(
            "--reset removes every member, performance, order and payment in {what}; there is no terminal to ask on, so say --yes to mean it"
        )));
    }
    eprint!(
        "This removes every member, performance, order and payment in {what}. Type \"yes\" to go on: "
    );
    let mut answer = String::new();
    let read = std::io::stderr()
        .flush()
        .and_then(|()| input.read_line(&mut answer));
    match read {
        Ok(_) if answer.trim().eq_ignore_ascii_case("yes") => Ok(()),
        Ok(_) => Err(Failure::Failed("nothing was removed".into())),
        Err(error) => Err(Failure::Failed(format!("cannot read the answer: {error}"))),
    }
}

/// Refuses where the key in the environment moves real money, whatever else is said.
///
/// # Errors
/// When it does.
pub fn refuse_live_key(key: Option<&Secret>) -> Result<(), Failure> {
    match key.is_some_and(|key| payments::moves_real_money(key.expose())) {
        false => Ok(()),
        true => Err(Failure::usage(
            "--reset is refused: STRIPE_SECRET_KEY is a live key, so this is an installation that takes real money",
        )),
    }
}

/// Refuses where a server with a live key has run on this database: it holds the books of real money.
///
/// # Errors
/// When one has, or the database is away.
pub async fn refuse_live_database(pool: &PgPool) -> Result<(), Failure> {
    let live_since: Option<DateTime<Utc>> =
        sqlx::query_scalar("select max(live_since) from payments.stripe_account")
            .fetch_one(pool)
            .await
            .map_err(super::failed)?;
    match live_since {
        None => Ok(()),
        Some(since) => Err(Failure::Failed(format!(
            "--reset is refused: a server with a live Stripe key has taken payments on this database since {}; it holds the books of real money. Seed another database",
            since.format("%Y-%m-%d %H:%M UTC")
        ))),
    }
}

/// Kept, and told that everything is gone: a running server remembers how far its queues were, and must not take
/// the next life of a performance for the one that it knows.
const EPOCHS: &str = "queue.epochs";

/// Empties all tables, in one transaction.
pub async fn database(pool: &PgPool) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    // Behind a long-running query it would make every other wait, too.
    sqlx::query("set local lock_timeout = '10s'")
        .execute(&mut *tx)
        .await?;
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schemaname, tablename) from pg_tables
         where schemaname = any($1) and tablename <> '_sqlx_migrations' order by 1",
    )
    .bind(SCHEMAS)
    .fetch_all(&mut *tx)
    .await?;
    if !tables.is_empty() {
        let emptied: Vec<&str> = tables
            .iter()
            .map(String::as_str)
            .filter(|table| *table != EPOCHS)
            .collect();
        let truncate = format!("truncate {} cascade", emptied.join(", "));
        sqlx::query(sqlx::AssertSqlSafe(truncate))
            .execute(&mut *tx)
            .await?;
        if tables.iter().any(|table| table == EPOCHS) {
            queue::forget_everything(&mut *tx).await?;
        }
    }
    tx.commit().await
}

/// Removes every key that begins with `prefix:`, on every primary. `ca`: the certificate authorities
/// that Redis is checked against, where they are not the public ones.
///
/// # Errors
/// One sentence: Redis is away.
pub async fn live_state(url: &str, ca: Option<&Path>, prefix: &str) -> Result<(), String> {
    let fail = |error: redis::RedisError| format!("cannot empty Redis: {error}");
    let trust = Trust::of_file(ca)?;
    let mut redis = Redis::connect_trusting(url, trust).await?;
    let pattern = format!("{}:*", prefix.replace(['*', '?', '[', ']', '\\'], "?"));
    for primary in redis.primaries().await.map_err(fail)? {
        let client = redis.client_of(&primary).map_err(fail)?;
        let mut connection = client
            .get_multiplexed_async_connection()
            .await
            .map_err(fail)?;
        let mut cursor = 0_u64;
        loop {
            let (next, keys): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(&pattern)
                .arg("COUNT")
                .arg(BATCH)
                .query_async(&mut connection)
                .await
                .map_err(fail)?;
            for key in keys {
                // One at a time: in a cluster, keys of one call must share a slot.
                let _gone: u64 = connection.unlink(key).await.map_err(fail)?;
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    Ok(())
}
