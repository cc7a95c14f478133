//! Connections among addresses.

use std::time::Duration;

use super::{address, connect_from, head};
use crate::harness::{self, server::Server};

const GET: &str = "GET /api/v1/performances HTTP/1.1\r\nhost: h\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn no_address_keeps_others_out_and_a_trusted_proxy_is_no_address() {
    let args = ["--max-connections", "16", "--trusted-proxies", "127.0.0.9"];
    let server = Server::start(harness::data_dir(), &args, &[]).await;
    let at = address(&server);
    // One address takes all there is, and holds on: some idle, some in the middle of a request.
    let mut many = Vec::new();
    for i in 0..16 {
        let mut client = connect_from(at, 2).await;
        let answer = match i % 2 {
            0 => head(&mut client, GET).await,
            _ => String::new(),
        };
        assert!(!answer.contains("connection: close"), "{answer}");
        many.push(client);
    }
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    // Everybody else is let in all the same, and keeps the connection.
    for from in 3..7 {
        let mut client = connect_from(at, from).await;
        let answer = head(&mut client, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{from}: {answer}");
        assert!(!answer.contains("connection: close"), "{from}: {answer}");
        many.push(client);
    }
    // A proxy's many clients come from one address.
    let mut proxied = Vec::new();
    for _ in 0..8 {
        let mut client = connect_from(at, 9).await;
        let answer = head(&mut client, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        proxied.push(client);
    }
    let mut other = connect_from(at, 7).await;
    assert!(head(&mut other, GET).await.starts_with("HTTP/1.1 200 "));
    for client in &mut proxied {
        let answer = head(client, GET).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && !answer.contains("connection: close"),
            "{answer}"
        );
    }
}
