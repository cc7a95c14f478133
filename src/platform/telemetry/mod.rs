//! Logs and traces of this process.
//!
//! One subscriber: the [`layer`] writes a line for each event, with what the spans around it
//! know (request, trace, task), and hands it to the [`writer`], which never blocks; [`traces`]
//! sends the same spans to an OpenTelemetry collector where one is given.

mod flood;
mod layer;
mod line;
pub mod traces;
mod writer;

use std::{
    io::{IsTerminal, Write},
    sync::OnceLock,
    time::Duration,
};

use tracing_subscriber::{
    filter::{Targets, filter_fn},
    layer::{Layer, SubscriberExt},
    util::SubscriberInitExt,
};

use self::{layer::LogLayer, line::Renderer, traces::Traces, writer::Writer};
use super::metrics::Metrics;

/// How long an end waits for lines that are not written yet.
const FLUSH_MAX: Duration = Duration::from_millis(500);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where this process's lines go; set once, since a subscriber is.
static LOGGER: OnceLock<(Renderer, Writer)> = OnceLock::new();

/// Logs and traces, once started.
pub struct Telemetry {
    traces: Traces,
}

/// Sends this process's events to stderr, and its spans to the collector at `otlp`. To be called
/// once, in a runtime.
///
/// # Errors
/// When `filter` is malformed, or `otlp` cannot be used.
pub fn start(
    format: LogFormat,
    filter: &str,
    role: &'static str,
    otlp: Option<&url::Url>,
) -> Result<Telemetry, String> {
    let instance = instance();
    let plain = !std::io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some();
    let renderer = Renderer::new(format, !plain, role, instance.clone());
    let (renderer, writer) = LOGGER.get_or_init(|| (renderer.clone(), Writer::start(renderer)));
    // Not `EnvFilter`: its filters by span and field bring a regex engine along.
    let events: Targets = filter
        .parse()
        .map_err(|e| format!("--log {filter}: {e}; want a level (info) or target=level,…"))?;
    let traces = Traces::start(otlp, role, &instance)?;
    let traced = traces
        .layer()
        .with_filter(filter_fn(|meta| meta.target() == traces::TARGET));
    let lines = LogLayer::new(renderer.clone(), writer.clone());
    tracing_subscriber::registry()
        .with(lines.with_filter(layer::Wanted(events)))
        .with(traced)
        .try_init()
        .map_err(|e| format!("cannot start logging: {e}"))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(Telemetry { traces })
}

impl Telemetry {
    /// Sends and writes what is left, within a bound.
    pub async fn stop(self) {
        self.traces.stop().await;
        flush();
    }
}

fn flush() {
    if let Some((_, writer)) = LOGGER.get() {
        writer.flush(FLUSH_MAX);
    }
}

/// Lets `metrics` show what was not written.
pub fn register(metrics: &Metrics) {
    writer::register(metrics);
    flood::register(metrics);
}

/// Says on stderr why this process ends, in the format of its log. Never blocks for long.
pub fn fatal(message: &str) {
    match LOGGER.get() {
        Some((renderer, writer)) => {
            writer.send(renderer.fatal(message));
            writer.flush(FLUSH_MAX);
        }
        // Nobody is left to be told that stderr is closed.
        None => drop(writeln!(std::io::stderr(), "ticketping: {message}")),
    }
}

/// A name that no other process has: where it runs, and which one there.
fn instance() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = match host.trim() {
        "" => "localhost",
        host => host,
    };
    format!("{host}-{:04x}", rand::random::<u16>())
}

fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    let message = panic
        .payload()
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let location = panic.location().map(ToString::to_string);
    let location = location.unwrap_or_default();
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = match backtrace.status() {
        std::backtrace::BacktraceStatus::Captured => Some(backtrace.to_string()),
        _ => None,
    };
    tracing::error!(
        panic.location = location,
        backtrace,
        "panicked at {location}: {message}"
    );
}
