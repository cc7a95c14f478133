//! Where the stores' programs are on this machine.

use std::cmp::Reverse;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::EmbeddedError;

/// Valkey is Redis's continuation under its old licence; distributions ship
/// either, and both read the same files and speak the same protocol.
pub(super) const REDIS_NAMES: [&str; 2] = ["redis-server", "valkey-server"];

/// Where distributions keep PostgreSQL's server programs, which are not in PATH:
/// Debian and Ubuntu; Fedora and RHEL with the project's packages; Homebrew.
const POSTGRES_HOMES: [(&str, &str); 4] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql@"),
    ("/usr/local/opt", "postgresql@"),
];

pub(super) fn redis_server() -> Result<PathBuf, EmbeddedError> {
    REDIS_NAMES
        .iter()
        .find_map(|name| in_path(name))
        .ok_or(EmbeddedError::NoRedis)
}

/// Whether this server can be told to leave its command line as it was started,
/// by which a later start recognises it (6.2 and newer).
pub(super) fn keeps_its_command_line(redis_server: &Path) -> bool {
    let Ok(output) = Command::new(redis_server).arg("--version").output() else {
        return false;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().find_map(|word| {
        let mut parts = word.strip_prefix("v=")?.split('.');
        let major: u32 = parts.next()?.parse().ok()?;
        let minor: u32 = parts.next()?.parse().ok()?;
        Some((major, minor))
    });
    version.is_some_and(|version| version >= (6, 2))
}

pub(super) struct Postgres {
    pub(super) postgres: PathBuf,
    pub(super) initdb: PathBuf,
}

/// PostgreSQL reads only data of its own major version: for a directory that
/// has data that one is wanted, else the newest.
pub(super) fn postgres(data: &Path) -> Result<Postgres, EmbeddedError> {
    let mut installed = installed_postgres();
    if installed.is_empty() {
        return Err(EmbeddedError::NoPostgres);
    }
    installed.sort_by_key(|(major, _)| Reverse(*major));
    let wanted = match fs::read_to_string(data.join("PG_VERSION")) {
        Ok(text) => text.trim().to_owned(),
        Err(_) => installed[0].0.to_string(),
    };
    let bin = installed
        .iter()
        .find(|(major, _)| major.to_string() == wanted)
        .map(|(_, bin)| bin);
    let Some(bin) = bin else {
        let found: Vec<String> = installed
            .iter()
            .map(|(major, _)| format!("PostgreSQL {major}"))
            .collect();
        return Err(EmbeddedError::OtherMajor {
            path: data.to_owned(),
            wanted,
            found: found.join(" and "),
        });
    };
    Ok(Postgres {
        postgres: bin.join("postgres"),
        initdb: bin.join("initdb"),
    })
}

/// Every bin directory with a whole server in it, with its major version.
fn installed_postgres() -> Vec<(u32, PathBuf)> {
    let mut bins: Vec<PathBuf> = in_path("postgres")
        .and_then(|postgres| fs::canonicalize(postgres).ok())
        .and_then(|postgres| postgres.parent().map(Path::to_owned))
        .into_iter()
        .collect();
    for (home, prefix) in POSTGRES_HOMES {
        let versions = fs::read_dir(home).into_iter().flatten().flatten();
        bins.extend(
            versions
                .filter(|entry| {
                    let name = entry.file_name();
                    let version = name.to_str().and_then(|name| name.strip_prefix(prefix));
                    version.is_some_and(|version| version.parse::<u32>().is_ok())
                })
                .map(|entry| entry.path().join("bin")),
        );
    }
    bins.sort();
    bins.dedup();
    bins.into_iter()
        .filter(|bin| bin.join("initdb").is_file())
        .filter_map(|bin| Some((major_of(&bin.join("postgres"))?, bin)))
        .collect()
}

/// From `postgres (PostgreSQL) 15.18 (Debian …)` or `… 19devel`.
fn major_of(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let version = text.split_whitespace().nth(2)?;
    let digits = version.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

fn in_path(name: &str) -> Option<PathBuf> {
    env::split_paths(&env::var_os("PATH")?)
        .filter_map(|dir| std::path::absolute(dir.join(name)).ok())
        .find(|path| path.is_file())
}
