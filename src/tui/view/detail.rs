//! One queue: how deep, how fast, what ends soon, how it is set, what happened.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use uuid::Uuid;

use super::chart::{self, Columns};
use super::panels::Pairs;
use super::{format, panels};
use crate::platform::overview::{Expiries, QueueRow};
use crate::tui::keys::{self, Action, Context};
use crate::tui::state::State;
use crate::tui::state::control::Control;
use crate::tui::state::history::History;
use crate::tui::theme::Theme;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State, id: Uuid, theme: Theme) {
    let Some(row) = state.queue(id) else {
        frame.render_widget(
            Line::styled(" this queue is gone; Esc goes back", theme.dim()),
            area,
        );
        return;
    };
    let alarm = state.alarms.of(id);
    let figures_pairs = figures_of(row, theme);
    let lines = if area.width < 130 { 2 } else { 1 };
    let [title, figures, warning, charts, expiries, lists] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(lines),
        Constraint::Length(u16::from(alarm.is_some())),
        Constraint::Fill(3),
        Constraint::Fill(2),
        // Settings are read whole; charts take what is left.
        Constraint::Length(lists_height(area)),
    ])
    .areas(area);
    frame.render_widget(title_line(row, area.width, theme), title);
    figures_pairs.render(frame, figures);
    if let Some(alarm) = alarm {
        frame.render_widget(panels::alarm_line(alarm, theme), warning);
    }
    depth_charts(frame, charts, state, row, theme);
    expiry_charts(frame, expiries, row, theme);
    let [left, right] = halves(lists, 38);
    settings(frame, left, state, row, theme);
    happenings(frame, right, state, row, theme);
}

fn lists_height(area: Rect) -> u16 {
    let all = u16::try_from(Control::ALL.len()).unwrap_or(9) + 1;
    if area.height >= 28 { all } else { 6 }
}

fn halves(area: Rect, left: u16) -> [Rect; 2] {
    let [left, _, right] = Layout::horizontal([
        Constraint::Min(left),
        Constraint::Length(1),
        Constraint::Percentage(56),
    ])
    .areas(area);
    [left, right]
}

fn title_line(row: &QueueRow, width: u16, theme: Theme) -> Line<'static> {
    let (phase, style) = panels::phase(row.phase, theme);
    let times: String = [("opens", row.opens_at), ("closes", row.closes_at)]
        .iter()
        .filter_map(|(name, at)| Some(format!("  {name} {}", at.as_ref()?.format("%m-%d %H:%MZ"))))
        .collect();
    let id = format!("  {}", row.performance_id);
    let venue = theme.text(&format!("  {}", row.venue_name));
    // What does not fit whole is left out: the id first, then the venue; a long title is cut.
    let mut room = usize::from(width).saturating_sub(3 + phase.len() + times.len());
    let title = format::fit_ends(&theme.text(&row.title), room, theme.ellipsis());
    room = room.saturating_sub(format::width(&title));
    let mut spans = vec![Span::styled(format!(" {title}"), theme.strong())];
    if format::width(&venue) <= room {
        room -= format::width(&venue);
        spans.push(Span::styled(venue, theme.dim()));
    }
    spans.push(Span::styled(format!("  {phase}"), style));
    spans.push(Span::styled(times, theme.dim()));
    if id.len() <= room {
        spans.push(Span::styled(id, theme.dim()));
    }
    Line::from(spans)
}

pub(super) fn figures_of(row: &QueueRow, theme: Theme) -> Pairs {
    let wait = row
        .estimated_wait_seconds
        .map_or(theme.none().to_owned(), |range| {
            format!(
                "{}-{}",
                format::duration(range.min),
                format::duration(range.max)
            )
        });
    let mut pairs = Pairs::new(theme);
    pairs.put(
        "served",
        format!("{}/{}", row.served_number, row.last_number),
        Style::new(),
    );
    pairs.put("wait", wait, Style::new());
    pairs.count("done", row.completed);
    pairs.count("no-shows", row.no_shows);
    pairs.count("lapsed", row.expired);
    pairs.count("left", row.left);
    pairs.put(
        "working",
        format!("{}/{}", row.working, row.max_working),
        Style::new(),
    );
    pairs.count("seats", row.remaining_seats);
    pairs.count("held", row.held_seats);
    pairs.count("sold", row.sold_seats);
    pairs.count("orders", row.open_orders);
    pairs.put("epoch", row.epoch.to_string(), Style::new());
    pairs
}

