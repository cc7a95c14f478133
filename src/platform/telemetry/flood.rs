//! Floods of one cause: the first lines are written, the rest counted and said in one line.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::metrics::counter::Counter;
use tracing::{Level, Metadata, callsite::Identifier};

use super::line::Fields;
use crate::platform::metrics::Metrics;

/// So many lines of one cause are written within a window.
const LINES_MAX: u32 = 20;
const WINDOW: Duration = Duration::from_secs(10);
/// Causes that are told apart; above it, only by the place in the code.
const CAUSES_MAX: usize = 1_024;

static HELD_BACK: LazyLock<Counter> = LazyLock::new(Counter::default);
static CAUSES: LazyLock<Mutex<HashMap<Cause, Window>>> = LazyLock::new(Mutex::default);

pub(super) fn register(metrics: &Metrics) {
    metrics.register(|registry| {
        registry.register(
            "log_lines_held_back",
            "Log lines of one cause that were counted instead of written",
            HELD_BACK.clone(),
        );
    });
}

type Cause = (Identifier, u64);

struct Window {
    begun: Instant,
    lines: u32,
    held_back: u64,
    level: Level,
    target: &'static str,
    /// The newest line held back.
    like: Fields,
}

fn lock() -> MutexGuard<'static, HashMap<Cause, Window>> {
    CAUSES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether the line is written; if not, it is counted.
pub(super) fn passes(meta: &Metadata<'static>, fields: &Fields) -> bool {
    // Whoever asks for these wants them all.
    if *meta.level() > Level::INFO {
        return true;
    }
    let mut causes = lock();
    let mut cause = (meta.callsite(), kind_of(fields));
    if causes.len() >= CAUSES_MAX && !causes.contains_key(&cause) {
        cause.1 = 0;
    }
    let window = causes.entry(cause).or_insert_with(|| Window {
        begun: Instant::now(),
        lines: 0,
        held_back: 0,
        level: *meta.level(),
        target: meta.target(),
        like: Fields::default(),
    });
    if window.held_back == 0 && window.begun.elapsed() >= WINDOW {
        window.begun = Instant::now();
        window.lines = 0;
    }
    if window.lines < LINES_MAX {
        window.lines += 1;
        return true;
    }
    window.held_back += 1;
    fields.clone_into(&mut window.like);
    HELD_BACK.inc();
    false
}

/// A summary of each flood whose window is over.
pub(super) fn ended() -> Vec<(Level, &'static str, Fields)> {
    let mut ended = Vec::new();
    lock().retain(|_, window| {
        let seconds = window.begun.elapsed().as_secs();
        if window.begun.elapsed() < WINDOW {
            return true;
        }
        if window.held_back > 0 {
            let mut fields = std::mem::take(&mut window.like);
            let like = fields.text("message").unwrap_or_default().to_owned();
            let count = window.held_back;
            let message = format!("{count} more lines like this one in {seconds} s: {like}");
            fields.0.retain(|(key, _)| *key != "message");
            fields.0.push(("message", message.into()));
            fields.0.push(("held_back", count.into()));
            ended.push((window.level, window.target, fields));
        }
        false
    });
    ended
}

/// What two lines of one place have in common if their cause is the same: the error without its
/// numbers and ids.
fn kind_of(fields: &Fields) -> u64 {
    let Some(error) = fields.text("error") else {
        return 0;
    };
    let mut hasher = DefaultHasher::new();
    for word in error.split(|c: char| !c.is_alphanumeric()) {
        if !word.contains(|c: char| c.is_ascii_digit()) {
            word.hash(&mut hasher);
        }
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Fields {
        Fields(vec![
            ("message", "unavailable".into()),
            ("error", text.into()),
        ])
    }

    #[test]
    fn causes_are_told_apart_and_ids_are_not() {
        let one = kind_of(&error("order 0190a-17: connection refused"));
        assert_eq!(one, kind_of(&error("order 7f3e9-99: connection refused")));
        assert_ne!(one, kind_of(&error("order 7f3e9-99: timed out")));
    }
}
