//! Frames. Each state at the sizes that matter, as text; NO_COLOR and ASCII held
//! against what they promise.

use crossterm::event::KeyCode::{Char, Enter};
use ratatui::style::Color;

use crate::tui::capture;
use crate::tui::state::State;
use crate::tui::state::fixtures::*;
use crate::tui::theme::Theme;

const RICH: Theme = Theme {
    color: true,
    ascii: false,
};
const BARE: Theme = Theme {
    color: false,
    ascii: true,
};
const SIZES: [(u16, u16); 2] = [(80, 24), (120, 40)];

fn shot(state: &State, (width, height): (u16, u16)) -> String {
    capture::text(&capture::frame(state, RICH, width, height))
}

/// Named states, made by keys as an operator would.
fn states() -> Vec<(&'static str, State)> {
    let detail = || {
        let mut state = live(90);
        press(&mut state, Enter);
        state
    };
    let mut list = vec![
        ("connecting", new_state()),
        ("overview", live(90)),
        ("detail", detail()),
    ];
    let mut state = live(90);
    press(&mut state, Char('/'));
    type_in(&mut state, "cats");
    list.push(("filter", state));
    let mut state = live(30);
    for second in 31..45 {
        let mut overview = redis_down(sale(second));
        overview.queues[1].overdue_places = 3;
        read(&mut state, second, overview);
    }
    list.push(("alarms-standing", state));
    let mut state = live(30);
    for second in 31..45 {
        read(&mut state, second, redis_down(sale(second)));
    }
    for second in 45..60 {
        let mut overview = sale(second);
        overview.queues[1].overdue_places = 3;
        read(&mut state, second, overview);
    }
    press(&mut state, Char('l'));
    list.push(("alarm-log", state));
    let mut state = detail();
    press(&mut state, Char('m'));
    type_in(&mut state, "250");
    press(&mut state, Enter);
    type_in(&mut state, "checkout is calm");
    list.push(("form", state));
    let mut state = detail();
    press(&mut state, Char('p'));
    type_in(&mut state, "errors at checkout");
    press(&mut state, Enter);
    list.push(("confirm", state));
    let mut state = live(20);
    lose(&mut state, 32);
    state.apply(at(34), crate::tui::state::Event::Tick);
    list.push(("lost", state));
    let mut state = new_state();
    lose(&mut state, 1);
    list.push(("never-found", state));
    let mut state = live(5);
    press(&mut state, Char('?'));
    list.push(("help", state));
    let mut state = detail();
    state.read_only = true;
    list.push(("read-only", state));
    let mut empty = sale(0);
    empty.queues.clear();
    let mut state = new_state();
    read(&mut state, 0, empty);
    list.push(("no-queues", state));
    list
}

#[test]
fn every_state_at_every_size() {
    for (name, state) in states() {
        for size in SIZES {
            insta::assert_snapshot!(format!("{name}-{}x{}", size.0, size.1), shot(&state, size));
        }
    }
}

#[test]
fn too_small_says_so() {
    let state = live(1);
    insta::assert_snapshot!(shot(&state, (40, 6)), @r"

      40x6 is too small
    needs 60x16; q quits
    ");
    for (width, height) in [(1, 1), (2, 200), (59, 16), (60, 15)] {
        assert!(
            !shot(&state, (width, height)).contains("live"),
            "{width}x{height}"
        );
    }
}

#[test]
fn no_size_breaks_any_screen() {
    for (name, state) in states() {
        for width in [60, 71, 80, 101, 119, 200] {
            for height in [16, 19, 24, 31, 33, 60] {
                let frame = capture::frame(&state, RICH, width, height);
                assert_eq!(
                    (frame.area.width, frame.area.height),
                    (width, height),
                    "{name}"
                );
            }
        }
    }
}

#[test]
fn without_colour_and_without_utf8_nothing_is_lost() {
    for (name, state) in states() {
        let bare = capture::frame(&state, BARE, 80, 24);
        for cell in bare.content() {
            assert!(
                matches!(cell.fg, Color::Reset),
                "{name} colours {:?}",
                cell.symbol()
            );
            assert!(matches!(cell.bg, Color::Reset), "{name}");
            assert!(cell.symbol().is_ascii(), "{name} draws {:?}", cell.symbol());
        }
    }
    let mut state = live(3);
    read(&mut state, 4, redis_down(sale(4)));
    let text = capture::text(&capture::frame(&state, BARE, 120, 40));
    for words in ["X redis DOWN", "STORE_DOWN", "PAUSED", "100/100", ">The"] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
}

#[test]
fn backgrounds_are_left_to_the_terminal() {
    for (name, state) in states() {
        let frame = capture::frame(&state, RICH, 120, 40);
        for cell in frame.content() {
            assert_eq!(cell.bg, Color::Reset, "{name}");
            assert!(
                matches!(
                    cell.fg,
                    Color::Reset
                        | Color::Red
                        | Color::Green
                        | Color::Blue
                        | Color::Cyan
                        | Color::Magenta
                ),
                "{name} uses {:?}, which is not sure to be seen on light and dark",
                cell.fg
            );
        }
    }
}

#[test]
fn the_footer_tells_the_keys_of_the_place() {
    for (name, state) in states() {
        let text = shot(&state, (120, 40));
        let last = text.lines().last().unwrap().to_owned();
        for binding in crate::tui::keys::of(state.context()) {
            let shown = binding
                .footer
                .map(|word| format!("{} {word}", binding.chords[0].label()));
            let hidden = state.read_only && binding.changes_something();
            if let Some(shown) = shown {
                assert_eq!(
                    last.contains(&shown),
                    !hidden,
                    "{name}: {shown:?} in {last:?}"
                );
            }
        }
    }
}

#[test]
fn the_help_lists_every_key_of_every_screen() {
    let mut state = live(1);
    press(&mut state, Char('?'));
    let text = shot(&state, (160, 60));
    for binding in crate::tui::keys::BINDINGS {
        assert!(
            text.contains(&binding.label()),
            "{} is missing",
            binding.label()
        );
        assert!(
            text.contains(&binding.help[..binding.help.len().min(40)]),
            "{} is missing",
            binding.help
        );
    }
    // In a small terminal it scrolls to its end.
    for _ in 0..20 {
        press(&mut state, crossterm::event::KeyCode::PageDown);
    }
    assert!(shot(&state, (80, 24)).contains("refunds that need a person"));
}

#[test]
fn the_svg_has_the_words_and_is_well_formed() {
    let svg = capture::svg(&capture::frame(&live(30), RICH, 120, 36));
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert!(svg.contains("Phantom") && svg.contains("PAUSED"));
    assert_eq!(
        svg.matches("<text ").count(),
        svg.matches("</text>").count()
    );
}
