//! Traces: spans of `tracing`, sent to an OpenTelemetry collector when an endpoint is given.
//!
//! One trace follows a request through the roles. The edge begins it, or goes on with the
//! gateway's; calls to other processes carry it as `traceparent` (W3C Trace Context), and
//! events keep it in the outbox (CloudEvents' distributed tracing extension), so that what an
//! event causes stands under what caused the event. Without a collector nothing is recorded, but
//! ids are given and passed on all the same: log lines carry them. Waiting polls are answered
//! before there is a span: under a flood they are counted, not traced.
//!
//! The SDK reads the rest of its settings from the standard variables: `OTEL_TRACES_SAMPLER`
//! and its `_ARG`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{Status, TraceContextExt, TracerProvider},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracer, SdkTracerProvider},
};
use tracing::{Span, Subscriber, field::Empty};
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::registry::LookupSpan;
use uuid::Uuid;

use crate::platform::upstream::{HttpsClient, https_client};

/// Spans of this target are traced.
pub(super) const TARGET: &str = "ticketping::trace";
/// A collector that takes longer than this loses the batch.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// What is left at the end is sent within this long, or lost.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// No path of ours has more.
const SEGMENTS_MAX: usize = 9;
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The collector's end of this process.
pub(super) struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends the spans of this process to the OTLP collector at `endpoint` (HTTP, protobuf;
    /// `/v1/traces` is added).
    ///
    /// # Errors
    /// When `endpoint` cannot be used.
    pub(super) fn start(
        endpoint: Option<&url::Url>,
        role: &str,
        instance: &str,
    ) -> Result<Self, String> {
        let Some(endpoint) = endpoint else {
            let builder = SdkTracerProvider::builder().with_sampler(Sampler::AlwaysOff);
            return Ok(Self(builder.build()));
        };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector {
                client: https_client(),
                runtime: tokio::runtime::Handle::current(),
            })
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!(
                "{}/v1/traces",
                endpoint.as_str().trim_end_matches('/')
            ))
            .with_timeout(EXPORT_MAX)
            .build()
            .map_err(|e| format!("--otlp-endpoint {endpoint}: {e}"))?;
        let mut resource = Resource::builder().with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance.to_owned()),
        ]);
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(format!("ticketping-{role}"));
        }
        let builder = SdkTracerProvider::builder().with_batch_exporter(exporter);
        Ok(Self(builder.with_resource(resource.build()).build()))
    }

    /// What turns spans into traces.
    pub(super) fn layer<S>(&self) -> OpenTelemetryLayer<S, SdkTracer>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        OpenTelemetryLayer::new(self.0.tracer("ticketping"))
            .with_context_activation(false)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
    }

    /// Sends what is left.
    pub(super) async fn stop(self) {
        // The exporter's thread waits for this runtime: not on one of its own threads.
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(FLUSH_MAX));
        match stopped.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last traces were not sent"),
            Err(error) => tracing::warn!(%error, "the last traces were not sent"),
        }
    }
}

/// Our own HTTP client for the SDK, whose thread has no runtime of its own.
#[derive(Debug)]
struct Collector {
    client: HttpsClient<Full<Bytes>>,
    runtime: tokio::runtime::Handle,
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sent = self.client.request(request.map(Full::new));
        // The SDK's thread waits for it, and has neither connections nor a clock of the runtime.
        let exchange = self.runtime.spawn(async move {
            let exchange = async move {
                let (head, body) = sent.await?.into_parts();
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?;
                Ok::<_, HttpError>(Response::from_parts(head, body.to_bytes()))
            };
            match tokio::time::timeout(EXPORT_MAX, exchange).await {
                Ok(answer) => answer,
                Err(_) => Err("no answer in time".into()),
            }
        });
        exchange.await?
    }
}

/// Whose `traceparent` an edge goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Only our own roles ask here: their traces go on.
    Roles,
    /// Anybody asks here, and may not choose what is sampled: a trace of our own, which names
    /// the caller's as a link.
    Nobody,
}

