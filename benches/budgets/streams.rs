//! What ten thousand open event streams cost in memory.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    Bench,
    process::resident_bytes,
    row::{Figure, Row},
    server::Server,
};

const STREAMS: usize = 10_000;
/// Opened at the same time.
const OPENING: usize = 100;
const BYTES_MAX: f64 = 200.0;
const MB: f64 = 1e6;

/// Opens them, has each hear a few events, and looks at the server's memory.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let server = Server::start(&bench.dir, "streams").await?;
    server
        .seed("--performances 1 --seats 2000 --users 0")
        .await?;
    let performance = server.performances().await?[0];
    let path = format!("/api/v1/queues/{performance}/events");
    server
        .http
        .get(&format!("/api/v1/queues/{performance}"), &[])
        .await?;
    let before = resident_bytes(server.pid())?;
    let address = server.at.url.trim_start_matches("http://").to_owned();
    let open = |_| open(&address, &path);
    let mut streams: Vec<TcpStream> = stream::iter(0..STREAMS)
        .map(open)
        .buffer_unordered(OPENING)
        .try_collect()
        .await
        .with_context(|| format!("{STREAMS} connections (ulimit -n must allow them)"))?;
    let opened = resident_bytes(server.pid())?;
    let mut most = opened;
    for round in 0..3 {
        // A change that every stream hears of.
        server
            .set(performance, json!({ "maxWorking": 10 + round }))
            .await?;
        let heard = streams.iter_mut().map(hear);
        let heard = tokio::time::timeout(
            Duration::from_secs(20),
            futures_util::future::try_join_all(heard),
        );
        heard
            .await
            .context("a stream did not hear of a change in 20 s")??;
        most = most.max(resident_bytes(server.pid())?);
    }
    let figure = Figure::once("MB", (most - before) as f64 / MB);
    Ok(vec![
        Row::bound("streams", "memory of 10,000 open event streams", figure, BYTES_MAX)
            .note(format!("resident memory of the server: {:.0} MB before, {:.0} with them", before as f64 / MB, most as f64 / MB))
            .detail(json!({ "beforeBytes": before, "openedBytes": opened, "mostBytes": most, "streams": STREAMS })),
    ])
}

/// A stream that has heard its first event.
async fn open(address: &str, path: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    hear(&mut stream).await?;
    Ok(stream)
}

/// Reads to the end of an event.
async fn hear(stream: &mut TcpStream) -> Result<()> {
    let (mut read, mut buffer) = (Vec::new(), [0_u8; 2048]);
    loop {
        let n = stream.read(&mut buffer).await?;
        ensure!(
            n > 0,
            "the server closed a stream: {}",
            String::from_utf8_lossy(&read)
        );
        read.extend_from_slice(&buffer[..n]);
        let event = read.windows(6).position(|w| w == b"data: ");
        if event.is_some_and(|at| read[at..].windows(2).any(|w| w == b"\n\n")) {
            return Ok(());
        }
    }
}
