//! Bars, trends and column charts out of block characters.

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Span;

use super::format;
use crate::tui::theme::Theme;

/// A bar of `cells`, filled to `share`. Any part at all shows, and full only when it is.
pub fn bar(share: f64, cells: usize, theme: Theme) -> (String, String) {
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a few cells"
    )]
    let full = (share.clamp(0.0, 1.0) * cells as f64).round() as usize;
    let full = if share >= 1.0 {
        cells
    } else if share > 0.0 {
        full.clamp(1, cells.saturating_sub(1).max(1))
    } else {
        0
    };
    (
        theme.bar_full().repeat(full.min(cells)),
        theme.bar_empty().repeat(cells.saturating_sub(full)),
    )
}

/// One line of columns, scaled to its own greatest value.
pub fn trend(values: &[Option<f64>], theme: Theme) -> String {
    let greatest = values.iter().flatten().copied().fold(0.0, f64::max);
    values
        .iter()
        .map(|value| eighth(value.unwrap_or(0.0), greatest, theme))
        .collect()
}

fn eighth(value: f64, greatest: f64, theme: Theme) -> char {
    if greatest <= 0.0 || value <= 0.0 {
        return theme.eighths()[0];
    }
    theme.eighths()[eighths_of(value / greatest, 1).clamp(1, 8)]
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "bounded by the chart's height"
)]
fn eighths_of(share: f64, rows: u16) -> usize {
    (share.clamp(0.0, 1.0) * f64::from(rows) * 8.0).round() as usize
}

/// A chart of columns. `limit` draws a line at that height; below it stand what
/// the left and right ends mean.
pub struct Columns<'a> {
    pub title: Vec<Span<'a>>,
    pub values: &'a [Option<f64>],
    pub limit: Option<f64>,
    pub left: &'a str,
    pub right: &'a str,
    pub style: Style,
}

impl Columns<'_> {
    pub fn render(&self, area: Rect, buf: &mut Buffer, theme: Theme) {
        if area.height < 2 || area.width < 8 {
            return;
        }
        heading(&self.title, Rect { height: 1, ..area }, buf, theme);
        let foot = u16::from(area.height > 3);
        let plot = Rect {
            y: area.y + 1,
            height: area.height - 1 - foot,
            ..area
        };
        let greatest = self
            .values
            .iter()
            .flatten()
            .copied()
            .fold(self.limit.unwrap_or(0.0), f64::max);
        self.plot(plot, buf, greatest, theme);
        if greatest > 0.0 {
            let label = format::rate(greatest);
            buf.set_stringn(plot.x, plot.y, &label, usize::from(plot.width), theme.dim());
        }
        if foot > 0 {
            let y = area.bottom() - 1;
            buf.set_stringn(area.x, y, self.left, usize::from(area.width), theme.dim());
            let right = u16::try_from(format::width(self.right)).unwrap_or(0);
            if right < area.width {
                buf.set_string(area.right() - right, y, self.right, theme.dim());
            }
        }
    }

    fn plot(&self, plot: Rect, buf: &mut Buffer, greatest: f64, theme: Theme) {
        if let Some(limit) = self.limit.filter(|limit| *limit > 0.0 && greatest > 0.0) {
            let height = eighths_of(limit / greatest, plot.height).div_ceil(8).max(1);
            let y = plot
                .bottom()
                .saturating_sub(u16::try_from(height).unwrap_or(1));
            buf.set_string(
                plot.x,
                y,
                theme.limit().repeat(usize::from(plot.width)),
                theme.dim(),
            );
        }
        if greatest <= 0.0 {
            let words = if self.values.iter().any(Option::is_some) {
                "all zero"
            } else {
                "no figures yet"
            };
            let x = plot.x
                + plot
                    .width
                    .saturating_sub(u16::try_from(words.len()).unwrap_or(0))
                    / 2;
            buf.set_stringn(
                x,
                plot.y + plot.height / 2,
                words,
                usize::from(plot.width),
                theme.dim(),
            );
            return;
        }
        for (x, value) in (plot.x..plot.right()).zip(self.values) {
            let Some(value) = value.filter(|value| *value > 0.0) else {
                continue;
            };
            let mut left = eighths_of(value / greatest, plot.height).max(1);
            for y in (plot.y..plot.bottom()).rev() {
                if left == 0 {
                    break;
                }
                let part = left.min(8);
                if let Some(cell) = buf.cell_mut((x, y)) {
                    cell.set_char(theme.eighths()[part]).set_style(self.style);
                }
                left -= part;
            }
        }
    }
}

/// `─ Title ───────`
pub fn heading(title: &[Span<'_>], area: Rect, buf: &mut Buffer, theme: Theme) {
    let rule = theme.rule();
    buf.set_string(
        area.x,
        area.y,
        rule.repeat(usize::from(area.width)),
        theme.dim(),
    );
    let mut x = area.x + 1;
    let mut put = |text: &str, style: Style| {
        let room = usize::from(area.right().saturating_sub(x + 1));
        if room > 0 {
            x = buf.set_stringn(x, area.y, text, room, style).0;
        }
    };
    put(" ", Style::new());
    for span in title {
        put(&span.content, span.style);
    }
    put(" ", Style::new());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(share: f64) -> String {
        let (full, empty) = bar(share, 5, Theme::default());
        full + &empty
    }

    #[test]
    fn a_bar_is_full_only_when_it_is() {
        assert_eq!(
            [0.0, 0.01, 0.5, 0.99, 1.0, 7.0].map(drawn),
            ["░░░░░", "█░░░░", "███░░", "████░", "█████", "█████"]
        );
    }

    #[test]
    fn a_trend_scales_to_its_own_top() {
        let values = [None, Some(0.0), Some(1.0), Some(4.0), Some(8.0)];
        assert_eq!(trend(&values, Theme::default()), "  ▁▄█");
    }

    #[test]
    fn columns_stand_on_the_floor_and_the_limit_is_a_line() {
        let area = Rect::new(0, 0, 10, 5);
        let mut buf = Buffer::empty(area);
        let values: Vec<Option<f64>> = (0..10).map(|n| Some(f64::from(n))).collect();
        let chart = Columns {
            title: vec!["Up".into()],
            values: &values,
            limit: Some(12.0),
            left: "-1m",
            right: "now",
            style: Style::new(),
        };
        chart.render(area, &mut buf, Theme::default());
        insta::assert_snapshot!(crate::tui::capture::text(&buf), @r"
        ─ Up ─────
        12┄┄┄┄┄┄┄▂
             ▂▄▆██
         ▂▄▆██████
        -1m    now
        ");
    }
}
