//! The life of an order, as a total pure function: every status against every
//! happening, no wildcard. What happens twice, late or out of order has a named
//! answer here; [`super::steps`] only carries it out.

/// Where an order stands. The API shows the first three as PENDING_PAYMENT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Its seats are held; nobody has begun to pay.
    Pending,
    /// A payment was begun, and may succeed at any moment.
    Paying,
    /// As Paying, but its time is over: it waits for what payments says is
    /// final, and becomes this unless it was paid.
    Closing(End),
    /// Paid; the seats are sold.
    Confirmed,
    /// The hold ended first; the seats are free.
    Expired,
    /// Given up by the buyer, or its payment was cancelled.
    Cancelled,
    /// It was confirmed and the money goes back; the seats are free.
    Refunded,
}

/// What a closing order becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The hold lapsed.
    Expired,
    /// The buyer gave up.
    Cancelled,
}

impl End {
    /// The status that it ends in.
    pub const fn status(self) -> Status {
        match self {
            Self::Expired => Status::Expired,
            Self::Cancelled => Status::Cancelled,
        }
    }
}

/// What may happen to an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// Payments asks to begin.
    PaymentBegun,
    /// The deadline has passed.
    HoldLapsed,
    /// The buyer gives the order up.
    BuyerCancels,
    /// Money was captured.
    Paid(Capture),
    /// A card was declined; the same intent may yet succeed.
    PaymentFailed,
    /// Final: the intent is cancelled, or there never will be one.
    PaymentCancelled,
    /// Payments has been silent for longer than we wait.
    WaitedEnough,
    /// All of the money went back, at whoever's wish.
    RefundedInFull,
    /// Some of the money went back, at Stripe, or a refund failed after all.
    RefundedInPart,
    /// The cardholder disputed the charge, and the bank gave all of the money back.
    DisputeLost,
}

/// A captured payment, as this order knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capture {
    /// The first that the order hears of it.
    First,
    /// The order has acted on this very payment before.
    Known,
    /// The order was paid by another payment.
    Again,
    /// Not the amount or currency that is due.
    Wrong,
    /// A dispute has taken it back already.
    Lost,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: it was done before, or is no news.
    Same,
    /// Change the status; closed statuses free the seats.
    To(Status),
    /// Ask payments to cancel, and wait as [`Status::Closing`].
    AskPayments(End),
    /// Sell the seats.
    Confirm,
    /// Try for the same seats and the limit once more, else refund.
    Reacquire,
    /// Give this capture back; an open order is cancelled with it.
    Refund(Reason),
    /// Give the order's payment back and free the seats, as the buyer wishes.
    GiveBack,
    /// Tell the caller no.
    Refuse(Refusal),
}

/// Why a captured payment goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The order had been cancelled.
    OrderCancelled,
    /// The order was paid twice.
    PaidTwice,
    /// The amount was not what was due.
    WrongAmount,
}

impl Reason {
    /// As events and the order's `statusReason` say it.
    pub const fn code(self) -> &'static str {
        match self {
            Self::OrderCancelled => "PAID_AFTER_CANCELLATION",
            Self::PaidTwice => "PAID_TWICE",
            Self::WrongAmount => "WRONG_AMOUNT_PAID",
        }
    }
}

/// Why a caller is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The hold has ended.
    HoldEnded,
    /// The order is past paying.
    NotPayable,
}

impl Status {
    /// Does it keep its seats?
    pub const fn is_live(self) -> bool {
        match self {
            Self::Pending | Self::Paying | Self::Closing(_) | Self::Confirmed => true,
            Self::Expired | Self::Cancelled | Self::Refunded => false,
        }
    }

