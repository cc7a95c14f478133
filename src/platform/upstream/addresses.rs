//! The addresses of one role: which there are, which of them answer, and whose turn it is.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;

/// Names are looked up again after this long.
const LOOKUP_EVERY: Duration = Duration::from_secs(3);
const LOOKUP_MAX: Duration = Duration::from_secs(3);
/// So many addresses of a role are used; further ones of a name are not.
const ADDRESSES_MAX: usize = 256;
/// An address that fails gets no requests for this long, doubling.
const EJECT_FIRST: Duration = Duration::from_millis(250);
const EJECT_MAX: Duration = Duration::from_secs(10);
/// A request that is not answered in time says less about an address than a refused connection:
/// the second one in a row counts.
const TIMEOUTS_TO_EJECT: u32 = 2;
/// An instance that says that it is about to stop gets no requests for this long.
const LEAVING: Duration = Duration::from_secs(2);

/// A host and a port, as an operator gave them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) host: String,
    pub(super) port: u16,
}

/// One instance.
pub(super) struct Address {
    pub(super) at: SocketAddr,
    /// What the Host header says.
    pub(super) name: String,
    in_flight: AtomicUsize,
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    failures: u32,
    timeouts: u32,
    /// No request before this; then one, as a probe.
    rests_until: Option<Instant>,
}

/// How a request at an address ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Answered,
    /// Answered, and the instance is about to stop.
    Leaving,
    Failed,
    TimedOut,
}

