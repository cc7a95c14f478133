//! A store as a child process: launched on a free port, or adopted from a server
//! that crashed; launched again when it dies; stopped with us.
//!
//! Children stand in process groups of their own, so that Ctrl-C in a terminal
//! reaches only us and they outlive the last request. Beside each store a record
//! (`<store>.json`) names its process, so that the next start finds it.

use std::fs::{self, File, OpenOptions};
use std::future::Future;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::error::EmbeddedError;
use super::process::{Identity, started_with};
use super::{files, ports};

/// A port found free can be taken before the store binds it; five in a row are
/// not bad luck.
const PORTS_TRIED: usize = 5;
/// A store binds its port within milliseconds of being started, and from then
/// on says whether it is recovering: longer silence is a fault.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// A leftover that answers is adopted; one that does not is ended and replaced.
const ADOPTION_MAX: Duration = Duration::from_secs(2);
/// They end at once; a minute's more patience would not help.
const IN_THE_WAY_MAX: Duration = Duration::from_secs(8);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const LOOK_AT_ADOPTED_EVERY: Duration = Duration::from_millis(100);
/// A store that dies is back at once; one that keeps dying is not hammered.
const BACKOFF: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);
const LOG_BYTES_MAX: u64 = 8 * 1024 * 1024;

pub(super) enum Probe {
    Ready,
    /// It answers, and is still reading its data back.
    Recovering,
    /// Nothing that answers.
    Silent,
    /// It answers, but not to us.
    Refused(String),
}

/// One store's program: how it is run, asked and stopped.
pub(super) trait Store: Send + Sync + 'static {
    const NAME: &'static str;
    /// Each signal in turn, with the time it is given; then SIGKILL.
    const STOP: &'static [(Signal, Duration)];
    /// What it says when parts of its killed predecessor are still ending.
    const IN_THE_WAY: Option<&'static str>;

    /// Where `<store>.json` and `<store>.log` stand: the path without extension.
    fn stem(&self) -> PathBuf;
    /// A path on its command line that no other process has.
    fn marker(&self) -> PathBuf;
    fn program_names(&self) -> &'static [&'static str];
    /// All that a running one cannot be told later; another value means another child.
    fn settings(&self) -> String;
    /// The command, its files written.
    fn command(&self, port: u16) -> Result<Command, EmbeddedError>;
    fn probe(&self, port: u16) -> impl Future<Output = Probe> + Send;

    fn record_path(&self) -> PathBuf {
        self.stem().with_extension("json")
    }
    fn log_path(&self) -> PathBuf {
        self.stem().with_extension("log")
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    #[serde(flatten)]
    process: Identity,
    port: u16,
    settings: String,
}

struct Process {
    identity: Identity,
    /// None when adopted: its parent is gone, and the kernel reaps it.
    child: Option<Child>,
}

impl Process {
    async fn exited(&mut self) {
        match &mut self.child {
            // An error means that there is nothing to wait for: it has ended.
            Some(child) => drop(child.wait().await),
            None => {
                while self.identity.runs() {
                    sleep(LOOK_AT_ADOPTED_EVERY).await;
                }
            }
        }
    }

    async fn end(&mut self, steps: &[(Signal, Duration)]) {
        self.identity.end(steps).await;
        if let Some(child) = &mut self.child {
            drop(child.wait().await);
        }
    }
}

/// A store that runs until stopped.
pub(super) struct Running {
    pub(super) port: u16,
    pub(super) adopted: bool,
    pid: Arc<AtomicU32>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Running {
    pub(super) fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        // The keeper neither panics nor is aborted; were it so, there is nothing
        // left that could stop the child, and the next start finds it.
        let _ = self.keeper.await;
    }
}

