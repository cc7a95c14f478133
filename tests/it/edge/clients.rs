//! Clients that send without end, read nothing, hold on, or let go: what each may cost.

use std::time::Duration;

use axum::body::Body;
use http::Request;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    address, answers, assert_no_server_error, connect, memory, metric, pid, processor_time,
    until_closed,
};
use crate::harness::{self, server::Server, steps};

/// What one connection may cost.
const MEGABYTE: usize = 1 << 20;

/// Writes `sent` again and again until the server takes no more; the connection is held.
async fn stuff(mut client: TcpStream, sent: Vec<u8>) -> TcpStream {
    let flood = async { while client.write_all(&sent).await.is_ok() {} };
    let _took_no_more = tokio::time::timeout(Duration::from_millis(700), flood).await;
    client
}

/// An HTTP/2 client that takes nothing of its answers, and `count` requests of it.
async fn unread_streams(at: std::net::SocketAddr, path: &str, count: usize) -> Vec<Box<dyn Send>> {
    let io = TokioIo::new(connect(at).await);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .initial_stream_window_size(16)
        .initial_connection_window_size(1 << 16);
    let (mut send, connection) = builder.handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut held: Vec<Box<dyn Send>> = Vec::new();
    for _ in 0..count {
        let request = Request::get(format!("http://h{path}"))
            .body(Body::empty())
            .unwrap();
        let ready = tokio::time::timeout(Duration::from_millis(200), send.ready()).await;
        if !ready.is_ok_and(|ready| ready.is_ok()) {
            break;
        }
        held.push(Box::new(tokio::spawn(send.send_request(request))));
    }
    held.push(Box::new(send));
    held
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_costs_less_than_a_megabyte_and_ends() {
    let timeouts = [
        ["--write-timeout", "2s"],
        ["--idle-timeout", "4s"],
        ["--answer-timeout", "5s"],
        ["--stream-timeout", "5s"],
        ["--head-timeout", "4s"],
        ["--body-timeout", "4s"],
    ];
    let mut server = Server::start(harness::data_dir(), &timeouts.concat(), &[]).await;
    let numbers = [
        ["--performances", "1"],
        ["--schedules", "1"],
        ["--seats", "2000"],
        ["--users", "1"],
    ];
    server.seed(&numbers.concat()).await;
    let (performance, schedule) = steps::the_performance(&server.sale).await;
    let (at, process) = (address(&server), pid(&server));
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n").into_bytes();
    let seats = format!("/api/v1/schedules/{schedule}/seats");
    let events = format!("/api/v1/queues/{performance}/events");
    // Warm: what is allocated once is not a connection's.
    for path in [&seats, "/openapi.json", "/api/v1/performances"] {
        server.sale.api.get(path, &[]).await.expect(200);
    }
    let big_head = [
        b"GET / HTTP/1.1\r\nhost: h\r\nx: ".to_vec(),
        vec![b'x'; 31 << 10],
    ]
    .concat();
    let chunked =
        b"POST /api/v1/payments/webhook HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n";
    let drip = [&chunked[..], &b"1\r\nx\r\n".repeat(20_000)].concat();
    const EACH: usize = 8;
    let before = memory(process);
    let mut held = Vec::new();
    for _ in 0..EACH {
        for sent in [
            get(&seats),
            get("/openapi.json"),
            get(&events),
            big_head.clone(),
            drip.clone(),
            get("/nothing"),
        ] {
            held.push(tokio::spawn(stuff(connect(at).await, sent)));
        }
    }
    let mut streams = Vec::new();
    for _ in 0..EACH {
        for path in [&*seats, "/openapi.json", &events] {
            streams.push(unread_streams(at, path, 200).await);
        }
    }
    let mut clients = Vec::new();
    for one in held {
        clients.push(one.await.unwrap());
    }
    let (now, connections) = (memory(process), EACH * 9);
    let each = now.saturating_sub(before) / connections;
    assert!(
        each < MEGABYTE,
        "{each} bytes for each of {connections} connections"
    );
    // Nobody holds on for ever.
    until_closed(&server, 2.0).await;
    let cut = server.ops.get("/metrics", &[]).await.text;
    assert!(
        cut.contains("http_connections_cut_total{reason=\"write\"}"),
        "{cut}"
    );
    drop((clients, streams));
    assert_no_server_error(&server).await;
    beginnings_of_http2_cost_nothing(&server).await;
    requests_given_up_leave_nothing(&server, &seats).await;
}

async fn beginnings_of_http2_cost_nothing(server: &Server) {
    let (at, process) = (address(server), pid(server));
    let mut held = Vec::new();
    for _ in 0..1_000 {
        let mut client = connect(at).await;
        client.write_all(b"PRI").await.unwrap();
        held.push(client);
    }
    let (before, begun) = (processor_time(process), std::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(2)).await;
    let share = (processor_time(process) - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(
        share < 0.25,
        "{share} of a core for connections that ask for nothing"
    );
    until_closed(server, 2.0).await;
}

async fn requests_given_up_leave_nothing(server: &Server, seats: &str) {
    let at = address(server);
    let paths = [seats, "/api/v1/performances", "/openapi.json"];
    let login = r#"{"email":"nobody@example.com","password":"no such password"}"#;
    let login = format!(
        "POST /api/v1/auth/login HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{login}",
        login.len()
    );
    let mut gone = Vec::new();
    for i in 0..2_000 {
        let sent = match i % 4 {
            3 => login.clone(),
            n => format!("GET {} HTTP/1.1\r\nhost: h\r\n\r\n", paths[n]),
        };
        gone.push(tokio::spawn(async move {
            let mut client = connect(at).await;
            client.write_all(sent.as_bytes()).await.unwrap();
            client.set_zero_linger().unwrap();
        }));
    }
    for one in gone {
        one.await.unwrap();
    }
    rapid_resets(at, seats).await;
    harness::eventually("nothing is in flight", async || {
        metric(server, "ticketping_http_requests_in_flight").await == 0.0
    })
    .await;
    until_closed(server, 2.0).await;
    // What is limited is not used up: passwords are still checked, one at a time or many.
    let answer = answers(
        at,
        login
            .replace("host: h\r\n", "host: h\r\nconnection: close\r\n")
            .as_bytes(),
    )
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 401 ") || answer.starts_with("HTTP/1.1 429 "),
        "{answer}"
    );
    assert_no_server_error(server).await;
}

/// One HTTP/2 connection that gives up all it asks for: it is ended.
async fn rapid_resets(at: std::net::SocketAddr, path: &str) {
    let io = TokioIo::new(connect(at).await);
    let (mut send, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    for _ in 0..5_000 {
        if send.ready().await.is_err() {
            break;
        }
        let request = Request::get(format!("http://h{path}"))
            .body(Body::empty())
            .unwrap();
        drop(send.send_request(request));
        tokio::task::yield_now().await;
    }
    drop(send);
    let ended = tokio::time::timeout(Duration::from_secs(10), connection).await;
    assert!(ended.is_ok(), "the connection goes on");
}
