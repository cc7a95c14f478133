//! One trace follows a purchase through every role, to Stripe, and over Kafka.

use std::sync::{Arc, Mutex};

use axum::{Router, body::Bytes, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::any_value::Value,
    trace::v1::{
        Span,
        span::{Link, SpanKind},
    },
};
use prost::Message;

use crate::harness::{
    self,
    apart::{Apart, Stores},
    steps::{self, Sale},
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

/// The spans of one run.
struct Spans(Vec<Sent>);

impl Spans {
    /// Those of a service and a kind whose names begin so.
    fn of<'a>(
        &'a self,
        service: &'a str,
        kind: SpanKind,
        name: &'a str,
    ) -> impl Iterator<Item = &'a Span> {
        let found = self.0.iter().filter(move |(from, span)| {
            from.strip_prefix("ticketping-") == Some(service)
                && span.kind() == kind
                && span.name.starts_with(name)
        });
        found.map(|(_, span)| span)
    }

    /// One of them that stands right below `above`.
    fn below<'a>(
        &'a self,
        above: &'a Span,
        service: &'a str,
        kind: SpanKind,
        name: &'a str,
    ) -> Option<&'a Span> {
        self.of(service, kind, name)
            .find(|span| span.trace_id == above.trace_id && span.parent_span_id == above.span_id)
    }

    /// The door, payments, Stripe and reservations, for one request.
    fn one_request(&self) -> bool {
        use SpanKind::{Client, Server};
        let pays = "POST /api/v1/payments";
        self.of("gateway", Server, pays).any(|door| {
            let payments = self
                .below(door, "gateway", Client, "POST")
                .and_then(|asks| self.below(asks, "payments", Server, pays));
            let Some(payments) = payments else {
                return false;
            };
            let reservations = self
                .below(payments, "payments", Client, "POST")
                .and_then(|asks| self.below(asks, "reservations", Server, "POST /internal/"));
            let stripe = self.below(payments, "payments", Client, "POST Stripe");
            door.parent_span_id.is_empty() && reservations.is_some() && stripe.is_some()
        })
    }

    /// Stripe's webhook, its work, the event that says so, and the event of that one.
    fn one_webhook(&self) -> bool {
        use SpanKind::{Consumer, Server};
        let door = "POST /api/v1/payments/webhook";
        self.of("payments", Server, door).any(|webhook| {
            self.below(webhook, "payments", Consumer, "process ")
                .and_then(|work| {
                    self.below(work, "reservations", Consumer, "process payment.succeeded")
                })
                .and_then(|paid| self.below(paid, "queue", Consumer, "process order.confirmed"))
                .is_some()
        })
    }

    /// A caller's own trace is named, and not gone on with: it might choose what is sampled.
    fn names(&self, theirs: &str) -> bool {
        self.0.iter().any(|(from, span)| {
            let named = |link: &Link| hex::encode(&link.trace_id) == theirs;
            from == "ticketping-gateway"
                && span.links.iter().any(named)
                && hex::encode(&span.trace_id) != theirs
        })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_through_every_role_and_over_the_events() {
    let (url, sent) = collector().await;
    let dir = harness::data_dir();
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
    let theirs = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{theirs}-b7ad6b7169203331-01");
    let headers = [("traceparent", parent.as_str())];
    roles
        .api
        .get("/api/v1/performances", &headers)
        .await
        .expect(200);

    let spans = || Spans(sent.lock().unwrap().clone());
    harness::eventually("one request through the roles to Stripe", async || {
        spans().one_request()
    })
    .await;
    harness::eventually("a webhook and the events after it", async || {
        spans().one_webhook()
    })
    .await;
    harness::eventually("the caller's trace as a link", async || {
        spans().names(theirs)
    })
    .await;
    let sandbox = "ticketping-stripe-sandbox";
    assert!(
        spans().0.iter().all(|(from, _)| from != sandbox),
        "what stands in for Stripe is outside"
    );
}
