//! Logs: one line an event, text for humans or JSON for machines, on stderr.

use std::io::IsTerminal;

use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Sends this process's events to stderr.
///
/// # Errors
/// When `filter` is malformed.
pub fn start(format: LogFormat, filter: &str) -> Result<(), String> {
    // Not `EnvFilter`: its filters by span and field bring a regex engine along.
    let filter: Targets = filter
        .parse()
        .map_err(|e| format!("--log {filter}: {e}; want a level (info) or target=level,…"))?;
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some();
            let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(!plain);
            registry.with(layer.with_target(false)).try_init()
        }
        LogFormat::Json => {
            let layer = fmt::layer()
                .json()
                .flatten_event(true)
                .with_writer(std::io::stderr);
            registry.with(layer).try_init()
        }
    };
    started.map_err(|e| format!("cannot start logging: {e}"))
}