    /// What follows when `happening` meets an order in this status.
    pub const fn on(self, happening: Happening) -> Step {
        use Status::{Cancelled, Closing, Confirmed, Expired, Paying, Pending, Refunded};
        match happening {
            Happening::PaymentBegun => match self {
                Pending => Step::To(Paying),
                Paying => Step::Same,
                Closing(_) | Expired => Step::Refuse(Refusal::HoldEnded),
                Confirmed | Cancelled | Refunded => Step::Refuse(Refusal::NotPayable),
            },
            Happening::HoldLapsed => match self {
                Pending => Step::To(Expired),
                Paying => Step::AskPayments(End::Expired),
                Closing(_) | Confirmed | Expired | Cancelled | Refunded => Step::Same,
            },
            Happening::BuyerCancels => match self {
                Pending => Step::To(Cancelled),
                Paying | Closing(_) => Step::AskPayments(End::Cancelled),
                Confirmed => Step::GiveBack,
                Expired | Cancelled | Refunded => Step::Same,
            },
            Happening::Paid(capture) => self.on_paid(capture),
            Happening::PaymentCancelled => match self {
                Pending | Paying => Step::To(Cancelled),
                Closing(end) => Step::To(end.status()),
                // A cancelled intent cannot have been captured: this is about
                // an earlier one, or comes late.
                Confirmed | Expired | Cancelled | Refunded => Step::Same,
            },
            Happening::WaitedEnough => match self {
                Closing(end) => Step::To(end.status()),
                Pending | Paying | Confirmed | Expired | Cancelled | Refunded => Step::Same,
            },
            Happening::RefundedInFull => match self {
                // Before Confirmed it overtook the news of the payment itself.
                Pending | Paying | Closing(_) | Confirmed => Step::To(Refunded),
                Expired | Cancelled | Refunded => Step::Same,
            },
            Happening::DisputeLost => match self {
                Confirmed => Step::To(Cancelled),
                // Before Confirmed it overtook the news of the payment, which finds the loss noted.
                Pending | Paying | Closing(_) | Expired | Cancelled | Refunded => Step::Same,
            },
            // The buyer may try again for as long as the hold lasts; what a part of the money
            // means is a person's to say, and payments has raised the alarm.
            Happening::PaymentFailed | Happening::RefundedInPart => match self {
                Pending | Paying | Closing(_) | Confirmed | Expired | Cancelled | Refunded => {
                    Step::Same
                }
            },
        }
    }

    const fn on_paid(self, capture: Capture) -> Step {
        use Status::{Cancelled, Closing, Confirmed, Expired, Paying, Pending, Refunded};
        match (self, capture) {
            (
                Pending | Paying | Closing(_) | Confirmed | Expired | Cancelled | Refunded,
                Capture::Known,
            ) => Step::Same,
            (
                Pending | Paying | Closing(_) | Confirmed | Expired | Cancelled | Refunded,
                Capture::Wrong,
            ) => Step::Refund(Reason::WrongAmount),
            (Pending | Paying | Closing(_), Capture::Lost) => Step::To(Cancelled),
            (Confirmed | Expired | Cancelled | Refunded, Capture::Lost) => Step::Same,
            (Pending | Paying | Closing(_), Capture::First) => Step::Confirm,
            (Expired, Capture::First) => Step::Reacquire,
            (Cancelled | Refunded, Capture::First) => Step::Refund(Reason::OrderCancelled),
            (Confirmed, Capture::First)
            | (
                Pending | Paying | Closing(_) | Confirmed | Expired | Cancelled | Refunded,
                Capture::Again,
            ) => Step::Refund(Reason::PaidTwice),
        }
    }

