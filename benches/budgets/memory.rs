//! Redis bytes a waiting person.

use anyhow::Result;
use serde_json::json;

use super::{
    Bench,
    crowd::MANY,
    row::{Figure, Row},
};

/// Memory after the million entered, less that before, a person.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    bench.crowd().await?;
    let crowd = bench.gathered()?;
    let (before, after) = crowd.memory;
    let mut redis = crowd.server.redis().await?;
    let wait = format!("tp:{{{}}}:wait", crowd.many);
    let own: f64 = redis::cmd("MEMORY")
        .arg(&["USAGE", &wait, "SAMPLES", "0"])
        .query_async(&mut redis)
        .await?;
    let people = MANY as f64;
    let figure = Figure::once("bytes", (after - before) / people);
    Ok(vec![
        Row::bound(
            "memory",
            "Redis memory a waiting person, at 1,000,000",
            figure,
            145.0,
        )
        .note(format!(
            "used_memory; MEMORY USAGE of the sorted set alone: {:.0}",
            own / people
        ))
        .detail(json!({ "usedBefore": before, "usedAfter": after, "waitKey": own })),
    ])
}
