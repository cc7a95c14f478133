//! The embedded PostgreSQL: a cluster of our own, reached over loopback only.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use sha2::{Digest, Sha256};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgSslMode};
use sqlx::{ConnectOptions, Connection};
use tokio::process::Command;
use tokio::time::timeout;

use super::binaries;
use super::child::{Probe, Store};
use super::error::EmbeddedError;
use super::files;
use super::home::{Home, RunAs};
use super::process;

pub(super) const DIR: &str = "postgres";
const USER: &str = "ticketping";
const DATABASE: &str = "ticketping";
const PROBE_MAX: Duration = Duration::from_secs(2);

/// Whatever is not here is PostgreSQL's default.
const SETTINGS: [&str; 12] = [
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    // All roles' pools in one process, and the same once more in processes apart.
    "max_connections=300",
    // A commit that was answered is on the disk: the books rest on it.
    "synchronous_commit=on",
    // Nobody replicates this cluster, and less is written for what is made and
    // filled in one transaction.
    "wal_level=minimal",
    "max_wal_senders=0",
    // Our statements are short; compiling them costs more than running them.
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_checkpoints=off",
    "log_min_messages=warning",
    "log_min_error_statement=panic",
];

/// For stores that are thrown away with the test that uses them.
const FORGETFUL: [&str; 2] = ["fsync=off", "full_page_writes=off"];

pub(super) struct Postgres {
    programs: binaries::Postgres,
    stores_dir: PathBuf,
    dir: PathBuf,
    password: String,
    run_as: Option<RunAs>,
    durable: bool,
}

impl Postgres {
    /// Finds the programs and, the first time, makes the cluster.
    pub(super) async fn prepare(home: &Home, durable: bool) -> Result<Self, EmbeddedError> {
        let dir = home.stores_dir.join(DIR);
        let this = Self {
            programs: binaries::postgres(&dir)?,
            stores_dir: home.stores_dir.clone(),
            dir,
            password: home.postgres_password.clone(),
            run_as: home.run_as,
            durable,
        };
        if !this.dir.exists() {
            this.make_cluster(home).await?;
        }
        Ok(this)
    }

    /// Made beside and moved into place whole, so that one cut short is no cluster.
    async fn make_cluster(&self, home: &Home) -> Result<(), EmbeddedError> {
        const BESIDE: &str = "postgres.new";
        let beside = self.stores_dir.join(BESIDE);
        match fs::remove_dir_all(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(EmbeddedError::unusable(&beside)(error));
            }
            _ => {}
        }
        let beside = home.store_dir(BESIDE)?;
        let password_file = self.stores_dir.join("postgres.password");
        files::replace(&password_file, self.password.as_bytes())
            .map_err(EmbeddedError::unusable(&password_file))?;
        home.give(&password_file)?;
        let mut command = self.as_store_user(&self.programs.initdb);
        command
            .arg("--pgdata")
            .arg(&beside)
            .arg("--pwfile")
            .arg(&password_file)
            .args(["--username", USER, "--auth", "scram-sha-256"])
            // C sorts by bytes and needs no locale installed; what people read is
            // sorted by the roles.
            .args(["--encoding", "UTF8", "--locale", "C", "--no-instructions"])
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if !self.durable {
            command.arg("--no-sync");
        }
        let output = command.output().await;
        fs::remove_file(&password_file).map_err(EmbeddedError::unusable(&password_file))?;
        let output = output.map_err(|error| self.did_not_start(error.to_string()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr)
                .trim()
                .replace('\n', "; ");
            return Err(self.did_not_start(format!("initdb failed: {said}")));
        }
        fs::rename(&beside, &self.dir).map_err(EmbeddedError::unusable(&self.dir))
    }

    fn as_store_user(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.stores_dir);
        if let Some(user) = self.run_as {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// PostgreSQL takes any process that has the pid in its lock file for a server,
    /// a zombie too, which a container's first process may never reap. The data
    /// directory's lock is ours and every postgres on it has been ended, so a
    /// process that is no running postgres does not count. Backends that still
    /// end are seen by the shared memory they hold.
    fn forget_the_dead(&self) -> Result<(), EmbeddedError> {
        let lock_file = self.dir.join("postmaster.pid");
        let Ok(content) = fs::read_to_string(&lock_file) else {
            return Ok(());
        };
        let pid = content
            .lines()
            .next()
            .and_then(|line| line.trim().parse().ok());
        if pid.is_some_and(|pid| process::runs_as(pid, "postgres")) {
            return Ok(());
        }
        fs::remove_file(&lock_file).map_err(EmbeddedError::unusable(&lock_file))
    }

    fn did_not_start(&self, cause: String) -> EmbeddedError {
        EmbeddedError::DidNotStart {
            store: Self::NAME,
            cause,
            log: self.log_path(),
        }
    }

    async fn ask(&self, port: u16) -> Result<(), sqlx::Error> {
        connect(&self.password, port).await?.close().await
    }
}

