//! Faults on request. One grammar serves the `Sandbox-Fault` header, the
//! `sandbox_fault` metadata of an intent and the standing profile of a chaos run:
//!
//! ```text
//! [operation/]name[=value][@probability], ...
//! confirm/error_after, webhook_drop@0.1, delay=300ms@0.5
//! ```
//!
//! Without an operation (`create`, `confirm`, `capture`, `cancel`, `refund`,
//! `update`, `authenticate`, `settle`, `read`) a fault meets every call. Each
//! fault is one that a payment provider has shown to somebody.

use std::fmt;
use std::time::Duration;

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Confirm,
    Capture,
    Cancel,
    Refund,
    Authenticate,
    Settle,
    Read,
}

impl Operation {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "create" => Self::Create,
            "update" => Self::Update,
            "confirm" => Self::Confirm,
            "capture" => Self::Capture,
            "cancel" => Self::Cancel,
            "refund" => Self::Refund,
            "authenticate" => Self::Authenticate,
            "settle" => Self::Settle,
            "read" => Self::Read,
            _ => return None,
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// The answer comes late, after the commit.
    Delay(Duration),
    /// An error instead of any effect (default 503).
    ErrorBefore(u16),
    /// The effect is committed and the answer lost at the edge: an error (default
    /// 500) that asking again with the same key does not repeat.
    ErrorAfter(u16),
    /// The effect is committed and the error itself is what the key remembers:
    /// Stripe's documented behaviour after a 500.
    ErrorStored(u16),
    /// Committed, and never answered.
    Hang,
    /// Never answered, and nothing done.
    HangBefore,
    /// Unknown fields and another `api_version`, in answers and events.
    Skew,
    /// The payment stays `processing` for so long before it settles.
    Processing(Duration),
    /// A refund stays `pending` for so long before it ends.
    RefundPending(Duration),
    /// A refund succeeds at first and then fails.
    RefundFail,
    WebhookDelay(Duration),
    /// Each event so many times (default 2).
    WebhookDuplicate(u32),
    /// Events of one call arrive last first, and after those of the next call.
    WebhookReorder,
    /// Never delivered.
    WebhookDrop,
    /// The first so many attempts are lost on the way (default 1), then retried.
    WebhookLose(u32),
    /// A second, wrong `v1` ahead of the right one, as during a rotation.
    WebhookTwoSignatures,
    /// Signed with a secret that is not ours.
    WebhookForge,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    pub only: Option<Operation>,
    pub fault: Fault,
    pub probability: f64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFault(String);

impl fmt::Display for BadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a fault of the sandbox: '{}'", self.0)
    }
}

impl std::error::Error for BadFault {}

pub fn parse(text: &str) -> Result<Vec<Term>, BadFault> {
    text.split(',')
        .map(str::trim)
        .filter(|term| !term.is_empty())
        .map(|term| parse_term(term).ok_or_else(|| BadFault(term.to_owned())))
        .collect()
}

fn parse_term(text: &str) -> Option<Term> {
    let (rest, probability) = match text.split_once('@') {
        Some((rest, p)) => (rest, p.trim().parse().ok()?),
        None => (text, 1.0),
    };
    if !(0.0..=1.0).contains(&probability) {
        return None;
    }
    let (only, rest) = match rest.split_once('/') {
        Some((operation, rest)) => (Some(Operation::parse(operation.trim())?), rest),
        None => (None, rest),
    };
    let (name, value) = match rest.split_once('=') {
        Some((name, value)) => (name.trim(), Some(value.trim())),
        None => (rest.trim(), None),
    };
    Some(Term {
        only,
        fault: parse_fault(name, value)?,
        probability,
    })
}

fn parse_fault(name: &str, value: Option<&str>) -> Option<Fault> {
    // A fault asks for patience, not for ever: a minute outlasts any client.
    let duration = |default_ms| match value {
        None => Some(Duration::from_millis(default_ms)),
        Some(text) => humantime::parse_duration(text)
            .ok()
            .filter(|d| *d <= Duration::from_secs(600)),
    };
    let status = |default| match value {
        None => Some(default),
        Some(text) => text.parse().ok().filter(|s| (400..600).contains(s)),
    };
    let count = |default| match value {
        None => Some(default),
        Some(text) => text.parse().ok().filter(|n| (1..=20).contains(n)),
    };
    Some(match name {
        "delay" => Fault::Delay(duration(500)?),
        "error_before" => Fault::ErrorBefore(status(503)?),
        "error_after" => Fault::ErrorAfter(status(500)?),
        "error_stored" => Fault::ErrorStored(status(500)?),
        "hang" => Fault::Hang,
        "hang_before" => Fault::HangBefore,
        "skew" => Fault::Skew,
        "processing" => Fault::Processing(duration(2000)?),
        "refund_pending" => Fault::RefundPending(duration(2000)?),
        "refund_fail" => Fault::RefundFail,
        "webhook_delay" => Fault::WebhookDelay(duration(2000)?),
        "webhook_duplicate" => Fault::WebhookDuplicate(count(2)?),
        "webhook_reorder" => Fault::WebhookReorder,
        "webhook_drop" => Fault::WebhookDrop,
        "webhook_lose" => Fault::WebhookLose(count(1)?),
        "webhook_two_signatures" => Fault::WebhookTwoSignatures,
        "webhook_forge" => Fault::WebhookForge,
        _ => return None,
    })
}