pub(super) fn depth_charts(
    frame: &mut Frame<'_>,
    area: Rect,
    state: &State,
    row: &QueueRow,
    theme: Theme,
) {
    let empty = History::default();
    let history = state.histories.of(row.performance_id).unwrap_or(&empty);
    let span = history.span_s();
    let left = format!("-{}", format::duration(u64::try_from(span).unwrap_or(0)));
    let mut draw =
        |area: Rect, name: &str, now: String, values: &[Option<f64>], limit: Option<u64>| {
            let title = vec![
                Span::styled(name.to_owned(), theme.strong()),
                Span::raw(format!(" {now}")),
            ];
            #[allow(clippy::cast_precision_loss, reason = "the height of a line")]
            let limit = limit.map(|limit| limit as f64);
            let chart = Columns {
                title,
                values,
                limit,
                left: &left,
                right: "now",
                style: theme.chart(),
            };
            chart.render(area, frame.buffer_mut(), theme);
        };
    // The working set stands as a bar elsewhere too: a narrow screen spares its chart.
    let count = if area.width >= 110 { 3 } else { 2 };
    let parts = Layout::horizontal(vec![Constraint::Fill(1); count])
        .spacing(1)
        .split(area);
    let cells = |part: Rect| usize::from(part.width);

    let waiting = history.columns(cells(parts[0]), span, |sample| f64::from(sample.waiting));
    draw(
        parts[0],
        "Waiting",
        format::commas(row.waiting),
        &waiting,
        None,
    );

    let rates = history.rate_columns(cells(parts[1]), span, |sample| f64::from(sample.admitted));
    let limit = row
        .settings
        .admissions_per_minute
        .filter(|limit| *limit > 0);
    let of = limit.map_or(", no limit".into(), |limit| {
        format!(" of {}", format::commas(limit))
    });
    let now = format!("{}{of}", format::rate(row.admitted_per_minute));
    draw(parts[1], "Admitted/min", now, &rates, limit);

    if let Some(part) = parts.get(2) {
        let working = history.columns(cells(*part), span, |sample| f64::from(sample.working));
        let now = format!("{} of {}", row.working, row.max_working);
        draw(*part, "Working", now, &working, Some(row.max_working));
    }
}

fn expiry_charts(frame: &mut Frame<'_>, area: Rect, row: &QueueRow, theme: Theme) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1); 2])
        .spacing(1)
        .areas(area);
    expiries(
        frame,
        left,
        "Holds end",
        row.hold_expiries.as_ref(),
        row.hold_expiries_next_minute,
        theme,
    );
    expiries(
        frame,
        right,
        "Places end",
        row.place_expiries.as_ref(),
        row.place_expiries_next_minute,
        theme,
    );
}

/// A histogram of deadlines to come: from now at the left.
fn expiries(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &'static str,
    expiries: Option<&Expiries>,
    next_minute: u64,
    theme: Theme,
) {
    let mut title = vec![
        Span::styled(name, theme.strong()),
        Span::raw(format!(" {next_minute} within 1m")),
    ];
    let none = Expiries::default();
    let known = expiries.unwrap_or(&none);
    if known.later > 0 {
        title.push(Span::styled(
            format!(", {} later", format::commas(known.later)),
            theme.dim(),
        ));
    }
    let (buckets, cells) = (known.counts.len(), usize::from(area.width));
    // The buckets share the whole width.
    #[allow(clippy::cast_precision_loss, reason = "the height of a bar")]
    let values: Vec<Option<f64>> = (0..cells)
        .map(|x| {
            known
                .counts
                .get(x * buckets / cells)
                .map(|count| *count as f64)
        })
        .collect();
    let end = format::duration(known.bucket_seconds * u64::try_from(buckets).unwrap_or(0));
    Columns {
        title,
        values: &values,
        limit: None,
        left: "now",
        right: &end,
        style: theme.mark(),
    }
    .render(area, frame.buffer_mut(), theme);
}

