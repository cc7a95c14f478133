//! Stripe's lists, page by page, read as plain JSON: one object of a shape that we do not know
//! must not hide the other ninety-nine.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use super::{Stripe, StripeFailure};
use crate::platform::currency::from_stripe;

/// The most that Stripe lists at once.
const PAGE_MAX: u32 = 100;

/// A stretch of a list, newest first.
#[derive(Clone, Debug, Default)]
pub struct Stretch {
    /// Created at this Unix second or later.
    pub from: Option<i64>,
    /// Created before this Unix second.
    pub to: Option<i64>,
    /// Behind (older than) this object.
    pub after: Option<String>,
}

impl Stretch {
    fn query(&self, more: &[(&str, &str)]) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &PAGE_MAX.to_string());
        if let Some(from) = self.from {
            query.append_pair("created[gte]", &from.to_string());
        }
        if let Some(to) = self.to {
            query.append_pair("created[lt]", &to.to_string());
        }
        if let Some(after) = &self.after {
            query.append_pair("starting_after", after);
        }
        query.extend_pairs(more);
        query.finish()
    }
}

/// One page, and whether the list goes on behind it.
#[derive(Clone, Debug)]
pub struct Page<T> {
    /// Newest first.
    pub items: Vec<T>,
    /// Are there older ones?
    pub more: bool,
}

/// An intent as the list shows it.
#[derive(Clone, Debug)]
pub struct ListedIntent {
    /// Stripe's id.
    pub id: String,
    /// Unix seconds.
    pub created: i64,
    /// Stripe's own word.
    pub status: String,
    /// What was captured, in our minor unit.
    pub captured: i64,
    /// What went back of it, pending refunds included, in our minor unit.
    pub refunded: i64,
    /// ISO 4217, lower case.
    pub currency: String,
    /// Real money?
    pub live: bool,
    /// As we wrote it.
    pub metadata: HashMap<String, String>,
}

impl ListedIntent {
    fn read(value: &Value) -> Option<Self> {
        let currency = value["currency"].as_str()?.to_owned();
        let amount = |value: &Value| from_stripe(value.as_i64().unwrap_or(0), &currency);
        let metadata = value["metadata"].as_object();
        Some(Self {
            id: value["id"].as_str()?.to_owned(),
            created: value["created"].as_i64()?,
            status: value["status"].as_str()?.to_owned(),
            captured: amount(&value["amount_received"]),
            refunded: amount(&value["latest_charge"]["amount_refunded"]),
            live: value["livemode"].as_bool().unwrap_or(false),
            metadata: metadata
                .into_iter()
                .flatten()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect(),
            currency,
        })
    }

    /// An id that the metadata carries.
    pub fn named(&self, key: &str) -> Option<Uuid> {
        self.metadata.get(key).and_then(|id| id.parse().ok())
    }

    /// Was money taken?
    pub fn is_paid(&self) -> bool {
        self.status == "succeeded"
    }

    /// May money still be taken?
    pub fn is_open(&self) -> bool {
        !matches!(self.status.as_str(), "succeeded" | "canceled")
    }
}

impl Stripe {
    /// One page of the intents, with what went back of each.
    ///
    /// # Errors
    /// When Stripe does not answer, or refuses.
    pub async fn list_intents(
        &self,
        stretch: &Stretch,
    ) -> Result<Page<ListedIntent>, StripeFailure> {
        let query = stretch.query(&[("expand[]", "data.latest_charge")]);
        let path = format!("/payment_intents?{query}");
        self.page(&path, ListedIntent::read).await
    }

    async fn page<T>(
        &self,
        path: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Page<T>, StripeFailure> {
        let list = self.read(path).await?;
        let unread = |what: &str| StripeFailure::Unknown(format!("a list of Stripe's {what}"));
        let data = list["data"]
            .as_array()
            .ok_or_else(|| unread("has no data"))?;
        let items: Vec<T> = data.iter().filter_map(&read).collect();
        if items.len() < data.len() {
            // Skipping an object silently could hide money.
            return Err(unread("has an object that cannot be read"));
        }
        Ok(Page {
            items,
            more: list["has_more"].as_bool().unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_listed_intent_is_read_whatever_else_it_has() {
        let value = json!({"id": "pi_1", "created": 5, "status": "succeeded", "currency": "isk",
            "amount_received": 150_000, "livemode": false, "new_thing": {"x": []},
            "latest_charge": {"id": "ch_1", "amount_refunded": 50_000},
            "metadata": {"order_id": "01890000-0000-7000-8000-000000000000", "n": 7}});
        let intent = ListedIntent::read(&value).unwrap();
        assert_eq!((intent.captured, intent.refunded), (1_500, 500));
        assert!(intent.is_paid() && !intent.is_open());
        assert!(intent.named("order_id").is_some() && intent.named("n").is_none());
        // The charge as an id alone says nothing about refunds.
        let bare = json!({"id": "pi_1", "created": 5, "status": "canceled", "currency": "usd", "latest_charge": "ch_1"});
        assert_eq!(ListedIntent::read(&bare).unwrap().refunded, 0);
    }

    #[test]
    fn a_stretch_is_a_query() {
        let stretch = Stretch {
            from: Some(1),
            to: Some(2),
            after: Some("pi_1".into()),
        };
        assert_eq!(
            stretch.query(&[("expand[]", "x")]),
            "limit=100&created%5Bgte%5D=1&created%5Blt%5D=2&starting_after=pi_1&expand%5B%5D=x"
        );
    }
}
