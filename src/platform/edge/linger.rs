//! Bodies that nobody read.
//!
//! A request that is refused by its head (too large, not signed in) is answered while its body
//! is still under way. Closing the connection then makes the client's system throw the answer
//! away with the rest, so that all it sees is "connection reset". What is left is read and
//! forgotten first, within bounds (RFC 9112, 9.6, says so of servers that close).

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::{Buf, Bytes};
use http::{Request, header};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

/// More than the largest body that is taken anywhere; who sends more is cut off.
const BYTES_MAX: usize = 2 << 20;
/// Who sends so slowly is cut off too.
const TIME_MAX: Duration = Duration::from_secs(2);

/// What is left of a request's body once its handler is done; nothing for most requests.
#[derive(Default)]
pub(super) struct Rest(Option<Slot>);

type Slot = Arc<Mutex<Option<Incoming>>>;

/// Gives the handler the body, and keeps what it does not read.
pub(super) fn watch(request: Request<Incoming>) -> (Request<Body>, Rest) {
    // A client that asks first has sent nothing yet, and is told by the answer not to.
    if request.body().is_end_stream() || request.headers().contains_key(header::EXPECT) {
        return (request.map(Body::new), Rest::default());
    }
    let slot = Slot::default();
    let rest = Rest(Some(slot.clone()));
    let watched = |body| {
        Body::new(Watched {
            body: Some(body),
            slot,
        })
    };
    (request.map(watched), rest)
}

impl Rest {
    /// Reads and forgets it.
    pub(super) async fn forget(self) {
        let left = self
            .0
            .and_then(|slot| slot.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some(mut body) = left else { return };
        let read = async {
            let mut bytes = 0;
            while bytes < BYTES_MAX {
                let Some(Ok(frame)) = body.frame().await else {
                    return;
                };
                bytes += frame.data_ref().map_or(0, Buf::remaining);
            }
        };
        // Too slow: the connection closes on them, which is all that can be done.
        let _in_time = tokio::time::timeout(TIME_MAX, read).await.is_ok();
    }
}

struct Watched {
    /// There until dropped.
    body: Option<Incoming>,
    slot: Slot,
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let left = self.body.take().filter(|body| !body.is_end_stream());
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use axum::{Router, http::StatusCode, routing::post};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };
    use tokio_util::sync::CancellationToken;

    use super::super::{Edge, Limits, bind, serve, stats::HttpStats};
    use crate::platform::metrics::Metrics;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_answer_is_read_though_the_body_was_not() {
        let router = Router::new().route("/", post(|| async { StatusCode::PAYLOAD_TOO_LARGE }));
        let edge = Edge::new(
            router,
            None,
            &Metrics::default(),
            Arc::<HttpStats>::default(),
        );
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listener = bind("--listen", any).await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, edge, Limits::default(), stop.clone()));
        for _ in 0..3 {
            let mut client = TcpStream::connect(address).await.unwrap();
            let head = "POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 1048576\r\n\r\n";
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
        stop.cancel();
        served.await.unwrap();
    }
}
