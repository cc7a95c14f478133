//! What Redis tells of itself.

use std::collections::HashMap;

use anyhow::{Context, Result};
use redis::{FromRedisValue, Value};
use ticketping::platform::redis::Redis;

/// A section of INFO, as name and value.
pub async fn info(redis: &mut Redis, section: &str) -> Result<HashMap<String, String>> {
    let text: String = redis::cmd("INFO").arg(section).query_async(redis).await?;
    let pairs = text.lines().filter_map(|l| l.trim_end().split_once(':'));
    Ok(pairs.map(|(n, v)| (n.to_owned(), v.to_owned())).collect())
}

/// Bytes in use, once nothing is being rewritten in the background.
pub async fn used_memory(redis: &mut Redis) -> Result<f64> {
    loop {
        let persistence = info(redis, "persistence").await?;
        if persistence
            .get("aof_rewrite_in_progress")
            .is_none_or(|v| v == "0")
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let memory = info(redis, "memory").await?;
    let used = memory.get("used_memory").context("INFO memory")?;
    Ok(used.parse()?)
}

/// Calls of every command so far, those made by scripts included; not our own INFO.
pub async fn commands(redis: &mut Redis) -> Result<f64> {
    let stats = info(redis, "commandstats").await?;
    let calls = stats.iter().filter(|(name, _)| *name != "cmdstat_info");
    let calls = calls.filter_map(|(_, v)| v.strip_prefix("calls=")?.split(',').next());
    Ok(calls.filter_map(|n| n.parse::<f64>().ok()).sum())
}

/// A call that the slow log has kept.
#[derive(Debug)]
pub struct Slow {
    pub micros: i64,
    /// The command and its first argument.
    pub call: [String; 2],
}

/// From now on the slow log keeps every call of `micros` or longer.
pub async fn watch_slow(redis: &mut Redis, micros: u64) -> Result<()> {
    for words in [
        &["CONFIG", "SET", "slowlog-max-len", "20000"][..],
        &[
            "CONFIG",
            "SET",
            "slowlog-log-slower-than",
            &micros.to_string(),
        ],
        &["SLOWLOG", "RESET"],
    ] {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query_async::<()>(redis).await?;
    }
    Ok(())
}

/// What the slow log has kept.
pub async fn slow(redis: &mut Redis) -> Result<Vec<Slow>> {
    let entries: Vec<Vec<Value>> = redis::cmd("SLOWLOG")
        .arg("GET")
        .arg(-1)
        .query_async(redis)
        .await?;
    let entry = |entry: &Vec<Value>| {
        let micros = i64::from_redis_value_ref(entry.get(2)?).ok()?;
        let Value::Array(words) = entry.get(3)? else {
            return None;
        };
        let word = |n: usize| match words.get(n) {
            Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
            _ => String::new(),
        };
        Some(Slow {
            micros,
            call: [word(0), word(1)],
        })
    };
    Ok(entries.iter().filter_map(entry).collect())
}
