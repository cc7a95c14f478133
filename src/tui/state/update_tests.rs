//! The journey through the screens, key by key.

use crossterm::event::KeyCode::{self, Char, Enter, Esc};
use serde_json::json;

use super::control::Stage;
use super::fixtures::*;
use super::*;

#[test]
fn opening_a_queue_asks_for_its_details_and_leaving_stops_that() {
    let mut state = live(3);
    let effects = press(&mut state, Enter);
    assert_eq!(
        effects,
        [
            Effect::Read {
                detail: Some(id(1))
            },
            Effect::ReadAudit
        ]
    );
    assert_eq!(state.screen, Screen::Detail(id(1)));
    press(&mut state, Char('l'));
    assert_eq!(
        (state.screen, state.detail()),
        (Screen::Alarms, Some(id(1)))
    );
    press(&mut state, Esc);
    assert_eq!(press(&mut state, Esc), [Effect::Read { detail: None }]);
    assert_eq!(state.screen, Screen::Overview);
}

#[test]
fn next_and_previous_walk_the_table_as_it_is_sorted() {
    let mut state = live(0);
    press(&mut state, Enter);
    press(&mut state, Char('n'));
    assert_eq!(
        state.screen,
        Screen::Detail(id(4)),
        "5,120 registered stand second"
    );
    press(&mut state, Char('N'));
    assert_eq!(state.screen, Screen::Detail(id(1)));
}

#[test]
fn pausing_takes_a_reason_and_a_yes() {
    let mut state = live(1);
    press(&mut state, Enter);
    press(&mut state, Char('p'));
    assert_eq!(press(&mut state, Enter), [], "no reason, no confirmation");
    type_in(&mut state, "checkout errors");
    assert_eq!(press(&mut state, Enter), []);
    assert_eq!(state.context(), Context::Confirm);
    assert_eq!(
        press(&mut state, Enter),
        [],
        "Enter alone, pressed twice, must not confirm"
    );
    let body = json!({"paused": true, "reason": "checkout errors"});
    assert_eq!(
        press(&mut state, Char('y')),
        [Effect::Change {
            queues: vec![(id(1), "The Phantom of the Opera".into())],
            body
        }]
    );
    assert_eq!(press(&mut state, Char('y')), [], "sent once");
    let effects = state.apply(at(2), Event::Changed(Ok("kept".into())));
    assert_eq!(
        effects[0],
        Effect::Read {
            detail: Some(id(1))
        }
    );
    assert_eq!(
        state.dialog.as_ref().map(|dialog| dialog.stage.clone()),
        Some(Stage::Done(Ok("kept".into())))
    );
    press(&mut state, Enter);
    assert_eq!(state.context(), Context::Detail);
}

