//! The embedded stores: started, lost in every way, found again with what they
//! were told; and errors that say the way out.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Uid;
use sqlx::{Connection, PgConnection};
use ticketping::platform::embedded::{EmbeddedError, EmbeddedStores, Options};

use crate::harness::{self, send};

const FORGETFUL: Options = Options {
    durable: false,
    supervise: true,
};

/// What an answered write is: the key and the row are there.
async fn write(redis_url: &str, database_url: &str) {
    let client = redis::Client::open(redis_url).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("SET")
        .arg("kept")
        .arg("yes")
        .exec_async(&mut redis)
        .await
        .unwrap();
    let mut database = PgConnection::connect(database_url).await.unwrap();
    for statement in ["create table kept (id int)", "insert into kept values (7)"] {
        sqlx::query(statement).execute(&mut database).await.unwrap();
    }
    database.close().await.unwrap();
}

async fn try_read(redis_url: &str, database_url: &str) -> Result<(String, i32), String> {
    let redis = async {
        let client = redis::Client::open(redis_url)?;
        let mut redis = client.get_multiplexed_async_connection().await?;
        redis::cmd("GET").arg("kept").query_async(&mut redis).await
    };
    let redis: String = redis.await.map_err(|e: redis::RedisError| e.to_string())?;
    let database = async {
        let mut database = PgConnection::connect(database_url).await?;
        let id = sqlx::query_scalar("select id from kept")
            .fetch_one(&mut database)
            .await?;
        database.close().await?;
        Ok(id)
    };
    let id: i32 = database.await.map_err(|e: sqlx::Error| e.to_string())?;
    Ok((redis, id))
}

async fn assert_kept(stores: &EmbeddedStores) {
    let read = try_read(stores.redis_url(), stores.database_url()).await;
    assert_eq!(read, Ok(("yes".to_owned(), 7)));
}

/// Processes with the directory on their command line, ours aside.
fn running_on(dir: &Path) -> Vec<PathBuf> {
    let dir = dir.to_str().unwrap();
    let own = std::process::id().to_string();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| !path.ends_with(&own))
        .filter(|path| {
            fs::read(path.join("cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(dir))
        })
        .collect()
}

/// A process that starts stores and stays: this test binary once more, as
/// [`as_a_server`].
struct Server {
    process: Child,
    redis_url: String,
    database_url: String,
}

const SERVER_DIR: &str = "TICKETPING_TEST_SERVER_DIR";

fn server_command(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "embedded::as_a_server",
            "--ignored",
            "--nocapture",
        ])
        .env(SERVER_DIR, dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

#[tokio::test]
#[ignore = "a process that other tests start and kill"]
async fn as_a_server() {
    let dir = PathBuf::from(std::env::var_os(SERVER_DIR).unwrap());
    match EmbeddedStores::start_with(&dir, FORGETFUL).await {
        Err(error) => println!("\nerror {error}"),
        Ok(stores) => {
            println!("\nready {} {}", stores.redis_url(), stores.database_url());
            std::future::pending::<()>().await;
        }
    }
}

impl Server {
    fn start(dir: &Path) -> Self {
        let mut process = server_command(dir).spawn().unwrap();
        let out = BufReader::new(process.stdout.take().unwrap());
        let ready = out
            .lines()
            .map(Result::unwrap)
            .find(|line| line.starts_with("ready ") || line.starts_with("error "));
        let ready = ready.expect("a line");
        let words: Vec<&str> = ready.split(' ').collect();
        assert_eq!(words[0], "ready", "{ready}");
        Self {
            process,
            redis_url: words[1].to_owned(),
            database_url: words[2].to_owned(),
        }
    }

    fn kill(mut self) -> (String, String) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        (self.redis_url, self.database_url)
    }
}

#[tokio::test]
async fn every_test_has_a_database_of_its_own() {
    let (first, second) = (
        harness::fresh_database().await,
        harness::fresh_database().await,
    );
    for url in [&first, &second] {
        let mut database = PgConnection::connect(url).await.unwrap();
        sqlx::query("create table only_here (id int)")
            .execute(&mut database)
            .await
            .unwrap();
        database.close().await.unwrap();
    }
    assert_ne!(harness::prefix(), harness::prefix());
}

