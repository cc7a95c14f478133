//! Leases: work that one instance at a time does, whichever is alive.
//!
//! A lease is a row in the table `leases` of a role's schema ([`DDL`]): a name, its holder, a
//! fencing token and the moment until which it is held, by the database's clock. An instance
//! takes a lease that is free or has run out, renews it every third of its term, and stops by its
//! own monotonic clock when a renewal did not arrive in time. No database session and no lock is
//! held in between, so an instance that is frozen, or cut off with its connections open, loses
//! its leases within [`TERM`]; another takes them at its next try, at most [`TAKEOVER_MAX`] later.
//!
//! A lease keeps two instances from working side by side. It cannot keep a thawed instance from
//! finishing the one step that it was in. Rows are protected by [`Held::confirm`] in the
//! transaction of the effect; a message that leaves the database must be harmless when it comes
//! twice or late.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};
use prometheus_client::registry::Registry;
use sqlx::{PgConnection, PgPool, Row};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::db;
use super::metrics::Metrics;

/// Copy into a migration of every schema with leases.
pub const DDL: &str = "\
create table leases (
    name   text primary key,
    holder uuid not null,
    fence  bigint not null default 1,
    until  timestamptz not null
);";

/// How long a lease lasts that is not renewed. It bounds what a frozen instance holds up; three
/// renewals fit into it, so that one slow commit does not lose it.
pub const TERM: Duration = Duration::from_secs(6);
/// How often an instance without the lease tries to take it.
const TRY_EVERY: Duration = Duration::from_secs(1);
/// From an instance's last renewal to the work of the next holder.
pub const TAKEOVER_MAX: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    role: &'static str,
    lease: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ChangeOf {
    role: &'static str,
    lease: String,
    change: &'static str,
}

/// What the process's leases show in its metrics. Cheap to clone.
#[derive(Clone, Default)]
pub struct LeaseMetrics {
    held: Family<Of, Gauge>,
    changes: Family<ChangeOf, Counter>,
}

impl LeaseMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "lease_held",
            "1 while this instance holds the lease",
            self.held.clone(),
        );
        registry.register(
            "lease_changes",
            "Leases acquired, lost (not renewed in time) and released by this instance",
            self.changes.clone(),
        );
    }

    pub(super) fn changed(&self, role: &'static str, lease: &str, change: &'static str) {
        let label = Of {
            role,
            lease: lease.to_owned(),
        };
        let held = i64::from(change == ACQUIRED);
        self.held.get_or_create(&label).set(held);
        self.changes
            .get_or_create(&ChangeOf {
                role,
                lease: lease.to_owned(),
                change,
            })
            .inc();
    }
}

pub(super) const ACQUIRED: &str = "acquired";
pub(super) const LOST: &str = "lost";
pub(super) const RELEASED: &str = "released";

/// The leases of one role's schema. Cheap to clone.
#[derive(Clone)]
pub struct Leases {
    pool: PgPool,
    role: &'static str,
    metrics: LeaseMetrics,
}

/// A lease that this instance holds. Clones share its deadline.
#[derive(Clone)]
pub struct Held {
    leases: Leases,
    name: String,
    holder: Uuid,
    fence: i64,
    term: Duration,
    deadline: Arc<Mutex<Instant>>,
}

impl Leases {
    /// The leases in the schema of `pool`, whose metrics carry the name of `role`.
    #[must_use]
    pub fn new(pool: PgPool, role: &'static str, metrics: &Metrics) -> Self {
        Self {
            pool,
            role,
            metrics: metrics.leases(),
        }
    }

    /// Takes the lease `name` for `term` where nobody holds it. `name` is one of a few constants:
    /// it is a label of metrics.
    ///
    /// # Errors
    /// When the database fails, or does not answer within the term.
    pub async fn try_acquire(&self, name: &str, term: Duration) -> sqlx::Result<Option<Held>> {
        // Asked before the database counts: this clock runs out first.
        let deadline = Instant::now() + term;
        let holder = Uuid::now_v7();
        let taken = db::within(term, async {
            let names = [name.to_owned()];
            acquire_all(&mut *self.pool.acquire().await?, &names, holder, term).await
        })
        .await?;
        let Some((_, fence)) = taken.into_iter().next() else {
            return Ok(None);
        };
        let held = Held {
            leases: self.clone(),
            name: name.to_owned(),
            holder,
            fence,
            term,
            deadline: Arc::new(Mutex::new(deadline)),
        };
        self.metrics.changed(self.role, name, ACQUIRED);
        Ok(held.is_valid().then_some(held))
    }

    /// Runs `work` while this instance holds the lease `name`, until `stop`.
    ///
    /// The lease is renewed beside `work`. When it is lost, or `stop` comes, `work` is dropped
    /// where it stands, so it must be safe to cut off at any `.await`, as a crash would. When
    /// `work` ends by itself, the lease is released and taken anew, by this instance or another.
    pub async fn run_while_held<F, Fut>(
        &self,
        name: &str,
        term: Duration,
        stop: &CancellationToken,
        mut work: F,
    ) where
        F: FnMut(Held) -> Fut + Send,
        Fut: Future<Output = ()> + Send,
    {
        let mut away = false;
        loop {
            match self.try_acquire(name, term).await {
                Ok(Some(held)) => {
                    away = false;
                    tokio::select! {
                        // A thawed instance sees that its lease has run out before it goes on.
                        biased;
                        () = stop.cancelled() => held.release().await,
                        () = held.lost() => {}
                        () = work(held.clone()) => held.release().await,
                    }
                }
                Ok(None) => away = false,
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(role = self.role, lease = name, %error, "cannot take lease; trying again");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(jittered(TRY_EVERY)) => {}
            }
        }
    }
}

