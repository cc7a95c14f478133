//! How long `ticketping seed` takes for a million seats.

use anyhow::Result;

use super::{
    Bench,
    row::{Figure, Row},
    server::Server,
};

const SECONDS_MAX: f64 = 15.0;

/// A hundred schedules of 2,000 seats for each of five performances.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let server = Server::start(&bench.dir, "seed").await?;
    let took = server
        .seed("--performances 5 --schedules 100 --seats 2000 --users 0")
        .await?;
    let figure = Figure::once("s", took.as_secs_f64());
    Ok(vec![Row::bound(
        "seed",
        "seed of 1,000,000 seats",
        figure,
        SECONDS_MAX,
    )])
}
