//! Stripe's list of intents, compared with the payments.
//!
//! The newest page at every tick, so that an orphan is found within a minute even if every event
//! about it was lost; behind it a cursor that passes over every intent once, when it is old
//! enough to be final; and, after a restore of PostgreSQL, every intent since then.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::types::Json as Column;
use uuid::Uuid;

use super::machine::PaymentState;
use super::orphans::ORPHAN_CAPTURE;
use super::store::{self, Payment};
use super::stripe::{ListedIntent, Page, Stretch, StripeFailure};
use super::{Error, Payments};
use crate::platform::alarms;
use crate::platform::auth::Internal;
use crate::platform::http::{Json, Path};
use crate::platform::scans::Scan;

/// Stripe is asked for the newest page so often.
pub(super) const SCAN_EVERY: Duration = Duration::from_secs(15);
/// A restore is matched without a pause but what Stripe's limits impose.
pub(super) const MATCH_EVERY: Duration = Duration::from_secs(2);
/// An intent so old has been paid, or cancelled with its hold.
const FINAL_S: i64 = 1_800;
/// The cursor goes on in steps of so many seconds.
const STEP_S: i64 = 600;
/// Pages behind the newest in one tick.
const PAGES_A_TICK: usize = 3;
/// Pages of a restore in one tick, each saved.
const PAGES_A_MATCH: usize = 20;
/// An intent captured after a moment was created at most so long before it.
const CREATED_BEFORE_S: i64 = 7_200;
/// Far more than are late at once.
const LATE_MAX: usize = 10_000;
const NOT_PAID: &str = "PAYMENT_NOT_CAPTURED";

/// Where the cursor is: `[from, to)` is being read, behind `after`.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Cursor {
    from: i64,
    to: i64,
    after: Option<String>,
}

impl Cursor {
    fn stretch(&self) -> Stretch {
        Stretch {
            from: Some(self.from),
            to: Some(self.to),
            after: self.after.clone(),
        }
    }
}

/// Intents that were paid at the last tick and not known to be: their event had its time.
pub(super) type Late = Mutex<HashSet<String>>;

/// Which intents a page shows.
#[derive(Clone, Copy)]
enum Pass<'a> {
    /// The newest: what was paid a moment ago is left to its event.
    Newest(&'a Late),
    /// Long final.
    Final,
    /// Since a restore: nobody may pay any more for what PostgreSQL has lost.
    Restore,
}

impl Pass<'_> {
    /// Is the event of this capture given until the next tick to arrive?
    fn waits_for(self, listed: &ListedIntent, payment: &Payment) -> bool {
        let Self::Newest(late) = self else {
            return false;
        };
        let mut late = late.lock().unwrap_or_else(PoisonError::into_inner);
        if !listed.is_paid() || payment.state() == PaymentState::Succeeded {
            late.remove(&listed.id);
            return false;
        }
        if late.len() >= LATE_MAX {
            late.clear();
        }
        late.insert(listed.id.clone())
    }
}

/// What PostgreSQL had before a restore is matched with Stripe.
#[derive(Clone, Debug)]
struct Restore {
    id: Uuid,
    since: DateTime<Utc>,
    begun_at: DateTime<Utc>,
    position: Option<Column<Cursor>>,
    matched: i64,
    problem: Option<String>,
    done_at: Option<DateTime<Utc>>,
}

crate::from_row!(Restore {
    id,
    since,
    begun_at,
    position,
    matched,
    problem,
    done_at
});

const RESTORE: &str =
    "select id, since, begun_at, position, matched, problem, done_at from restores";

impl Payments {
    /// One tick over the newest intents, and on with the cursor.
    pub(super) async fn scan_stripe(&self, scan: &Scan, late: &Late) -> Result<(), Error> {
        if !scan.hold().await? {
            return Ok(());
        }
        let installation = self.installation().await?;
        let newest = self.list(&Stretch::default()).await?;
        self.compare_intents(installation, &newest, Pass::Newest(late))
            .await?;
        let begun: DateTime<Utc> = sqlx::query_scalar("select created_at from installation")
            .fetch_one(&self.pool)
            .await?;
        let first = begun.timestamp() - 60;
        let mut cursor = scan.position::<Cursor>().await?.unwrap_or(Cursor {
            from: first,
            to: first + STEP_S,
            after: None,
        });
        for _ in 0..PAGES_A_TICK {
            if cursor.to > Utc::now().timestamp() - FINAL_S || !scan.hold().await? {
                break;
            }
            let page = self.list(&cursor.stretch()).await?;
            self.compare_intents(installation, &page, Pass::Final)
                .await?;
            cursor = match page.items.last().filter(|_| page.more) {
                Some(last) => Cursor {
                    after: Some(last.id.clone()),
                    ..cursor
                },
                None => Cursor {
                    from: cursor.to,
                    to: cursor.to + STEP_S,
                    after: None,
                },
            };
            scan.save(&cursor).await?;
        }
        Ok(())
    }

