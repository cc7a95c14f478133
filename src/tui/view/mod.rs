//! Draws the state. Pure: the same state and size give the same frame.

mod alarms;
pub mod chart;
mod detail;
mod dialog;
pub mod format;
mod header;
mod help;
mod overview;
mod panels;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::keys;
use super::state::{Connection, Screen, State};
use super::theme::Theme;

/// Below this nothing useful fits.
const MIN_WIDTH: u16 = 60;
const MIN_HEIGHT: u16 = 16;

pub fn draw(frame: &mut Frame<'_>, state: &State, theme: Theme) {
    let area = frame.area();
    if area.width < MIN_WIDTH || area.height < MIN_HEIGHT {
        return too_small(frame, area);
    }
    let [head, body, foot] = Layout::vertical([
        Constraint::Length(header::HEIGHT),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    header::draw(frame, head, state, theme);
    if state.help {
        crate::failpoint!("top.draw_help");
        help::draw(frame, body, state, theme);
    } else if state.overview.is_none() {
        nothing_yet(frame, body, state, theme);
    } else {
        match state.screen {
            Screen::Overview => overview::draw(frame, body, state, theme),
            Screen::Detail(id) => detail::draw(frame, body, state, id, theme),
            Screen::Alarms => alarms::draw(frame, body, state, theme),
        }
    }
    if let Some(dialog) = &state.dialog {
        dialog::draw(frame, body, dialog, theme);
    }
    footer(frame, foot, state, theme);
}

fn too_small(frame: &mut Frame<'_>, area: Rect) {
    let lines = vec![
        Line::from(format!("{}x{} is too small", area.width, area.height)),
        Line::from(format!("needs {MIN_WIDTH}x{MIN_HEIGHT}; q quits")),
    ];
    let y = area.y + area.height.saturating_sub(2) / 2;
    let middle = Rect {
        y,
        height: area.height.min(2),
        ..area
    };
    frame.render_widget(Paragraph::new(lines).alignment(Alignment::Center), middle);
}

fn nothing_yet(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let mut lines = vec![Line::styled(
        format!("Reading {}", state.source),
        theme.strong(),
    )];
    if let Connection::Lost {
        error, retry_at, ..
    } = &state.connection
    {
        lines = vec![
            Line::styled(format!("No answer from {}", state.source), theme.bad()),
            Line::from(error.clone()),
            Line::from(format!(
                "next try in {}; r tries now",
                format::age(*retry_at - state.now)
            )),
        ];
    }
    let height = u16::try_from(lines.len()).unwrap_or(3);
    let y = area.y + area.height.saturating_sub(height) / 2;
    let middle = Rect {
        y,
        height: height.min(area.height),
        ..area
    };
    frame.render_widget(Paragraph::new(lines).alignment(Alignment::Center), middle);
}

/// The keys of this place, as many as fit; a flash takes their room.
fn footer(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    if let Some((_, words)) = &state.flash {
        let words = format::fit(
            words,
            usize::from(area.width).saturating_sub(1),
            theme.ellipsis(),
        );
        frame.render_widget(Line::styled(format!(" {words}"), theme.warn()), area);
        return;
    }
    let words: Vec<(String, &str)> = keys::of(state.context())
        .filter(|binding| !(state.read_only && binding.changes_something()))
        .filter_map(|binding| Some((theme.text(&binding.chords[0].label()), binding.footer?)))
        .collect();
    let cells = |(key, word): &(String, &str)| format::width(key) + word.len() + 3;
    // The ways out stand last in the table: they are never cut.
    let ways_out = words.len().saturating_sub(3);
    let mut left =
        usize::from(area.width).saturating_sub(words[ways_out..].iter().map(cells).sum());
    let mut spans = vec![Span::raw(" ")];
    for (index, pair) in words.iter().enumerate() {
        if index < ways_out {
            if cells(pair) > left {
                left = 0;
                continue;
            }
            left -= cells(pair);
        }
        spans.push(Span::styled(pair.0.clone(), theme.strong()));
        spans.push(Span::raw(format!(" {}  ", pair.1)));
    }
    frame.render_widget(Line::from(spans), area);
}

#[cfg(test)]
mod tests;
