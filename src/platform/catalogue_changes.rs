//! How every instance of every role that caches a performance's times and prices learns of a change. An event reaches one
//! instance of a consumer group; a cache stands in each of them. So each asks, a few times a second, for what has changed
//! since it asked last: one indexed query, which finds nothing as a rule.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::upstream::{Upstream, UpstreamError};

/// How often an instance asks. A change is in effect everywhere within a second.
pub const EVERY: std::time::Duration = std::time::Duration::from_millis(500);
/// Where changes are read.
pub const PATH: &str = "/internal/v1/catalogue/changes";

/// A performance that has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changed {
    /// Which.
    pub performance_id: Uuid,
    /// Tells one change from another; the same one may be reported twice.
    pub version: String,
}

/// What has changed since an earlier reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Changes {
    /// Where the next reading goes on.
    pub cursor: String,
    /// The cursor was of another history (a restored database): anything may have changed.
    pub reset: bool,
    /// Performances whose times, prices or schedules have changed.
    pub changed: Vec<Changed>,
    /// Performances of which a schedule's sales have ended by time.
    pub ended: Vec<Uuid>,
}

/// Follows the changes, for one instance.
pub struct Follower {
    performances: Upstream,
    cursor: Option<String>,
    seen: HashMap<Uuid, String>,
    failures: u64,
}

impl Follower {
    /// Begins at what is true now, and with the sales that ended in the last days.
    pub fn new(performances: Upstream) -> Self {
        Self {
            performances,
            cursor: None,
            seen: HashMap::new(),
            failures: 0,
        }
    }

    /// What is new, each change once.
    ///
    /// # Errors
    /// When performances does not answer; the next call makes up for it.
    pub async fn next(&mut self) -> Result<Changes, UpstreamError> {
        let path = match &self.cursor {
            Some(cursor) => format!("{PATH}?since={cursor}"),
            None => PATH.to_owned(),
        };
        let mut changes: Changes = self.performances.get_json(&path).await?;
        // A transaction that runs for long has its contemporaries reported again and again.
        let seen = std::mem::take(&mut self.seen);
        for changed in &changes.changed {
            self.seen
                .insert(changed.performance_id, changed.version.clone());
        }
        changes
            .changed
            .retain(|c| seen.get(&c.performance_id) != Some(&c.version));
        self.cursor = Some(changes.cursor.clone());
        Ok(changes)
    }

    /// What is new, or `None`, which is logged at first and then once a minute.
    pub async fn next_logged(&mut self, role: &'static str) -> Option<Changes> {
        match self.next().await {
            Ok(changes) => {
                self.failures = 0;
                Some(changes)
            }
            Err(error) => {
                if self.failures.is_multiple_of(120) {
                    tracing::warn!(role, %error, "cannot ask for changes of the catalogue; what is cached stays");
                }
                self.failures += 1;
                None
            }
        }
    }
}
