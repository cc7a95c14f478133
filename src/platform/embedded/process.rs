//! Processes that outlive the one that started them: who they are, whether
//! they still run, and how to end them.
//!
//! A pid alone proves nothing, since it is used again; with the start time that
//! the kernel keeps, and the boot it counts from, it names one process.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

/// How often an ending process is looked at: stopping takes tens of
/// milliseconds, and looking costs one small read.
const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Identity {
    pub(super) pid: u32,
    /// Clock ticks since boot.
    start_time: u64,
    boot_id: String,
}

impl Identity {
    /// None when no such process runs; a zombie does not run.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command name is in parentheses and may itself hold any character.
        let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
        let state = fields.next()?;
        let start_time = fields.nth(18)?.parse().ok()?;
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        (state != "Z" && state != "X").then(|| Self {
            pid,
            start_time,
            boot_id: boot_id.trim().to_owned(),
        })
    }

    pub(super) fn runs(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    pub(super) fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid)
            && self.runs()
        {
            // It may have ended in between, which is what was wanted.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// True once it has ended, false when it still runs after `within`.
    pub(super) async fn ended(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.runs() {
            if Instant::now() >= deadline {
                return false;
            }
            sleep(LOOK_EVERY).await;
        }
        true
    }

    /// Asks by each signal in turn, gives it the time beside it, then kills.
    pub(super) async fn end(&self, steps: &[(Signal, Duration)]) {
        for (signal, patience) in steps {
            self.signal(*signal);
            if self.ended(*patience).await {
                return;
            }
        }
        self.signal(Signal::SIGKILL);
        self.ended(Duration::from_secs(1)).await;
    }
}

/// Whether `pid` is a running process of that name.
pub(super) fn runs_as(pid: u32, name: &str) -> bool {
    Identity::of(pid).is_some()
        && fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
}

/// Processes started with `argument` (a path of ours) on their command line
/// whose program is called one of `names`. Finds what a crash left unrecorded.
pub(super) fn started_with(argument: &Path, names: &[&str]) -> Vec<Identity> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| names_one_of(&line, names) && has_argument(&line, argument))
        })
        .filter_map(Identity::of)
        .collect()
}

fn names_one_of(command_line: &[u8], names: &[&str]) -> bool {
    let program = command_line.split(|byte| *byte == 0).next().unwrap_or(&[]);
    Path::new(OsStr::from_bytes(program))
        .file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| names.contains(&name))
}

fn has_argument(command_line: &[u8], argument: &Path) -> bool {
    command_line
        .split(|byte| *byte == 0)
        .any(|word| word == argument.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_pid_with_another_start_time_is_another_process() {
        let own = Identity::of(std::process::id()).unwrap();
        assert!(own.runs());
        let earlier = Identity {
            start_time: own.start_time - 1,
            ..own
        };
        assert!(!earlier.runs());
    }

    #[test]
    fn a_zombie_does_not_run() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = child.id();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while Identity::of(pid).is_some() {
            assert!(std::time::Instant::now() < deadline, "`true` runs on");
            std::thread::yield_now();
        }
        assert!(
            Path::new(&format!("/proc/{pid}")).exists(),
            "not reaped yet"
        );
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn finds_by_argument_and_ends_what_ignores_the_first_signal() {
        let marker = tempfile::tempdir().unwrap();
        let mut child = Command::new("sh")
            // It waits for a line that never comes: a child of its own would, between fork and
            // exec, look like it.
            .args(["-c", "trap '' TERM; echo ready; read line"])
            .arg(marker.path())
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(
            &mut std::io::BufReader::new(child.stdout.take().unwrap()),
            &mut line,
        )
        .unwrap();
        assert!(started_with(marker.path(), &["bash"]).is_empty());
        let found = started_with(marker.path(), &["sh"]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].pid, child.id());
        found[0]
            .end(&[(Signal::SIGTERM, Duration::from_millis(100))])
            .await;
        assert!(!found[0].runs());
        child.wait().unwrap();
    }
}
