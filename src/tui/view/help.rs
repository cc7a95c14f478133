//! Every key of every screen, from the one table; then what each column and figure means.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::format;
use crate::tui::keys::{self, Binding, Context};
use crate::tui::state::State;
use crate::tui::theme::Theme;

/// What the screens show, by the word that stands there.
pub(super) const FIGURES: [(&str, &[(&str, &str)]); 3] = [
    (
        "Columns",
        &[
            (
                "PERFORMANCE",
                "the title; `!` when an alarm is about it, `*` when it is marked",
            ),
            (
                "PHASE",
                "of the queue; upper case is what an operator did or must see",
            ),
            ("WAITING", "people in line, and registered for the draw"),
            ("TREND", "how WAITING went since top was started"),
            ("WORKING", "whose turn it is, of as many as may at once"),
            ("ADM/M", "admitted in the last minute"),
            ("NOSH", "no-shows: admitted, and never came"),
            ("WAIT", "the longest that a newcomer is told to wait"),
            ("LEFT", "seats neither held nor sold"),
            ("HELD", "seats that wait for payment"),
            (
                "EXP1M",
                "holds that end within a minute, unless they are paid",
            ),
            ("SOLD", "seats that are paid"),
        ],
    ),
    (
        "One queue",
        &[
            (
                "served",
                "numbers admitted so far, of the numbers given out",
            ),
            ("wait", "what a newcomer is told"),
            ("done", "turns that ended in an order"),
            ("no-shows", "admitted, and never came"),
            ("lapsed", "turns that ended unused"),
            ("left", "people who left the line"),
            ("working", "whose turn it is, of as many as may at once"),
            ("seats", "seats neither held nor sold"),
            ("held", "seats that wait for payment"),
            ("sold", "seats that are paid"),
            ("orders", "orders that wait for payment"),
            (
                "epoch",
                "1, and one more each time Redis lost the queue; places are kept",
            ),
        ],
    ),
    (
        "Server",
        &[
            ("req/s", "requests a second, of all instances"),
            ("5xx", "answered with a server error, of all"),
            ("4xx", "answered with a client error, of all"),
            ("p50", "half are answered within this"),
            ("p99", "99 of 100 are answered within this"),
            ("in flight", "requests that are being answered"),
            ("memory", "resident, of the instance that answers"),
            ("outbox", "events not yet sent, and the age of the oldest"),
            ("lag", "events sent and not yet handled"),
            (
                "dead",
                "events that could not be handled: ticketping events",
            ),
            ("paying", "payments that are open"),
            ("paid", "payments that succeeded"),
            ("declined", "payments that failed"),
            ("refunds", "made, plus those that are under way"),
            ("unknown", "payments whose outcome Stripe has not told"),
            ("alarms", "open alarms of the roles: what needs a person"),
            ("stuck", "refunds that need a person"),
        ],
    ),
];

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
    for (title, figures) in FIGURES {
        lines.push(Line::styled(format!(" {title}"), theme.head()));
        lines.extend((figures.iter()).map(|(name, words)| entry(name, words, width, theme)));
    }
    lines
}

fn line(binding: &Binding, width: usize, theme: Theme) -> Line<'static> {
    entry(&binding.label(), binding.help, width, theme)
}

fn entry(name: &str, words: &str, width: usize, theme: Theme) -> Line<'static> {
    let help = format::fit(words, width.saturating_sub(17), theme.ellipsis());
    let name = theme.text(name);
    let pad = " ".repeat(13usize.saturating_sub(format::width(&name)));
    Line::from(vec![
        Span::styled(format!("  {name}{pad} "), theme.strong()),
        Span::raw(help),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tui::{
        state::{fixtures::sale, update::HELP_LINES_MAX},
        view::{detail, header, panels::Pairs},
    };

    #[test]
    fn every_figure_is_explained() {
        let theme = Theme {
            color: true,
            ascii: false,
        };
        let mut overview = sale(90);
        overview.payments.unknown = 1;
        overview.open_alarms = 1;
        overview.events.kafka_lag = Some(1);
        let of_server = [
            header::traffic(&overview, theme),
            header::events(&overview, theme),
        ];
        let of_server = of_server.iter().flat_map(Pairs::names);
        let of_queue = detail::figures_of(&overview.queues[0], theme).names();
        for (section, shown) in [(1, of_queue), (2, of_server.collect())] {
            let (title, explained) = FIGURES[section];
            let explained: Vec<&str> = explained.iter().map(|(name, _)| *name).collect();
            for name in &shown {
                assert!(
                    explained.contains(&name.as_str()),
                    "{title}: {name} is not explained"
                );
            }
            assert_eq!(shown.len(), explained.len(), "{title}: {shown:?}");
        }
    }

    #[test]
    fn all_of_it_can_be_scrolled_to() {
        let theme = Theme {
            color: true,
            ascii: false,
        };
        let all = isize::try_from(lines(80, theme).len()).unwrap();
        assert_eq!(all, HELP_LINES_MAX, "lines");
    }

    #[test]
    fn every_explanation_fits_on_eighty_columns() {
        for (name, words) in FIGURES.iter().flat_map(|(_, figures)| *figures) {
            assert!(words.len() <= 80 - 17, "{name}: {words}");
        }
    }
}
