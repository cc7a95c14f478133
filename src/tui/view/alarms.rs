//! The log of alarms; below it, what to look at for the chosen one.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};

use super::{chart, format, panels};
use crate::tui::state::State;
use crate::tui::state::alarms::Group;
use crate::tui::theme::Theme;

/// More names than this fit on no screen.
const NAMED_MAX: usize = 20;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let [title, list, about] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(6),
    ])
    .areas(area);
    let all = state.alarms.groups();
    let words = format!(
        "Alarms: {} standing, {} in the log",
        state.alarms.standing().len(),
        state.alarms.all().len()
    );
    chart::heading(
        &[Span::styled(words, theme.strong())],
        title,
        frame.buffer_mut(),
        theme,
    );
    if all.is_empty() {
        frame.render_widget(
            Line::styled(" nothing was wrong since top was started", theme.dim()),
            list,
        );
        return;
    }
    let height = usize::from(list.height).max(1);
    let first = state
        .alarm_cursor
        .saturating_sub(height / 2)
        .min(all.len().saturating_sub(height));
    for (y, (index, group)) in (list.y..list.bottom()).zip(all.iter().enumerate().skip(first)) {
        let area = Rect {
            y,
            height: 1,
            ..list
        };
        frame.render_widget(log_line(group, theme), area);
        if index == state.alarm_cursor {
            frame.buffer_mut().set_style(area, theme.selected());
        } else if group.newest().cleared_at.is_some() {
            frame.buffer_mut().set_style(area, theme.dim());
        }
    }
    if let Some(group) = all.get(state.alarm_cursor) {
        explain(frame, about, group, state, theme);
    }
}

fn log_line(group: &Group<'_>, theme: Theme) -> Line<'static> {
    let alarm = group.newest();
    let mut line = panels::group_line(group, theme);
    let word = match alarm.cleared_at {
        Some(at) => format!(" over {:<6}", format::age(at - alarm.raised_at)),
        None => " standing   ".into(),
    };
    line.spans
        .insert(2, Span::raw(word.trim_start().to_owned()));
    line
}

fn explain(frame: &mut Frame<'_>, area: Rect, group: &Group<'_>, state: &State, theme: Theme) {
    let alarm = group.newest();
    let subjects = match group.count() {
        1 => alarm.subject.clone(),
        count => format!(
            "{count} queues: {}",
            group
                .subjects()
                .take(NAMED_MAX)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let subjects = format::fit(
        &theme.text(&subjects),
        usize::from(area.width).saturating_sub(36),
        theme.ellipsis(),
    );
    chart::heading(
        &[Span::styled("What to look at", theme.strong())],
        Rect { height: 1, ..area },
        frame.buffer_mut(),
        theme,
    );
    let until = match alarm.cleared_at {
        Some(at) => format!(
            "{} to {}",
            alarm.raised_at.format("%H:%M:%SZ"),
            at.format("%H:%M:%SZ")
        ),
        None => format!(
            "since {}, for {}",
            alarm.raised_at.format("%H:%M:%SZ"),
            format::age(state.now - alarm.raised_at)
        ),
    };
    let lines = vec![
        Line::from(vec![
            Span::styled(subjects, theme.strong()),
            Span::styled(format!("  {until}"), theme.dim()),
        ]),
        Line::raw(theme.text(&alarm.message)),
        Line::styled(theme.text(&alarm.look_at), theme.mark()),
    ];
    let body = Rect {
        x: area.x + 1,
        y: area.y + 1,
        width: area.width.saturating_sub(2),
        height: area.height - 1,
    };
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: true }), body);
}
