//! `GET /admin/v1/overview`: everything that `ticketping top` shows, in one read.
//!
//! No role knows all of it. Each gives its [`OverviewSlice`] (the queue its
//! figures, reservations the seats, performances the titles, payments the money,
//! everyone the stores it stands on), and the gateway joins them by performance
//! with [`Overview::merge`], which is pure.
//!
//! Cost: the rows of all performances are cheap sums and counts. What needs a
//! walk over deadlines (the expiry histograms) is filled only for the performance
//! named by `?detail=<performanceId>`, which the gateway passes on to the roles.

mod merge;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

/// The answer of `GET /admin/v1/overview`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Overview {
    pub as_of: DateTime<Utc>,
    pub server: Server,
    /// One row a performance that has a queue, ordered by `performanceId`.
    pub queues: Vec<QueueRow>,
    pub http: Http,
    pub events: Events,
    pub payments: Payments,
    /// Ordered by name; a store that several roles use appears once, with the worst answer.
    pub stores: Vec<Store>,
    /// The roles that were asked, ordered by name.
    pub roles: Vec<RoleHealth>,
    /// What the roles themselves want an operator to see.
    #[serde(default)]
    pub alarms: Vec<Notice>,
    /// Alarms that wait for a person: `GET /admin/v1/alarms`.
    #[serde(default)]
    pub open_alarms: u64,
}

/// What `?detail=` carries to the roles.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::IntoParams,
)]
#[serde(rename_all = "camelCase")]
pub struct OverviewQuery {
    /// Fill the expiry histograms of this performance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Uuid>,
}

/// One role's part of the overview, as `GET /internal/v1/overview` answers it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct OverviewSlice {
    /// `queue`, `reservations`, … as in `ticketping serve <role>`.
    pub role: String,
    /// Given by the queue role.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueueSlice>,
    /// Given by the reservations role.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seats: Vec<SeatSlice>,
    /// Given by the performances role.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub performances: Vec<PerformanceSlice>,
    /// Given by the gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// Given by every role with an outbox or an inbox; the merge adds them up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub events: Option<Events>,
    /// Given by the payments role.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payments: Option<Payments>,
    /// Given by every role: what it stands on (`redis`, `postgres`, `kafka`, `stripe`).
    pub stores: Vec<Store>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alarms: Vec<Notice>,
    /// Alarms of this role that wait for a person.
    pub open_alarms: u64,
    /// Why the role gave nothing; set by the gateway, which could not reach it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    pub version: String,
    pub uptime_seconds: u64,
    /// Resident memory of the answering process, when it knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
}

/// A queue's phase, as in the public snapshot.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Phase {
    Upcoming,
    PreQueue,
    Open,
    Paused,
    Draining,
    Recovering,
    SoldOut,
    Closed,
    /// A phase that this build does not know, or a queue that gave no figures.
    #[default]
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// As JSON has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Upcoming => "UPCOMING",
            Self::PreQueue => "PRE_QUEUE",
            Self::Open => "OPEN",
            Self::Paused => "PAUSED",
            Self::Draining => "DRAINING",
            Self::Recovering => "RECOVERING",
            Self::SoldOut => "SOLD_OUT",
            Self::Closed => "CLOSED",
            Self::Unknown => "UNKNOWN",
        }
    }
}

/// One queue with its seats. Counters (`admitted`, `noShows`, `expired`,
/// `completed`, `left`) only grow within an epoch.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueRow {
    pub performance_id: Uuid,
    pub title: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub venue_name: String,
    pub phase: Phase,
    pub epoch: u64,
    pub waiting: u64,
    /// Registered in the pre-queue, not yet numbered.
    pub registered: u64,
    pub working: u64,
    pub max_working: u64,
    pub served_number: u64,
    pub last_number: u64,
    /// Admissions in the last minute.
    pub admitted_per_minute: f64,
    pub admitted: u64,
    pub no_shows: u64,
    pub expired: u64,
    pub completed: u64,
    pub left: u64,
    /// For who would enter now.
    pub estimated_wait_seconds: Option<WaitRange>,
    /// Seats not sold; held ones count.
    pub remaining_seats: u64,
    pub held_seats: u64,
    pub sold_seats: u64,
    pub open_orders: u64,
    pub hold_expiries_next_minute: u64,
    pub place_expiries_next_minute: u64,
    /// Holds whose deadline has passed and that still hold their seats.
    pub overdue_holds: u64,
    /// Places in the working set whose deadline has passed.
    pub overdue_places: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_expiries: Option<Expiries>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place_expiries: Option<Expiries>,
    pub settings: Settings,
    pub opens_at: Option<DateTime<Utc>>,
    pub closes_at: Option<DateTime<Utc>>,
}

/// What the queue role knows of one queue; fields as in [`QueueRow`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QueueSlice {
    pub performance_id: Uuid,
    pub phase: Phase,
    pub epoch: u64,
    pub waiting: u64,
    pub registered: u64,
    pub working: u64,
    pub max_working: u64,
    pub served_number: u64,
    pub last_number: u64,
    pub admitted_per_minute: f64,
    pub admitted: u64,
    pub no_shows: u64,
    pub expired: u64,
    pub completed: u64,
    pub left: u64,
    pub estimated_wait_seconds: Option<WaitRange>,
    pub remaining_seats: u64,
    pub place_expiries_next_minute: u64,
    pub overdue_places: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place_expiries: Option<Expiries>,
    pub settings: Settings,
    pub opens_at: Option<DateTime<Utc>>,
    pub closes_at: Option<DateTime<Utc>>,
}

