//! The tests above have teeth: each known defect, switched on, is caught.

use std::process::Command;

/// Runs one test of this same binary with a defect switched on; true when it fails.
fn caught(mutant: &str, test: &str) -> bool {
    let status = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--quiet"])
        .env("TICKETPING_MUTANT", mutant)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
    !status.success()
}

macro_rules! caught {
    ($name:ident, $mutant:literal, $test:literal) => {
        #[test]
        fn $name() {
            assert!(
                caught($mutant, concat!("booking::", $test)),
                "{} lives",
                $mutant
            );
        }
    };
}

caught!(
    no_unique_index,
    "orders.no_unique_index",
    "recovery::postgres_has_the_last_word"
);
caught!(
    seats_freed_before_final,
    "orders.free_before_final",
    "money::a_hold_that_is_being_paid_waits_for_what_is_final"
);
caught!(
    expired_confirmed_blindly,
    "orders.confirm_expired",
    "money::paid_too_late_and_the_limit_is_used_up_goes_back"
);
// Either guard alone would hold: both are taken away.
caught!(
    seat_check_skipped,
    "orders.skip_seat_check,orders.no_unique_index",
    "holds::one_seat_and_five_hundred_buyers"
);
caught!(
    limit_skipped,
    "orders.skip_limit",
    "holds::the_limit_holds_under_parallel_requests"
);
