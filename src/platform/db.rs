//! PostgreSQL: one pool a role, each seeing only its own schema.

use std::{str::FromStr, sync::LazyLock, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool, Row, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// How long a request waits for a connection before it is told 503.
const ACQUIRE_MAX: Duration = Duration::from_secs(3);
/// A migration waits this long for a lock: whoever wants the table meanwhile waits behind it.
const LOCK_MAX_MS: u32 = 2_000;
/// How long the look at the sessions may take.
const SESSIONS_MAX: Duration = Duration::from_secs(5);
const SESSION_LOOKS: usize = 5;

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
    let mut migrator = Migrator::with_migrations(migrations.collect());
    // A newer version of us has been here, and may be again: a roll-back finds its schema.
    migrator.set_ignore_missing(true);
    migrator
}

/// How to connect to `url`.
///
/// Nothing but the user and the database goes into the start-up message: PgBouncer refuses
/// other parameters, or leaves them out. [`settings`] makes up for it.
fn options(url: &str, name: &str) -> Result<PgConnectOptions, String> {
    let options = PgConnectOptions::from_str(url).map_err(|e| {
        format!(
            "the database URL is malformed ({e}); want postgres://user:password@host:port/database"
        )
    })?;
    Ok(options.application_name(name).extra_float_digits(None))
}

/// What each connection of the role that owns `schema` is told first.
fn settings(schema: &str) -> String {
    format!("set search_path to {schema}; set statement_timeout to '30s'")
}

/// Connects the role that owns `schema`, with at most `max` connections.
///
/// # Errors
/// When `url` is malformed; the message never shows its password. A database
/// that is away is not an error here: connections are made when first needed.
pub fn pool(url: &str, schema: &'static str, max: u32) -> Result<PgPool, String> {
    pool_with(url, schema, max, String::new())
}

/// The same; each connection is told `more` as well, statements of our own.
///
/// # Errors
/// As [`pool`].
pub fn pool_with(
    url: &str,
    schema: &'static str,
    max: u32,
    more: String,
) -> Result<PgPool, String> {
    let options = options(url, &format!("ticketping-{schema}"))?;
    Ok(PgPoolOptions::new()
        .max_connections(max)
        .acquire_timeout(ACQUIRE_MAX)
        .test_before_acquire(false)
        .after_connect(move |conn, _| {
            let settings = format!("{};{more}", settings(schema));
            Box::pin(async move {
                let settings = sqlx::AssertSqlSafe(settings);
                sqlx::raw_sql(settings).execute(conn).await.map(drop)
            })
        })
        .connect_lazy_with(options))
}

/// Whether a connection to `url` is a session of its own, as long as it lasts.
///
/// A pooler that gives every transaction another session (PgBouncer with `pool_mode` transaction
/// or statement) would lose `search_path`, prepared statements and LISTEN between two statements,
/// and a role would find itself in the wrong schema.
///
/// # Errors
/// When it is not, or the database is away.
pub async fn check_sessions(url: &str) -> Result<(), StartError> {
    let options = options(url, "ticketping-check").map_err(StartError::Failed)?;
    let checked = tokio::time::timeout(SESSIONS_MAX, async {
        let mut one = PgConnection::connect_with(&options).await?;
        let mut other = PgConnection::connect_with(&options).await?;
        let (first, mut own) = (session_of(&mut one).await?, true);
        // With two clients, a pooler that is idle gives both the same session, and one that is
        // busy gives each another one now and then.
        for _ in 0..SESSION_LOOKS {
            own &= session_of(&mut other).await? != first && session_of(&mut one).await? == first;
        }
        one.close().await?;
        other.close().await?;
        Ok(own)
    });
    match checked.await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(StartError::Failed(
            "--database-url leads to a pooler that gives each transaction another session (PgBouncer with \
             pool_mode = transaction or statement): search_path, prepared statements and LISTEN would be lost. \
             Set pool_mode = session for this database, or name PostgreSQL itself"
                .to_owned(),
        )),
        Ok(Err(error)) => Err(StartError::new("cannot connect to PostgreSQL", error)),
        Err(_) => Err(StartError::Away(
            "cannot connect to PostgreSQL: no two connections in time".to_owned(),
        )),
    }
}

async fn session_of(conn: &mut PgConnection) -> sqlx::Result<i32> {
    // By the simple protocol: prepared statements are what a pooler may lose.
    let row = sqlx::raw_sql("select pg_backend_pid()")
        .fetch_one(conn)
        .await?;
    row.try_get(0)
}

