//! `ticketping audit`: proves the books. It reads the stores of every role and
//! Stripe's side, and changes nothing.
//!
//! What is still on its way (an event between two roles, a refund that Stripe is
//! asked for) is no breach within the grace period; `--timeout` gives it time.

mod books;
mod live;
mod stripe;

use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgPool;

use crate::{
    platform::{
        db,
        embedded::runtime::RuntimeFile,
        failure::Failure,
        redis::{self, Redis, Trust},
        secret::Secret,
    },
    serve::{reservations, secrets::Kept},
};

/// Rows named for each check; the count says how many there are.
const NAMED_MAX: usize = 20;
/// What is younger than this may still be on its way, unless the caller knows better.
const YOUNG: Duration = Duration::from_secs(60);
/// PostgreSQL ends a query after its time; who says nothing for so much longer is not there.
const SILENCE_MORE: Duration = Duration::from_secs(10);
/// The queries are about stretches of some thousand rows.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(30);
/// Every query is about a stretch of an index. Whatever the planner believes, it must not read a
/// whole table for one of a thousand stretches.
const BY_INDEX: &str = "set enable_seqscan to off; set enable_hashjoin to off;
    set enable_mergejoin to off; set enable_bitmapscan to off";
/// Closing waits for what is under way.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// Between two lines about how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(2);
/// Where Stripe is, when only its key is given.
const STRIPE: &str = "https://api.stripe.com";
/// Between two looks while waiting for the books to come to rest.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Prove the books: every seat sold once, every payment kept or given back, Redis as Postgres says.
///
/// Exit code: 0 the books balance, 1 a check found a breach (its rows are named).
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The data directory of the embedded default, whose running server is audited
    #[arg(
        long,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = "./.ticketping"
    )]
    pub data_dir: PathBuf,
    /// PostgreSQL, where it is not the embedded one
    #[arg(
        long,
        env = "TICKETPING_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database_url: Option<Secret>,
    /// Redis, where it is not the embedded one
    #[arg(
        long,
        env = "TICKETPING_REDIS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub redis_url: Option<Secret>,
    /// PEM file of the certificate authorities that Redis is checked against, where its URL begins with
    /// rediss [default: as the running embedded server says; else the public ones]
    #[arg(long, env = "TICKETPING_REDIS_CA", value_name = "FILE")]
    pub redis_ca: Option<PathBuf>,
    /// What Redis keys begin with [default: as the embedded server says; else tp]
    #[arg(long, env = "TICKETPING_REDIS_PREFIX", value_name = "PREFIX")]
    pub redis_prefix: Option<String>,
    /// Where Stripe is [default: the embedded server's sandbox; else Stripe itself]
    #[arg(long, env = "TICKETPING_STRIPE_URL", value_name = "URL")]
    pub stripe_url: Option<String>,
    /// Stripe's secret key, or a restricted one that may read payment intents, charges and refunds. Without it, Stripe's record is not compared
    #[arg(
        long,
        env = "STRIPE_SECRET_KEY",
        hide_env_values = true,
        value_name = "KEY"
    )]
    pub stripe_secret_key: Option<Secret>,
    /// Compare only orders, payments and Stripe's intents created since then (RFC 3339, such as 2026-11-26T00:00:00Z) [default: all]
    #[arg(long, value_name = "TIME")]
    pub since: Option<DateTime<Utc>>,
    /// Check again for so long while a check fails: what is on its way may arrive (such as 30s)
    #[arg(long = "timeout", alias = "wait", value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    pub wait: Duration,
    /// What is younger may still be on its way between two roles, and is no breach yet (such as 1m)
    #[arg(long = "grace-period", alias = "young", value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    pub young: Duration,
    /// A query that takes longer ends the audit (such as 30s), and so does a store that says nothing for ten seconds more
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    pub statement_timeout: Duration,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What is audited.
#[derive(Clone, Debug)]
pub struct Config {
    /// The database of all roles.
    pub database_url: String,
    /// The Redis of queue and reservations; without it they are not compared.
    pub redis_url: Option<String>,
    /// In front of its keys.
    pub redis_prefix: String,
    /// The certificate authorities that it is checked against, where they are not the public ones.
    pub redis_ca: Option<PathBuf>,
    /// Stripe or its sandbox, and the secret key; without it Stripe's side is not compared.
    pub stripe: Option<(String, Secret)>,
    /// How long to look again before a breach counts.
    pub wait: Duration,
    /// What is younger may still be on its way, and is no breach. Whole seconds; zero where
    /// everything is known to have come to rest.
    pub young: Duration,
    /// Only what was created since then.
    pub since: Option<DateTime<Utc>>,
    /// A query that takes longer ends the audit.
    pub statement_timeout: Duration,
    /// Tell on standard error how far it is, when it takes long.
    pub progress: bool,
}

