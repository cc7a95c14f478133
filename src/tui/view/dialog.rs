//! The dialog of a change: value, reason, yes, outcome.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Clear, Paragraph, Wrap};

use super::format;
use crate::tui::state::control::{Dialog, Field, Stage};
use crate::tui::theme::Theme;

const WIDTH: u16 = 66;
const HEIGHT: u16 = 12;

pub(super) fn draw(frame: &mut Frame<'_>, area: Rect, dialog: &Dialog, theme: Theme) {
    let width = WIDTH.min(area.width.saturating_sub(2));
    let height = HEIGHT.min(area.height);
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    frame.render_widget(Clear, place);
    let title = format::fit(
        &format!(" {}: {} ", dialog.heading(), dialog.subject()),
        usize::from(width) - 4,
        theme.ellipsis(),
    );
    let mut block = Block::bordered().title(Span::styled(theme.text(&title), theme.strong()));
    block = if theme.ascii {
        block.border_set(ratatui::symbols::border::Set {
            top_left: "+",
            top_right: "+",
            bottom_left: "+",
            bottom_right: "+",
            vertical_left: "|",
            vertical_right: "|",
            horizontal_top: "-",
            horizontal_bottom: "-",
        })
    } else {
        block.border_type(BorderType::Rounded)
    };
    let inner = block.inner(place);
    frame.render_widget(block, place);
    let inside = Rect {
        x: inner.x + 1,
        width: inner.width.saturating_sub(2),
        ..inner
    };
    let lines = match &dialog.stage {
        Stage::Form => form(dialog, usize::from(inside.width), theme),
        Stage::Confirm => confirm(dialog, theme),
        Stage::Sending => vec![Line::default(), Line::raw("Sending...")],
        Stage::Done(outcome) => done(dialog, outcome, theme),
    };
    frame.render_widget(Paragraph::new(lines).wrap(Wrap { trim: false }), inside);
}

/// A field shows its end, where one types.
fn field(name: &str, text: &str, active: bool, width: usize, theme: Theme) -> Line<'static> {
    let room = width.saturating_sub(10);
    let skipped = format::width(text).saturating_sub(room);
    let mut cut = 0;
    let tail: String = text
        .chars()
        .skip_while(|c| {
            let more = cut < skipped;
            cut += format::width(c.encode_utf8(&mut [0; 4]));
            more
        })
        .collect();
    let (mark, style) = if active {
        (theme.cursor(), theme.strong())
    } else {
        (" ", theme.dim())
    };
    let end = if active {
        Span::styled(" ", theme.selected())
    } else {
        Span::raw("")
    };
    Line::from(vec![
        Span::styled(format!("{mark}{name:<7}"), style),
        Span::raw(tail),
        end,
    ])
}

fn form(dialog: &Dialog, width: usize, theme: Theme) -> Vec<Line<'static>> {
    let mut lines = vec![
        Line::styled(dialog.control.effect(&dialog.settings), theme.dim()),
        Line::from(vec![
            Span::styled("Now     ", theme.dim()),
            Span::raw(format!("{} {}", dialog.control.field(), dialog.current())),
        ]),
        Line::default(),
    ];
    if dialog.control.has_value() {
        lines.push(field(
            "New",
            &dialog.value,
            dialog.field == Field::Value,
            width,
            theme,
        ));
        lines.push(Line::styled(
            format!("        {}", dialog.control.hint()),
            theme.dim(),
        ));
    }
    lines.push(field(
        "Reason",
        &dialog.reason,
        dialog.field == Field::Reason,
        width,
        theme,
    ));
    lines.push(Line::default());
    if let Some(error) = &dialog.error {
        lines.push(Line::styled(error.clone(), theme.bad()));
    }
    lines
}

fn confirm(dialog: &Dialog, theme: Theme) -> Vec<Line<'static>> {
    vec![
        Line::styled(dialog.control.effect(&dialog.settings), theme.dim()),
        Line::default(),
        Line::from(vec![
            Span::raw(format!("{}  ", dialog.control.field())),
            Span::styled(theme.text(&dialog.change()), theme.strong()),
        ]),
        Line::raw(format!("because {}", dialog.reason.trim())),
        Line::default(),
        Line::styled("Do it? y / n", theme.warn()),
    ]
}

fn done(dialog: &Dialog, outcome: &Result<String, String>, theme: Theme) -> Vec<Line<'static>> {
    let (words, style) = match outcome {
        Ok(words) => (format!("{} Done. {words}", theme.ok()), theme.good()),
        Err(error) => (
            format!("{} Not changed: {error}", theme.fail()),
            theme.bad(),
        ),
    };
    vec![
        Line::default(),
        Line::raw(format!(
            "{}  {}",
            dialog.control.field(),
            theme.text(&dialog.change())
        )),
        Line::styled(theme.text(&words), style),
    ]
}
