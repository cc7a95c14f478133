//! The schemas of the roles, and bringing them up to date: for `ticketping migrate` and `seed`.
//! Roles migrate their own as they start, unless told otherwise.

use std::time::{Duration, Instant};

use sqlx::migrate::Migrator;

use super::{payments, performances, queue, reservations, stripe_sandbox, users};
use crate::platform::{
    db::{self, StartError, Versions},
    failure::Failure,
};

/// Between two tries of a migration that did not get its locks.
const RETRY: Duration = Duration::from_millis(500);

/// A role with a schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Schema {
    /// Members and sessions
    Users,
    /// Halls, performances, seats as they are built
    Performances,
    /// The waiting room
    Queue,
    /// Orders and tickets
    Reservations,
    /// Payments and refunds
    Payments,
    /// The Stripe sandbox
    StripeSandbox,
}

impl Schema {
    /// Those of a sale; the sandbox is none of it.
    pub const SALE: [Self; 5] = [
        Self::Users,
        Self::Performances,
        Self::Queue,
        Self::Reservations,
        Self::Payments,
    ];

    /// Its name in the database.
    pub fn name(self) -> &'static str {
        self.parts().0
    }

    fn parts(self) -> (&'static str, &'static Migrator) {
        match self {
            Self::Users => (users::SCHEMA, &users::MIGRATOR),
            Self::Performances => (performances::SCHEMA, &performances::MIGRATOR),
            Self::Queue => (queue::SCHEMA, &queue::MIGRATOR),
            Self::Reservations => (reservations::SCHEMA, &reservations::MIGRATOR),
            Self::Payments => (payments::SCHEMA, &payments::MIGRATOR),
            Self::StripeSandbox => (stripe_sandbox::SCHEMA, &stripe_sandbox::MIGRATIONS),
        }
    }

    /// How it stands in the database to this binary.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn versions(self, database_url: &str) -> Result<Versions, Failure> {
        let (schema, migrator) = self.parts();
        let pool = db::pool(database_url, schema, 1).map_err(Failure::Usage)?;
        let versions = db::versions(&pool, schema, migrator).await;
        pool.close().await;
        versions.map_err(|e| Failure::Failed(e.to_string()))
    }

    /// Brings it up to date; what is locked or away is tried again for `patience`.
    ///
    /// # Errors
    /// When that is over, or a migration fails.
    pub async fn migrate(self, database_url: &str, patience: Duration) -> Result<(), Failure> {
        let (schema, migrator) = self.parts();
        let pool = db::pool(database_url, schema, 1).map_err(Failure::Usage)?;
        let begun = Instant::now();
        let outcome = loop {
            match db::migrate(&pool, schema, migrator).await {
                Ok(()) => break Ok(()),
                Err(StartError::Away(cause)) if begun.elapsed() < patience => {
                    tracing::warn!(
                        schema,
                        error = cause,
                        "the migration of {schema} is tried again"
                    );
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => break Err(Failure::Failed(error.to_string())),
            }
        };
        pool.close().await;
        outcome
    }
}

/// Migrates every schema of the sale.
///
/// # Errors
/// When the database is away, or a migration fails.
pub async fn migrate_all(database_url: &str) -> Result<(), String> {
    for schema in Schema::SALE {
        schema
            .migrate(database_url, Duration::from_secs(60))
            .await
            .map_err(|failure| failure.to_string())?;
    }
    Ok(())
}
