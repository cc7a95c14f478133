//! The generator's state: buyers, timers, requests that are due. It decides what
//! is due and what follows from an answer; connections take work from it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use super::super::buyer::{Buyer, Outcome};
use super::super::notes::Notes;
use super::super::plan::{Load, Target};
use super::super::requests::Requests;
use super::super::seatmap::SeatMaps;
use super::super::stats::{Op, Stats, Timing, Verdict};

/// A request that is due.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    pub buyer: u32,
    pub op: Op,
    /// Every connection was taken when it became due.
    pub crowded: bool,
    pub due_us: u64,
    pub noticed_us: u64,
}

/// The connections to one server. Which of them is idle: the last used first, so that few stay warm.
#[derive(Default)]
pub struct Pool {
    pub ready: VecDeque<Job>,
    pub idle: Vec<(u32, Waker)>,
    pub slots: usize,
    pub slots_max: usize,
    /// Slots that the engine has yet to start.
    pub to_start: usize,
}

pub const API: usize = 0;
pub const STRIPE: usize = 1;

/// How many are looked at before connections get their turn: a spike of a million must not hold up the first answers.
const PUMP_MAX: usize = 512;

/// Buyers by how their journeys ended, and how long its stretches took.
#[derive(Default)]
pub struct People {
    pub arrived: u64,
    pub started: u64,
    pub ended: BTreeMap<Outcome, u64>,
    /// Arrival to a place, to being admitted, to a confirmed order.
    pub to_place: Timing,
    pub to_admission: Timing,
    pub to_confirmed: Timing,
}

pub struct Core {
    pub load: Arc<Load>,
    pub target: Arc<Target>,
    pub requests: Arc<Requests>,
    pub start: Instant,
    /// Unix time of the start in milliseconds, by the server's clock.
    pub started_ms: i64,
    pub buyers: Vec<Buyer>,
    pub stats: Stats,
    pub people: People,
    pub notes: Notes,
    pub seats: SeatMaps,
    pub pools: [Pool; 2],
    pub draining: bool,
    /// When that began.
    pub(super) drained_from_us: Option<u64>,
    pub(super) timers: BinaryHeap<Reverse<(u64, u32, u8)>>,
    pub(super) arrivals: u64,
    /// `poll --rate`: when the polls began, and how many were made due.
    pub(super) polls_from_us: Option<u64>,
    polls: u64,
    polls_at: usize,
    /// Journeys not ended yet, second tabs included.
    pub under_way: u64,
    /// Set when work appears for an idle engine.
    pub wake: Arc<tokio::sync::Notify>,
    pub(super) sleeping_until_us: u64,
}

impl Core {
    pub fn new(
        load: Arc<Load>,
        target: Arc<Target>,
        requests: Arc<Requests>,
        started_ms: i64,
    ) -> Self {
        let slots = if load.http2 {
            load.connections * super::super::plan::STREAMS_PER_CONNECTION
        } else {
            load.connections
        };
        let pool = || Pool {
            slots_max: slots,
            ..Pool::default()
        };
        // Arrivals are bounded by the members that there are, so this fits.
        let expected = load.arrivals.len() as usize;
        Self {
            buyers: Vec::with_capacity(expected),
            timers: BinaryHeap::with_capacity(expected.min(1 << 20)),
            requests,
            start: Instant::now(),
            started_ms,
            stats: Stats::warmed_up_after(load.warm_up),
            people: People::default(),
            notes: Notes::default(),
            seats: SeatMaps::default(),
            pools: [pool(), pool()],
            draining: false,
            drained_from_us: None,
            arrivals: 0,
            polls_from_us: None,
            polls: 0,
            polls_at: 0,
            under_way: 0,
            wake: Arc::default(),
            sleeping_until_us: u64::MAX,
            load,
            target,
        }
    }

    pub fn now_us(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }

