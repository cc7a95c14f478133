//! Delivers events: at least once, signed, again and again with growing pauses.
//! The queue is the `deliveries` table, written with the event, so that neither a
//! crash nor a shop that is away for a while loses one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgPool, Row as _};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::engine::now_ms;
use super::objects;
use super::signature;
use crate::platform::secret::Secret;

/// Requests under way at once: enough to keep a shop busy, not to drown it.
const CONCURRENT_MAX: usize = 32;
/// Stripe gives up on an answer after some seconds as well.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// After this long a delivery whose process died is taken up by another one.
const LEASE_S: f64 = 30.0;
/// How often the table is looked at when nothing woke us: another process may
/// have written to it.
const IDLE: Duration = Duration::from_secs(2);
/// Answers are read only to free the connection.
const BODY_MAX: usize = 64 * 1024;

pub type HttpClient = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

pub fn client() -> HttpClient {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(Some(Duration::from_secs(3)));
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp);
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(Duration::from_secs(10))
        .build(connector)
}

#[derive(Clone)]
pub struct Courier {
    pub pool: PgPool,
    pub client: HttpClient,
    pub endpoints: Arc<[http::Uri]>,
    pub secrets: Arc<[Secret]>,
    pub wake: Arc<Notify>,
    pub retry_first: Duration,
    pub retry_max: Duration,
    pub tries_max: i32,
}

/// One attempt to make.
#[derive(Debug)]
struct Parcel {
    id: i64,
    endpoint: i32,
    attempt: i32,
    lose: i32,
    two_signatures: bool,
    forged: bool,
    skewed: bool,
    event: Value,
}

/// What became of it.
#[derive(Debug)]
struct Receipt {
    id: i64,
    state: &'static str,
    delay_ms: i64,
    status: Option<i32>,
    error: Option<String>,
}

impl Courier {
    /// Runs until the stop; what is then under way ends by itself or is taken up
    /// at the next start.
    pub async fn run(self, stop: CancellationToken) {
        if let Err(error) = self.release_leases().await {
            tracing::warn!(%error, "cannot take up the deliveries of an earlier process yet");
        }
        let mut under_way = JoinSet::new();
        while !stop.is_cancelled() {
            let room = CONCURRENT_MAX - under_way.len();
            let parcels = match self.claim(room).await {
                Ok(parcels) => parcels,
                Err(error) => {
                    tracing::warn!(%error, "cannot read the webhook queue");
                    Vec::new()
                }
            };
            let filled = parcels.len() == room;
            for parcel in parcels {
                let courier = self.clone();
                under_way.spawn(async move { courier.attempt(parcel).await });
            }
            let pause = if filled {
                IDLE
            } else {
                self.until_next().await
            };
            tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = under_way.join_next() => self.record(done, &mut under_way).await,
                () = self.wake.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
        let rest = async {
            while let Some(done) = under_way.join_next().await {
                self.record(done, &mut under_way).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), rest).await;
    }

    /// A lease names no owner: with several processes a delivery may be made
    /// twice at a start, as Stripe's may be at any time.
    async fn release_leases(&self) -> Result<(), sqlx::Error> {
        sqlx::query(
            "update deliveries set leased = false, due_at = clock_timestamp()
             where state = 'pending' and leased",
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    async fn claim(&self, room: usize) -> Result<Vec<Parcel>, sqlx::Error> {
        if room == 0 || self.endpoints.is_empty() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query(
            "with due as (
                 select id from deliveries
                 where state = 'pending' and due_at <= clock_timestamp()
                 order by due_at, id limit $1 for update skip locked)
             update deliveries d
             set leased = true, attempts = attempts + 1,
                 due_at = clock_timestamp() + $2 * interval '1 second'
             from due, events e
             where d.id = due.id and e.id = d.event_id
             returning d.id, d.endpoint, d.attempts, d.lose, d.two_signatures, d.forged,
                       d.skewed, e.doc",
        )
        .bind(i64::try_from(room).unwrap_or(1))
        .bind(LEASE_S)
        .fetch_all(&self.pool)
        .await?;
        let mut parcels = rows
            .iter()
            .map(|row| {
                let Json(event) = row.try_get("doc")?;
                Ok(Parcel {
                    id: row.try_get("id")?,
                    endpoint: row.try_get("endpoint")?,
                    attempt: row.try_get("attempts")?,
                    lose: row.try_get("lose")?,
                    two_signatures: row.try_get("two_signatures")?,
                    forged: row.try_get("forged")?,
                    skewed: row.try_get("skewed")?,
                    event,
                })
            })
            .collect::<Result<Vec<_>, sqlx::Error>>()?;
        parcels.sort_by_key(|parcel| parcel.id);
        Ok(parcels)
    }

    async fn until_next(&self) -> Duration {
        let next: Result<(Option<f64>,), _> = sqlx::query_as(
            "select extract(epoch from min(due_at) - clock_timestamp())::float8
             from deliveries where state = 'pending'",
        )
        .fetch_one(&self.pool)
        .await;
        match next {
            Ok((Some(seconds),)) => {
                Duration::from_secs_f64(seconds.clamp(0.005, IDLE.as_secs_f64()))
            }
            Ok((None,)) | Err(_) => IDLE,
        }
    }

    async fn attempt(&self, parcel: Parcel) -> Receipt {
        let outcome = if parcel.attempt <= parcel.lose {
            Err("lost on the way: a fault that was asked for".to_owned())
        } else {
            self.post(&parcel).await
        };
        match outcome {
            Ok(status) if (200..300).contains(&status) => Receipt {
                id: parcel.id,
                state: "delivered",
                delay_ms: 0,
                status: Some(status),
                error: None,
            },
            Ok(status) => self.later(&parcel, Some(status), format!("answered {status}")),
            Err(error) => self.later(&parcel, None, error),
        }
    }

    fn later(&self, parcel: &Parcel, status: Option<i32>, error: String) -> Receipt {
        let given_up = parcel.attempt >= self.tries_max;
        if given_up {
            tracing::warn!(
                delivery.id = parcel.id,
                attempts = parcel.attempt,
                %error,
                "a webhook is given up"
            );
        }
        Receipt {
            id: parcel.id,
            state: if given_up { "failed" } else { "pending" },
            delay_ms: self.backoff_ms(parcel.attempt),
            status,
            error: Some(error),
        }
    }

    /// Doubles from the first pause to the longest, with a quarter of jitter so
    /// that a shop that comes back is not met by all at once.
    fn backoff_ms(&self, attempt: i32) -> i64 {
        let doublings = u32::try_from(attempt - 1).unwrap_or(0).min(20);
        let pause = self
            .retry_first
            .saturating_mul(1 << doublings)
            .min(self.retry_max);
        let ms = pause.as_secs_f64() * 1000.0 * rand::random_range(0.75..1.25);
        #[allow(
            clippy::cast_possible_truncation,
            reason = "bounded by the longest pause, far below 2^53"
        )]
        let ms = ms as i64;
        ms
    }

