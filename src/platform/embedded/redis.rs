//! The embedded Redis: what a sale needs of it, in a configuration of our own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use redis::{ErrorKind, RedisError, ServerErrorKind};
use sha2::{Digest, Sha256};
use tokio::process::Command;
use tokio::time::timeout;

use super::binaries;
use super::child::{Probe, Store};
use super::error::EmbeddedError;
use super::files;
use super::home::{Home, RunAs};

const DIR: &str = "redis";
const PROBE_MAX: Duration = Duration::from_secs(1);

pub(super) struct Redis {
    program: PathBuf,
    stores_dir: PathBuf,
    dir: PathBuf,
    password: String,
    run_as: Option<RunAs>,
    /// Everything but the port.
    config: String,
}

impl Redis {
    pub(super) fn prepare(home: &Home) -> Result<Self, EmbeddedError> {
        let program = binaries::redis_server()?;
        let dir = home.store_dir(DIR)?;
        let config = config(
            &dir,
            &home.redis_password,
            binaries::keeps_its_command_line(&program),
        );
        Ok(Self {
            program,
            stores_dir: home.stores_dir.clone(),
            dir,
            password: home.redis_password.clone(),
            run_as: home.run_as,
            config,
        })
    }

    async fn ping(&self, port: u16) -> Result<(), RedisError> {
        let client = redis::Client::open(url(&self.password, port))?;
        let mut connection = client.get_multiplexed_async_connection().await?;
        redis::cmd("PING").exec_async(&mut connection).await
    }
}

pub(super) fn url(password: &str, port: u16) -> String {
    // With the user's name: redis-cli before 7 refuses a URL that has a password alone.
    format!("redis://default:{password}@127.0.0.1:{port}/0")
}

/// `appendfsync no` is on purpose. It hands every write to the kernel before the
/// answer goes out, always, so that killing Redis loses nothing; `everysec` puts
/// that write off for up to two seconds while its last fsync is under way, and
/// answers meanwhile. What a power cut can take (the kernel's last seconds) is
/// what the waiting room recovers from, as from any loss of Redis. `always` would
/// have every call wait for the disk.
fn config(dir: &Path, password: &str, keeps_its_command_line: bool) -> String {
    let mut config = format!(
        "bind 127.0.0.1\n\
         requirepass {password}\n\
         dir {}\n\
         daemonize no\n\
         logfile \"\"\n\
         appendonly yes\n\
         appendfsync no\n\
         save \"\"\n\
         maxmemory-policy noeviction\n\
         notify-keyspace-events Ex\n",
        quoted(dir),
    );
    if keeps_its_command_line {
        config.push_str("set-proc-title no\n");
    }
    config
}

fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Store for Redis {
    const NAME: &'static str = "Redis";
    const STOP: &'static [(Signal, Duration)] = &[(Signal::SIGTERM, Duration::from_secs(6))];
    const IN_THE_WAY: Option<&'static str> = None;

    fn stem(&self) -> PathBuf {
        self.stores_dir.join(DIR)
    }

    fn marker(&self) -> PathBuf {
        self.dir.join("redis.conf")
    }

    fn program_names(&self) -> &'static [&'static str] {
        &binaries::REDIS_NAMES
    }

    fn settings(&self) -> String {
        hex::encode(Sha256::digest(&self.config))
    }

    fn command(&self, port: u16) -> Result<Command, EmbeddedError> {
        let path = self.marker();
        let mut config = self.config.clone();
        // Writing to a String does not fail.
        let _ = writeln!(config, "port {port}");
        files::replace(&path, config.as_bytes()).map_err(EmbeddedError::unusable(&path))?;
        let mut command = Command::new(&self.program);
        command.arg(&path).current_dir(&self.dir);
        if let Some(user) = self.run_as {
            std::os::unix::fs::chown(&path, Some(user.uid), Some(user.gid))
                .map_err(EmbeddedError::unusable(&path))?;
            command.uid(user.uid).gid(user.gid);
        }
        Ok(command)
    }

    async fn probe(&self, port: u16) -> Probe {
        match timeout(PROBE_MAX, self.ping(port)).await {
            Ok(Ok(())) => Probe::Ready,
            Err(_) => Probe::Silent,
            Ok(Err(error)) => match error.kind() {
                ErrorKind::Server(ServerErrorKind::BusyLoading) => Probe::Recovering,
                ErrorKind::AuthenticationFailed => Probe::Refused(error.to_string()),
                _ => Probe::Silent,
            },
        }
    }
}
