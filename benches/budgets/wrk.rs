//! Closed-loop HTTP load by `wrk`, the same for us and for what we are held against.

use std::{
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

const SCRIPT: &str = include_str!("wrk.lua");

/// Whether the file of requests may be used again from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Over and over.
    Rotate,
    /// Each line at most once; running out is an error.
    Once,
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    pub method: &'static str,
    pub path: String,
    /// Lines of tab-separated values; `columns` says what each is.
    pub lines: PathBuf,
    pub way: Way,
    /// Header names, or `body`.
    pub columns: Vec<&'static str>,
    /// Headers that all requests share.
    pub common: Vec<(&'static str, String)>,
    pub connections: usize,
}

/// What wrk measured.
#[derive(Clone, Debug, Deserialize)]
pub struct Measured {
    pub requests: u64,
    pub seconds: f64,
    failed: u64,
    spent: u64,
}

impl Measured {
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }
}

/// wrk's threads: the server gets the other cores, as it would from machines elsewhere.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| (n.get() / 2).max(1))
}

/// Whether wrk is there.
pub async fn installed() -> bool {
    let outcome = tokio::process::Command::new("wrk").arg("-v").output().await;
    outcome.is_ok()
}

/// Sends `load` to `base` for `duration`. Any answer but 2xx and 3xx is an error.
pub async fn run(dir: &Path, base: &str, load: &Load, duration: Duration) -> Result<Measured> {
    ensure!(
        installed().await,
        "wrk is not installed: run scripts/setup --bench"
    );
    let script = dir.join("wrk.lua");
    std::fs::write(&script, SCRIPT)?;
    let threads = threads();
    let mut command = tokio::process::Command::new("wrk");
    command
        .args(["-t", &threads.to_string()])
        .args(["-c", &load.connections.to_string()])
        .args(["-d", &format!("{}s", duration.as_secs().max(1))])
        .args(["--timeout", "30s", "-H", &format!("Threads: {threads}")])
        .arg("-s")
        .arg(&script)
        .arg(base)
        .arg("--")
        .arg(&load.lines)
        .args([load.method, &load.path])
        .arg(match load.way {
            Way::Rotate => "rotate",
            Way::Once => "once",
        })
        .args(&load.columns);
    for (name, value) in &load.common {
        command.arg(format!("={name}: {value}"));
    }
    let output = command.kill_on_drop(true).output().await.context("wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some(line) = text.lines().rev().find(|l| l.starts_with('{')) else {
        bail!(
            "wrk said: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    let measured: Measured = serde_json::from_str(line)?;
    ensure!(
        measured.spent == 0,
        "the requests prepared were used up before the time was"
    );
    ensure!(
        measured.failed == 0,
        "{} of {} requests to {} failed",
        measured.failed,
        measured.requests,
        load.path
    );
    ensure!(
        measured.requests > 0,
        "nothing was answered at {}",
        load.path
    );
    Ok(measured)
}

/// Writes the lines of a load.
pub fn lines<L: AsRef<str>>(path: &Path, lines: impl IntoIterator<Item = L>) -> Result<PathBuf> {
    let mut file = std::io::BufWriter::new(std::fs::File::create(path)?);
    for line in lines {
        writeln!(file, "{}", line.as_ref())?;
    }
    file.flush()?;
    Ok(path.to_owned())
}
