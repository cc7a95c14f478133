//! The edge against clients that mean it harm: raw sockets against the real binary.

mod clients;
mod descriptors;
mod requests;
mod shares;
mod tls;

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
};

use crate::harness::server::Server;

/// Where the server listens.
fn address(server: &Server) -> SocketAddr {
    of_url(&server.sale.api.base)
}

fn of_url(url: &str) -> SocketAddr {
    let (_, address) = url.split_once("://").unwrap();
    address.trim_end_matches('/').parse().unwrap()
}

async fn connect(address: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(address).await.unwrap();
    client.set_nodelay(true).unwrap();
    client
}

/// A client at 127.0.0.`from`.
async fn connect_from(address: SocketAddr, from: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    let own = SocketAddr::from(([127, 0, 0, from], 0));
    socket.bind(own).unwrap();
    socket.connect(address).await.unwrap()
}

/// Everything the server answers to `sent`, until it closes.
async fn answers(address: SocketAddr, sent: &[u8]) -> String {
    let mut client = connect(address).await;
    // The server may close before all is sent.
    let _closed = client.write_all(sent).await.is_err();
    let mut answer = Vec::new();
    let read = client.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(20), read).await;
    read.expect("the server closes").expect("no reset");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The head of one request's answer, whose body is read too.
async fn head(client: &mut TcpStream, request: &str) -> String {
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        match client.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(_) => break,
        }
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body).await.unwrap();
    head
}

/// The value of a metric's one line.
async fn metric(server: &Server, line: &str) -> f64 {
    let text = server.ops.get("/metrics", &[]).await.expect(200).text;
    let found = text
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(' '));
    found.map_or(0.0, |value| value.parse().unwrap())
}

/// Waits until no connection is open but those of the stores' own and of this test's client.
async fn until_closed(server: &Server, at_most: f64) {
    // Patient: on a busy machine it takes long until the system's buffers are full.
    let deadline = std::time::Instant::now() + Duration::from_secs(45);
    loop {
        let open = metric(server, "ticketping_http_connections").await;
        if open <= at_most {
            return;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "{open} connections go on"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Bytes of memory that a process holds.
fn memory(pid: i32) -> usize {
    let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Processor time that a process has used.
fn processor_time(pid: i32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = text.rsplit_once(") ").unwrap();
    let ticks = rest
        .split(' ')
        .skip(11)
        .take(2)
        .map(|n| n.parse::<u64>().unwrap());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

fn pid(server: &Server) -> i32 {
    server.process.as_ref().unwrap().pid()
}

/// No client may make the server say that it failed. On a busy machine a store may not answer
/// a reader in time, which is no client's doing.
async fn assert_no_server_error(server: &Server) {
    let text = server.ops.get("/metrics", &[]).await.expect(200).text;
    let failed = text.lines().filter(|line| line.contains("status=\"5"));
    let failed =
        failed.filter(|line| !(line.contains("method=\"GET\"") && line.contains("status=\"503\"")));
    let failed: Vec<_> = failed.collect();
    assert!(failed.is_empty(), "{failed:?}\n{}", server.log());
}
