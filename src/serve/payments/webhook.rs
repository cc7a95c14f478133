//! Stripe's webhooks: kept first, answered, then acted on apart.
//!
//! A signed event carries the intent as it was, and that is applied: payments only move forward, so
//! lost order and duplicates harm nothing. Where that is in doubt (a shape that we do not know, an
//! intent that is not what we asked for, two events of the same second), the intent is read.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use sqlx::PgPool;
use tracing::Instrument;

use super::machine::Seen;
use super::settle::{Settled, Source};
use super::signature::Refused;
use super::store::{self, Payment};
use super::stripe::{Intent, StripeDispute, StripeFailure};
use super::{Error, Payments};
use crate::platform::telemetry::traces;

/// An event whose object Stripe itself does not know is given up after so many tries.
const REFUSED_TRIES_MAX: i32 = 8;
const AGAIN_MAX: Duration = Duration::from_secs(60);
/// Events of charges that say something which no event of an intent says.
const ACTED_ON: [&str; 3] = ["charge.refund", "charge.dispute.", "charge.captured"];
/// A refused webhook is noted at most so often: anybody can send one.
const REFUSAL_EVERY: Duration = Duration::from_secs(1);
/// And the list of events is read for its sake at most so often.
const REFUSAL_NEWS_EVERY: Duration = Duration::from_secs(10);
/// Of an id or a type: those of Stripe have some thirty bytes.
const NAME_BYTES_MAX: usize = 255;
/// Of a text within an event: none that is used here is so long.
const TEXT_BYTES_MAX: usize = 8_192;
/// Rows of one delete, and the time left to others between two.
const PURGE_BATCH: u32 = 2_000;
const PURGE_PAUSE: Duration = Duration::from_millis(50);

/// An event as kept.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub id: String,
    pub kind: String,
    pub payload: String,
    pub tries: i32,
    /// The trace in which it came.
    pub traceparent: Option<String>,
    /// Until when it is ours to act on.
    pub leased_until: DateTime<Utc>,
}

crate::from_row!(Kept {
    id,
    kind: "type",
    payload,
    tries,
    traceparent,
    leased_until
});

/// A verified event, as far as it must be read to be kept.
struct Incoming {
    id: String,
    kind: String,
    body: String,
    /// When it was made at Stripe (seconds).
    made_at: Option<i64>,
}

impl Incoming {
    fn read(body: &[u8]) -> Result<Self, Error> {
        let event: Value =
            serde_json::from_slice(body).map_err(|_| Error::BadWebhook("not JSON"))?;
        let name = |value: &Value, what| match value.as_str() {
            Some(text) if is_name(text) => Ok(text.to_owned()),
            _ => Err(Error::BadWebhook(what)),
        };
        Ok(Self {
            id: name(&event["id"], "its id is none")?,
            kind: name(&event["type"], "its type is none")?,
            made_at: event["created"].as_i64(),
            // JSON is UTF-8, and has a NUL only as an escape.
            body: String::from_utf8_lossy(body).into_owned(),
        })
    }

    /// Does it change nothing here? What the intent is made of, its own creation told.
    fn is_idle(&self) -> bool {
        self.kind == "payment_intent.created"
    }

    /// One that came before is the same row; one that was found in Stripe's list has come now.
    async fn insert(&self, pool: &PgPool) -> sqlx::Result<()> {
        sqlx::query(
            "insert into webhook_events
                 (id, type, payload, traceparent, event_at, delivered_at, processed_at, outcome)
             values ($1, $2, $3, $4, $5, now(), case when $6 then now() end,
                     case when $6 then 'NOTHING' end)
             on conflict (id) do update set delivered_at = now()
                 where webhook_events.polled and webhook_events.delivered_at is null",
        )
        .bind(&self.id)
        .bind(&self.kind)
        .bind(&self.body)
        .bind(traces::traceparent())
        .bind(self.made_at)
        .bind(self.is_idle())
        .execute(pool)
        .await?;
        Ok(())
    }
}

/// Could Stripe call something so? Its ids and types are short and visible; an index takes them.
fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Keeps a verified event; one that came before is the same row. True when there is work to do.
pub(super) async fn keep(pool: &PgPool, body: &[u8]) -> Result<bool, Error> {
    let event = Incoming::read(body)?;
    let work = !event.is_idle();
    crate::failpoint!("payments.before_webhook_insert");
    event.insert(pool).await?;
    crate::failpoint!("payments.after_webhook_insert");
    Ok(work)
}

