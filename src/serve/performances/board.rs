//! What the public reads, rendered at most a few times a second for each page and
//! shared by everyone who asks: under a flood PostgreSQL sees two queries a
//! second for a page, however many people read it.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use quick_cache::{
    Weighter,
    sync::{Cache, EntryAction, EntryResult},
};
use serde::Serialize;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::platform::problem::Problem;

/// How long a rendered page is served. With `max-age=1` in between caches, what
/// changes shows well within a second here.
const FRESH: Duration = Duration::from_millis(400);
/// How long the last good page is served while PostgreSQL is away.
const STALE_MAX: Duration = Duration::from_secs(300);
/// Rendering waits this long for PostgreSQL, then says 503 or serves the last good page.
const RENDER_MAX: Duration = Duration::from_secs(2);
/// After a failure the next try waits as long, so that a store that is away delays few.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Bytes of all pages kept.
const BYTES_MAX: u64 = 16 << 20;
/// How many pages to make room for in that.
const PAGES_ESTIMATED: usize = 4_096;

/// A page of the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    Performances {
        after: Option<Uuid>,
        limit: i64,
    },
    Performance(Uuid),
    Schedules {
        performance: Uuid,
        after: Option<Uuid>,
        limit: i64,
    },
    Schedule(Uuid),
}

/// Bytes that many answers share.
#[derive(Clone)]
pub struct Rendered {
    body: Bytes,
    etag: HeaderValue,
}

impl Rendered {
    /// `value` as JSON.
    ///
    /// # Errors
    /// 500: a bug.
    pub fn json(value: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_vec(value).map_err(Problem::internal)?;
        let etag = format!("\"{}\"", hex::encode(&Sha256::digest(&body)[..12]));
        let etag = HeaderValue::from_str(&etag).map_err(Problem::internal)?;
        Ok(Self {
            body: body.into(),
            etag,
        })
    }

    fn answer(&self, request: &HeaderMap) -> Response {
        let status = if matches(request, &self.etag) {
            StatusCode::NOT_MODIFIED
        } else {
            StatusCode::OK
        };
        let body = if status == StatusCode::OK {
            self.body.clone()
        } else {
            Bytes::new()
        };
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.etag.clone());
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("public, max-age=1"),
        );
        headers.remove(header::CONTENT_TYPE);
        if status == StatusCode::OK {
            headers.insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
        }
        response
    }
}

