//! Every key of every screen, from the one table.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::format;
use crate::tui::keys::{self, Binding, Context};
use crate::tui::state::State;
use crate::tui::theme::Theme;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, state: &State, theme: Theme) {
    let columns: u16 = if area.width >= 110 { 2 } else { 1 };
    let width = area.width / columns;
    let lines = lines(usize::from(width), theme);
    let per_column = usize::from(area.height);
    let pages = lines
        .len()
        .saturating_sub(per_column * usize::from(columns));
    let first = usize::from(state.help_scroll).min(pages);
    for (index, line) in lines
        .into_iter()
        .skip(first)
        .take(per_column * usize::from(columns))
        .enumerate()
    {
        let column = u16::try_from(index / per_column).unwrap_or(0);
        let row = u16::try_from(index % per_column).unwrap_or(0);
        let place = Rect {
            x: area.x + column * width,
            y: area.y + row,
            width,
            height: 1,
        };
        frame.render_widget(line, place);
    }
}

/// How many lines the list has at a width; the state needs it to stop scrolling.
fn lines(width: usize, theme: Theme) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    for context in Context::ALL {
        let rows: Vec<&Binding> = keys::of(context)
            .filter(|binding| binding.contexts.len() < Context::ALL.len())
            .collect();
        lines.push(Line::styled(format!(" {}", context.title()), theme.head()));
        lines.extend(rows.into_iter().map(|binding| line(binding, width, theme)));
    }
    lines.push(Line::styled(" Everywhere", theme.head()));
    let everywhere = keys::BINDINGS
        .iter()
        .filter(|binding| binding.contexts.len() == Context::ALL.len());
    lines.extend(everywhere.map(|binding| line(binding, width, theme)));
    lines
}

fn line(binding: &Binding, width: usize, theme: Theme) -> Line<'static> {
    let help = format::fit(binding.help, width.saturating_sub(17), theme.ellipsis());
    let keys = theme.text(&binding.label());
    let pad = " ".repeat(13usize.saturating_sub(format::width(&keys)));
    Line::from(vec![
        Span::styled(format!("  {keys}{pad} "), theme.strong()),
        Span::raw(help),
    ])
}
