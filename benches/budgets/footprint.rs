//! What the binary itself costs: size, memory when idle, start, and (FULL) its build.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{
    Bench,
    process::resident_bytes,
    row::{Figure, Row},
    server::{BIN, Server},
};

const MB: f64 = 1e6;

/// Size, start and idle memory.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let size = std::fs::metadata(BIN)?.len() as f64 / MB;
    let server = Server::start(&bench.dir, "footprint").await?;
    let first = server.started_in;
    server.seed("--users 10").await?;
    server.stop();
    let server = Server::start(&bench.dir, "footprint").await?;
    let again = server.started_in;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let idle = resident_bytes(server.pid())?;
    Ok(vec![
        Row::bound(
            "footprint",
            "size of the binary",
            Figure::once("MB", size),
            40.0,
        ),
        Row::bound(
            "footprint",
            "start of `serve all`, stores included",
            Figure::once("s", again.as_secs_f64()),
            5.0,
        )
        .note(format!(
            "with data there; the very first, which makes the database, {:.1} s",
            first.as_secs_f64()
        ))
        .detail(json!({ "firstSeconds": first.as_secs_f64() })),
        Row::bound(
            "footprint",
            "memory of the idle server, stores apart",
            Figure::once("MB", idle as f64 / MB),
            64.0,
        ),
    ])
}

/// A release build from nothing, dependencies fetched beforehand.
pub async fn build(bench: &mut Bench) -> Result<Vec<Row>> {
    const WHAT: &str = "cold release build";
    if !bench.full {
        return Ok(vec![Row::unmeasured(
            "build",
            WHAT,
            "takes minutes of all cores; FULL=1 asks for it",
        )]);
    }
    let target = bench.dir.join("cold");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let cargo = |args: &[&str]| {
        let mut command = tokio::process::Command::new("cargo");
        command
            .current_dir(root)
            .env("CARGO_TARGET_DIR", &target)
            .args(args)
            .kill_on_drop(true);
        command
    };
    ensure!(
        cargo(&["fetch", "--locked"])
            .output()
            .await?
            .status
            .success(),
        "cargo fetch"
    );
    bench.say("a cold release build");
    let begun = Instant::now();
    let output = cargo(&["build", "--release", "--locked"]).output().await?;
    let took = begun.elapsed();
    ensure!(
        output.status.success(),
        "cargo build: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    std::fs::remove_dir_all(&target)?;
    Ok(vec![Row::bound(
        "build",
        WHAT,
        Figure::once("s", took.as_secs_f64()),
        360.0,
    )])
}