#[tokio::test]
async fn a_stop_leaves_nothing_running_and_the_next_start_finds_the_data() {
    let dir = harness::data_dir();
    let stores = EmbeddedStores::start(&dir).await.unwrap();
    write(stores.redis_url(), stores.database_url()).await;
    let begun = Instant::now();
    stores.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(running_on(&dir), Vec::<PathBuf>::new());

    let begun = Instant::now();
    let stores = EmbeddedStores::start(&dir).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(!stores.adopted());
    assert_kept(&stores).await;
    stores.stop().await;
}

#[tokio::test]
async fn what_a_killed_server_left_running_is_adopted_and_then_stopped() {
    let dir = harness::data_dir();
    let server = Server::start(&dir);
    write(&server.redis_url, &server.database_url).await;
    let (redis_url, database_url) = server.kill();
    assert_eq!(running_on(&dir).len(), 2, "both outlive the server");

    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    assert!(stores.adopted());
    assert_eq!(stores.redis_url(), redis_url);
    assert_eq!(stores.database_url(), database_url);
    assert_kept(&stores).await;
    stores.stop().await;
    assert_eq!(running_on(&dir), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_leftover_that_does_not_answer_is_replaced() {
    let dir = harness::data_dir();
    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    write(stores.redis_url(), stores.database_url()).await;
    stores.stop().await;
    let server = Server::start(&dir);
    let redis = running_on(&dir)
        .into_iter()
        .find(|path| {
            fs::read_to_string(path.join("comm"))
                .unwrap()
                .contains("-server")
        })
        .and_then(|path| path.file_name()?.to_str()?.parse().ok())
        .unwrap();
    server.kill();
    send(redis, Signal::SIGSTOP);

    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    assert!(!stores.adopted());
    assert_ne!(stores.redis_pid(), redis);
    assert_kept(&stores).await;
    stores.stop().await;
}

#[tokio::test]
async fn what_was_answered_survives_killing_server_and_stores() {
    let dir = harness::data_dir();
    let server = Server::start(&dir);
    write(&server.redis_url, &server.database_url).await;
    let pids: Vec<u32> = running_on(&dir)
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap())
        .collect();
    server.kill();
    for pid in pids {
        send(pid, Signal::SIGKILL);
    }
    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    assert_kept(&stores).await;
    stores.stop().await;
}

#[tokio::test]
async fn a_store_that_dies_is_back_on_its_port_with_its_data() {
    let dir = harness::data_dir();
    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    write(stores.redis_url(), stores.database_url()).await;
    let (redis, postgres) = (stores.redis_pid(), stores.postgres_pid());
    send(redis, Signal::SIGKILL);
    send(postgres, Signal::SIGKILL);
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = try_read(stores.redis_url(), stores.database_url()).await {
        assert!(Instant::now() < deadline, "not back: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_kept(&stores).await;
    assert_ne!(stores.redis_pid(), redis);
    assert_ne!(stores.postgres_pid(), postgres);
    stores.stop().await;
    assert_eq!(running_on(&dir), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_store_that_hangs_is_stopped_within_ten_seconds() {
    let dir = harness::data_dir();
    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    send(stores.redis_pid(), Signal::SIGSTOP);
    send(stores.postgres_pid(), Signal::SIGSTOP);
    let begun = Instant::now();
    stores.stop().await;
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert_eq!(running_on(&dir), Vec::<PathBuf>::new());
}

/// As root the stores run as somebody else, who cannot pass a private directory.
#[tokio::test]
async fn stores_whose_user_cannot_reach_the_directory_live_elsewhere() {
    let parent = harness::data_dir();
    fs::create_dir(&parent).unwrap();
    fs::set_permissions(&parent, fs::Permissions::from_mode(0o700)).unwrap();
    let dir = parent.join("data");
    harness::clean_up(&dir);
    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    let place = stores.stores_dir().to_owned();
    if Uid::effective().is_root() {
        assert!(place.starts_with("/var/lib/ticketping"), "{place:?}");
    } else {
        assert_eq!(place, fs::canonicalize(&dir).unwrap());
    }
    write(stores.redis_url(), stores.database_url()).await;
    stores.stop().await;
    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    assert_eq!(stores.stores_dir(), place);
    assert_kept(&stores).await;
    stores.stop().await;

    // Who removes the directory begins afresh.
    fs::remove_dir_all(&dir).unwrap();
    let stores = EmbeddedStores::start_with(&dir, FORGETFUL).await.unwrap();
    assert_eq!(stores.stores_dir(), place);
    let read = try_read(stores.redis_url(), stores.database_url()).await;
    assert!(read.is_err(), "{read:?}");
    stores.stop().await;
    if place != fs::canonicalize(&dir).unwrap() {
        fs::remove_dir_all(place.with_extension("removed")).unwrap();
    }
}

async fn refusal(dir: &Path) -> String {
    match EmbeddedStores::start_with(dir, FORGETFUL).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn data_of_another_major_version_is_left_alone() {
    let dir = harness::data_dir();
    EmbeddedStores::start_with(&dir, FORGETFUL)
        .await
        .unwrap()
        .stop()
        .await;
    let version = dir.join("postgres/PG_VERSION");
    fs::write(&version, "9\n").unwrap();
    let told = refusal(&dir).await;
    assert!(told.contains("holds data of PostgreSQL 9"), "{told}");
    assert!(told.contains("install postgresql-9"), "{told}");
    assert!(told.contains("--data-dir"), "{told}");
    assert_eq!(running_on(&dir), Vec::<PathBuf>::new());
    assert_eq!(fs::read_to_string(version).unwrap(), "9\n");
}

#[tokio::test]
async fn a_store_that_cannot_start_is_quoted_and_the_other_one_stopped() {
    let dir = harness::data_dir();
    EmbeddedStores::start_with(&dir, FORGETFUL)
        .await
        .unwrap()
        .stop()
        .await;
    fs::write(dir.join("postgres/postgresql.auto.conf"), "nonsense = on\n").unwrap();
    let begun = Instant::now();
    let Err(error) = EmbeddedStores::start_with(&dir, FORGETFUL).await else {
        panic!("it started");
    };
    assert!(begun.elapsed() < Duration::from_secs(30));
    assert!(
        matches!(
            error,
            EmbeddedError::DidNotStart {
                store: "PostgreSQL",
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("postgresql.auto.conf"),
        "{error}"
    );
    assert_eq!(running_on(&dir), Vec::<PathBuf>::new());
}

#[test]
fn without_a_redis_server_the_way_out_is_named() {
    let dir = harness::data_dir();
    let output = server_command(&dir).env("PATH", "/nonexistent").output();
    let told = String::from_utf8(output.unwrap().stdout).unwrap();
    let error = told.lines().find(|line| line.starts_with("error "));
    let error = error.expect("it fails");
    for word in ["redis-server", "valkey-server", "make setup", "--redis-url"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_directory_that_may_not_be_written_is_named() {
    let dir = harness::data_dir();
    fs::create_dir(&dir).unwrap();
    let mut command = server_command(&dir);
    // Root writes everywhere but where nobody can.
    let dir = if Uid::effective().is_root() {
        Path::new("/proc/ticketping")
    } else {
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o500)).unwrap();
        &dir
    };
    let mut process = command
        .env(SERVER_DIR, dir)
        .process_group(0)
        .spawn()
        .unwrap();
    let mut told = String::new();
    let mut out = process.stdout.take().unwrap();
    out.read_to_string(&mut told).unwrap();
    process.wait().unwrap();
    let error = told.lines().find(|line| line.starts_with("error "));
    let error = error.expect("it fails");
    assert!(error.contains(dir.to_str().unwrap()), "{error}");
    assert!(error.contains("--data-dir"), "{error}");
}
