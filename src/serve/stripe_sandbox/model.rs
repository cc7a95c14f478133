//! What the sandbox keeps of a payment: the intent with its charges and refunds,
//! one document, since they are consistent only together.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cards::{self, TestCard};
use super::ids;
use super::machine::{Action, Status, Step, step};

pub type Metadata = BTreeMap<String, String>;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Intent {
    pub id: String,
    pub client_secret: String,
    pub created: i64,
    pub amount: i64,
    pub currency: String,
    pub status: Status,
    pub capture: Capture,
    #[serde(default)]
    pub automatic_payment_methods: Option<Automatic>,
    pub payment_method_types: Vec<String>,
    /// Fields that Stripe only keeps and gives back.
    #[serde(default)]
    pub echoed: BTreeMap<String, Value>,
    #[serde(default)]
    pub metadata: Metadata,
    #[serde(default)]
    pub method: Option<Method>,
    #[serde(default)]
    pub next_action: Option<NextAction>,
    #[serde(default)]
    pub last_error: Option<LastError>,
    /// When something is to follow by itself, in ms.
    #[serde(default)]
    pub due_at_ms: Option<i64>,
    #[serde(default)]
    pub canceled_at: Option<i64>,
    #[serde(default)]
    pub cancellation_reason: Option<String>,
    #[serde(default)]
    pub charges: Vec<Charge>,
    #[serde(default)]
    pub refunds: Vec<Refund>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Capture {
    Automatic,
    AutomaticAsync,
    Manual,
}

impl Capture {
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "automatic" => Some(Self::Automatic),
            "automatic_async" => Some(Self::AutomaticAsync),
            "manual" => Some(Self::Manual),
            _ => None,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Automatic => "automatic",
            Self::AutomaticAsync => "automatic_async",
            Self::Manual => "manual",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Automatic {
    pub enabled: bool,
    pub allow_redirects: String,
}

/// A payment method: one of the test cards under an id of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Method {
    pub id: String,
    pub card: String,
    pub created: i64,
}

impl Method {
    pub fn new(card: &TestCard, now: i64) -> Self {
        Self {
            id: ids::payment_method(),
            card: card.name.to_owned(),
            created: now,
        }
    }

    /// Cards leave the table only with a release; a payment made with one that
    /// left reads as plain Visa.
    pub fn card(&self) -> &'static TestCard {
        cards::by_name(&self.card).unwrap_or(&cards::CARDS[0])
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextAction {
    pub url: String,
    #[serde(default)]
    pub return_url: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastError {
    pub code: String,
    #[serde(default)]
    pub decline_code: Option<String>,
    pub message: String,
    #[serde(default)]
    pub charge: Option<String>,
    pub method: Method,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    pub id: String,
    pub created: i64,
    pub amount: i64,
    pub method: Method,
    pub state: ChargeState,
    /// Taken from the buyer.
    #[serde(default)]
    pub captured: i64,
    /// Authorised and given back without having been taken.
    #[serde(default)]
    pub released: i64,
    pub balance_transaction: String,
    #[serde(default)]
    pub authenticated: bool,
    /// Older documents have one at most, under its singular.
    #[serde(default, alias = "dispute", deserialize_with = "one_or_many")]
    pub disputes: Vec<Dispute>,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(given: D) -> Result<Vec<Dispute>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Many(Vec<Dispute>),
        One(Box<Dispute>),
    }
    Ok(match Option::<Either>::deserialize(given)? {
        None => Vec::new(),
        Some(Either::Many(many)) => many,
        Some(Either::One(one)) => vec![*one],
    })
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChargeState {
    Pending,
    Failed,
    /// Not yet captured.
    Authorised,
    Captured,
    Released,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    pub id: String,
    pub created: i64,
    pub amount: i64,
    #[serde(default)]
    pub status: DisputeStatus,
    #[serde(default = "fraudulent")]
    pub reason: String,
    /// The text of the evidence: Stripe's own words decide a test dispute.
    #[serde(default)]
    pub evidence: Option<String>,
}

fn fraudulent() -> String {
    "fraudulent".into()
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisputeStatus {
    WarningNeedsResponse,
    WarningUnderReview,
    WarningClosed,
    #[default]
    NeedsResponse,
    UnderReview,
    Won,
    Lost,
}

impl DisputeStatus {
    pub const ALL: [Self; 7] = [
        Self::WarningNeedsResponse,
        Self::WarningUnderReview,
        Self::WarningClosed,
        Self::NeedsResponse,
        Self::UnderReview,
        Self::Won,
        Self::Lost,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::WarningNeedsResponse => "warning_needs_response",
            Self::WarningUnderReview => "warning_under_review",
            Self::WarningClosed => "warning_closed",
            Self::NeedsResponse => "needs_response",
            Self::UnderReview => "under_review",
            Self::Won => "won",
            Self::Lost => "lost",
        }
    }

    pub fn is_inquiry(self) -> bool {
        match self {
            Self::WarningNeedsResponse | Self::WarningUnderReview | Self::WarningClosed => true,
            Self::NeedsResponse | Self::UnderReview | Self::Won | Self::Lost => false,
        }
    }

    pub fn is_closed(self) -> bool {
        match self {
            Self::WarningClosed | Self::Won | Self::Lost => true,
            Self::WarningNeedsResponse
            | Self::WarningUnderReview
            | Self::NeedsResponse
            | Self::UnderReview => false,
        }
    }

    /// The bank has the money, or may have it: a refund would give it back twice.
    pub fn forbids_refunds(self) -> bool {
        match self {
            Self::NeedsResponse | Self::UnderReview | Self::Lost => true,
            Self::WarningNeedsResponse
            | Self::WarningUnderReview
            | Self::WarningClosed
            | Self::Won => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refund {
    pub id: String,
    pub charge: String,
    pub created: i64,
    pub amount: i64,
    pub status: RefundStatus,
    #[serde(default)]
    pub reason: Option<String>,
    #[serde(default)]
    pub metadata: Metadata,
    pub balance_transaction: String,
    /// It succeeds at first and then fails.
    #[serde(default)]
    pub fails: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefundStatus {
    Pending,
    Succeeded,
    Failed,
}

impl RefundStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
        }
    }

    /// A refund that failed gave nothing back.
    pub fn counts(self) -> bool {
        match self {
            Self::Pending | Self::Succeeded => true,
            Self::Failed => false,
        }
    }
}

impl Intent {
    /// Moves to the status that the action leads to; false where it is refused.
    pub fn advance(&mut self, action: Action) -> bool {
        match step(self.status, action) {
            Step::To(status) => {
                self.status = status;
                true
            }
            Step::Refused => false,
        }
    }

    pub fn captured(&self) -> i64 {
        self.charges.iter().map(|charge| charge.captured).sum()
    }

    pub fn refunded(&self) -> i64 {
        self.refunds
            .iter()
            .filter(|refund| refund.status.counts())
            .map(|refund| refund.amount)
            .sum()
    }

    pub fn refunded_of(&self, charge: &str) -> i64 {
        self.refunds
            .iter()
            .filter(|refund| refund.charge == charge && refund.status.counts())
            .map(|refund| refund.amount)
            .sum()
    }

    pub fn capturable(&self) -> i64 {
        if self.status == Status::RequiresCapture {
            self.amount
        } else {
            0
        }
    }

    pub fn latest_charge(&self) -> Option<&Charge> {
        self.charges.last()
    }

    pub fn captured_charge(&self) -> Option<&Charge> {
        self.charges
            .iter()
            .find(|charge| charge.state == ChargeState::Captured)
    }
}
