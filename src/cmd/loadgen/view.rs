//! The live view on a terminal: drawn from the generator's state, below what was
//! printed before. `draw` is pure; the terminal is the last function.

use std::io::Stderr;

use ratatui::backend::CrosstermBackend;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Gauge, Paragraph, Row, Sparkline, Table};
use ratatui::{Frame, Terminal, TerminalOptions, Viewport};

use super::live::Live;
use super::progress::clock;
use super::report::Sample;
use super::table::{millis, thousands};

/// Rows that the view takes of the terminal.
pub const HEIGHT: u16 = 18;

/// What one frame shows.
pub struct Shown<'a> {
    pub live: &'a Live,
    pub sample: Option<&'a Sample>,
}

pub fn draw(frame: &mut Frame<'_>, shown: &Shown<'_>) {
    let area = frame.area();
    if area.width < 60 || area.height < 8 {
        let words = super::progress::line(shown.live, shown.sample);
        frame.render_widget(
            Paragraph::new(words).wrap(ratatui::widgets::Wrap { trim: true }),
            area,
        );
        return;
    }
    let [head, people, queue, gap, operations, charts] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Length(4),
    ])
    .areas(area);
    header(frame, head, shown.live);
    frame.render_widget(Paragraph::new(people_line(shown.live)), people);
    frame.render_widget(Paragraph::new(queue_line(shown.sample)), queue);
    frame.render_widget(Paragraph::new(error_line(shown.live)), gap);
    frame.render_widget(operations_table(shown.live, operations.height), operations);
    sparks(frame, charts, shown.live);
}

fn header(frame: &mut Frame<'_>, area: Rect, live: &Live) {
    let [left, right] =
        Layout::horizontal([Constraint::Length(34), Constraint::Min(10)]).areas(area);
    let state = if live.draining { "leaving" } else { "running" };
    let title = Line::from(vec![
        Span::from(format!("loadgen {} ", live.scenario)).bold(),
        Span::from(format!("{state} {}", clock(live.elapsed))),
    ]);
    frame.render_widget(Paragraph::new(title), left);
    let Some(duration) = live.duration else {
        return;
    };
    let part = (live.elapsed.as_secs_f64() / duration.as_secs_f64().max(0.001)).clamp(0.0, 1.0);
    let label = format!("{} of {}", clock(live.elapsed), clock(duration));
    frame.render_widget(
        Gauge::default()
            .ratio(part)
            .label(label)
            .gauge_style(Style::new().cyan()),
        right,
    );
}

fn people_line(live: &Live) -> Line<'static> {
    let ended: Vec<String> = live
        .ended
        .iter()
        .map(|(name, count)| format!("{} {name}", thousands(*count)))
        .collect();
    Line::from(format!(
        "buyers  {} of {} came, {} under way{}{}",
        thousands(live.arrived),
        thousands(live.to_arrive),
        thousands(live.under_way),
        if ended.is_empty() { "" } else { " · " },
        ended.join(", ")
    ))
}

fn queue_line(sample: Option<&Sample>) -> Line<'static> {
    let Some(sample) = sample else {
        return Line::from("queue   not seen yet").dim();
    };
    Line::from(format!(
        "queue   {} · {} waiting · {}/{} working · served {} of {} · {} seats left",
        sample.phase,
        thousands(sample.waiting),
        sample.working,
        sample.max_working,
        thousands(sample.served_number),
        thousands(sample.last_number),
        thousands(sample.remaining_seats.max(0) as u64),
    ))
}

fn error_line(live: &Live) -> Line<'static> {
    if live.errors.is_empty() {
        let lag = live.send_lag_p99_us as f64 / 1e3;
        let words = format!(
            "errors  none · {} in flight, {} due · send lag p99 {} ms",
            live.in_flight,
            live.queued,
            millis(lag)
        );
        return Line::from(words);
    }
    let kinds: Vec<String> = live
        .errors
        .iter()
        .map(|(op, code, count)| format!("{} {code} {}", op.name(), thousands(*count)))
        .collect();
    Line::from(format!(
        "errors  {} · {} in flight, {} due",
        kinds.join(", "),
        live.in_flight,
        live.queued
    ))
    .red()
}

