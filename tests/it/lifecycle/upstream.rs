use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use axum::{Router, body::Body, routing::any};
use http::{HeaderValue, Method, Request, StatusCode, header};
use ticketping::platform::{
    auth::InternalSecret,
    secret::Secret,
    upstream::{Upstream, UpstreamMetrics},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// An instance that counts its requests; `leaving` ends every connection.
async fn instance(leaving: bool) -> (url::Url, Arc<AtomicUsize>, tokio::task::JoinHandle<()>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let router = Router::new().route(
        "/",
        any(async move || {
            counted.fetch_add(1, SeqCst);
            let mut response = StatusCode::OK.into_response();
            if leaving {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            response
        }),
    );
    use axum::response::IntoResponse;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url.parse().unwrap(), count, served)
}

fn upstream(urls: &[url::Url]) -> Upstream {
    let secret = InternalSecret(Secret::new("between roles"));
    Upstream::remote("queue", urls, UpstreamMetrics::default(), secret)
}

async fn send(
    upstream: &Upstream,
    method: Method,
    headers: &[(&'static str, &str)],
) -> Option<u16> {
    let mut request = Request::builder().method(method).uri("/");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = upstream
        .call(request.body(Body::from("body")).unwrap())
        .await;
    answer.ok().map(|answer| answer.status().as_u16())
}

#[tokio::test]
async fn requests_are_spread_and_a_dead_instance_costs_none() {
    let (one, first, _serves) = instance(false).await;
    let (two, second, serves) = instance(false).await;
    let upstream = upstream(&[one, two]);
    for _ in 0..200 {
        assert_eq!(send(&upstream, Method::POST, &[]).await, Some(200));
    }
    assert!(first.load(SeqCst) > 50 && second.load(SeqCst) > 50);
    serves.abort();
    let _ = serves.await;
    let before = first.load(SeqCst);
    for _ in 0..100 {
        // A connection that was open may break under the first GET; no instance is asked twice.
        assert_eq!(send(&upstream, Method::GET, &[]).await, Some(200));
    }
    for _ in 0..100 {
        assert_eq!(send(&upstream, Method::POST, &[]).await, Some(200));
    }
    assert_eq!(first.load(SeqCst), before + 200);
}

#[tokio::test]
async fn one_that_is_about_to_stop_is_left_alone() {
    let (one, leaving, _serves) = instance(true).await;
    let (two, staying, _serves_too) = instance(false).await;
    let upstream = upstream(&[one, two]);
    for _ in 0..50 {
        assert_eq!(send(&upstream, Method::POST, &[]).await, Some(200));
    }
    assert!(leaving.load(SeqCst) <= 2, "{}", leaving.load(SeqCst));
    assert!(staying.load(SeqCst) >= 48);
}

/// What was sent and not answered is sent again only where that does no harm.
#[tokio::test]
async fn a_request_is_repeated_only_if_it_may_be() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url: url::Url = format!("http://{}", listener.local_addr().unwrap())
        .parse()
        .unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    tokio::spawn(async move {
        // It reads every request, and answers each second one.
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0_u8; 4096];
            let _ = stream.read(&mut head).await;
            if counted.fetch_add(1, SeqCst) % 2 == 1 {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                stream.write_all(answer).await.unwrap();
            }
        }
    });
    let upstream = upstream(&[url]);
    assert_eq!(send(&upstream, Method::GET, &[]).await, Some(200));
    assert_eq!(asked.swap(0, SeqCst), 2);
    let keyed = [("idempotency-key", "k-1")];
    assert_eq!(send(&upstream, Method::POST, &keyed).await, Some(200));
    assert_eq!(asked.swap(0, SeqCst), 2);
    assert_eq!(send(&upstream, Method::POST, &[]).await, None);
    assert_eq!(asked.load(SeqCst), 1, "it may have acted on it");
}
