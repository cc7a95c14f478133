//! Slows down who guesses passwords or floods sign-up. All of it lives in this
//! process: with several instances each allows as much, which bounds an
//! attacker all the same, and no store is asked before a password is hashed.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter, clock::Clock};
use quick_cache::sync::{Cache, EntryAction, EntryResult};
use sha2::{Digest, Sha256};

/// Failures of one address at one account before it has to wait.
const FREE_FAILURES: u32 = 5;
/// Failures at one account from everywhere before everybody has to wait a
/// little. High, so that nobody locks a member out by guessing from one place.
const FREE_FAILURES_ACCOUNT: u32 = 50;
/// The first wait; it doubles with each further failure.
const WAIT_FIRST: Duration = Duration::from_secs(30);
/// No wait is longer than this, and failures are forgotten after as long without one.
const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// How many address-account pairs are remembered; the least used go first. Some 100 bytes each.
const REMEMBERED_MAX: usize = 100_000;

#[derive(Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

/// What is remembered of failed log-ins. Keys are hashes, so that no e-mail address is
/// kept and every key costs the same.
struct FailureBook {
    book: Cache<[u8; 32], Failures>,
    free: u32,
}

impl FailureBook {
    fn new(free: u32) -> Self {
        Self {
            book: Cache::new(REMEMBERED_MAX),
            free,
        }
    }

    fn wait(&self, key: &[u8; 32], now: Instant) -> Option<Duration> {
        let failures = self.book.get(key)?;
        let over = failures.count.checked_sub(self.free)?;
        let wait = WAIT_FIRST.saturating_mul(1 << over.min(8)).min(WAIT_MAX);
        wait.checked_sub(now.duration_since(failures.last))
            .filter(|left| !left.is_zero())
    }

    fn failed(&self, key: &[u8; 32], now: Instant) {
        let counted = self.book.entry(key, None, |_, failures| {
            if now.duration_since(failures.last) >= WAIT_MAX {
                failures.count = 0;
            }
            failures.count = failures.count.saturating_add(1);
            failures.last = now;
            EntryAction::Retain(())
        });
        if let EntryResult::Vacant(first) = counted {
            // Fails only when the entry was cleared meanwhile: then there is nothing to count.
            let _ = first.insert(Failures {
                count: 1,
                last: now,
            });
        }
    }
}

/// Failed log-ins, by address and account, and by account alone.
pub struct LoginThrottle {
    pairs: FailureBook,
    accounts: FailureBook,
}

impl Default for LoginThrottle {
    fn default() -> Self {
        Self {
            pairs: FailureBook::new(FREE_FAILURES),
            accounts: FailureBook::new(FREE_FAILURES_ACCOUNT),
        }
    }
}

impl LoginThrottle {
    /// How long this address must leave this account alone, if it must.
    pub fn wait(&self, address: IpAddr, email: &str, now: Instant) -> Option<Duration> {
        let pair = self.pairs.wait(&key(Some(address), email), now);
        pair.max(self.accounts.wait(&key(None, email), now))
    }

    /// Notes a failed attempt.
    pub fn failed(&self, address: IpAddr, email: &str, now: Instant) {
        self.pairs.failed(&key(Some(address), email), now);
        self.accounts.failed(&key(None, email), now);
    }

    /// Forgets the failures of an address that has shown the right password.
    pub fn succeeded(&self, address: IpAddr, email: &str) {
        self.pairs.book.remove(&key(Some(address), email));
    }
}

fn key(address: Option<IpAddr>, email: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    match address.map(network) {
        Some(IpAddr::V4(v4)) => hash.update(v4.octets()),
        Some(IpAddr::V6(v6)) => hash.update(v6.octets()),
        None => {}
    }
    hash.update(b"\0");
    hash.update(email);
    hash.finalize().into()
}

/// What counts as one address: an IPv4 address, or the /64 an IPv6 subscriber is given.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6([a, b, c, d, 0, 0, 0, 0].into())
        }
    }
}

/// How often one address may call, whatever comes of it.
#[derive(Clone)]
pub struct AddressLimit(Option<Arc<DefaultKeyedRateLimiter<IpAddr>>>);