/// How far an audit is, for somebody who waits.
pub(super) struct Progress {
    on: bool,
    last: Mutex<Instant>,
    /// When a store answered last.
    answered: Mutex<Instant>,
}

impl Progress {
    fn new(on: bool) -> Self {
        Self {
            on,
            last: Mutex::new(Instant::now()),
            answered: Mutex::new(Instant::now()),
        }
    }

    /// Something was answered.
    pub(super) fn answered(&self) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Waits for `looks`, however long they take, while answers come: a store that is frozen, or cut off, keeps its
    /// connection and never says a word.
    async fn unless_silent<T>(
        &self,
        silence: Duration,
        store: &str,
        looks: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        self.answered();
        let mut looks = std::pin::pin!(looks);
        loop {
            let last = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
            let until = last + silence;
            tokio::select! {
                found = &mut looks => return found,
                () = tokio::time::sleep_until(until.into()) => {}
            }
            if *self.answered.lock().unwrap_or_else(PoisonError::into_inner) == last {
                let seconds = silence.as_secs();
                return Err(format!(
                    "{store}: nothing was answered for {seconds} s; nothing was proved"
                ));
            }
        }
    }

    /// Says it every two seconds.
    pub(super) fn tell(&self, what: impl FnOnce() -> String) {
        self.answered();
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if self.on && last.elapsed() >= PROGRESS_EVERY {
            *last = Instant::now();
            eprintln!("audit: {}", what());
        }
    }
}

/// One question to the books.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// Stable, for programs.
    pub name: &'static str,
    /// What must hold.
    pub claim: &'static str,
    /// How many things were looked at; null where the check could not be made.
    pub looked_at: Option<u64>,
    /// How many breach it.
    pub breaches: u64,
    /// The first of them.
    pub rows: Vec<String>,
    /// Why it could not be made.
    pub skipped: Option<String>,
}

impl Check {
    fn new(name: &'static str, claim: &'static str, looked_at: u64, mut rows: Vec<String>) -> Self {
        let breaches = rows.len() as u64;
        rows.truncate(NAMED_MAX);
        Self {
            name,
            claim,
            looked_at: Some(looked_at),
            breaches,
            rows,
            skipped: None,
        }
    }

    fn skipped(name: &'static str, claim: &'static str, why: impl Into<String>) -> Self {
        Self {
            name,
            claim,
            looked_at: None,
            breaches: 0,
            rows: Vec::new(),
            skipped: Some(why.into()),
        }
    }
}

/// All the answers.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// In a fixed order.
    pub checks: Vec<Check>,
}

impl Report {
    /// Do the books balance?
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|c| c.breaches == 0)
    }

    /// The report as a person reads it.
    pub fn text(&self) -> String {
        use std::fmt::Write as _;
        let mut out = String::new();
        for check in &self.checks {
            let verdict = match (&check.skipped, check.breaches) {
                (Some(_), _) => "skipped".to_owned(),
                (None, 0) => "ok".to_owned(),
                (None, n) => format!("{n} BREACHED"),
            };
            let looked_at = check
                .looked_at
                .map_or_else(|| "-".into(), |n| n.to_string());
            let _ = writeln!(out, "{verdict:>12}  {looked_at:>9}  {}", check.claim);
            if let Some(why) = &check.skipped {
                let _ = writeln!(out, "{:>25}{why}", "");
            }
            for row in &check.rows {
                let _ = writeln!(out, "{:>25}{row}", "");
            }
        }
        let breached = self.checks.iter().filter(|c| c.breaches > 0).count();
        let _ = match breached {
            0 => writeln!(out, "The books balance."),
            1 => writeln!(out, "One check found a breach."),
            n => writeln!(out, "{n} checks found breaches."),
        };
        out
    }
}

/// Audits, prints, and exits 1 on a breach.
///
/// # Errors
/// When a store cannot be read.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let json = args.json;
    let report = run_checks(&args.config()?).await.map_err(Failure::Failed)?;
    if json {
        let text =
            serde_json::to_string_pretty(&report).map_err(|e| Failure::Failed(e.to_string()))?;
        print(&(text + "\n"))?;
    } else {
        print(&report.text())?;
    }
    Ok(u8::from(!report.ok()))
}

/// Who closes standard output early (`| head`) has read enough; the exit code stays.
fn print(text: &str) -> Result<(), Failure> {
    use std::io::{ErrorKind, Write};
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => Err(Failure::Failed(format!(
            "cannot write to standard output: {e}"
        ))),
        _ => Ok(()),
    }
}

