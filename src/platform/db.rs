//! PostgreSQL: one pool a role, each seeing only its own schema.
//!
//! What can stand still has a bound, on both sides. The server ends a transaction that an absent
//! client holds open ([`SERVER_BOUNDS`]), and this side gives up connections that went silent. A
//! prepared statement that no longer fits a changed table (SQLSTATE 0A000) fails on its
//! connection for ever: [`observe`] has the connections forget their statements, and the work is
//! repeated, as after a lost connection ([`Failed`]).

use std::{
    str::FromStr,
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sqlx::{
    Connection, PgConnection, PgPool, Row, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// How long a request waits for a connection before it is told 503.
/// It is long enough to wait through a restart of the database, and to connect anew when every
/// pool does so at once on a busy machine: an attempt that is given up has cost as much as one
/// that succeeds.
const ACQUIRE_MAX: Duration = Duration::from_secs(6);
/// A migration waits this long for a lock: whoever wants the table meanwhile waits behind it.
const LOCK_MAX_MS: u32 = 2_000;
/// How long the look at the sessions may take.
const SESSIONS_MAX: Duration = Duration::from_secs(5);
const SESSION_LOOKS: usize = 5;
/// A connection that was idle for so long is asked before it is given out: a partition or a
/// restart of the database leaves it dead without a word.
const IDLE_TRUSTED: Duration = Duration::from_secs(5);
/// After a connection broke, others are asked too, for this long.
const SUSPICIOUS: Duration = Duration::from_secs(15);
/// Connections that are given back so soon after a table changed may have been in use meanwhile.
const CHANGING: Duration = Duration::from_secs(10);
/// A live database answers at once.
const PING_MAX: Duration = Duration::from_secs(1);
/// A connection given back in the middle of a query gets this long to end it.
const CLEAN_UP_MAX: Duration = Duration::from_secs(3);

/// What the server bounds for each of our sessions.
///
/// A process that is frozen or cut off in the middle of a transaction holds row locks. The server
/// ends its session after `idle_in_transaction_session_timeout`; no transaction of ours waits for
/// anything but the database. Others wait for such a lock at most `lock_timeout`, which is longer,
/// and repeat. The keepalives end sessions whose client is gone without a word.
const SERVER_BOUNDS: [(&str, &str); 7] = [
    ("statement_timeout", "30s"),
    ("idle_in_transaction_session_timeout", "5s"),
    ("lock_timeout", "8s"),
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("tcp_user_timeout", "10000"),
];

/// What went wrong with a query, as far as repeating it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// The transaction was rolled back for a reason that has nothing to do with it: a changed
    /// table, a deadlock, a lock held too long. Repeating it is always right.
    RolledBack,
    /// The connection was lost, so a commit under way may have happened.
    Disconnected,
    /// The database is away or busy; it was waited for already.
    Away,
    /// A bug, or bad data.
    Other,
}

/// Sorts a failure; see [`Failed`].
#[must_use]
pub fn failed(error: &sqlx::Error) -> Failed {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => {
            Failed::Disconnected
        }
        sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => Failed::Away,
        sqlx::Error::Database(cause) => match cause.code().as_deref() {
            Some(CHANGED | "40001" | "40P01" | "55P03" | "25P02" | "25P03") => Failed::RolledBack,
            Some("57P01" | "57P02") => Failed::Disconnected,
            Some(code) if code.starts_with("08") => Failed::Disconnected,
            // 25006: this server has become a replica.
            Some(code) if code.starts_with("57") || code.starts_with("53") || code == "25006" => {
                Failed::Away
            }
            _ => Failed::Other,
        },
        // After a column's type was changed: read anew, it fits or it is a bug.
        _ => Failed::Other,
    }
}

/// SQLSTATE of "cached plan must not change result type".
const CHANGED: &str = "0A000";

/// What this process has learned about connections, of all its pools: errors arise where the
/// pool is not known.
struct Learned {
    /// Statements prepared before this may not fit their tables any more.
    changed_at: Option<Instant>,
    /// A connection broke then; its neighbours may be dead as well.
    broke_at: Option<Instant>,
}

static LEARNED: Mutex<Learned> = Mutex::new(Learned {
    changed_at: None,
    broke_at: None,
});

/// Learns from a failed query what it says about connections. Every conversion of an
/// `sqlx::Error` calls it, and every task that only logs one.
pub fn observe(error: &sqlx::Error) {
    match failed(error) {
        Failed::Disconnected => suspect_connections(),
        Failed::RolledBack => {
            let changed = error
                .as_database_error()
                .is_some_and(|cause| cause.code().as_deref() == Some(CHANGED));
            if changed {
                tracing::warn!(%error, "a table was changed under a prepared statement; preparing anew and repeating");
                learned(|learned| learned.changed_at = Some(Instant::now()));
            }
        }
        Failed::Away | Failed::Other => {}
    }
}

/// Some call did not come back: for a while connections are asked before they are used.
pub fn suspect_connections() {
    learned(|learned| learned.broke_at = Some(Instant::now()));
}

fn learned<T>(with: impl FnOnce(&mut Learned) -> T) -> T {
    with(&mut LEARNED.lock().unwrap_or_else(PoisonError::into_inner))
}

