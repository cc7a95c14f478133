//! Stripe over HTTP: `async-stripe`'s requests and types on connections of our own.
//!
//! Its own client opens a connection a call and its retries carry no stable key, so both are
//! here: a pooled client behind its `StripeClient` trait, and a retry loop around
//! `RequestStrategy::Idempotent`. A time-out or a 5xx says nothing about what Stripe did;
//! only a 4xx of its own is an answer.

mod budget;
mod calls;
mod disputes;
mod events;
mod lists;
mod seen;
pub mod shares;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use stripe_client_core::{
    CustomizedStripeRequest, IdempotencyKey, RequestBuilder, RequestStrategy, StripeClient,
    StripeClientErr, StripeMethod, StripeRequest, VERSION,
};
use tracing::Instrument;

pub use self::budget::{Budget, Class, Limits, StripeRate};
pub use self::calls::{Intent, NewIntent, PaymentMethods, RefundState, StripeRefund};
pub use self::disputes::StripeDispute;
pub use self::events::{PAGE, Start};
pub use self::lists::{ListedIntent, Page, Stretch};
use self::seen::Seen;
use crate::platform::{
    secret::Secret,
    telemetry::traces,
    upstream::{HttpsClient, https_client},
};

/// One try. Stripe answers most calls well within a second.
const ATTEMPT_MAX: Duration = Duration::from_secs(4);
/// Tries that met no answer.
const ATTEMPTS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A buyer's call, with all its tries, stays under the ten seconds that a caller waits for us;
/// and of these, so long for the rate limits.
const BUYER_CALL_MAX: Duration = Duration::from_millis(8_500);
const BUYER_WAIT_MAX: Duration = Duration::from_secs(5);
/// In the background nobody waits; what is not done by then comes back later.
const BACKGROUND_CALL_MAX: Duration = Duration::from_secs(30);
const BACKGROUND_WAIT_MAX: Duration = Duration::from_secs(20);
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Of what Stripe says of a refused key, as much is kept.
const KEY_REFUSED_CHARS_MAX: usize = 300;

/// Why there is no result.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StripeFailure {
    /// Nothing is known: it may have happened or not. Ask again with the same key.
    #[error("Stripe's answer is not known: {0}")]
    Unknown(String),
    /// Stripe failed and will say so for ever under this key, whatever it did. Only a look at
    /// what there is, and then another attempt, leads on.
    #[error("Stripe keeps a failure under this key: {0}")]
    Burnt(String),
    /// Stripe said no, for good.
    #[error("Stripe refused ({status} {code}): {message}")]
    Refused {
        status: u16,
        code: String,
        message: String,
    },
}

/// How one try ended without a result.
#[derive(Debug)]
enum Failed {
    /// Nothing came back, or a failure of Stripe's own.
    NoAnswer {
        why: String,
        again: bool,
    },
    /// Stripe is there and says: later. Too many calls, or another call is at work on this object
    /// or under this key.
    Later {
        why: String,
        retry_after: Option<Duration>,
    },
    /// The rate limits left no room in time; nothing was sent.
    NoToken(String),
    /// Stripe refuses our key or what it may do: an operator mends that, and the request stays as
    /// good as it was.
    KeyRefused {
        status: u16,
        why: String,
    },
    Burnt(String),
    Refused {
        status: u16,
        code: String,
        message: String,
    },
}

impl StripeClientErr for Failed {
    fn deserialize_err(message: impl fmt::Display) -> Self {
        // Stripe acted, but we cannot read what it said.
        Self::NoAnswer {
            why: message.to_string(),
            again: true,
        }
    }
}

impl From<Failed> for StripeFailure {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::NoAnswer { why, .. }
            | Failed::Later { why, .. }
            | Failed::NoToken(why)
            | Failed::KeyRefused { why, .. } => Self::Unknown(why),
            Failed::Burnt(why) => Self::Burnt(why),
            Failed::Refused {
                status,
                code,
                message,
            } => Self::Refused {
                status,
                code,
                message,
            },
        }
    }
}

/// Stripe, or the sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Stripe {
    inner: Arc<Inner>,
    class: Class,
}

struct Inner {
    client: HttpsClient<Full<Bytes>>,
    base: String,
    authorization: HeaderValue,
    live: bool,
    methods: PaymentMethods,
    seen: Seen,
    budget: Budget,
    key_refused: Mutex<KeyRefused>,
}

