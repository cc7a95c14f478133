//! The table held against itself.

use super::*;

#[test]
fn no_key_means_two_things_in_one_place() {
    for context in Context::ALL {
        let mut seen: Vec<Chord> = Vec::new();
        for chord in of(context).flat_map(|binding| binding.chords) {
            assert!(
                !seen.contains(chord),
                "{} twice in {context:?}",
                chord.label()
            );
            seen.push(*chord);
        }
    }
}

#[test]
fn what_is_listed_is_what_is_done() {
    for context in Context::ALL {
        for binding in of(context) {
            for chord in binding.chords {
                let held = if chord.ctrl {
                    KeyModifiers::CONTROL
                } else {
                    KeyModifiers::NONE
                };
                let event = KeyEvent::new(chord.code, held);
                assert_eq!(
                    action(context, &event),
                    Some(binding.action),
                    "{} in {context:?}",
                    chord.label()
                );
            }
        }
    }
}

#[test]
fn every_context_has_a_way_out_and_says_so() {
    for context in Context::ALL {
        let exits = of(context)
            .filter(|binding| matches!(binding.action, Action::Back | Action::Quit))
            .filter(|binding| binding.footer.is_some());
        assert!(exits.count() > 0, "{context:?} shows no way out");
    }
}

#[test]
fn letters_are_text_only_where_one_types() {
    let p = KeyEvent::new(KeyCode::Char('p'), KeyModifiers::NONE);
    let shifted = KeyEvent::new(KeyCode::Char('P'), KeyModifiers::SHIFT);
    assert_eq!(
        action(Context::Detail, &p),
        Some(Action::Control(Control::Pause))
    );
    assert_eq!(text(Context::Detail, &p), None);
    assert_eq!(action(Context::Form, &p), None);
    assert_eq!(text(Context::Form, &p), Some('p'));
    assert_eq!(text(Context::Filter, &shifted), Some('P'));
    let leave = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(text(Context::Form, &leave), None);
    assert_eq!(action(Context::Form, &leave), Some(Action::Quit));
}

#[test]
fn a_capital_arrives_with_shift_held() {
    let reverse = KeyEvent::new(KeyCode::Char('R'), KeyModifiers::SHIFT);
    assert_eq!(
        action(Context::Overview, &reverse),
        Some(Action::SortReverse)
    );
}