pub(super) async fn start<S: Store>(store: S, supervise: bool) -> Result<Running, EmbeddedError> {
    let (process, port) = match adopt(&store).await {
        Some(adopted) => adopted,
        None => launch(&store).await?,
    };
    let adopted = process.child.is_none();
    let pid = Arc::new(AtomicU32::new(process.identity.pid));
    let stop = CancellationToken::new();
    let keeper = Keeper {
        store,
        port,
        pid: Arc::clone(&pid),
        stop: stop.clone(),
        supervise,
    };
    Ok(Running {
        port,
        adopted,
        pid,
        stop,
        keeper: tokio::spawn(keeper.keep(process)),
    })
}

/// A child that a crash left behind, when it is still of use; else none is left.
async fn adopt<S: Store>(store: &S) -> Option<(Process, u16)> {
    let record: Option<Record> = files::read_json(&store.record_path()).ok().flatten();
    let record = record.filter(|record| record.process.runs());
    if let Some(record) = &record
        && record.settings == store.settings()
        && answers(store, record.port).await
    {
        tracing::info!(
            store.name = S::NAME,
            store.pid = record.process.pid,
            "store adopted"
        );
        let process = Process {
            identity: record.process.clone(),
            child: None,
        };
        return Some((process, record.port));
    }
    let unrecorded = started_with(&store.marker(), store.program_names());
    for left in record
        .map(|record| record.process)
        .into_iter()
        .chain(unrecorded)
    {
        tracing::info!(
            store.name = S::NAME,
            store.pid = left.pid,
            "store left over, ending it"
        );
        left.end(S::STOP).await;
    }
    None
}

async fn answers<S: Store>(store: &S, port: u16) -> bool {
    let deadline = Instant::now() + ADOPTION_MAX;
    while Instant::now() < deadline {
        match tokio::time::timeout_at(deadline, store.probe(port)).await {
            Ok(Probe::Ready) => return true,
            Ok(Probe::Refused(_)) | Err(_) => return false,
            Ok(Probe::Recovering | Probe::Silent) => sleep(LOOK_EVERY).await,
        }
    }
    false
}

async fn launch<S: Store>(store: &S) -> Result<(Process, u16), EmbeddedError> {
    let begun = Instant::now();
    let mut ports_tried = 0;
    while ports_tried < PORTS_TRIED {
        let port = ports::free().ok_or(EmbeddedError::NoPort { store: S::NAME })?;
        let said_before = make_log(&store.log_path())?;
        let mut process = spawn(store, port)?;
        let Err(cause) = until_ready(store, &mut process, port).await else {
            return Ok((process, port));
        };
        process.end(S::STOP).await;
        let said = said_since(&store.log_path(), said_before);
        if said.to_ascii_lowercase().contains("address already in use") {
            ports_tried += 1;
        } else if S::IN_THE_WAY.is_some_and(|text| said.contains(text))
            && begun.elapsed() < IN_THE_WAY_MAX
        {
            sleep(BACKOFF.start).await;
        } else {
            return Err(did_not_start(store, complaint(&said).unwrap_or(cause)));
        }
    }
    Err(EmbeddedError::NoPort { store: S::NAME })
}

fn spawn<S: Store>(store: &S, port: u16) -> Result<Process, EmbeddedError> {
    let mut command = store.command(port)?;
    let mut to_log = OpenOptions::new();
    to_log.append(true);
    let child = to_log
        .open(store.log_path())
        .and_then(|out| Ok((out.try_clone()?, out)))
        .and_then(|(out, err)| {
            command
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(err)
                .process_group(0)
                // The safety net for when nobody called `stop`: both stores are
                // built to survive it.
                .kill_on_drop(true)
                .spawn()
        })
        .map_err(|error| did_not_start(store, error.to_string()))?;
    let identity = child
        .id()
        .and_then(Identity::of)
        .ok_or_else(|| did_not_start(store, last_words(&store.log_path())))?;
    let record = Record {
        process: identity.clone(),
        port,
        settings: store.settings(),
    };
    let path = store.record_path();
    files::replace_json(&path, &record).map_err(EmbeddedError::unusable(&path))?;
    Ok(Process {
        identity,
        child: Some(child),
    })
}

