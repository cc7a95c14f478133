use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::StatusCode,
    response::IntoResponse,
    routing::{any, get, post},
};
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::super::{Edge, Limits, bind, serve, stats::HttpStats};
use crate::platform::{http::finish, metrics::Metrics};

struct Served {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    metrics: Metrics,
    stats: Arc<HttpStats>,
}

async fn served(router: Router, limits: Limits) -> Served {
    let (metrics, stats) = (Metrics::default(), Arc::<HttpStats>::default());
    let edge = Edge::new(finish(router), None, &metrics, stats.clone());
    let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = bind("--listen", any_port).await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let task = tokio::spawn(serve(listener, edge, limits, stop.clone()));
    Served {
        address,
        stop,
        task,
        metrics,
        stats,
    }
}

impl Served {
    async fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).await.unwrap();
        client.set_nodelay(true).unwrap();
        client
    }

    /// All that is answered to `sent` until the server closes.
    async fn answers(&self, sent: &[u8]) -> String {
        let mut client = self.client().await;
        client.write_all(sent).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn echo() -> Router {
    Router::new()
        .route("/", any(|| async { "hello" }))
        .route("/echo", post(|body: Bytes| async move { body }))
        .route("/unread", post(|| async { StatusCode::PAYLOAD_TOO_LARGE }))
        .route("/large", get(|| async { vec![b'x'; 1 << 20] }))
        .route("/pieces", get(pieces))
        .route("/broken", get(broken))
}

async fn pieces() -> impl IntoResponse {
    let pieces =
        ["one ", "", "two"].map(|piece| Ok::<_, Infallible>(Bytes::from_static(piece.as_bytes())));
    Body::from_stream(stream::iter(pieces))
}

async fn broken() -> impl IntoResponse {
    let pieces = [
        Ok(Bytes::from_static(b"part")),
        Err(std::io::Error::other("gone")),
    ];
    Body::from_stream(stream::iter(pieces))
}

#[tokio::test]
async fn requests_are_answered_in_order_whatever_follows_them() {
    let served = served(echo(), Limits::default()).await;
    let many = "GET / HTTP/1.1\r\nhost: h\r\n\r\n".repeat(200);
    let last = "GET /pieces HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\nstray";
    let answers = served.answers(format!("{many}{last}").as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 201);
    assert!(
        answers.ends_with("\r\n\r\n4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"),
        "{answers}"
    );
    for sent in [
        "GET / HTTP/1.0\r\n\r\nx",
        "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\nGET / HTTP/1.1\r\nhost: h\r\n\r\n",
    ] {
        let answer = served.answers(sent.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{sent:?}: {answer}");
        assert_eq!(answer.matches("hello").count(), 1, "{sent:?}: {answer}");
    }
    served.stop().await;
}

#[tokio::test]
async fn bodies_end_where_they_say_and_the_next_request_follows() {
    let served = served(echo(), Limits::default()).await;
    for body in [
        "content-length: 5\r\n\r\nhello",
        "transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nt: u\r\n\r\n",
    ] {
        let one = format!("POST /echo HTTP/1.1\r\nhost: h\r\n{body}");
        let sent = format!("{one}{one}GET / HTTP/1.0\r\n\r\n");
        let mut client = served.client().await;
        for byte in sent.as_bytes() {
            client.write_all(&[*byte]).await.unwrap();
        }
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert_eq!(answers.matches("\r\n\r\nhello").count(), 3, "{answers}");
    }
    let old = served
        .answers(b"GET /pieces HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        .await;
    assert!(
        old.ends_with("\r\n\r\none two") && old.contains("connection: close"),
        "{old}"
    );
    let none = served.answers(b"HEAD / HTTP/1.0\r\n\r\n").await;
    assert!(
        none.contains("content-length: 5\r\n") && none.ends_with("\r\n\r\n"),
        "{none}"
    );
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_waits_for_100_continue_gets_it_when_its_body_is_wanted() {
    let served = served(echo(), Limits::default()).await;
    let mut client = served.client().await;
    let head = "POST /echo HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\nconnection: close\r\ncontent-length: 5\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut interim = [0; 25];
    client.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    client.write_all(b"hello").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    let unread =
        "POST /unread HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
    let answer = served.answers(unread.as_bytes()).await;
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("connection: close"),
        "{answer}"
    );
    served.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_answered_with_a_problem() {
    let served = served(echo(), Limits::default()).await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(9_000));
    let large = format!(
        "GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n",
        "x".repeat(40_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nhost: h\r\n{}\r\n",
        "x: y\r\n".repeat(150)
    );
    for (sent, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("\u{16}\u{3}\u{1}\u{0}garbage", 400),
        ("GET / HTTP/1.1\nhost: h\n\n", 400),
        (
            "POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n",
            400,
        ),
        (
            "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
            400,
        ),
        ("CONNECT h:443 HTTP/1.1\r\nhost: h\r\n\r\n", 405),
        (&long, 414),
        (&large, 431),
        (&many, 431),
    ] {
        let answer = served.answers(sent.as_bytes()).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{sent:?}: {answer}"
        );
        for header in [
            "application/problem+json",
            "x-request-id: ",
            "nosniff",
            "connection: close",
        ] {
            assert!(answer.contains(header), "{sent:?}: {answer}");
        }
    }
    let text = served.metrics.render();
    assert!(!text.contains("status=\"5"), "{text}");
    served.stop().await;
}

#[tokio::test]
async fn what_is_sent_too_slowly_is_408() {
    let limits = Limits {
        head: Duration::from_millis(100),
        body: Duration::from_millis(100),
        ..Limits::default()
    };
    let served = served(echo(), limits).await;
    for sent in [
        "GET / HTTP/1.1\r\nhost:",
        "POST /echo HTTP/1.1\r\nhost: h\r\ncontent-length: 5\r\n\r\nhell",
        "POST /echo HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhell",
    ] {
        let answer = served.answers(sent.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{sent:?}: {answer}");
        assert!(answer.contains("REQUEST_TIMEOUT"), "{sent:?}: {answer}");
    }
    served.stop().await;
}

#[tokio::test]
async fn an_answer_is_read_though_the_body_was_not() {
    let served = served(echo(), Limits::default()).await;
    for _ in 0..3 {
        let mut client = served.client().await;
        let head = "POST /unread HTTP/1.1\r\nhost: h\r\ncontent-length: 1048576\r\n\r\n";
        client.write_all(head.as_bytes()).await.unwrap();
        // Slower than the answer comes.
        for _ in 0..16 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            client.write_all(&[b'x'; 1 << 16]).await.unwrap();
        }
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }
    served.stop().await;
}

#[tokio::test]
async fn a_part_is_not_passed_off_as_the_whole() {
    let served = served(echo(), Limits::default()).await;
    let answer = served
        .answers(b"GET /broken HTTP/1.1\r\nhost: h\r\n\r\n")
        .await;
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    served.stop().await;
}

#[tokio::test]
async fn who_does_not_read_is_cut_off() {
    let limits = Limits {
        write: Duration::from_millis(200),
        ..Limits::default()
    };
    let served = served(echo(), limits).await;
    let mut client = served.client().await;
    let head = "GET /large HTTP/1.1\r\nhost: h\r\n\r\n";
    client.write_all(head.repeat(20).as_bytes()).await.unwrap();
    let cut = || served.metrics_of("http_connections_cut");
    let begun = Instant::now();
    while served.open().await > 0 {
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "never cut off: {}",
            cut()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    served.stop().await;
}

impl Served {
    fn metrics_of(&self, name: &str) -> String {
        let text = self.metrics.render();
        text.lines()
            .filter(|line| line.contains(name))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Whether the server still holds the connection of the one client: a second is answered
    /// either way, so the process's own sockets are counted.
    async fn open(&self) -> usize {
        let text = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let port = format!(":{:04X} ", self.address.port());
        let is_ours = |line: &&str| {
            let mut columns = line.split_whitespace();
            let local = format!("{} ", columns.nth(1).unwrap_or_default());
            // 01: established.
            local.ends_with(&port) && columns.nth(1) == Some("01")
        };
        text.lines().filter(is_ours).count()
    }
}

#[tokio::test]
async fn a_request_given_up_leaves_nothing_and_a_half_closed_one_is_answered() {
    let (begun, waits) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let router = {
        let (begun, waits) = (begun.clone(), waits.clone());
        let wait = move || async move {
            begun.notify_one();
            waits.notified().await;
            "late"
        };
        Router::new().route("/", get(wait))
    };
    let served = served(router, Limits::default()).await;
    let head = b"GET / HTTP/1.1\r\nhost: h\r\n\r\n";
    for _ in 0..50 {
        let mut client = served.client().await;
        client.write_all(head).await.unwrap();
        begun.notified().await;
        // Reset, not closed: nobody is there to read an answer.
        client.set_zero_linger().unwrap();
        drop(client);
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while served.stats.snapshot().in_flight > 0 {
        assert!(
            Instant::now() < deadline,
            "requests given up are still in flight"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let given_up = served.metrics_of("status=\"499\"");
    assert!(given_up.ends_with(" 50"), "{given_up}");
    let mut client = served.client().await;
    client.write_all(head).await.unwrap();
    client.shutdown().await.unwrap();
    begun.notified().await;
    waits.notify_one();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("late"), "{answer}");
    served.stop().await;
}
