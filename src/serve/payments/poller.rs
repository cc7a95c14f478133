//! Stripe's list of events, read now and then: what no webhook brought is taken up all the same.
//!
//! One instance reads at a time, under a lease in PostgreSQL with a heartbeat; where it stopped
//! stands there too. An event that was found goes the way of a webhook. Idle, this is one call a
//! minute; while buyers wait for the news of their payment it is read every few seconds, once for
//! all of them. What is found and never comes by webhook is an alarm.

use std::time::Duration;

use serde_json::Value;
use sqlx::PgPool;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::stripe::{PAGE, Start, StripeFailure};
use super::{Error, Payments, webhook};
use crate::platform::alarms::{self, Alarm};

/// How often an instance sees whether the list is due, and whether anything is wrong.
const TICK: Duration = Duration::from_secs(5);
/// A buyer's news may be on its way: so long it is waited for, and so long lies between two reads.
const HINT_DELAY: Duration = Duration::from_secs(1);
const HINT_GAP_S: f64 = 2.0;
/// While events are known to be missing.
const MISSING_EVERY: Duration = Duration::from_secs(10);
/// A webhook is late after this; Stripe delivers within seconds.
const LATE: Duration = Duration::from_secs(30);
const LEASE_S: f64 = 9.0;
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// Events may show up in the list a little after younger ones.
const OVERLAP_S: i64 = 120;
/// Where nothing was read before.
const FIRST_S: i64 = 300;
/// Pages of one read; what is left is read at once after it.
const PAGES_MAX: usize = 50;
/// Of one that goes by time, which cannot be continued: 200,000 events.
const SWEEP_PAGES_MAX: usize = 2_000;
/// The longest wait of a create for the rate limits that is no alarm.
const CREATE_WAIT_MAX_MS: i32 = 2_000;

/// Found in Stripe's list, never delivered.
pub const WEBHOOKS_MISSING: &str = "WEBHOOKS_MISSING";
/// Delivered, and refused for its signature.
pub const WEBHOOK_SIGNATURES_FAIL: &str = "WEBHOOK_SIGNATURES_FAIL";
/// Creates wait for the rate limits.
pub const STRIPE_CREATES_SLOW: &str = "STRIPE_CREATES_SLOW";
/// Stripe refuses our key, or what it is to do.
pub const STRIPE_KEY_REFUSED: &str = "STRIPE_KEY_REFUSED";

/// Where the read before stopped.
#[derive(Debug)]
struct Cursor {
    last_event_id: Option<String>,
    last_event_at: Option<i64>,
    /// When a read with overlap was begun last; `None` when the next one is due.
    swept_at: Option<i64>,
    sweep: bool,
}

crate::from_row!(Cursor {
    last_event_id,
    last_event_at,
    swept_at,
    sweep
});

/// Reads until the stop.
pub(super) async fn run(payments: Payments, stop: CancellationToken) {
    let poller = Poller {
        payments: payments.background(),
        me: Uuid::now_v7(),
    };
    let mut hinted = false;
    let mut failing = false;
    let mut ticked: Option<Instant> = None;
    loop {
        let pause = if hinted { HINT_DELAY } else { TICK };
        tokio::select! {
            () = stop.cancelled() => return,
            () = payments.news.notified(), if !hinted => {
                hinted = true;
                continue;
            }
            () = tokio::time::sleep(pause) => {}
        }
        let looked = tokio::select! {
            () = stop.cancelled() => return,
            looked = poller.look(hinted) => looked,
        };
        match looked {
            Ok(read) => {
                hinted = hinted && !read;
                failing = false;
            }
            Err(error) => {
                hinted = false;
                if !failing {
                    tracing::warn!(
                        ?error,
                        "failed to read Stripe's list of events; trying again"
                    );
                }
                failing = true;
            }
        }
        if ticked.is_none_or(|at| at.elapsed() >= TICK) {
            ticked = Some(Instant::now());
            if let Err(error) = poller.watch_limits().await {
                tracing::debug!(%error, "cannot see how calls to Stripe fare");
            }
        }
    }
}

struct Poller {
    payments: Payments,
    me: Uuid,
}

impl Poller {
    fn pool(&self) -> &PgPool {
        &self.payments.pool
    }

