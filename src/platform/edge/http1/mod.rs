//! HTTP/1.1, spoken by ourselves: one request at a time, everything bounded.
//!
//! hyper's server is made for servers that trust its defaults: it closes on malformed requests
//! with an empty answer or none, keeps 8 KB for each idle connection, has no limit on the time an
//! answer may take to be read, and with `pipeline_flush` buffers answers without bound. What an
//! HTTP/1.1 server must do is small (RFC 9112); `httparse` reads heads, and the rest stands here.
//!
//! An idle connection holds no buffer. A busy one holds what was read of the next request (at
//! most [`READ_MAX`]), one chunk of a body, and one answer, whose bytes are shared where the
//! handler's are. Pipelined requests are answered in order, one after the other.

mod body;
mod encode;
mod head;

use std::{
    future::Future,
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, header};
use hyper::body::{Body as _, Frame};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

pub(super) use self::head::target_too_long;
use self::{
    body::{Decoded, Feed, Framing},
    encode::{Asked, Length},
    head::{Head, Progress},
};
use super::{
    Edge, Handler,
    clock::Clock,
    io::{READ, poll_read},
    limits::{AGE_MAX, HEAD_MAX},
    registry::Handle,
};
use crate::platform::{event_stream::is_event_stream, problem::Problem};

/// No more is read ahead of what is being answered.
const READ_MAX: usize = HEAD_MAX + READ;
/// Answers to pipelined requests are written together up to so many bytes.
const GATHER_MAX: usize = 16 * 1024;
/// A client that has closed its side, and may still read, is answered if it does not take longer.
const HALF_CLOSED_MAX: Duration = Duration::from_secs(3);
/// After the last answer, what the client still sends is read and forgotten, so that its system
/// does not throw the answer away (RFC 9112, 9.6): for so long, and so much. More than the largest
/// body that is taken anywhere.
const LINGER_MAX: Duration = Duration::from_secs(2);
const LINGER_BYTES_MAX: usize = 2 << 20;

/// The client is gone, or was cut off: nothing more can be said.
struct Gone;

/// Answers the requests of one connection until it ends; `first` has been read from `io` already.
pub(super) async fn serve<S, H>(
    io: S,
    first: BytesMut,
    clock: Clock,
    edge: &Edge<H>,
    peer: SocketAddr,
    handle: &Arc<Handle>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin,
    H: Handler,
{
    let mut connection = Connection {
        io,
        read: first,
        progress: Progress::default(),
        out: Vec::new(),
        clock,
        is_ended: false,
        handle,
        until: Instant::now() + AGE_MAX,
    };
    while let Ok(Next::Again) = connection.one(edge, peer).await {}
}

struct Connection<'a, S> {
    io: S,
    read: BytesMut,
    progress: Progress,
    /// Bytes to be written.
    out: Vec<u8>,
    clock: Clock,
    /// The client sends nothing more.
    is_ended: bool,
    handle: &'a Handle,
    /// The connection ends with the first answer after this.
    until: Instant,
}

enum Next {
    /// The connection goes on.
    Again,
    /// It has ended in order.
    End,
}

/// Why reading stopped.
enum Read {
    Some,
    /// The client has closed its side.
    End,
    Late,
    /// The server stops.
    Stop,
    Failed,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection<'_, S> {
    /// Reads one request and answers it.
    async fn one<H: Handler>(&mut self, edge: &Edge<H>, peer: SocketAddr) -> Result<Next, Gone> {
        let head = match self.head().await? {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(Next::End),
            Err(problem) => return self.refuse(edge.refused(&problem)).await,
        };
        self.handle.busy();
        let asked = Asked::new(&head.method, head.version);
        if head.framing.is_done()
            && let Some(response) = edge.fast(&head.method, &head.uri, &head.headers)
        {
            let close = self.is_last(head.keep_alive && !edge.is_leaving());
            return self.finish(response, asked, close).await;
        }
        // Nobody waits for the answers before this one.
        self.flush().await?;
        let (keep_alive, expects) = (head.keep_alive, head.expects_continue);
        let mut framing = head.framing.clone();
        let (feed, request) = split(head);
        // Boxed: an idle connection does not hold the room for it.
        let mut answer = Box::pin(edge.later(request, peer));
        let response = self
            .drive(answer.as_mut(), feed.as_ref(), &mut framing, expects)
            .await?;
        drop(answer);
        self.clock.within(self.handle.limits().write);
        let is_read = self.forget_arrived(&mut framing);
        let close = self.is_last(keep_alive && is_read && !edge.is_leaving());
        self.finish(response, asked, close).await
    }

