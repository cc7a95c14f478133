//! Why a handler could not do its work, which decides what becomes of the message.

use std::error::Error as StdError;
use std::fmt;

/// A handler's failure.
#[derive(Debug)]
pub enum HandlerError {
    /// Something the handler needs is away (a store, another role, Stripe). The message
    /// waits, with those behind it in its key, and is tried again for as long as it takes.
    Retry(anyhow::Error),
    /// The message itself cannot be handled. After bounded tries it becomes a dead letter.
    Poison(anyhow::Error),
}

impl HandlerError {
    pub fn retry(cause: impl Into<anyhow::Error>) -> Self {
        Self::Retry(cause.into())
    }

    pub fn poison(cause: impl Into<anyhow::Error>) -> Self {
        Self::Poison(cause.into())
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Retry(cause) => write!(f, "to be retried: {cause:#}"),
            Self::Poison(cause) => write!(f, "cannot be handled: {cause:#}"),
        }
    }
}

impl StdError for HandlerError {}

/// Postgres refusing the data itself is the message's fault; anything else (connection
/// lost, pool exhausted, deadlock, shutdown, read-only, disk full) passes.
impl From<sqlx::Error> for HandlerError {
    fn from(error: sqlx::Error) -> Self {
        crate::platform::db::observe(&error);
        let bad_data = match &error {
            sqlx::Error::Database(cause) => cause
                .code()
                .is_some_and(|code| code.starts_with("22") || code.starts_with("23")),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) | sqlx::Error::Encode(_) => {
                true
            }
            _ => false,
        };
        if bad_data {
            Self::poison(error)
        } else {
            Self::retry(error)
        }
    }
}

/// Redis being away, failing over, loading or out of memory passes. A script that
/// refuses its own arguments does too, after a deployment: it is never the seat's fault.
impl From<redis::RedisError> for HandlerError {
    fn from(error: redis::RedisError) -> Self {
        Self::retry(error)
    }
}

impl From<serde_json::Error> for HandlerError {
    fn from(error: serde_json::Error) -> Self {
        Self::poison(error)
    }
}
