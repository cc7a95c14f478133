//! Places in a waiting room, as signed tokens: no server state stands behind them.
//!
//! A token is a fixed layout of bytes, a truncated HMAC-SHA-256 over them, and
//! base64url around both. The key id in it lets keys be rotated: new tokens are
//! sealed with the first key of the ring, old ones open while their key is in it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use uuid::Uuid;

/// Layout version, so that a later one can be told apart.
const VERSION: u8 = 2;
/// version and state, key id, queue, user, epoch, number, then issued and position or the three times of a
/// turn: the most that SHA-256 takes in one block with its padding. A waiting poll opens one token and seals one.
const BODY: usize = 1 + 1 + 16 + 16 + 4 + 5 + 6 + 6;
/// A turn that was sealed before turns had bounds: issued and deadline. Read, and written no more.
const UNBOUNDED: u8 = 2;
/// The later times of a turn are counted from its first, in three bytes of these.
const SPAN_MS: u64 = 100;
/// 19 days: a turn ends before.
const SPAN_MAX: u64 = (1 << 24) - 1;
/// A trillion numbers for one performance; more does not fit into a token.
const NUMBER_MAX: u64 = (1 << 40) - 1;
/// 128 bits: nobody guesses one, and the token stays short.
const MAC: usize = 16;
const RAW: usize = BODY + MAC;
/// Characters of a token; any other length is no token.
pub const TOKEN_LEN: usize = (RAW * 4).div_ceil(3);

/// How far a place had come when its token was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceState {
    /// In the pre-queue; `number` is the registration's index, not yet a number.
    Registered,
    /// In line.
    Waiting,
    /// Admitted and here, until the deadline.
    Working,
}

impl PlaceState {
    fn byte(self) -> u8 {
        match self {
            Self::Registered => 0,
            Self::Waiting => 1,
            Self::Working => 3,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Registered, Self::Waiting, Self::Working]
            .into_iter()
            .find(|s| s.byte() == byte)
    }
}

/// How long a turn lasts, Unix ms; all 0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// When it ends as things stand.
    pub deadline_ms: u64,
    /// Until when it takes new holds: fixed at the first check-in.
    pub holding_ms: u64,
    /// When it ends at the latest, whatever its orders do: fixed at the first check-in.
    pub last_ms: u64,
}

/// One person's place in one performance's waiting room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The performance.
    pub queue: Uuid,
    /// Whose it is.
    pub user: Uuid,
    /// The life of the waiting room's state that it was last seen in.
    pub epoch: u32,
    /// The number, unique in the performance over all epochs.
    pub number: u64,
    /// How far it had come.
    pub state: PlaceState,
    /// When this token was made, Unix ms; a token of a turn has no room for it (0).
    pub issued_ms: u64,
    /// The turn; none unless WORKING.
    pub turn: Turn,
    /// The position last told, so that a person never hears a greater one; 0: none yet, or WORKING.
    pub position: u32,
}

/// Why a token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Not one of ours: wrong shape, version or signature.
    #[error("the queue token is not one of ours")]
    Forged,
    /// Its key has left the ring.
    #[error("the queue token was sealed with a key that is no longer in use")]
    UnknownKey,
}

/// The key ring. Cheap enough to clone; the first key seals.
#[derive(Clone)]
pub struct PlaceKeys {
    keys: Vec<(u8, Hmac<Sha256>)>,
}

impl std::fmt::Debug for PlaceKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<u8> = self.keys.iter().map(|(id, _)| *id).collect();
        f.debug_struct("PlaceKeys").field("ids", &ids).finish()
    }
}