    /// Reads the list if it is due, or hinted at and not read a moment ago; false when not.
    async fn look(&self, hinted: bool) -> Result<bool, Error> {
        let Some(cursor) = self.claim(hinted).await? else {
            return Ok(false);
        };
        let read = tokio::select! {
            read = self.read(cursor) => read,
            error = self.hold_lease() => Err(error),
        };
        // Whatever came of it, the next one is due only later.
        let missing = match &read {
            Ok(_) => self.watch_webhooks().await?,
            Err(_) => false,
        };
        let every = self.payments.config.events_every;
        let pause = match (&read, missing) {
            (Ok(true), _) => Duration::ZERO,
            (_, true) => every.min(MISSING_EVERY),
            (_, false) => every,
        };
        sqlx::query(
            "update stripe_account set poll_leased_until = null, polled_at = clock_timestamp(),
                 poll_due_at = clock_timestamp() + make_interval(secs => $2)
             where polled_by = $1",
        )
        .bind(self.me)
        .bind(pause.as_secs_f64())
        .execute(self.pool())
        .await?;
        read.map(|_| true)
    }

    async fn claim(&self, hinted: bool) -> sqlx::Result<Option<Cursor>> {
        sqlx::query_as(
            "update stripe_account set polled_by = $1,
                 poll_leased_until = clock_timestamp() + make_interval(secs => $2)
             where (poll_leased_until is null or poll_leased_until < clock_timestamp())
               and (poll_due_at <= clock_timestamp() or ($3 and
                    coalesce(polled_at, '-infinity') < clock_timestamp() - make_interval(secs => $4)))
             returning last_event_id, last_event_at,
                 extract(epoch from swept_at)::bigint as swept_at,
                 coalesce(swept_at, '-infinity') < clock_timestamp() - make_interval(secs => $5) as sweep",
        )
        .bind(self.me)
        .bind(LEASE_S)
        .bind(hinted)
        .bind(HINT_GAP_S)
        .bind(self.payments.config.events_every.as_secs_f64())
        .fetch_optional(self.pool())
        .await
    }

    /// Ends only when the lease is lost: then another instance reads.
    async fn hold_lease(&self) -> Error {
        loop {
            tokio::time::sleep(RENEW_EVERY).await;
            let renewed = sqlx::query(
                "update stripe_account
                 set poll_leased_until = clock_timestamp() + make_interval(secs => $2)
                 where polled_by = $1 and poll_leased_until > clock_timestamp()",
            )
            .bind(self.me)
            .bind(LEASE_S)
            .execute(self.pool())
            .await;
            match renewed {
                Ok(done) if done.rows_affected() == 1 => {}
                Ok(_) => return Error::busy("another instance reads Stripe's list of events"),
                Err(error) => return Error::Store(error),
            }
        }
    }

