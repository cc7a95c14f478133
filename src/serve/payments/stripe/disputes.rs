//! Disputes at Stripe, reduced to what they say about money.

use serde_json::Value;

use super::{Stripe, StripeFailure};
use crate::platform::currency::from_stripe;

/// Disputes of one charge that we look at; there is one, as a rule.
const DISPUTES_MAX: usize = 100;
/// Stripe's ids are far shorter.
const ID_CHARS_MAX: usize = 255;

/// A dispute, as Stripe shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeDispute {
    pub id: String,
    /// Stripe's own word: `needs_response`, `won`, …
    pub status: String,
    pub reason: String,
    pub amount: i64,
    pub currency: String,
}

impl StripeDispute {
    /// Reads the object; `None` where it is none, or its id is not one of Stripe's.
    pub fn read(object: &Value) -> Option<Self> {
        let text = |name: &str| object[name].as_str().map(str::to_owned);
        let id = text("id").filter(|id| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            !id.is_empty() && id.len() <= ID_CHARS_MAX && id.chars().all(plain)
        })?;
        let short = |name: &str, otherwise: &str| {
            let text = text(name).unwrap_or_else(|| otherwise.to_owned());
            text.chars()
                .filter(|c| *c != '\0')
                .take(ID_CHARS_MAX)
                .collect::<String>()
        };
        let currency = short("currency", "");
        Some(Self {
            id,
            status: short("status", "unknown"),
            reason: short("reason", "no reason given"),
            amount: from_stripe(object["amount"].as_i64().unwrap_or(0), &currency),
            currency,
        })
    }
}

impl Stripe {
    /// The dispute as it is now.
    pub async fn dispute(&self, id: &str) -> Result<StripeDispute, StripeFailure> {
        let object = self.read(&format!("/disputes/{id}")).await?;
        StripeDispute::read(&object)
            .ok_or_else(|| StripeFailure::Unknown(format!("{id} is no dispute")))
    }

    /// Every dispute of this intent's charges.
    pub async fn disputes(&self, intent_id: &str) -> Result<Vec<StripeDispute>, StripeFailure> {
        let path = format!("/disputes?payment_intent={intent_id}&limit={DISPUTES_MAX}");
        let list = self.read(&path).await?;
        let data = list["data"].as_array();
        Ok((data.into_iter().flatten())
            .filter_map(StripeDispute::read)
            .collect())
    }
}
