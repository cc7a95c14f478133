//! The parts of the public contract that a buyer reads. Fields that a journey
//! does not need are not parsed: a poll costs the generator about a microsecond.

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PlaceStatus {
    Registered,
    Waiting,
    Working,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceView<'a> {
    #[serde(borrow)]
    pub queue_token: &'a str,
    pub status: PlaceStatus,
    pub number: Option<u64>,
    pub position: Option<u64>,
    pub poll_after_ms: u32,
    pub expires_at: Option<DateTime<Utc>>,
}

#[derive(Debug, Default, Deserialize)]
pub struct ProblemView<'a> {
    #[serde(borrow, default)]
    pub code: Cow<'a, str>,
    #[serde(borrow, default)]
    pub detail: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OrderView<'a> {
    pub id: Uuid,
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    pub schedule_id: Uuid,
    #[serde(default)]
    pub seats: Vec<OrderSeat>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct OrderSeat {
    pub id: Uuid,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PaymentView<'a> {
    pub id: Uuid,
    #[serde(borrow)]
    pub status: Cow<'a, str>,
    #[serde(borrow, default)]
    pub client_secret: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub publishable_key: Option<Cow<'a, str>>,
}

/// Stripe's PaymentIntent, or its error object.
#[derive(Debug, Deserialize)]
pub struct IntentView<'a> {
    #[serde(borrow, default)]
    pub status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub error: Option<IntentError<'a>>,
}

#[derive(Debug, Deserialize)]
pub struct IntentError<'a> {
    #[serde(borrow, default)]
    pub code: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    pub message: Option<Cow<'a, str>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeatsView<'a> {
    #[serde(borrow)]
    pub seats: Vec<SeatView<'a>>,
}

#[derive(Debug, Deserialize)]
pub struct SeatView<'a> {
    pub id: Uuid,
    #[serde(borrow)]
    pub status: Cow<'a, str>,
}

/// The public snapshot of a queue.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueView {
    pub phase: String,
    #[serde(default)]
    pub served_number: u64,
    #[serde(default)]
    pub last_number: u64,
    pub waiting: u64,
    pub working: u64,
    pub max_working: u64,
    #[serde(default)]
    pub remaining_seats: i64,
    #[serde(default)]
    pub as_of: Option<DateTime<Utc>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PerformanceView {
    pub id: Uuid,
    pub title: String,
    pub booking: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct ScheduleView {
    pub id: Uuid,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListView<T> {
    pub items: Vec<T>,
    #[serde(default = "Option::default")]
    pub next_cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_place_and_ignores_what_it_does_not_need() {
        let json = r#"{"queueToken":"abc","status":"WORKING","number":7,"position":null,
            "estimatedWaitSeconds":{"min":1,"max":2},"pollAfterMs":1000,"expiresAt":"2026-11-22T08:00:00.123Z"}"#;
        let place: PlaceView<'_> = serde_json::from_str(json).unwrap();
        assert_eq!(
            (place.queue_token, place.status, place.number),
            ("abc", PlaceStatus::Working, Some(7))
        );
        assert!(place.expires_at.is_some());
        assert!(serde_json::from_str::<PlaceView<'_>>(r#"{"status":"WAITING"}"#).is_err());
    }

    #[test]
    fn reads_stripe_errors_and_problems() {
        let declined = r#"{"error":{"code":"card_declined","message":"No."}}"#;
        let intent: IntentView<'_> = serde_json::from_str(declined).unwrap();
        assert_eq!(intent.error.unwrap().code.as_deref(), Some("card_declined"));
        let problem: ProblemView<'_> =
            serde_json::from_str(r#"{"code":"SOLD_OUT","detail":"a \"quote\""}"#).unwrap();
        assert_eq!(
            (&*problem.code, &*problem.detail),
            ("SOLD_OUT", "a \"quote\"")
        );
    }
}
