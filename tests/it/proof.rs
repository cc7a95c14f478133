//! Each point at which a process can be made to die is swept. Counted, so that the list does not
//! grow without its test. (Whether the tests would notice a defect is `tests/mutants`.)

use ticketping::platform::failpoint::FAILPOINTS;

use crate::{kafka_events, payments};

/// A sweep fails when one of its points is not passed; here, when a point is in none.
#[test]
fn every_failpoint_is_swept() {
    let mut swept = [
        payments::crashes::of_a_purchase(),
        payments::crashes::of_a_cancellation(),
        payments::crashes::of_a_hold(),
        payments::crashes::of_a_late_payment(),
        kafka_events::crashes::points(),
        // `top::a_panic_gives_the_terminal_back_and_is_seen`
        vec!["top.draw_help"],
    ]
    .concat();
    let mut all = FAILPOINTS.to_vec();
    swept.sort_unstable();
    all.sort_unstable();
    assert_eq!(swept, all);
}
