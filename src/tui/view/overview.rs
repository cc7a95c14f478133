//! All queues in a table, the totals above it, what is wrong below it.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::panels::{self, phase};
use super::{chart, detail, format};
use crate::platform::overview::QueueRow;
use crate::tui::state::State;
use crate::tui::state::table::{Column, share};
use crate::tui::theme::Theme;

/// Standing alarms shown below the table.
const ALARM_LINES: usize = 3;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let standing = state.alarms.standing_groups();
    let alarm_lines = standing.len().min(ALARM_LINES);
    let strip = if standing.is_empty() {
        0
    } else {
        u16::try_from(alarm_lines + 1).unwrap_or(0)
    };
    let rows = state.table.rows(state.queues());
    let [totals, table, preview, alarms] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(preview_height(
            area.height.saturating_sub(strip + 2),
            rows.len(),
        )),
        Constraint::Length(strip),
    ])
    .areas(area);
    frame.render_widget(totals_line(state, &rows, theme), totals);
    draw_table(frame, table, state, &rows, theme);
    if let Some(cursor) = state.table.cursor(&rows).filter(|_| preview.height > 0) {
        detail::depth_charts(frame, preview, state, rows[cursor], theme);
    }
    panels::alarm_strip(frame, alarms, &standing, state.now, theme);
}

/// Few queues leave room for the charts of the chosen one.
fn preview_height(room: u16, rows: usize) -> u16 {
    // A spare row stays, so that one more queue does not take the charts away.
    let free = room.saturating_sub(u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(1));
    if free >= 6 { free.min(12) } else { 0 }
}

fn totals_line(state: &State, rows: &[&QueueRow], theme: Theme) -> Line<'static> {
    let sum = |field: fn(&QueueRow) -> u64| format::commas(rows.iter().map(|row| field(row)).sum());
    let all = state.queues().len();
    let shown = if rows.len() == all {
        all.to_string()
    } else {
        format!("{} of {all}", rows.len())
    };
    let mut spans = vec![Span::styled(format!(" {shown} queues"), theme.strong())];
    for (name, value) in [
        ("waiting", sum(|row| row.waiting + row.registered)),
        (
            "working",
            format!("{}/{}", sum(|row| row.working), sum(|row| row.max_working)),
        ),
        ("left", sum(|row| row.remaining_seats)),
        ("held", sum(|row| row.held_seats)),
        ("sold", sum(|row| row.sold_seats)),
    ] {
        spans.push(Span::styled(format!("  {name} "), theme.dim()));
        spans.push(Span::styled(value, theme.strong()));
    }
    let marked = state.table.marked.len();
    if marked > 0 {
        spans.push(Span::styled(format!("  {marked} marked"), theme.mark()));
    }
    if state.filtering || !state.table.filter.is_empty() {
        let cursor = if state.filtering { "_" } else { "" };
        spans.push(Span::styled(
            format!("  /{}{cursor}", state.table.filter),
            theme.mark(),
        ));
    }
    Line::from(spans)
}

/// What a column is called, how wide it is (0: takes what is left), and how soon
/// it goes when there is no room (the greatest first).
struct Shape {
    column: Column,
    name: &'static str,
    narrow: u16,
    wide: u16,
    gone: u8,
}

const fn shape(column: Column, name: &'static str, narrow: u16, wide: u16, gone: u8) -> Shape {
    Shape {
        column,
        name,
        narrow,
        wide,
        gone,
    }
}

const SHAPES: [Shape; 12] = [
    shape(Column::Title, "PERFORMANCE", 13, 22, 0),
    shape(Column::Phase, "PHASE", 8, 9, 0),
    shape(Column::Waiting, "WAITING", 8, 9, 0),
    shape(Column::Trend, "TREND", 12, 16, 5),
    shape(Column::Working, "WORKING", 11, 18, 0),
    shape(Column::Admitted, "ADM/M", 5, 6, 1),
    shape(Column::NoShows, "NOSH", 4, 6, 4),
    shape(Column::Estimate, "WAIT", 6, 6, 0),
    shape(Column::Remaining, "LEFT", 6, 7, 0),
    shape(Column::Held, "HELD", 4, 6, 2),
    shape(Column::Expiries, "EXP1M", 5, 6, 3),
    shape(Column::Sold, "SOLD", 6, 7, 6),
];

