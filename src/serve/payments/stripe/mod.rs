//! Stripe over HTTP: `async-stripe`'s requests and types on connections of our own.
//!
//! Its own client opens a connection a call and its retries carry no stable key, so both are
//! here: a pooled client behind its `StripeClient` trait, and a retry loop around
//! `RequestStrategy::Idempotent`. A time-out or a 5xx says nothing about what Stripe did;
//! only a 4xx of its own is an answer.

mod calls;
mod seen;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use stripe_client_core::{
    CustomizedStripeRequest, RequestBuilder, StripeClient, StripeClientErr, StripeMethod, VERSION,
};

pub use self::calls::{Intent, NewIntent, RefundState, StripeRefund};
use self::seen::Seen;
use crate::platform::{
    secret::Secret,
    traces::Span,
    upstream::{HttpsClient, https_client},
};

/// One try. Stripe answers most calls well within a second.
const ATTEMPT_MAX: Duration = Duration::from_secs(4);
/// Two tries and a pause stay under the ten seconds that a caller waits for us.
const ATTEMPTS: u32 = 2;
const PAUSE: Duration = Duration::from_millis(250);
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
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

impl StripeClientErr for StripeFailure {
    fn deserialize_err(message: impl fmt::Display) -> Self {
        // Stripe acted, but we cannot read what it said.
        Self::Unknown(message.to_string())
    }
}

/// Stripe, or the sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Stripe(Arc<Inner>);

struct Inner {
    client: HttpsClient<Full<Bytes>>,
    base: String,
    authorization: HeaderValue,
    live: bool,
    seen: Seen,
}

impl Stripe {
    /// # Errors
    /// When `url` or the key cannot be used.
    pub fn new(url: &str, key: &Secret) -> Result<Self, String> {
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
        let key = key.expose();
        Ok(Self(Arc::new(Inner {
            client: https_client(),
            base: url.trim_end_matches('/').to_owned(),
            authorization,
            live: key.starts_with("sk_live_") || key.starts_with("rk_live_"),
            seen: Seen::default(),
        })))
    }

    /// Does the key move real money?
    pub fn live(&self) -> bool {
        self.0.live
    }

    /// Tries until there is an answer or the tries are used up. Every try is the same request
    /// with the same key, so that any number of them is one deed.
    async fn retrying<T, F>(&self, mut attempt: impl FnMut() -> F) -> Result<T, StripeFailure>
    where
        F: Future<Output = Result<T, StripeFailure>>,
    {
        let mut tried = 1;
        loop {
            match attempt().await {
                Err(StripeFailure::Unknown(cause)) if tried < ATTEMPTS => {
                    tracing::debug!(tried, cause, "Stripe did not answer; trying again");
                    tokio::time::sleep(PAUSE * tried).await;
                    tried += 1;
                }
                result => return result,
            }
        }
    }