/// Keeps those events of Stripe's list that no webhook has brought; how many.
pub(super) async fn keep_found(pool: &PgPool, events: &[Value]) -> sqlx::Result<u64> {
    let named = events.iter().filter_map(|event| {
        let name = |field: &str| event[field].as_str().filter(|name| is_name(name));
        Some((name("id")?, name("type")?, event))
    });
    let (mut ids, mut kinds, mut bodies, mut made) = (vec![], vec![], vec![], vec![]);
    for (id, kind, event) in named {
        ids.push(id);
        kinds.push(kind);
        bodies.push(event.to_string());
        made.push(event["created"].as_i64());
    }
    let kept = sqlx::query(
        "insert into webhook_events (id, type, payload, event_at, polled)
         select id, type, payload, event_at, true
         from unnest($1::text[], $2::text[], $3::text[], $4::bigint[])
             as found (id, type, payload, event_at)
         on conflict (id) do nothing",
    )
    .bind(ids)
    .bind(kinds)
    .bind(bodies)
    .bind(made)
    .execute(pool)
    .await?;
    Ok(kept.rows_affected())
}

/// When a refused webhook was last noted, and last led to a read of Stripe's list.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<(Option<Instant>, Option<Instant>)>);

impl Refusals {
    /// Whether to note one now, and whether to read the list for it.
    fn admit(&self, now: Instant) -> (bool, bool) {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = |last: &mut Option<Instant>, every| {
            let due = last.is_none_or(|at| now.duration_since(at) >= every);
            if due {
                *last = Some(now);
            }
            due
        };
        let (noted, news) = &mut *last;
        (due(noted, REFUSAL_EVERY), due(news, REFUSAL_NEWS_EVERY))
    }
}

/// The id that an unproven body claims.
#[derive(Deserialize)]
struct Claimed {
    id: String,
}

/// What Stripe sent, with nothing in its texts that PostgreSQL or an index would refuse.
fn cleaned(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains('\0') || text.len() > TEXT_BYTES_MAX => {
            let mut text = text.replace('\0', "\u{fffd}");
            text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
            Value::String(text)
        }
        Value::Array(items) => items.into_iter().map(cleaned).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            Value::Object(fields.map(|(name, value)| (name, cleaned(value))).collect())
        }
        other => other,
    }
}

pub(super) async fn claim_due(pool: &PgPool, limit: i64, lease_s: f64) -> sqlx::Result<Vec<Kept>> {
    sqlx::query_as(
        "update webhook_events set next_try_at = now() + make_interval(secs => $2), tries = tries + 1
         where id in (select id from webhook_events where processed_at is null and next_try_at <= now()
                      order by next_try_at limit $1 for update skip locked)
         returning id, type, payload, tries::int as tries, traceparent, next_try_at as leased_until",
    )
    .bind(limit)
    .bind(lease_s)
    .fetch_all(pool)
    .await
}

/// Removes events that Stripe cannot send again (it repeats them for 3 days), and old refusals:
/// all that are due, some at a time, found by an index.
pub(super) async fn purge(pool: &PgPool) -> sqlx::Result<u64> {
    sqlx::query("delete from webhook_refusals where refused_at < now() - interval '1 day'")
        .execute(pool)
        .await?;
    let mut removed = 0;
    loop {
        let done = sqlx::query(
            "delete from webhook_events where id in (
                 select id from webhook_events
                 where processed_at < now() - interval '14 days'
                 order by processed_at limit $1 for update skip locked)",
        )
        .bind(i64::from(PURGE_BATCH))
        .execute(pool)
        .await?;
        removed += done.rows_affected();
        if done.rows_affected() < u64::from(PURGE_BATCH) {
            return Ok(removed);
        }
        tokio::time::sleep(PURGE_PAUSE).await;
    }
}

impl Payments {
    /// A webhook whose signature did not fit. Anybody can send one, so it is no alarm by itself:
    /// it is one when Stripe's list holds an event of the id that it claims.
    pub(super) async fn note_refused(&self, body: &[u8], refused: Refused) {
        let (note, news) = self.refusals.admit(Instant::now());
        if !note || refused == Refused::Malformed {
            return;
        }
        let claimed = serde_json::from_slice::<Claimed>(body).ok();
        let Some(claimed) = claimed.filter(|claimed| is_name(&claimed.id)) else {
            return;
        };
        let noted = sqlx::query(
            "insert into webhook_refusals (id, reason) values ($1, $2)
             on conflict (id) do update set refused_at = now(), reason = excluded.reason",
        )
        .bind(&claimed.id)
        .bind(refused.to_string())
        .execute(&self.pool)
        .await;
        if let Err(error) = noted {
            tracing::warn!(%error, "cannot note a refused webhook");
        }
        if news {
            self.news.notify_one();
        }
    }

