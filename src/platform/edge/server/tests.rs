use axum::{Router, body::Body, routing::any};
use http::{Request, StatusCode, Version};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinHandle,
};

use super::*;
use crate::platform::{edge::stats::HttpStats, metrics::Metrics};

async fn server(limits: Limits) -> (SocketAddr, CancellationToken, JoinHandle<()>) {
    let router = Router::new().route("/", any(|| async { StatusCode::NO_CONTENT }));
    let (metrics, stats) = (Metrics::default(), Arc::new(HttpStats::default()));
    let edge = Edge::new(router, None, &metrics, stats);
    let listener = bind("--listen", SocketAddr::from(([127, 0, 0, 1], 0))).await;
    let listener = listener.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let served = tokio::spawn(serve(listener, edge, limits, stop.clone()));
    (address, stop, served)
}

/// What the server sent until it closed.
async fn rest(mut client: TcpStream) -> String {
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn both_versions_are_spoken_however_a_head_arrives() {
    let (address, stop, served) = server(Limits::default()).await;
    for parts in [
        ["GET / HTTP/1.1\r\nconnection: close\r\n", "host: h\r\n\r\n"],
        // As an HTTP/2 connection begins, too, until the second byte.
        ["P", "UT / HTTP/1.1\r\nconnection: close\r\nhost: h\r\n\r\n"],
    ] {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.set_nodelay(true).unwrap();
        for part in parts {
            client.write_all(part.as_bytes()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let answer = rest(client).await;
        assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    }
    let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://h/").body(Body::empty()).unwrap();
    let answer = send.send_request(request).await.unwrap();
    assert_eq!(
        (answer.version(), answer.status()),
        (Version::HTTP_2, StatusCode::NO_CONTENT)
    );
    drop(send);
    stop.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn who_says_nothing_is_cut_off_and_holds_up_no_stop() {
    let limits = Limits {
        head: Duration::from_millis(50),
        ..Limits::default()
    };
    let (address, stop, served) = server(limits).await;
    let silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(rest(silent).await, "");
    let mut half = TcpStream::connect(address).await.unwrap();
    half.write_all(b"PRI * HTTP/2.0\r\n").await.unwrap();
    assert_eq!(rest(half).await, "");
    stop.cancel();
    served.await.unwrap();
    let (address, stop, served) = server(Limits::default()).await;
    let silent = TcpStream::connect(address).await.unwrap();
    // It is accepted once another one after it is answered.
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = "GET / HTTP/1.1\r\nconnection: close\r\nhost: h\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    assert!(rest(client).await.starts_with("HTTP/1.1 204 "));
    let begun = std::time::Instant::now();
    stop.cancel();
    served.await.unwrap();
    assert!(
        begun.elapsed() < Limits::default().drain,
        "it was not waited for"
    );
    assert_eq!(rest(silent).await, "");
}

/// Sends one request and reads its answer, which has no body.
async fn ask(client: &mut TcpStream) -> String {
    client
        .write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n")
        .await
        .unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(client.read_u8().await.unwrap());
    }
    String::from_utf8(answer).unwrap()
}

/// A client of `address` from 127.0.0.`from`.
async fn client(address: SocketAddr, from: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(SocketAddr::from(([127, 0, 0, from], 0)))
        .unwrap();
    socket.connect(address).await.unwrap()
}

#[tokio::test]
async fn an_address_gives_way_when_others_ask() {
    let limits = Limits {
        connections_max: 8,
        ..Limits::default()
    };
    let (address, stop, served) = server(limits).await;
    let mut kept = Vec::new();
    for _ in 0..7 {
        let mut client = client(address, 1).await;
        let answer = ask(&mut client).await;
        assert!(!answer.contains("connection: close"), "{answer}");
        kept.push(client);
    }
    // Somebody else asks: the many end with their next answers, the one does not.
    let mut other = client(address, 2).await;
    assert!(!ask(&mut other).await.contains("connection: close"));
    let answer = ask(&mut kept[0]).await;
    assert!(answer.contains("connection: close"), "{answer}");
    assert_eq!(rest(kept.remove(0)).await, "");
    assert!(!ask(&mut other).await.contains("connection: close"));
    // And when all are in use, the longest idle one of the many makes room.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut more = Vec::new();
    for from in [3, 4, 5] {
        let mut client = client(address, from).await;
        ask(&mut client).await;
        more.push(client);
    }
    stop.cancel();
    served.await.unwrap();
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_more_ends() {
    let limits = Limits {
        idle: Duration::from_millis(50),
        ..Limits::default()
    };
    let (address, stop, served) = server(limits).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    assert!(ask(&mut client).await.starts_with("HTTP/1.1 204 "));
    assert_eq!(rest(client).await, "");
    stop.cancel();
    served.await.unwrap();
}
