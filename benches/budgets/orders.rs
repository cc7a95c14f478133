//! Orders, against pgbench inserting the same rows into the same PostgreSQL, one commit each,
//! with as many clients.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    Bench,
    client::text,
    process::cpu_seconds,
    row::{Figure, Row},
    server::{Member, Server},
    wrk::{self, Load, Way},
};

const CLIENTS: usize = 64;
/// One person's limit a performance: each makes so many orders of one seat.
const ORDERS_EACH: usize = 4;
/// More orders than two cores make in a second.
const ORDERS_A_SECOND: usize = 8_000;
const SEATS: usize = 2_000;
const SCRIPT: &str = include_str!("pgbench.sql");
/// Tables like ours, with the same keys, indexes and checks, for pgbench to write to.
const TABLES: [&str; 4] = [
    "create schema bench",
    "create table bench.orders (like reservations.orders including all)",
    "create table bench.order_seats (like reservations.order_seats including all)",
    "alter table bench.order_seats add foreign key (order_id) references bench.orders (id)",
];

/// Orders a second.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    ensure!(
        pgbench_path().is_some(),
        "pgbench is not installed (it comes with PostgreSQL): run scripts/setup --bench"
    );
    let server = Server::start(&bench.dir, "orders").await?;
    let a_run = ORDERS_A_SECOND * bench.run.as_secs() as usize;
    let lines = requests(bench, &server, a_run * bench.rounds).await?;
    let pool = server.database().await?;
    for statement in TABLES {
        sqlx::query(statement).execute(&pool).await?;
    }
    let script = bench.dir.join("pgbench.sql");
    std::fs::write(&script, SCRIPT)?;
    let (mut ours, mut theirs, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for (nth, lines) in lines.chunks(a_run).enumerate() {
        theirs.push(pgbench(bench, &server, &script).await?);
        let file = bench.dir.join(format!("orders-{nth}"));
        let load = Load {
            method: "POST",
            path: "/api/v1/orders".to_owned(),
            lines: wrk::lines(&file, lines)?,
            way: Way::Once,
            columns: vec!["Authorization", "Queue-Token", "body"],
            common: vec![("Content-Type", "application/json".to_owned())],
            connections: CLIENTS,
        };
        let before = cpu_seconds(server.pid())?;
        let made = wrk::run(&bench.dir, &server.at.url, &load, bench.run).await?;
        cpu.push((cpu_seconds(server.pid())? - before) * 1e6 / made.requests as f64);
        ours.push(made.rate());
    }
    let cpu = Figure::new("µs", cpu);
    let note = format!(
        "{:.0} µs of the server's processor time an order",
        cpu.median
    );
    let reference = (
        "pgbench, same rows, a commit each",
        Figure::new("/s", theirs),
    );
    Ok(vec![
        Row::ratio(
            "orders",
            "orders, one seat each, 64 clients",
            Figure::new("/s", ours),
            reference,
            0.70,
        )
        .note(note)
        .detail(json!({ "cpuMicrosPerOrder": cpu, "clients": CLIENTS })),
    ])
}

/// `count` orders that can all succeed: of people who work, each for a seat nobody else wants.
async fn requests(bench: &Bench, server: &Server, count: usize) -> Result<Vec<String>> {
    let people = count.div_ceil(ORDERS_EACH);
    let schedules = count.div_ceil(SEATS);
    bench.say(&format!("{people} people and {count} seats are made ready"));
    server
        .seed(&format!(
            "--performances 1 --schedules {schedules} --seats {SEATS} --users {people} \
             --max-working 1000000 --queue-factor 0 --working-ttl 6h --hold-ttl 1h"
        ))
        .await?;
    let performance = server.performances().await?[0];
    let members = server.members()?;
    let places = enter_all(server, performance, &members).await?;
    let seats = seats(server, performance).await?;
    ensure!(
        seats.len() >= count,
        "{} seats for {count} orders",
        seats.len()
    );
    let line = |(nth, (schedule, seat)): (usize, &(Uuid, String))| {
        let person = nth % people;
        let body = json!({ "scheduleId": schedule, "seatIds": [seat] });
        format!("{}\t{}\t{body}", members[person].access, places[person])
    };
    Ok(seats.iter().take(count).enumerate().map(line).collect())
}

/// Everybody enters; the newest token of each.
async fn enter_all(server: &Server, performance: Uuid, members: &[Member]) -> Result<Vec<String>> {
    let enter = async |member: &Member| {
        let entered = server.enter(member, performance).await?;
        text(&entered.json()?, "queueToken")
    };
    let places = stream::iter(members.iter().map(enter)).buffered(CLIENTS);
    places.try_collect().await
}

/// Every seat of every schedule.
async fn seats(server: &Server, performance: Uuid) -> Result<Vec<(Uuid, String)>> {
    let rows: Vec<Uuid> = sqlx::query_scalar(
        "select id from performances.schedules where performance_id = $1 order by id",
    )
    .bind(performance)
    .fetch_all(&server.database().await?)
    .await?;
    let mut all = Vec::new();
    for schedule in rows {
        // Reading the map also has the server know the schedule before it is timed.
        let map: Value = server
            .http
            .get(&format!("/api/v1/schedules/{schedule}/seats"), &[])
            .await?;
        for seat in map["seats"].as_array().context("seats")? {
            all.push((schedule, text(seat, "id")?));
        }
    }
    Ok(all)
}

/// On the path, or where Debian keeps PostgreSQL's programs.
fn pgbench_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("pgbench"));
    let debian = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let debian = debian.map(|version| version.path().join("bin/pgbench"));
    on_path.chain(debian).find(|p| p.is_file())
}

/// Transactions a second.
async fn pgbench(bench: &Bench, server: &Server, script: &Path) -> Result<f64> {
    let program = pgbench_path().context("pgbench")?;
    let output = tokio::process::Command::new(program)
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=1"])
        .arg(format!("--client={CLIENTS}"))
        .arg(format!("--time={}", bench.run.as_secs().max(1)))
        .arg("--file")
        .arg(script)
        .arg(&server.at.database_url)
        .kill_on_drop(true)
        .output()
        .await?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let tps = out
        .lines()
        .find_map(|l| l.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    tps.with_context(|| format!("pgbench: {out}{}", String::from_utf8_lossy(&output.stderr)))
}
