//! Stripe's list of events: what happened, whether a webhook came or not.

use serde_json::Value;

use super::{Stripe, StripeFailure};

/// Events of one page; Stripe allows no more.
pub const PAGE: usize = 100;

/// The types that this role acts on, as the webhook endpoint is to be set up with; Stripe lists at
/// most twenty types at once.
pub const EVENT_TYPES: [&str; 13] = [
    "payment_intent.succeeded",
    "payment_intent.payment_failed",
    "payment_intent.canceled",
    "payment_intent.processing",
    "charge.refunded",
    "refund.created",
    "refund.updated",
    "refund.failed",
    "charge.dispute.created",
    "charge.dispute.updated",
    "charge.dispute.closed",
    "charge.dispute.funds_withdrawn",
    "charge.dispute.funds_reinstated",
];

/// Where a page begins.
#[derive(Clone, Debug)]
pub enum Start {
    /// Newer than this event: the oldest hundred of them.
    After(String),
    /// Made at or after this second, and older than the event, where one is given: the newest.
    Since(i64, Option<String>),
}

/// Some events, newest first.
#[derive(Debug)]
pub struct EventPage {
    pub events: Vec<Value>,
    pub more: bool,
}

/// The path of a page of the events that this role acts on.
fn path(from: &Start) -> String {
    let mut query = url::form_urlencoded::Serializer::for_suffix(String::from("/events?"), 8);
    query.append_pair("limit", &PAGE.to_string());
    for kind in EVENT_TYPES {
        query.append_pair("types[]", kind);
    }
    match from {
        Start::After(id) => {
            query.append_pair("ending_before", id);
        }
        Start::Since(second, older_than) => {
            query.append_pair("created[gte]", &second.to_string());
            if let Some(id) = older_than {
                query.append_pair("starting_after", id);
            }
        }
    }
    query.finish()
}

impl Stripe {
    /// A page of the events that this role acts on.
    pub async fn events(&self, from: &Start) -> Result<EventPage, StripeFailure> {
        let mut list = self.read(&path(from)).await?;
        let more = list["has_more"].as_bool().unwrap_or(false);
        match list["data"].take() {
            Value::Array(events) => Ok(EventPage { events, more }),
            _ => Err(StripeFailure::Unknown(
                "Stripe's list of events has no data".to_owned(),
            )),
        }
    }
}