    async fn list(&self, stretch: &Stretch) -> Result<Page<ListedIntent>, Error> {
        self.stripe
            .list_intents(stretch)
            .await
            .map_err(Error::Stripe)
    }

    async fn compare_intents(
        &self,
        installation: Uuid,
        page: &Page<ListedIntent>,
        pass: Pass<'_>,
    ) -> Result<(), Error> {
        let installation = installation.to_string();
        let ours: Vec<&ListedIntent> = (page.items.iter())
            .filter(|i| i.live == self.stripe.live())
            .filter(|i| i.metadata.get("installation") == Some(&installation))
            .collect();
        let intents: Vec<String> = ours.iter().map(|i| i.id.clone()).collect();
        let ids: Vec<Uuid> = ours.iter().filter_map(|i| i.named("payment_id")).collect();
        let known = store::by_intents(&self.pool, &intents, &ids).await?;
        for listed in ours {
            let payment = (known.iter())
                .find(|p| p.intent_id.as_ref() == Some(&listed.id))
                .or_else(|| {
                    known
                        .iter()
                        .find(|p| Some(p.id) == listed.named("payment_id"))
                });
            match payment {
                Some(payment) if pass.waits_for(listed, payment) => {}
                Some(payment) => self.compare_known(listed, payment).await?,
                None => self.compare_unknown(listed, pass).await?,
            }
        }
        Ok(())
    }

    async fn compare_known(&self, listed: &ListedIntent, payment: &Payment) -> Result<(), Error> {
        let same = payment.intent_id.as_ref() == Some(&listed.id);
        let captured = payment.state() == PaymentState::Succeeded;
        if listed.is_paid() && !(same && captured) {
            // Settled as after a lost webhook, or an alarm says what does not fit.
            let intent = self
                .stripe
                .intent(&listed.id)
                .await
                .map_err(Error::Stripe)?;
            self.settle(payment, &intent).await?;
        } else if same && captured && !listed.is_paid() {
            let detail = format!(
                "payment {} is SUCCEEDED, and its intent {} is {} at Stripe",
                payment.id, listed.id, listed.status
            );
            let key = payment.id.to_string();
            let alarm = store::about(NOT_PAID, &key, payment, &detail);
            alarms::raise_once(&mut *self.pool.acquire().await?, &alarm).await?;
        } else if same && captured && listed.refunded != payment.refunded_amount {
            self.sync_refunds(payment).await?;
        }
        Ok(())
    }

    async fn compare_unknown(&self, listed: &ListedIntent, pass: Pass<'_>) -> Result<(), Error> {
        let restoring = matches!(pass, Pass::Restore);
        if listed.is_paid() {
            let intent = self
                .stripe
                .intent(&listed.id)
                .await
                .map_err(Error::Stripe)?;
            self.adopt(&intent, restoring).await?;
        } else if restoring && listed.is_open() {
            // It may be paid at this very moment: then the answer says so.
            let intent = self
                .stripe
                .cancel_intent(&listed.id)
                .await
                .map_err(Error::Stripe)?;
            self.adopt(&intent, restoring).await?;
        }
        Ok(())
    }

    /// One tick of what follows a restore.
    pub(super) async fn match_restores(&self, scan: &Scan) -> Result<(), Error> {
        let sql = format!("{RESTORE} where done_at is null order by begun_at limit 1");
        let open: Option<Restore> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .fetch_optional(&self.pool)
            .await?;
        let Some(restore) = open else {
            return Ok(());
        };
        if !scan.hold().await? {
            return Ok(());
        }
        let matched = self.match_restore(scan, &restore).await;
        if let Err(error) = &matched {
            let problem = match error {
                Error::Stripe(StripeFailure::Unknown(why)) => format!("Stripe: {why}"),
                other => format!("{other:?}"),
            };
            sqlx::query("update restores set problem = $2 where id = $1")
                .bind(restore.id)
                .bind(problem.chars().take(500).collect::<String>())
                .execute(&self.pool)
                .await?;
        }
        matched
    }