fn operations_table(live: &Live, height: u16) -> Table<'static> {
    let right = |text: String| Cell::from(Line::from(text).right_aligned());
    let rows = live
        .ops
        .iter()
        .take(usize::from(height.saturating_sub(1)))
        .map(|op| {
            Row::new(vec![
                Cell::from(op.op.name()),
                right(thousands(op.completed)),
                right(thousands(op.failed)),
                right(thousands(u64::from(op.last.done))),
                right(millis(f64::from(op.last.p50_us) / 1e3)),
                right(millis(f64::from(op.last.p99_us) / 1e3)),
                right(millis(op.p50_us as f64 / 1e3)),
                right(millis(op.p99_us as f64 / 1e3)),
                right(millis(op.max_us as f64 / 1e3)),
            ])
        });
    let header = [
        "",
        "completed",
        "failed",
        "now/s",
        "now p50",
        "now p99",
        "p50 ms",
        "p99 ms",
        "max ms",
    ];
    let header = header.map(|name| right(name.to_owned()));
    let widths = [8, 10, 7, 7, 8, 8, 7, 7, 7].map(Constraint::Length);
    Table::new(rows.collect::<Vec<_>>(), widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::DIM)))
}

fn sparks(frame: &mut Frame<'_>, area: Rect, live: &Live) {
    let [left, right] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)])
        .spacing(2)
        .areas(area);
    let spark = |frame: &mut Frame<'_>, area: Rect, title: String, values: &[u64]| {
        let [label, bars] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(1)]).areas(area);
        frame.render_widget(Paragraph::new(title).dim(), label);
        let shown = &values[values.len().saturating_sub(usize::from(bars.width))..];
        frame.render_widget(
            Sparkline::default().data(shown).style(Style::new().cyan()),
            bars,
        );
    };
    let rate = live.rates.last().copied().unwrap_or(0);
    spark(
        frame,
        left,
        format!("answers/s  {}", thousands(rate)),
        &live.rates,
    );
    let p99 = live.p99_us.last().copied().unwrap_or(0) as f64 / 1e3;
    spark(
        frame,
        right,
        format!("p99 ms  {}", millis(p99)),
        &live.p99_us,
    );
}

/// The terminal under the view. Without raw mode: Ctrl-C stays a signal.
pub struct Screen(Terminal<CrosstermBackend<Stderr>>);

impl Screen {
    pub fn open() -> std::io::Result<Self> {
        let options = TerminalOptions {
            viewport: Viewport::Inline(HEIGHT),
        };
        Terminal::with_options(CrosstermBackend::new(std::io::stderr()), options).map(Self)
    }

    pub fn show(&mut self, shown: &Shown<'_>) -> std::io::Result<()> {
        self.0.draw(|frame| draw(frame, shown)).map(|_| ())
    }

    pub fn close(mut self) {
        // The table that follows says it all better.
        let _ = self.0.clear();
        let _ = self.0.show_cursor();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::loadgen::live::LiveOp;
    use crate::cmd::loadgen::stats::{Interval, Op};
    use ratatui::backend::TestBackend;
    use std::time::Duration;

    fn live() -> Live {
        let op = |op, completed, failed| LiveOp {
            op,
            completed,
            failed,
            p50_us: 420,
            p99_us: 12_300,
            max_us: 1_234_000,
            last: Interval {
                done: 3_300,
                failed: 0,
                p50_us: 400,
                p99_us: 9_000,
                max_us: 20_000,
            },
        };
        Live {
            scenario: "surge",
            elapsed: Duration::from_secs(83),
            duration: Some(Duration::from_secs(900)),
            arrived: 10_000,
            to_arrive: 10_000,
            under_way: 9_800,
            ended: vec![("confirmed", 150), ("walkedAway", 50)],
            in_flight: 12,
            queued: 3,
            ops: vec![op(Op::Enter, 10_000, 0), op(Op::Poll, 276_000, 2)],
            errors: vec![(Op::Poll, "TIMEOUT".to_owned(), 2)],
            rates: (0..60).map(|n| 3_000 + n * 10).collect(),
            p99_us: (0..60).map(|n| 5_000 + (n % 7) * 900).collect(),
            ..Live::default()
        }
    }

    fn screen(width: u16, height: u16, sample: Option<&Sample>) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        let live = live();
        terminal
            .draw(|frame| {
                draw(
                    frame,
                    &Shown {
                        live: &live,
                        sample,
                    },
                )
            })
            .unwrap();
        terminal.backend().to_string()
    }

    fn sample() -> Sample {
        Sample {
            at_ms: 83_000,
            phase: "OPEN".to_owned(),
            waiting: 9_700,
            working: 100,
            max_working: 100,
            served_number: 300,
            last_number: 10_000,
            remaining_seats: 1_850,
            seats: None,
        }
    }

    #[test]
    fn the_view_at_its_sizes() {
        insta::assert_snapshot!("view_80x18", screen(80, HEIGHT, Some(&sample())));
        insta::assert_snapshot!("view_120x18_no_queue", screen(120, HEIGHT, None));
        insta::assert_snapshot!("view_too_small", screen(40, 6, Some(&sample())));
    }
}
