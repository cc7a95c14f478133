//! The shards of an outbox that a relay may deliver: one lease each.

use std::sync::{Arc, Mutex, PoisonError};

use sqlx::PgConnection;
use tokio::time::Instant;
use uuid::Uuid;

use super::outbox::SHARDS;
use crate::platform::lease::{self, LeaseMetrics, TERM};

/// Until when a relay's leases surely last, by this process's own clock. Shared with its deliveries.
#[derive(Clone)]
pub(super) struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    pub(super) fn has_passed(&self) -> bool {
        Instant::now() >= *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, at: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }
}

/// The leases of one relay. They outlive its connection: a relay whose database was away takes
/// its own shards again at once.
pub(super) struct Shards {
    role: &'static str,
    holder: Uuid,
    held: Vec<i16>,
    deadline: Deadline,
    renew_at: Instant,
    metrics: LeaseMetrics,
}

impl Shards {
    pub(super) fn new(role: &'static str, metrics: LeaseMetrics) -> Self {
        let now = Instant::now();
        Self {
            role,
            holder: Uuid::now_v7(),
            held: Vec::new(),
            deadline: Deadline(Arc::new(Mutex::new(now))),
            renew_at: now,
            metrics,
        }
    }

    /// The shards to deliver now; none once the leases have run out.
    pub(super) fn held(&self) -> &[i16] {
        if self.deadline.has_passed() {
            &[]
        } else {
            &self.held
        }
    }

    pub(super) fn deadline(&self) -> Deadline {
        self.deadline.clone()
    }

    pub(super) fn are_all_held(&self) -> bool {
        self.held().len() == SHARDS as usize
    }

    /// Renews what is held, when that is due, and takes what is free.
    pub(super) async fn keep(&mut self, conn: &mut PgConnection) -> sqlx::Result<()> {
        let asked = Instant::now();
        if !self.held.is_empty() && asked >= self.renew_at {
            let names = names(&self.held);
            let renewed = lease::renew_all(conn, &names, self.holder, TERM).await?;
            self.retain(&renewed);
            self.deadline.set(asked + TERM);
            self.renew_at = asked + lease::jittered(TERM / 3);
        }
        if self.held.len() == SHARDS as usize {
            return Ok(());
        }
        let missing: Vec<i16> = (0..SHARDS)
            .filter(|shard| !self.held.contains(shard))
            .collect();
        let asked = Instant::now();
        let taken = lease::acquire_all(conn, &names(&missing), self.holder, TERM).await?;
        if self.held.is_empty() && !taken.is_empty() {
            self.deadline.set(asked + TERM);
            self.renew_at = asked + lease::jittered(TERM / 3);
        }
        for (name, _) in taken {
            self.metrics.changed(self.role, &name, lease::ACQUIRED);
            self.held.extend(shard_of(&name));
        }
        Ok(())
    }

    fn retain(&mut self, renewed: &[String]) {
        let (role, metrics) = (self.role, &self.metrics);
        let before = self.held.len();
        self.held.retain(|shard| {
            let name = name(*shard);
            let kept = renewed.contains(&name);
            if !kept {
                metrics.changed(role, &name, lease::LOST);
            }
            kept
        });
        let lost = before - self.held.len();
        if lost > 0 {
            tracing::warn!(
                outbox = role,
                shards = lost,
                "relay lost its leases: they were not renewed in time; another relay delivers"
            );
        }
    }

    /// Gives the shards up, so that another relay need not wait for their leases to end.
    pub(super) async fn release(&mut self, conn: &mut PgConnection) -> sqlx::Result<()> {
        let held = std::mem::take(&mut self.held);
        for shard in &held {
            self.metrics
                .changed(self.role, &name(*shard), lease::RELEASED);
        }
        if held.is_empty() {
            return Ok(());
        }
        lease::release_all(conn, &names(&held), self.holder).await
    }
}

fn name(shard: i16) -> String {
    format!("outbox-{shard}")
}

fn names(shards: &[i16]) -> Vec<String> {
    shards.iter().map(|shard| name(*shard)).collect()
}

fn shard_of(name: &str) -> Option<i16> {
    name.strip_prefix("outbox-")?.parse().ok()
}