    /// Reads what is newer than the last event, and now and then some of what is older; true when
    /// there is more.
    async fn read(&self, cursor: Cursor) -> Result<bool, Error> {
        let begun = chrono::Utc::now().timestamp();
        let since = |at: Option<i64>| at.map_or(begun - FIRST_S, |at| at - OVERLAP_S);
        let followed = match &cursor.last_event_id {
            Some(id) => self.follow(id.clone()).await,
            None => Ok(None),
        };
        let more = match followed {
            Ok(Some(more)) => more,
            // Nothing was read before, or so long ago that Stripe has forgotten it.
            Ok(None) => {
                self.sweep(since(cursor.last_event_at.or(cursor.swept_at)), true)
                    .await?;
                self.swept(begun).await?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        if cursor.sweep && !more {
            self.sweep(since(cursor.swept_at), false).await?;
            self.swept(begun).await?;
        }
        Ok(more)
    }

    /// Page by page what is newer than `last`; `None` when Stripe does not know that event any more.
    async fn follow(&self, mut last: String) -> Result<Option<bool>, Error> {
        for _ in 0..PAGES_MAX {
            let page = match self
                .payments
                .stripe
                .events(&Start::After(last.clone()))
                .await
            {
                Ok(page) => page,
                Err(StripeFailure::Refused { status, code, .. }) => {
                    tracing::warn!(
                        status,
                        code,
                        event = last,
                        "Stripe's list cannot go on from its last event; reading it by time"
                    );
                    return Ok(None);
                }
                Err(failure) => return Err(Error::Stripe(failure)),
            };
            self.take_up(&page.events).await?;
            if let Some(newest) = page.events.first() {
                self.note(newest).await?;
                last = id_of(newest).unwrap_or(last);
            }
            if !page.more {
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    /// Newest first, all since `second`; with `begin`, the list is followed from the newest of them.
    async fn sweep(&self, second: i64, begin: bool) -> Result<(), Error> {
        let mut older_than = None;
        let mut newest: Option<Value> = None;
        for _ in 0..SWEEP_PAGES_MAX {
            let from = Start::Since(second, older_than.take());
            let page = self.payments.stripe.events(&from).await;
            let page = page.map_err(Error::Stripe)?;
            self.take_up(&page.events).await?;
            newest = newest.or_else(|| page.events.first().cloned());
            older_than = page.events.last().and_then(id_of).filter(|_| page.more);
            if older_than.is_none() {
                break;
            }
        }
        if let Some(event) = &older_than {
            tracing::error!(
                event,
                "Stripe's list of events is longer than one read takes; what is older than event {event} is found by the reconciler"
            );
        }
        if let Some(newest) = newest.filter(|_| begin) {
            self.note(&newest).await?;
        }
        Ok(())
    }

    /// Keeps what no webhook has brought yet.
    async fn take_up(&self, events: &[Value]) -> Result<(), Error> {
        debug_assert!(events.len() <= PAGE);
        let found = webhook::keep_found(self.pool(), events).await?;
        if found > 0 {
            tracing::info!(found, "events of Stripe's list that no webhook had brought");
            self.payments.counters.polled.inc_by(found);
            self.payments.worker.notify_one();
        }
        Ok(())
    }

    async fn note(&self, newest: &Value) -> sqlx::Result<()> {
        let Some(id) = id_of(newest) else {
            return Ok(());
        };
        sqlx::query(
            "update stripe_account set last_event_id = $2, last_event_at = $3 where polled_by = $1",
        )
        .bind(self.me)
        .bind(id)
        .bind(newest["created"].as_i64())
        .execute(self.pool())
        .await?;
        Ok(())
    }

    async fn swept(&self, begun: i64) -> sqlx::Result<()> {
        sqlx::query(
            "update stripe_account set swept_at = to_timestamp($2::double precision) where polled_by = $1",
        )
        .bind(self.me)
        .bind(begun)
        .execute(self.pool())
        .await?;
        Ok(())
    }

    /// Raises or closes the alarms of missing webhooks; true while some are missing.
    async fn watch_webhooks(&self) -> sqlx::Result<bool> {
        let missing = missing(self.pool(), self.payments.config.events_every.min(LATE)).await?;
        let recent: Vec<&Missing> = missing.iter().filter(|one| one.recent).collect();
        let mut conn = self.pool().acquire().await?;
        if !recent.is_empty() {
            let types: Vec<String> = recent
                .iter()
                .map(|one| format!("{} ({}, such as {})", one.kind, one.events, one.example))
                .collect();
            let detail = format!(
                "Stripe's list holds events that no webhook brought: {}. They were taken from the list. See the endpoint in Stripe's dashboard: its URL, its event types, and its failed deliveries",
                types.join(", ")
            );
            self.raise(&mut conn, WEBHOOKS_MISSING, &detail).await?;
        } else if missing.is_empty() {
            let note = "webhooks of every type that was missing arrive again";
            alarms::clear(&mut conn, WEBHOOKS_MISSING, "", note).await?;
        }
        let refused: Option<(i64, String, String)> = sqlx::query_as(
            "select count(*), min(r.id), min(r.reason) from webhook_refusals r
             join webhook_events e on e.id = r.id
             where e.polled and e.delivered_at is null
               and not exists (select 1 from webhook_events d where d.type = e.type
                               and not d.polled and d.received_at > r.refused_at)
             having count(*) > 0",
        )
        .fetch_optional(&mut *conn)
        .await?;
        match &refused {
            Some((events, example, reason)) => {
                let detail = format!(
                    "Webhooks of events that Stripe knows were refused ({reason}; {events}, such as {example}). Compare STRIPE_WEBHOOK_SECRET with the endpoint's signing secret, and this machine's clock"
                );
                self.raise(&mut conn, WEBHOOK_SIGNATURES_FAIL, &detail)
                    .await?;
            }
            None => {
                let note = "genuine webhooks are accepted again";
                alarms::clear(&mut conn, WEBHOOK_SIGNATURES_FAIL, "", note).await?;
            }
        }
        Ok(!missing.is_empty() || refused.is_some())
    }

    /// Raises or closes the alarms of the rate limits and of the key, from every instance's heartbeat.
    async fn watch_limits(&self) -> sqlx::Result<()> {
        let (slowest_ms, key, open): (i32, Option<String>, i64) = sqlx::query_as(
            "select coalesce(max(create_wait_ms), 0), max(key_refused),
                 (select count(*) from alarms where resolved_at is null and kind in ($1, $2))
             from stripe_shares where leased_until > clock_timestamp()",
        )
        .bind(STRIPE_CREATES_SLOW)
        .bind(STRIPE_KEY_REFUSED)
        .fetch_one(self.pool())
        .await?;
        if slowest_ms <= CREATE_WAIT_MAX_MS && key.is_none() && open == 0 {
            return Ok(());
        }
        let mut conn = self.pool().acquire().await?;
        if slowest_ms > CREATE_WAIT_MAX_MS {
            let detail = slow(
                slowest_ms,
                self.payments.stripe.budget().creates_per_second_max(),
            );
            self.raise(&mut conn, STRIPE_CREATES_SLOW, &detail).await?;
        } else {
            let note = "creating a payment does not wait for Stripe's rate limits any more";
            alarms::clear(&mut conn, STRIPE_CREATES_SLOW, "", note).await?;
        }
        if let Some(why) = key {
            let detail = format!(
                "Stripe refuses our key or what it is to do: {why}. Nothing is lost; calls are tried again once the key, or its scopes, are mended"
            );
            self.raise(&mut conn, STRIPE_KEY_REFUSED, &detail).await?;
        } else {
            let note = "Stripe takes our key again";
            alarms::clear(&mut conn, STRIPE_KEY_REFUSED, "", note).await?;
        }
        Ok(())
    }

    async fn raise(
        &self,
        conn: &mut sqlx::PgConnection,
        kind: &'static str,
        detail: &str,
    ) -> sqlx::Result<()> {
        let alarm = Alarm {
            kind,
            key: "",
            order_id: None,
            payment_id: None,
            detail,
        };
        if alarms::raise(conn, &alarm).await? {
            self.payments.counters.alarms.inc();
        }
        Ok(())
    }
}

fn id_of(event: &Value) -> Option<String> {
    event["id"].as_str().map(str::to_owned)
}

/// What to tell an operator, and which admission rate would keep creates within the limits.
fn slow(waited_ms: i32, per_second: Option<u64>) -> String {
    let advice = match per_second {
        // Each admitted person makes one payment or none; a tenth is left for second tries.
        Some(rate) => format!(
            "The account may create {rate} a second: set admissionsPerMinute to at most {} over all queues, or have Stripe raise the limit and give it with --stripe-rate",
            rate * 54
        ),
        None => "Stripe answers 429: give the account's limits with --stripe-rate".to_owned(),
    };
    format!(
        "Creating a payment waits {:.1} s for Stripe's rate limits. {advice}",
        f64::from(waited_ms) / 1000.0
    )
}

/// Events of one type that were found and not delivered, with no later delivery of that type.
struct Missing {
    kind: String,
    events: i64,
    example: String,
    /// Within the last day; what is older is known and may have been resolved by a person.
    recent: bool,
}

crate::from_row!(Missing {
    kind: "type",
    events,
    example,
    recent
});

async fn missing(pool: &PgPool, late: Duration) -> sqlx::Result<Vec<Missing>> {
    sqlx::query_as(
        "with missing as (
             select type, count(*) as events, max(id) as example, max(received_at) as newest
             from webhook_events where polled and delivered_at is null
               and received_at < now() - make_interval(secs => $1)
             group by type)
         select type, events, example, newest > now() - interval '1 day' as recent from missing m
         where not exists (select 1 from webhook_events d where d.type = m.type and not d.polled
                           and d.received_at > m.newest)
         order by type",
    )
    .bind(late.as_secs_f64())
    .fetch_all(pool)
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_stays_within_what_the_account_may_create() {
        let told = slow(2_400, Some(25));
        assert!(
            told.contains("waits 2.4 s") && told.contains("at most 1350"),
            "{told}"
        );
        assert!(slow(2_400, None).contains("--stripe-rate"));
    }
}