/// What reservations knows of one performance: all its schedules together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SeatSlice {
    pub performance_id: Uuid,
    pub held_seats: u64,
    pub sold_seats: u64,
    pub open_orders: u64,
    pub hold_expiries_next_minute: u64,
    pub overdue_holds: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_expiries: Option<Expiries>,
}

/// What performances knows of one performance.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PerformanceSlice {
    pub performance_id: Uuid,
    pub title: String,
    pub venue_name: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct WaitRange {
    pub min: u64,
    pub max: u64,
}

/// Deadlines to come: `counts[i]` of them fall in the i-th span of
/// `bucketSeconds` from now; `later` after the last span.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Expiries {
    pub bucket_seconds: u64,
    pub counts: Vec<u64>,
    pub later: u64,
}

impl Expiries {
    /// A span short enough to act on.
    pub const BUCKET_SECONDS: u64 = 15;
    /// Eight minutes: the default working time of seven, and a little.
    pub const BUCKETS: usize = 32;

    /// Sorts deadlines into buckets. One in the past counts as due now.
    pub fn from_deadlines(now_ms: i64, deadlines_ms: impl IntoIterator<Item = i64>) -> Self {
        let mut counts = vec![0; Self::BUCKETS];
        let mut later = 0;
        for deadline in deadlines_ms {
            let ahead_ms = deadline.saturating_sub(now_ms).max(0).unsigned_abs();
            let index = ahead_ms / (Self::BUCKET_SECONDS * 1000);
            match usize::try_from(index)
                .ok()
                .and_then(|index| counts.get_mut(index))
            {
                Some(count) => *count += 1,
                None => later += 1,
            }
        }
        Self {
            bucket_seconds: Self::BUCKET_SECONDS,
            counts,
            later,
        }
    }
}

/// The settings of a queue, as `PATCH /admin/v1/queues/{performanceId}` takes them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    pub max_working: u64,
    pub working_ttl_seconds: u64,
    pub claim_ttl_seconds: u64,
    pub hold_ttl_seconds: u64,
    /// `null`: as fast as places come free.
    pub admissions_per_minute: Option<u64>,
    /// 0: no limit.
    pub queue_factor: f64,
    pub paused: bool,
    pub draining: bool,
    pub pre_queue_opens_at: Option<DateTime<Utc>>,
}

/// What the gateway measured over the last seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Http {
    pub requests_per_second: f64,
    /// Share of answers 5xx, 0 to 1.
    pub error_rate: f64,
    /// Share of answers 4xx, 0 to 1.
    pub client_error_rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub in_flight: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub by_route: Vec<RouteFigures>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteFigures {
    /// `POST /api/v1/orders`
    pub route: String,
    pub requests_per_second: f64,
    pub error_rate: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Events {
    /// `inProcess` or `kafka`.
    pub delivery: String,
    /// Outbox rows not yet delivered.
    pub outbox_pending: u64,
    /// Age of the oldest of them.
    pub oldest_seconds: u64,
    /// Messages that consumers have not handled; `null` without Kafka.
    pub kafka_lag: Option<u64>,
    /// Messages put aside as bad and not yet replayed.
    pub dlq: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Payments {
    /// Intents that a buyer has still to pay.
    pub open: u64,
    /// Called at Stripe, answer not known yet.
    pub unknown: u64,
    pub succeeded: u64,
    pub failed: u64,
    pub refunded: u64,
    pub refunds_pending: u64,
    /// Refunds that Stripe refused: someone's money.
    pub refunds_stuck: u64,
    /// Webhooks taken and not yet worked on.
    pub webhooks_pending: u64,
    /// PaymentIntents that the Stripe account may create a second; `null`: no limit is set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creates_per_second_max: Option<u64>,
    /// The longest that creating one waited for the account's rate limits lately.
    pub create_wait_ms: u64,
    /// Buyers' calls to Stripe that wait for the rate limits now, in the instance that answers.
    pub calls_waiting: u64,
}

/// Ordered so that the worst compares greatest.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Health {
    #[default]
    Up,
    Degraded,
    Down,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Store {
    /// `redis`, `postgres`, `kafka`, `stripe`.
    pub name: String,
    pub state: Health,
    /// What is wrong, or a figure worth seeing; empty when there is nothing to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Round trip of the last check.
    pub latency_ms: Option<f64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleHealth {
    pub role: String,
    pub state: Health,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// Something a role wants an operator to see, until it stops saying it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Notice {
    /// Stable, UPPER_SNAKE: `REFUND_STUCK`.
    pub code: String,
    pub performance_id: Option<Uuid>,
    pub message: String,
    /// Where to look, or what to do.
    pub look_at: String,
    /// Money or a promise is at stake: it cannot wait.
    pub critical: bool,
}
