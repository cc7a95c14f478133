//! `<data-dir>/runtime.json`: where the server of a data directory listens, for
//! the other subcommands and for scripts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files;
use super::process::Identity;

/// Written by a running embedded server, readable by its owner only: the store
/// URLs carry passwords.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeFile {
    pub pid: u32,
    pub url: String,
    /// Plain HTTP for this machine, where `url` is HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local_url: Option<String>,
    pub ops_url: String,
    pub stripe_url: String,
    pub redis_url: String,
    /// What its keys begin with.
    pub redis_prefix: String,
    /// The certificate authorities that it is checked against, where they are not the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub redis_ca: Option<PathBuf>,
    pub database_url: String,
    /// Tells the server from a later process that got its pid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<Identity>,
}

/// Where this process serves; becomes a [`RuntimeFile`] when written.
pub struct Served {
    pub url: String,
    pub local_url: Option<String>,
    pub ops_url: String,
    pub stripe_url: String,
    pub redis_url: String,
    pub redis_prefix: String,
    pub redis_ca: Option<PathBuf>,
    pub database_url: String,
}

impl RuntimeFile {
    /// Where programs on this machine reach the server.
    pub fn reach(&self) -> &str {
        self.local_url.as_deref().unwrap_or(&self.url)
    }

    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("runtime.json")
    }

    /// Replaces the file at once, for this process.
    pub fn write(data_dir: &Path, served: Served) -> io::Result<()> {
        let pid = std::process::id();
        let file = Self {
            pid,
            url: served.url,
            local_url: served.local_url,
            ops_url: served.ops_url,
            stripe_url: served.stripe_url,
            redis_url: served.redis_url,
            redis_prefix: served.redis_prefix,
            redis_ca: served.redis_ca,
            database_url: served.database_url,
            process: Identity::of(pid),
        };
        files::replace_json(&Self::path(data_dir), &file)
    }

    /// None when no server has written one; one that a crash left is still read.
    pub fn read(data_dir: &Path) -> io::Result<Option<Self>> {
        files::read_json(&Self::path(data_dir))
    }

    /// That of a server which runs now.
    pub fn of_running(data_dir: &Path) -> io::Result<Option<Self>> {
        Ok(Self::read(data_dir)?.filter(Self::is_alive))
    }

    pub fn is_alive(&self) -> bool {
        match &self.process {
            Some(process) => process.runs(),
            None => Identity::of(self.pid).is_some(),
        }
    }

    pub fn remove(data_dir: &Path) -> io::Result<()> {
        match fs::remove_file(Self::path(data_dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn served() -> Served {
        Served {
            url: "http://127.0.0.1:8080".into(),
            local_url: None,
            ops_url: "http://127.0.0.1:9090".into(),
            stripe_url: "http://127.0.0.1:12111".into(),
            redis_url: "redis://:secret@127.0.0.1:20000/0".into(),
            redis_prefix: "tp".into(),
            redis_ca: None,
            database_url: "postgres://u:secret@127.0.0.1:20001/d".into(),
        }
    }

    #[test]
    fn is_private_and_says_who_runs() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RuntimeFile::of_running(dir.path()).unwrap().is_none());
        RuntimeFile::write(dir.path(), served()).unwrap();
        let mode = fs::metadata(RuntimeFile::path(dir.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let json: serde_json::Value =
            serde_json::from_slice(&fs::read(RuntimeFile::path(dir.path())).unwrap()).unwrap();
        for name in [
            "pid",
            "url",
            "opsUrl",
            "stripeUrl",
            "redisUrl",
            "redisPrefix",
            "databaseUrl",
        ] {
            assert!(!json[name].is_null(), "{name}");
        }
        let file = RuntimeFile::of_running(dir.path()).unwrap().unwrap();
        assert_eq!(file.pid, std::process::id());
        RuntimeFile::remove(dir.path()).unwrap();
        RuntimeFile::remove(dir.path()).unwrap();
    }

    #[test]
    fn one_left_by_a_crash_is_not_alive_though_its_pid_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        RuntimeFile::write(dir.path(), served()).unwrap();
        let mut file = RuntimeFile::read(dir.path()).unwrap().unwrap();
        file.process = Identity::of(child.id());
        assert!(file.is_alive());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!file.is_alive());
    }
}