    /// Makes due what is due. Returns when to come back: at once if there was more than one turn's worth.
    pub fn pump(&mut self) -> u64 {
        let now = self.now_us();
        let mut left = PUMP_MAX;
        while left > 0 && !self.draining && self.next_arrival_us() <= now {
            self.arrive(now);
            left -= 1;
        }
        while left > 0
            && self
                .timers
                .peek()
                .is_some_and(|Reverse((due, ..))| *due <= now)
        {
            if let Some(Reverse((due_us, buyer, op))) = self.timers.pop() {
                self.offer(buyer, Op::ALL[usize::from(op)], due_us, now);
            }
            left -= 1;
        }
        while left > 0 && self.next_poll_us() <= now {
            self.poll_by_rate(now);
            left -= 1;
        }
        let timer = self
            .timers
            .peek()
            .map_or(u64::MAX, |Reverse((due, ..))| *due);
        let arrival = if self.draining {
            u64::MAX
        } else {
            self.next_arrival_us()
        };
        let next = timer.min(arrival).min(self.next_poll_us());
        self.sleeping_until_us = next;
        next
    }

    fn next_arrival_us(&self) -> u64 {
        let arrivals = &self.load.arrivals;
        if self.arrivals < arrivals.len() {
            arrivals.due_us(self.arrivals)
        } else {
            u64::MAX
        }
    }

    fn arrive(&mut self, now: u64) {
        let due_us = self.load.arrivals.due_us(self.arrivals);
        let member = self.load.arrivals.global(self.arrivals) as u32;
        self.arrivals += 1;
        self.people.arrived += 1;
        let buyer = Buyer::new(member, self.load.seed, &self.load.people);
        let two_tabs = buyer.fate.two_tabs;
        let index = self.buyers.len() as u32;
        self.buyers.push(buyer);
        self.under_way += 1;
        self.offer(index, Op::Enter, due_us, now);
        if two_tabs {
            let mut twin = Buyer::new(member, self.load.seed, &self.load.people);
            twin.twin_of = Some(index);
            (twin.fate.comes_back, twin.fate.walks_away) = (false, None);
            self.buyers.push(twin);
            self.under_way += 1;
            self.offer(index + 1, Op::Enter, due_us, now);
        }
    }

    /// `poll --rate`: polls begin once everyone is in the queue.
    fn next_poll_us(&self) -> u64 {
        let (Some(polls), Some(from)) = (&self.load.polls, self.polls_from_us) else {
            return u64::MAX;
        };
        if self.draining || self.polls >= polls.len() {
            u64::MAX
        } else {
            from + polls.due_us(self.polls)
        }
    }

    fn poll_by_rate(&mut self, now: u64) {
        let due_us = self.next_poll_us();
        self.polls += 1;
        let buyers = self.buyers.len();
        // Someone between two places is passed by; with nobody in the queue the poll cannot be made.
        for _ in 0..buyers {
            self.polls_at = (self.polls_at + 1) % buyers;
            if self.buyers[self.polls_at].place.is_some() {
                return self.offer(self.polls_at as u32, Op::Poll, due_us, now);
            }
        }
        self.stats.offered(Op::Poll);
        self.stats.error(Op::Poll, "NOBODY_WAITING", || {
            "nobody has a place to poll for".to_owned()
        });
        self.stats
            .done(Op::Poll, Verdict::Failed, due_us, None, now);
    }

    pub fn polls_begun(&self) -> bool {
        self.polls_from_us.is_some()
    }

    pub fn polls_over(&self) -> bool {
        self.load
            .polls
            .as_ref()
            .is_some_and(|polls| self.polls >= polls.len())
    }

    pub(super) fn offer(&mut self, buyer: u32, op: Op, due_us: u64, noticed_us: u64) {
        self.stats.offered(op);
        let pool = &mut self.pools[if op == Op::Confirm { STRIPE } else { API }];
        let mut crowded = false;
        match pool.idle.pop() {
            Some((_, waker)) => waker.wake(),
            None if pool.slots < pool.slots_max => {
                pool.slots += 1;
                pool.to_start += 1;
                self.wake.notify_one();
            }
            None => crowded = true,
        }
        pool.ready.push_back(Job {
            buyer,
            op,
            crowded,
            due_us,
            noticed_us,
        });
    }

    /// A connection takes the next request of its pool.
    pub fn take(&mut self, pool: usize) -> Option<Job> {
        let job = self.pools[pool].ready.pop_front()?;
        self.stats.in_flight += 1;
        let now_us = self.now_us();
        self.stats.silent_since_us.get_or_insert(now_us);
        let buyer = &mut self.buyers[job.buyer as usize];
        if !std::mem::replace(&mut buyer.started, true) && buyer.twin_of.is_none() {
            self.people.started += 1;
        }
        Some(job)
    }
}
