//! Open connections by address: fair shares, and how one is ended from outside.
//!
//! An address may use whatever nobody else asks for: a mobile carrier and a load generator are
//! one address. When all connections are in use, a newcomer takes one from the address that
//! holds the most: the longest idle one, else the newest. IPv6 counts by /64, since one
//! household has as many addresses as it likes. Proxies that the configuration trusts stand for
//! all their clients; they take part in none of this.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use super::{counters::Counters, limits::Limits};
use crate::platform::net::Net;

/// So many connections of an address are looked at for the one to end.
const SAMPLE: usize = 64;
/// An idle connection is ended for a newcomer once it has been idle for this long: before, its
/// client may be about to send the next request.
const IDLE_MIN: Duration = Duration::from_secs(1);

const STOP: u8 = 1;
const CUT: u8 = 2;

/// An address, as shares are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Origin {
    Client(IpAddr),
    TrustedProxy,
}

/// All open connections of one listener.
pub(super) struct Registry {
    pub(super) limits: Limits,
    pub(super) counters: Counters,
    exempt: Vec<Net>,
    started: Instant,
    open: AtomicUsize,
    /// Addresses with at least one connection; trusted proxies count as one.
    addresses: AtomicUsize,
    next: AtomicU64,
    table: Mutex<Table>,
    empty: Notify,
}

#[derive(Default)]
struct Table {
    by_origin: HashMap<Origin, Group>,
    /// Number of connections, and whose; without trusted proxies.
    order: BTreeSet<(usize, Origin)>,
    stopping: bool,
}

#[derive(Default)]
struct Group {
    connections: Vec<Arc<Handle>>,
    count: Arc<AtomicUsize>,
    /// Where the next sample begins.
    cursor: usize,
}

/// One open connection, as the registry and the connection itself share it.
pub(super) struct Handle {
    registry: Arc<Registry>,
    origin: Origin,
    number: u64,
    /// Its place among the connections of its address; only changed with the table locked.
    at: AtomicUsize,
    /// [`STOP`], [`CUT`].
    flags: AtomicU8,
    /// Milliseconds of the registry's clock plus one; 0 while a request is in flight.
    idle_since: AtomicU64,
    waker: AtomicWaker,
    /// Connections of its address.
    share: Arc<AtomicUsize>,
}

/// Holds a connection's place until dropped.
pub(super) struct Slot(pub(super) Arc<Handle>);

