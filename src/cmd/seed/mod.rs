//! `ticketping seed`: halls, performances, schedules, seats, members, and access tokens for
//! load tests.
//!
//! Depends on its numbers and `--rng-seed` alone (times on the day, too), adds nothing twice,
//! and leaves nothing half: each part is one transaction.

mod box_office;
mod demo;
mod hall;
mod ids;
mod load;
mod members;
mod plan;
mod progress;
mod report;
mod reset;
mod target;
mod words;

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use chrono::Utc;
use sqlx::PgPool;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    ids::Ids,
    members::Members,
    plan::{Calendar, Numbers, Plan, Settings},
    progress::Progress,
    target::{Target, TargetArgs},
};
pub use self::{load::Added, members::PASSWORD, report::Summary};
use crate::{
    platform::{auth::Signer, db, failure::Failure, secret::Secret},
    serve::{migrate::migrate_all, users::password::hash_now},
};

/// `--rng-seed` when none is given; the members of this one have the plain addresses.
const RNG_SEED_DEFAULT: u64 = 1;
/// `--users` when none is given.
/// Members that are made where no number is given, and with the demo set.
pub const USERS_DEFAULT: u64 = 100;
/// `--token-ttl` when none is given.
const TOKEN_TTL_DEFAULT: Duration = Duration::from_secs(24 * 3_600);

/// Create halls, performances, schedules, seats, members and their access tokens.
///
/// Without numbers: the demo set, with a sale in every state (open, queued, almost sold out, sold out, upcoming,
/// drawn, closed). With numbers: so many performances, all open and free. Running it again adds only what is missing.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Performances, open for booking with every seat free [default: the demo set; 1 with other numbers]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    performances: Option<u32>,
    /// Schedules of each performance [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    schedules: Option<u32>,
    /// Seats of each schedule [default: 1000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2_000_000))]
    seats: Option<u32>,
    /// Members, each with an access token
    #[arg(long, value_name = "N", default_value_t = USERS_DEFAULT, value_parser = clap::value_parser!(u64).range(0..=10_000_000))]
    users: u64,
    /// How many may book at the same time, for each performance
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    max_working: Option<u32>,
    /// How long a turn to book lasts
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    working_ttl: Option<Duration>,
    /// How long who was let in may take to show up
    #[arg(long, value_name = "DURATION", value_parser = claim_ttl)]
    claim_ttl: Option<Duration>,
    /// How long held seats wait for payment
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    hold_ttl: Option<Duration>,
    /// Newcomers are refused when so many wait for each seat not sold; 0 is no limit
    #[arg(long, value_name = "FACTOR", value_parser = factor, allow_negative_numbers = true)]
    queue_factor: Option<f64>,
    /// How long the members' access tokens are valid, from 1s to 1year
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = crate::cmd::token::ttl)]
    token_ttl: Duration,
    /// A copy of <data-dir>/tokens.jsonl: a line {"userId", "email", "accessToken"} for each member
    #[arg(long, value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Remove every member, performance, order and payment first; asks before it does
    #[arg(long)]
    reset: bool,
    /// The key with which the server takes payments: a live one refuses --reset
    #[arg(
        long,
        env = "STRIPE_SECRET_KEY",
        value_name = "KEY",
        hide_env_values = true,
        hide = true
    )]
    stripe_secret_key: Option<Secret>,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Other ids, names and choices: the same number gives the same again
    #[arg(long, value_name = "N", default_value_t = RNG_SEED_DEFAULT)]
    rng_seed: u64,
    #[command(flatten)]
    target: TargetArgs,
}

/// The bounds of the settings are the waiting room's own.
fn bounded(text: &str, max: Duration) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if (Duration::from_secs(1)..=max).contains(&ttl) {
        Ok(ttl)
    } else {
        Err(format!(
            "must be from 1s to {}",
            humantime::format_duration(max)
        ))
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(86_400))
}