/// Brings `schema` to the newest version that this binary knows. Any number of processes may do
/// so at the same time. A newer schema stays as it is: see CONTRIBUTING.md for why that works.
///
/// A lock that is not to be had soon is given up, so that nobody queues behind this; that is
/// [`StartError::Away`], and to be tried again.
///
/// # Errors
/// When the database is away or busy, or a migration fails or was changed after it ran.
pub async fn migrate(
    pool: &PgPool,
    schema: &'static str,
    migrator: &Migrator,
) -> Result<(), StartError> {
    let fail = |e: sqlx::Error| StartError::new(&format!("cannot migrate schema {schema}"), e);
    // Out of the pool for good, with the settings below.
    let mut conn = pool.acquire().await.map_err(fail)?.detach();
    let settings = format!("set statement_timeout to 0; set lock_timeout to '{LOCK_MAX_MS}ms'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(settings))
        .execute(&mut conn)
        .await
        .map_err(fail)?;
    // `create schema if not exists` races with itself; the lock makes it wait.
    sqlx::query("select pg_advisory_lock(7216340)")
        .execute(&mut conn)
        .await
        .map_err(fail)?;
    let created = sqlx::query(sqlx::AssertSqlSafe(format!(
        "create schema if not exists {schema}"
    )))
    .execute(&mut conn)
    .await;
    let unlocked = sqlx::query("select pg_advisory_unlock(7216340)")
        .execute(&mut conn)
        .await;
    created.and(unlocked).map_err(fail)?;
    migrator.run(&mut conn).await.map_err(|error| match error {
        MigrateError::Execute(error) => fail(error),
        MigrateError::ExecuteMigration(error, version) => {
            let what = format!("cannot migrate schema {schema} to version {version}");
            StartError::new(&what, error)
        }
        other => StartError::Failed(format!("cannot migrate schema {schema}: {other}")),
    })?;
    let applied = applied(&mut conn, schema).await.map_err(fail)?;
    let newer = Versions::of(migrator, &applied).newer;
    if newer > 0 {
        tracing::info!(
            schema,
            newer,
            "schema {schema} is {newer} migrations newer than this binary; going on with it"
        );
    }
    // It has done its work; a socket that closes badly harms nobody.
    let _ = conn.close().await;
    Ok(())
}

/// How a schema stands to the migrations of this binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Known here and not applied there.
    pub pending: usize,
    /// Applied there and not known here.
    pub newer: usize,
}

impl Versions {
    fn of(migrator: &Migrator, applied: &[i64]) -> Self {
        let known: Vec<i64> = migrator.iter().map(|one| one.version).collect();
        Self {
            pending: known.iter().filter(|one| !applied.contains(one)).count(),
            newer: applied.iter().filter(|one| !known.contains(one)).count(),
        }
    }
}

/// Compares `schema` with the migrations of this binary; changes nothing.
///
/// # Errors
/// When the database is away.
pub async fn versions(
    pool: &PgPool,
    schema: &'static str,
    migrator: &Migrator,
) -> Result<Versions, StartError> {
    let fail = |e: sqlx::Error| StartError::new(&format!("cannot read schema {schema}"), e);
    let mut conn = pool.acquire().await.map_err(fail)?;
    let applied = applied(&mut conn, schema).await.map_err(fail)?;
    Ok(Versions::of(migrator, &applied))
}

async fn applied(conn: &mut PgConnection, schema: &str) -> sqlx::Result<Vec<i64>> {
    let there: bool = sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(format!("{schema}._sqlx_migrations"))
        .fetch_one(&mut *conn)
        .await?;
    if !there {
        return Ok(Vec::new());
    }
    let select = format!("select version from {schema}._sqlx_migrations where success");
    sqlx::query_scalar(sqlx::AssertSqlSafe(select))
        .fetch_all(conn)
        .await
}

const LOCK_NOT_AVAILABLE: &str = "55P03";

/// Why a store cannot be used at the start.
#[derive(Debug)]
pub enum StartError {
    /// It is away, or starting: trying again helps.
    Away(String),
    /// It refuses, or is not what it should be.
    Failed(String),
}

impl StartError {
    fn new(what: &str, error: sqlx::Error) -> Self {
        let text = format!("{what}: {error}");
        let away = match &error {
            sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::Io(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(cause) => cause.code().is_some_and(|c| {
                c == LOCK_NOT_AVAILABLE
                    || ["57", "53", "08"].iter().any(|class| c.starts_with(class))
            }),
            _ => false,
        };
        match away {
            true => Self::Away(text),
            false => Self::Failed(text),
        }
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Away(cause) | Self::Failed(cause)) = self;
        f.write_str(cause)
    }
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