#[test]
fn marked_queues_are_changed_in_one_confirmed_step() {
    let mut state = live(1);
    let mut shown = Vec::new();
    for words in ["swan", "cats"] {
        press(&mut state, Char('/'));
        type_in(&mut state, words);
        press(&mut state, Enter);
        press(&mut state, Char('*'));
        shown.extend((state.table.rows(state.queues()).iter()).map(|row| row.performance_id));
        press(&mut state, Esc);
    }
    assert_eq!(shown.len(), 2, "{shown:?}");
    assert_eq!(
        state.table.marked.len(),
        shown.len(),
        "the filter goes, the marks stay"
    );
    press(&mut state, Char('p'));
    let dialog = state.dialog.as_ref().unwrap();
    assert!(
        dialog
            .subject()
            .starts_with(&format!("{} queues: ", shown.len()))
    );
    assert_eq!(dialog.heading(), "Pause", "some are not paused yet");
    type_in(&mut state, "the hall is on fire");
    press(&mut state, Enter);
    let effects = press(&mut state, Char('y'));
    let [Effect::Change { queues, body }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!(body["paused"], true);
    let mut changed: Vec<_> = queues.iter().map(|(id, _)| *id).collect();
    changed.sort();
    shown.sort();
    assert_eq!(changed, shown);
    state.apply(at(2), Event::Changed(Ok("All are changed.".into())));
    press(&mut state, Enter);
    press(&mut state, Esc);
    assert!(state.table.marked.is_empty(), "Esc takes the marks away");

    // One by one, and without a mark the queue under the cursor.
    press(&mut state, Char(' '));
    press(&mut state, Char(' '));
    assert_eq!(state.table.marked.len(), 2);
    press(&mut state, Esc);
    press(&mut state, Char('m'));
    assert_eq!(state.dialog.as_ref().unwrap().queues.len(), 1);
}

#[test]
fn no_at_the_confirmation_changes_nothing() {
    let mut state = live(1);
    press(&mut state, Enter);
    press(&mut state, Char('d'));
    type_in(&mut state, "why");
    press(&mut state, Enter);
    assert_eq!(press(&mut state, Char('n')), []);
    assert_eq!(state.context(), Context::Form);
    assert_eq!(press(&mut state, Esc), []);
    assert_eq!(state.context(), Context::Detail);
}

#[test]
fn an_outcome_that_comes_after_closing_is_a_line() {
    let mut state = live(1);
    press(&mut state, Enter);
    press(&mut state, Char('p'));
    type_in(&mut state, "why");
    press(&mut state, Enter);
    press(&mut state, Char('y'));
    press(&mut state, Esc);
    state.apply(at(2), Event::Changed(Err("FORBIDDEN".into())));
    assert_eq!(
        state.flash.as_ref().map(|(_, words)| words.as_str()),
        Some("not changed: FORBIDDEN")
    );
    state.apply(at(10), Event::Tick);
    assert_eq!(state.flash, None);
}

#[test]
fn read_only_and_lost_servers_offer_no_change() {
    for lost in [false, true] {
        let mut state = live(1);
        state.read_only = !lost;
        press(&mut state, Enter);
        if lost {
            lose(&mut state, 2);
        }
        for key in ['p', 'd', 'm', 'a', 'w', 'c', 't', 'f', 'o'] {
            press(&mut state, Char(key));
            assert!(state.dialog.is_none(), "{key} opened a dialog");
            assert!(state.flash.is_some());
        }
    }
}

#[test]
fn typing_a_filter_is_no_command() {
    let mut state = live(0);
    press(&mut state, Char('/'));
    type_in(&mut state, "qcats");
    assert_eq!(state.table.filter, "qcats", "q is a letter here");
    for _ in 0..5 {
        press(&mut state, KeyCode::Backspace);
    }
    type_in(&mut state, "cats");
    press(&mut state, Enter);
    assert_eq!(state.context(), Context::Overview);
    assert_eq!(
        press(&mut state, Enter)[0],
        Effect::Read {
            detail: Some(id(3))
        }
    );
    press(&mut state, Esc);
    press(&mut state, Esc);
    assert_eq!(state.table.filter, "");
}

#[test]
fn a_lost_server_keeps_its_time_and_the_figures_and_comes_back() {
    let mut state = live(5);
    lose(&mut state, 10);
    lose(&mut state, 14);
    let Connection::Lost { since, .. } = &state.connection else {
        panic!("not lost")
    };
    assert_eq!(*since, at(10));
    assert!(state.overview.is_some());
    assert_eq!(state.alarms.standing()[0].code, "LOST_SERVER");
    assert_eq!(
        press(&mut state, Char('r')),
        [Effect::Read { detail: None }, Effect::ReadAudit]
    );
    for second in 15..25 {
        read(&mut state, second, sale(second));
    }
    assert!(state.is_live() && state.alarms.standing().is_empty());
}

#[test]
fn an_alarm_leads_to_its_queue() {
    let mut state = live(1);
    for second in 2..10 {
        let mut overview = sale(second);
        overview.queues[1].overdue_places = 3;
        read(&mut state, second, overview);
    }
    press(&mut state, Char('l'));
    press(&mut state, Enter);
    assert_eq!(state.screen, Screen::Detail(id(2)));
}

#[test]
fn a_queue_that_disappears_takes_nothing_with_it() {
    let mut state = live(1);
    press(&mut state, Enter);
    let mut overview = sale(2);
    overview.queues.clear();
    read(&mut state, 2, overview);
    for key in ['p', 'n', 'N'] {
        press(&mut state, Char(key));
    }
    press(&mut state, Esc);
    assert_eq!(press(&mut state, Enter), []);
}

#[test]
fn ctrl_c_leaves_from_everywhere() {
    use crossterm::event::{KeyEvent, KeyModifiers};
    for keys in ["", "?", "/abc", "l"] {
        let mut state = live(1);
        type_in(&mut state, keys);
        let leave = KeyEvent::new(Char('c'), KeyModifiers::CONTROL);
        assert_eq!(
            state.apply(at(2), Event::Key(leave)),
            [Effect::Quit],
            "after {keys:?}"
        );
    }
}
