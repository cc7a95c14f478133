//! What can be set for a queue: defaults from flags, a row in Postgres, a copy
//! in Redis that the scripts read, and the record of who changed what.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use crate::platform::{overview, problem::Problem};

/// Where reservations run elsewhere, their default.
const HOLD_TTL: Duration = Duration::from_secs(7 * 60);

/// Settings of the queue role: the defaults of every queue without a row of its own.
#[derive(clap::Args, Clone, Debug)]
#[command(next_help_heading = "Queue")]
#[group(skip)]
pub struct Config {
    /// How many people book at once in one performance.
    #[arg(
        long,
        env = "TICKETPING_MAX_WORKING",
        value_name = "N",
        default_value_t = 100
    )]
    pub max_working: u32,
    /// How long a turn takes new holds, counted from the first check-in. An order that is not paid yet
    /// keeps the turn until its own deadline, at most two hold times longer.
    #[arg(long, env = "TICKETPING_WORKING_TTL", value_name = "DURATION", default_value = "7m", value_parser = humantime::parse_duration)]
    pub working_ttl: Duration,
    /// How long an admitted person has for the first check-in, at least.
    #[arg(long, env = "TICKETPING_CLAIM_TTL", value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    pub claim_ttl: Duration,
    /// Reservations' own flag; a queue's settings may differ from it.
    #[arg(skip = HOLD_TTL)]
    pub hold_ttl: Duration,
    /// Entry ends when this many times the seats not sold are waiting; 0 is no limit.
    #[arg(
        long,
        env = "TICKETPING_QUEUE_FACTOR",
        value_name = "FACTOR",
        default_value_t = 2.0
    )]
    pub queue_factor: f64,
    /// How many people are admitted a minute at most; without it, as fast as places come free.
    #[arg(long, env = "TICKETPING_ADMISSIONS_PER_MINUTE", value_name = "N")]
    pub admissions_per_minute: Option<u32>,
    /// How often a second one place may be asked for, on average over five seconds; more is abuse
    /// and answered 429. Counted by each instance; 0 is no limit.
    #[arg(
        long,
        env = "TICKETPING_POLLS_PER_SECOND",
        value_name = "N",
        default_value_t = 200
    )]
    pub polls_per_second: u32,
}

/// One queue's settings. Times are milliseconds, as the scripts count.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// How many work at once.
    pub max_working: i32,
    /// The working time.
    pub working_ttl_ms: i64,
    /// The claim window, at least.
    pub claim_ttl_ms: i64,
    /// How long a hold lasts.
    pub hold_ttl_ms: i64,
    /// The inflow limit.
    pub admissions_per_minute: Option<i32>,
    /// How many may wait for a seat not sold.
    pub queue_factor: f64,
    /// Nobody is admitted.
    pub paused: bool,
    /// Nobody enters.
    pub draining: bool,
    /// When registration for the draw begins.
    pub pre_queue_opens_at: Option<DateTime<Utc>>,
    /// The poll interval of the next in line.
    pub poll_min_ms: i64,
    /// The longest poll interval.
    pub poll_max_ms: i64,
    /// What each person ahead adds to it.
    pub poll_step_ms: i64,
    /// Moves with every change of the row; 0 without a row.
    pub version: i64,
}

/// The row of a queue: what somebody has set. A field without a value follows the flags.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// See [`Settings::max_working`].
    pub max_working: Option<i32>,
    /// See [`Settings::working_ttl_ms`].
    pub working_ttl_ms: Option<i64>,
    /// See [`Settings::claim_ttl_ms`].
    pub claim_ttl_ms: Option<i64>,
    /// See [`Settings::hold_ttl_ms`].
    pub hold_ttl_ms: Option<i64>,
    /// The inflow limit; None is no limit, unless `admissions_default` says that the flag decides.
    pub admissions_per_minute: Option<i32>,
    /// The flag decides on the inflow limit.
    pub admissions_default: bool,
    /// See [`Settings::queue_factor`].
    pub queue_factor: Option<f64>,
    /// See [`Settings::paused`].
    pub paused: bool,
    /// See [`Settings::draining`].
    pub draining: bool,
    /// See [`Settings::pre_queue_opens_at`].
    pub pre_queue_opens_at: Option<DateTime<Utc>>,
    /// See [`Settings::poll_min_ms`].
    pub poll_min_ms: i64,
    /// See [`Settings::poll_max_ms`].
    pub poll_max_ms: i64,
    /// See [`Settings::poll_step_ms`].
    pub poll_step_ms: i64,
    /// See [`Settings::version`].
    pub version: i64,
}

