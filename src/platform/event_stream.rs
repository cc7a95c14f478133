//! The end of server-sent events: a whole last chunk that tells the client when to come back.

use std::{future::Future, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, header};
use tokio_util::sync::CancellationToken;

/// Clients of a process that stops come back within this, each at a time of its own.
const RETRY_MS: std::ops::Range<u32> = 500..3_000;

/// The last chunk of a stream.
pub fn farewell() -> Bytes {
    let retry = rand::random_range(RETRY_MS);
    format!("retry: {retry}\n\n").into()
}

/// Whether an answer with `headers` is a stream of events.
pub fn is_event_stream(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
}

/// `response`; if it is a stream of events, it ends with `draining`, after a whole event.
pub fn until(response: Response, draining: &CancellationToken) -> Response {
    if !is_event_stream(response.headers()) {
        return response;
    }
    ended_by(response, draining.clone().cancelled_owned())
}

/// `response`; if it is a stream of events, it ends after `time`, after a whole event.
pub fn at_most(response: Response, time: Duration) -> Response {
    if !is_event_stream(response.headers()) {
        return response;
    }
    ended_by(response, tokio::time::sleep(time))
}

fn ended_by(response: Response, over: impl Future<Output = ()> + Send + 'static) -> Response {
    response.map(|body| {
        let chunks = Some((body.into_data_stream(), true, Box::pin(over)));
        Body::from_stream(stream::unfold(chunks, async |chunks| {
            let (mut chunks, whole, mut over) = chunks?;
            let next = tokio::select! {
                () = &mut over, if whole => return Some((Ok(farewell()), None)),
                next = chunks.next() => next?,
            };
            match next {
                Ok(chunk) => {
                    let whole = chunk.ends_with(b"\n\n");
                    Some((Ok(chunk), Some((chunks, whole, over))))
                }
                Err(error) => Some((Err(error), None)),
            }
        }))
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    async fn text(kind: &'static str, chunks: &'static [&'static str], drain: bool) -> String {
        let endless = stream::iter(chunks.iter().map(|c| Ok::<_, Infallible>(*c)));
        let body = match drain {
            true => Body::from_stream(endless.chain(stream::pending())),
            false => Body::from_stream(endless),
        };
        let mut response = Response::new(body);
        let kind = http::HeaderValue::from_static(kind);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        let token = CancellationToken::new();
        let stop = token.clone();
        let stopping = async {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            if drain {
                stop.cancel();
            }
        };
        let body = until(response, &token).into_body();
        let (bytes, ()) = tokio::join!(axum::body::to_bytes(body, 1 << 20), stopping);
        String::from_utf8(bytes.unwrap().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_stream_ends_after_a_whole_event_with_a_time_to_come_back() {
        let events = "text/event-stream";
        let ended = text(events, &["data: 1\n", "\n", "data: 2\n\n"], true).await;
        assert!(
            ended.starts_with("data: 1\n\ndata: 2\n\nretry: "),
            "{ended}"
        );
        assert!(ended.ends_with("\n\n"), "{ended}");
        assert_eq!(text(events, &["data: 1\n\n"], false).await, "data: 1\n\n");
        assert_eq!(text("text/plain", &["x"], false).await, "x");
    }
}