/// The database of the sale, made when it is not there.
pub(super) async fn make_database(home: &Home, port: u16) -> Result<(), EmbeddedError> {
    let make = async {
        let mut connection = connect(&home.postgres_password, port).await?;
        let there: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(DATABASE)
                .fetch_one(&mut connection)
                .await?;
        if !there {
            sqlx::query("create database ticketping")
                .execute(&mut connection)
                .await?;
        }
        connection.close().await
    };
    make.await
        .map_err(|error: sqlx::Error| EmbeddedError::DidNotStart {
            store: Postgres::NAME,
            cause: error.to_string(),
            log: home.stores_dir.join(DIR).with_extension("log"),
        })
}

/// To the database that every cluster has.
async fn connect(password: &str, port: u16) -> Result<PgConnection, sqlx::Error> {
    PgConnectOptions::new()
        .host("127.0.0.1")
        .port(port)
        .username(USER)
        .password(password)
        .database("postgres")
        .ssl_mode(PgSslMode::Disable)
        .connect()
        .await
}

pub(super) fn url(password: &str, port: u16) -> String {
    format!("postgres://{USER}:{password}@127.0.0.1:{port}/{DATABASE}?sslmode=disable")
}

impl Store for Postgres {
    const NAME: &'static str = "PostgreSQL";
    /// Fast: roll back and write a checkpoint. Immediate: leave it to recovery.
    const STOP: &'static [(Signal, Duration)] = &[
        (Signal::SIGINT, Duration::from_secs(6)),
        (Signal::SIGQUIT, Duration::from_secs(2)),
    ];
    const IN_THE_WAY: Option<&'static str> = Some("pre-existing shared memory block");

    fn stem(&self) -> PathBuf {
        self.stores_dir.join(DIR)
    }

    fn marker(&self) -> PathBuf {
        self.dir.clone()
    }

    fn program_names(&self) -> &'static [&'static str] {
        &["postgres"]
    }

    fn settings(&self) -> String {
        let text = format!(
            "{SETTINGS:?} {} {}",
            self.durable,
            self.programs.postgres.display()
        );
        hex::encode(Sha256::digest(text))
    }

    fn command(&self, port: u16) -> Result<Command, EmbeddedError> {
        self.forget_the_dead()?;
        let mut command = self.as_store_user(&self.programs.postgres);
        command.arg("-D").arg(&self.dir);
        command.arg("-c").arg(format!("port={port}"));
        let forgetful: &[&str] = if self.durable { &[] } else { &FORGETFUL };
        for setting in SETTINGS.iter().chain(forgetful) {
            command.arg("-c").arg(setting);
        }
        Ok(command)
    }

    async fn probe(&self, port: u16) -> Probe {
        /// `cannot_connect_now`: starting up, recovering or shutting down.
        const NOT_NOW: &str = "57P03";
        /// Class 28: invalid authorization specification.
        const NOT_YOU: &str = "28";
        match timeout(PROBE_MAX, self.ask(port)).await {
            Ok(Ok(())) => Probe::Ready,
            Ok(Err(sqlx::Error::Database(error))) => match error.code().as_deref() {
                Some(NOT_NOW) => Probe::Recovering,
                Some(code) if code.starts_with(NOT_YOU) => Probe::Refused(error.to_string()),
                _ => Probe::Silent,
            },
            Ok(Err(_)) | Err(_) => Probe::Silent,
        }
    }
}
