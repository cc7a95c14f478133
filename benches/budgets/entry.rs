//! Entering: distinct people, each access token verified for the first time.

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Bench,
    bare::{Answer, Kind, Peer},
    process::cpu_seconds,
    row::{Figure, Row},
    server::Server,
    wrk::{self, Load, Way},
};

const CONNECTIONS: usize = 64;
/// More people than any machine lets in a second.
const PEOPLE_A_SECOND: usize = 25_000;

/// Entries a second.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let server = Server::start(&bench.dir, "entry").await?;
    let a_run = PEOPLE_A_SECOND * bench.run.as_secs() as usize;
    let people = a_run * bench.rounds + 1;
    bench.say(&format!("{people} people are seeded"));
    server
        .seed(&format!(
            "--performances 1 --seats 2000 --users {people} --max-working 100 --queue-factor 0"
        ))
        .await?;
    let performance = server.performances().await?[0];
    let path = format!("/api/v1/queues/{performance}/tokens");
    let mut members = server.members()?;
    let first = members.pop().context("members were seeded")?;
    let reply = server.enter(&first, performance).await?;
    let bare = Peer::start(&bench.dir, Kind::Bare, &path, &Answer::of(&reply)).await?;
    let (mut ours, mut theirs, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    for (nth, people) in members.chunks(a_run).enumerate() {
        let file = bench.dir.join(format!("entries-{nth}"));
        let load = Load {
            method: "POST",
            path: path.clone(),
            lines: wrk::lines(&file, people.iter().map(|m| &m.access))?,
            way: Way::Once,
            columns: vec!["Authorization"],
            common: vec![],
            connections: CONNECTIONS,
        };
        let rotate = Load {
            way: Way::Rotate,
            ..load.clone()
        };
        theirs.push(
            wrk::run(&bench.dir, &bare.url, &rotate, bench.run)
                .await?
                .rate(),
        );
        let before = cpu_seconds(server.pid())?;
        let entered = wrk::run(&bench.dir, &server.at.url, &load, bench.run).await?;
        cpu.push((cpu_seconds(server.pid())? - before) * 1e6 / entered.requests as f64);
        ours.push(entered.rate());
        std::fs::remove_file(&file)?;
    }
    let cpu = Figure::new("µs", cpu);
    let note = format!(
        "{:.0} µs of the server's processor time an entry",
        cpu.median
    );
    let reference = ("bare axum handler, same bytes", Figure::new("/s", theirs));
    Ok(vec![
        Row::ratio(
            "entry",
            "entries, each token verified first",
            Figure::new("/s", ours),
            reference,
            0.20,
        )
        .note(note)
        .detail(json!({ "cpuMicrosPerEntry": cpu })),
    ])
}