/// The columns that fit, with their widths: all of them wide, else narrow, else fewer.
fn columns(width: u16) -> Vec<(&'static Shape, u16)> {
    let total = |shapes: &[(&Shape, u16)]| {
        shapes.iter().map(|(_, width)| *width).sum::<u16>()
            + u16::try_from(shapes.len()).unwrap_or(0)
    };
    let mut all: Vec<(&Shape, u16)> = SHAPES.iter().map(|shape| (shape, shape.wide)).collect();
    if total(&all) > width {
        all = SHAPES.iter().map(|shape| (shape, shape.narrow)).collect();
    }
    while total(&all) > width {
        let Some(worst) = all
            .iter()
            .map(|(shape, _)| shape.gone)
            .max()
            .filter(|gone| *gone > 0)
        else {
            break;
        };
        all.retain(|(shape, _)| shape.gone != worst);
    }
    let mut spare = width.saturating_sub(total(&all));
    for (shape, width) in &mut all {
        // Titles stand first, and so grow first.
        let more = spare.min(shape.wide.saturating_sub(*width));
        *width += more;
        spare -= more;
    }
    if let Some((_, width)) = all.first_mut() {
        *width += spare;
    }
    all
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, state: &State, rows: &[&QueueRow], theme: Theme) {
    if area.height < 2 {
        return;
    }
    let columns = columns(area.width);
    frame.render_widget(head(&columns, state, theme), Rect { height: 1, ..area });
    let body = Rect {
        y: area.y + 1,
        height: area.height - 1,
        ..area
    };
    let Some(cursor) = state.table.cursor(rows) else {
        let words = if state.queues().is_empty() {
            " no queue yet: ticketping seed makes some"
        } else {
            " no queue has these words; Esc clears the filter"
        };
        frame.render_widget(Line::styled(words, theme.dim()), body);
        return;
    };
    let height = usize::from(body.height);
    // The cursor stays in the middle while there is more on both sides.
    let first = cursor
        .saturating_sub(height / 2)
        .min(rows.len().saturating_sub(height));
    for (y, (index, row)) in (body.y..body.bottom()).zip(rows.iter().enumerate().skip(first)) {
        let line_area = Rect {
            y,
            height: 1,
            ..body
        };
        let chosen = index == cursor;
        let line = row_line(&columns, row, chosen, state, theme);
        frame.render_widget(line, line_area);
        if chosen {
            frame.buffer_mut().set_style(line_area, theme.selected());
        } else if !state.is_live() {
            frame.buffer_mut().set_style(line_area, theme.dim());
        }
    }
}

fn head(columns: &[(&Shape, u16)], state: &State, theme: Theme) -> Line<'static> {
    let mut spans = Vec::new();
    for (shape, width) in columns {
        let sorted = shape.column == state.table.sort;
        let arrow = match (sorted, state.table.descending) {
            (false, _) => "",
            (true, true) => theme.down(),
            (true, false) => theme.up(),
        };
        let width = usize::from(*width);
        let name = format!(
            "{}{arrow}",
            format::fit(shape.name, width - format::width(arrow).min(width), "")
        );
        let text = if left_aligned(shape.column) {
            format!("{name:<width$}")
        } else {
            format!("{name:>width$}")
        };
        let style = if sorted {
            theme.head().patch(theme.mark())
        } else {
            theme.head()
        };
        spans.push(Span::raw(" "));
        spans.push(Span::styled(text, style));
    }
    Line::from(spans)
}

fn left_aligned(column: Column) -> bool {
    matches!(
        column,
        Column::Title | Column::Phase | Column::Working | Column::Trend
    )
}

fn row_line(
    columns: &[(&Shape, u16)],
    row: &QueueRow,
    chosen: bool,
    state: &State,
    theme: Theme,
) -> Line<'static> {
    let mut spans = Vec::new();
    for (index, (shape, width)) in columns.iter().enumerate() {
        let lead = if index == 0 && chosen {
            theme.cursor()
        } else {
            " "
        };
        spans.push(Span::raw(lead));
        spans.extend(cell(shape.column, usize::from(*width), row, state, theme));
    }
    Line::from(spans)
}