fn key_of(control: Control) -> String {
    keys::of(Context::Detail)
        .find(|binding| binding.action == Action::Control(control))
        .map_or_else(String::new, |binding| binding.chords[0].label())
}

fn settings(frame: &mut Frame<'_>, area: Rect, state: &State, row: &QueueRow, theme: Theme) {
    if area.height < 2 {
        return;
    }
    let words = if state.read_only {
        "Settings (read-only)"
    } else {
        "Settings"
    };
    chart::heading(
        &[Span::styled(words, theme.strong())],
        Rect { height: 1, ..area },
        frame.buffer_mut(),
        theme,
    );
    let lines = usize::from(area.height - 1);
    // Where nine lines do not fit, two stand side by side.
    let across = Control::ALL.len().div_ceil(lines.max(1)).min(2);
    let width = area.width / u16::try_from(across).unwrap_or(1);
    for (index, control) in Control::ALL.into_iter().enumerate() {
        let (column, line) = (index / lines.max(1), index % lines.max(1));
        if column >= across {
            break;
        }
        let x = area.x + width * u16::try_from(column).unwrap_or(0);
        let y = area.y + 1 + u16::try_from(line).unwrap_or(0);
        let key = if state.read_only {
            String::new()
        } else {
            key_of(control)
        };
        let value = control.current(&row.settings);
        let changed = matches!(control, Control::Pause | Control::Drain) && value == "yes";
        let style = if changed { theme.warn() } else { Style::new() };
        let name = if across > 1 {
            short(control)
        } else {
            control.name()
        };
        let name_width = if across > 1 { 9 } else { 16 };
        let line = Line::from(vec![
            Span::styled(format!(" {key:1} "), theme.strong()),
            Span::styled(format!("{name:<name_width$} "), theme.dim()),
            Span::styled(value, style),
        ]);
        frame.render_widget(
            line,
            Rect {
                x,
                y,
                width: width.min(area.right() - x),
                height: 1,
            },
        );
    }
}

fn short(control: Control) -> &'static str {
    match control {
        Control::MaxWorking => "limit",
        Control::AdmissionsPerMinute => "rate/min",
        Control::WorkingTtl => "working",
        Control::ClaimTtl => "claim",
        Control::HoldTtl => "hold",
        Control::QueueFactor => "factor",
        Control::PreQueue => "pre-queue",
        Control::Pause => "paused",
        Control::Drain => "draining",
    }
}

fn happenings(frame: &mut Frame<'_>, area: Rect, state: &State, row: &QueueRow, theme: Theme) {
    if area.height < 2 {
        return;
    }
    chart::heading(
        &[Span::styled("Last events", theme.strong())],
        Rect { height: 1, ..area },
        frame.buffer_mut(),
        theme,
    );
    let all = state.recent.of(row.performance_id);
    if all.is_empty() {
        let quiet = Rect {
            y: area.y + 1,
            height: 1,
            ..area
        };
        frame.render_widget(
            Line::styled(" nothing since top was started", theme.dim()),
            quiet,
        );
    }
    for (y, happening) in (area.y + 1..area.bottom()).zip(all) {
        let time = happening.at.format("%H:%M:%S").to_string();
        let text = format::fit(
            &theme.text(&happening.text),
            usize::from(area.width).saturating_sub(11),
            theme.ellipsis(),
        );
        let line = Line::from(vec![
            Span::styled(format!(" {time} "), theme.dim()),
            Span::raw(text),
        ]);
        frame.render_widget(
            line,
            Rect {
                y,
                height: 1,
                ..area
            },
        );
    }
}