crate::from_row!(Stored {
    max_working,
    working_ttl_ms,
    claim_ttl_ms,
    hold_ttl_ms,
    admissions_per_minute,
    admissions_default,
    queue_factor,
    paused,
    draining,
    pre_queue_opens_at,
    poll_min_ms,
    poll_max_ms,
    poll_step_ms,
    version
});

impl Stored {
    /// What holds before anybody has set anything.
    fn nothing() -> Self {
        Self {
            admissions_default: true,
            poll_min_ms: 1_000,
            poll_max_ms: 60_000,
            poll_step_ms: 10,
            ..Self::default()
        }
    }

    /// What is in force: what was set, and the flags for the rest.
    fn resolve(&self, config: &Config) -> Settings {
        let flags = Settings::defaults(config);
        Settings {
            max_working: self.max_working.unwrap_or(flags.max_working),
            working_ttl_ms: self.working_ttl_ms.unwrap_or(flags.working_ttl_ms),
            claim_ttl_ms: self.claim_ttl_ms.unwrap_or(flags.claim_ttl_ms),
            hold_ttl_ms: self.hold_ttl_ms.unwrap_or(flags.hold_ttl_ms),
            admissions_per_minute: match self.admissions_default {
                true => flags.admissions_per_minute,
                false => self.admissions_per_minute,
            },
            queue_factor: self.queue_factor.unwrap_or(flags.queue_factor),
            paused: self.paused,
            draining: self.draining,
            pre_queue_opens_at: self.pre_queue_opens_at,
            poll_min_ms: self.poll_min_ms,
            poll_max_ms: self.poll_max_ms,
            poll_step_ms: self.poll_step_ms,
            version: self.version,
        }
    }
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn optional<T: ToString>(value: Option<T>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

impl Settings {
    /// Without a row: the flags.
    pub fn defaults(config: &Config) -> Self {
        Self {
            max_working: i32::try_from(config.max_working).unwrap_or(i32::MAX),
            working_ttl_ms: ms(config.working_ttl),
            claim_ttl_ms: ms(config.claim_ttl),
            hold_ttl_ms: ms(config.hold_ttl),
            admissions_per_minute: config
                .admissions_per_minute
                .map(|n| i32::try_from(n).unwrap_or(i32::MAX)),
            queue_factor: config.queue_factor,
            paused: false,
            draining: false,
            pre_queue_opens_at: None,
            poll_min_ms: 1_000,
            poll_max_ms: 60_000,
            poll_step_ms: 10,
            version: 0,
        }
    }

    /// The interval told to who has `ahead` people in front, before jitter (which only shortens it).
    pub fn poll_interval_ms(&self, ahead: u64) -> u64 {
        let step = ahead.saturating_mul(self.poll_step_ms.unsigned_abs());
        self.poll_min_ms
            .unsigned_abs()
            .saturating_add(step)
            .min(self.poll_max_ms.unsigned_abs())
    }

    /// Fields of the meta hash; an empty value stands for none.
    pub fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("maxWorking", self.max_working.to_string()),
            ("workingTtl", self.working_ttl_ms.to_string()),
            ("claimTtl", self.claim_ttl_ms.to_string()),
            ("holdTtl", self.hold_ttl_ms.to_string()),
            ("admissionsPerMinute", optional(self.admissions_per_minute)),
            ("queueFactor", self.queue_factor.to_string()),
            ("paused", i32::from(self.paused).to_string()),
            ("draining", i32::from(self.draining).to_string()),
            (
                "preQueueOpensAt",
                optional(self.pre_queue_opens_at.map(|t| t.timestamp_millis())),
            ),
            ("pollMin", self.poll_min_ms.to_string()),
            ("pollMax", self.poll_max_ms.to_string()),
            ("pollStep", self.poll_step_ms.to_string()),
        ]
    }

