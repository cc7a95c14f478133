//! Bodies of requests, within a time limit.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::Request;
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

/// A body is handed on in pieces of at least so many bytes: one sent a byte at a time costs its
/// reader, which keeps the pieces, a hundred times its length otherwise.
const PIECE: usize = 8 * 1024;

/// How a request's body came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrived {
    /// All that was asked for.
    Whole,
    /// The handler waits for more.
    Waiting,
    Late,
    Broken,
}

/// Knows how a request's body came.
#[derive(Default)]
pub(super) struct Arrival(Option<Arc<AtomicU8>>);

impl Arrival {
    pub(super) fn outcome(&self) -> Arrived {
        match self.0.as_ref().map(|outcome| outcome.load(Relaxed)) {
            None | Some(WHOLE) => Arrived::Whole,
            Some(LATE) => Arrived::Late,
            Some(BROKEN) => Arrived::Broken,
            Some(_) => Arrived::Waiting,
        }
    }
}

const WHOLE: u8 = 0;
const WAITING: u8 = 1;
const LATE: u8 = 2;
const BROKEN: u8 = 3;

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the request's body did not arrive in time")]
    Late,
    #[error("the request's body broke off: {0}")]
    Broken(#[source] axum::Error),
}

/// The request with a body that ends after `within`.
pub(super) fn watch(request: Request<Body>, within: Duration) -> (Request<Body>, Arrival) {
    if request.body().is_end_stream() {
        return (request, Arrival::default());
    }
    let outcome = Arc::new(AtomicU8::new(WHOLE));
    let arrival = Arrival(Some(outcome.clone()));
    let watched = |inner| {
        Body::new(Watched {
            inner,
            gathered: BytesMut::new(),
            is_ended: false,
            late: Box::pin(tokio::time::sleep(within)),
            outcome,
        })
    };
    (request.map(watched), arrival)
}

struct Watched {
    inner: Body,
    gathered: BytesMut,
    is_ended: bool,
    late: Pin<Box<Sleep>>,
    outcome: Arc<AtomicU8>,
}

impl Watched {
    fn fail(
        &mut self,
        outcome: u8,
        error: BodyError,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.outcome.store(outcome, Relaxed);
        self.is_ended = true;
        self.gathered = BytesMut::new();
        Poll::Ready(Some(Err(error)))
    }
}

impl hyper::body::Body for Watched {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        while !self.is_ended {
            match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Nobody reads trailers.
                    let Ok(data) = frame.into_data() else {
                        continue;
                    };
                    if self.gathered.is_empty() && data.len() >= PIECE {
                        return Poll::Ready(Some(Ok(Frame::data(data))));
                    }
                    self.gathered.extend_from_slice(&data);
                    if self.gathered.len() >= PIECE {
                        break;
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    return self.fail(BROKEN, BodyError::Broken(error));
                }
                Poll::Ready(None) => self.is_ended = true,
                Poll::Pending => {
                    self.outcome.store(WAITING, Relaxed);
                    ready!(self.late.as_mut().poll(cx));
                    return self.fail(LATE, BodyError::Late);
                }
            }
        }
        self.outcome.store(WHOLE, Relaxed);
        let gathered = self.gathered.split().freeze();
        Poll::Ready((!gathered.is_empty()).then(|| Ok(Frame::data(gathered))))
    }

    fn is_end_stream(&self) -> bool {
        self.gathered.is_empty() && (self.is_ended || self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        if self.is_ended {
            return SizeHint::with_exact(self.gathered.len() as u64);
        }
        let inner = self.inner.size_hint();
        match inner.exact() {
            Some(left) => SizeHint::with_exact(left + self.gathered.len() as u64),
            None => inner,
        }
    }
}
