//! Seat maps: 2,000 seats, compressed.

use anyhow::Result;
use axum::body::Body;
use http::Method;
use serde_json::json;

use super::{
    Bench,
    bare::{Answer, Kind, Peer},
    row::{Figure, Row},
    server::Server,
    wrk::{self, Load, Way},
};

const CONNECTIONS: usize = 64;

/// Seat maps a second.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let server = Server::start(&bench.dir, "seats").await?;
    server
        .seed("--performances 1 --seats 2000 --users 0")
        .await?;
    let performance = server.performances().await?[0];
    let schedule = server.schedules(performance).await?[0];
    let path = format!("/api/v1/schedules/{schedule}/seats");
    let gzip = [("accept-encoding", "gzip")];
    let reply = server
        .http
        .send(Method::GET, &path, &gzip, Body::empty())
        .await?;
    let bare = Peer::start(&bench.dir, Kind::Bare, &path, &Answer::of(&reply)).await?;
    let load = Load {
        method: "GET",
        path,
        lines: wrk::lines(&bench.dir.join("maps"), ["gzip"; CONNECTIONS])?,
        way: Way::Rotate,
        columns: vec!["Accept-Encoding"],
        common: vec![],
        connections: CONNECTIONS,
    };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..bench.rounds {
        theirs.push(
            wrk::run(&bench.dir, &bare.url, &load, bench.run)
                .await?
                .rate(),
        );
        ours.push(
            wrk::run(&bench.dir, &server.at.url, &load, bench.run)
                .await?
                .rate(),
        );
    }
    let reference = ("bare axum handler, same bytes", Figure::new("/s", theirs));
    let note = format!(
        "{} bytes each",
        super::row::number(reply.bytes.len() as f64)
    );
    Ok(vec![
        Row::ratio(
            "seats",
            "seat maps of 2,000 seats, compressed",
            Figure::new("/s", ours),
            reference,
            0.65,
        )
        .note(note)
        .detail(json!({ "bytes": reply.bytes.len() })),
    ])
}