/// The span of a request with this id, which is answered.
pub fn server(request: &Request<Body>, id: &str, trust: Trust) -> Span {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let route = template(path);
    let name = format!("{method} {route}");
    let span = tracing::info_span!(
        target: TARGET, parent: None, "request",
        otel.name = name, otel.kind = "server", otel.status_code = Empty,
        http.request.method = method, http.route = route, url.path = path,
        http.response.status_code = Empty, request.id = id, trace.id = Empty,
    );
    let headers = HeaderExtractor(request.headers());
    let caller = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    match trust {
        Trust::Roles => begin(&span, caller),
        Trust::Nobody => {
            let theirs = caller.span().span_context().clone();
            if theirs.is_valid() {
                span.add_link(theirs);
            }
            begin(&span, Context::new());
        }
    }
    span
}

/// The span of a request to another process, `peer`, below the span at hand.
pub fn client(name: &str, peer: &str, path: &str) -> Span {
    tracing::info_span!(
        target: TARGET, "call",
        otel.name = name, otel.kind = "client", otel.status_code = Empty,
        otel.status_description = Empty, server.address = peer, url.path = path,
        http.response.status_code = Empty,
    )
}

/// The span of `consumer` acting on an event, which kept the trace that it was said in.
pub fn consumer(consumer: &'static str, kind: &str, id: &str, traceparent: Option<&str>) -> Span {
    let name = format!("process {kind}");
    let span = tracing::info_span!(
        target: TARGET, parent: None, "event",
        otel.name = name, otel.kind = "consumer", otel.status_code = Empty,
        otel.status_description = Empty, messaging.operation.type = "process",
        messaging.consumer.group.name = consumer, event.kind = kind, event.id = id,
        trace.id = Empty,
    );
    let parent =
        TraceContextPropagator::new().extract_with_context(&Context::new(), &Parent(traceparent));
    begin(&span, parent);
    span
}

/// Sets where `span` hangs, and says on its lines which trace it is.
fn begin(span: &Span, parent: Context) {
    if span.set_parent(parent).is_ok() {
        let context = span.context();
        let trace = context.span().span_context().trace_id();
        span.record("trace.id", trace.to_string());
    }
}

/// What was answered within `span`; `fault_from` is the first status that counts as a failure of
/// this side.
pub fn answered(span: &Span, status: StatusCode, fault_from: u16) {
    span.record("http.response.status_code", status.as_u16());
    if status.as_u16() >= fault_from {
        span.record("otel.status_code", "ERROR");
    }
}

/// It failed without an answer.
pub fn failed(span: &Span, cause: &dyn std::fmt::Display) {
    span.set_status(Status::error(cause.to_string()));
}

/// Gives `span` on to whom `headers` go to.
pub fn inject(span: &Span, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&span.context(), &mut HeaderInjector(headers));
}

/// The trace at hand, for an event that is said in it; `None` where there is none.
pub fn traceparent() -> Option<String> {
    let mut carrier = Carried(None);
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut carrier);
    carrier.0
}

/// A path without its ids, so that there are few names: `/api/v1/orders/{id}`. One that is none
/// of ours is `other`, since anybody may make those up.
fn template(path: &str) -> String {
    let ours = ["/api/", "/admin/", "/internal/", "/.well-known/"];
    if !ours.iter().any(|ours| path.starts_with(ours)) {
        return "other".to_owned();
    }
    let mut route = String::with_capacity(path.len());
    for (at, segment) in path.split('/').take(SEGMENTS_MAX).enumerate() {
        if at > 0 {
            route.push('/');
        }
        route.push_str(match Uuid::try_parse(segment) {
            Ok(_) => "{id}",
            Err(_) => segment,
        });
    }
    route
}

const TRACEPARENT: &str = "traceparent";

struct Carried(Option<String>);

impl Injector for Carried {
    fn set(&mut self, key: &str, value: String) {
        if key == TRACEPARENT {
            self.0 = Some(value);
        }
    }
}

struct Parent<'a>(Option<&'a str>);

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.filter(|_| key == TRACEPARENT)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}

#[cfg(test)]
mod tests {
    use super::template;

    #[test]
    fn routes_have_no_ids() {
        let id = uuid::Uuid::now_v7();
        for (path, route) in [
            ("/api/v1/payments".to_owned(), "/api/v1/payments"),
            (format!("/api/v1/orders/{id}"), "/api/v1/orders/{id}"),
            (
                format!("/internal/v1/orders/{id}/begin-payment"),
                "/internal/v1/orders/{id}/begin-payment",
            ),
            ("/wp-login.php".to_owned(), "other"),
        ] {
            assert_eq!(template(&path), route);
        }
    }
}