    fn request(
        &self,
        pieces: RequestBuilder,
        key: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, http::Error> {
        let query = pieces
            .query
            .map(|query| format!("?{query}"))
            .unwrap_or_default();
        let mut request = Request::builder()
            .method(match pieces.method {
                StripeMethod::Get => Method::GET,
                StripeMethod::Post => Method::POST,
                StripeMethod::Delete => Method::DELETE,
            })
            .uri(format!("{}/v1{}{query}", self.0.base, pieces.path))
            .header(header::AUTHORIZATION, &self.0.authorization)
            .header(
                header::USER_AGENT,
                concat!("ticketping/", env!("CARGO_PKG_VERSION")),
            )
            .header("stripe-version", VERSION.as_str());
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        if pieces.body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
        }
        request.body(Full::from(pieces.body.unwrap_or_default()))
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Bytes, StripeFailure> {
        let begun = Instant::now();
        // The ids in the path would make a name of its own for each call; Stripe gets no `traceparent`.
        let name = format!("{} Stripe", request.method());
        let span = Span::client(name, &self.0.base, request.uri().path());
        let answer = self.exchange(request).await;
        if let Err(error) = &answer {
            span.failed(error);
        }
        self.0.seen.note(&answer, begun.elapsed());
        answer
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Bytes, StripeFailure> {
        let unknown = |cause: &dyn fmt::Display| StripeFailure::Unknown(cause.to_string());
        let exchange =
            async {
                let response =
                    self.0.client.request(request).await.map_err(|e| {
                        StripeFailure::Unknown(format!("{:#}", anyhow::Error::from(e)))
                    })?;
                let status = response.status();
                let is = |name: &str, value: &str| {
                    response
                        .headers()
                        .get(name)
                        .is_some_and(|given| given.as_bytes() == value.as_bytes())
                };
                let hints = Hints {
                    retry: is("stripe-should-retry", "true"),
                    no_retry: is("stripe-should-retry", "false"),
                    replayed: is("idempotent-replayed", "true"),
                };
                let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
                    .collect()
                    .await
                    .map_err(|e| unknown(&e))?
                    .to_bytes();
                Ok((status, hints, body))
            };
        let (status, hints, body) = tokio::time::timeout(ATTEMPT_MAX, exchange)
            .await
            .map_err(|_| unknown(&"no answer in time"))??;
        if status.is_success() {
            return Ok(body);
        }
        Err(failure(status, hints, &body))
    }
}

/// What the headers of an error say about asking again.
#[derive(Clone, Copy, Debug, Default)]
struct Hints {
    retry: bool,
    no_retry: bool,
    /// The answer was kept under the key, so it will never be another.
    replayed: bool,
}

/// Reads Stripe's error object, tolerant of whatever else stands there.
fn failure(status: StatusCode, hints: Hints, body: &[u8]) -> StripeFailure {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| body["error"][name].as_str().unwrap_or_default().to_owned();
    let code = match text("code") {
        code if code.is_empty() => text("type"),
        code => code,
    };
    // 409: another call with this key is running, or locked; 401: our key was revoked or is wrong,
    // which an operator mends while the request stays as good as it was.
    let passing =
        status.is_server_error() || matches!(status.as_u16(), 401 | 408 | 409 | 424 | 425 | 429);
    if status.is_server_error() && hints.replayed {
        return StripeFailure::Burnt(format!("{status} {code}: {}", text("message")));
    }
    if body["error"].is_null() || hints.retry || (passing && !hints.no_retry) {
        return StripeFailure::Unknown(format!("{status} {code}: {}", text("message")));
    }
    StripeFailure::Refused {
        status: status.as_u16(),
        code,
        message: text("message"),
    }
}

impl StripeClient for Stripe {
    type Err = StripeFailure;

    async fn execute(&self, request: CustomizedStripeRequest) -> Result<Bytes, StripeFailure> {
        let (pieces, custom) = request.into_pieces();
        let key = custom
            .request_strategy
            .and_then(|strategy| strategy.get_key());
        let request = self
            .request(pieces, key.as_ref().map(|key| key.as_str()))
            .map_err(|e| StripeFailure::Unknown(format!("cannot write the request: {e}")))?;
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

    #[test]
    fn only_an_answer_of_stripes_own_is_a_refusal() {
        let refused = failure(
            StatusCode::BAD_REQUEST,
            Hints::default(),
            &body("charge_already_refunded"),
        );
        assert!(
            matches!(&refused, StripeFailure::Refused { code, .. } if code == "charge_already_refunded")
        );
        for status in [401, 409, 429, 500, 503] {
            let status = StatusCode::from_u16(status).unwrap();
            assert!(matches!(
                failure(status, Hints::default(), &body("x")),
                StripeFailure::Unknown(_)
            ));
        }
        // A proxy in between is not Stripe.
        let proxy = failure(
            StatusCode::BAD_REQUEST,
            Hints::default(),
            b"<html>bad gateway</html>",
        );
        assert!(matches!(proxy, StripeFailure::Unknown(_)));
        let told = failure(
            StatusCode::BAD_REQUEST,
            Hints {
                retry: true,
                ..Hints::default()
            },
            &body("lock_timeout"),
        );
        assert!(matches!(told, StripeFailure::Unknown(_)));
        // Kept under the key: asking again with it can only repeat it.
        let kept = Hints {
            replayed: true,
            ..Hints::default()
        };
        let kept = failure(StatusCode::INTERNAL_SERVER_ERROR, kept, &body("api_error"));
        assert!(matches!(kept, StripeFailure::Burnt(_)));
    }

    #[test]
    fn the_key_decides_whether_money_is_real() {
        let stripe = |key| Stripe::new("https://api.stripe.com/", &Secret::new(key)).unwrap();
        assert!(stripe("sk_live_x").live() && stripe("rk_live_x").live());
        assert!(!stripe("sk_test_x").live());
        assert!(Stripe::new("ftp://x", &Secret::new("k")).is_err());
    }
}