    /// Whether the answer about to be sent ends the connection.
    fn is_last(&self, keep_alive: bool) -> bool {
        !keep_alive
            || self.is_ended && self.read.is_empty()
            || self.handle.is_stopping()
            || self.handle.is_over_share()
            || self.until <= Instant::now()
    }

    async fn finish(
        &mut self,
        response: Response,
        asked: Asked,
        close: bool,
    ) -> Result<Next, Gone> {
        let close = self.send(response, asked, close).await?;
        if close {
            self.end().await;
            return Ok(Next::End);
        }
        Ok(Next::Again)
    }

    /// The answer to what is no request; what follows it is not read as one.
    async fn refuse(&mut self, response: Response) -> Result<Next, Gone> {
        self.handle.busy();
        let asked = Asked {
            is_head: false,
            is_10: false,
        };
        self.finish(response, asked, true).await
    }

    /// The next request's head; `None`: there is none. Writes what is gathered before it waits.
    async fn head(&mut self) -> Result<Result<Option<Head>, Problem>, Gone> {
        let limits = *self.handle.limits();
        let mut begun = (!self.read.is_empty()).then(Instant::now);
        loop {
            match head::take(&mut self.read, &mut self.progress) {
                Ok(Some(head)) => return Ok(Ok(Some(head))),
                Ok(None) => {}
                Err(refusal) => return Ok(Err(refusal.problem())),
            }
            if self.is_ended {
                let broke_off = head::Refusal::Malformed("The request broke off.");
                let some = !self.read.is_empty();
                return Ok(if some {
                    Err(broke_off.problem())
                } else {
                    Ok(None)
                });
            }
            self.flush().await?;
            if self.read.is_empty() {
                self.out = Vec::new();
                self.read = BytesMut::new();
                self.handle.idle();
                self.clock.within(limits.idle);
            } else {
                let begun = *begun.get_or_insert_with(Instant::now);
                self.clock.set(begun + limits.head);
            }
            match self.more().await {
                Read::Some => {}
                Read::End => self.is_ended = true,
                Read::Late if self.read.is_empty() => {
                    self.handle.counters().cut("idle");
                    return Ok(Ok(None));
                }
                Read::Late => {
                    self.handle.counters().cut("head");
                    return Ok(Err(super::too_slow(
                        "The head of the request did not arrive in time.",
                    )));
                }
                Read::Stop => return Ok(Ok(None)),
                Read::Failed => return Err(Gone),
            }
        }
    }

