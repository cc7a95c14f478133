//! HTTP/2: hyper's, with bounds on what one connection may hold.
//!
//! Streams multiply what a connection costs, so what they hold is counted for the connection as
//! a whole: heads (by the number of streams), bodies of requests (by permits of 64 KB), and
//! answers that the client does not take (a stream is answered once there is room). Flow control lets a client
//! answer pings for ever and read nothing: so the connection ends when an answer makes no progress, or
//! is not taken in time, and when nothing has been asked for long.

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, header};
use hyper::{
    body::{Body as _, Frame, Incoming, SizeHint},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};

use super::{
    Edge, Handler,
    http1::target_too_long,
    io::Replay,
    limits::{AGE_MAX, Limits, TARGET_MAX},
    registry::Handle,
};
use crate::platform::event_stream::is_event_stream;

/// Requests in flight on one connection.
const STREAMS_MAX: u32 = 32;
/// A request's headers, decoded; more is 431. With all streams: half a megabyte.
const HEADER_LIST_MAX: u32 = 16 * 1024;
/// Bytes of requests' bodies that may arrive before their handlers read them, a stream and in all.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 128 * 1024;
/// Bodies of requests read at the same time, in units of [`STREAM_WINDOW`].
const BODIES_MAX: usize = 4;
/// Requests that are worked on, or whose answers are not taken, at the same time; further ones
/// wait. Waiting polls and event streams do not count.
const TURNS_MAX: usize = 8;
/// No further answer is begun while so many bytes are not taken.
const UNSENT_MAX: usize = 128 * 1024;
/// A client that gives up more requests than this, and more than it lets be answered, is cut off:
/// each costs us more than it.
const GIVEN_UP_MAX: usize = 100;
/// How often a connection with requests in flight is looked at.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// Serves HTTP/2 connections.
pub(super) fn builder() -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_LIST_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(16 * 1024)
        .max_send_buf_size(64 * 1024)
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(100)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Answers the requests of one connection until it ends.
pub(super) async fn serve<S, H>(
    io: S,
    first: Bytes,
    builder: &http2::Builder<TokioExecutor>,
    edge: &Edge<H>,
    peer: SocketAddr,
    handle: &Arc<Handle>,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    H: Handler,
{
    let load = Arc::new(Load::new(handle.clone()));
    let service = service_fn({
        let (edge, load) = (edge.clone(), load.clone());
        move |request| answer(edge.clone(), request, peer, load.clone())
    });
    let io = Replay::new(first, io, handle.limits().write);
    let mut connection = Box::pin(builder.serve_connection(TokioIo::new(io), service));
    let begun = Instant::now();
    let (mut is_ending, mut check) = (None, Box::pin(tokio::time::sleep(CHECK_EVERY)));
    std::future::poll_fn(|cx| {
        if connection.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let mut pause = CHECK_EVERY;
        if is_ending.is_none() && load.active.load(Relaxed) == 0 {
            // An idle connection costs nothing until it has been so for too long.
            pause += handle.limits().idle.saturating_sub(load.idle_for());
        }
        let next = tokio::time::Instant::now() + pause;
        if check.deadline() > next {
            check.as_mut().reset(next);
        }
        while check.as_mut().poll(cx).is_ready() {
            check.as_mut().reset(next);
            if let Some(reason) = load.verdict(is_ending) {
                handle.counters().cut(reason);
                return Poll::Ready(());
            }
        }
        let is_over = load.is_idle() || begun.elapsed() > AGE_MAX;
        let is_crowded = handle.is_over_share() && load.answered.load(Relaxed) > 0;
        let is_stopping = handle.is_stopping() || edge.is_leaving();
        if is_ending.is_none() && (is_stopping || is_over || is_crowded) {
            is_ending = Some(Instant::now());
            connection.as_mut().graceful_shutdown();
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

/// What one connection holds.
struct Load {
    handle: Arc<Handle>,
    started: Instant,
    bodies: Semaphore,
    turns: Arc<Semaphore>,
    /// Requests in flight, up to the end of their answers.
    active: AtomicUsize,
    answered: AtomicUsize,
    given_up: AtomicUsize,
    /// Milliseconds since `started` at which `active` became 0.
    idle_since: AtomicU64,
    /// Answers under way.
    answers: Mutex<Vec<Arc<Progress>>>,
    room: Notify,
}

/// An answer that is being taken.
struct Progress {
    /// Bytes handed to HTTP/2 and not written.
    unsent: AtomicUsize,
    /// When the last ones were written.
    at_ms: AtomicU64,
    begun: Instant,
    is_stream: bool,
    is_done: AtomicBool,
}

impl Load {
    fn new(handle: Arc<Handle>) -> Self {
        Self {
            handle,
            started: Instant::now(),
            bodies: Semaphore::new(BODIES_MAX),
            turns: Arc::new(Semaphore::new(TURNS_MAX)),
            active: AtomicUsize::new(0),
            answered: AtomicUsize::new(0),
            given_up: AtomicUsize::new(0),
            idle_since: AtomicU64::new(0),
            answers: Mutex::default(),
            room: Notify::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn limits(&self) -> &Limits {
        self.handle.limits()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Progress>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsent(&self) -> usize {
        self.lock()
            .iter()
            .map(|answer| answer.unsent.load(Relaxed))
            .sum()
    }

    /// Resolves when there is room for one more answer.
    async fn until_taken(&self) {
        loop {
            let room = self.room.notified();
            if self.unsent() <= UNSENT_MAX {
                return;
            }
            room.await;
        }
    }

    fn idle_for(&self) -> Duration {
        let since = self.idle_since.load(Relaxed);
        match self.active.load(Relaxed) {
            0 => Duration::from_millis(self.now_ms().saturating_sub(since)),
            _ => Duration::ZERO,
        }
    }

    fn is_idle(&self) -> bool {
        self.idle_for() > self.limits().idle
    }

    /// Why the connection must end at once, if it must.
    fn verdict(&self, ending: Option<Instant>) -> Option<&'static str> {
        let (now, limits) = (self.now_ms(), self.limits());
        let mut answers = self.lock();
        answers.retain(|answer| !answer.is_done.load(Relaxed));
        for answer in answers.iter() {
            let still = Duration::from_millis(now.saturating_sub(answer.at_ms.load(Relaxed)));
            if answer.unsent.load(Relaxed) > 0 && still > limits.write {
                return Some("write");
            }
            if !answer.is_stream && answer.begun.elapsed() > limits.answer {
                return Some("answer");
            }
        }
        drop(answers);
        let given_up = self.given_up.load(Relaxed);
        if given_up > GIVEN_UP_MAX && given_up > self.answered.load(Relaxed) {
            return Some("resets");
        }
        // In order it takes a client that answers.
        let is_over = ending.is_some_and(|at| at.elapsed() > limits.drain);
        (is_over && self.active.load(Relaxed) == 0).then_some("idle")
    }
}

/// One request in flight, up to the end of its answer.
struct Active {
    load: Arc<Load>,
    is_answered: AtomicBool,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Active {
    fn new(load: Arc<Load>) -> Self {
        load.active.fetch_add(1, Relaxed);
        load.handle.busy();
        Self {
            load,
            is_answered: AtomicBool::new(false),
            _turn: None,
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let counted = match self.is_answered.load(Relaxed) {
            true => &self.load.answered,
            false => &self.load.given_up,
        };
        counted.fetch_add(1, Relaxed);
        self.load.idle_since.store(self.load.now_ms(), Relaxed);
        if self.load.active.fetch_sub(1, Relaxed) == 1 {
            self.load.handle.idle();
        }
        let given_up = self.load.given_up.load(Relaxed);
        if given_up > GIVEN_UP_MAX * 2 && given_up > self.load.answered.load(Relaxed) {
            // Faster than the connection is looked at.
            self.load.handle.cut();
        }
    }
}

async fn answer<H: Handler>(
    edge: Edge<H>,
    request: Request<Incoming>,
    peer: SocketAddr,
    load: Arc<Load>,
) -> Result<Response<Taken>, Infallible> {
    let mut active = Active::new(load.clone());
    let target = request.uri().path_and_query();
    let target = target.map_or(0, |target| target.as_str().len());
    let has_body = !request.body().is_end_stream();
    if target > TARGET_MAX {
        return Ok(taken(edge.refused(&target_too_long()), active));
    }
    if let Some(response) = fast(&edge, &request, has_body) {
        load.until_taken().await;
        return Ok(taken(response, active));
    }
    let (mut turn, mut bodies) = (None, None);
    if !load.handle.is_trusted() {
        turn = load.turns.clone().acquire_owned().await.ok();
        if has_body {
            bodies = load
                .bodies
                .acquire_many(units(request.headers()))
                .await
                .ok();
        }
    }
    let response = edge.later(request.map(Body::new), peer).await;
    drop(bodies);
    if !is_event_stream(response.headers()) {
        active._turn = turn.take();
    }
    drop(turn);
    load.until_taken().await;
    Ok(taken(response, active))
}

fn fast<H: Handler>(
    edge: &Edge<H>,
    request: &Request<Incoming>,
    has_body: bool,
) -> Option<Response> {
    if has_body {
        return None;
    }
    edge.fast(request.method(), request.uri(), request.headers())
}

/// How many of [`BODIES_MAX`] the body of a request takes: all of them where it says nothing.
fn units(headers: &HeaderMap) -> u32 {
    let length = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok());
    let length = length.and_then(|length| length.parse::<u64>().ok());
    let units = length.map_or(u64::MAX, |length| length.div_ceil(u64::from(STREAM_WINDOW)));
    u32::try_from(units.clamp(1, BODIES_MAX as u64)).unwrap_or(1)
}

/// The answer, watched until its client has taken it.
fn taken(response: Response, active: Active) -> Response<Taken> {
    let load = &active.load;
    let (mut parts, body) = response.into_parts();
    // HTTP/2 has no such header.
    parts.headers.remove(header::CONNECTION);
    let progress = Arc::new(Progress {
        unsent: AtomicUsize::new(0),
        at_ms: AtomicU64::new(load.now_ms()),
        begun: Instant::now(),
        is_stream: is_event_stream(&parts.headers),
        is_done: AtomicBool::new(false),
    });
    let mut answers = load.lock();
    answers.retain(|answer| !answer.is_done.load(Relaxed));
    answers.push(progress.clone());
    drop(answers);
    let hold = Arc::new(Hold { active, progress });
    Response::from_parts(parts, Taken { body, hold })
}

/// Dropped when the answer, and all of its bytes, have been written or given up.
struct Hold {
    active: Active,
    progress: Arc<Progress>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.progress.is_done.store(true, Relaxed);
    }
}

/// The body of an answer.
struct Taken {
    body: Body,
    hold: Arc<Hold>,
}

impl Taken {
    fn ended(&self) {
        self.hold.active.is_answered.store(true, Relaxed);
    }
}

impl hyper::body::Body for Taken {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.ended();
        }
        let hold = &self.hold;
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|bytes| {
                    let load = &hold.active.load;
                    hold.progress.unsent.fetch_add(bytes.len(), Relaxed);
                    hold.progress.at_ms.store(load.now_ms(), Relaxed);
                    Piece {
                        bytes,
                        hold: hold.clone(),
                    }
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        let is_end = self.body.is_end_stream();
        if is_end {
            self.ended();
        }
        is_end
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes of an answer, counted until they are written or given up.
struct Piece {
    bytes: Bytes,
    hold: Arc<Hold>,
}

impl Piece {
    fn written(&self, count: usize) {
        let Hold { active, progress } = &*self.hold;
        progress.unsent.fetch_sub(count, Relaxed);
        progress.at_ms.store(active.load.now_ms(), Relaxed);
        active.load.room.notify_waiters();
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.written(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.written(self.bytes.len());
    }
}
