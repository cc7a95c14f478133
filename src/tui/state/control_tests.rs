//! What is typed, and what is sent.

use super::*;

fn settings() -> Settings {
    Settings {
        max_working: 100,
        working_ttl_seconds: 420,
        paused: true,
        ..Settings::default()
    }
}

fn dialog(control: Control) -> Dialog {
    let row = QueueRow {
        settings: settings(),
        title: "Show".into(),
        ..QueueRow::default()
    };
    Dialog::open(control, &[&row]).unwrap()
}

fn typed(dialog: &mut Dialog, text: &str) {
    text.chars().for_each(|c| dialog.type_char(c));
}

#[test]
fn a_value_and_a_reason_are_needed_before_confirming() {
    let mut dialog = dialog(Control::MaxWorking);
    dialog.accept_form();
    assert!(dialog.error.is_some(), "an empty value was taken");
    typed(&mut dialog, "0");
    dialog.accept_form();
    assert!(dialog.error.is_some(), "0 was taken");
    dialog.erase();
    typed(&mut dialog, "250");
    dialog.accept_form();
    assert_eq!((dialog.field, &dialog.stage), (Field::Reason, &Stage::Form));
    typed(&mut dialog, "  ");
    dialog.accept_form();
    assert!(
        dialog
            .error
            .as_deref()
            .is_some_and(|error| error.contains("reason"))
    );
    dialog.erase_all();
    typed(&mut dialog, "checkout is calm");
    dialog.accept_form();
    assert_eq!(dialog.stage, Stage::Confirm);
    assert_eq!(
        dialog.body(),
        Ok(json!({"maxWorking": 250, "reason": "checkout is calm"}))
    );
    assert_eq!(dialog.change(), "100 → 250");
}

#[test]
fn a_toggle_sends_the_opposite_of_what_is() {
    let mut dialog = dialog(Control::Pause);
    assert_eq!(dialog.heading(), "Resume");
    typed(&mut dialog, "checked");
    assert_eq!(
        dialog.body(),
        Ok(json!({"paused": false, "reason": "checked"}))
    );
}

#[test]
fn times_are_read_as_people_write_them() {
    let parse = |text| Control::WorkingTtl.parse(text, &settings());
    assert_eq!(parse("90"), Ok(json!(90)));
    assert_eq!(parse("7m"), Ok(json!(420)));
    assert_eq!(parse("1m 30s"), Ok(json!(90)));
    for bad in ["", "0", "soon", "-5", "10ms"] {
        assert!(parse(bad).is_err(), "{bad} was taken");
    }
}

#[test]
fn limits_may_be_none_and_factors_may_be_halves() {
    assert_eq!(
        Control::AdmissionsPerMinute.parse("none", &settings()),
        Ok(Value::Null)
    );
    assert_eq!(
        Control::QueueFactor.parse("1.5", &settings()),
        Ok(json!(1.5))
    );
    assert!(Control::QueueFactor.parse("nan", &settings()).is_err());
    assert_eq!(
        Control::PreQueue.parse("2026-12-24T18:00:00+09:00", &settings()),
        Ok(json!("2026-12-24T09:00:00Z"))
    );
}