    async fn post(&self, parcel: &Parcel) -> Result<i32, String> {
        let endpoint = usize::try_from(parcel.endpoint)
            .ok()
            .and_then(|at| self.endpoints.get(at))
            .ok_or("the endpoint is no longer configured")?;
        let mut event = parcel.event.clone();
        if parcel.skewed {
            objects::skew(&mut event);
        }
        let body = event.to_string();
        let now = now_ms() / 1000;
        let secrets = self.secrets.iter().map(Secret::expose);
        let signature = if parcel.forged {
            signature::header(["whsec_somebody_else"], now, body.as_bytes())
        } else if parcel.two_signatures {
            let both = std::iter::once("whsec_somebody_else").chain(secrets);
            signature::header(both, now, body.as_bytes())
        } else {
            signature::header(secrets, now, body.as_bytes())
        };
        let request = http::Request::post(endpoint.clone())
            .header("content-type", "application/json; charset=utf-8")
            .header(
                "user-agent",
                "Stripe/1.0 (+https://stripe.com/docs/webhooks)",
            )
            .header("stripe-signature", signature)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let answered = tokio::time::timeout(ANSWER_MAX, async {
            let response = self
                .client
                .request(request)
                .await
                .map_err(|e| describe(&e))?;
            let status = i32::from(response.status().as_u16());
            let _ = Limited::new(response.into_body(), BODY_MAX).collect().await;
            Ok(status)
        });
        answered
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER_MAX.as_secs())))
    }

    /// Writes down what has ended so far, all of it at once.
    async fn record(
        &self,
        first: Result<Receipt, tokio::task::JoinError>,
        under_way: &mut JoinSet<Receipt>,
    ) {
        let mut receipts: Vec<Receipt> = first.into_iter().collect();
        while let Some(done) = under_way.try_join_next() {
            receipts.extend(done);
        }
        let written = sqlx::query(
            "update deliveries d
             set state = new.state, leased = false, last_status = new.status,
                 last_error = new.error,
                 delivered_at = case when new.state = 'delivered' then clock_timestamp() end,
                 due_at = clock_timestamp() + new.delay_ms * interval '1 millisecond'
             from unnest($1::bigint[], $2::text[], $3::bigint[], $4::int[], $5::text[])
                  as new (id, state, delay_ms, status, error)
             where d.id = new.id",
        )
        .bind(receipts.iter().map(|r| r.id).collect::<Vec<_>>())
        .bind(receipts.iter().map(|r| r.state).collect::<Vec<_>>())
        .bind(receipts.iter().map(|r| r.delay_ms).collect::<Vec<_>>())
        .bind(receipts.iter().map(|r| r.status).collect::<Vec<_>>())
        .bind(
            receipts
                .iter()
                .map(|r| r.error.as_deref())
                .collect::<Vec<_>>(),
        )
        .execute(&self.pool)
        .await;
        if let Err(error) = written {
            // The lease runs out and they are delivered once more.
            tracing::warn!(%error, deliveries = receipts.len(), "deliveries made, but not noted");
        }
    }
}

/// The whole chain: hyper's outermost error says only "client error".
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    text
}