impl Args {
    fn config(self) -> Result<Config, Failure> {
        let url = self.stripe_url;
        let stripe =
            (self.stripe_secret_key).map(|key| (url.unwrap_or_else(|| STRIPE.to_owned()), key));
        let redis_url = self.redis_url.map(|u| u.expose().to_owned());
        if let Some(url) = self.database_url {
            return Ok(Config {
                database_url: url.expose().to_owned(),
                redis_url,
                redis_prefix: self
                    .redis_prefix
                    .unwrap_or_else(|| redis::DEFAULT_PREFIX.to_owned()),
                redis_ca: self.redis_ca,
                stripe,
                wait: self.wait,
                young: self.young,
                since: self.since,
                statement_timeout: self.statement_timeout,
                progress: true,
            });
        }
        let found = Config::of_running(&self.data_dir, self.wait)?;
        Ok(Config {
            redis_url: redis_url.or(found.redis_url),
            redis_prefix: self.redis_prefix.unwrap_or(found.redis_prefix),
            redis_ca: self.redis_ca.or(found.redis_ca),
            stripe: stripe.or(found.stripe),
            young: self.young,
            since: self.since,
            statement_timeout: self.statement_timeout,
            progress: true,
            ..found
        })
    }
}

impl Config {
    /// That of the embedded server which runs on `data_dir`.
    ///
    /// # Errors
    /// When none runs there, or what it wrote cannot be read.
    pub fn of_running(data_dir: &Path, wait: Duration) -> Result<Self, Failure> {
        let running = RuntimeFile::of_running(data_dir)
            .map_err(|e| Failure::Failed(e.to_string()))?
            .ok_or_else(|| {
                Failure::Failed(format!(
                    "no server runs on {}: start it (`ticketping serve all`), or name --database-url and --redis-url",
                    data_dir.display()
                ))
            })?;
        let stripe = if running.stripe_url.is_empty() {
            None
        } else {
            let kept = Kept::load(data_dir)?;
            Some((running.stripe_url, Secret::new(&*kept.stripe_secret_key)))
        };
        Ok(Self {
            database_url: running.database_url,
            redis_url: Some(running.redis_url),
            redis_prefix: running.redis_prefix,
            redis_ca: running.redis_ca,
            stripe,
            wait,
            young: YOUNG,
            since: None,
            statement_timeout: STATEMENT_TIMEOUT,
            progress: false,
        })
    }
}

/// Makes every check, again and again until all hold or the wait is over.
///
/// # Errors
/// When a store cannot be read.
pub async fn run_checks(config: &Config) -> Result<Report, String> {
    let timeout_ms = config.statement_timeout.as_millis().max(1);
    let more = format!("set statement_timeout to {timeout_ms};{BY_INDEX}");
    let pool = db::pool_with(&config.database_url, "public", 2, more)?;
    let orders = db::pool(&config.database_url, reservations::SCHEMA, 1)?;
    let redis = match &config.redis_url {
        Some(url) => {
            let trust = Trust::of_file(config.redis_ca.as_deref())?;
            Some(Redis::connect_trusting(url, trust).await?)
        }
        None => None,
    };
    let until = tokio::time::Instant::now() + config.wait;
    let report = loop {
        let report = look(config, &pool, &orders, redis.as_ref()).await?;
        if report.ok() || tokio::time::Instant::now() >= until {
            break report;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    };
    // A connection whose server froze just now is dropped with the process.
    let closing = async { tokio::join!(pool.close(), orders.close()) };
    let _ = tokio::time::timeout(CLOSE_WITHIN, closing).await;
    Ok(report)
}

async fn look(
    config: &Config,
    pool: &PgPool,
    orders: &PgPool,
    redis: Option<&Redis>,
) -> Result<Report, String> {
    let progress = Progress::new(config.progress);
    let silence = config.statement_timeout + SILENCE_MORE;
    let of_books = async {
        let checks = books::checks(pool, config.young, config.since, &progress).await;
        checks.map_err(|e| format!("PostgreSQL: {e}"))
    };
    let mut checks = progress
        .unless_silent(silence, "PostgreSQL", of_books)
        .await?;
    let live = live::checks(pool, orders, redis, &config.redis_prefix, &progress);
    checks.extend(
        progress
            .unless_silent(silence, "PostgreSQL and Redis", live)
            .await?,
    );
    let stripe = config.stripe.as_ref();
    let of_stripe = stripe::check(pool, stripe, config.young, config.since, &progress);
    checks.push(progress.unless_silent(silence, "Stripe", of_stripe).await?);
    Ok(Report { checks })
}
