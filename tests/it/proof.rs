//! The tests have teeth: each known defect, switched on, is caught by the test that names its
//! invariant; and each point at which a process can be made to die is swept. Both are counted, so
//! that neither list grows without its test.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};

use ticketping::platform::failpoint::{FAILPOINTS, MUTANTS};

use crate::{kafka_events, payments};

/// Runs one test of this same binary with defects switched on; true when it fails.
fn caught(mutants: &str, test: &str) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact"])
        .env("TICKETPING_MUTANT", mutants)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        said.contains("running 1 test"),
        "there is no test {test}: {said}"
    );
    !output.status.success()
}

macro_rules! caught {
    ($($name:ident: $mutants:literal by $test:literal,)*) => {
        $(
            #[test]
            fn $name() {
                assert!(caught($mutants, $test), "{} lives", $mutants);
            }
        )*

        /// Defects that a test of this module switches on.
        const CAUGHT: &[&str] = &[$($mutants),*];
    };
}

caught! {
    no_unique_index: "orders.no_unique_index"
        by "booking::recovery::postgres_has_the_last_word",
    seats_freed_before_final: "orders.free_before_final"
        by "booking::money::a_hold_that_is_being_paid_waits_for_what_is_final",
    expired_confirmed_blindly: "orders.confirm_expired"
        by "booking::money::paid_too_late_and_the_limit_is_used_up_goes_back",
    // Either guard alone would hold: both are taken away.
    seat_check_skipped: "orders.skip_seat_check,orders.no_unique_index"
        by "booking::holds::one_seat_and_five_hundred_buyers",
    limit_skipped: "orders.skip_limit"
        by "booking::holds::the_limit_holds_under_parallel_requests",
    inbox_skipped: "inbox.skip"
        by "events::what_is_handed_over_twice_acts_once",
    marked_before_delivery: "outbox.mark_before_delivery"
        by "events::a_store_away_holds_its_key_back_and_nobody_else",
    another_key_for_the_same_attempt: "payments.random_stripe_key"
        by "payments::crashes::the_intent_of_a_dead_process_is_found_again",
    acknowledged_before_kept: "payments.ack_before_insert"
        by "payments::a_webhook_that_was_answered_is_kept_whatever_dies",
    released_before_cancelled: "payments.release_before_cancel"
        by "payments::the_end_of_a_payment_is_said_once_stripe_has_said_it",
}

/// Switched on by a test of their own, in a process that it starts.
const CAUGHT_ELSEWHERE: &[&str] = &["kafka.store_before_effect", "top.panic_in_help"];

#[test]
fn every_mutant_has_a_test_that_catches_it() {
    let caught: BTreeSet<&str> = (CAUGHT.iter().chain(CAUGHT_ELSEWHERE))
        .flat_map(|names| names.split(','))
        .collect();
    assert_eq!(caught, MUTANTS.iter().copied().collect());
}

/// A sweep fails when one of its points is not passed; here, when a point is in none.
#[test]
fn every_failpoint_is_swept() {
    let mut swept = [
        payments::crashes::of_a_purchase(),
        payments::crashes::of_a_cancellation(),
        payments::crashes::of_a_hold(),
        payments::crashes::of_a_late_payment(),
        kafka_events::crashes::points(),
    ]
    .concat();
    let mut all = FAILPOINTS.to_vec();
    swept.sort_unstable();
    all.sort_unstable();
    assert_eq!(swept, all);
}
