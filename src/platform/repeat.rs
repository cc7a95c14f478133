//! Repeats a request whose query failed for a reason that has nothing to do with it: a table was
//! changed under a prepared statement, a deadlock was broken, the database was restarted.
//!
//! Every handler bears being cut off and asked again, since clients do so; here the server does
//! it for them, at once and a bounded number of times. After that the answer is 503, and the
//! client's own repeats take over.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use http::Method;
use hyper::body::{Frame, SizeHint};

use super::db::Failed;
use super::http::BODY_MAX;
use super::idempotency;
use super::problem::Problem;

/// Tries in all: each replaces the connections that the last one found unfit.
const TRIES_MAX: u32 = 3;
/// Nothing is repeated later than this: the client's patience has an end.
const WITHIN: Duration = Duration::from_secs(5);
/// Before another try, so that two that met do not meet again.
const PAUSE: Duration = Duration::from_millis(30);

/// A layer for [`axum::middleware::from_fn`].
pub async fn repeat(request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let (parts, body) = request.into_parts();
    let bare = body.is_end_stream();
    let copy = Copy::default();
    let body = if bare { body } else { Body::new(copy.of(body)) };
    let mut response = next
        .clone()
        .run(Request::from_parts(parts.clone(), body))
        .await;
    let has_key = parts.headers.contains_key(idempotency::HEADER);
    for _ in 1..TRIES_MAX {
        let again = (problem(&response))
            .is_some_and(|failed| is_repeatable(failed, &parts.method, has_key));
        if !again || begun.elapsed() > WITHIN {
            break;
        }
        let body = match (bare, copy.whole()) {
            (true, _) => Body::empty(),
            (false, Some(bytes)) => Body::from(bytes),
            (false, None) => break,
        };
        tracing::info!(http.method = %parts.method, http.path = parts.uri.path(), "repeating a request after its query failed");
        tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
        response = next
            .clone()
            .run(Request::from_parts(parts.clone(), body))
            .await;
    }
    response
}

fn problem(response: &Response) -> Option<Failed> {
    let problem = response.extensions().get::<Arc<Problem>>()?;
    problem.failed_query()
}

/// A commit that was under way when the connection broke may have happened: only what is the same
/// when done twice is repeated then.
fn is_repeatable(failed: Failed, method: &Method, has_key: bool) -> bool {
    match failed {
        Failed::RolledBack => true,
        Failed::Disconnected => method.is_idempotent() || has_key,
        Failed::Away | Failed::Other => false,
    }
}

/// What a handler has read of a body.
#[derive(Clone, Default)]
struct Copy(Arc<Mutex<Read>>);

#[derive(Default)]
struct Read {
    bytes: BytesMut,
    ended: bool,
}

impl Copy {
    fn of(&self, body: Body) -> Copied {
        Copied {
            body,
            copy: self.clone(),
        }
    }

    /// The body, where all of it was read and it is not too large to hold.
    fn whole(&self) -> Option<Bytes> {
        let read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        (read.ended && read.bytes.len() <= BODY_MAX).then(|| read.bytes.clone().freeze())
    }

    fn read(&self, bytes: &[u8], ended: bool) {
        let mut read = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if read.bytes.len() <= BODY_MAX {
            read.bytes.extend_from_slice(bytes);
        }
        read.ended |= ended;
    }
}

struct Copied {
    body: Body,
    copy: Copy,
}

impl HttpBody for Copied {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let bytes = frame.data_ref().map_or(&[][..], |bytes| bytes);
                self.copy.read(bytes, self.body.is_end_stream());
            }
            Some(Err(_)) => {}
            None => self.copy.read(&[], true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