    async fn match_restore(&self, scan: &Scan, restore: &Restore) -> Result<(), Error> {
        let installation = self.installation().await?;
        let mut cursor = match &restore.position {
            Some(Column(cursor)) => cursor.clone(),
            None => Cursor {
                from: restore.since.timestamp() - CREATED_BEFORE_S,
                to: restore.begun_at.timestamp() + 60,
                after: None,
            },
        };
        for _ in 0..PAGES_A_MATCH {
            if cursor.from >= cursor.to || !scan.hold().await? {
                break;
            }
            let page = self.list(&cursor.stretch()).await?;
            self.compare_intents(installation, &page, Pass::Restore)
                .await?;
            match page.items.last().filter(|_| page.more) {
                Some(last) => cursor.after = Some(last.id.clone()),
                None => cursor.from = cursor.to,
            }
            sqlx::query(
                "update restores set position = $2, matched = matched + $3, problem = null where id = $1",
            )
            .bind(restore.id)
            .bind(Column(&cursor))
            .bind(i64::try_from(page.items.len()).unwrap_or(0))
            .execute(&self.pool)
            .await?;
        }
        if cursor.from < cursor.to {
            return Ok(());
        }
        // Every capture has its order, or somebody was told that it has none.
        sqlx::query(
            "update restores set done_at = now(), problem = null
             where id = $1 and not exists (
                 select 1 from payments p where p.state = 'SUCCEEDED' and p.accounted_at is null
                     and p.id >= $2
                     and not exists (select 1 from alarms a where a.kind = any($3)
                         and a.payment_id = p.id and a.raised_at >= $4))",
        )
        .bind(restore.id)
        .bind(first_since(restore.since))
        .bind(&[ORPHAN_CAPTURE, "PAYMENT_UNACCOUNTED"][..])
        .bind(restore.begun_at)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// The smallest id of a payment that may have been captured since then: ids are UUIDv7.
fn first_since(since: DateTime<Utc>) -> Uuid {
    let ms = (since.timestamp() - CREATED_BEFORE_S) * 1_000;
    let ms = u64::try_from(ms).unwrap_or(0);
    uuid::Builder::from_unix_timestamp_millis(ms, &[0; 10]).into_uuid()
}

/// From when on PostgreSQL has lost what it had.
#[derive(Debug, Deserialize)]
pub(super) struct Since {
    since: DateTime<Utc>,
}

/// How far a restore is matched.
#[derive(Debug, Serialize)]
pub(super) struct Matching {
    matched: i64,
    done: bool,
    problem: Option<String>,
}

/// Begins to match every capture since then, and says how far that is.
pub(super) async fn restore(
    State(payments): State<Payments>,
    _: Internal,
    Path(id): Path<Uuid>,
    Json(asked): Json<Since>,
) -> Result<Json<Matching>, Error> {
    let mut tx = payments.pool.begin().await?;
    let new =
        sqlx::query("insert into restores (id, since) values ($1, $2) on conflict do nothing")
            .bind(id)
            .bind(asked.since)
            .execute(&mut *tx)
            .await?;
    if new.rows_affected() == 1 {
        // Where payments has a database of its own, it knows payments whose orders are lost.
        sqlx::query(
            "update payments set accounted_at = null, account_after = now(), account_tries = 0
             where state = 'SUCCEEDED' and id >= $1",
        )
        .bind(first_since(asked.since))
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    let sql = format!("{RESTORE} where id = $1");
    let now: Restore = sqlx::query_as(sqlx::AssertSqlSafe(sql))
        .bind(id)
        .fetch_one(&payments.pool)
        .await?;
    Ok(Json(Matching {
        matched: now.matched,
        done: now.done_at.is_some(),
        problem: now.problem,
    }))
}

/// Raises or clears the alarms of this role about its own events.
pub(super) async fn watch_events(payments: &Payments) -> Result<(), Error> {
    let mut conn = payments.pool.acquire().await?;
    alarms::watch_events(&mut conn, super::SCHEMA).await?;
    Ok(())
}
