//! The edge of a process: what every request needs, fused into one service.
//!
//! Request id, panics, time limit, problem bodies, `no-store`, figures. Nine
//! ordinary layers around a handler cost a third of its throughput; one does
//! not, and a [`FastPath`] answers the commonest request of all, a waiting
//! poll, before there is a router, a boxed body or a boxed future.

mod linger;
mod server;
pub mod stats;

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use hyper::body::Incoming;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, histogram::Histogram},
};

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::linger::Rest;
pub use self::server::{Limits, bind, serve};
use self::stats::{HttpStats, ROUTES, route_index};
use super::{
    db,
    metrics::Metrics,
    problem::Problem,
    telemetry::traces::{self, Trust},
};

/// The header that carries a request's id, in and out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// An answer takes at most this long; then the client is told 503.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The id of the request at hand, among its extensions.
#[derive(Clone, Debug)]
pub struct RequestId(pub HeaderValue);

/// Answers some requests from memory alone, before anything else is set up.
pub trait FastPath: Send + Sync {
    /// The answer, or `None` to go the ordinary way.
    fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Response>;
}

/// What stands behind the edge.
pub trait Handler: Clone + Send + Sync + 'static {
    /// Answers one request. Never fails: errors are answers too.
    fn handle(&self, request: Request<Body>) -> impl Future<Output = Response> + Send;
}

impl Handler for axum::Router {
    async fn handle(&self, request: Request<Body>) -> Response {
        match tower::ServiceExt::oneshot(self.clone(), request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    route: &'static str,
    method: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

struct Shared {
    fast: Option<Arc<dyn FastPath>>,
    stats: Arc<HttpStats>,
    requests: Family<RequestLabels, Counter>,
    /// `ok_get[route]`: the commonest outcome without a look-up.
    ok_get: Vec<Counter>,
    seconds: Vec<Histogram>,
    id_prefix: u64,
    id_next: AtomicU64,
}

/// The fused service around a [`Handler`]. Cheap to clone.
#[derive(Clone)]
pub struct Edge<H> {
    handler: H,
    shared: Arc<Shared>,
    traced: Option<Trust>,
    leaving: CancellationToken,
}

impl<H: Handler> Edge<H> {
    /// Puts the edge around `handler`; its figures go to `metrics` and `stats`.
    pub fn new(
        handler: H,
        fast: Option<Arc<dyn FastPath>>,
        metrics: &Metrics,
        stats: Arc<HttpStats>,
    ) -> Self {
        let requests = Family::<RequestLabels, Counter>::default();
        // 0.25 ms to 32 s, doubling.
        let seconds = Family::<RouteLabel, Histogram>::new_with_constructor(|| {
            Histogram::new((0..18).map(|i| 0.000_25 * f64::from(1 << i)))
        });
        metrics.register(|registry| {
            registry.register("http_requests", "Requests answered", requests.clone());
            registry.register(
                "http_request_duration_seconds",
                "From the request's head to the answer's head",
                seconds.clone(),
            );
        });
        let ok_get = ROUTES
            .iter()
            .map(|route| {
                let labels = RequestLabels {
                    route,
                    method: "GET",
                    status: 200,
                };
                requests.get_or_create_owned(&labels)
            })
            .collect();
        let seconds = ROUTES
            .iter()
            .map(|route| seconds.get_or_create_owned(&RouteLabel { route }))
            .collect();
        let shared = Arc::new(Shared {
            fast,
            stats,
            requests,
            ok_get,
            seconds,
            id_prefix: rand::random(),
            id_next: AtomicU64::new(0),
        });
        Self {
            handler,
            shared,
            traced: None,
            leaving: CancellationToken::new(),
        }
    }

    /// From `leaving` on every HTTP/1.1 answer ends its connection, so that callers go elsewhere
    /// before the listener closes.
    #[must_use]
    pub fn leaving(mut self, leaving: CancellationToken) -> Self {
        self.leaving = leaving;
        self
    }

    /// What takes the ordinary way is traced, where traces are on; `None`: it is not.
    #[must_use]
    pub fn traced(mut self, trust: Option<Trust>) -> Self {
        self.traced = trust;
        self
    }

    async fn slow(
        self,
        mut request: Request<Body>,
        rest: Rest,
        route: usize,
        begun: Instant,
    ) -> Response {
        let id = self.shared.request_id(request.headers());
        request.headers_mut().insert(REQUEST_ID, id.clone());
        request.extensions_mut().insert(RequestId(id.clone()));
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let span = match self.traced {
            Some(trust) => traces::server(&request, id.to_str().unwrap_or_default(), trust),
            None => tracing::Span::none(),
        };
        let answer = std::panic::AssertUnwindSafe(self.handler.handle(request)).catch_unwind();
        let answered = {
            let answer = std::pin::pin!(answer.instrument(span.clone()));
            let answered = tokio::time::timeout(ANSWER_MAX, answer).await;
            if answered.is_err() {
                // Before the handler is dropped, which gives its connections back.
                db::suspect_connections();
            }
            answered
        };
        let response = match answered {
            Ok(Ok(response)) => response,
            Ok(Err(_)) => Problem::internal("a handler panicked").into_response(),
            Err(_) => Problem::unavailable("no answer in time").into_response(),
        };
        let (mut response, known) = with_id(response, &id);
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        headers
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        let status = response.status();
        self.shared.record(route, &method, status, begun);
        traces::answered(&span, status, 500);
        span.in_scope(|| {
            let cause = known.as_deref().and_then(Problem::cause);
            let id = response.headers().get(REQUEST_ID);
            log(&method, &path, status, begun, id, cause);
        });
        drop(span);
        rest.forget().await;
        response
    }
}

/// A problem is rendered again with the request's id in its body; anything else stays.
fn with_id(mut response: Response, id: &HeaderValue) -> (Response, Option<Arc<Problem>>) {
    let Some(known) = response.extensions_mut().remove::<Arc<Problem>>() else {
        return (response, None);
    };
    // Headers that layers within have added (CORS) stay.
    let mut fresh = known.response(id.to_str().ok());
    for (name, value) in response.headers() {
        if !fresh.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            fresh.headers_mut().append(name.clone(), value.clone());
        }
    }
    (fresh, Some(known))
}

/// One line says what was answered, to which request, and, of a 5xx, why.
fn log(
    method: &Method,
    path: &str,
    status: StatusCode,
    begun: Instant,
    id: Option<&HeaderValue>,
    error: Option<&str>,
) {
    let duration_ms = begun.elapsed().as_secs_f64() * 1000.0;
    let id = id.and_then(|v| v.to_str().ok()).unwrap_or_default();
    let status = status.as_u16();
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(http.method = %method, http.path = path, http.status = status, duration_ms, error, request.id = id, "answered {status}")
        };
    }
    match status {
        ..500 => line!(debug),
        500 => line!(error),
        _ => line!(warn),
    }
}