async fn until_ready<S: Store>(store: &S, process: &mut Process, port: u16) -> Result<(), String> {
    let mut heard = Instant::now();
    loop {
        if !process.identity.runs() {
            return Err("it ended without a word".to_owned());
        }
        match store.probe(port).await {
            Probe::Ready => return Ok(()),
            // Another's server on our port: ours is about to end for want of it.
            Probe::Refused(_) if !process.identity.runs() => {}
            Probe::Refused(cause) => return Err(cause),
            Probe::Recovering => heard = Instant::now(),
            Probe::Silent if heard.elapsed() < SILENCE_MAX => {}
            Probe::Silent => {
                return Err(format!("no answer within {} s", SILENCE_MAX.as_secs()));
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Keeps one store running until it is told to stop.
struct Keeper<S> {
    store: S,
    port: u16,
    pid: Arc<AtomicU32>,
    stop: CancellationToken,
    supervise: bool,
}

impl<S: Store> Keeper<S> {
    async fn keep(self, mut process: Process) {
        let mut backoff = BACKOFF.start;
        loop {
            let since = Instant::now();
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = process.exited() => {}
            }
            if !self.supervise {
                self.stop.cancelled().await;
                break;
            }
            if since.elapsed() > BACKOFF.end {
                backoff = BACKOFF.start;
            }
            tracing::error!(
                store.name = S::NAME,
                store.pid = process.identity.pid,
                cause = last_words(&self.store.log_path()),
                "store ended by itself, starting it again"
            );
            match self.again(&mut backoff).await {
                Some(next) => process = next,
                None => break,
            }
        }
        process.end(S::STOP).await;
        // A record of a process that is gone is harmless: it names no other.
        let _ = fs::remove_file(self.store.record_path());
    }

    /// On the same port, since the address is in many hands. None: stop.
    async fn again(&self, backoff: &mut Duration) -> Option<Process> {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = sleep(*backoff) => {}
            }
            *backoff = (*backoff * 2).min(BACKOFF.end);
            let log = make_log(&self.store.log_path());
            match log.and_then(|_| spawn(&self.store, self.port)) {
                Ok(process) => {
                    self.pid.store(process.identity.pid, Ordering::Relaxed);
                    return Some(process);
                }
                Err(error) => {
                    tracing::error!(store.name = S::NAME, %error, "store not started again")
                }
            }
        }
    }
}

fn did_not_start<S: Store>(store: &S, cause: String) -> EmbeddedError {
    EmbeddedError::DidNotStart {
        store: S::NAME,
        cause,
        log: store.log_path(),
    }
}

/// Makes sure that there is a log, and not too long a one; returns its length.
fn make_log(path: &Path) -> Result<u64, EmbeddedError> {
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
        fs::rename(path, path.with_extension("log.old")).map_err(EmbeddedError::unusable(path))?;
    }
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o600);
    let log = options.open(path).and_then(|log| log.metadata());
    Ok(log.map_err(EmbeddedError::unusable(path))?.len())
}

/// Nothing when the log cannot be read: the cause is then unknown, as when the
/// store said nothing.
fn said_since(log: &Path, start: u64) -> String {
    let mut said = Vec::new();
    let _ = File::open(log).and_then(|mut log| {
        log.seek(SeekFrom::Start(start))?;
        log.read_to_end(&mut said)
    });
    String::from_utf8_lossy(&said).into_owned()
}

fn last_words(log: &Path) -> String {
    const TAIL_BYTES: u64 = 4096;
    let length = fs::metadata(log).map_or(0, |log| log.len());
    complaint(&said_since(log, length.saturating_sub(TAIL_BYTES)))
        .unwrap_or_else(|| "it ended without a word".to_owned())
}

/// The line that says most: the last fatal one, else the last.
fn complaint(said: &str) -> Option<String> {
    const CHARS_MAX: usize = 300;
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty());
    let fatal =
        |line: &&str| line.contains("FATAL") || line.contains("PANIC") || line.contains("***");
    let line = lines().rfind(fatal).or_else(|| lines().next_back())?;
    Some(line.chars().take(CHARS_MAX).collect())
}
