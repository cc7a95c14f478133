//! PostgreSQL: one pool a role, each seeing only its own schema.

use std::{str::FromStr, sync::LazyLock, time::Duration};

use sqlx::{
    PgPool, SqlSafeStr,
    migrate::{Migration, MigrationType, Migrator},
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

/// A role's migrations, as [`migrations!`](crate::migrations) makes them.
pub type Migrations = LazyLock<Migrator>;

/// Reads a struct from a row, each field from the column of its name, or of the name given
/// behind it.
///
/// sqlx's own derive does the same; with it, and its checked queries, a second sqlx with TLS
/// and all is compiled for the compiler, which a cold build feels.
#[macro_export]
macro_rules! from_row {
    ($row:ident { $($field:ident $(: $column:literal)?),+ $(,)? }) => {
        impl<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> for $row {
            fn from_row(row: &'r sqlx::postgres::PgRow) -> sqlx::Result<Self> {
                Ok(Self {
                    $($field: sqlx::Row::try_get(row, $crate::column!($field $(: $column)?))?,)+
                })
            }
        }
    };
}

/// The column of a field of [`from_row!`](crate::from_row).
#[doc(hidden)]
#[macro_export]
macro_rules! column {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident: $column:literal) => {
        $column
    };
}

/// The migrations of a role, out of `migrations/<role>/`, oldest first; the tests see that none
/// is left out.
#[macro_export]
macro_rules! migrations {
    ($role:literal: $($file:literal),+ $(,)?) => {
        std::sync::LazyLock::new(|| {
            $crate::platform::db::migrator(&[$((
                $file,
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/", $role, "/", $file, ".sql")),
            )),+])
        })
    };
}

/// Migrations from their names, `0001_what_it_does`, and their SQL.
///
/// # Panics
/// When a name does not begin with its number, which the first test to run shows.
pub fn migrator(migrations: &[(&'static str, &'static str)]) -> Migrator {
    let migrations = migrations.iter().map(|(name, sql)| {
        let (number, description) = name.split_once('_').expect("a number and a description");
        Migration::new(
            number.parse().expect("a number"),
            description.replace('_', " ").into(),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    });
    Migrator::with_migrations(migrations.collect())
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

#[cfg(test)]
mod tests {
    use crate::serve;

    #[test]
    fn no_migration_is_left_out() {
        for (role, migrations) in [
            (serve::users::SCHEMA, &serve::users::MIGRATOR),
            (serve::performances::SCHEMA, &serve::performances::MIGRATOR),
            (serve::queue::SCHEMA, &serve::queue::MIGRATOR),
            (serve::reservations::SCHEMA, &serve::reservations::MIGRATOR),
            (serve::payments::SCHEMA, &serve::payments::MIGRATOR),
            (
                serve::stripe_sandbox::SCHEMA,
                &serve::stripe_sandbox::MIGRATIONS,
            ),
        ] {
            let dir = format!("{}/migrations/{role}", env!("CARGO_MANIFEST_DIR"));
            let mut files: Vec<String> = std::fs::read_dir(dir)
                .unwrap()
                .map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap())
                .collect();
            let mut compiled: Vec<String> = migrations
                .iter()
                .map(|one| one.sql.as_str().to_owned())
                .collect();
            files.sort();
            compiled.sort();
            assert_eq!(files, compiled, "{role}");
        }
    }
}
