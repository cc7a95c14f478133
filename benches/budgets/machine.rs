//! What the figures were measured on.

use std::process::Command;

use serde::Serialize;

/// The machine, and what is being measured on it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    pub cores: usize,
    pub cpu: String,
    pub memory_bytes: u64,
    pub kernel: String,
    pub redis: String,
    pub postgres: String,
    pub wrk: String,
    pub rustc: String,
    pub commit: String,
    /// Whether files differed from that commit.
    pub dirty: bool,
    /// Runnable threads before anything was started, over one minute.
    pub load_before: f64,
}

/// The first line that a program prints, or a note that it does not.
fn says(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn first_of(programs: &[String], args: &[&str]) -> String {
    let found = programs.iter().find_map(|program| says(program, args));
    found.unwrap_or_else(|| "not found".to_owned())
}

fn field(file: &str, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .unwrap_or(0.0)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Looks.
pub fn look() -> Machine {
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let debian = debian.map(|version| version.path().join("bin/postgres").display().to_string());
    let postgres: Vec<String> = std::iter::once("postgres".to_owned())
        .chain(debian)
        .collect();
    let redis = ["redis-server".to_owned(), "valkey-server".to_owned()];
    let kib = field("/proc/meminfo", "MemTotal")
        .and_then(|v| v.trim_end_matches(" kB").parse::<u64>().ok());
    let git = |args: &[&str]| {
        let mut all = vec!["-C", env!("CARGO_MANIFEST_DIR")];
        all.extend(args);
        says("git", &all)
    };
    Machine {
        cores: cores(),
        cpu: field("/proc/cpuinfo", "model name").unwrap_or_default(),
        memory_bytes: kib.unwrap_or(0) * 1024,
        kernel: says("uname", &["-sr"]).unwrap_or_default(),
        redis: first_of(&redis, &["--version"]),
        postgres: first_of(&postgres, &["--version"]),
        wrk: first_of(&["wrk".to_owned()], &["-v"]),
        rustc: first_of(&["rustc".to_owned()], &["--version"]),
        commit: git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_default(),
        dirty: git(&["status", "--porcelain", "--untracked-files=no"]).is_some(),
        load_before: load(),
    }
}

/// Figures of a machine that does something else as well are not worth much.
pub fn warn_if_busy() {
    let (load, cores) = (load(), cores() as f64);
    if load > cores / 4.0 {
        eprintln!(
            "budgets: this machine is busy (load {load} on {cores} cores): the figures will be off"
        );
    }
}
