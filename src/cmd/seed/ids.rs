//! Ids and choices that depend on `--rng-seed` and on nothing else: not on the clock, nor on
//! what else is seeded. The same command finds what it made before.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

/// 2026-01-01T00:00:00Z. Seeded ids carry it as their time, a millisecond apart, so that they sort as they were made.
const BASE_MS: u64 = 1_767_225_600_000;

/// Where ids come from. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Ids {
    rng_seed: u64,
}

impl Ids {
    pub fn new(rng_seed: u64) -> Self {
        Self { rng_seed }
    }

    /// The random numbers of one thing, told apart by its kind and its coordinates.
    pub fn rng(self, kind: &str, coordinates: &[u64]) -> ChaCha8Rng {
        let mut hash = Sha256::new();
        hash.update(self.rng_seed.to_le_bytes());
        hash.update(kind);
        for coordinate in coordinates {
            hash.update(coordinate.to_le_bytes());
        }
        ChaCha8Rng::from_seed(hash.finalize().into())
    }

    /// The id of one thing; `nth` places it among its kind.
    pub fn id(self, kind: &str, coordinates: &[u64], nth: u64) -> Uuid {
        next_id(&mut self.rng(kind, coordinates), nth)
    }
}

/// The next id of a stream of them, all with the same time.
pub fn next_id(rng: &mut ChaCha8Rng, nth: u64) -> Uuid {
    let mut random = [0; 10];
    rng.fill_bytes(&mut random);
    Builder::from_unix_timestamp_millis(BASE_MS + nth, &random).into_uuid()
}

/// The ids of `count` things numbered from 0 lie from the first to before the second.
pub fn id_range(count: u64) -> (Uuid, Uuid) {
    let at = |nth| Builder::from_unix_timestamp_millis(BASE_MS + nth, &[0; 10]).into_uuid();
    (at(0), at(count))
}

/// A number below `bound`. The bias of the remainder is below 2^-32 for what is chosen here.
pub fn below(rng: &mut ChaCha8Rng, bound: usize) -> usize {
    (rng.next_u64() % bound.max(1) as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_ids_and_another_one_others() {
        let id = |seed, nth| Ids::new(seed).id("performance", &[2_000, nth], nth);
        assert_eq!(id(1, 0), id(1, 0));
        assert_ne!(id(1, 0), id(2, 0));
        assert!(id(1, 0) < id(1, 1) && id(1, 1) < id(1, 2));
        assert_eq!(id(1, 0).get_version_num(), 7);
        let (from, to) = id_range(3);
        assert!(
            (0..3).all(|nth| (from..to).contains(&id(9, nth))) && !(from..to).contains(&id(9, 3))
        );
    }
}