/// How long ago a table was found to have changed.
fn changed_ago() -> Option<Duration> {
    learned(|learned| learned.changed_at).map(|at| at.elapsed())
}

/// Forgets the statements of a connection: the next use of each prepares it anew. That is cheap;
/// sixty new connections at once are not.
async fn forget_statements(conn: &mut PgConnection) -> sqlx::Result<()> {
    match tokio::time::timeout(CLEAN_UP_MAX, conn.clear_cached_statements()).await {
        Ok(result) => result,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

fn is_suspicious(age: Duration) -> bool {
    let broke_at = learned(|learned| learned.broke_at);
    broke_at.is_some_and(|at| at.elapsed() <= age && at.elapsed() < SUSPICIOUS)
}

/// Bounds a call of the database on this side: through a connection that swallows what it is
/// given, no answer and no error ever comes.
///
/// # Errors
/// What `call` fails with, or that it did not end within `time`.
pub async fn within<T>(
    time: Duration,
    call: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    let call = std::pin::pin!(call);
    match tokio::time::timeout(time, call).await {
        Ok(result) => result,
        Err(_) => {
            // Before the call is dropped, which gives its connection back.
            suspect_connections();
            Err(sqlx::Error::Io(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                format!("the database did not answer within {} ms", time.as_millis()),
            )))
        }
    }
}

async fn ping(conn: &mut PgConnection, within: Duration) -> sqlx::Result<()> {
    match tokio::time::timeout(within, conn.ping()).await {
        Ok(result) => result,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

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
    // Its lock would belong to a session, which a frozen process keeps: see `migrate`.
    migrator.set_locking(false);
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
    let bounds = SERVER_BOUNDS.map(|(name, value)| format!("; set {name} to '{value}'"));
    format!("set search_path to {schema}{}", bounds.concat())
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
        .before_acquire(|conn, meta| {
            Box::pin(async move {
                // Idle since before the change: what it prepared then may not fit.
                if changed_ago().is_some_and(|ago| meta.idle_for >= ago) {
                    forget_statements(conn).await?;
                } else if meta.idle_for > IDLE_TRUSTED || is_suspicious(meta.age) {
                    ping(conn, PING_MAX).await?;
                }
                Ok(true)
            })
        })
        .after_release(|conn, meta| {
            Box::pin(async move {
                // In use while the table changed, perhaps.
                if changed_ago().is_some_and(|ago| ago < CHANGING) {
                    forget_statements(conn).await?;
                }
                // sqlx asks it next, without a bound, and holds its place in the pool meanwhile.
                if is_suspicious(meta.age) {
                    ping(conn, CLEAN_UP_MAX).await?;
                }
                Ok(true)
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

/// A pool of one connection beside `pool`'s, with its settings, called `name` at the server: for
/// work that must go on while requests use `pool` up, or that keeps its connection for ever.
pub fn apart(pool: &PgPool, name: &str) -> PgPool {
    let options = (*pool.connect_options()).clone().application_name(name);
    pool.options()
        .clone()
        .max_connections(1)
        .connect_lazy_with(options)
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
    let done = migrate_on(&mut conn, schema, migrator).await;
    done.map_err(|error| match error {
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

/// All that is missing, in one transaction and under its lock: nobody else migrates, or makes the
/// schema, beside it. A process that is frozen here is ended by the server, and its lock with it.
async fn migrate_on(
    conn: &mut PgConnection,
    schema: &str,
    migrator: &Migrator,
) -> Result<(), MigrateError> {
    let mut tx = conn.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(7216340)")
        .execute(&mut *tx)
        .await?;
    let create = format!("create schema if not exists {schema}");
    sqlx::query(sqlx::AssertSqlSafe(create))
        .execute(&mut *tx)
        .await?;
    migrator.run(&mut *tx).await?;
    tx.commit().await?;
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

    /// The audit's stretch of any table, inside a question whose own columns are named.
    const ALLOWED: &str = concat!("src/cmd/audit/books.rs: t.", "* Some(\"from\")");

    /// Adding a column must not change what a prepared statement returns, and dropping one that
    /// nothing names must not either.
    #[test]
    fn every_statement_names_its_columns() {
        let mut stack = vec![std::path::PathBuf::from(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/src"
        ))];
        let mut found = Vec::new();
        while let Some(path) = stack.pop() {
            if path.is_dir() {
                stack.extend(
                    std::fs::read_dir(path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
                continue;
            }
            // A run of the audit prepares its statements once, and names what it shows.
            let audit = path.ends_with("cmd/audit/books.rs");
            if audit || path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap().to_lowercase();
            let mut words = text.split_whitespace().peekable();
            while let Some(word) = words.next() {
                let all = matches!(
                    word.trim_matches(['"', '(']),
                    "select" | "returning" | "distinct"
                ) && words.peek().is_some_and(|next| next.starts_with('*'));
                let of_table = word
                    .trim_end_matches([',', '"', ';'])
                    .strip_suffix(".*")
                    .is_some_and(|table| {
                        !table.is_empty() && table.chars().all(|c| c.is_alphanumeric() || c == '_')
                    });
                if all || of_table {
                    found.push(format!("{}: {word} {:?}", path.display(), words.peek()));
                }
            }
        }
        found.retain(|one| !one.ends_with(ALLOWED));
        assert!(found.is_empty(), "{found:#?}");
    }

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