impl PlaceKeys {
    /// Reads a ring: `id:secret` separated by commas, the sealing key first. An
    /// id is 0..=255, a secret at least 32 characters.
    ///
    /// # Errors
    /// One sentence; it never shows a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut keys: Vec<(u8, Hmac<Sha256>)> = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            let (id, secret) = entry
                .split_once(':')
                .ok_or("a place key must read <id>:<secret>")?;
            let id: u8 = id
                .parse()
                .map_err(|_| "a place key's id must be a number from 0 to 255")?;
            if secret.len() < 32 {
                return Err(format!("place key {id} has fewer than 32 characters"));
            }
            if keys.iter().any(|(known, _)| *known == id) {
                return Err(format!("place key {id} stands there twice"));
            }
            keys.push((id, mac_of(secret)));
        }
        if keys.is_empty() {
            return Err("there is no place key; want <id>:<secret>[,<id>:<secret>]".into());
        }
        Ok(Self { keys })
    }

    /// A ring with one fresh random key, and its text for [`PlaceKeys::parse`].
    pub fn generate() -> (Self, String) {
        let text = format!("1:{}", hex::encode(rand::random::<[u8; 32]>()));
        let keys = Self::parse(&text).expect("what is written here is well formed");
        (keys, text)
    }

    /// The token of `place`.
    pub fn seal(&self, place: &Place) -> String {
        let mut out = [0_u8; TOKEN_LEN];
        self.seal_into(place, &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }

    /// The token of `place`, written without allocating.
    ///
    /// # Panics
    /// When its number is above a trillion, which no sale issues.
    pub fn seal_into(&self, place: &Place, out: &mut [u8; TOKEN_LEN]) {
        let (id, mac) = &self.keys[0];
        assert!(place.number <= NUMBER_MAX, "numbers end at 2^40");
        let (at, last) = match place.state {
            PlaceState::Working => (place.turn.holding_ms, place.turn.spans()),
            PlaceState::Registered | PlaceState::Waiting => {
                (place.issued_ms, place.position.into())
            }
        };
        let mut raw = [0_u8; RAW];
        raw[0] = VERSION << 4 | place.state.byte();
        raw[1] = *id;
        raw[2..18].copy_from_slice(place.queue.as_bytes());
        raw[18..34].copy_from_slice(place.user.as_bytes());
        raw[34..38].copy_from_slice(&place.epoch.to_be_bytes());
        raw[38..43].copy_from_slice(&place.number.to_be_bytes()[3..]);
        raw[43..49].copy_from_slice(&at.to_be_bytes()[2..]);
        raw[49..55].copy_from_slice(&last.to_be_bytes()[2..]);
        let tag = tag(mac, &raw[..BODY]);
        raw[BODY..].copy_from_slice(&tag);
        BASE64_URL_SAFE_NO_PAD
            .encode_slice(raw, out)
            .expect("TOKEN_LEN is the length of RAW bytes");
    }

    /// The place that `token` proves.
    ///
    /// # Errors
    /// When it proves nothing.
    pub fn open(&self, token: &str) -> Result<Place, PlaceError> {
        if token.len() != TOKEN_LEN {
            return Err(PlaceError::Forged);
        }
        let mut raw = [0_u8; RAW + 2];
        let read = BASE64_URL_SAFE_NO_PAD
            .decode_slice(token, &mut raw)
            .map_err(|_| PlaceError::Forged)?;
        if read != RAW || raw[0] >> 4 != VERSION {
            return Err(PlaceError::Forged);
        }
        let (_, mac) = self
            .keys
            .iter()
            .find(|(id, _)| *id == raw[1])
            .ok_or(PlaceError::UnknownKey)?;
        if !bool::from(tag(mac, &raw[..BODY]).ct_eq(&raw[BODY..RAW])) {
            return Err(PlaceError::Forged);
        }
        read_body(&raw).ok_or(PlaceError::Forged)
    }
}

/// What `token` says, believed without its key: for its owner, who has none. None: it is no token.
pub fn read_unverified(token: &str) -> Option<Place> {
    let mut raw = [0_u8; RAW + 2];
    if token.len() != TOKEN_LEN {
        return None;
    }
    let read = BASE64_URL_SAFE_NO_PAD.decode_slice(token, &mut raw).ok()?;
    (read == RAW && raw[0] >> 4 == VERSION)
        .then(|| read_body(&raw))
        .flatten()
}

fn read_body(raw: &[u8]) -> Option<Place> {
    let number = |range: std::ops::Range<usize>| {
        (raw[range].iter()).fold(0_u64, |n, &byte| n << 8 | u64::from(byte))
    };
    let (at, last) = (number(43..49), number(49..55));
    let state = match raw[0] & 15 {
        UNBOUNDED => PlaceState::Working,
        byte => PlaceState::from_byte(byte)?,
    };
    let (issued_ms, turn, position) = match state {
        PlaceState::Working if raw[0] & 15 == UNBOUNDED => (0, Turn::until(last), 0),
        PlaceState::Working => (0, Turn::from_spans(at, last), 0),
        PlaceState::Registered | PlaceState::Waiting => {
            (at, Turn::default(), u32::try_from(last).ok()?)
        }
    };
    Some(Place {
        queue: Uuid::from_bytes(array(&raw[2..18])),
        user: Uuid::from_bytes(array(&raw[18..34])),
        epoch: u32::from_be_bytes(array(&raw[34..38])),
        number: number(38..43),
        state,
        issued_ms,
        turn,
        position,
    })
}

impl Turn {
    /// A turn of which only the deadline is known: nothing extends it.
    fn until(deadline_ms: u64) -> Self {
        Self {
            deadline_ms,
            holding_ms: deadline_ms,
            last_ms: deadline_ms,
        }
    }

    fn spans(self) -> u64 {
        let span = |to: u64| (to.saturating_sub(self.holding_ms) / SPAN_MS).min(SPAN_MAX);
        span(self.deadline_ms) << 24 | span(self.last_ms)
    }

    fn from_spans(holding_ms: u64, spans: u64) -> Self {
        Self {
            deadline_ms: holding_ms + (spans >> 24) * SPAN_MS,
            holding_ms,
            last_ms: holding_ms + (spans & SPAN_MAX) * SPAN_MS,
        }
    }
}

