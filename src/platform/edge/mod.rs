//! The edge of a process: what every request needs, fused into one service.
//!
//! Request id, panics, time limits, problem bodies, `no-store`, `nosniff`, metrics. Nine
//! ordinary layers around a handler cost a third of its throughput; one does
//! not, and a [`FastPath`] answers the commonest request of all, a waiting
//! poll, before there is a router, a boxed body or a boxed future.

mod body;
mod clock;
mod counters;
mod http1;
mod http2;
mod io;
mod limits;
mod registry;
mod server;
pub mod stats;
pub mod tls;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::{
    body::Arrived,
    stats::{HttpStats, ROUTES, route_index},
};
pub use self::{
    counters::Counters,
    limits::Limits,
    server::{Options, bind, serve, serve_with},
};
use super::{
    db, event_stream,
    metrics::Metrics,
    problem::Problem,
    telemetry::traces::{self, Trust},
};

/// The header that carries a request's id, in and out.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// An answer takes at most this long; then the client is told 503.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The status that counts requests whose client went away before the answer, as nginx has it.
const GIVEN_UP: u16 = 499;
/// What is no request belongs to the last of [`ROUTES`].
const OTHER_ROUTE: usize = ROUTES.len() - 1;

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
    in_flight: Gauge,
    id_prefix: u64,
    id_next: AtomicU64,
}

/// The fused service around a [`Handler`]. Cheap to clone.
#[derive(Clone)]
pub struct Edge<H> {
    handler: H,
    shared: Arc<Shared>,
    traced: Option<Trust>,
    /// `Strict-Transport-Security` of every answer.
    hsts: Option<HeaderValue>,
    limits: Limits,
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
        let in_flight = Gauge::default();
        metrics.register(|registry| {
            registry.register(
                "http_requests_in_flight",
                "Requests whose answer has not begun",
                in_flight.clone(),
            );
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
            in_flight,
            id_prefix: rand::random(),
            id_next: AtomicU64::new(0),
        });
        Self {
            handler,
            shared,
            traced: None,
            hsts: None,
            limits: Limits::default(),
            leaving: CancellationToken::new(),
        }
    }

    /// From `leaving` on every answer ends its connection, so that callers go elsewhere
    /// before the listener closes.
    #[must_use]
    pub fn leaving(mut self, leaving: CancellationToken) -> Self {
        self.leaving = leaving;
        self
    }

    fn is_leaving(&self) -> bool {
        self.leaving.is_cancelled()
    }

    /// What takes the ordinary way is traced, where traces are on; `None`: it is not.
    #[must_use]
    pub fn traced(mut self, trust: Option<Trust>) -> Self {
        self.traced = trust;
        self
    }

    /// The answer of the fast path, which reads no body.
    fn fast(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
        let fast = self.shared.fast.as_ref()?;
        let begun = Instant::now();
        let mut response = fast.answer(method, uri, headers)?;
        let watch = self
            .shared
            .begin(route_index(method, uri.path()), method, begun);
        let id = self.shared.request_id(headers);
        if response.status() != StatusCode::OK {
            (response, _) = with_id(response, &id);
        }
        self.complete(response.headers_mut(), id);
        watch.end(response.status());
        Some(response)
    }

    /// The answer to what is no request.
    fn refused(&self, refusal: &Problem) -> Response {
        let watch = self
            .shared
            .begin(OTHER_ROUTE, &Method::TRACE, Instant::now());
        let id = self.shared.request_id(&HeaderMap::new());
        let mut response = refusal.response(id.to_str().ok());
        self.complete(response.headers_mut(), id);
        watch.end(response.status());
        response
    }

    /// The handler's answer to `request`, which came from `peer`. Dropped before it is done, it
    /// leaves nothing behind.
    async fn later(&self, request: Request<Body>, peer: std::net::SocketAddr) -> Response {
        let route = route_index(request.method(), request.uri().path());
        let watch = self.shared.begin(route, request.method(), Instant::now());
        let (mut request, arrival) = body::watch(request, self.limits.body);
        let id = self.shared.request_id(request.headers());
        request.headers_mut().insert(REQUEST_ID, id.clone());
        request.extensions_mut().insert(RequestId(id.clone()));
        request.extensions_mut().insert(ConnectInfo(peer));
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let span = match self.traced {
            Some(trust) => traces::server(&request, id.to_str().unwrap_or_default(), trust),
            None => tracing::Span::none(),
        };
        let answer = std::panic::AssertUnwindSafe(self.handler.handle(request)).catch_unwind();
        let answered = {
            let answer = std::pin::pin!(answer.instrument(span.clone()));
            let answered = tokio::time::timeout(ANSWER_MAX, answer).await;
            // A body that did not arrive says nothing of the stores.
            let late = matches!(arrival.outcome(), Arrived::Waiting | Arrived::Late);
            if answered.is_err() && !late {
                // Before the handler is dropped, which gives its connections back.
                db::suspect_connections();
            }
            answered
        };
        let response = match (answered, arrival.outcome()) {
            (Ok(Ok(response)), outcome) => but_for_the_body(response, outcome),
            (Ok(Err(_)), _) => Problem::internal("a handler panicked").into_response(),
            (Err(_), Arrived::Waiting | Arrived::Late) => body_too_slow().into_response(),
            (Err(_), Arrived::Whole | Arrived::Broken) => {
                Problem::unavailable("no answer in time").into_response()
            }
        };
        let (mut response, known) = with_id(response, &id);
        self.complete(response.headers_mut(), id);
        response
            .headers_mut()
            .entry(header::CACHE_CONTROL)
            .or_insert(HeaderValue::from_static("no-store"));
        let (status, begun) = (response.status(), watch.begun);
        watch.end(status);
        traces::answered(&span, status, 500);
        span.in_scope(|| {
            let cause = known.as_deref().and_then(Problem::cause);
            let id = response.headers().get(REQUEST_ID);
            log(&method, &path, status, begun, id, cause);
        });
        drop(span);
        event_stream::at_most(response, self.limits.stream)
    }

    /// What every answer carries.
    fn complete(&self, headers: &mut HeaderMap, id: HeaderValue) {
        headers.insert(REQUEST_ID, id);
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        if let Some(hsts) = &self.hsts {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
    }
}