    /// Reads more of the next request.
    async fn more(&mut self) -> Read {
        std::future::poll_fn(|cx| {
            match self.poll_read(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Read::End),
                Poll::Ready(Ok(_)) => return Poll::Ready(Read::Some),
                Poll::Ready(Err(_)) => return Poll::Ready(Read::Failed),
                Poll::Pending => {}
            }
            if self.read.is_empty() && self.handle.is_stopping() {
                return Poll::Ready(Read::Stop);
            }
            if self.clock.is_over(cx) {
                return Poll::Ready(Read::Late);
            }
            Poll::Pending
        })
        .await
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        poll_read(&mut self.io, &mut self.read, cx)
    }

    /// Runs the handler to its answer, and feeds it the body meanwhile.
    async fn drive(
        &mut self,
        mut answer: Pin<&mut (impl Future<Output = Response> + Send)>,
        feed: Option<&Feed>,
        framing: &mut Framing,
        mut expects_continue: bool,
    ) -> Result<Response, Gone> {
        // The client may have closed its side with the request.
        if self.is_ended {
            self.clock.within(HALF_CLOSED_MAX);
        }
        std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(response) = answer.as_mut().poll(cx) {
                    return Poll::Ready(Ok(response));
                }
                let wanted = feed.filter(|feed| feed.is_wanted(cx));
                let Some(feed) = wanted else { break };
                match framing.decode(&mut self.read) {
                    Decoded::Data(bytes) => feed.send(bytes),
                    Decoded::End => feed.end(Ok(())),
                    Decoded::Malformed => feed.end(Err(())),
                    Decoded::More if self.is_ended => feed.end(Err(())),
                    Decoded::More => {
                        if std::mem::take(&mut expects_continue) {
                            self.out.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                        }
                        if let Poll::Ready(Err(_)) = self.poll_flush(cx) {
                            return Poll::Ready(Err(Gone));
                        }
                        match self.poll_read(cx) {
                            Poll::Ready(Ok(0)) => self.is_ended = true,
                            Poll::Ready(Ok(_)) => {}
                            Poll::Ready(Err(_)) => return Poll::Ready(Err(Gone)),
                            Poll::Pending => return Poll::Pending,
                        }
                    }
                }
            }
            self.poll_gone(cx, framing).map(Err)
        })
        .await
    }

    /// Resolves when the client is gone: a connection that broke, or one closed by its client
    /// for longer than the answer may take.
    fn poll_gone(&mut self, cx: &mut Context<'_>, framing: &Framing) -> Poll<Gone> {
        while !self.is_ended && self.read.is_empty() && framing.is_done() {
            match ready!(self.poll_read(cx)) {
                Ok(0) => {
                    self.is_ended = true;
                    self.clock.within(HALF_CLOSED_MAX);
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(Gone),
            }
        }
        if self.is_ended && self.clock.is_over(cx) {
            return Poll::Ready(Gone);
        }
        Poll::Pending
    }

    /// Skips what has arrived of a body that the handler did not read; whether that is all of it.
    fn forget_arrived(&mut self, framing: &mut Framing) -> bool {
        while let Decoded::Data(_) = framing.decode(&mut self.read) {}
        framing.is_done()
    }

    /// Sends an answer; whether it is the last one.
    async fn send(
        &mut self,
        response: Response,
        asked: Asked,
        mut close: bool,
    ) -> Result<bool, Gone> {
        let (parts, body) = response.into_parts();
        let exact = body.size_hint().exact();
        let length = asked.length(parts.status, exact);
        let is_stream = is_event_stream(&parts.headers);
        // A stream's client comes again on another connection, and must come again at all.
        close |= is_stream || length == Length::UntilClose || asks_to_close(&parts.headers);
        encode::head(&mut self.out, &parts, asked, length, exact, close);
        let whole = match is_stream {
            true => None,
            false => Some(Instant::now() + self.handle.limits().answer),
        };
        if length != Length::None {
            self.send_body(body, length, whole).await?;
        }
        if close || self.out.len() >= GATHER_MAX || self.read.is_empty() {
            self.flush().await?;
        }
        Ok(close)
    }

    async fn send_body(
        &mut self,
        mut body: Body,
        length: Length,
        whole: Option<Instant>,
    ) -> Result<(), Gone> {
        let mut left = match length {
            Length::Exact(bytes) => bytes,
            _ => u64::MAX,
        };
        loop {
            let data = match self.frame(&mut body, whole).await? {
                Some(Ok(frame)) => frame.into_data().ok(),
                // Ending in order would pass a part for the whole.
                Some(Err(_)) => return Err(Gone),
                None => break,
            };
            let Some(data) = data.filter(|data| !data.is_empty()) else {
                continue;
            };
            left = left.checked_sub(data.len() as u64).ok_or(Gone)?;
            if length == Length::Chunked {
                encode::chunk_size(&mut self.out, data.len());
            }
            self.write(data, whole).await?;
            if length == Length::Chunked {
                self.out.extend_from_slice(b"\r\n");
            }
        }
        match length {
            Length::Chunked => self.out.extend_from_slice(encode::LAST_CHUNK),
            Length::Exact(_) if left > 0 => return Err(Gone),
            Length::Exact(_) | Length::UntilClose | Length::None => {}
        }
        Ok(())
    }

    /// The next frame of an answer's body. Meanwhile what is gathered is written, and the client
    /// is watched.
    async fn frame(
        &mut self,
        body: &mut Body,
        whole: Option<Instant>,
    ) -> Result<Option<Result<Frame<Bytes>, axum::Error>>, Gone> {
        let first =
            std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut *body).poll_frame(cx))).await;
        if let Poll::Ready(frame) = first {
            return Ok(frame);
        }
        self.flush().await?;
        self.clock
            .set(whole.unwrap_or_else(|| Instant::now() + AGE_MAX));
        std::future::poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
                return Poll::Ready(Ok(frame));
            }
            while !self.is_ended && self.read.len() < READ_MAX {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(0)) => self.is_ended = true,
                    Poll::Ready(Ok(_)) => {}
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Gone)),
                    Poll::Pending => break,
                }
            }
            // Nobody reads a stream on a connection that he has closed.
            if self.clock.is_over(cx) || (self.is_ended && whole.is_none()) {
                return Poll::Ready(Err(Gone));
            }
            Poll::Pending
        })
        .await
    }

    /// Writes `data` behind what is gathered; small pieces are gathered too.
    async fn write(&mut self, mut data: Bytes, whole: Option<Instant>) -> Result<(), Gone> {
        if self.out.len() + data.len() <= GATHER_MAX {
            self.out.extend_from_slice(&data);
            return Ok(());
        }
        self.write_out(&mut data, whole).await
    }

    async fn flush(&mut self) -> Result<(), Gone> {
        let whole = Instant::now() + self.handle.limits().answer;
        self.write_out(&mut Bytes::new(), Some(whole)).await
    }

    /// Writes what is gathered, then `data`. A client that takes nothing for a while, or takes
    /// too long for all of it, is cut off.
    async fn write_out(&mut self, data: &mut Bytes, whole: Option<Instant>) -> Result<(), Gone> {
        let stall = self.handle.limits().write;
        let mut is_waiting = false;
        std::future::poll_fn(|cx| {
            loop {
                match self.poll_write(cx, data) {
                    Poll::Ready(Ok(true)) => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(false)) => is_waiting = false,
                    Poll::Ready(Err(_)) => return Poll::Ready(Err(Gone)),
                    Poll::Pending => break,
                }
            }
            if !is_waiting {
                is_waiting = true;
                let whole = whole.unwrap_or(self.until);
                self.clock.set(whole.min(Instant::now() + stall));
            }
            if self.clock.is_over(cx) {
                self.handle.counters().cut("write");
                return Poll::Ready(Err(Gone));
            }
            Poll::Pending
        })
        .await
    }

    /// Writes once; whether all is written.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &mut Bytes) -> Poll<io::Result<bool>> {
        let gathered = self.out.len();
        if gathered + data.len() == 0 {
            return Pin::new(&mut self.io).poll_flush(cx).map_ok(|()| true);
        }
        let parts = [IoSlice::new(&self.out), IoSlice::new(data)];
        let io = Pin::new(&mut self.io);
        let written = ready!(match (gathered, data.len()) {
            (0, _) => io.poll_write(cx, data),
            (_, 0) => io.poll_write(cx, &self.out),
            _ => io.poll_write_vectored(cx, &parts),
        })?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        let ours = written.min(gathered);
        if ours == gathered {
            self.out.clear();
        } else {
            self.out.drain(..ours);
        }
        data.advance(written - ours);
        Poll::Ready(Ok(false))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !ready!(self.poll_write(cx, &mut Bytes::new()))? {}
        Poll::Ready(Ok(()))
    }

    /// Closes our side, and reads and forgets what the client still sends.
    async fn end(&mut self) {
        self.clock.within(LINGER_MAX);
        self.read = BytesMut::new();
        let (mut is_shut, mut left) = (false, LINGER_BYTES_MAX);
        std::future::poll_fn(|cx| {
            if !is_shut {
                match Pin::new(&mut self.io).poll_shutdown(cx) {
                    Poll::Ready(Ok(())) => is_shut = true,
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => {}
                }
            }
            while !self.is_ended && left > 0 {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(0)) => self.is_ended = true,
                    Poll::Ready(Ok(bytes)) => left = left.saturating_sub(bytes),
                    Poll::Ready(Err(_)) => return Poll::Ready(()),
                    Poll::Pending => break,
                }
                self.read.clear();
            }
            let is_over = left == 0 || (is_shut && self.is_ended) || self.clock.is_over(cx);
            if is_over {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }
}

/// Whether a handler wants its answer to be the last one on the connection.
fn asks_to_close(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONNECTION);
    value.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"close"))
}

/// The request of `head`, and what feeds its body.
fn split(head: Head) -> (Option<Feed>, Request<Body>) {
    let (feed, body) = match head.framing {
        Framing::Done => (None, Body::empty()),
        ref framing => {
            let (feed, body) = body::channel(framing);
            (Some(feed), Body::new(body))
        }
    };
    let mut request = Request::new(body);
    *request.method_mut() = head.method;
    *request.uri_mut() = head.uri;
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers;
    // What concerns this connection alone goes no further.
    request.headers_mut().remove(header::EXPECT);
    (feed, request)
}

#[cfg(test)]
mod tests;
