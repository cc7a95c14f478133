//! Traces: OpenTelemetry spans, sent to a collector when an endpoint is given and nothing at all when none is.
//!
//! One trace follows a request through the roles. The edge begins it, or goes on with the
//! gateway's; calls to other processes carry it as `traceparent` (W3C Trace Context), and
//! events keep it in the outbox (CloudEvents' distributed tracing extension), so that what an event causes
//! stands under what caused the event. Waiting polls are answered before there is a span: under a flood they
//! are counted, not traced.
//!
//! The SDK reads the rest of its settings from the standard variables: `OTEL_TRACES_SAMPLER`
//! and its `_ARG`, `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_SERVICE_NAME`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`.

use std::{borrow::Cow, future::Future, sync::OnceLock, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use opentelemetry::{
    Context, KeyValue,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{FutureExt, Link, SpanKind, Status, TraceContextExt, Tracer, TracerProvider},
};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use uuid::Uuid;

use super::upstream::{HttpsClient, https_client};

/// The tracer of this process; unset: traces are off.
static TRACER: OnceLock<SdkTracer> = OnceLock::new();
/// A collector that takes longer than this loses the batch.
const EXPORT_MAX: Duration = Duration::from_secs(5);
/// What is left at the end is sent within this long, or lost.
const FLUSH_MAX: Duration = Duration::from_secs(3);
/// No path of ours has more.
const SEGMENTS_MAX: usize = 9;
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// The collector's end of this process. What has not been sent yet goes with [`Traces::stop`].
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Sends the spans of this process, which runs `role`, to the OTLP collector at `endpoint`
    /// (HTTP, protobuf; `/v1/traces` is added). To be called once, in a runtime.
    ///
    /// # Errors
    /// When `endpoint` cannot be used, or spans are being sent already.
    pub fn start(endpoint: &url::Url, role: &str) -> Result<Self, String> {
        let fail = |cause: &dyn std::fmt::Display| format!("--otlp-endpoint {endpoint}: {cause}");
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
            .map_err(|e| fail(&e))?;
        let mut resource = Resource::builder().with_attributes([
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", Uuid::new_v4().to_string()),
        ]);
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(format!("ticketping-{role}"));
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource.build())
            .build();
        TRACER
            .set(provider.tracer("ticketping"))
            .map_err(|_| fail(&"spans are being sent already"))?;
        Ok(Self(provider))
    }

    /// Sends what is left.
    pub async fn stop(self) {
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

/// A span, which ends when this is dropped. Nothing where traces are off.
#[must_use = "the span ends when this is dropped"]
#[derive(Debug, Default)]
pub struct Span(Option<Context>);

impl Span {
    /// A request with this id is answered.
    pub fn server(request: &Request<Body>, id: &str, trust: Trust) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self(None);
        };
        let caller = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &HeaderExtractor(request.headers()));
        let method = request.method().as_str().to_owned();
        let route = template(request.uri().path());
        let mut builder = tracer
            .span_builder(format!("{method} {route}"))
            .with_kind(SpanKind::Server)
            .with_attributes([
                KeyValue::new("http.request.method", method),
                KeyValue::new("http.route", route),
                KeyValue::new("url.path", request.uri().path().to_owned()),
                KeyValue::new("ticketping.request.id", id.to_owned()),
            ]);
        let parent = match trust {
            Trust::Roles => caller,
            Trust::Nobody => {
                let theirs = caller.span().span_context().clone();
                if theirs.is_valid() {
                    builder = builder.with_links(vec![Link::with_context(theirs)]);
                }
                Context::new()
            }
        };
        let span = builder.start_with_context(tracer, &parent);
        Self(Some(parent.with_span(span)))
    }

    /// A request to another process, `peer`.
    pub fn client(name: impl Into<Cow<'static, str>>, peer: &str, path: &str) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self(None);
        };
        let parent = Context::current();
        let span = tracer
            .span_builder(name)
            .with_kind(SpanKind::Client)
            .with_attributes([
                KeyValue::new("server.address", peer.to_owned()),
                KeyValue::new("url.path", path.to_owned()),
            ])
            .start_with_context(tracer, &parent);
        Self(Some(parent.with_span(span)))
    }

    /// `consumer` acts on an event, which kept the trace that it was said in.
    pub fn consumer(consumer: &'static str, kind: &str, traceparent: Option<&str>) -> Self {
        let Some(tracer) = TRACER.get() else {
            return Self(None);
        };
        let parent = TraceContextPropagator::new()
            .extract_with_context(&Context::new(), &Parent(traceparent));
        let span = tracer
            .span_builder(format!("process {kind}"))
            .with_kind(SpanKind::Consumer)
            .with_attributes([
                KeyValue::new("messaging.operation.type", "process"),
                KeyValue::new("messaging.consumer.group.name", consumer),
                KeyValue::new("ticketping.event.type", kind.to_owned()),
            ])
            .start_with_context(tracer, &parent);
        Self(Some(parent.with_span(span)))
    }

    /// Runs `work` within this span: what it begins stands below.
    pub async fn run<F: Future>(&self, work: F) -> F::Output {
        match &self.0 {
            None => work.await,
            Some(context) => work.with_context(context.clone()).await,
        }
    }

    /// Gives the span on to whom `headers` go to.
    pub fn inject(&self, headers: &mut HeaderMap) {
        if let Some(context) = &self.0 {
            TraceContextPropagator::new().inject_context(context, &mut HeaderInjector(headers));
        }
    }

    /// What was answered; `fault_from` is the first status that counts as a failure of this side.
    pub fn answered(&self, status: StatusCode, fault_from: u16) {
        if let Some(context) = &self.0 {
            let span = context.span();
            let code = i64::from(status.as_u16());
            span.set_attribute(KeyValue::new("http.response.status_code", code));
            if status.as_u16() >= fault_from {
                span.set_status(Status::error(status.as_str().to_owned()));
            }
        }
    }

    /// It failed without an answer.
    pub fn failed(&self, cause: &dyn std::fmt::Display) {
        if let Some(context) = &self.0 {
            context.span().set_status(Status::error(cause.to_string()));
        }
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(context) = &self.0 {
            context.span().end();
        }
    }
}

/// A path without its ids, so that there are few names: `/api/v1/orders/{id}`. One that is none
/// of ours is `other`, since anybody may make those up.
fn template(path: &str) -> String {
    let ours = ["/api/", "/admin/", "/internal/", "/.well-known/"];
    if !ours.iter().any(|ours| path.starts_with(ours)) {
        return "other".to_owned();
    }
    let word = |segment| match Uuid::try_parse(segment) {
        Ok(_) => "{id}",
        Err(_) => segment,
    };
    path.split('/')
        .take(SEGMENTS_MAX)
        .map(word)
        .collect::<Vec<_>>()
        .join("/")
}

/// `work` for a task of its own, in the trace at hand.
pub fn carried<F: Future>(work: F) -> impl Future<Output = F::Output> {
    work.with_current_context()
}

/// The trace at hand, for an event that is said in it; `None` where there is none.
pub fn traceparent() -> Option<String> {
    TRACER.get()?;
    let mut carrier = Carried(None);
    TraceContextPropagator::new().inject_context(&Context::current(), &mut carrier);
    carrier.0
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
