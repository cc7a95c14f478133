//! Free loopback ports for the child stores.

use std::net::{Ipv4Addr, TcpListener};

/// Ports are taken below the range from which the kernel hands out local ports
/// of outgoing connections (32768 and up by default): a store that is started
/// again on its port must not find it taken by some client's connection, nor by
/// a reconnecting client that met itself.
pub(super) const LOWEST: u16 = 15_000;
pub(super) const HIGHEST: u16 = 31_999;

/// Enough to find a free one with certainty unless nearly all are taken.
const TRIES: usize = 200;

/// A port that was free a moment ago; another may take it before the store
/// binds it, so the caller tries again with a new one.
pub(super) fn free() -> Option<u16> {
    (0..TRIES)
        .map(|_| rand::random_range(LOWEST..=HIGHEST))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}
