//! `--once` and `--json`: the overview for scripts, without a terminal.

use std::io::{self, Write as _};
use std::time::Duration;

use bytes::Bytes;
use chrono::{TimeDelta, Utc};
use comfy_table::{CellAlignment, Table, presets};

use super::conn::Reader;
use super::state::State;
use super::theme::Theme;
use super::view::format;
use super::{capture, state::Event};
use crate::platform::overview::{Health, Overview, Phase};

/// Prints to stdout. `false`: nobody reads any more, which is no failure.
fn print(text: &[u8]) -> io::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

pub async fn table(mut reader: Reader) -> anyhow::Result<()> {
    let overview = reader.overview(None).await?;
    print(render(&overview).as_bytes())?;
    Ok(())
}

/// One line an overview, as the server gave it. A lost server is a line on
/// stderr, and the next interval another try; `once` makes it a failure.
pub async fn json(mut reader: Reader, interval: Duration, once: bool) -> anyhow::Result<()> {
    let mut beat = tokio::time::interval(interval);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        match reader.raw(None).await.and_then(|bytes| one_line(&bytes)) {
            Ok(line) => {
                if !print(&line)? {
                    return Ok(());
                }
            }
            Err(error) if once => return Err(error),
            Err(error) => eprintln!("{} {error:#}", Utc::now().format("%Y-%m-%dT%H:%M:%SZ")),
        }
        if once {
            return Ok(());
        }
    }
}

/// Compact, whatever the server's taste; unknown fields stay.
fn one_line(bytes: &Bytes) -> anyhow::Result<Vec<u8>> {
    let value: serde_json::Value = serde_json::from_slice(bytes)?;
    let mut line = serde_json::to_vec(&value)?;
    line.push(b'\n');
    Ok(line)
}

/// Watches for a while, then draws one frame into a file: SVG by its name, else text.
pub async fn capture(
    mut reader: Reader,
    interval: Duration,
    watch_for: Duration,
    open: Option<String>,
    (width, height): (u16, u16),
) -> anyhow::Result<ratatui::buffer::Buffer> {
    let mut state = State::new(reader.url().to_owned(), true, Utc::now());
    let end = Utc::now() + TimeDelta::from_std(watch_for)?;
    loop {
        let started = std::time::Instant::now();
        let overview = reader.overview(state.detail()).await?;
        state.apply(
            Utc::now(),
            Event::Overview {
                overview: Box::new(overview),
                latency: started.elapsed(),
            },
        );
        if let (Some(words), None) = (&open, state.detail()) {
            state.table.filter.clone_from(words);
            if let Some(row) = state.table.rows(state.queues()).first() {
                state.screen = super::state::Screen::Detail(row.performance_id);
            }
        }
        if Utc::now() >= end {
            break;
        }
        tokio::time::sleep(interval.saturating_sub(started.elapsed())).await;
    }
    Ok(capture::frame(&state, Theme::default(), width, height))
}

fn render(overview: &Overview) -> String {
    let http = &overview.http;
    let events = &overview.events;
    let stores: Vec<String> = overview
        .stores
        .iter()
        .map(|store| format!("{} {}", store.name, health(store.state)))
        .collect();
    let roles: Vec<String> = overview
        .roles
        .iter()
        .map(|role| format!("{} {}", role.role, health(role.state)))
        .collect();
    let lines = [
        format!(
            "as of {}  version {}  up {}",
            overview.as_of.format("%Y-%m-%dT%H:%M:%SZ"),
            overview.server.version,
            format::duration(overview.server.uptime_seconds)
        ),
        format!(
            "http   {} req/s  5xx {}  4xx {}  p50 {} ms  p99 {} ms",
            format::rate(http.requests_per_second),
            format::percent(http.error_rate),
            format::percent(http.client_error_rate),
            format::millis(http.p50_ms),
            format::millis(http.p99_ms)
        ),
        format!(
            "events outbox {} (oldest {} s)  lag {}  dead letters {}",
            events.outbox_pending,
            events.oldest_seconds,
            events.kafka_lag.map_or("-".into(), |lag| lag.to_string()),
            events.dlq
        ),
        format!("alarms {} open", overview.open_alarms),
        format!("stores {}", stores.join("  ")),
        format!("roles  {}", roles.join("  ")),
        String::new(),
        queue_table(overview),
    ];
    lines.join("\n")
}

fn health(state: Health) -> &'static str {
    match state {
        Health::Up => "up",
        Health::Degraded => "DEGRADED",
        Health::Down => "DOWN",
    }
}

fn queue_table(overview: &Overview) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header([
        "PERFORMANCE",
        "PHASE",
        "WAITING",
        "WORKING",
        "LIMIT",
        "ADM/MIN",
        "NO-SHOWS",
        "WAIT_S",
        "LEFT",
        "HELD",
        "EXP<1M",
        "SOLD",
        "ID",
    ]);
    for row in super::state::table::Table::default().rows(&overview.queues) {
        table.add_row([
            format::printable(&row.title),
            phase_name(row.phase),
            (row.waiting + row.registered).to_string(),
            row.working.to_string(),
            row.max_working.to_string(),
            format!("{:.0}", row.admitted_per_minute),
            row.no_shows.to_string(),
            row.estimated_wait_seconds
                .map_or("-".into(), |range| range.max.to_string()),
            row.remaining_seats.to_string(),
            row.held_seats.to_string(),
            row.hold_expiries_next_minute.to_string(),
            row.sold_seats.to_string(),
            row.performance_id.to_string(),
        ]);
    }
    for column in 2..12 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
        .lines()
        .map(|line| format!("{}\n", line.trim_end()))
        .collect()
}

/// As on the wire.
fn phase_name(phase: Phase) -> String {
    serde_json::to_value(phase)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
