//! The server loop: bounded connections, bounded waits, a clean end.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use hyper::server::conn::http2 as hyper_http2;
use hyper_util::rt::TokioExecutor;
use nix::libc;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{
    Edge, Handler,
    clock::Clock,
    counters::Counters,
    http1, http2,
    io::poll_read,
    limits::{HANDSHAKE_MAX, Limits, SEND_BUFFER},
    registry::{Handle, Registry, Slot},
    tls::Tls,
};
use crate::platform::{descriptors::Spare, net::Net};

/// Connections that wait to be accepted; the system may allow fewer.
const BACKLOG: u32 = 4096;
/// Without a file descriptor left, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// One line about the same trouble in so long.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// Connections that were cut off have let go within this long.
const CUT_MAX: Duration = Duration::from_secs(1);

/// What a listener may have beside its limits.
#[derive(Clone, Default)]
pub struct Options {
    /// Speaks TLS.
    pub tls: Option<Tls>,
    /// Proxies that stand for many clients: their address is not held to a share.
    pub trusted_proxies: Vec<Net>,
    /// Descriptors to give up when there is no other for a connection.
    pub spare: Option<Arc<Spare>>,
    /// Where connections are counted.
    pub counters: Counters,
    /// On a thread of its own, so that it answers when all others are busy.
    pub own_thread: bool,
}

