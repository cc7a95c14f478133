//! `ticketping seed`, the binary itself, against real stores.

mod books;
mod command;

use std::{
    collections::HashSet,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use redis::AsyncCommands;
use sqlx::PgPool;
use ticketping::{
    cmd::seed::{self, Added},
    platform::{
        auth::{Jwks, Role, Signer, Verifier},
        db,
    },
};
use tokio::process::Command;
use uuid::Uuid;

use crate::harness;

/// A database of its own, and a key to sign with.
struct World {
    url: String,
    dir: tempfile::TempDir,
    pool: PgPool,
    verifier: Verifier,
}

async fn world() -> World {
    let url = harness::fresh_database().await;
    let dir = tempfile::tempdir().unwrap();
    let (signer, pem) = Signer::generate().unwrap();
    std::fs::write(dir.path().join("key.pem"), pem).unwrap();
    let verifier = Verifier::new(&Jwks {
        keys: vec![signer.jwk().clone()],
    })
    .unwrap();
    let pool = db::pool(&url, "public", 4).unwrap();
    World {
        url,
        dir,
        pool,
        verifier,
    }
}

async fn binary(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ticketping"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("TICKETPING_")) {
        command.env_remove(name);
    }
    let run = command
        .arg("seed")
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    tokio::time::timeout(Duration::from_secs(120), run)
        .await
        .unwrap()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl World {
    async fn run(&self, args: &[&str]) -> Output {
        let dir = self.dir.path().to_str().unwrap();
        let key = self.dir.path().join("key.pem");
        let key = key.to_str().unwrap();
        let mut all = vec![
            "--database-url",
            &self.url,
            "--data-dir",
            dir,
            "--jwt-key-file",
            key,
        ];
        all.extend(args);
        binary(&all).await
    }

    async fn seed(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.unwrap()
    }

    /// Every row that a seed writes, as text, but for the salted hash and when it was written.
    async fn dump(&self) -> Vec<String> {
        let mut dump = Vec::new();
        for sql in [
            "select v::text from performances.venues v order by id",
            "select s::text from performances.sections s order by venue_id, section",
            "select (to_jsonb(p) - 'created_at')::text from performances.performances p order by id",
            "select g::text from performances.price_grades g order by performance_id, grade",
            "select s::text from performances.schedules s order by id",
            "select md5(string_agg(s::text, '' order by idx)) from performances.seats s group by schedule_id order by schedule_id",
            "select s::text from performances.schedule_sales s order by schedule_id",
            "select c::text from performances.counted_orders c order by order_id",
            "select o::text from reservations.orders o order by id",
            "select s::text from reservations.order_seats s order by order_id, seat_index",
            "select (to_jsonb(s) - 'updated_at' - 'version')::text from queue.settings s order by performance_id",
            "select (to_jsonb(u) - 'created_at' - 'password_hash')::text from users.users u order by id",
        ] {
            dump.extend(
                sqlx::query_scalar::<_, String>(sql)
                    .fetch_all(&self.pool)
                    .await
                    .unwrap(),
            );
        }
        dump
    }

    fn tokens(&self, file: &Path) -> Vec<serde_json::Value> {
        let lines = std::fs::read_to_string(file).unwrap();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

#[tokio::test]
async fn the_same_seed_gives_the_same_and_another_seed_another() {
    let (a, b, c) = tokio::join!(world(), world(), world());
    tokio::join!(
        a.seed(&["--users", "20"]),
        b.seed(&["--users", "20", "--rng-seed", "1"]),
        c.seed(&["--users", "20", "--rng-seed", "2"])
    );
    let (a, b, c) = (a.dump().await, b.dump().await, c.dump().await);
    assert!(a.len() > 1_000, "{} rows", a.len());
    assert_eq!(a, b);
    let shared: Vec<_> = a.iter().filter(|row| c.contains(row)).collect();
    assert_eq!(
        shared.len(),
        1,
        "only the house account is the same: {shared:?}"
    );
    assert!(shared[0].contains("box-office"));
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one story, and rustfmt's line breaks"
)]
async fn twice_adds_nothing_twice_and_more_adds_to_fewer() {
    let world = world().await;
    let numbers = [
        "--performances",
        "2",
        "--schedules",
        "2",
        "--seats",
        "150",
        "--users",
        "30",
    ];
    let first = world.seed(&numbers).await;
    assert!(
        first.contains("member0000001@seed.ticketping.example"),
        "{first}"
    );
    let before = world.dump().await;
    world.seed(&numbers).await;
    assert_eq!(world.dump().await, before);
    assert_eq!(
        world.count("select count(*) from performances.seats").await,
        600
    );
    assert_eq!(
        world
            .count("select count(*) from reservations.orders")
            .await,
        0
    );
    assert_eq!(
        world.count("select count(*) from queue.settings").await,
        0,
        "the server's own defaults"
    );

    world
        .seed(&[
            "--performances",
            "3",
            "--schedules",
            "3",
            "--seats",
            "150",
            "--users",
            "31",
        ])
        .await;
    let after: HashSet<_> = world.dump().await.into_iter().collect();
    // More shows keep booking open longer and make a schedule's hash one of more; nothing else changed.
    let gone = before.iter().filter(|row| !after.contains(*row)).count();
    assert!(gone <= 2, "{gone} rows changed");
    assert_eq!(
        world
            .count("select count(*) from performances.performances")
            .await,
        3
    );
    assert_eq!(
        world
            .count("select count(*) from performances.schedules")
            .await,
        9
    );
    assert_eq!(
        world.count("select count(*) from performances.seats").await,
        9 * 150
    );
    assert_eq!(world.count("select count(*) from users.users").await, 31);
    let open = "select count(*) from performances.performances where now() between booking_opens_at and booking_closes_at";
    assert_eq!(world.count(open).await, 3);
    let soon =
        "select count(*) from performances.schedules where starts_at < now() + interval '7 days'";
    assert_eq!(world.count(soon).await, 0);
}

#[tokio::test]
async fn two_seeds_at_the_same_time_add_once() {
    let world = world().await;
    let numbers = [
        "--performances",
        "2",
        "--schedules",
        "3",
        "--seats",
        "500",
        "--users",
        "500",
    ];
    tokio::join!(
        world.seed(&numbers),
        world.seed(&numbers),
        world.seed(&numbers)
    );
    assert_eq!(
        world.count("select count(*) from performances.seats").await,
        3_000
    );
    assert_eq!(world.count("select count(*) from users.users").await, 500);
}

#[tokio::test]
async fn the_demo_is_ensured_as_often_as_a_server_starts() {
    let url = harness::fresh_database().await;
    let dir = tempfile::tempdir().unwrap();
    let (signer, _) = Signer::generate().unwrap();
    let first = seed::ensure_demo(&url, dir.path(), signer.clone())
        .await
        .unwrap();
    let want = Added {
        venues: 6,
        performances: 7,
        schedules: 11,
        seats: 8_300,
        members: 100,
    };
    assert_eq!(first.added(), want);
    let second = seed::ensure_demo(&url, dir.path(), signer).await.unwrap();
    assert_eq!(second.added(), Added::default());
    assert!(second.text().contains("NOVA9"));
}