fn cell(
    column: Column,
    width: usize,
    row: &QueueRow,
    state: &State,
    theme: Theme,
) -> Vec<Span<'static>> {
    let number = |n: u64| vec![Span::raw(format!("{:>width$}", format::count(n, width)))];
    match column {
        Column::Title => vec![title(width, row, state, theme)],
        Column::Phase => {
            let (name, style) = phase(row.phase, theme);
            vec![Span::styled(format!("{name:<width$}"), style)]
        }
        Column::Waiting => number(row.waiting + row.registered),
        Column::Trend => {
            let values = state.histories.of(row.performance_id).map(|history| {
                history.columns(width, history.span_s(), |sample| f64::from(sample.waiting))
            });
            let trend = chart::trend(&values.unwrap_or_default(), theme);
            vec![Span::styled(format!("{trend:>width$}"), theme.chart())]
        }
        Column::Working => working(width, row, theme),
        Column::Admitted => vec![Span::raw(format!(
            "{:>width$}",
            format::rate(row.admitted_per_minute)
        ))],
        Column::NoShows => number(row.no_shows),
        Column::Estimate => {
            let text = row
                .estimated_wait_seconds
                .map_or(theme.none().into(), |range| format::duration(range.max));
            vec![Span::raw(format!("{text:>width$}"))]
        }
        Column::Remaining => number(row.remaining_seats),
        Column::Held => number(row.held_seats),
        Column::Expiries => number(row.hold_expiries_next_minute),
        Column::Sold => number(row.sold_seats),
    }
}

/// The title, with a mark when something is wrong with this queue.
fn title(width: usize, row: &QueueRow, state: &State, theme: Theme) -> Span<'static> {
    let alarm = state.alarms.of(row.performance_id);
    let chosen = if state.table.marked.contains(&row.performance_id) {
        "* "
    } else {
        ""
    };
    let mark = if alarm.is_some() { "! " } else { "" };
    let name = if row.title.is_empty() {
        row.performance_id.to_string()
    } else {
        theme.text(&row.title)
    };
    let text = format::fit_ends(&format!("{chosen}{mark}{name}"), width, theme.ellipsis());
    let pad = " ".repeat(width.saturating_sub(format::width(&text)));
    let style = match (alarm, chosen) {
        (Some(_), _) => theme.bad(),
        (None, "") => Style::new(),
        (None, _) => theme.mark(),
    };
    Span::styled(text + &pad, style)
}

/// `███░░ 40/100`
fn working(width: usize, row: &QueueRow, theme: Theme) -> Vec<Span<'static>> {
    let full = share(row.working, row.max_working);
    let mut text = format!("{}/{}", row.working, row.max_working);
    if text.len() > width {
        text = format!(
            "{}/{}",
            format::count(row.working, 4),
            format::count(row.max_working, 4)
        );
    }
    let cells = width.saturating_sub(text.len() + 1);
    let style = if row.working > row.max_working {
        theme.bad()
    } else {
        theme.good()
    };
    let (filled, empty) = chart::bar(full, cells, theme);
    let gap = if cells > 0 { " " } else { "" };
    vec![
        Span::styled(filled, style),
        Span::styled(empty, theme.dim()),
        Span::raw(format!(
            "{gap}{text:>rest$}",
            rest = width.saturating_sub(cells + gap.len())
        )),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_80_columns_all_that_matters_is_there() {
        let names: Vec<&str> = columns(80).iter().map(|(shape, _)| shape.name).collect();
        assert_eq!(
            names,
            [
                "PERFORMANCE",
                "PHASE",
                "WAITING",
                "WORKING",
                "ADM/M",
                "NOSH",
                "WAIT",
                "LEFT",
                "HELD",
                "EXP1M"
            ]
        );
        assert_eq!(columns(120).len(), SHAPES.len());
    }

    #[test]
    fn every_column_is_explained() {
        let (_, explained) = super::super::help::FIGURES[0];
        let explained: Vec<&str> = explained.iter().map(|(name, _)| *name).collect();
        assert_eq!(SHAPES.map(|shape| shape.name).to_vec(), explained);
    }

    #[test]
    fn columns_fill_the_width_and_never_more() {
        for width in 60..250 {
            let columns = columns(width);
            let used: u16 = columns.iter().map(|(_, width)| width + 1).sum();
            assert_eq!(used, width, "at {width}");
        }
    }
}