/// Listens on `address`; port 0 picks a free one.
///
/// # Errors
/// One sentence that names the flag and the address.
pub async fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, String> {
    listen(address).map_err(|e| match e.kind() {
        io::ErrorKind::AddrInUse => format!(
            "{flag} {address}: the port is in use; stop what listens there or choose another (port 0 picks a free one)"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("{flag} {address}: not allowed to listen there; choose a port above 1023")
        }
        _ => format!("{flag} {address}: {e}"),
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Accepted connections have it too.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `edge` on `listener` until `stop`, then drains.
pub async fn serve<H: Handler>(
    listener: TcpListener,
    edge: Edge<H>,
    limits: Limits,
    stop: CancellationToken,
) {
    serve_with(listener, edge, limits, Options::default(), stop).await;
}

/// As [`serve`], with what else the listener has.
pub async fn serve_with<H: Handler>(
    listener: TcpListener,
    edge: Edge<H>,
    limits: Limits,
    options: Options,
    stop: CancellationToken,
) {
    if !options.own_thread {
        return serve_here(listener, edge, limits, options, stop).await;
    }
    if let Err(error) = serve_apart(listener, edge, limits, options, stop).await {
        tracing::error!(%error, "cannot serve on a thread of its own");
    }
}

async fn serve_apart<H: Handler>(
    listener: TcpListener,
    edge: Edge<H>,
    limits: Limits,
    options: Options,
    stop: CancellationToken,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let listener = listener.into_std()?;
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("listener".to_owned())
        .spawn(move || {
            let served = runtime.block_on(async {
                let listener = TcpListener::from_std(listener)?;
                serve_here(listener, edge, limits, options, stop).await;
                Ok(())
            });
            // Nobody waits for it once the process ends.
            let _waited_for = ended.send(served).is_ok();
        })?;
    end.await
        .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
}

async fn serve_here<H: Handler>(
    listener: TcpListener,
    mut edge: Edge<H>,
    limits: Limits,
    options: Options,
    stop: CancellationToken,
) {
    let counters = options.counters;
    counters
        .max
        .set(i64::try_from(limits.connections_max).unwrap_or(i64::MAX));
    let registry = Registry::new(limits, options.trusted_proxies, counters);
    edge.hsts = options.tls.as_ref().and_then(Tls::hsts);
    edge.limits = limits;
    let speaker = Arc::new(Speaker {
        edge,
        http2: http2::builder(),
        tls: options.tls,
    });
    let mut accepting = Accepting {
        listener,
        spare: options.spare,
        registry: registry.clone(),
        refused: Seldom::default(),
        failed: Seldom::default(),
    };
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accepting.next() => accepted,
        };
        let Some((stream, peer, slot)) = accepted else {
            continue;
        };
        let (speaker, spare) = (speaker.clone(), accepting.spare.clone());
        tokio::spawn(async move {
            speaker.connection(stream, peer, &slot.0).await;
            drop(slot);
            if let Some(spare) = spare {
                spare.refill();
            }
        });
    }
    drop(accepting);
    registry.stop();
    if tokio::time::timeout(limits.drain, registry.emptied())
        .await
        .is_err()
    {
        tracing::info!("some connections were still open at the end of the drain");
        registry.cut();
        // They end as soon as they run; a process that is too busy for that ends without them.
        let _in_time = tokio::time::timeout(CUT_MAX, registry.emptied())
            .await
            .is_ok();
    }
}

struct Accepting {
    listener: TcpListener,
    spare: Option<Arc<Spare>>,
    registry: Arc<Registry>,
    refused: Seldom,
    failed: Seldom,
}

impl Accepting {
    /// The next connection, and its place; `None`: there is none, look again.
    async fn next(&mut self) -> Option<(TcpStream, SocketAddr, Slot)> {
        let (stream, peer) = match self.listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                self.failed(&error).await;
                return None;
            }
        };
        let Some(slot) = self.registry.admit(peer.ip()) else {
            let max = self.registry.limits.connections_max;
            if let Some(before) = self.refused.again() {
                tracing::warn!(
                    connections.max = max,
                    connections.refused = before + 1,
                    "all {max} connections are in use; closed new ones at once"
                );
            }
            return None;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::trace!(%error, "TCP_NODELAY");
        }
        Some((stream, peer, slot))
    }

    async fn failed(&mut self, error: &io::Error) {
        let scarce = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
        if !error
            .raw_os_error()
            .is_some_and(|code| scarce.contains(&code))
        {
            // That connection ended before it was accepted.
            tracing::trace!(%error, "accept");
            return;
        }
        self.registry.counters.accept_errors.inc();
        if let Some(before) = self.failed.again() {
            tracing::warn!(%error, accept.failures = before + 1, "cannot accept connections");
        }
        if !self.spare.as_ref().is_some_and(|spare| spare.give_up()) {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

/// Something that happens often and is logged seldom.
#[derive(Default)]
struct Seldom {
    last: Option<Instant>,
    since: AtomicU64,
}

impl Seldom {
    /// It happened again; how often it did since the last line, where one is due.
    fn again(&mut self) -> Option<u64> {
        if self.last.is_some_and(|last| last.elapsed() < LOG_EVERY) {
            self.since.fetch_add(1, Relaxed);
            return None;
        }
        self.last = Some(Instant::now());
        Some(self.since.swap(0, Relaxed))
    }
}

/// How connections are spoken to.
struct Speaker<H> {
    edge: Edge<H>,
    http2: hyper_http2::Builder<TokioExecutor>,
    tls: Option<Tls>,
}

impl<H: Handler> Speaker<H> {
    /// Answers on `stream` until it ends, or is ended from outside.
    async fn connection(&self, stream: TcpStream, peer: SocketAddr, handle: &Arc<Handle>) {
        let mut spoken = pin!(self.speak(stream, peer, handle));
        std::future::poll_fn(|cx| match handle.is_cut(cx) {
            true => Poll::Ready(()),
            false => spoken.as_mut().poll(cx),
        })
        .await;
    }

    async fn speak(&self, mut stream: TcpStream, peer: SocketAddr, handle: &Arc<Handle>) {
        if let Some(tls) = &self.tls {
            // Boxed, so that a connection takes the memory of its own protocol alone.
            return Box::pin(self.speak_tls(tls, stream, peer, handle)).await;
        }
        let mut clock = Clock::new(handle.limits().head);
        let Some((is_http2, first)) = begin(&mut stream, &mut clock, handle).await else {
            return;
        };
        if is_http2 {
            drop(clock);
            let first = first.freeze();
            let served = http2::serve(stream, first, &self.http2, &self.edge, peer, handle);
            Box::pin(served).await;
        } else {
            http1::serve(stream, first, clock, &self.edge, peer, handle).await;
        }
    }

    async fn speak_tls(
        &self,
        tls: &Tls,
        stream: TcpStream,
        peer: SocketAddr,
        handle: &Arc<Handle>,
    ) {
        let shaken = tokio::time::timeout(HANDSHAKE_MAX, tls.acceptor().accept(stream)).await;
        let stream = match shaken {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::trace!(%error, "TLS handshake");
                return;
            }
            Err(_) => return handle.counters().cut("handshake"),
        };
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            let first = bytes::Bytes::new();
            http2::serve(stream, first, &self.http2, &self.edge, peer, handle).await;
        } else {
            let (first, clock) = (BytesMut::new(), Clock::new(handle.limits().head));
            http1::serve(stream, first, clock, &self.edge, peer, handle).await;
        }
    }
}

/// What an HTTP/2 connection begins with, and no HTTP/1.1 request does.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads as much as shows which version the client speaks; `None`: it is gone, or says nothing.
async fn begin(
    stream: &mut TcpStream,
    clock: &mut Clock,
    handle: &Handle,
) -> Option<(bool, BytesMut)> {
    let mut first = BytesMut::new();
    std::future::poll_fn(|cx| {
        loop {
            let compared = first.len().min(PREFACE.len());
            if first[..compared] != PREFACE[..compared] || compared == PREFACE.len() {
                return Poll::Ready(Some(
                    compared == PREFACE.len() && first.starts_with(PREFACE),
                ));
            }
            match poll_read(stream, &mut first, cx) {
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(_)) => {}
                Poll::Pending if handle.is_stopping() => return Poll::Ready(None),
                Poll::Pending if clock.is_over(cx) => {
                    handle.counters().cut("head");
                    return Poll::Ready(None);
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
    .map(|is_http2| (is_http2, first))
}

#[cfg(test)]
mod tests;