impl Registry {
    pub(super) fn new(limits: Limits, exempt: Vec<Net>, counters: Counters) -> Arc<Self> {
        Arc::new(Self {
            limits,
            counters,
            exempt,
            started: Instant::now(),
            open: AtomicUsize::new(0),
            addresses: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            table: Mutex::default(),
            empty: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn origin(&self, address: IpAddr) -> Origin {
        let address = address.to_canonical();
        if self.exempt.iter().any(|net| net.contains(address)) {
            return Origin::TrustedProxy;
        }
        Origin::Client(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        })
    }

    /// A place for a connection from `address`; `None`: all are in use, and its address is
    /// entitled to none of them.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Slot> {
        let origin = self.origin(address);
        let mut table = self.lock();
        let full = self.open.load(Relaxed) >= self.limits.connections_max;
        if table.stopping || (full && !self.make_room(&mut table, origin)) {
            self.counters.refused.inc();
            return None;
        }
        let group = table.by_origin.entry(origin).or_default();
        let before = group.connections.len();
        let handle = Arc::new(Handle {
            registry: self.clone(),
            origin,
            number: self.next.fetch_add(1, Relaxed),
            at: AtomicUsize::new(before),
            flags: AtomicU8::new(0),
            idle_since: AtomicU64::new(self.now_ms() + 1),
            waker: AtomicWaker::new(),
            share: group.count.clone(),
        });
        group.connections.push(handle.clone());
        group.count.store(before + 1, Relaxed);
        self.reorder(&mut table, origin, before, before + 1);
        self.open.fetch_add(1, Relaxed);
        self.counters.open.inc();
        Some(Slot(handle))
    }

    /// Ends a connection of the address with the most, for one of `newcomer`.
    fn make_room(&self, table: &mut Table, newcomer: Origin) -> bool {
        let Some(&(most, heaviest)) = table.order.last() else {
            return false;
        };
        let has = match newcomer {
            Origin::TrustedProxy => 0,
            Origin::Client(_) => table
                .by_origin
                .get(&newcomer)
                .map_or(0, |g| g.connections.len()),
        };
        let Some(group) = table.by_origin.get_mut(&heaviest) else {
            return false;
        };
        let now = self.now_ms();
        let from = group.cursor % group.connections.len().max(1);
        group.cursor = from + SAMPLE;
        let sample = group.connections.iter().cycle().skip(from);
        let sample = sample.take(SAMPLE.min(group.connections.len()));
        let idle_ms = |handle: &Handle| match handle.idle_since.load(Relaxed) {
            0 => 0,
            since => now.saturating_sub(since - 1),
        };
        let idle = sample.clone().max_by_key(|handle| idle_ms(handle));
        let idle = idle.filter(|handle| u128::from(idle_ms(handle)) >= IDLE_MIN.as_millis());
        let victim = match idle {
            Some(idle) => Some(idle),
            // Nobody gives up a request in flight for one who holds as many.
            None if most > has + 1 => sample.max_by_key(|handle| handle.number),
            None => None,
        };
        let Some(victim) = victim.cloned() else {
            return false;
        };
        self.counters.cut("crowded");
        victim.cut();
        self.remove(table, &victim);
        true
    }

    /// Takes `handle` out of the table, once.
    fn remove(&self, table: &mut Table, handle: &Arc<Handle>) {
        let Some(group) = table.by_origin.get_mut(&handle.origin) else {
            return;
        };
        let at = handle.at.load(Relaxed);
        if !group
            .connections
            .get(at)
            .is_some_and(|there| Arc::ptr_eq(there, handle))
        {
            return;
        }
        group.connections.swap_remove(at);
        if let Some(moved) = group.connections.get(at) {
            moved.at.store(at, Relaxed);
        }
        let left = group.connections.len();
        if group.connections.capacity() > 64 && left < group.connections.capacity() / 4 {
            group.connections.shrink_to(left * 2);
        }
        group.count.store(left, Relaxed);
        if left == 0 {
            table.by_origin.remove(&handle.origin);
        }
        self.reorder(table, handle.origin, left + 1, left);
        self.counters.open.dec();
        if self.open.fetch_sub(1, Relaxed) == 1 {
            self.empty.notify_waiters();
        }
    }

    fn reorder(&self, table: &mut Table, origin: Origin, before: usize, after: usize) {
        if origin != Origin::TrustedProxy {
            table.order.remove(&(before, origin));
            if after > 0 {
                table.order.insert((after, origin));
            }
        }
        self.addresses.store(table.by_origin.len(), Relaxed);
    }

    /// Asks every connection to end: at once where nothing is in flight.
    pub(super) fn stop(&self) {
        self.raise(STOP);
    }

    /// Ends every connection.
    pub(super) fn cut(&self) {
        self.raise(CUT);
    }

    fn raise(&self, flag: u8) {
        let mut table = self.lock();
        table.stopping = true;
        let all = table.by_origin.values().flat_map(|g| &g.connections);
        all.for_each(|handle| handle.raise(flag));
    }

    /// Resolves when no connection is open.
    pub(super) async fn emptied(&self) {
        loop {
            let notified = self.empty.notified();
            if self.open.load(Relaxed) == 0 {
                return;
            }
            notified.await;
        }
    }
}

impl Handle {
    fn raise(&self, flag: u8) {
        self.flags.fetch_or(flag, Relaxed);
        self.waker.wake();
    }

    /// Ends the connection.
    pub(super) fn cut(&self) {
        self.raise(CUT);
    }

    /// Whether the connection must end, whatever it is doing. `cx` is woken when that changes.
    pub(super) fn is_cut(&self, cx: &Context<'_>) -> bool {
        self.watch(cx.waker());
        self.flags.load(Relaxed) & CUT != 0
    }

