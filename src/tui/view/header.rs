//! Four lines that stand over every screen: the server, its traffic, its
//! stores, its events and money.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::format;
use super::panels::Pairs;
use crate::platform::overview::{Health, Overview};
use crate::tui::state::{Connection, State};
use crate::tui::theme::Theme;

pub(super) const HEIGHT: u16 = 4;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let row = |n: u16| Rect {
        y: area.y + n,
        height: 1,
        ..area
    };
    server(frame, row(0), state, theme);
    let Some(overview) = &state.overview else {
        return;
    };
    traffic(overview, theme).render(frame, row(1));
    frame.render_widget(stores(overview, theme), row(2));
    events(overview, theme).render(frame, row(3));
}

fn server(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let about = state.overview.as_ref().map(|overview| {
        format!(
            "  v{} up {}",
            overview.server.version,
            format::duration(overview.server.uptime_seconds)
        )
    });
    let mut left = vec![
        Span::styled(" ticketping top", theme.strong()),
        Span::raw(format!("  {}", state.source)),
        Span::styled(about.unwrap_or_default(), theme.dim()),
    ];
    if state.read_only {
        left.push(Span::styled("  read-only", theme.mark()));
    }
    let (words, style) = status(state, theme);
    if let Connection::Lost { .. } = state.connection {
        // The whole line, so that nobody takes old figures for new ones.
        let words = format::fit(&words, usize::from(area.width), theme.ellipsis());
        frame.render_widget(Line::raw(words).style(style), area);
        return;
    }
    frame.render_widget(Line::from(left), area);
    let width = u16::try_from(format::width(&words))
        .unwrap_or(0)
        .min(area.width);
    let right = Rect {
        x: area.right() - width,
        width,
        ..area
    };
    frame.render_widget(Span::styled(words, style), right);
}

fn status(state: &State, theme: Theme) -> (String, Style) {
    match &state.connection {
        Connection::Connecting => ("connecting ".into(), theme.mark()),
        Connection::Live { latency } => {
            let at = state
                .overview
                .as_ref()
                .map(|overview| overview.as_of.format("%H:%M:%SZ").to_string());
            let ms = format::millis(latency.as_secs_f64() * 1000.0);
            (
                format!(" {} live {}  {ms} ms ", theme.ok(), at.unwrap_or_default()),
                theme.good(),
            )
        }
        Connection::Lost {
            since,
            error,
            retry_at,
        } => {
            let age = format::age(state.now - *since);
            let next = (*retry_at - state.now).num_seconds();
            let next = if next > 0 {
                format!("next try in {next}s")
            } else {
                "trying".into()
            };
            let old = if state.overview.is_some() {
                "  figures are old"
            } else {
                ""
            };
            let words = format!(
                " {} SERVER LOST for {age}{old}  {next} (r: now)  {error}",
                theme.fail()
            );
            (words, theme.bad().patch(theme.selected()))
        }
    }
}

pub(super) fn traffic(overview: &Overview, theme: Theme) -> Pairs {
    let http = &overview.http;
    let mut pairs = Pairs::new(theme);
    pairs.put(
        "req/s",
        format::rate(http.requests_per_second),
        theme.strong(),
    );
    let errors = if http.error_rate > 0.0 {
        theme.bad()
    } else {
        Style::new()
    };
    pairs.put("5xx", format::percent(http.error_rate), errors);
    pairs.put("4xx", format::percent(http.client_error_rate), Style::new());
    pairs.put(
        "p50",
        format!("{} ms", format::millis(http.p50_ms)),
        Style::new(),
    );
    pairs.put(
        "p99",
        format!("{} ms", format::millis(http.p99_ms)),
        Style::new(),
    );
    pairs.count("in flight", http.in_flight);
    if let Some(bytes) = overview.server.resident_bytes {
        pairs.put("memory", format!("{} MB", bytes / 1_000_000), Style::new());
    }
    pairs
}

fn health(state: Health, theme: Theme) -> (&'static str, Style) {
    match state {
        Health::Up => (theme.ok(), theme.good()),
        Health::Degraded => (theme.degraded(), theme.warn()),
        Health::Down => (theme.fail(), theme.bad()),
    }
}

fn stores(overview: &Overview, theme: Theme) -> Line<'static> {
    let mut spans = vec![Span::raw(" ")];
    // What is down stands first: a narrow line loses only good news.
    let mut stores: Vec<_> = overview.stores.iter().collect();
    stores.sort_by_key(|store| std::cmp::Reverse(store.state));
    for store in stores {
        let (sign, style) = health(store.state, theme);
        let figure = match (store.state, store.latency_ms) {
            (Health::Up, Some(ms)) => format!(" {} ms", format::millis(ms)),
            (Health::Up, None) => String::new(),
            (Health::Degraded, _) => " DEGRADED".into(),
            (Health::Down, _) => " DOWN".into(),
        };
        spans.push(Span::styled(format!("{sign} {}", store.name), style));
        spans.push(Span::styled(
            format!("{figure}  "),
            if store.state == Health::Up {
                theme.dim()
            } else {
                style
            },
        ));
    }
    let down: Vec<_> = overview
        .roles
        .iter()
        .filter(|role| role.state == Health::Down)
        .collect();
    let (sign, style) = health(
        if down.is_empty() {
            Health::Up
        } else {
            Health::Down
        },
        theme,
    );
    let words = if down.is_empty() {
        format!("{sign} {} roles up", overview.roles.len())
    } else {
        let names: Vec<&str> = down.iter().map(|role| role.role.as_str()).collect();
        format!("{sign} role DOWN: {}", names.join(", "))
    };
    if !overview.roles.is_empty() {
        spans.push(Span::styled(words, style));
    }
    Line::from(spans)
}

pub(super) fn events(overview: &Overview, theme: Theme) -> Pairs {
    let events = &overview.events;
    let payments = &overview.payments;
    let mut pairs = Pairs::new(theme);
    let oldest = if events.outbox_pending > 0 {
        format!(" ({}s)", events.oldest_seconds)
    } else {
        String::new()
    };
    pairs.put(
        "outbox",
        format!("{}{oldest}", format::commas(events.outbox_pending)),
        Style::new(),
    );
    if let Some(lag) = events.kafka_lag {
        pairs.count("lag", lag);
    }
    pairs.trouble("dead", events.dlq);
    pairs.count("paying", payments.open);
    pairs.count("paid", payments.succeeded);
    pairs.count("declined", payments.failed);
    pairs.put(
        "refunds",
        format!("{}+{}", payments.refunded, payments.refunds_pending),
        Style::new(),
    );
    if payments.unknown > 0 {
        pairs.put("unknown", format::commas(payments.unknown), theme.warn());
    }
    if overview.open_alarms > 0 {
        pairs.trouble("alarms", overview.open_alarms);
    }
    pairs.trouble("stuck", payments.refunds_stuck);
    pairs
}
