//! The release binary as its users run it: `serve all` on stores of its own.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use axum::body::Body;
use http::Method;
use nix::{sys::signal::Signal, unistd::Pid};
use serde_json::{Value, json};
use ticketping::{
    platform::{embedded::runtime::RuntimeFile, place::PlaceKeys, redis::Redis},
    serve::secrets::{Kept, SecretArgs},
};
use uuid::Uuid;

use super::client::{Http, Reply, text};

/// The binary that is measured.
pub const BIN: &str = env!("CARGO_BIN_EXE_ticketping");
/// A first start makes a PostgreSQL cluster.
const START_MAX: Duration = Duration::from_secs(60);
/// A stop takes ten seconds at most; PostgreSQL may have much to write.
const STOP_MAX: Duration = Duration::from_secs(30);

/// A running server. It is stopped, and its data removed, when this is dropped.
pub struct Server {
    child: Child,
    dir: PathBuf,
    pub at: RuntimeFile,
    pub http: Http,
    /// From the start of the process until it could be asked.
    pub started_in: Duration,
}

/// Somebody who was seeded.
pub struct Member {
    pub id: Uuid,
    pub access: String,
}

/// The binary, with nothing from the environment but what every program has.
pub fn command() -> Command {
    let mut command = Command::new(BIN);
    for (name, _) in std::env::vars() {
        if name.starts_with("TICKETPING_") || name.starts_with("STRIPE_") {
            command.env_remove(name);
        }
    }
    command
}

/// Runs the binary to its end; what it printed and how long it took.
pub async fn run<A: AsRef<std::ffi::OsStr>>(args: &[A]) -> Result<(String, Duration)> {
    let begun = Instant::now();
    let mut command = tokio::process::Command::from(command());
    let output = command
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{}: {out}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok((out, begun.elapsed()))
}