    /// As the public and `top` see them.
    pub fn shown(&self) -> overview::Settings {
        let seconds = |ms: i64| ms.unsigned_abs() / 1000;
        overview::Settings {
            max_working: u64::from(self.max_working.unsigned_abs()),
            working_ttl_seconds: seconds(self.working_ttl_ms),
            claim_ttl_seconds: seconds(self.claim_ttl_ms),
            hold_ttl_seconds: seconds(self.hold_ttl_ms),
            admissions_per_minute: self
                .admissions_per_minute
                .map(|n| u64::from(n.unsigned_abs())),
            queue_factor: self.queue_factor,
            paused: self.paused,
            draining: self.draining,
            pre_queue_opens_at: self.pre_queue_opens_at,
        }
    }
}

const COLUMNS: &str =
    "select max_working::int as max_working, working_ttl_ms, claim_ttl_ms, hold_ttl_ms,
    admissions_per_minute::int as admissions_per_minute, admissions_default, queue_factor,
    paused, draining, pre_queue_opens_at, poll_min_ms, poll_max_ms, poll_step_ms, version
    from settings where performance_id = $1";

/// What is in force for `performance`: its row, and the flags for what the row does not say.
pub async fn load(pool: &PgPool, performance: Uuid, config: &Config) -> sqlx::Result<Settings> {
    let stored: Option<Stored> = sqlx::query_as(COLUMNS)
        .bind(performance)
        .fetch_optional(pool)
        .await?;
    Ok(stored.map_or_else(
        || Settings::defaults(config),
        |stored| stored.resolve(config),
    ))
}

/// One change of settings, as the audit keeps it.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// Newer changes have greater ids.
    pub id: Uuid,
    /// Which queue.
    pub performance_id: Uuid,
    /// Who.
    pub actor: Uuid,
    /// Why.
    pub reason: String,
    /// The settings before.
    #[schema(value_type = Object)]
    pub before: Value,
    /// The settings after.
    #[schema(value_type = Object)]
    pub after: Value,
    /// When.
    pub changed_at: DateTime<Utc>,
}

fn recorded(settings: &Settings) -> Value {
    json!(settings.shown())
}

/// Everything before the commit may take so long; then the change is given up, and nothing of it
/// holds.
const PREPARE_MAX: Duration = Duration::from_secs(3);
/// The commit itself may take so long before its outcome counts as unknown.
const COMMIT_MAX: Duration = Duration::from_secs(3);

/// Why a change was not made.
#[derive(Debug)]
pub enum ChangeError {
    /// It was refused; nothing has changed.
    Refused(Problem),
    /// PostgreSQL failed or was too slow; nothing has changed.
    NotMade(String),
    /// PostgreSQL did not say whether the commit went through.
    Unknown(String),
}

/// Changes the row of `performance` and records it, in one transaction. `edit` may refuse.
///
/// # Errors
/// [`ChangeError`], which says whether the change holds.
pub async fn change(
    pool: &PgPool,
    performance: Uuid,
    config: &Config,
    actor: Uuid,
    reason: &str,
    edit: impl FnOnce(&mut Stored) -> Result<(), Problem>,
) -> Result<Settings, ChangeError> {
    let prepared = async {
        let failed = |e: sqlx::Error| ChangeError::NotMade(e.to_string());
        let mut tx = pool.begin().await.map_err(failed)?;
        let after = write(&mut tx, performance, config, (actor, reason), edit).await?;
        Ok((tx, after))
    };
    // Dropped in the middle, the transaction is rolled back with its connection.
    let (tx, after) = tokio::time::timeout(PREPARE_MAX, prepared)
        .await
        .map_err(|_| ChangeError::NotMade("PostgreSQL did not answer in time".into()))??;
    match tokio::time::timeout(COMMIT_MAX, tx.commit()).await {
        Ok(Ok(())) => Ok(after),
        Ok(Err(error)) => Err(ChangeError::Unknown(error.to_string())),
        Err(_) => Err(ChangeError::Unknown(
            "PostgreSQL did not confirm the commit in time".into(),
        )),
    }
}

