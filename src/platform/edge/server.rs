//! The server loop: bounded connections, bounded waits, a clean end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{
    Request,
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use super::{Edge, Handler};

/// Bounds on what clients may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections; further ones wait to be accepted. While more than three quarters are
    /// open, each HTTP/1.1 answer ends its connection, so that whoever comes next need not wait.
    pub connections_max: usize,
    /// A new connection has said something within this long.
    pub first_byte: Duration,
    /// No HTTP/1.1 connection waits longer for the end of the next request's head. Longer than
    /// the longest poll interval: who polls as told keeps the connection.
    pub idle: Duration,
    /// After the stop, open requests get this long to be answered.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 100_000,
            first_byte: Duration::from_secs(15),
            idle: Duration::from_secs(75),
            drain: Duration::from_secs(3),
        }
    }
}

/// Listens on `address`; port 0 picks a free one.
///
/// # Errors
/// One sentence that names the flag and the address.
pub async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, String> {
    TcpListener::bind(address).await.map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{flag} {address}: the port is in use; stop what listens there or choose another (port 0 picks a free one)"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{flag} {address}: not allowed to listen there; choose a port above 1023")
        }
        _ => format!("{flag} {address}: {e}"),
    })
}

/// What an HTTP/2 connection begins with, and no HTTP/1.1 request does.
const PREFACE: &[u8] = b"PRI ";
/// Whose first packet holds less than that is looked at again so soon; no client is known to.
const PREFACE_LOOK: Duration = Duration::from_millis(5);
/// A head of 32 KB fits with room to spare.
const READ_BUFFER_MAX: usize = 64 * 1024;

/// How connections are spoken to.
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    first_byte: Duration,
    /// One permit a connection.
    slots: Arc<Semaphore>,
    /// With fewer permits left than this, answers end their connections. The loop holds one more,
    /// for whoever comes next.
    crowded_below: usize,
}

impl Protocols {
    fn new(limits: Limits) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(limits.idle)
            .max_buf_size(READ_BUFFER_MAX)
            .pipeline_flush(true);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_concurrent_streams(1_000)
            .max_header_list_size(32 * 1024)
            .keep_alive_interval(Some(Duration::from_secs(30)));
        Self {
            http1,
            http2,
            first_byte: limits.first_byte,
            slots: Arc::new(Semaphore::new(limits.connections_max)),
            crowded_below: limits.connections_max.div_ceil(4).saturating_sub(1),
        }
    }

    /// Answers on `stream` until it ends. hyper-util's own look at the version puts what it read
    /// in front of the stream again, which doubles hyper's read buffer for the life of the
    /// connection and adds a layer to each read: so HTTP/1.1 is recognised by peeking.
    async fn speak<H: Handler>(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        edge: Edge<H>,
        graceful: Watcher,
        stop: CancellationToken,
    ) {
        let is_http2 = tokio::select! {
            () = stop.cancelled() => return,
            seen = tokio::time::timeout(self.first_byte, is_http2(&stream)) => seen,
        };
        let Ok(Some(is_http2)) = is_http2 else {
            tracing::trace!("a connection that asked for nothing ended");
            return;
        };
        let io = TokioIo::new(stream);
        // Boxed, so that a connection takes the memory of its own version alone.
        let ended = if is_http2 {
            let service = service_fn(move |request: Request<Incoming>| edge.answer(request, peer));
            let connection = self.http2.serve_connection(io, service);
            Box::pin(graceful.watch(connection)).await
        } else {
            let this = self.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = edge.answer(request, peer);
                let crowded = this.slots.available_permits() < this.crowded_below;
                match crowded || edge.leaving.is_cancelled() {
                    true => answer.and_close(),
                    false => answer,
                }
            });
            let connection = self.http1.serve_connection(io, service);
            Box::pin(graceful.watch(connection)).await
        };
        if let Err(error) = ended {
            tracing::trace!(%error, "connection ended");
        }
    }
}

/// Which version the client begins with; `None`: it is gone.
async fn is_http2(stream: &TcpStream) -> Option<bool> {
    let mut head = [0_u8; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut head).await.ok().filter(|&n| n > 0)?;
        if seen == PREFACE.len() || !PREFACE.starts_with(&head[..seen]) {
            return Some(head == PREFACE);
        }
        // The socket is readable all the while: there is nothing to be woken by.
        tokio::time::sleep(PREFACE_LOOK).await;
    }
}

/// Serves `edge` on `listener` until `stop`, then drains.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    edge: Edge<H>,
    limits: Limits,
    stop: CancellationToken,
) {
    let protocols = Arc::new(Protocols::new(limits));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &protocols.slots) => accepted,
        };
        let Some((stream, peer, slot)) = accepted else {
            continue;
        };
        let (protocols, edge) = (protocols.clone(), edge.clone());
        let (watcher, stop) = (graceful.watcher(), stop.clone());
        tokio::spawn(async move {
            protocols.speak(stream, peer, edge, watcher, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::info!("some connections were still open at the end of the drain");
    }
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => {
            if let Err(error) = stream.set_nodelay(true) {
                tracing::trace!(%error, "TCP_NODELAY");
            }
            Some((stream, peer, slot))
        }
        Err(error) => {
            // Out of file descriptors, as a rule: accepting again at once would spin.
            tracing::warn!(%error, "cannot accept a connection");
            tokio::time::sleep(Duration::from_millis(50)).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, body::Body, routing::any};
    use http::{Request, StatusCode, Version};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

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
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
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
            first_byte: Duration::from_millis(50),
            ..Limits::default()
        };
        let (address, stop, served) = server(limits).await;
        let silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(rest(silent).await, "");
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

    #[tokio::test]
    async fn connections_are_kept_until_there_are_too_many() {
        let limits = Limits {
            connections_max: 8,
            ..Limits::default()
        };
        let (address, stop, served) = server(limits).await;
        let mut kept = Vec::new();
        for _ in 0..6 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let answer = ask(&mut client).await;
            assert!(!answer.contains("connection: close"), "{answer}");
            kept.push(client);
        }
        // More than three quarters: any number come and go beside those.
        for _ in 0..6 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let answer = ask(&mut client).await;
            assert!(answer.contains("connection: close"), "{answer}");
            assert_eq!(rest(client).await, "");
        }
        for mut client in kept {
            ask(&mut client).await;
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
}