    /// As the database stores it: `state` and `closing`.
    pub const fn to_columns(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::Pending => ("PENDING", None),
            Self::Paying => ("PAYING", None),
            Self::Closing(End::Expired) => ("PAYING", Some("EXPIRED")),
            Self::Closing(End::Cancelled) => ("PAYING", Some("CANCELLED")),
            Self::Confirmed => ("CONFIRMED", None),
            Self::Expired => ("EXPIRED", None),
            Self::Cancelled => ("CANCELLED", None),
            Self::Refunded => ("REFUNDED", None),
        }
    }

    /// From the database's `state` and `closing`.
    pub fn from_columns(state: &str, closing: Option<&str>) -> Option<Self> {
        Some(match (state, closing) {
            ("PENDING", _) => Self::Pending,
            ("PAYING", None) => Self::Paying,
            ("PAYING", Some("EXPIRED")) => Self::Closing(End::Expired),
            ("PAYING", Some("CANCELLED")) => Self::Closing(End::Cancelled),
            ("CONFIRMED", _) => Self::Confirmed,
            ("EXPIRED", _) => Self::Expired,
            ("CANCELLED", _) => Self::Cancelled,
            ("REFUNDED", _) => Self::Refunded,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const STATUSES: [Status; 8] = [
        Status::Pending,
        Status::Paying,
        Status::Closing(End::Expired),
        Status::Closing(End::Cancelled),
        Status::Confirmed,
        Status::Expired,
        Status::Cancelled,
        Status::Refunded,
    ];

    #[test]
    fn a_status_survives_its_columns() {
        for status in STATUSES {
            let (state, closing) = status.to_columns();
            assert_eq!(Status::from_columns(state, closing), Some(status));
        }
        assert_eq!(Status::from_columns("LOST", None), None);
    }

    /// An order and the money that it has seen: what Postgres keeps of both.
    #[derive(Debug)]
    struct Model {
        status: Status,
        paid_by: Option<u8>,
        captured: Vec<u8>,
        given_back: Vec<u8>,
    }

    #[derive(Clone, Copy, Debug)]
    enum Move {
        Happens(Happening),
        /// A capture by this payment; are the seats still to be had?
        Captured(u8, bool),
    }

    impl Model {
        fn apply(&mut self, step: Move) {
            let (happening, payment, seats_free) = match step {
                Move::Happens(happening) => (happening, 0, false),
                Move::Captured(payment, free) => {
                    if !self.captured.contains(&payment) {
                        self.captured.push(payment);
                    }
                    (Happening::Paid(self.capture(payment)), payment, free)
                }
            };
            match self.status.on(happening) {
                Step::Same | Step::Refuse(_) => {}
                Step::To(status) => {
                    // By a refund, or by the bank.
                    if status == Status::Refunded || happening == Happening::DisputeLost {
                        self.given_back.extend(self.paid_by);
                    }
                    self.status = status;
                }
                Step::AskPayments(End::Expired) => self.status = Status::Closing(End::Expired),
                // Payments says that nothing can be captured any more.
                Step::AskPayments(End::Cancelled) => self.status = Status::Cancelled,
                Step::Confirm => self.confirm(payment),
                Step::Reacquire if seats_free => self.confirm(payment),
                Step::Reacquire => self.given_back.push(payment),
                Step::Refund(_) => {
                    self.given_back.push(payment);
                    if self.status.is_live() && self.status != Status::Confirmed {
                        self.status = Status::Cancelled;
                    }
                }
                Step::GiveBack => {
                    self.given_back.extend(self.paid_by);
                    self.status = Status::Refunded;
                }
            }
        }

        fn confirm(&mut self, payment: u8) {
            self.paid_by = Some(payment);
            self.status = Status::Confirmed;
        }

        fn capture(&self, payment: u8) -> Capture {
            if self.paid_by == Some(payment) || self.given_back.contains(&payment) {
                Capture::Known
            } else if self.paid_by.is_some() {
                Capture::Again
            } else {
                Capture::First
            }
        }
    }

    fn moves() -> impl Strategy<Value = Move> {
        let happenings = vec![
            Happening::PaymentBegun,
            Happening::HoldLapsed,
            Happening::BuyerCancels,
            Happening::PaymentFailed,
            Happening::PaymentCancelled,
            Happening::WaitedEnough,
            Happening::RefundedInPart,
            Happening::DisputeLost,
        ];
        prop_oneof![
            select(happenings).prop_map(Move::Happens),
            (0_u8..3, any::<bool>()).prop_map(|(p, free)| Move::Captured(p, free)),
        ]
    }

    proptest! {
        /// Whatever happens, in whatever order and however often: every captured payment
        /// is the confirmed order's, or goes back, exactly once.
        #[test]
        fn every_capture_is_kept_or_given_back(steps in prop::collection::vec(moves(), 0..40)) {
            let mut order = Model {
                status: Status::Pending,
                paid_by: None,
                captured: Vec::new(),
                given_back: Vec::new(),
            };
            for step in steps {
                let before = order.status;
                order.apply(step);
                if !before.is_live() && order.status.is_live() {
                    prop_assert_eq!(order.status, Status::Confirmed, "only money brings an order back");
                }
                for payment in &order.captured {
                    let kept = order.status == Status::Confirmed && order.paid_by == Some(*payment);
                    let back = order.given_back.iter().filter(|p| *p == payment).count();
                    prop_assert_eq!(usize::from(kept) + back, 1, "payment {} of {:?}", payment, order);
                }
            }
        }
    }
}
