//! What a payment may become, as a total function.

use std::str::FromStr;

/// Where a payment stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaymentState {
    /// The attempt is noted; whether Stripe has an intent is not known yet.
    Creating,
    RequiresPayment,
    /// The last card was declined; another may be tried on the same intent.
    Failed,
    Processing,
    Succeeded,
    Cancelled,
}

impl PaymentState {
    pub const ALL: [Self; 6] = [
        Self::Creating,
        Self::RequiresPayment,
        Self::Failed,
        Self::Processing,
        Self::Succeeded,
        Self::Cancelled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "CREATING",
            Self::RequiresPayment => "REQUIRES_PAYMENT",
            Self::Failed => "FAILED",
            Self::Processing => "PROCESSING",
            Self::Succeeded => "SUCCEEDED",
            Self::Cancelled => "CANCELLED",
        }
    }

    /// May Stripe still change it?
    pub fn is_open(self) -> bool {
        match self {
            Self::Creating | Self::RequiresPayment | Self::Failed | Self::Processing => true,
            Self::Succeeded | Self::Cancelled => false,
        }
    }
}

impl FromStr for PaymentState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| format!("unknown payment state {text}"))
    }
}

/// What a fresh look at the intent shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Waits for a card, or for the buyer to authenticate.
    Open,
    /// Waits for a card after one was declined.
    Declined,
    Processing,
    Paid,
    Cancelled,
}

/// What becomes of a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Same,
    To(PaymentState),
}

/// Terminal states win over whatever an older look, delivered late, says. The one way out:
/// money captured for a payment given up here is still money captured, and must be accounted for.
pub fn step(state: PaymentState, seen: Seen) -> Step {
    use PaymentState::{Cancelled, Creating, Failed, Processing, RequiresPayment, Succeeded};
    match (state, seen) {
        (Creating | RequiresPayment | Failed | Processing | Cancelled, Seen::Paid) => {
            Step::To(Succeeded)
        }
        (Creating | RequiresPayment | Failed | Processing, Seen::Cancelled) => Step::To(Cancelled),
        (Creating | Failed | Processing, Seen::Open) => Step::To(RequiresPayment),
        (Creating | RequiresPayment | Processing, Seen::Declined) => Step::To(Failed),
        (Creating | RequiresPayment | Failed, Seen::Processing) => Step::To(Processing),
        (RequiresPayment, Seen::Open)
        | (Failed, Seen::Declined)
        | (Processing, Seen::Processing)
        | (Cancelled, Seen::Open | Seen::Declined | Seen::Processing | Seen::Cancelled)
        | (
            Succeeded,
            Seen::Open | Seen::Declined | Seen::Processing | Seen::Paid | Seen::Cancelled,
        ) => Step::Same,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEEN: [Seen; 5] = [
        Seen::Open,
        Seen::Declined,
        Seen::Processing,
        Seen::Paid,
        Seen::Cancelled,
    ];

    #[test]
    fn captured_money_is_never_forgotten() {
        for state in PaymentState::ALL {
            let after = match step(state, Seen::Paid) {
                Step::Same => state,
                Step::To(next) => next,
            };
            assert_eq!(after, PaymentState::Succeeded, "from {state:?}");
        }
        for seen in SEEN {
            assert_eq!(
                step(PaymentState::Succeeded, seen),
                Step::Same,
                "a late {seen:?} changed it"
            );
        }
    }

    #[test]
    fn a_given_up_payment_opens_again_for_nothing_but_money() {
        for seen in SEEN.into_iter().filter(|seen| *seen != Seen::Paid) {
            assert_eq!(step(PaymentState::Cancelled, seen), Step::Same);
        }
    }

    #[test]
    fn the_same_look_twice_changes_nothing() {
        for state in PaymentState::ALL {
            for seen in SEEN {
                if let Step::To(next) = step(state, seen) {
                    assert_ne!(next, state);
                    assert_eq!(
                        step(next, seen),
                        Step::Same,
                        "{state:?} then {seen:?} twice"
                    );
                }
            }
        }
    }
}
