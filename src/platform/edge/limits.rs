//! Bounds on what clients may take.

use std::time::Duration;

/// The head of a request (request line and headers) is at most this long; a longer one is 431.
pub(super) const HEAD_MAX: usize = 32 * 1024;
/// More header lines are 431.
pub(super) const HEADERS_MAX: usize = 100;
/// A longer path and query is 414.
pub(super) const TARGET_MAX: usize = 8 * 1024;
/// A TLS handshake takes at most this long.
pub(super) const HANDSHAKE_MAX: Duration = Duration::from_secs(10);
/// A connection serves no longer than this: what leaks elsewhere (a load balancer that never
/// spreads anew, a client that never lets go) ends.
pub(super) const AGE_MAX: Duration = Duration::from_secs(3600);
/// Bytes that the system buffers of an answer that a client does not read (it takes twice that).
/// Ten times the largest compressed seat map: it limits nobody who reads.
pub(super) const SEND_BUFFER: u32 = 128 * 1024;

/// Bounds on what clients may take. A connection costs less than a megabyte, whatever it sends
/// or refuses to read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open connections. Above three quarters of it, addresses that hold more than their share
    /// give way to others.
    pub connections_max: usize,
    /// From the first byte of a request to the end of its head, and from the start of a
    /// connection to the first byte.
    pub head: Duration,
    /// A connection without a request in flight ends after this long. Longer than the longest
    /// poll interval: a client that follows `pollAfterMs` keeps its connection.
    pub idle: Duration,
    /// A request's body arrives within this long after its head; later is 408.
    pub body: Duration,
    /// A client that takes none of the bytes it is sent for this long is cut off.
    pub write: Duration,
    /// An answer has been taken by its client within this long.
    pub answer: Duration,
    /// An event stream ends after this long; its client connects again.
    pub stream: Duration,
    /// After the stop, open requests get this long to be answered.
    pub drain: Duration,
}

impl Limits {
    /// Those of a listener for buyers.
    pub const DEFAULT: Self = Self {
        connections_max: 100_000,
        head: Duration::from_secs(15),
        idle: Duration::from_secs(75),
        body: Duration::from_secs(15),
        write: Duration::from_secs(20),
        answer: Duration::from_secs(120),
        stream: Duration::from_secs(15 * 60),
        drain: Duration::from_secs(3),
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self::DEFAULT
    }
}
