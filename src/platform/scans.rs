//! Scans: background work that one instance does at a time.
//!
//! A scan is a row in the table `scans` of its role's schema. The instance that holds it renews it
//! at every tick; when it dies or is frozen, another takes over after [`HELD_S`]. The row carries
//! the position where the scan goes on. Nothing here is a lock: an instance that was frozen in
//! the middle of a tick finishes that tick, so every tick must be harmless when two run at once.

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{PgPool, types::Json};
use uuid::Uuid;

/// So soon another instance takes over. A tick that comes later than that may find that it has
/// lost its scan, which costs nothing.
const HELD_S: f64 = 9.0;

/// One scan, as this instance sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Scan {
    pool: PgPool,
    name: &'static str,
    holder: Uuid,
}

impl Scan {
    /// The scan `name` in the schema of `pool`.
    pub fn new(pool: PgPool, name: &'static str) -> Self {
        Self {
            pool,
            name,
            holder: Uuid::now_v7(),
        }
    }

    /// Takes or renews the scan: false while another instance holds it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn hold(&self) -> sqlx::Result<bool> {
        let held = sqlx::query(
            "insert into scans as s (name, holder, held_until)
             values ($1, $2, now() + make_interval(secs => $3))
             on conflict (name) do update set holder = excluded.holder, held_until = excluded.held_until
             where s.holder = excluded.holder or s.held_until < now()",
        )
        .bind(self.name)
        .bind(self.holder)
        .bind(HELD_S)
        .execute(&self.pool)
        .await?;
        Ok(held.rows_affected() == 1)
    }

    /// Where the scan goes on; `None` at its beginning, or when the position cannot be read.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn position<T: DeserializeOwned>(&self) -> sqlx::Result<Option<T>> {
        let found: Option<Option<Json<serde_json::Value>>> =
            sqlx::query_scalar("select position from scans where name = $1")
                .bind(self.name)
                .fetch_optional(&self.pool)
                .await?;
        Ok(found
            .flatten()
            .and_then(|Json(value)| serde_json::from_value(value).ok()))
    }

    /// Notes where the scan goes on, while this instance still holds it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn save<T: Serialize + Sync>(&self, position: &T) -> sqlx::Result<()> {
        sqlx::query("update scans set position = $3 where name = $1 and holder = $2")
            .bind(self.name)
            .bind(self.holder)
            .bind(Json(position))
            .execute(&self.pool)
            .await?;
        Ok(())
    }
}