impl Server {
    /// Starts one on `<dir>/<name>`, or starts it again there.
    pub async fn start(dir: &Path, name: &str) -> Result<Self> {
        let data = dir.join(name);
        std::fs::create_dir_all(&data)?;
        let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
        let begun = Instant::now();
        let mut child = command()
            .args(["serve", "all", "--log", "warn", "--data-dir"])
            .arg(&data)
            .args(["--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"])
            .args(["--stripe-sandbox-listen", "127.0.0.1:0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .with_context(|| BIN.to_owned())?;
        let at = loop {
            if let Some(at) = RuntimeFile::of_running(&data)?.filter(|at| at.pid == child.id()) {
                break at;
            }
            if let Some(status) = child.try_wait()? {
                let log = std::fs::read_to_string(dir.join(format!("{name}.log")))?;
                bail!("the server ended at its start ({status}): {log}");
            }
            if begun.elapsed() > START_MAX {
                stop(&mut child);
                bail!("the server did not start within {START_MAX:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let http = Http::new(&at.url);
        Ok(Self {
            child,
            dir: data,
            http,
            started_in: begun.elapsed(),
            at,
        })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it keeps its data.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Stops it and leaves its data.
    pub fn stop(mut self) {
        stop(&mut self.child);
    }

    /// `ticketping seed` with `args`; how long it took.
    pub async fn seed(&self, args: &str) -> Result<Duration> {
        let dir = self.dir.display().to_string();
        let words = ["seed", "--data-dir", &dir]
            .into_iter()
            .chain(args.split(' '));
        Ok(run(&words.collect::<Vec<_>>()).await?.1)
    }

    /// `ticketping loadgen` with `args`: its JSON report. Objectives missed and audits
    /// breached are in the report; they are no error here.
    pub async fn loadgen(&self, args: &str) -> Result<Value> {
        let report = self.dir.join("loadgen.json");
        let output = tokio::process::Command::from(command())
            .args(["loadgen", "--quiet", "--data-dir"])
            .arg(&self.dir)
            .arg("--json")
            .arg(&report)
            .args(args.split(' '))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await?;
        let bytes = std::fs::read(&report).with_context(|| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            format!("loadgen {args}: {} {said}", output.status)
        })?;
        std::fs::remove_file(&report)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// The seeded members, in order.
    pub fn members(&self) -> Result<Vec<Member>> {
        let tokens = std::fs::read_to_string(self.dir.join("tokens.jsonl"))?;
        let member = |line: &str| {
            let line: Value = serde_json::from_str(line)?;
            Ok(Member {
                id: text(&line, "userId")?.parse()?,
                access: text(&line, "accessToken")?,
            })
        };
        tokens.lines().map(member).collect()
    }

    /// The performances that are open.
    pub async fn performances(&self) -> Result<Vec<Uuid>> {
        let list = self.http.get("/api/v1/performances?limit=100", &[]).await?;
        let items = list["items"].as_array().context("a list")?;
        items.iter().map(|p| Ok(text(p, "id")?.parse()?)).collect()
    }

    /// The schedules of a performance.
    pub async fn schedules(&self, performance: Uuid) -> Result<Vec<Uuid>> {
        let path = format!("/api/v1/performances/{performance}/schedules?limit=100");
        let list = self.http.get(&path, &[]).await?;
        let items = list["items"].as_array().context("a list")?;
        items.iter().map(|s| Ok(text(s, "id")?.parse()?)).collect()
    }

    /// Seals and opens places as the server does.
    pub fn place_keys(&self) -> Result<PlaceKeys> {
        let mut secrets = SecretArgs::default();
        let kept = Kept::load(&self.dir).map_err(|e| anyhow::anyhow!("{e}"))?;
        kept.complete(&mut secrets);
        let keys = secrets.places().map_err(|e| anyhow::anyhow!("{e}"))?;
        PlaceKeys::parse(keys.expose()).map_err(anyhow::Error::msg)
    }

    pub async fn redis(&self) -> Result<Redis> {
        Redis::connect(&self.at.redis_url)
            .await
            .map_err(anyhow::Error::msg)
    }

    pub async fn database(&self) -> Result<sqlx::PgPool> {
        Ok(sqlx::PgPool::connect(&self.at.database_url).await?)
    }

    /// `member` enters the queue of `performance`: the answer.
    pub async fn enter(&self, member: &Member, performance: impl Display) -> Result<Reply> {
        let path = format!("/api/v1/queues/{performance}/tokens");
        let auth = format!("Bearer {}", member.access);
        let headers = [("authorization", &*auth)];
        self.http
            .send(Method::POST, &path, &headers, Body::empty())
            .await
    }

    /// Changes the settings of a queue, as an operator.
    pub async fn set(&self, performance: Uuid, mut settings: Value) -> Result<()> {
        settings["reason"] = json!("make bench");
        let token = std::fs::read_to_string(self.dir.join("ops-token"))?;
        let auth = format!("Bearer {}", token.trim());
        let path = format!("/admin/v1/queues/{performance}");
        let headers = [("authorization", &*auth)];
        self.http
            .json(Method::PATCH, &path, &headers, &settings)
            .await?;
        Ok(())
    }
}

fn stop(child: &mut Child) {
    let Ok(pid) = i32::try_from(child.id()) else {
        return;
    };
    if nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGTERM).is_err() {
        return; // gone already
    }
    let begun = Instant::now();
    while begun.elapsed() < STOP_MAX {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("budgets: the server {pid} did not stop within {STOP_MAX:?}");
}

impl Drop for Server {
    fn drop(&mut self) {
        stop(&mut self.child);
    }
}

/// Removes what servers left in `dir`, and where their stores had to live elsewhere, that too.
pub fn clean(dir: &Path) {
    for data in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let stores = std::fs::read(data.path().join("stores.json"))
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok())
            .and_then(|stores| text(&stores, "storesDir").ok());
        if let Some(elsewhere) = stores.filter(|s| !Path::new(s).starts_with(dir)) {
            let _ = std::fs::remove_dir_all(elsewhere);
        }
    }
    if let Err(error) = std::fs::remove_dir_all(dir) {
        eprintln!("budgets: {} stays: {error}", dir.display());
    }
}
