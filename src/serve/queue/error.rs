//! What can go wrong in the waiting room, and what the caller is told.

use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use http::{HeaderValue, StatusCode, header};

use super::{scripts::ScriptError, snapshot::rfc3339};
use crate::platform::{problem::Problem, upstream::UpstreamError};

/// Every refusal of this role.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No such performance.
    #[error("there is no performance with this id")]
    NotFound,
    /// The token proves no place here, or not the caller's.
    #[error("{0}")]
    InvalidToken(&'static str),
    /// The turn is over.
    #[error("this place's turn has ended; enter again to get a new one")]
    Ended,
    /// No seat is left.
    #[error("every seat is sold")]
    SoldOut {
        /// When to ask again: seats may come back, and places with them. None: they have ended.
        poll_after_ms: Option<u64>,
    },
    /// Too many wait.
    #[error("too many people already wait for the seats that are left")]
    QueueFull,
    /// Before or after the time of booking.
    #[error("booking is not open")]
    NotOpen {
        /// When it opens, ms.
        opens: i64,
        /// When the pre-queue opens, ms.
        pre_queue_opens: i64,
        /// When it closes, ms.
        closes: i64,
        /// When to ask again: the closing may be taken back. None: it was not open, or has ended.
        poll_after_ms: Option<u64>,
    },
    /// Other instances serve this queue; this one cannot.
    #[error("this server is cut off from the queue; connect again to reach another")]
    CutOff,
    /// Nobody enters.
    #[error("the queue takes no more people")]
    Draining,
    /// Polled so often that it is abuse.
    #[error("this is asked for far more often than pollAfterMs says; wait that long")]
    TooOften {
        /// Polls are answered again after so many seconds.
        seconds: u64,
    },
    /// Come again in so many seconds.
    #[error("{cause}")]
    Unavailable {
        /// For the log, never for the body.
        cause: String,
    },
}

impl Error {
    /// Something this role stands on does not answer.
    pub fn unavailable(cause: impl std::fmt::Display) -> Self {
        Self::Unavailable {
            cause: cause.to_string(),
        }
    }
}

impl From<ScriptError> for Error {
    fn from(error: ScriptError) -> Self {
        Self::unavailable(error)
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        crate::platform::db::observe(&error);
        Self::unavailable(format!("PostgreSQL (queue): {error}"))
    }
}

impl From<UpstreamError> for Error {
    fn from(error: UpstreamError) -> Self {
        match error.status() {
            Some(StatusCode::NOT_FOUND) => Self::NotFound,
            _ => Self::unavailable(error),
        }
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        use StatusCode as S;
        let detail = format!("{error}.");
        let detail = match detail.get(..1) {
            Some(first) => first.to_uppercase() + &detail[1..],
            None => detail,
        };
        match error {
            Error::NotFound => Self::new(S::NOT_FOUND, "PERFORMANCE_NOT_FOUND", detail),
            Error::InvalidToken(_) => Self::new(S::UNAUTHORIZED, "INVALID_QUEUE_TOKEN", detail),
            Error::Ended => Self::new(S::GONE, "QUEUE_TOKEN_EXPIRED", detail),
            Error::SoldOut { poll_after_ms } => {
                Self::new(S::CONFLICT, "SOLD_OUT", detail).with("pollAfterMs", poll_after_ms)
            }
            Error::QueueFull => Self::new(S::CONFLICT, "QUEUE_FULL", detail),
            Error::NotOpen {
                opens,
                pre_queue_opens,
                closes,
                poll_after_ms,
            } => Self::new(S::CONFLICT, "BOOKING_NOT_OPEN", detail)
                .with("opensAt", rfc3339(opens))
                .with("preQueueOpensAt", rfc3339(pre_queue_opens))
                .with("closesAt", rfc3339(closes))
                .with("pollAfterMs", poll_after_ms),
            Error::CutOff => {
                Self::new(S::SERVICE_UNAVAILABLE, "UNAVAILABLE", detail).retry_after(1)
            }
            Error::Draining => Self::new(S::CONFLICT, "QUEUE_DRAINING", detail),
            Error::TooOften { seconds } => {
                Self::new(S::TOO_MANY_REQUESTS, "RATE_LIMITED", detail).retry_after(seconds)
            }
            Error::Unavailable { cause } => Self::unavailable(cause).retry_after(1),
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let leave = matches!(self, Self::CutOff);
        let mut response = Problem::from(self).into_response();
        if leave {
            // The next connection may reach an instance that is well.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

/// Milliseconds since 1970 of a time that may be missing; −1 stands for none.
pub fn ms(time: Option<DateTime<Utc>>) -> i64 {
    time.map_or(-1, |t| t.timestamp_millis())
}