/// A request in flight: counted as answered, or as given up by its client when dropped before.
struct Watch {
    shared: Arc<Shared>,
    route: usize,
    method: &'static str,
    begun: Instant,
    status: StatusCode,
}

impl Watch {
    fn end(mut self, status: StatusCode) {
        self.status = status;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.in_flight.dec();
        self.shared
            .record(self.route, self.method, self.status, self.begun);
    }
}

/// The answer where the request's body came as it should; else the client's fault is said,
/// whatever the handler made of it.
fn but_for_the_body(response: Response, body: Arrived) -> Response {
    let status = response.status();
    let is_fault = status.is_server_error();
    match body {
        Arrived::Late if is_fault || status.is_client_error() => body_too_slow().into_response(),
        Arrived::Broken if is_fault || status == StatusCode::BAD_REQUEST => Problem::new(
            StatusCode::BAD_REQUEST,
            "BODY_UNREADABLE",
            "The request body broke off, or is malformed.",
        )
        .into_response(),
        _ => response,
    }
}

fn body_too_slow() -> Problem {
    too_slow("The body of the request did not arrive in time.")
}

/// 408.
fn too_slow(detail: &str) -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "REQUEST_TIMEOUT", detail)
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

    /// One more request is being answered.
    fn begin(self: &Arc<Self>, route: usize, method: &Method, begun: Instant) -> Watch {
        self.stats.begin();
        self.in_flight.inc();
        Watch {
            shared: self.clone(),
            route,
            method: method_label(method),
            begun,
            status: StatusCode::from_u16(GIVEN_UP).unwrap_or(StatusCode::REQUEST_TIMEOUT),
        }
    }

    fn record(&self, route: usize, method: &'static str, status: StatusCode, begun: Instant) {
        let took = begun.elapsed();
        self.stats.record(route, status.as_u16(), took);
        self.seconds[route].observe(took.as_secs_f64());
        if status == StatusCode::OK && method == "GET" {
            self.ok_get[route].inc();
        } else {
            let labels = RequestLabels {
                route: ROUTES[route],
                method,
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
