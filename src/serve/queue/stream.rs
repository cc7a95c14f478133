//! Server-sent events: the public snapshot when it changes, at most once a second.
//!
//! One shared buffer a change, a `watch` channel a queue: a stream costs a
//! receiver and its connection, whatever is sent.

use std::{
    convert::Infallible,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderValue, header};
use tokio::sync::watch;

use super::{live::Live, snapshot::Snapshot};
use crate::platform::event_stream;

/// A stream hears something at least this often, so that proxies keep it open.
const HEARTBEAT_MS: u64 = 15_000;
const CHANGE_EVERY_MS: u64 = 1_000;

/// Passes a changed snapshot on to the streams.
pub fn tell(live: &Live, shown: &Snapshot, fresh: &Snapshot) {
    if live.events.receiver_count() == 0 {
        return;
    }
    let told = live.told_ms.load(Relaxed);
    let since = fresh.view.now.unsigned_abs().saturating_sub(told);
    let changed = shown.changes != fresh.changes || live.untold.load(Relaxed);
    let bytes = if changed && since >= CHANGE_EVERY_MS {
        live.untold.store(false, Relaxed);
        event(fresh)
    } else if since >= HEARTBEAT_MS {
        Bytes::from_static(b": here\n\n")
    } else {
        if changed {
            live.untold.store(true, Relaxed);
        }
        return;
    };
    live.told_ms.store(fresh.view.now.unsigned_abs(), Relaxed);
    live.events.send_replace(Some(bytes));
}

fn event(snapshot: &Snapshot) -> Bytes {
    let mut text = Vec::with_capacity(snapshot.public.len() + 32);
    text.extend_from_slice(b"event: snapshot\ndata: ");
    text.extend_from_slice(&snapshot.public);
    text.extend_from_slice(b"\n\n");
    text.into()
}

/// A stream of `live`, beginning with what is known now.
pub fn response(live: &Arc<Live>) -> Response {
    let mut receiver = live.events.subscribe();
    receiver.mark_unchanged();
    let first = event(&live.snapshot.load());
    let mut response = Response::new(Body::from_stream(frames(first, receiver)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/event-stream"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx would keep events back to fill its buffers.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

fn frames(
    first: Bytes,
    receiver: watch::Receiver<Option<Bytes>>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    let begin = (Some(first), Some(receiver));
    stream::unfold(begin, async |(first, receiver)| {
        let mut receiver = receiver?;
        if let Some(first) = first {
            return Some((Ok(first), (None, Some(receiver))));
        }
        receiver.changed().await.ok()?;
        let next = receiver.borrow_and_update().clone();
        match next {
            Some(next) => Some((Ok(next), (None, Some(receiver)))),
            None => Some((Ok(event_stream::farewell()), (None, None))),
        }
    })
}