impl AddressLimit {
    /// `per_second` on average, `burst` at once. `per_second` 0 is no limit.
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self(NonZeroU32::new(per_second).map(|rate| {
            let burst = NonZeroU32::new(burst).unwrap_or(rate);
            Arc::new(RateLimiter::keyed(
                Quota::per_second(rate).allow_burst(burst),
            ))
        }))
    }

    /// Forgets addresses that have their whole burst again. To be called every
    /// few seconds: it is what bounds the memory of a flood from many addresses.
    pub fn forget_idle(&self) {
        if let Some(limiter) = &self.0 {
            limiter.retain_recent();
            limiter.shrink_to_fit();
        }
    }

    /// Takes one call of `address`.
    ///
    /// # Errors
    /// How long to wait, when it has none left.
    pub fn check(&self, address: IpAddr) -> Result<(), Duration> {
        let Some(limiter) = &self.0 else {
            return Ok(());
        };
        limiter
            .check_key(&network(address))
            .map_err(|until| until.wait_time_from(limiter.clock().now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn guessing_waits_longer_each_time_and_only_the_guesser_waits() {
        let throttle = LoginThrottle::default();
        let mut now = Instant::now();
        for _ in 0..FREE_FAILURES {
            assert_eq!(throttle.wait(HERE, "a@example.com", now), None);
            throttle.failed(HERE, "a@example.com", now);
        }
        assert_eq!(throttle.wait(HERE, "a@example.com", now), Some(WAIT_FIRST));
        assert_eq!(throttle.wait(THERE, "a@example.com", now), None);
        assert_eq!(throttle.wait(HERE, "b@example.com", now), None);
        now += WAIT_FIRST;
        assert_eq!(throttle.wait(HERE, "a@example.com", now), None);
        throttle.failed(HERE, "a@example.com", now);
        assert_eq!(
            throttle.wait(HERE, "a@example.com", now),
            Some(WAIT_FIRST * 2)
        );
        for _ in 0..100 {
            throttle.failed(HERE, "a@example.com", now);
        }
        assert_eq!(throttle.wait(HERE, "a@example.com", now), Some(WAIT_MAX));
        assert_eq!(throttle.wait(HERE, "a@example.com", now + WAIT_MAX), None);
    }

    #[test]
    fn the_right_password_forgets_and_so_does_time() {
        let throttle = LoginThrottle::default();
        let now = Instant::now();
        for _ in 0..FREE_FAILURES {
            throttle.failed(HERE, "a@example.com", now);
        }
        throttle.succeeded(HERE, "a@example.com");
        assert_eq!(throttle.wait(HERE, "a@example.com", now), None);
        for _ in 0..FREE_FAILURES - 1 {
            throttle.failed(HERE, "a@example.com", now);
        }
        let later = now + WAIT_MAX;
        throttle.failed(HERE, "a@example.com", later);
        assert_eq!(throttle.wait(HERE, "a@example.com", later), None);
    }

    #[test]
    fn guessing_from_everywhere_slows_the_account_down() {
        let throttle = LoginThrottle::default();
        let now = Instant::now();
        for host in 0..FREE_FAILURES_ACCOUNT {
            let from = IpAddr::V4((0x0a00_0000 + host).into());
            assert_eq!(throttle.wait(from, "a@example.com", now), None);
            throttle.failed(from, "a@example.com", now);
        }
        assert_eq!(throttle.wait(THERE, "a@example.com", now), Some(WAIT_FIRST));
    }

    #[test]
    fn an_address_has_a_burst_and_ipv6_counts_by_subscriber() {
        let limit = AddressLimit::new(1, 3);
        for host in 1..=3_u16 {
            let from = IpAddr::V6([0x2001, 0xdb8, 0, 1, 0, 0, 0, host].into());
            limit.check(from).unwrap();
        }
        let same = IpAddr::V6([0x2001, 0xdb8, 0, 1, 9, 9, 9, 9].into());
        assert!(limit.check(same).unwrap_err() <= Duration::from_secs(1));
        limit
            .check(IpAddr::V6([0x2001, 0xdb8, 0, 2, 0, 0, 0, 1].into()))
            .unwrap();
        let unlimited = AddressLimit::new(0, 0);
        for _ in 0..1_000 {
            unlimited.check(HERE).unwrap();
        }
    }
}
