//! Pieces that several screens share.

use chrono::{DateTime, Utc};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::{Line, Span};

use super::{chart, format};
use crate::platform::overview::Phase;
use crate::tui::state::alarms::{Alarm, Group, Severity};
use crate::tui::theme::Theme;

/// Upper case is what an operator did or must see.
pub(super) fn phase(phase: Phase, theme: Theme) -> (&'static str, Style) {
    match phase {
        Phase::Upcoming => ("upcoming", theme.dim()),
        Phase::PreQueue => ("prequeue", theme.mark()),
        Phase::Open => ("open", theme.good()),
        Phase::Paused => ("PAUSED", theme.warn()),
        Phase::Draining => ("DRAINING", theme.warn()),
        Phase::Recovering => ("RECOVERS", theme.bad()),
        Phase::SoldOut => ("sold out", theme.strong()),
        Phase::Closed => ("closed", theme.dim()),
        Phase::Unknown => ("idle", theme.dim()),
    }
}

pub(super) fn severity(severity: Severity, theme: Theme) -> (&'static str, Style) {
    match severity {
        Severity::Critical => (theme.fail(), theme.bad()),
        Severity::Warning => ("!", theme.warn()),
    }
}

/// `! 14:02:11 RECOVERING 42 queues, such as Cats: …`
pub(super) fn group_line(group: &Group<'_>, theme: Theme) -> Line<'static> {
    let alarm = group.newest();
    let mut line = alarm_line(alarm, theme);
    if group.count() > 1
        && let Some(words) = line.spans.last_mut()
    {
        let text = format!(
            "{} queues, such as {}: {}",
            group.count(),
            alarm.subject,
            alarm.message
        );
        *words = Span::raw(theme.text(&text));
    }
    line
}

/// `✖ 14:02:11 STORE_DOWN redis gives no answer`
pub(super) fn alarm_line(alarm: &Alarm, theme: Theme) -> Line<'static> {
    let (sign, style) = severity(alarm.severity, theme);
    let time = alarm.raised_at.format("%H:%M:%S").to_string();
    let subject = if alarm.message.contains(&alarm.subject) {
        String::new()
    } else {
        format!("{}: ", alarm.subject)
    };
    Line::from(vec![
        Span::styled(format!(" {sign} "), style),
        Span::styled(format!("{time} "), theme.dim()),
        Span::styled(format!("{} ", alarm.code), style),
        Span::raw(theme.text(&format!("{subject}{}", alarm.message))),
    ])
}

/// The standing alarms under the table.
pub(super) fn alarm_strip(
    frame: &mut Frame<'_>,
    area: Rect,
    standing: &[Group<'_>],
    now: DateTime<Utc>,
    theme: Theme,
) {
    if area.height < 2 {
        return;
    }
    let oldest = standing
        .iter()
        .map(|group| group.newest().raised_at)
        .min()
        .unwrap_or(now);
    let words = format!(
        "{} alarm{}, for {} (l: what to look at)",
        standing.len(),
        if standing.len() == 1 { "" } else { "s" },
        format::age(now - oldest)
    );
    let title = [Span::styled(words, theme.bad())];
    chart::heading(
        &title,
        Rect { height: 1, ..area },
        frame.buffer_mut(),
        theme,
    );
    for (y, alarm) in (area.y + 1..area.bottom()).zip(standing) {
        frame.render_widget(
            group_line(alarm, theme),
            Rect {
                y,
                height: 1,
                ..area
            },
        );
    }
}

/// `name value` pairs, names dim. What does not fit whole is left out, trouble last.
pub(super) struct Pairs {
    pairs: Vec<(bool, Vec<Span<'static>>)>,
    theme: Theme,
}

impl Pairs {
    pub(super) fn new(theme: Theme) -> Self {
        Self {
            pairs: Vec::new(),
            theme,
        }
    }

    pub(super) fn put(&mut self, name: &str, value: String, style: Style) {
        let name = Span::styled(format!("{name} "), self.theme.dim());
        self.pairs.push((
            false,
            vec![name, Span::styled(value, style), Span::raw("  ")],
        ));
    }

    pub(super) fn count(&mut self, name: &str, value: u64) {
        self.put(name, format::commas(value), Style::new());
    }

    /// A figure that should be 0; it stands first when it is not.
    pub(super) fn trouble(&mut self, name: &str, value: u64) {
        let style = if value > 0 {
            self.theme.bad()
        } else {
            Style::new()
        };
        self.put(name, format::commas(value), style);
        if let Some((urgent, _)) = self.pairs.last_mut() {
            *urgent = value > 0;
        }
    }

    /// What stands before the values.
    #[cfg(test)]
    pub(super) fn names(&self) -> Vec<String> {
        let names = self.pairs.iter().map(|(_, spans)| spans[0].content.trim());
        names.map(str::to_owned).collect()
    }

    /// Fills the lines of `area`.
    pub(super) fn render(mut self, frame: &mut Frame<'_>, area: Rect) {
        self.pairs.sort_by_key(|(urgent, _)| !urgent);
        let mut pairs = self.pairs.into_iter().map(|(_, spans)| spans).peekable();
        for y in area.y..area.bottom() {
            let mut spans = vec![Span::raw(" ")];
            let mut left = usize::from(area.width).saturating_sub(1);
            while let Some(pair) =
                pairs.next_if(|pair| pair.iter().map(Span::width).sum::<usize>() <= left + 2)
            {
                left = left.saturating_sub(pair.iter().map(Span::width).sum());
                spans.extend(pair);
            }
            frame.render_widget(
                Line::from(spans),
                Rect {
                    y,
                    height: 1,
                    ..area
                },
            );
        }
    }
}