/// A request under way at an address.
pub(super) struct Turn(pub(super) Arc<Address>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

impl Address {
    fn new(at: SocketAddr, name: String) -> Self {
        Self {
            at,
            name,
            in_flight: AtomicUsize::new(0),
            health: Mutex::default(),
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rests(&self, now: Instant) -> bool {
        self.health().rests_until.is_some_and(|until| now < until)
    }

    /// Whether requests may go there now; one that has rested is given one request as a probe.
    fn may_take(&self, now: Instant) -> bool {
        let mut health = self.health();
        match health.rests_until {
            Some(until) if now < until => false,
            Some(_) => {
                health.rests_until = (health.failures > 0).then(|| now + pause(health.failures));
                true
            }
            None => true,
        }
    }

    /// Notes how a request ended; true when the address gets no requests for a while from now on.
    pub(super) fn note(&self, ended: Ended) -> bool {
        let now = Instant::now();
        let mut health = self.health();
        match ended {
            Ended::Answered => *health = Health::default(),
            Ended::Leaving => {
                *health = Health {
                    rests_until: Some(now + LEAVING),
                    ..Health::default()
                };
            }
            Ended::TimedOut if health.timeouts + 1 < TIMEOUTS_TO_EJECT => health.timeouts += 1,
            Ended::TimedOut | Ended::Failed => {
                let first = health.failures == 0;
                health.timeouts = 0;
                health.failures += 1;
                health.rests_until = Some(now + pause(health.failures));
                return first;
            }
        }
        false
    }
}

fn pause(failures: u32) -> Duration {
    (EJECT_FIRST * 2_u32.pow(failures.saturating_sub(1).min(10))).min(EJECT_MAX)
}

/// All addresses of a role.
pub(super) struct Addresses {
    names: Vec<Name>,
    known: ArcSwap<Vec<Arc<Address>>>,
    looking: AtomicBool,
    looked: Mutex<Option<Instant>>,
    /// Whether the last lookup failed, so that only the first of many is logged.
    blind: AtomicBool,
}

impl Addresses {
    pub(super) fn new(names: Vec<Name>) -> Self {
        Self {
            names,
            known: ArcSwap::default(),
            looking: AtomicBool::new(false),
            looked: Mutex::default(),
            blind: AtomicBool::new(false),
        }
    }

    #[cfg(test)]
    fn known(&self) -> Arc<Vec<Arc<Address>>> {
        self.known.load_full()
    }

    /// An address for a request that was not at `tried` yet: of two at random, the one with less
    /// under way. Those that rest are asked when there is no other.
    pub(super) fn choose(&self, tried: &[SocketAddr]) -> Option<Turn> {
        let (known, now) = (self.known.load(), Instant::now());
        let mut open: Vec<&Arc<Address>> = (known.iter())
            .filter(|one| !tried.contains(&one.at))
            .collect();
        if open.iter().any(|one| !one.rests(now)) {
            open.retain(|one| !one.rests(now));
        }
        while !open.is_empty() {
            let at = lighter_of_two(&open);
            let chosen = open.swap_remove(at);
            if chosen.may_take(now) || open.is_empty() {
                chosen.in_flight.fetch_add(1, Relaxed);
                return Some(Turn(chosen.clone()));
            }
        }
        None
    }

    /// Looks the names up, if that was not done lately. The first time the caller waits for it.
    pub(super) async fn refresh(self: &Arc<Self>) -> Result<(), String> {
        let looked = *self.looked.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_some_and(|at| at.elapsed() < LOOKUP_EVERY) {
            return Ok(());
        }
        if self.known.load().is_empty() {
            return self.look_up().await;
        }
        if !self.looking.swap(true, Relaxed) {
            let this = self.clone();
            tokio::spawn(async move {
                // What is known is used on; the failure has been logged.
                let _ = this.look_up().await;
                this.looking.store(false, Relaxed);
            });
        }
        Ok(())
    }

    async fn look_up(&self) -> Result<(), String> {
        let outcome = tokio::time::timeout(LOOKUP_MAX, self.resolve())
            .await
            .unwrap_or_else(|_| Err("no answer in time".to_owned()));
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        match outcome {
            Ok(found) => {
                self.blind.store(false, Relaxed);
                self.replace(found);
                Ok(())
            }
            Err(error) => {
                let names: Vec<&str> = self.names.iter().map(|name| &*name.host).collect();
                let names = names.join(", ");
                if !self.blind.swap(true, Relaxed) {
                    tracing::warn!(
                        names,
                        error,
                        "cannot look up {names}; the addresses known so far are used"
                    );
                }
                Err(format!("cannot look up {names}: {error}"))
            }
        }
    }

    /// Addresses of every name. A name that is not known does not take those of the others away.
    async fn resolve(&self) -> Result<BTreeSet<(SocketAddr, String)>, String> {
        let (mut found, mut failure) = (BTreeSet::new(), None);
        for name in &self.names {
            let label = format!("{}:{}", name.host, name.port);
            match tokio::net::lookup_host((name.host.as_str(), name.port)).await {
                Ok(addresses) => found.extend(addresses.map(|at| (at, label.clone()))),
                Err(error) => {
                    let known = self.known.load();
                    let of_name = known.iter().filter(|one| one.name == label);
                    found.extend(of_name.map(|one| (one.at, label.clone())));
                    failure = Some(error.to_string());
                }
            }
        }
        match (found.is_empty(), failure) {
            (true, failure) => Err(failure.unwrap_or_else(|| "no address".to_owned())),
            (false, _) => Ok(found),
        }
    }

    fn replace(&self, found: BTreeSet<(SocketAddr, String)>) {
        let known = self.known.load();
        let same = known.len() == found.len().min(ADDRESSES_MAX)
            && known
                .iter()
                .all(|one| found.iter().any(|(at, _)| *at == one.at));
        if same {
            return;
        }
        let kept = |(at, name)| {
            let old = known.iter().find(|one| one.at == at);
            old.cloned()
                .unwrap_or_else(|| Arc::new(Address::new(at, name)))
        };
        let fresh = found.into_iter().take(ADDRESSES_MAX).map(kept).collect();
        self.known.store(Arc::new(fresh));
    }
}

fn lighter_of_two(open: &[&Arc<Address>]) -> usize {
    let one = rand::random_range(0..open.len());
    if open.len() == 1 {
        return one;
    }
    let other = (one + rand::random_range(1..open.len())) % open.len();
    let load = |at: usize| open[at].in_flight.load(Relaxed);
    match load(other) < load(one) {
        true => other,
        false => one,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ports: &[u16]) -> Addresses {
        let addresses = Addresses::new(Vec::new());
        let at = |port: &u16| {
            (
                SocketAddr::from(([127, 0, 0, 1], *port)),
                format!("h:{port}"),
            )
        };
        addresses.replace(ports.iter().map(at).collect());
        addresses
    }

    fn counts(addresses: &Addresses, turns: usize) -> Vec<usize> {
        let mut counts = vec![0; addresses.known().len()];
        for _ in 0..turns {
            let turn = addresses.choose(&[]).unwrap();
            let at = addresses.known().iter().position(|one| one.at == turn.0.at);
            counts[at.unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn every_address_gets_its_share_and_the_busy_one_less() {
        let addresses = of(&[1, 2, 3, 4]);
        assert!(counts(&addresses, 4_000).iter().all(|&n| n > 700));
        let held: Vec<Turn> = (0..100).filter_map(|_| addresses.choose(&[])).collect();
        let most = addresses
            .known()
            .iter()
            .map(|a| a.in_flight.load(Relaxed))
            .max();
        assert!(most < Some(40), "{most:?}");
        drop(held);
        assert!(
            addresses
                .known()
                .iter()
                .all(|a| a.in_flight.load(Relaxed) == 0)
        );
    }

    #[test]
    fn one_that_fails_rests_is_probed_once_and_comes_back() {
        let addresses = of(&[1, 2]);
        let bad = addresses.known()[0].clone();
        assert!(bad.note(Ended::Failed));
        assert_eq!(counts(&addresses, 50)[0], 0);
        bad.health().rests_until = Some(Instant::now());
        assert_eq!(counts(&addresses, 50)[0], 1, "one probe");
        assert!(!bad.note(Ended::Failed), "it is no news");
        bad.note(Ended::Answered);
        assert!(counts(&addresses, 50)[0] > 5);

        assert!(!bad.note(Ended::TimedOut), "one is no proof");
        assert!(bad.note(Ended::TimedOut));
        bad.note(Ended::Leaving);
        assert_eq!(counts(&addresses, 50)[0], 0);
    }

    #[test]
    fn when_all_rest_they_are_asked_all_the_same() {
        let addresses = of(&[1, 2]);
        addresses
            .known()
            .iter()
            .for_each(|one| assert!(one.note(Ended::Failed)));
        let first = addresses.choose(&[]).unwrap();
        let second = addresses.choose(&[first.0.at]).unwrap();
        assert_ne!(first.0.at, second.0.at);
        assert!(addresses.choose(&[first.0.at, second.0.at]).is_none());
    }

    #[tokio::test]
    async fn names_are_followed_and_an_unknown_one_takes_nothing_away() {
        let name = |host: &str| Name {
            host: host.to_owned(),
            port: 80,
        };
        let names = vec![name("127.0.0.1"), name("nobody.invalid")];
        let addresses = Arc::new(Addresses::new(names));
        addresses.refresh().await.unwrap();
        assert_eq!(addresses.known().len(), 1);
        let nobody = Arc::new(Addresses::new(vec![name("nobody.invalid")]));
        let error = nobody.refresh().await.unwrap_err();
        assert!(error.contains("nobody.invalid"), "{error}");
        let before = addresses.known()[0].clone();
        addresses.replace(
            [before.at, SocketAddr::from(([127, 0, 0, 2], 80))]
                .map(|at| (at, "h".to_owned()))
                .into(),
        );
        assert_eq!(addresses.known().len(), 2);
        assert!(
            addresses
                .known()
                .iter()
                .any(|one| Arc::ptr_eq(one, &before))
        );
    }
}
