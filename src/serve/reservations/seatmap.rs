//! Seat maps: what every buyer looks at, all the time. Redis is asked at most a
//! few times a second for each schedule that anyone looks at; the answer is
//! rendered and compressed only when a seat has changed, and shared.

use std::{
    io::Write,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use chrono::{SecondsFormat, Utc};
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use quick_cache::sync::Cache;
use redis::AsyncCommands;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use uuid::Uuid;

use super::{Reservations, catalogue::Catalogue};
use crate::platform::problem::Problem;

/// How old an answer may be before Redis is asked again. The API allows a second.
const FRESH: Duration = Duration::from_millis(250);
/// While one request asks Redis, the others get the answer before, if it is no
/// older than this; with the asking itself that stays below a second.
const BEARABLE: Duration = Duration::from_millis(600);
/// Schedules whose map is kept; beyond it the least used are rendered again.
const MAPS_MAX: usize = 256;

/// A rendered map. The bytes are shared by all answers.
struct Map {
    /// What it was rendered from, beside the states.
    catalogue: Arc<Catalogue>,
    states: Vec<u8>,
    plain: Bytes,
    gzip: Bytes,
    etag: HeaderValue,
    read_at: Instant,
}

#[derive(Default)]
struct Slot {
    current: arc_swap::ArcSwapOption<Map>,
    asking: Mutex<()>,
}

/// The maps that this process has rendered. Cheap to clone.
#[derive(Clone)]
pub struct SeatMaps(Arc<Cache<Uuid, Arc<Slot>>>);

impl Default for SeatMaps {
    fn default() -> Self {
        Self(Arc::new(Cache::new(MAPS_MAX)))
    }
}

impl SeatMaps {
    fn slot(&self, schedule: Uuid) -> Arc<Slot> {
        let made = self.0.get_or_insert_with(&schedule, || {
            Ok::<_, std::convert::Infallible>(Arc::default())
        });
        match made {
            Ok(slot) => slot,
            Err(never) => match never {},
        }
    }
}

impl Reservations {
    /// The map of a schedule, at most a second old.
    ///
    /// # Errors
    /// 404 where there is no such schedule, 503 where a store is away.
    pub(super) async fn seat_map(
        &self,
        schedule: Uuid,
        headers: &HeaderMap,
    ) -> Result<Response, Problem> {
        let slot = self.maps.slot(schedule);
        if let Some(map) = slot.current.load_full()
            && map.read_at.elapsed() < FRESH
        {
            return Ok(respond(&map, headers));
        }
        let _turn = match slot.asking.try_lock() {
            Ok(turn) => turn,
            Err(_) => match slot.current.load_full() {
                Some(map) if map.read_at.elapsed() < BEARABLE => return Ok(respond(&map, headers)),
                _ => slot.asking.lock().await,
            },
        };
        let before = slot.current.load_full();
        if let Some(map) = &before
            && map.read_at.elapsed() < FRESH
        {
            return Ok(respond(map, headers));
        }
        let map = Arc::new(self.look(schedule, before.as_deref()).await?);
        slot.current.store(Some(map.clone()));
        Ok(respond(&map, headers))
    }

    async fn look(&self, schedule: Uuid, before: Option<&Map>) -> Result<Map, Problem> {
        let catalogue = self.catalogues.get(schedule).await?;
        // Before the question: the answer is no older than this.
        let read_at = Instant::now();
        let states = self.states(&catalogue).await?;
        let same = |b: &&Map| b.states == states && Arc::ptr_eq(&b.catalogue, &catalogue);
        if let Some(before) = before.filter(same) {
            return Ok(Map {
                catalogue,
                states,
                plain: before.plain.clone(),
                gzip: before.gzip.clone(),
                etag: before.etag.clone(),
                read_at,
            });
        }
        self.figures.maps_rendered.inc();
        // Compressing 2,000 seats takes some milliseconds.
        tokio::task::spawn_blocking(move || render(&catalogue, states, read_at))
            .await
            .map_err(Problem::internal)
    }

    /// The bytes of a schedule's seats; what is missing is rebuilt, never free.
    pub(super) async fn states(&self, catalogue: &Catalogue) -> Result<Vec<u8>, Problem> {
        let key = self
            .keys(catalogue.performance_id)
            .seats(catalogue.schedule_id);
        let mut redis = self.redis.clone();
        for _ in 0..2 {
            let states: Option<Vec<u8>> = redis.get(&key).await?;
            if let Some(states) = states {
                return Ok(states);
            }
            self.rebuild(catalogue.performance_id).await?;
        }
        Err(Problem::unavailable(
            "the seats vanish as fast as they are rebuilt",
        ))
    }
}

fn render(catalogue: &Arc<Catalogue>, states: Vec<u8>, read_at: Instant) -> Map {
    let mut plain = Vec::with_capacity(catalogue.seats.len() * 192 + 128);
    let as_of = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
    let head = format!(
        r#"{{"scheduleId":"{}","asOf":"{as_of}","seats":["#,
        catalogue.schedule_id
    );
    plain.extend_from_slice(head.as_bytes());
    for (i, (part, state)) in catalogue.rendered().zip(&states).enumerate() {
        if i > 0 {
            plain.push(b',');
        }
        plain.extend_from_slice(part.as_bytes());
        plain.extend_from_slice(match state {
            b'0' => br#"AVAILABLE"}"#,
            b'1' => br#"HELD"}"#,
            _ => br#"SOLD"}"#,
        });
    }
    plain.extend_from_slice(b"]}");
    let mut gzip = GzEncoder::new(Vec::with_capacity(plain.len() / 4), Compression::new(4));
    let gzip = gzip
        .write_all(&plain)
        .and_then(|()| gzip.finish())
        .expect("writing to a Vec cannot fail");
    // Weak: the same map, compressed or not. The time that it is of is part of
    // it, so that two instances' maps are not taken for one another's.
    let tag = hex::encode(&Sha256::digest(&plain)[..12]);
    Map {
        catalogue: catalogue.clone(),
        states,
        plain: plain.into(),
        gzip: gzip.into(),
        etag: HeaderValue::try_from(format!("W/\"{tag}\"")).expect("hex is visible ASCII"),
        read_at,
    }
}

fn respond(map: &Map, headers: &HeaderMap) -> Response {
    let same = headers
        .get_all(header::IF_NONE_MATCH)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|tag| names(tag.trim(), &map.etag));
    let mut response = if same {
        StatusCode::NOT_MODIFIED.into_response()
    } else if takes_gzip(headers) {
        let mut response = map.gzip.clone().into_response();
        response
            .headers_mut()
            .insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        response
    } else {
        map.plain.clone().into_response()
    };
    let out = response.headers_mut();
    if !same {
        out.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
    }
    out.insert(header::ETAG, map.etag.clone());
    out.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    // Public, but asked again each time: our own age is all that the API allows.
    out.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("public, no-cache"),
    );
    response
}

