//! The longest time that any call kept Redis from everybody else, with a million waiting.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use serde_json::json;
use ticketping::serve::queue::scripts::{End, Seen};

use super::{
    Bench,
    crowd::{fill, room},
    redis_figures::{slow, watch_slow},
    row::{Figure, Row},
};

/// Calls shorter than this are not looked at.
const WATCHED_US: u64 = 200;
/// The bound.
const BLOCK_MAX_MS: f64 = 5.0;

/// The scripts, to name a call by the hash that it was made with.
fn scripts() -> BTreeMap<String, &'static str> {
    macro_rules! scripts {
        ($($name:literal),+) => {
            [$(($name, include_str!(concat!("../../lua/", $name, ".lua")))),+]
        };
    }
    let prelude = include_str!("../../lua/prelude.lua");
    let all = scripts!(
        "queue_tick",
        "queue_enter",
        "queue_check_in",
        "queue_end",
        "queue_restore",
        "queue_init",
        "queue_apply",
        "queue_raise",
        "queue_draw",
        "queue_reserve"
    );
    let hash = |text: &str| {
        redis::Script::new(&format!("{prelude}{text}"))
            .get_hash()
            .to_owned()
    };
    all.iter().map(|(name, text)| (hash(text), *name)).collect()
}

/// Enters, promotes, sweeps what lapses, gives places up, drains.
pub async fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    bench.crowd().await?;
    let crowd = bench.gathered()?;
    let (server, queue) = (&crowd.server, crowd.many);
    let mut redis = server.redis().await?;
    watch_slow(&mut redis, WATCHED_US).await?;
    let pause = bench.run;

    let late = fill(server, queue, 20_000).await?;
    // Five thousand come in, 200 a call; their claims lapse from 1.5 s on and free their slots.
    server.set(queue, json!({ "maxWorking": 5_000 })).await?;
    tokio::time::sleep(pause + Duration::from_secs(5)).await;
    let room = room(server, queue).await?;
    for gone in late.chunks(100).take(20) {
        let places = gone
            .iter()
            .map(|s| Ok((s.user, i64::try_from(s.number)?)))
            .collect::<Result<Vec<_>>>()?;
        room.end(Seen::default(), End::Left, &places).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    server.set(queue, json!({ "draining": true })).await?;
    tokio::time::sleep(pause).await;
    server
        .set(queue, json!({ "draining": false, "maxWorking": 0 }))
        .await?;

    let names = scripts();
    let mut longest: BTreeMap<String, (i64, u64)> = BTreeMap::new();
    let calls = slow(&mut redis).await?;
    for call in &calls {
        let [command, first] = &call.call;
        let name = names
            .get(first)
            .map_or_else(|| command.to_lowercase(), |n| (*n).to_owned());
        let entry = longest.entry(name).or_default();
        entry.0 = entry.0.max(call.micros);
        entry.1 += 1;
    }
    let most = longest.iter().max_by_key(|(_, (micros, _))| *micros);
    let (name, micros) = most.map_or(("none".to_owned(), 0), |(n, (m, _))| (n.clone(), *m));
    let over = calls
        .iter()
        .filter(|c| c.micros as f64 > BLOCK_MAX_MS * 1e3)
        .count();
    let figure = Figure::once("ms", micros as f64 / 1e3);
    let by_name: BTreeMap<_, _> = longest
        .iter()
        .map(|(n, (m, count))| {
            (
                n,
                json!({ "longestMs": *m as f64 / 1e3, "over200us": count }),
            )
        })
        .collect();
    Ok(vec![
        Row::bound(
            "block",
            "longest block of Redis by any call, 1,000,000 waiting",
            figure,
            BLOCK_MAX_MS,
        )
        .note(format!(
            "{name}; {over} of {} calls above 0.2 ms were longer than the bound",
            calls.len()
        ))
        .detail(json!(by_name)),
    ])
}
