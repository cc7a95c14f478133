//! A frame as text or SVG: for the README, for tests, for a report of an incident.

use std::fmt::Write as _;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::style::{Color, Modifier};

use super::state::State;
use super::theme::Theme;
use super::view;

/// Draws one frame off the screen.
pub fn frame(state: &State, theme: Theme, width: u16, height: u16) -> Buffer {
    let mut terminal =
        Terminal::new(TestBackend::new(width, height)).unwrap_or_else(|never| match never {});
    terminal
        .draw(|frame| view::draw(frame, state, theme))
        .unwrap_or_else(|never| match never {});
    terminal.backend().buffer().clone()
}

/// The characters alone, without spaces at line ends.
pub fn text(buffer: &Buffer) -> String {
    let mut out = String::new();
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut line = String::new();
        let mut skip = 0;
        for x in buffer.area.left()..buffer.area.right() {
            if skip > 0 {
                skip -= 1;
                continue;
            }
            let symbol = buffer[(x, y)].symbol();
            // A wide letter takes the cell after it too.
            skip = view::format::width(symbol).saturating_sub(1);
            line.push_str(symbol);
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

const CELL_W: u32 = 8;
const CELL_H: u32 = 17;
const INK: &str = "#d6deeb";
const PAPER: &str = "#10151f";

/// A picture that any browser shows: a monospace grid.
pub fn svg(buffer: &Buffer) -> String {
    let (width, height) = (
        u32::from(buffer.area.width) * CELL_W + 16,
        u32::from(buffer.area.height) * CELL_H + 16,
    );
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"ticketping top\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"{PAPER}\"/>\n\
         <g font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"13\" xml:space=\"preserve\">\n"
    );
    for y in buffer.area.top()..buffer.area.bottom() {
        let mut x = buffer.area.left();
        while x < buffer.area.right() {
            let start = x;
            let first = &buffer[(x, y)];
            let mut run = String::new();
            while x < buffer.area.right() && alike(first, &buffer[(x, y)]) {
                let symbol = buffer[(x, y)].symbol();
                run.push_str(symbol);
                x += u16::try_from(view::format::width(symbol).max(1)).unwrap_or(1);
            }
            span(&mut out, first, &run, (start, y), x - start);
        }
    }
    out.push_str("</g>\n</svg>\n");
    out
}

fn alike(a: &Cell, b: &Cell) -> bool {
    a.fg == b.fg && a.modifier == b.modifier
}

fn span(out: &mut String, cell: &Cell, run: &str, (x, y): (u16, u16), cells: u16) {
    let reversed = cell.modifier.contains(Modifier::REVERSED);
    let (left, top) = (u32::from(x) * CELL_W + 8, u32::from(y) * CELL_H + 8);
    let width = u32::from(cells) * CELL_W;
    let color = hex(cell.fg);
    if reversed {
        let _ = writeln!(
            out,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{CELL_H}\" fill=\"{color}\"/>"
        );
    }
    if run.trim().is_empty() {
        return;
    }
    let fill = if reversed { PAPER } else { color };
    let bold = if cell.modifier.contains(Modifier::BOLD) {
        " font-weight=\"bold\""
    } else {
        ""
    };
    let dim = if cell.modifier.contains(Modifier::DIM) && !reversed {
        " opacity=\"0.6\""
    } else {
        ""
    };
    let line = if cell.modifier.contains(Modifier::UNDERLINED) {
        " text-decoration=\"underline\""
    } else {
        ""
    };
    let escaped = run
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        // Viewers that ignore xml:space would fold spaces and stretch the rest.
        .replace(' ', "\u{a0}");
    // textLength keeps the grid whatever font the reader has.
    let _ = writeln!(
        out,
        "<text x=\"{left}\" y=\"{}\" textLength=\"{width}\" lengthAdjust=\"spacingAndGlyphs\" fill=\"{fill}\"{bold}{dim}{line}>{escaped}</text>",
        top + 13
    );
}

fn hex(color: Color) -> &'static str {
    match color {
        Color::Red => "#ff6b6b",
        Color::Green => "#7ee787",
        Color::Blue => "#6ea8fe",
        Color::Cyan => "#66d9ef",
        Color::Magenta => "#e599f7",
        _ => INK,
    }
}