/// The faults that one call meets, put together from all who asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    pub delay: Option<Duration>,
    pub error_before: Option<u16>,
    pub error_after: Option<u16>,
    pub error_stored: Option<u16>,
    pub hang: bool,
    pub hang_before: bool,
    pub skew: bool,
    pub processing: Option<Duration>,
    pub refund_pending: Option<Duration>,
    pub refund_fail: bool,
    pub webhook: WebhookFaults,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct WebhookFaults {
    pub delay: Option<Duration>,
    pub copies: Option<u32>,
    pub reorder: bool,
    pub drop: bool,
    pub lose: u32,
    pub two_signatures: bool,
    pub forge: bool,
}

impl Faults {
    fn add(&mut self, fault: &Fault) {
        match *fault {
            Fault::Delay(d) => self.delay = Some(d),
            Fault::ErrorBefore(s) => self.error_before = Some(s),
            Fault::ErrorAfter(s) => self.error_after = Some(s),
            Fault::ErrorStored(s) => self.error_stored = Some(s),
            Fault::Hang => self.hang = true,
            Fault::HangBefore => self.hang_before = true,
            Fault::Skew => self.skew = true,
            Fault::Processing(d) => self.processing = Some(d),
            Fault::RefundPending(d) => self.refund_pending = Some(d),
            Fault::RefundFail => self.refund_fail = true,
            Fault::WebhookDelay(d) => self.webhook.delay = Some(d),
            Fault::WebhookDuplicate(n) => self.webhook.copies = Some(n),
            Fault::WebhookReorder => self.webhook.reorder = true,
            Fault::WebhookDrop => self.webhook.drop = true,
            Fault::WebhookLose(n) => self.webhook.lose = n,
            Fault::WebhookTwoSignatures => self.webhook.two_signatures = true,
            Fault::WebhookForge => self.webhook.forge = true,
        }
    }
}

/// Draws what happens to calls. Seeded, so that a run can be had again as far as
/// the order of calls allows.
#[derive(Debug)]
pub struct Dice(ChaCha8Rng);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    pub fn cast(&mut self, terms: &[Term], operation: Operation, into: &mut Faults) {
        for term in terms {
            if term.only.is_none_or(|only| only == operation)
                && (term.probability >= 1.0 || self.0.random_bool(term.probability))
            {
                into.add(&term.fault);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_reads_what_its_doc_says() {
        let terms = parse("confirm/error_after, webhook_drop@0.1, delay=300ms@0.5").unwrap();
        assert_eq!(
            terms,
            [
                Term {
                    only: Some(Operation::Confirm),
                    fault: Fault::ErrorAfter(500),
                    probability: 1.0
                },
                Term {
                    only: None,
                    fault: Fault::WebhookDrop,
                    probability: 0.1
                },
                Term {
                    only: None,
                    fault: Fault::Delay(Duration::from_millis(300)),
                    probability: 0.5
                },
            ]
        );
        for bad in [
            "nonsense",
            "delay=soon",
            "hang@2",
            "pay/hang",
            "error_before=200",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert_eq!(parse(" , ").unwrap(), []);
    }

    #[test]
    fn dice_keep_to_their_odds_and_their_operation() {
        let terms = parse("confirm/webhook_drop@0.3").unwrap();
        let mut dice = Dice::new(7);
        let mut dropped = 0;
        for _ in 0..10_000 {
            let mut faults = Faults::default();
            dice.cast(&terms, Operation::Confirm, &mut faults);
            dropped += u32::from(faults.webhook.drop);
            let mut other = Faults::default();
            dice.cast(&terms, Operation::Create, &mut other);
            assert_eq!(other, Faults::default());
        }
        assert!((2_800..3_200).contains(&dropped), "{dropped}");
    }
}
