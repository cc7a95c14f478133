//! Places where a test can make the process die.
//!
//! `TICKETPING_FAILPOINT=name[:nth[:panic]]` aborts the process when the named point is passed for
//! the nth time (default: the first), or panics there. It does nothing in a release build.
//!
//! Every name stands in the list here; the macro refuses others at compile time, so that
//! coverage is a count.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every commit and I/O edge at which the process can be made to die.
pub const FAILPOINTS: &[&str] = &[
    "events.before_delivery",
    "events.after_delivery",
    "events.after_mark",
    "kafka.before_handle",
    "kafka.after_handle",
    "kafka.after_dead_letter",
    "payments.before_attempt_commit",
    "payments.after_attempt_commit",
    "payments.after_stripe_create",
    "payments.after_result_commit",
    "payments.before_webhook_insert",
    "payments.after_webhook_insert",
    "payments.before_settle_commit",
    "payments.after_settle_commit",
    "payments.before_cancel_commit",
    "payments.after_cancel_commit",
    "payments.after_stripe_cancel",
    "payments.before_refund_request_commit",
    "payments.after_refund_request_commit",
    "payments.after_stripe_refund",
    "payments.before_refund_result_commit",
    "payments.after_refund_result_commit",
    "orders.before_commit",
    "orders.after_commit",
    "orders.after_hold",
    "orders.step_before_commit",
    "orders.step_after_commit",
    "orders.reacquire_after_hold",
    "top.draw_help",
];

struct Armed {
    name: String,
    nth: u64,
    panics: bool,
    passed: AtomicU64,
}

/// Called through [`failpoint!`](crate::failpoint).
#[doc(hidden)]
pub fn hit(name: &str) {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let value = std::env::var("TICKETPING_FAILPOINT").ok()?;
        let mut parts = value.split(':');
        Some(Armed {
            name: parts.next()?.to_owned(),
            nth: parts.next().and_then(|nth| nth.parse().ok()).unwrap_or(1),
            panics: parts.next() == Some("panic"),
            passed: AtomicU64::new(0),
        })
    });
    let Some(armed) = armed else { return };
    if armed.name == name && armed.passed.fetch_add(1, Ordering::SeqCst) + 1 == armed.nth {
        assert!(!armed.panics, "failpoint {name}: panicking");
        eprintln!("failpoint {name}: aborting");
        std::process::abort();
    }
}

#[doc(hidden)]
pub const fn listed(list: &[&str], name: &str) -> bool {
    let mut at = 0;
    while at < list.len() {
        if same(list[at].as_bytes(), name.as_bytes()) {
            return true;
        }
        at += 1;
    }
    false
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

/// Dies here when a test asks for it; nothing at all in a release build.
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {{
        const {
            assert!(
                $crate::platform::failpoint::listed($crate::platform::failpoint::FAILPOINTS, $name),
                "add this failpoint to platform::failpoint::FAILPOINTS"
            );
        }
        if cfg!(debug_assertions) {
            $crate::platform::failpoint::hit($name);
        }
    }};
}
