//! PostgreSQL: one pool a role, each seeing only its own schema.

use std::{str::FromStr, time::Duration};

use sqlx::{
    PgPool,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// How long a request waits for a connection before it is told 503.
const ACQUIRE_MAX: Duration = Duration::from_secs(3);

/// Whether `url` can be one of a PostgreSQL database; nothing is connected.
///
/// # Errors
/// What is wrong with it; the message shows no password.
pub fn check_url(url: &str) -> Result<(), String> {
    let known = url.starts_with("postgres://") || url.starts_with("postgresql://");
    match PgConnectOptions::from_str(url) {
        Ok(_) if known => Ok(()),
        Ok(_) => Err(
            "the database URL is malformed; want postgres://user:password@host:port/database"
                .into(),
        ),
        Err(e) => Err(format!(
            "the database URL is malformed ({e}); want postgres://user:password@host:port/database"
        )),
    }
}

/// Connects the role that owns `schema`, with at most `max` connections.
///
/// # Errors
/// When `url` is malformed; the message never shows its password. A database
/// that is away is not an error here: connections are made when first needed.
pub fn pool(url: &str, schema: &'static str, max: u32) -> Result<PgPool, String> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|e| {
            format!("the database URL is malformed ({e}); want postgres://user:password@host:port/database")
        })?
        .application_name(&format!("ticketping-{schema}"))
        .options([("search_path", schema), ("statement_timeout", "30s")]);
    Ok(PgPoolOptions::new()
        .max_connections(max)
        .acquire_timeout(ACQUIRE_MAX)
        .test_before_acquire(false)
        .connect_lazy_with(options))
}

/// Brings `schema` to the newest version. Any number of processes may do so at
/// the same time.
///
/// # Errors
/// When the database is away, or a migration fails or was changed after it ran.
pub async fn migrate(
    pool: &PgPool,
    schema: &'static str,
    migrator: &Migrator,
) -> Result<(), String> {
    let fail = |e: &dyn std::fmt::Display| format!("cannot migrate schema {schema}: {e}");
    let mut conn = pool.acquire().await.map_err(|e| fail(&e))?;
    // `create schema if not exists` races with itself; the lock makes it wait.
    sqlx::query("select pg_advisory_lock(7216340)")
        .execute(&mut *conn)
        .await
        .map_err(|e| fail(&e))?;
    let created = sqlx::query(sqlx::AssertSqlSafe(format!(
        "create schema if not exists {schema}"
    )))
    .execute(&mut *conn)
    .await;
    let unlocked = sqlx::query("select pg_advisory_unlock(7216340)")
        .execute(&mut *conn)
        .await;
    created.and(unlocked).map_err(|e| fail(&e))?;
    migrator.run(&mut *conn).await.map_err(|e| fail(&e))
}