impl Held {
    /// The fencing token: higher than that of every earlier holder.
    #[must_use]
    pub fn fence(&self) -> i64 {
        self.fence
    }

    /// Whether the lease surely still lasts, by this process's own clock.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        Instant::now() < self.deadline()
    }

    fn deadline(&self) -> Instant {
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the end of the lease to a term from now; false when another instance has it.
    ///
    /// # Errors
    /// When the database fails, or does not answer before the lease ends.
    pub async fn renew(&self) -> sqlx::Result<bool> {
        let asked = Instant::now();
        let left = self.deadline().saturating_duration_since(asked);
        let renewed = db::within(left, async {
            let mut conn = self.leases.pool.acquire().await?;
            let names = std::slice::from_ref(&self.name);
            renew_all(&mut conn, names, self.holder, self.term).await
        })
        .await?;
        if renewed.is_empty() {
            return Ok(false);
        }
        *self.deadline.lock().unwrap_or_else(PoisonError::into_inner) = asked + self.term;
        Ok(true)
    }

    /// Whether this holder still has the lease, asked in the caller's transaction: nobody takes
    /// it over before that ends. Call it before the writes that the lease protects.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn confirm(&self, conn: &mut PgConnection) -> sqlx::Result<bool> {
        let mine: Option<bool> =
            sqlx::query_scalar("select true from leases where name = $1 and holder = $2 for share")
                .bind(&self.name)
                .bind(self.holder)
                .fetch_optional(conn)
                .await?;
        Ok(mine.is_some())
    }

    /// Renews until that fails for as long as the lease lasts.
    async fn lost(&self) {
        loop {
            let now = Instant::now();
            let next = (now + jittered(self.term / 3)).min(self.deadline());
            tokio::time::sleep_until(next).await;
            match self.renew().await {
                Ok(true) if self.is_valid() => continue,
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    tracing::debug!(lease = self.name, %error, "lease not renewed now");
                }
            }
            if !self.is_valid() {
                break;
            }
            tokio::time::sleep(jittered(self.term / 12)).await;
        }
        tracing::warn!(
            role = self.leases.role,
            lease = self.name,
            fence = self.fence,
            "lost lease: it was not renewed in time; another instance takes it over"
        );
        self.leases
            .metrics
            .changed(self.leases.role, &self.name, LOST);
    }

    /// Gives the lease up, so that the next instance need not wait for its end.
    pub async fn release(self) {
        let released = db::within(TRY_EVERY, async {
            let mut conn = self.leases.pool.acquire().await?;
            release_all(&mut conn, std::slice::from_ref(&self.name), self.holder).await
        });
        if let Err(error) = released.await {
            tracing::debug!(lease = self.name, %error, "lease not released: it runs out by itself");
        }
        self.leases
            .metrics
            .changed(self.leases.role, &self.name, RELEASED);
    }
}

/// Takes those of `names` that are free, or `holder`'s own, with their fencing tokens.
pub(super) async fn acquire_all(
    conn: &mut PgConnection,
    names: &[String],
    holder: Uuid,
    term: Duration,
) -> sqlx::Result<Vec<(String, i64)>> {
    // Read first: `on conflict` locks the row of a lease that is held, at every try.
    let rows = sqlx::query(
        "with free as (
             select w.name from unnest($1::text[]) as w (name)
             left join leases l on l.name = w.name
             where l.name is null or l.until <= clock_timestamp() or l.holder = $2)
         insert into leases as l (name, holder, fence, until)
         select name, $2, 1, clock_timestamp() + make_interval(secs => $3) from free order by name
         on conflict (name) do update
             set holder = excluded.holder, fence = l.fence + 1, until = excluded.until
             where l.until <= clock_timestamp() or l.holder = $2
         returning name, fence::bigint as fence",
    )
    .bind(names)
    .bind(holder)
    .bind(term.as_secs_f64())
    .fetch_all(conn)
    .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("name")?, row.try_get("fence")?)))
        .collect()
}

/// Renews those of `names` that `holder` still has; their names.
pub(super) async fn renew_all(
    conn: &mut PgConnection,
    names: &[String],
    holder: Uuid,
    term: Duration,
) -> sqlx::Result<Vec<String>> {
    sqlx::query_scalar(
        "update leases set until = clock_timestamp() + make_interval(secs => $3)
         where name in (select name from leases where name = any($1) and holder = $2
                        order by name for update)
         returning name",
    )
    .bind(names)
    .bind(holder)
    .bind(term.as_secs_f64())
    .fetch_all(conn)
    .await
}

pub(super) async fn release_all(
    conn: &mut PgConnection,
    names: &[String],
    holder: Uuid,
) -> sqlx::Result<()> {
    sqlx::query(
        "update leases set until = '-infinity'
         where name in (select name from leases where name = any($1) and holder = $2
                        order by name for update)",
    )
    .bind(names)
    .bind(holder)
    .execute(conn)
    .await?;
    Ok(())
}

/// The time given, a fifth more or less: instances do not act in step.
pub(super) fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::random_range(0.8..1.2))
}