    fn watch(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    /// Whether the connection must end as soon as no request is in flight.
    pub(super) fn is_stopping(&self) -> bool {
        self.flags.load(Relaxed) != 0
    }

    pub(super) fn idle(&self) {
        self.idle_since.store(self.registry.now_ms() + 1, Relaxed);
    }

    pub(super) fn busy(&self) {
        self.idle_since.store(0, Relaxed);
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.registry.limits
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.registry.counters
    }

    /// Whether a trusted proxy stands at the other end, with many clients behind it.
    pub(super) fn is_trusted(&self) -> bool {
        self.origin == Origin::TrustedProxy
    }

    /// Whether connections are scarce, others ask for them, and this address holds more than
    /// its share: then each answer ends its connection.
    pub(super) fn is_over_share(&self) -> bool {
        let (registry, most) = (&self.registry, self.registry.limits.connections_max / 4 * 3);
        let addresses = registry.addresses.load(Relaxed);
        registry.open.load(Relaxed) > most
            && addresses > 1
            && !self.is_trusted()
            && self.share.load(Relaxed) > most / addresses
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let registry = self.0.registry.clone();
        registry.remove(&mut registry.lock(), &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(connections_max: usize, exempt: &[&str]) -> Arc<Registry> {
        let limits = Limits {
            connections_max,
            ..Limits::default()
        };
        let exempt = exempt.iter().map(|net| net.parse().unwrap()).collect();
        Registry::new(limits, exempt, Counters::default())
    }

    fn admit(registry: &Arc<Registry>, address: &str) -> Option<Slot> {
        let slot = registry.admit(address.parse().unwrap());
        // As a connection whose request is in flight.
        slot.inspect(|slot| slot.0.busy())
    }

    fn is_cut(slot: &Slot) -> bool {
        slot.0.flags.load(Relaxed) & CUT != 0
    }

    #[test]
    fn one_address_has_everything_until_others_ask() {
        let registry = registry(8, &[]);
        let all: Vec<_> = (0..8)
            .map(|_| admit(&registry, "10.0.0.1").unwrap())
            .collect();
        assert!(all.iter().all(|slot| !slot.0.is_over_share()));
        assert!(
            admit(&registry, "10.0.0.1").is_none(),
            "nobody gives way to himself"
        );
        let other = admit(&registry, "10.0.0.2").unwrap();
        assert_eq!(all.iter().filter(|slot| is_cut(slot)).count(), 1);
        assert!(is_cut(&all[7]), "the newest gives way");
        assert!(all[0].0.is_over_share() && !other.0.is_over_share());
    }

    #[test]
    fn shares_end_equal_and_no_further() {
        let registry = registry(8, &[]);
        let first: Vec<_> = (0..8)
            .map(|_| admit(&registry, "10.0.0.1").unwrap())
            .collect();
        let second: Vec<_> = std::iter::from_fn(|| admit(&registry, "10.0.0.2")).collect();
        assert_eq!(second.len(), 4);
        assert_eq!(first.iter().filter(|slot| is_cut(slot)).count(), 4);
    }

    #[test]
    fn the_longest_idle_one_gives_way_first() {
        let mut registry = registry(4, &[]);
        let mine = Arc::get_mut(&mut registry).unwrap();
        mine.started = Instant::now() - Duration::from_secs(60);
        let all: Vec<_> = (0..4)
            .map(|_| admit(&registry, "10.0.0.1").unwrap())
            .collect();
        all[1].0.idle_since.store(40_000, Relaxed);
        all[2].0.idle_since.store(20_000, Relaxed);
        let again = admit(&registry, "10.0.0.1").expect("an idle one of its own gives way");
        assert!(is_cut(&all[2]) && !is_cut(&all[1]) && !is_cut(&all[3]));
        drop(again);
    }

    #[test]
    fn a_household_is_one_address_and_a_trusted_proxy_none() {
        let registry = registry(4, &["10.9.0.0/16"]);
        let _proxied: Vec<_> = (0..2)
            .map(|_| admit(&registry, "10.9.0.1").unwrap())
            .collect();
        let home: Vec<_> = ["2001:db8::1", "2001:db8::2:0:0:1"]
            .map(|a| admit(&registry, a).unwrap())
            .into();
        assert_eq!(home[0].0.share.load(Relaxed), 2);
        let _more = admit(&registry, "10.9.0.1").expect("the proxy's next client is let in");
        assert_eq!(home.iter().filter(|slot| is_cut(slot)).count(), 1);
        drop(home);
        assert_eq!(registry.open.load(Relaxed), 3);
    }

    #[test]
    fn what_ends_leaves_nothing() {
        let registry = registry(1000, &[]);
        let slots: Vec<_> = (0..1000)
            .map(|i| admit(&registry, &format!("10.0.{}.1", i % 7)).unwrap())
            .collect();
        registry.cut();
        assert!(slots.iter().all(is_cut));
        drop(slots);
        let table = registry.lock();
        assert!(table.by_origin.is_empty() && table.order.is_empty());
        assert_eq!(registry.open.load(Relaxed), 0);
    }
}