/// What Stripe does not let our key do, by endpoint: a status, and why.
type KeyRefused = std::collections::BTreeMap<String, (u16, String)>;

impl Stripe {
    /// # Errors
    /// When `url` or the key cannot be used.
    pub fn new(
        url: &str,
        key: &Secret,
        rate: Option<StripeRate>,
        methods: PaymentMethods,
    ) -> Result<Self, String> {
        let parsed =
            url::Url::parse(url).map_err(|e| format!("the Stripe URL is malformed: {e}"))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(format!(
                "the Stripe URL must be http or https, not {}",
                parsed.scheme()
            ));
        }
        let mut authorization = HeaderValue::from_str(&format!("Bearer {}", key.expose()))
            .map_err(|_| "STRIPE_SECRET_KEY has characters that no key has".to_owned())?;
        authorization.set_sensitive(true);
        let live = is_live(key.expose());
        // A stand-in has no limits unless it is said so; Stripe has those that it documents.
        let itself = parsed
            .host_str()
            .is_some_and(|host| host == "api.stripe.com");
        let limits = match rate {
            Some(rate) => rate.limits(live),
            None => itself.then(|| Limits::documented(live)),
        };
        Ok(Self {
            inner: Arc::new(Inner {
                client: https_client(),
                base: url.trim_end_matches('/').to_owned(),
                authorization,
                live,
                methods,
                seen: Seen::default(),
                budget: Budget::new(limits, live),
                key_refused: Mutex::default(),
            }),
            class: Class::Buyer,
        })
    }

    /// The same client for work that nobody waits for: its calls yield to those of buyers.
    pub fn background(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            class: Class::Background,
        }
    }

    /// Does the key move real money?
    pub fn live(&self) -> bool {
        self.inner.live
    }

    /// The account's rate limits, as far as this instance has a share in them.
    pub fn budget(&self) -> &Budget {
        &self.inner.budget
    }

    /// What Stripe says of our key while it refuses it.
    pub fn key_refused(&self) -> Option<String> {
        let refused = (self.inner.key_refused.lock()).unwrap_or_else(PoisonError::into_inner);
        let (endpoint, (_, why)) = refused.first_key_value()?;
        Some(format!("{endpoint}: {why}"))
    }

    /// Sends `request` until there is an answer, or the tries or the time are used up. Every try
    /// is the same request with the same key, so that any number of them is one deed.
    async fn call<R>(&self, request: &R, key: Option<&str>) -> Result<R::Output, StripeFailure>
    where
        R: StripeRequest,
        R::Output: miniserde::Deserialize,
    {
        let call = Call::new(self);
        let mut tries = Tries::default();
        loop {
            let strategy = match key {
                Some(key) => RequestStrategy::Idempotent(
                    IdempotencyKey::new(key).expect("our keys are short and not empty"),
                ),
                None => RequestStrategy::Once,
            };
            let sent = request.customize().request_strategy(strategy).send(&call);
            match sent.await {
                Ok(output) => return Ok(output),
                Err(failed) => call.pause_after(failed, &mut tries).await?,
            }
        }
    }

    /// Reads `path` (with its query), as [`Self::call`] does, for what async-stripe has no type of.
    async fn read(&self, path: &str) -> Result<serde_json::Value, StripeFailure> {
        let call = Call::new(self);
        let mut tries = Tries::default();
        loop {
            let request = self
                .request(Method::GET, path, None, None)
                .map_err(|e| StripeFailure::Unknown(format!("cannot write the request: {e}")))?;
            match call.send(request).await {
                Ok(body) => {
                    return serde_json::from_slice(&body).map_err(|error| {
                        StripeFailure::Unknown(format!("cannot read the answer: {error}"))
                    });
                }
                Err(failed) => call.pause_after(failed, &mut tries).await?,
            }
        }
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
        key: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}/v1{path}", self.inner.base))
            .header(header::AUTHORIZATION, &self.inner.authorization)
            .header(
                header::USER_AGENT,
                concat!("ticketping/", env!("CARGO_PKG_VERSION")),
            )
            .header("stripe-version", VERSION.as_str());
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        request.body(Full::from(body.unwrap_or_default()))
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
        time: Duration,
    ) -> Result<(StatusCode, HeaderMap, Bytes), String> {
        let exchange = async {
            let response = self.inner.client.request(request).await;
            let response = response.map_err(|e| format!("{:#}", anyhow::Error::from(e)))?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|e| e.to_string())?.to_bytes();
            Ok((parts.status, parts.headers, body))
        };
        tokio::time::timeout(time, exchange)
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()))
    }

    fn note_key(&self, endpoint: &str, failed: Option<&Failed>) {
        let mut known = (self.inner.key_refused.lock()).unwrap_or_else(PoisonError::into_inner);
        match failed {
            Some(Failed::KeyRefused { status, why }) => {
                if known.is_empty() {
                    tracing::error!(
                        endpoint,
                        why,
                        "Stripe refuses our key, or what it is to do: see its scopes"
                    );
                }
                let why = why.chars().take(KEY_REFUSED_CHARS_MAX).collect();
                known.insert(endpoint.to_owned(), (*status, why));
            }
            // A key that is taken for one call is taken for all; a scope is one endpoint's.
            None => known.retain(|of, (status, _)| *status != 401 && of != endpoint),
            Some(_) => {}
        }
    }
}

