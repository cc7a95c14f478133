//! A role in other processes: requests spread over all of its instances.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header, request::Parts};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use tracing::Instrument;

use super::{
    addresses::{Address, Addresses, Ended, Name},
    chain,
};
use crate::platform::{metrics::Metrics, telemetry::traces};

/// An answer between roles takes at most this long; then it is 503.
const CALL_MAX: Duration = Duration::from_secs(10);
/// A live instance takes a connection within this; another one is tried then.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Connections are not used for longer than this, so that instances behind one address (a
/// balancer's) that come later get their share.
const CONNECTIONS_MAX_AGE: Duration = Duration::from_secs(60);
const CONNECTIONS_MAX_IDLE: Duration = Duration::from_secs(30);
/// Instances that a request is tried at.
const TRIES_MAX: usize = 3;
/// No request to a role has a larger body: what the gateway takes is below.
const REQUEST_BODY_MAX: usize = 1 << 20;

/// What clients send with a request that may be sent again.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

type Pool = Client<HttpConnector, Full<Bytes>>;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Peer {
    role: &'static str,
}

/// What became of requests to other roles. Cheap to clone.
#[derive(Clone, Default)]
pub struct UpstreamMetrics {
    retries: Family<Peer, Counter>,
    ejections: Family<Peer, Counter>,
}

impl UpstreamMetrics {
    /// They go to `metrics`.
    pub fn new(metrics: &Metrics) -> Self {
        let this = Self::default();
        metrics.register(|registry| {
            registry.register(
                "upstream_retries",
                "Requests to a role that were sent again, to another instance or connection",
                this.retries.clone(),
            );
            registry.register(
                "upstream_ejections",
                "Times an instance of a role was left out for failing",
                this.ejections.clone(),
            );
        });
        this
    }
}

/// The instances of one role.
pub(super) struct Remote {
    role: &'static str,
    addresses: Arc<Addresses>,
    pool: Mutex<(Pool, Instant)>,
    metrics: UpstreamMetrics,
}

/// Why there is no answer.
pub(super) enum Failed {
    /// The caller's own body could not be read.
    Body { cause: String, too_large: bool },
    /// No instance has answered.
    Unreachable(String),
}

/// Why one try gave no answer, and whether the instance may have acted on it.
enum Try {
    NotSent(String),
    Broken(String),
    TimedOut,
}

/// Was reading it ended by [`REQUEST_BODY_MAX`]?
fn is_too_large(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn pool() -> Pool {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT_MAX));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(CONNECTIONS_MAX_IDLE)
        .build(connector)
}

impl Remote {
    /// `role` at `urls`, each a name that may stand for several addresses.
    pub(super) fn new(role: &'static str, urls: &[url::Url], metrics: UpstreamMetrics) -> Self {
        let names = urls.iter().map(|url| Name {
            host: url
                .host_str()
                .unwrap_or_default()
                .trim_matches(['[', ']'])
                .to_owned(),
            port: url.port_or_known_default().unwrap_or(80),
        });
        Self {
            role,
            addresses: Arc::new(Addresses::new(names.collect())),
            pool: Mutex::new((pool(), Instant::now())),
            metrics,
        }
    }

    fn pool(&self) -> Pool {
        let mut held = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if held.1.elapsed() >= CONNECTIONS_MAX_AGE {
            // What is under way ends on the old connections.
            *held = (pool(), Instant::now());
        }
        held.0.clone()
    }

    /// Sends `request` to an instance, and once more to others where that cannot do harm: when
    /// nothing was sent, or when the request may be repeated.
    pub(super) async fn call(&self, request: Request<Body>) -> Result<Response, Failed> {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, REQUEST_BODY_MAX)
            .await
            .map_err(|error| Failed::Body {
                cause: chain(&error),
                too_large: is_too_large(&error),
            })?;
        let repeatable = matches!(head.method, Method::GET | Method::HEAD)
            || head.headers.contains_key(IDEMPOTENCY_KEY);
        let deadline = tokio::time::Instant::now() + CALL_MAX;
        self.addresses
            .refresh()
            .await
            .map_err(Failed::Unreachable)?;
        let (mut tried, mut repeated) = (Vec::new(), false);
        let mut cause = "no instance is known".to_owned();
        for attempt in 0..TRIES_MAX {
            // With one instance, another connection to it is tried.
            let others = self.addresses.choose(&tried);
            let Some(turn) = others.or_else(|| self.addresses.choose(&[])) else {
                break;
            };
            if attempt > 0 {
                let peer = Peer { role: self.role };
                self.metrics.retries.get_or_create(&peer).inc();
            }
            let address = &turn.0;
            let sent = self.try_at(address, &head, body.clone(), deadline).await;
            match sent {
                Ok(answer) => return Ok(answer),
                Err(Try::NotSent(why)) => cause = why,
                Err(Try::Broken(why)) => {
                    cause = why;
                    if !repeatable || repeated {
                        break;
                    }
                    repeated = true;
                }
                Err(Try::TimedOut) => {
                    cause = "no answer in time".to_owned();
                    break;
                }
            }
            tried.push(address.at);
        }
        Err(Failed::Unreachable(cause))
    }

    async fn try_at(
        &self,
        address: &Address,
        head: &Parts,
        body: Bytes,
        deadline: tokio::time::Instant,
    ) -> Result<Response, Try> {
        let request = request_to(address, head, body).map_err(Try::NotSent)?;
        let span = traces::client(head.method.as_str(), &address.name, head.uri.path());
        let mut request = request;
        traces::inject(&span, request.headers_mut());
        let exchange = self.pool().request(request).instrument(span.clone());
        let outcome = match tokio::time::timeout_at(deadline, exchange).await {
            Ok(Ok(answer)) => {
                traces::answered(&span, answer.status(), 400);
                let leaving = answer
                    .headers()
                    .get(header::CONNECTION)
                    .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"));
                let ended = if leaving {
                    Ended::Leaving
                } else {
                    Ended::Answered
                };
                address.note(ended);
                let mut answer = answer.map(Body::new);
                // It was about the connection between roles.
                answer.headers_mut().remove(header::CONNECTION);
                return Ok(answer);
            }
            Ok(Err(error)) if error.is_connect() => Try::NotSent(chain(&error)),
            Ok(Err(error)) => Try::Broken(chain(&error)),
            Err(_) => Try::TimedOut,
        };
        let (ended, cause) = match &outcome {
            Try::NotSent(cause) | Try::Broken(cause) => (Ended::Failed, cause.as_str()),
            Try::TimedOut => (Ended::TimedOut, "no answer in time"),
        };
        traces::failed(&span, &cause);
        if address.note(ended) {
            let peer = Peer { role: self.role };
            self.metrics.ejections.get_or_create(&peer).inc();
            let (role, at) = (self.role, address.at);
            tracing::warn!(role.asked = role, server.address = %at, error = cause, "{role} at {at} fails; it is left out for a moment");
        }
        Err(outcome)
    }
}

fn request_to(
    address: &Address,
    head: &Parts,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, String> {
    let tail = head.uri.path_and_query().map_or("/", |tail| tail.as_str());
    let uri: Uri = format!("http://{}{tail}", address.at)
        .parse()
        .map_err(|e: http::uri::InvalidUri| e.to_string())?;
    let host = HeaderValue::from_str(&address.name).map_err(|e| e.to_string())?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = head.headers.clone();
    let headers = request.headers_mut();
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
    headers.insert(header::HOST, host);
    Ok(request)
}
