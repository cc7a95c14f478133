//! The free seats of each schedule, as the buyers last saw them. Thousands of
//! buyers download the same map; it is unpacked once for each `ETag`, as a seat
//! map is large and the generator shares the machine with the server.

use std::collections::HashMap;
use std::io::Read;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::buyer::Dice;
use super::client::Head;
use super::wire::SeatsView;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeatCounts {
    pub available: u32,
    pub held: u32,
    pub sold: u32,
}

#[derive(Debug, Default)]
struct Map {
    etag: Option<Bytes>,
    free: Vec<Uuid>,
    counts: SeatCounts,
}

#[derive(Debug, Default)]
pub struct SeatMaps(HashMap<Uuid, Map>);

/// Undoes the compression, if any.
pub fn plain<'a>(gzip: bool, body: &'a [u8], space: &'a mut Vec<u8>) -> Result<&'a [u8], String> {
    if !gzip {
        return Ok(body);
    }
    space.clear();
    // The bound holds against a small body that unpacks to fill the memory.
    flate2::read::GzDecoder::new(body)
        .take(64 << 20)
        .read_to_end(space)
        .map_err(|err| format!("bad gzip: {err}"))?;
    Ok(space)
}

/// Counts the seats of a map by status, and lists the free ones.
pub fn read(gzip: bool, body: &[u8]) -> Result<(SeatCounts, Vec<Uuid>), String> {
    let mut space = Vec::new();
    let body = plain(gzip, body, &mut space)?;
    let view: SeatsView<'_> = serde_json::from_slice(body).map_err(|err| err.to_string())?;
    let (mut counts, mut free) = (SeatCounts::default(), Vec::new());
    for seat in &view.seats {
        match &*seat.status {
            "AVAILABLE" => {
                counts.available += 1;
                free.push(seat.id);
            }
            "HELD" => counts.held += 1,
            "SOLD" => counts.sold += 1,
            other => return Err(format!("a seat with status {other:?}")),
        }
    }
    Ok((counts, free))
}

impl SeatMaps {
    /// Takes in an answer to `GET /schedules/{id}/seats`.
    pub fn take_in(&mut self, schedule: Uuid, head: &Head, body: &[u8]) -> Result<(), String> {
        let map = self.0.entry(schedule).or_default();
        if head.etag.is_some() && head.etag == map.etag {
            return Ok(());
        }
        let (counts, free) = read(head.gzip, body)?;
        *map = Map {
            etag: head.etag.clone(),
            free,
            counts,
        };
        Ok(())
    }

    /// Chooses `count` seats that are free on the map: those at the front, or neighbours anywhere.
    pub fn choose(&self, schedule: Uuid, count: usize, first: bool, dice: &mut Dice) -> Vec<Uuid> {
        let Some(map) = self.0.get(&schedule).filter(|map| !map.free.is_empty()) else {
            return Vec::new();
        };
        let count = count.min(map.free.len());
        let start = if first {
            0
        } else {
            dice.below(map.free.len() - count + 1)
        };
        map.free[start..start + count].to_vec()
    }

    /// What a buyer does not know: a seat just taken is not offered again before the next map.
    pub fn taken(&mut self, schedule: Uuid, seats: &[Uuid]) {
        if let Some(map) = self.0.get_mut(&schedule) {
            map.free.retain(|seat| !seats.contains(seat));
        }
    }

    pub fn counts(&self) -> Option<SeatCounts> {
        self.0
            .values()
            .map(|map| map.counts)
            .reduce(|a, b| SeatCounts {
                available: a.available + b.available,
                held: a.held + b.held,
                sold: a.sold + b.sold,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn map(statuses: &[&str]) -> (Vec<Uuid>, Vec<u8>) {
        let ids: Vec<Uuid> = statuses.iter().map(|_| Uuid::now_v7()).collect();
        let seats: Vec<_> = ids
            .iter()
            .zip(statuses)
            .map(|(id, status)| serde_json::json!({"id": id, "section": "A", "status": status, "price": 1}))
            .collect();
        (
            ids,
            serde_json::to_vec(&serde_json::json!({"seats": seats})).unwrap(),
        )
    }

    #[test]
    fn reads_plain_and_compressed_maps_alike() {
        let (ids, body) = map(&["AVAILABLE", "HELD", "SOLD", "AVAILABLE"]);
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(&body).unwrap();
        let packed = gz.finish().unwrap();
        let expected = (
            SeatCounts {
                available: 2,
                held: 1,
                sold: 1,
            },
            vec![ids[0], ids[3]],
        );
        assert_eq!(read(false, &body).unwrap(), expected);
        assert_eq!(read(true, &packed).unwrap(), expected);
        assert!(read(true, &body).is_err());
        assert!(
            read(
                false,
                br#"{"seats":[{"id":"0190b6f0-0000-7000-8000-000000000000","status":"GONE"}]}"#
            )
            .is_err()
        );
    }

    #[test]
    fn an_unchanged_map_is_not_read_again_and_choices_are_free_seats() {
        let schedule = Uuid::now_v7();
        let (ids, body) = map(&["SOLD", "AVAILABLE", "AVAILABLE", "AVAILABLE"]);
        let mut maps = SeatMaps::default();
        let head = Head {
            status: 200,
            etag: Some(Bytes::from_static(b"\"1\"")),
            ..Head::default()
        };
        maps.take_in(schedule, &head, &body).unwrap();
        maps.take_in(schedule, &head, b"never looked at").unwrap();
        let mut dice = Dice::new(1, 1);
        assert_eq!(maps.choose(schedule, 2, true, &mut dice), ids[1..3]);
        for _ in 0..50 {
            let chosen = maps.choose(schedule, 2, false, &mut dice);
            assert!(chosen == ids[1..3] || chosen == ids[2..4]);
        }
        maps.taken(schedule, &ids[1..3]);
        assert_eq!(maps.choose(schedule, 4, false, &mut dice), ids[3..]);
        assert!(maps.choose(Uuid::now_v7(), 1, true, &mut dice).is_empty());
    }
}
