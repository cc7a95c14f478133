//! What every test stands on: real stores (one Redis and one PostgreSQL a test process, a
//! database and a key prefix a test), the binary in one process ([`server`]) or with every role
//! apart ([`apart`]), one HTTP client ([`client`]), and the steps of a sale ([`steps`]).

#![allow(
    dead_code,
    reason = "a support function serves whichever guarantee needs it"
)]

pub mod apart;
pub mod client;
pub mod kafka;
pub mod partition;
pub mod process;
pub mod proxy;
pub mod readme;
pub mod reaper;
pub mod server;
pub mod steps;
pub mod stripe_mock;
pub mod twins;

pub use reaper::clean_up;

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::{Connection, PgConnection};
use ticketping::platform::embedded::{EmbeddedStores, Options};
use tokio::sync::OnceCell;

pub struct Stores {
    pub redis_url: String,
    /// Of a superuser, in a database that no test fills.
    pub admin_database_url: String,
}

/// The stores that all tests of this process share; do not kill them. A test that
/// does starts its own in a [`data_dir`].
pub async fn stores() -> &'static Stores {
    static STORES: OnceCell<Stores> = OnceCell::const_new();
    STORES.get_or_init(start_shared).await
}

/// They belong to a thread of their own: a test's runtime ends with the test.
async fn start_shared() -> Stores {
    let dir = data_dir();
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime for the shared stores");
        runtime.block_on(async {
            let options = Options {
                durable: false,
                ..Options::default()
            };
            let stores = EmbeddedStores::start_with(&dir, options)
                .await
                .expect("the shared stores start");
            let urls = Stores {
                redis_url: stores.redis_url().to_owned(),
                admin_database_url: stores.database_url().to_owned(),
            };
            let _ = tell.send(urls);
            std::future::pending::<()>().await;
        });
    });
    told.await.expect("the shared stores started")
}

/// A new, empty database on the shared PostgreSQL.
pub async fn fresh_database() -> String {
    let admin_url = &stores().await.admin_database_url;
    let name = format!("test_{}", next());
    let mut admin = PgConnection::connect(admin_url)
        .await
        .expect("connect to the shared PostgreSQL");
    sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}")))
        .execute(&mut admin)
        .await
        .expect("create a database");
    admin.close().await.expect("close");
    let mut url = url::Url::parse(admin_url).expect("a URL");
    url.set_path(&name);
    url.into()
}

/// A Redis key prefix that no other test has.
pub fn prefix() -> String {
    format!("t{}", next())
}

/// A path for a data directory, not yet made. When this process ends, however it
/// does, the stores started there are ended and the directory is removed.
pub fn data_dir() -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ticketping-it-{}-{}", std::process::id(), next()));
    clean_up(&dir);
    dir
}

/// Ports of servers that tests start: below those of outgoing connections and of embedded
/// stores, so that a server started again does not find its port taken; and those of a
/// cluster's bus, ten thousand above, likewise below outgoing connections.
const PORTS: std::ops::Range<u32> = 10_000..15_000;

/// A loopback port that is free, and that nobody else in this process is given: between this
/// and the server's start lie seconds, on a busy machine.
pub fn free_port() -> u16 {
    static FROM: LazyLock<u32> = LazyLock::new(rand::random);
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    let is_free = |port: u16| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    (0..PORTS.len())
        .map(|_| {
            FROM.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start)
        })
        .filter_map(|at| u16::try_from(PORTS.start + at).ok())
        .find(|&port| is_free(port) && is_free(port + 10_000))
        .expect("a free port")
}

/// What a script of ours fetches into the cache: nothing when it is there.
pub fn fetched(script: &str) -> PathBuf {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let output = std::process::Command::new(path.join(script))
        .output()
        .expect("the script runs");
    let failure = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {failure}");
    let path = String::from_utf8(output.stdout).expect("a path in UTF-8");
    PathBuf::from(path.trim_end())
}

/// Looks until `check` says so. A busy machine may stand still for many seconds.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !check().await {
        assert!(std::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

pub fn send(pid: u32, signal: nix::sys::signal::Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.try_into().expect("a pid"));
    nix::sys::signal::kill(pid, signal).expect("it runs");
}

fn next() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    LAST.fetch_add(1, Ordering::Relaxed)
}
