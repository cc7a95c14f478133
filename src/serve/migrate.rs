//! Brings every schema to its newest version, with or without a server that has done so
//! before: for `ticketping seed`.

use super::{payments, performances, queue, reservations, users};
use crate::platform::db;

/// Migrates every schema of the sale (the Stripe sandbox keeps its own). Roles migrate their own as they start; doing it twice
/// does nothing, and any number of processes may do it at once.
///
/// # Errors
/// When the database is away, or a migration fails.
pub async fn migrate_all(database_url: &str) -> Result<(), String> {
    for (schema, migrator) in [
        (users::SCHEMA, &users::MIGRATOR),
        (performances::SCHEMA, &performances::MIGRATOR),
        (queue::SCHEMA, &queue::MIGRATOR),
        (reservations::SCHEMA, &reservations::MIGRATOR),
        (payments::SCHEMA, &payments::MIGRATOR),
    ] {
        let pool = db::pool(database_url, schema, 1)?;
        db::migrate(&pool, schema, migrator).await?;
        pool.close().await;
    }
    Ok(())
}
