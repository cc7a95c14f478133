//! Requests that are none, and answers that must not be lost.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{address, answers, assert_no_server_error, connect};
use crate::harness::{self, server::Server};

#[tokio::test(flavor = "multi_thread")]
async fn malformed_requests_are_problems_and_no_answer_is_lost() {
    let args = ["--head-timeout", "1s", "--body-timeout", "1s"];
    let server = Server::start(harness::data_dir(), &args, &[]).await;
    let at = address(&server);
    let long = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(9 << 10));
    let longest = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "x".repeat(200 << 10));
    let large = format!(
        "GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n",
        "x".repeat(40 << 10)
    );
    let largest = format!(
        "GET / HTTP/1.1\r\nhost: h\r\nx: {}\r\n\r\n",
        "x".repeat(300 << 10)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nhost: h\r\n{}\r\n",
        "x: y\r\n".repeat(200)
    );
    let posted =
        "POST /api/v1/auth/login HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";
    let with = |framing: &str| format!("{posted}{framing}");
    let large_body = with(&format!(
        "connection: close\r\ncontent-length: 70000\r\n\r\n{}",
        " ".repeat(70_000)
    ));
    for (sent, status) in [
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n".to_owned(),
            400,
        ),
        ("GET / HTTP/1.1\nhost: a\n\n".to_owned(), 400),
        (
            "GET / HTTP/1.1\r\nhost: a\r\nbad header: x\r\n\r\n".to_owned(),
            400,
        ),
        ("GET / HTTP/3.0\r\nhost: a\r\n\r\n".to_owned(), 400),
        ("PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_owned(), 400),
        (
            "\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}\u{3}\u{3}".to_owned(),
            400,
        ),
        (
            with("content-length: 5\r\ncontent-length: 6\r\n\r\nhello!"),
            400,
        ),
        (
            with("content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (
            with("transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            400,
        ),
        (with("transfer-encoding: chunked\r\n\r\nzz\r\n\r\n"), 400),
        (
            with("transfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n"),
            400,
        ),
        (large_body, 413),
        (with("content-length: 20\r\n\r\n{\"email\":"), 408),
        (with("transfer-encoding: chunked\r\n\r\n5\r\n{\"em"), 408),
        ("GET / HTTP/1.1\r\nhost: ".to_owned(), 408),
        (long, 414),
        (longest, 414),
        (large, 431),
        (largest, 431),
        (many, 431),
    ] {
        let answer = answers(at, sent.as_bytes()).await;
        let begins = &sent[..sent.len().min(150)];
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{begins:?}: {answer}"
        );
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["status"], status, "{begins:?}: {answer}");
        let id = format!("x-request-id: {}", body["requestId"].as_str().unwrap());
        for header in [
            "application/problem+json",
            "connection: close",
            "nosniff",
            &id,
        ] {
            assert!(head.contains(header), "{begins:?}: no {header} in {answer}");
        }
    }
    // Answered, whatever follows the last request; and in order.
    let email = r#"{"email":"stray@example.com","password":"correct horse 1","name":"S"}"#;
    let sign_up = |version: &str, more: &str| {
        format!(
            "POST /api/v1/users HTTP/{version}\r\nhost: h\r\n{more}content-type: application/json\r\ncontent-length: {}\r\n\r\n{email}x",
            email.len()
        )
    };
    let first = answers(at, sign_up("1.1", "connection: close\r\n").as_bytes()).await;
    assert!(first.starts_with("HTTP/1.1 201 "), "{first}");
    let second = answers(at, sign_up("1.0", "").as_bytes()).await;
    assert!(second.starts_with("HTTP/1.1 409 "), "{second}");
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: h\r\n\r\n");
    let many = [
        get("/nothing"),
        get("/"),
        get("/api/v1/performances"),
        "x\r\n".to_owned(),
    ];
    let answer = answers(at, many.concat().as_bytes()).await;
    let statuses = answer
        .match_indices("HTTP/1.1 ")
        .map(|(i, _)| &answer[i + 9..i + 12]);
    assert_eq!(
        statuses.collect::<Vec<_>>(),
        ["404", "200", "200", "400"],
        "{answer}"
    );
    // A client that has closed its side may still read.
    let mut client = connect(at).await;
    client
        .write_all(get("/api/v1/performances").as_bytes())
        .await
        .unwrap();
    client.shutdown().await.unwrap();
    let mut answer = String::new();
    let read = client.read_to_string(&mut answer);
    tokio::time::timeout(Duration::from_secs(10), read)
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_no_server_error(&server).await;
}