fn claim_ttl(text: &str) -> Result<Duration, String> {
    bounded(text, Duration::from_secs(3_600))
}

fn factor(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(factor) if (0.0..=1_000_000.0).contains(&factor) => Ok(factor),
        _ => Err("must be a number, 0 or more, and at most 1000000".to_owned()),
    }
}

/// What is to be seeded, wherever it goes.
struct Job {
    plan: Plan,
    ids: Ids,
    members: Members,
    signer: Option<Signer>,
    token_ttl: Duration,
    token_files: Vec<PathBuf>,
    progress: Progress,
    /// Set when nobody wants the rest any more.
    stop: Arc<AtomicBool>,
}

impl Args {
    fn plan(&self) -> Plan {
        let (ids, calendar) = (Ids::new(self.rng_seed), Calendar::from(Utc::now()));
        let given = Settings {
            max_working: self.max_working,
            working_ttl: self.working_ttl,
            claim_ttl: self.claim_ttl,
            hold_ttl: self.hold_ttl,
            queue_factor: self.queue_factor,
        };
        if (self.performances, self.schedules, self.seats) == (None, None, None) {
            return demo::demo(ids, calendar, given);
        }
        let numbers = Numbers {
            performances: self.performances.unwrap_or(1),
            schedules: self.schedules.unwrap_or(1),
            seats: self.seats.unwrap_or(1_000),
        };
        plan::numbered(ids, calendar, numbers, given)
    }

    fn job(&self, stop: Arc<AtomicBool>) -> Result<Job, Failure> {
        // With named stores and no data directory here, only the copy asked for is written.
        let here = self.target.data_dir.join("tokens.jsonl");
        let wanted = self.target.database_url.is_none() || self.target.data_dir.is_dir();
        let mut token_files: Vec<PathBuf> = (wanted || self.tokens.is_none())
            .then_some(here)
            .into_iter()
            .collect();
        if !token_files.is_empty() {
            let dir = &self.target.data_dir;
            std::fs::create_dir_all(dir).map_err(|e| {
                Failure::Failed(format!(
                    "cannot make {}: {e}; name another --data-dir",
                    dir.display()
                ))
            })?;
        }
        token_files.extend(self.tokens.clone());
        Ok(Job {
            plan: self.plan(),
            ids: Ids::new(self.rng_seed),
            members: Members::new(self.rng_seed, self.users),
            signer: if self.users > 0 {
                Some(self.target.signer()?)
            } else {
                None
            },
            token_ttl: self.token_ttl,
            token_files,
            progress: Progress::Shown,
            stop,
        })
    }
}

/// Seeds, and says what it did on stdout.
///
/// # Errors
/// One sentence that names what is wrong and the way out.
pub async fn run(args: Args) -> Result<u8, Failure> {
    if args.reset {
        reset::refuse_live_key(args.stripe_secret_key.as_ref())?;
        let named = args.target.database_url.is_some();
        if named && args.target.redis_url.is_none() {
            return Err(Failure::usage(
                "--reset needs --redis-url as well as --database-url: the live state must go with the books",
            ));
        }
        reset::confirm(args.yes, &args.target.describe())?;
    }
    // A signal that comes while the stores start ends them as well: it is heard as soon as they can be stopped.
    let signals = Signals::listen()?;
    let target = args.target.open().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let outcome = tokio::select! {
        biased;
        () = signals.first() => {
            stop.store(true, Ordering::Relaxed);
            Err(Failure::Failed(
                "interrupted; what was complete stays, nothing half does".into(),
            ))
        }
        outcome = seed(&args, &target, stop.clone()) => outcome,
    };
    target.close().await;
    print!("{}", outcome?.text());
    Ok(0)
}