/// Does this secret key move real money?
pub fn is_live(key: &str) -> bool {
    key.starts_with("sk_live_") || key.starts_with("rk_live_")
}

/// One call, with all its tries.
struct Call<'a> {
    stripe: &'a Stripe,
    until: Instant,
    wait_until: Instant,
    waited: Mutex<Duration>,
}

/// Tries so far.
#[derive(Default)]
struct Tries {
    unanswered: u32,
    later: u32,
}

impl<'a> Call<'a> {
    fn new(stripe: &'a Stripe) -> Self {
        let now = Instant::now();
        let (call_max, wait_max) = match stripe.class {
            Class::Buyer => (BUYER_CALL_MAX, BUYER_WAIT_MAX),
            Class::Background => (BACKGROUND_CALL_MAX, BACKGROUND_WAIT_MAX),
        };
        Self {
            stripe,
            until: now + call_max,
            wait_until: now + wait_max,
            waited: Mutex::default(),
        }
    }

    /// Waits before the next try, where another one can help.
    async fn pause_after(&self, failed: Failed, tries: &mut Tries) -> Result<(), StripeFailure> {
        let pause = match &failed {
            Failed::NoAnswer { again: true, .. } if tries.unanswered + 1 < ATTEMPTS => {
                tries.unanswered += 1;
                PAUSE * tries.unanswered
            }
            Failed::Later { retry_after, .. } => {
                tries.later += 1;
                let pause = (PAUSE * tries.later.min(8)).min(PAUSE_MAX);
                let pause = pause.mul_f64(rand::random_range(0.8..1.2));
                retry_after.unwrap_or_default().max(pause)
            }
            Failed::NoAnswer { .. }
            | Failed::NoToken(_)
            | Failed::KeyRefused { .. }
            | Failed::Burnt(_)
            | Failed::Refused { .. } => return Err(failed.into()),
        };
        if Instant::now() + pause >= self.until {
            return Err(failed.into());
        }
        tracing::debug!(?failed, "no result of Stripe yet; trying again");
        if matches!(failed, Failed::Later { .. }) {
            self.note_wait(pause);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn note_wait(&self, more: Duration) {
        *self.waited.lock().unwrap_or_else(PoisonError::into_inner) += more;
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Bytes, Failed> {
        let stripe = self.stripe;
        let endpoint = endpoint(request.method(), request.uri().path());
        let budget = stripe.budget();
        let asked = Instant::now();
        let token = budget.acquire(&endpoint, stripe.class, self.wait_until.min(self.until));
        let token = token.await;
        self.note_wait(asked.elapsed());
        if endpoint == CREATE_INTENT && stripe.class == Class::Buyer {
            let waited = *self.waited.lock().unwrap_or_else(PoisonError::into_inner);
            budget.create_waited(waited);
        }
        token.map_err(|none| Failed::NoToken(none.to_string()))?;
        let begun = Instant::now();
        // The ids in the path would make a name of its own for each call; Stripe gets no `traceparent`.
        let name = format!("{} Stripe", request.method());
        let span = traces::client(&name, &stripe.inner.base, request.uri().path());
        let time = ATTEMPT_MAX.min(self.until.saturating_duration_since(begun));
        let exchange = stripe.exchange(request, time).instrument(span.clone());
        let answer = match exchange.await {
            Ok((status, _, body)) if status.is_success() => Ok(body),
            Ok((status, headers, body)) => {
                let failed = failure(status, &Hints::read(&headers), &body);
                if status == StatusCode::TOO_MANY_REQUESTS && is_rate_limit(&headers, &body) {
                    let reason = headers
                        .get(RATE_LIMITED_REASON)
                        .and_then(|v| v.to_str().ok());
                    budget.rate_limited(&endpoint, reason, retry_after(&headers));
                }
                Err(failed)
            }
            Err(why) => Err(Failed::NoAnswer { why, again: true }),
        };
        if let Err(failed) = &answer {
            traces::failed(&span, &format_args!("{failed:?}"));
        }
        if !matches!(answer, Err(Failed::NoAnswer { .. } | Failed::Later { .. })) {
            budget.passed(&endpoint);
        }
        stripe.note_key(&endpoint, answer.as_ref().err());
        stripe
            .inner
            .seen
            .note(answer.as_ref().err(), begun.elapsed());
        answer
    }
}

const CREATE_INTENT: &str = "POST /v1/payment_intents";
const RATE_LIMITED_REASON: &str = "stripe-rate-limited-reason";

/// Stripe's name of an operation: its path with the id left out.
fn endpoint(method: &Method, path: &str) -> String {
    let mut name = format!("{method} ");
    // The path of the base URL, where there is one, is none of Stripe's.
    let path = path.find("/v1/").map_or(path, |at| &path[at..]);
    for (at, part) in path.split('/').enumerate().skip(1) {
        name.push('/');
        // `/v1/payment_intents/<id>/cancel`
        name.push_str(if at == 3 { "{id}" } else { part });
    }
    name
}

/// As seconds; a date is not what Stripe gives.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?;
    let seconds: f64 = text.trim().parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A 429 can also mean that another call is at work on the same object.
fn is_rate_limit(headers: &HeaderMap, body: &[u8]) -> bool {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    headers.contains_key(RATE_LIMITED_REASON) || body["error"]["code"] != "lock_timeout"
}

/// What the headers of an error say about asking again.
#[derive(Clone, Copy, Debug, Default)]
struct Hints {
    retry: bool,
    no_retry: bool,
    /// The answer was kept under the key, so it will never be another.
    replayed: bool,
    retry_after: Option<Duration>,
}

impl Hints {
    fn read(headers: &HeaderMap) -> Self {
        let is = |name: &str, value: &str| {
            let given = headers.get(name);
            given.is_some_and(|given| given.as_bytes() == value.as_bytes())
        };
        Self {
            retry: is("stripe-should-retry", "true"),
            no_retry: is("stripe-should-retry", "false"),
            replayed: is("idempotent-replayed", "true"),
            retry_after: retry_after(headers),
        }
    }
}

/// Reads Stripe's error object, tolerant of whatever else stands there.
fn failure(status: StatusCode, hints: &Hints, body: &[u8]) -> Failed {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    let code = match text("code") {
        code if code.is_empty() => text("type"),
        code => code,
    };
    let why = format!("{status} {code}: {}", text("message"));
    // A proxy in between is not Stripe.
    let of_stripe = body["error"].is_object();
    match status.as_u16() {
        500.. if hints.replayed => Failed::Burnt(why),
        500.. => Failed::NoAnswer {
            why,
            again: !hints.no_retry,
        },
        409 | 429 => Failed::Later {
            why,
            retry_after: hints.retry_after,
        },
        _ if !of_stripe => Failed::NoAnswer { why, again: true },
        status @ (401 | 403) => Failed::KeyRefused { status, why },
        408 | 424 | 425 => Failed::NoAnswer { why, again: true },
        // The same key with other parameters, after settings were changed: what it made, if
        // anything, cannot be learnt under this key.
        _ if text("type") == "idempotency_error" => Failed::Burnt(why),
        _ if hints.retry => Failed::Later {
            why,
            retry_after: hints.retry_after,
        },
        status => Failed::Refused {
            status,
            code,
            message: text("message"),
        },
    }
}

impl StripeClient for Call<'_> {
    type Err = Failed;

    async fn execute(&self, request: CustomizedStripeRequest) -> Result<Bytes, Failed> {
        let (pieces, custom) = request.into_pieces();
        let key = custom
            .request_strategy
            .and_then(|strategy| strategy.get_key());
        let RequestBuilder {
            method,
            path,
            query,
            body,
            ..
        } = pieces;
        let method = match method {
            StripeMethod::Get => Method::GET,
            StripeMethod::Post => Method::POST,
            StripeMethod::Delete => Method::DELETE,
        };
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let key = key.as_ref().map(|key| key.as_str());
        let request = self
            .stripe
            .request(method, &format!("{path}{query}"), body, key)
            .map_err(|e| Failed::NoToken(format!("cannot write the request: {e}")))?;
        self.send(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(code: &str) -> Vec<u8> {
        format!(r#"{{"error":{{"type":"invalid_request_error","code":"{code}","message":"m"}}}}"#)
            .into_bytes()
    }

    fn of(status: u16, hints: Hints, body: &[u8]) -> Failed {
        failure(StatusCode::from_u16(status).unwrap(), &hints, body)
    }

    #[test]
    fn only_an_answer_of_stripes_own_is_a_refusal() {
        let none = Hints::default();
        let no_retry = Hints {
            no_retry: true,
            ..none
        };
        for status in [400, 402, 404] {
            let refused = of(status, none, &body("amount_too_small"));
            assert!(matches!(&refused, Failed::Refused { code, .. } if code == "amount_too_small"));
        }
        for status in [409, 429] {
            let later = of(status, no_retry, &body("idempotency_key_in_use"));
            assert!(matches!(later, Failed::Later { .. }), "{status}");
        }
        // Our key is wrong, revoked, or may not do this: the request stays good.
        for status in [401, 403] {
            assert!(matches!(
                of(status, none, &body("x")),
                Failed::KeyRefused { .. }
            ));
        }
        // A failure of Stripe's own is never an answer, whatever it says about trying again.
        for status in [500, 502, 503] {
            assert!(matches!(
                of(status, no_retry, &body("x")),
                Failed::NoAnswer { again: false, .. }
            ));
        }
        // A proxy in between is not Stripe.
        for status in [400, 401, 403, 404] {
            let proxy = of(status, none, b"<html>bad gateway</html>");
            assert!(matches!(proxy, Failed::NoAnswer { .. }));
        }
        let told = Hints {
            retry: true,
            ..none
        };
        assert!(matches!(
            of(400, told, &body("lock_timeout")),
            Failed::Later { .. }
        ));
        // Kept under the key: asking again with it can only repeat it.
        let kept = Hints {
            replayed: true,
            ..none
        };
        assert!(matches!(
            of(500, kept, &body("api_error")),
            Failed::Burnt(_)
        ));
        let other = br#"{"error":{"type":"idempotency_error","message":"other parameters"}}"#;
        assert!(matches!(of(400, none, other), Failed::Burnt(_)));
    }

    #[test]
    fn an_endpoint_is_named_as_stripe_counts_it() {
        for (method, path, name) in [
            (
                Method::POST,
                "/v1/payment_intents",
                "POST /v1/payment_intents",
            ),
            (
                Method::GET,
                "/v1/payment_intents/pi_1",
                "GET /v1/payment_intents/{id}",
            ),
            (
                Method::POST,
                "/proxy/v1/payment_intents/pi_1/cancel",
                "POST /v1/payment_intents/{id}/cancel",
            ),
            (Method::GET, "/v1/events", "GET /v1/events"),
        ] {
            assert_eq!(endpoint(&method, path), name);
        }
    }

    fn client(url: &str, key: &str, rate: Option<StripeRate>) -> Result<Stripe, String> {
        Stripe::new(url, &Secret::new(key), rate, PaymentMethods::default())
    }

    #[test]
    fn the_key_decides_whether_money_is_real_and_the_url_whether_limits_apply() {
        let real = "https://api.stripe.com/";
        let limits = |url, key, rate| client(url, key, rate).unwrap().budget().limits();
        assert!(client(real, "sk_live_x", None).unwrap().live());
        assert!(client(real, "rk_live_x", None).unwrap().live());
        assert!(!client(real, "sk_test_x", None).unwrap().live());
        assert!(client("ftp://x", "k", None).is_err());
        assert_eq!(limits(real, "sk_live_x", None).unwrap().total, 100.0);
        assert_eq!(limits(real, "sk_test_x", None).unwrap().total, 25.0);
        assert_eq!(limits("http://127.0.0.1:1", "sk_test_x", None), None);
        let raised = Some("50/300".parse().unwrap());
        assert_eq!(limits(real, "sk_live_x", raised).unwrap().total, 300.0);
    }
}
