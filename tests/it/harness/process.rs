//! The real binary, as its users run it.

use std::{
    path::Path,
    process::Stdio,
    time::{Duration, Instant},
};

use tokio::process::{Child, Command};

/// The binary under test.
pub const BIN: &str = env!("CARGO_BIN_EXE_ticketping");

/// A started process that is killed when the test ends.
pub struct Process {
    pub child: Child,
}

impl Process {
    /// Starts the binary with `args`; its log goes to the file `log`.
    pub fn start(args: &[&str], envs: &[(&str, String)], log: &Path) -> Self {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .unwrap();
        let child = Command::new(BIN)
            .args(args)
            .envs(envs.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { child }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id().unwrap()).unwrap()
    }

    /// Ctrl-C, and the exit code.
    pub async fn interrupt(mut self) -> Option<i32> {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.pid()),
            nix::sys::signal::Signal::SIGINT,
        )
        .unwrap();
        self.child.wait().await.unwrap().code()
    }

    /// kill -9.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Runs the binary to its end; its code, stdout and stderr.
pub async fn run(args: &[&str], envs: &[(&str, String)]) -> (i32, String, String) {
    let output = Command::new(BIN)
        .args(args)
        .envs(envs.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    (
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// Waits for `file` to hold JSON that names a process other than `not`.
pub async fn runtime_file(dir: &Path, log: &Path) -> serde_json::Value {
    let begun = Instant::now();
    loop {
        if let Ok(bytes) = tokio::fs::read(dir.join("runtime.json")).await
            && let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes)
            && std::path::Path::new(&format!("/proc/{}", value["pid"])).exists()
        {
            return value;
        }
        let log = || std::fs::read_to_string(log).unwrap_or_default();
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "never started:\n{}",
            log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