fn mac_of(secret: &str) -> Hmac<Sha256> {
    // The same secret used elsewhere must not give the same keys.
    let key = Sha256::new()
        .chain_update(b"ticketping place v1\0")
        .chain_update(secret.as_bytes())
        .finalize();
    Hmac::new_from_slice(&key).expect("HMAC takes keys of any length")
}

fn tag(mac: &Hmac<Sha256>, body: &[u8]) -> [u8; MAC] {
    // Cloning keeps the two compressions that the key itself costs.
    array(&mac.clone().chain_update(body).finalize().into_bytes()[..MAC])
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes
        .try_into()
        .expect("the layout's slices have its lengths")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        Place {
            queue: Uuid::now_v7(),
            user: Uuid::now_v7(),
            epoch: 3,
            number: 1_000_001,
            state: PlaceState::Waiting,
            issued_ms: 1_790_000_000_123,
            turn: Turn::default(),
            position: 77,
        }
    }

    #[test]
    fn a_sealed_place_opens_as_it_was() {
        let (keys, text) = PlaceKeys::generate();
        for state in [
            PlaceState::Registered,
            PlaceState::Waiting,
            PlaceState::Working,
        ] {
            let works = state == PlaceState::Working;
            let place = Place {
                state,
                number: NUMBER_MAX,
                issued_ms: if works { 0 } else { 1_790_000_000_123 },
                turn: if works { turn() } else { Turn::default() },
                position: if works { 0 } else { u32::MAX },
                ..place()
            };
            let token = keys.seal(&place);
            assert_eq!(token.len(), TOKEN_LEN);
            assert_eq!(keys.open(&token), Ok(place));
            assert_eq!(read_unverified(&token), Some(place));
            assert_eq!(PlaceKeys::parse(&text).unwrap().open(&token), Ok(place));
        }
    }

    fn turn() -> Turn {
        Turn {
            deadline_ms: 1_790_000_480_123,
            holding_ms: 1_790_000_420_123,
            last_ms: 1_790_001_260_123,
        }
    }

    #[test]
    fn a_turn_is_never_sealed_as_longer_than_it_is() {
        let (keys, _) = PlaceKeys::generate();
        let sealed = |turn: Turn| {
            let place = Place {
                state: PlaceState::Working,
                issued_ms: 0,
                turn,
                ..place()
            };
            keys.open(&keys.seal(&place)).unwrap().turn
        };
        let odd = Turn {
            deadline_ms: turn().holding_ms + 99,
            last_ms: turn().holding_ms + 100_000_000_000,
            ..turn()
        };
        let read = sealed(odd);
        assert_eq!(read.deadline_ms, odd.holding_ms, "rounded down");
        assert!(
            read.last_ms < odd.last_ms && read.last_ms > odd.holding_ms,
            "held to what fits"
        );
        assert_eq!(sealed(Turn::until(5)), Turn::until(5));
    }

    #[test]
    fn no_changed_character_is_accepted() {
        let (keys, _) = PlaceKeys::generate();
        let token = keys.seal(&place()).into_bytes();
        for i in 0..token.len() {
            for other in [b'A', b'B', b'_', b'=', b' '] {
                let mut forged = token.clone();
                if forged[i] == other {
                    continue;
                }
                forged[i] = other;
                let forged = String::from_utf8(forged).unwrap();
                assert!(keys.open(&forged).is_err(), "{forged}");
            }
        }
        assert_eq!(keys.open(""), Err(PlaceError::Forged));
        assert_eq!(keys.open(&"A".repeat(TOKEN_LEN)), Err(PlaceError::Forged));
        let (other, _) = PlaceKeys::generate();
        assert!(other.open(&keys.seal(&place())).is_err());
    }

    #[test]
    fn keys_rotate() {
        let (a, b) = ("a".repeat(32), "b".repeat(32));
        let old = PlaceKeys::parse(&format!("1:{a}")).unwrap();
        let both = PlaceKeys::parse(&format!("2:{b},1:{a}")).unwrap();
        let new = PlaceKeys::parse(&format!("2:{b}")).unwrap();
        let before = old.seal(&place());
        assert!(both.open(&before).is_ok());
        assert_eq!(new.open(&before), Err(PlaceError::UnknownKey));
        let after = both.seal(&place());
        assert!(new.open(&after).is_ok());
        assert_eq!(old.open(&after), Err(PlaceError::UnknownKey));
    }

    #[test]
    fn a_malformed_ring_is_refused_without_showing_it() {
        let long = "s3cr3t".repeat(8);
        for text in ["", "x", "1:short", "300:", &format!("1:{long},1:{long}")] {
            let error = PlaceKeys::parse(text).unwrap_err();
            assert!(!error.contains("s3cr3t"), "{error}");
        }
    }
}