/// Whether the client has this version already (RFC 9110 §13.1.2, weak comparison).
fn matches(request: &HeaderMap, etag: &HeaderValue) -> bool {
    let Ok(etag) = etag.to_str() else {
        return false;
    };
    request
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

type Page = Result<Rendered, Problem>;

#[derive(Clone)]
struct Entry {
    page: Page,
    rendered_at: Instant,
    fresh_until: Instant,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Arc<Entry>> for ByBytes {
    fn weight(&self, _: &Key, entry: &Arc<Entry>) -> u64 {
        // What a key, an entry and a small problem cost beside the body.
        const OVERHEAD: u64 = 256;
        OVERHEAD + entry.page.as_ref().map_or(0, |page| page.body.len() as u64)
    }
}

/// The pages. Cheap to clone.
#[derive(Clone)]
pub struct Board(Arc<Cache<Key, Arc<Entry>, ByBytes>>);

impl Default for Board {
    fn default() -> Self {
        Self(Arc::new(Cache::with_weighter(
            PAGES_ESTIMATED,
            BYTES_MAX,
            ByBytes,
        )))
    }
}

impl Board {
    /// Answers with the page `key`; `render` makes it when there is no fresh one. Of many
    /// who ask at once, one renders and the rest wait for it.
    pub async fn answer<F>(&self, key: Key, request: &HeaderMap, render: F) -> Response
    where
        F: Future<Output = Page>,
    {
        match &self.entry(key, render).await.page {
            Ok(page) => page.answer(request),
            Err(problem) => problem.clone().into_response(),
        }
    }

    async fn entry<F>(&self, key: Key, render: F) -> Arc<Entry>
    where
        F: Future<Output = Page>,
    {
        if let Some(entry) = self.0.get(&key)
            && Instant::now() < entry.fresh_until
        {
            return entry;
        }
        let (guard, old) = match self.0.entry_async(&key, check_fresh).await {
            EntryResult::Retained(entry) => return entry,
            EntryResult::Replaced(guard, old) => (Some(guard), Some(old)),
            EntryResult::Vacant(guard) => (Some(guard), None),
            // Neither a removal nor a time-out is ever asked for: then simply render.
            EntryResult::Removed(..) | EntryResult::Timeout => (None, None),
        };
        let entry = Arc::new(refresh(old, render).await);
        if let Some(guard) = guard {
            // Fails only when the entry was cleared meanwhile; the answer is good all the same.
            let _ = guard.insert(entry.clone());
        }
        entry
    }
}

fn check_fresh(_: &Key, entry: &mut Arc<Entry>) -> EntryAction<Arc<Entry>> {
    if Instant::now() < entry.fresh_until {
        EntryAction::Retain(entry.clone())
    } else {
        EntryAction::ReplaceWithGuard
    }
}

async fn refresh(old: Option<Arc<Entry>>, render: impl Future<Output = Page>) -> Entry {
    // What is rendered now is at least as new as this moment.
    let started = Instant::now();
    let page = tokio::time::timeout(RENDER_MAX, render)
        .await
        .unwrap_or_else(|_| {
            Err(Problem::unavailable(
                "performances: PostgreSQL does not answer",
            ))
        });
    let failed = page
        .as_ref()
        .is_err_and(|problem| problem.status().is_server_error());
    if !failed {
        return Entry {
            page,
            rendered_at: started,
            fresh_until: started + FRESH,
        };
    }
    let fresh_until = Instant::now() + RETRY_AFTER;
    match old.filter(|old| old.page.is_ok() && old.rendered_at.elapsed() < STALE_MAX) {
        Some(old) => Entry {
            page: old.page.clone(),
            rendered_at: old.rendered_at,
            fresh_until,
        },
        None => Entry {
            page,
            rendered_at: started,
            fresh_until,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;

    const KEY: Key = Key::Performances {
        after: None,
        limit: 20,
    };

    fn page(text: &str) -> Page {
        Rendered::json(&text)
    }

    async fn body(board: &Board, render: Page) -> (StatusCode, String) {
        let response = board.answer(KEY, &HeaderMap::new(), async { render }).await;
        let status = response.status();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20)
            .await
            .unwrap();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_crowd_costs_one_rendering() {
        let board = Board::default();
        let rendered = Arc::new(AtomicU32::new(0));
        let crowd: Vec<_> = (0..200)
            .map(|_| {
                let (board, rendered) = (board.clone(), rendered.clone());
                tokio::spawn(async move {
                    let render = async {
                        rendered.fetch_add(1, SeqCst);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        page("hello")
                    };
                    board.answer(KEY, &HeaderMap::new(), render).await.status()
                })
            })
            .collect();
        for one in crowd {
            assert_eq!(one.await.unwrap(), StatusCode::OK);
        }
        assert_eq!(rendered.load(SeqCst), 1);
    }

    #[tokio::test]
    async fn a_page_gets_old_and_the_last_good_one_outlives_the_store() {
        let board = Board::default();
        assert_eq!(body(&board, page("one")).await.1, "\"one\"");
        assert_eq!(body(&board, page("two")).await.1, "\"one\"", "still fresh");
        tokio::time::sleep(FRESH).await;
        assert_eq!(body(&board, page("two")).await.1, "\"two\"");
        tokio::time::sleep(FRESH).await;
        let away = Err(Problem::unavailable("test"));
        assert_eq!(body(&board, away).await.1, "\"two\"", "stale beats nothing");
    }

    #[tokio::test]
    async fn without_a_good_page_the_failure_is_shared_for_a_moment() {
        let board = Board::default();
        let away = Err(Problem::unavailable("test"));
        assert_eq!(body(&board, away).await.0, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            body(&board, page("one")).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        tokio::time::sleep(RETRY_AFTER).await;
        assert_eq!(body(&board, page("one")).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn who_has_the_page_is_told_so() {
        let board = Board::default();
        let first = board
            .answer(KEY, &HeaderMap::new(), async { page("one") })
            .await;
        let etag = first.headers()[header::ETAG].clone();
        let mut request = HeaderMap::new();
        for (tag, status) in [
            (etag.clone(), StatusCode::NOT_MODIFIED),
            (
                HeaderValue::from_str(&format!("W/\"x\", W/{}", etag.to_str().unwrap())).unwrap(),
                StatusCode::NOT_MODIFIED,
            ),
            (HeaderValue::from_static("*"), StatusCode::NOT_MODIFIED),
            (HeaderValue::from_static("\"other\""), StatusCode::OK),
        ] {
            request.insert(header::IF_NONE_MATCH, tag);
            let response = board.answer(KEY, &request, async { page("one") }).await;
            assert_eq!(response.status(), status);
            assert_eq!(response.headers()[header::ETAG], etag);
        }
    }
}