/// Ctrl-C, and what a supervisor or `timeout` sends.
struct Signals(Signal, Signal);

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|e| Failure::Failed(format!("cannot listen for signals: {e}")))
        };
        Ok(Self(
            listen(SignalKind::interrupt())?,
            listen(SignalKind::terminate())?,
        ))
    }

    async fn first(mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

async fn seed(args: &Args, target: &Target, stop: Arc<AtomicBool>) -> Result<Summary, Failure> {
    let job = args.job(stop)?;
    let pool = db::pool(&target.database_url, "public", 2).map_err(Failure::Usage)?;
    migrate_all(&target.database_url)
        .await
        .map_err(Failure::Failed)?;
    if args.reset {
        reset::refuse_live_database(&pool).await?;
        reset::database(&pool).await.map_err(failed)?;
        if let Some(url) = &target.redis_url {
            reset::live_state(url, target.redis_ca.as_deref(), &target.redis_prefix)
                .await
                .map_err(Failure::Failed)?;
        }
    }
    let outcome = job.run(&pool).await;
    pool.close().await;
    outcome
}

/// Seeds the demo set if it is not there yet, and renews its members' access tokens: for a server on its way
/// up. Quiet.
///
/// # Errors
/// One sentence that names what is wrong.
pub async fn ensure_demo(
    database_url: &str,
    data_dir: &Path,
    signer: Signer,
) -> Result<Summary, Failure> {
    migrate_all(database_url).await.map_err(Failure::Failed)?;
    let pool = db::pool(database_url, "public", 2).map_err(Failure::Usage)?;
    let ids = Ids::new(RNG_SEED_DEFAULT);
    let job = Job {
        plan: demo::demo(ids, Calendar::from(Utc::now()), Settings::default()),
        ids,
        members: Members::new(RNG_SEED_DEFAULT, USERS_DEFAULT),
        signer: Some(signer),
        token_ttl: TOKEN_TTL_DEFAULT,
        token_files: vec![data_dir.join("tokens.jsonl")],
        progress: Progress::Hidden,
        stop: Arc::default(),
    };
    let outcome = job.run(&pool).await;
    pool.close().await;
    outcome
}

fn failed(error: sqlx::Error) -> Failure {
    Failure::Failed(format!("PostgreSQL: {error}"))
}

impl Job {
    async fn run(self, pool: &PgPool) -> Result<Summary, Failure> {
        let started = Instant::now();
        let mut added = load::load(pool, &self.plan, self.ids, &self.progress)
            .await
            .map_err(failed)?;
        let mut tokens = Vec::new();
        if let Some(signer) = self.signer.clone() {
            let hash = tokio::task::spawn_blocking(|| hash_now(PASSWORD)).await;
            let hash = hash.map_err(|e| Failure::Failed(e.to_string()))??;
            added.members = self
                .members
                .load(pool, &hash, &self.progress)
                .await
                .map_err(failed)?;
            tokens = self.write_tokens(signer).await?;
        }
        Ok(Summary {
            added,
            members: self.members.count,
            first_email: self.members.email(0),
            plan: self.plan,
            tokens,
            token_ttl: self.token_ttl,
            took: started.elapsed(),
        })
    }

    /// Signs every member's token into the first file, and copies it to the others.
    async fn write_tokens(&self, signer: Signer) -> Result<Vec<PathBuf>, Failure> {
        let (members, ttl, progress) = (self.members, self.token_ttl, self.progress);
        let (files, stop) = (self.token_files.clone(), self.stop.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut written: Vec<PathBuf> = Vec::new();
            for file in files {
                let outcome = match written.first() {
                    Some(first) => members::copy_tokens(first, &file),
                    None => members
                        .write_tokens(&file, (&signer, ttl), &progress, &stop)
                        .map(|()| true),
                };
                if outcome.map_err(|e| format!("cannot write {}: {e}", file.display()))? {
                    written.push(file);
                }
            }
            Ok(written)
        });
        let written: Result<_, String> =
            written.await.map_err(|e| Failure::Failed(e.to_string()))?;
        Ok(written?)
    }
}
