//! The life of a PaymentIntent as a total, pure function: every status against
//! every action, without a wildcard, so that a new status or action does not
//! compile until each meeting is decided.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    RequiresPaymentMethod,
    RequiresConfirmation,
    RequiresAction,
    Processing,
    RequiresCapture,
    Succeeded,
    Canceled,
}

impl Status {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequiresPaymentMethod => "requires_payment_method",
            Self::RequiresConfirmation => "requires_confirmation",
            Self::RequiresAction => "requires_action",
            Self::Processing => "processing",
            Self::RequiresCapture => "requires_capture",
            Self::Succeeded => "succeeded",
            Self::Canceled => "canceled",
        }
    }
}

/// What the card's issuer says to a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Approved, and the money is taken at once.
    Captured,
    /// Approved for a later capture.
    Authorised,
    /// Neither yet: the answer comes later, by [`Action::Settle`].
    Pending,
    Declined,
    /// The buyer has to prove who they are first.
    Challenge,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Another payment method or amount.
    Change,
    Confirm(Verdict),
    /// The buyer passed the challenge, and this is what the issuer then said.
    Authenticate(Verdict),
    /// The buyer failed or left the challenge.
    FailChallenge,
    Settle(Verdict),
    Capture,
    Cancel,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    To(Status),
    /// Stripe's `payment_intent_unexpected_state`.
    Refused,
}

fn charged(verdict: Verdict) -> Step {
    match verdict {
        Verdict::Captured => Step::To(Status::Succeeded),
        Verdict::Authorised => Step::To(Status::RequiresCapture),
        Verdict::Pending => Step::To(Status::Processing),
        Verdict::Declined => Step::To(Status::RequiresPaymentMethod),
        Verdict::Challenge => Step::To(Status::RequiresAction),
    }
}

/// A challenge once passed is not put again, and a settled payment not put off:
/// those two verdicts cannot follow, and are refused rather than looped.
fn concluded(verdict: Verdict) -> Step {
    match verdict {
        Verdict::Captured | Verdict::Authorised | Verdict::Declined => charged(verdict),
        Verdict::Pending | Verdict::Challenge => Step::Refused,
    }
}

pub fn step(status: Status, action: Action) -> Step {
    use Action::{Authenticate, Cancel, Capture, Change, Confirm, FailChallenge, Settle};
    use Status::{
        Canceled, Processing, RequiresAction, RequiresCapture, RequiresConfirmation,
        RequiresPaymentMethod, Succeeded,
    };
    match (status, action) {
        (RequiresPaymentMethod | RequiresConfirmation | RequiresAction, Change) => {
            Step::To(RequiresConfirmation)
        }
        (RequiresPaymentMethod | RequiresConfirmation | RequiresAction, Confirm(verdict)) => {
            charged(verdict)
        }
        (RequiresAction, Authenticate(Verdict::Pending)) => Step::To(Processing),
        (RequiresAction, Authenticate(verdict)) => concluded(verdict),
        (RequiresAction, FailChallenge) => Step::To(RequiresPaymentMethod),
        (Processing, Settle(verdict)) => concluded(verdict),
        (RequiresCapture, Capture) => Step::To(Succeeded),
        (
            RequiresPaymentMethod | RequiresConfirmation | RequiresAction | RequiresCapture,
            Cancel,
        ) => Step::To(Canceled),
        (
            Processing | RequiresCapture | Succeeded | Canceled,
            Change | Confirm(_) | Authenticate(_) | FailChallenge,
        )
        | (
            RequiresPaymentMethod
            | RequiresConfirmation
            | RequiresAction
            | RequiresCapture
            | Succeeded
            | Canceled,
            Settle(_),
        )
        | (RequiresPaymentMethod | RequiresConfirmation, Authenticate(_) | FailChallenge)
        | (
            RequiresPaymentMethod
            | RequiresConfirmation
            | RequiresAction
            | Processing
            | Succeeded
            | Canceled,
            Capture,
        )
        | (Processing | Succeeded | Canceled, Cancel) => Step::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUSES: [Status; 7] = [
        Status::RequiresPaymentMethod,
        Status::RequiresConfirmation,
        Status::RequiresAction,
        Status::Processing,
        Status::RequiresCapture,
        Status::Succeeded,
        Status::Canceled,
    ];

    const VERDICTS: [Verdict; 5] = [
        Verdict::Captured,
        Verdict::Authorised,
        Verdict::Pending,
        Verdict::Declined,
        Verdict::Challenge,
    ];

    fn actions() -> Vec<Action> {
        let mut all = vec![
            Action::Change,
            Action::FailChallenge,
            Action::Capture,
            Action::Cancel,
        ];
        for verdict in VERDICTS {
            all.extend([
                Action::Confirm(verdict),
                Action::Authenticate(verdict),
                Action::Settle(verdict),
            ]);
        }
        all
    }

    #[test]
    fn nothing_leaves_a_final_status() {
        for status in [Status::Succeeded, Status::Canceled] {
            for action in actions() {
                assert_eq!(step(status, action), Step::Refused, "{status:?} {action:?}");
            }
        }
    }

    /// Money moves by exactly three doors: confirming, concluding, capturing.
    #[test]
    fn success_comes_only_from_an_approval_or_a_capture() {
        for status in STATUSES {
            for action in actions() {
                if step(status, action) == Step::To(Status::Succeeded) {
                    assert!(matches!(
                        action,
                        Action::Confirm(Verdict::Captured)
                            | Action::Authenticate(Verdict::Captured)
                            | Action::Settle(Verdict::Captured)
                            | Action::Capture
                    ));
                }
            }
        }
    }

    #[test]
    fn a_payment_under_way_is_neither_cancelled_nor_confirmed_again() {
        assert_eq!(step(Status::Processing, Action::Cancel), Step::Refused);
        for verdict in VERDICTS {
            assert_eq!(
                step(Status::Processing, Action::Confirm(verdict)),
                Step::Refused
            );
        }
    }

    #[test]
    fn names_are_those_on_the_wire() {
        for status in STATUSES {
            let wire = serde_json::to_value(status).unwrap();
            assert_eq!(wire, status.as_str());
        }
    }
}