/// Weak comparison, as RFC 9110 wants for If-None-Match.
fn names(tag: &str, etag: &HeaderValue) -> bool {
    let bare = |t: &str| t.strip_prefix("W/").unwrap_or(t).to_owned();
    tag == "*" || etag.to_str().is_ok_and(|e| bare(e) == bare(tag))
}

fn takes_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT_ENCODING)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .any(|coding| {
            let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
            let refused = weight
                .trim()
                .strip_prefix("q=")
                .is_some_and(|q| q.trim().parse::<f32>().is_ok_and(|q| q == 0.0));
            name.trim().eq_ignore_ascii_case("gzip") && !refused
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::reservations::catalogue::tests::hall;

    fn headers(pairs: &[(header::HeaderName, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap()))
            .collect()
    }

    #[test]
    fn a_map_is_json_and_its_gzip_is_the_same() {
        let hall = Arc::new(hall(&[("A", "VVV")]));
        let map = render(&hall, b"012".to_vec(), Instant::now());
        let value: serde_json::Value = serde_json::from_slice(&map.plain).unwrap();
        let statuses: Vec<_> = value["seats"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| &s["status"])
            .collect();
        assert_eq!(statuses, ["AVAILABLE", "HELD", "SOLD"]);
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&map.gzip[..]), &mut plain)
            .unwrap();
        assert_eq!(plain, map.plain);
    }

    #[test]
    fn the_answer_follows_what_the_client_takes_and_has() {
        let map = render(
            &Arc::new(hall(&[("A", "V")])),
            b"0".to_vec(),
            Instant::now(),
        );
        let tag = map.etag.to_str().unwrap().to_owned();
        let strong = tag.trim_start_matches("W/").to_owned();
        let cases = [
            (headers(&[]), 200, false),
            (
                headers(&[(header::ACCEPT_ENCODING, "br, gzip;q=0.5")]),
                200,
                true,
            ),
            (
                headers(&[(header::ACCEPT_ENCODING, "gzip;q=0, br")]),
                200,
                false,
            ),
            (headers(&[(header::IF_NONE_MATCH, &tag)]), 304, false),
            (
                headers(&[(header::IF_NONE_MATCH, &format!("\"x\", {strong}"))]),
                304,
                false,
            ),
            (headers(&[(header::IF_NONE_MATCH, "\"x\"")]), 200, false),
        ];
        for (sent, status, gzip) in cases {
            let answer = respond(&map, &sent);
            assert_eq!(answer.status().as_u16(), status, "{sent:?}");
            assert_eq!(
                answer.headers().contains_key(header::CONTENT_ENCODING),
                gzip,
                "{sent:?}"
            );
            assert!(answer.headers().contains_key(header::ETAG));
        }
    }
}