    pub(super) async fn process_webhook(&self, kept: Kept) -> sqlx::Result<()> {
        let trace = kept.traceparent.as_deref();
        let span = traces::consumer("payments", &kept.kind, &kept.id, trace);
        let outcome = match self.act_on(&kept).instrument(span.clone()).await {
            Ok(outcome) => outcome,
            Err(Error::Stripe(StripeFailure::Refused { status, code, .. }))
                if kept.tries >= REFUSED_TRIES_MAX =>
            {
                tracing::error!(webhook.id = kept.id, status, code, "webhook given up");
                "REFUSED"
            }
            Err(error) => {
                let wait = Duration::from_secs(1 << kept.tries.clamp(0, 6)).min(AGAIN_MAX);
                traces::failed(&span, &format_args!("{error:?}"));
                tracing::warn!(webhook.id = kept.id, error = ?error, "webhook waits");
                sqlx::query(
                    "update webhook_events set next_try_at = now() + make_interval(secs => $2)
                     where id = $1",
                )
                .bind(&kept.id)
                .bind(wait.as_secs_f64())
                .execute(&self.pool)
                .await?;
                return Ok(());
            }
        };
        sqlx::query("update webhook_events set processed_at = now(), outcome = $2 where id = $1")
            .bind(&kept.id)
            .bind(outcome)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    async fn act_on(&self, kept: &Kept) -> Result<&'static str, Error> {
        let event: Value =
            serde_json::from_str(&kept.payload).map_err(|_| Error::BadWebhook("not JSON"))?;
        let event = cleaned(event);
        if event["livemode"]
            .as_bool()
            .is_some_and(|live| live != self.stripe.live())
        {
            tracing::warn!(webhook.id = kept.id, "webhook of the other mode ignored");
            return Ok("OTHER_MODE");
        }
        let object = &event["data"]["object"];
        if kept.kind.starts_with("payment_intent.")
            && let Some(outcome) = self.apply_event(&event, object).await?
        {
            return Ok(outcome);
        }
        let family = kept.kind.split('.').next().unwrap_or_default();
        let intent_id = match family {
            "payment_intent" => object["id"].as_str(),
            // The intent's own events tell the same.
            "charge" if !ACTED_ON.iter().any(|of| kept.kind.starts_with(of)) => {
                return Ok("NOTHING");
            }
            // An expanded intent is an object with an id.
            "charge" | "refund" => object["payment_intent"]
                .as_str()
                .or_else(|| object["payment_intent"]["id"].as_str()),
            _ => return Ok("NOT_OURS"),
        };
        let Some(intent_id) = intent_id.filter(|id| is_name(id)) else {
            return Ok("NO_INTENT");
        };
        let Some(payment) = self.owner_of(intent_id).await? else {
            return Ok("NOT_OURS");
        };
        if kept.kind.starts_with("charge.dispute.") {
            let Some(told) = StripeDispute::read(object) else {
                return Ok("NO_DISPUTE");
            };
            self.background().on_dispute(&payment, told).await?;
            return Ok("DISPUTED");
        }
        if family == "refund" || kept.kind.starts_with("charge.refund") {
            self.background().sync_refunds(&payment).await?;
            return Ok("REFUNDS");
        }
        Ok("DONE")
    }

    /// Applies what the event says of its intent. `None` where the intent is to be read.
    async fn apply_event(
        &self,
        event: &Value,
        object: &Value,
    ) -> Result<Option<&'static str>, Error> {
        let Some(intent) = Intent::of_event(object) else {
            return Ok(None);
        };
        let known = match (
            store::by_intent(&self.pool, &intent.id).await?,
            intent.payment_id,
        ) {
            (Some(known), _) => Some(known),
            (None, Some(id)) => store::by_id(&mut *self.pool.acquire().await?, id).await?,
            (None, None) => return Ok(Some("NOT_OURS")),
        };
        let Some(payment) = known else {
            // Money without a payment is seen to, whoever's it is.
            let captured = intent.seen == Seen::Paid;
            return Ok((!captured).then_some("NOT_OURS"));
        };
        let source = Source::Event {
            made_at: event["created"].as_i64(),
        };
        match self.settle_by(&payment, &intent, source).await? {
            Settled::Now(_) => Ok(Some("DONE")),
            Settled::InDoubt(why) => {
                tracing::debug!(intent.id, why, "the intent of a webhook is read");
                Ok(None)
            }
        }
    }

    /// The payment of this intent, brought up to date. An intent that we never noted names its
    /// payment itself: we died between Stripe's answer and our commit.
    async fn owner_of(&self, intent_id: &str) -> Result<Option<Payment>, Error> {
        let known = store::by_intent(&self.pool, intent_id).await?;
        if let Some(known) = &known
            && !known.state().is_open()
            && !known.cleanup
        {
            return Ok(Some(known.clone()));
        }
        let intent = match self.stripe.intent(intent_id).await {
            Ok(intent) => intent,
            // Nobody's: Stripe does not know it, and neither do we.
            Err(StripeFailure::Refused { status: 404, .. }) if known.is_none() => return Ok(None),
            Err(failure) => return Err(Error::Stripe(failure)),
        };
        let payment = match (known, intent.payment_id) {
            (Some(known), _) => known,
            (None, Some(id)) => {
                let named = store::by_id(&mut *self.pool.acquire().await?, id).await?;
                let Some(named) = named else {
                    return self.adopt(&intent, false).await;
                };
                named
            }
            (None, None) => return Ok(None),
        };
        Ok(Some(self.settle(&payment, &intent).await?))
    }
}