async fn write(
    tx: &mut sqlx::PgConnection,
    performance: Uuid,
    config: &Config,
    (actor, reason): (Uuid, &str),
    edit: impl FnOnce(&mut Stored) -> Result<(), Problem>,
) -> Result<Settings, ChangeError> {
    let failed = |e: sqlx::Error| ChangeError::NotMade(e.to_string());
    // Two operators at once: the second sees what the first has set.
    sqlx::query("select pg_advisory_xact_lock(hashtextextended($1::text, 7216341))")
        .bind(performance)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let stored: Option<Stored> = sqlx::query_as(COLUMNS)
        .bind(performance)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
    let before = stored.as_ref().map_or_else(
        || Settings::defaults(config),
        |stored| stored.resolve(config),
    );
    let mut row = stored.unwrap_or_else(Stored::nothing);
    edit(&mut row).map_err(ChangeError::Refused)?;
    row.version = store(&mut *tx, performance, &row).await.map_err(failed)?;
    let after = row.resolve(config);
    sqlx::query(
        "insert into setting_changes (id, performance_id, actor, reason, before, after) values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(Uuid::now_v7())
    .bind(performance)
    .bind(actor)
    .bind(reason)
    .bind(recorded(&before))
    .bind(recorded(&after))
    .execute(&mut *tx)
    .await
    .map_err(failed)?;
    Ok(after)
}

/// Writes the row; its new version.
async fn store(tx: &mut sqlx::PgConnection, performance: Uuid, row: &Stored) -> sqlx::Result<i64> {
    sqlx::query_scalar(
        "insert into settings (performance_id, max_working, working_ttl_ms, claim_ttl_ms, hold_ttl_ms,
            admissions_per_minute, admissions_default, queue_factor, paused, draining, pre_queue_opens_at,
            poll_min_ms, poll_max_ms, poll_step_ms)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
         on conflict (performance_id) do update set
            max_working = excluded.max_working, working_ttl_ms = excluded.working_ttl_ms,
            claim_ttl_ms = excluded.claim_ttl_ms, hold_ttl_ms = excluded.hold_ttl_ms,
            admissions_per_minute = excluded.admissions_per_minute, admissions_default = excluded.admissions_default,
            queue_factor = excluded.queue_factor,
            paused = excluded.paused, draining = excluded.draining, pre_queue_opens_at = excluded.pre_queue_opens_at
         returning version",
    )
    .bind(performance)
    .bind(row.max_working)
    .bind(row.working_ttl_ms)
    .bind(row.claim_ttl_ms)
    .bind(row.hold_ttl_ms)
    .bind(row.admissions_per_minute)
    .bind(row.admissions_default)
    .bind(row.queue_factor)
    .bind(row.paused)
    .bind(row.draining)
    .bind(row.pre_queue_opens_at)
    .bind(row.poll_min_ms)
    .bind(row.poll_max_ms)
    .bind(row.poll_step_ms)
    .fetch_one(tx)
    .await
}

/// Changes older than `before`, newest first.
pub async fn changes(pool: &PgPool, before: Option<Uuid>, limit: i64) -> sqlx::Result<Vec<Change>> {
    let rows = sqlx::query(
        "select id, performance_id, actor, reason, before, after, changed_at from setting_changes
         where $1::uuid is null or id < $1 order by id desc limit $2",
    )
    .bind(before)
    .bind(limit)
    .fetch_all(pool)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Change {
                id: row.try_get("id")?,
                performance_id: row.try_get("performance_id")?,
                actor: row.try_get("actor")?,
                reason: row.try_get("reason")?,
                before: row.try_get("before")?,
                after: row.try_get("after")?,
                changed_at: row.try_get("changed_at")?,
            })
        })
        .collect()
}
