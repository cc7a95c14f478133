//! One trace follows a purchase through every role, to Stripe, and over Kafka.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use prost::Message;

use crate::{
    journey::{
        apart::{Apart, Stores},
        steps::{self, Sale},
    },
    support,
};

/// A span, and the service that sent it.
type Sent = (String, Span);

/// A collector of OTLP over HTTP; its address, and all that it is sent.
async fn collector() -> (String, Arc<Mutex<Vec<Sent>>>) {
    let sent: Arc<Mutex<Vec<Sent>>> = Arc::default();
    let kept = sent.clone();
    let router = Router::new().route(
        "/v1/traces",
        post(async move |body: Bytes| {
            let batch = ExportTraceServiceRequest::decode(body).unwrap();
            for spans in batch.resource_spans {
                let attributes = spans.resource.unwrap_or_default().attributes;
                let service = attributes
                    .iter()
                    .find(|a| a.key == "service.name")
                    .and_then(|a| match a.value.as_ref()?.value.as_ref()? {
                        Value::StringValue(name) => Some(name.clone()),
                        _ => None,
                    })
                    .unwrap();
                let spans = spans.scope_spans.into_iter().flat_map(|scope| scope.spans);
                kept.lock()
                    .unwrap()
                    .extend(spans.map(|span| (service.clone(), span)));
            }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (url, sent)
}

fn find<'a>(
    spans: &'a [Sent],
    service: &str,
    kind: SpanKind,
    name: &str,
    wanted: impl Fn(&Span) -> bool,
) -> Option<&'a Span> {
    let found = spans.iter().find(|(from, span)| {
        *from == format!("ticketping-{service}")
            && span.kind() == kind
            && span.name == name
            && wanted(span)
    });
    found.map(|(_, span)| span)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_through_every_role_and_over_the_events() {
    let (url, sent) = collector().await;
    let dir = support::data_dir();
    std::fs::create_dir_all(&dir).unwrap();
    let more = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", url),
        ("OTEL_BSP_SCHEDULE_DELAY", "100".to_owned()),
    ];
    let roles = Apart::start_on(&dir, &Stores::shared().await, &more).await;
    let hall = ["--performances", "1", "--schedules", "1", "--seats", "8"];
    let buyers = roles.seed(&[&hall[..], &["--users", "1"]].concat()).await;
    let sale = Sale {
        api: roles.api.clone(),
        stripe: roles.stripe.clone(),
        buyers,
    };
    steps::buy(&sale, &sale.buyers[0], 2).await;
    // A caller's own trace is named, and not gone on with: it might choose what is sampled.
    let theirs = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{theirs}-b7ad6b7169203331-01");
    let headers = [("traceparent", parent.as_str())];
    roles
        .api
        .get("/api/v1/performances", &headers)
        .await
        .expect(200);

    let spans = || sent.lock().unwrap().clone();
    let last = "process order.confirmed";
    support::eventually("all of it is sent", async || {
        let spans = spans();
        let linked = spans.iter().any(|(_, s)| !s.links.is_empty());
        let heard = find(&spans, "queue", SpanKind::Consumer, last, |_| true);
        linked && heard.is_some()
    })
    .await;
    let spans = spans();

    let pays = "POST /api/v1/payments";
    let door = find(&spans, "gateway", SpanKind::Server, pays, |_| true).unwrap();
    assert!(
        door.parent_span_id.is_empty(),
        "the trace begins at the door"
    );
    let of_it = |span: &Span| span.trace_id == door.trace_id;
    let asks = find(&spans, "gateway", SpanKind::Client, "POST", of_it).unwrap();
    assert_eq!(asks.parent_span_id, door.span_id);
    let payments = find(&spans, "payments", SpanKind::Server, pays, of_it).unwrap();
    assert_eq!(payments.parent_span_id, asks.span_id);
    let stripe = find(&spans, "payments", SpanKind::Client, "POST Stripe", of_it).unwrap();
    assert_eq!(stripe.parent_span_id, payments.span_id);
    assert!(
        spans
            .iter()
            .any(|(from, span)| from == "ticketping-reservations" && of_it(span)),
        "reservations are asked in the same trace"
    );

    let said = find(
        &spans,
        "reservations",
        SpanKind::Consumer,
        "process payment.succeeded",
        |_| true,
    );
    let said = said.unwrap();
    let heard = find(&spans, "queue", SpanKind::Consumer, last, |span| {
        span.trace_id == said.trace_id
    });
    assert_eq!(
        heard.unwrap().parent_span_id,
        said.span_id,
        "what an event causes is below it"
    );

    let linked = (spans.iter())
        .find(|(_, span)| !span.links.is_empty())
        .unwrap();
    assert_eq!(linked.0, "ticketping-gateway");
    assert_eq!(hex::encode(&linked.1.links[0].trace_id), theirs);
    assert_ne!(hex::encode(&linked.1.trace_id), theirs);
    assert!(
        spans
            .iter()
            .all(|(_, span)| !span.name.ends_with("/metrics")),
        "what watches the server is not traced"
    );
}