impl Shared {
    /// The caller's id when it is a sane one (1..128 of `A-Za-z0-9._-`), else a
    /// new one: unique to the process by its random prefix, cheap by a counter.
    fn request_id(&self, headers: &HeaderMap) -> HeaderValue {
        if let Some(given) = headers.get(REQUEST_ID) {
            let bytes = given.as_bytes();
            let sane = |b: &u8| b.is_ascii_alphanumeric() || b"._-".contains(b);
            if (1..=128).contains(&bytes.len()) && bytes.iter().all(sane) {
                return given.clone();
            }
        }
        let mut text = [0_u8; 25];
        hex_into(self.id_prefix, &mut text[..16]);
        text[16] = b'-';
        hex_into(self.id_next.fetch_add(1, Relaxed) << 32, &mut text[17..]);
        HeaderValue::from_bytes(&text).expect("hexadecimal digits are a header value")
    }

    fn record(&self, route: usize, method: &Method, status: StatusCode, begun: Instant) {
        let took = begun.elapsed();
        self.stats.record(route, status.as_u16(), took);
        self.seconds[route].observe(took.as_secs_f64());
        if status == StatusCode::OK && method == Method::GET {
            self.ok_get[route].inc();
        } else {
            let labels = RequestLabels {
                route: ROUTES[route],
                method: method_label(method),
                status: status.as_u16(),
            };
            self.requests.get_or_create(&labels).inc();
        }
    }
}

fn hex_into(value: u64, out: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = DIGITS[usize::try_from(value >> (60 - 4 * i) & 15).unwrap_or(0)];
    }
}

/// Bounded: a made-up method must not become a label.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "HEAD" => "HEAD",
        _ => "OTHER",
    }
}

/// The answer to come: at once, or later.
pub enum Answer {
    /// The fast path's.
    Ready(Option<Response>),
    /// The ordinary way.
    Later(Pin<Box<dyn Future<Output = Response> + Send>>),
}

impl Answer {
    /// The same, and the last one on its HTTP/1.1 connection.
    fn and_close(self) -> Self {
        let close = |mut response: Response| {
            let last = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, last);
            response
        };
        match self {
            Self::Ready(response) => Self::Ready(response.map(close)),
            Self::Later(answer) => Self::Later(Box::pin(answer.map(close))),
        }
    }
}

impl Future for Answer {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ready(response) => {
                Poll::Ready(Ok(response.take().expect("an answer is taken once")))
            }
            Self::Later(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}

impl<H: Handler> Edge<H> {
    /// Answers `request`, which came from `peer`.
    pub fn answer(&self, request: Request<Incoming>, peer: std::net::SocketAddr) -> Answer {
        let begun = Instant::now();
        self.shared.stats.begin();
        let route = route_index(request.method(), request.uri().path());
        if let Some(fast) = &self.shared.fast
            && let Some(mut response) =
                fast.answer(request.method(), request.uri(), request.headers())
        {
            let id = self.shared.request_id(request.headers());
            if response.status() != StatusCode::OK {
                (response, _) = with_id(response, &id);
            }
            response.headers_mut().insert(REQUEST_ID, id);
            self.shared
                .record(route, request.method(), response.status(), begun);
            return Answer::Ready(Some(response));
        }
        let (mut request, rest) = linger::watch(request);
        request.extensions_mut().insert(ConnectInfo(peer));
        Answer::Later(Box::pin(self.clone().slow(request, rest, route, begun)))
    }
}
