//! What follows from an answer: counts, milestones, the next step of a journey,
//! and the end of the run.

use std::cmp::Reverse;

use super::super::args::Scenario;
use super::super::buyer::{Outcome, Stage};
use super::super::client::Lost;
use super::super::journey::{self, Next, Reply, Times, World};
use super::super::stats::{Op, Verdict};
use super::core::{Core, Job};

impl Core {
    /// What became of a request.
    pub fn done(&mut self, job: Job, reply: Reply<'_>, sent_us: Option<u64>) {
        let now_us = self.now_us();
        self.stats.in_flight -= 1;
        self.waited(job, sent_us.unwrap_or(now_us));
        if let Ok((head, _)) = reply {
            self.stats.status(job.op, head.status);
            self.stats.silent_since_us = None;
        }
        let times = Times {
            due_us: job.due_us,
            sent_us: sent_us.unwrap_or(now_us),
            now_us,
        };
        let (load, target) = (self.load.clone(), self.target.clone());
        let mut world = World {
            load: &load,
            target: &target,
            seats: &mut self.seats,
            notes: &mut self.notes,
            started_ms: self.started_ms,
        };
        let buyer = &mut self.buyers[job.buyer as usize];
        let inside_before = buyer.was_inside;
        let placed_before = buyer.number != 0;
        let reading = journey::read(buyer, job.op, reply, times, &mut world);
        let mut next = reading.next;
        if self.draining {
            next = journey::wind_down(buyer, next, load.scenario);
        }
        let (placed, inside) = (
            !placed_before && buyer.number != 0,
            !inside_before && buyer.was_inside,
        );
        self.stats
            .done(job.op, reading.verdict, job.due_us, sent_us, now_us);
        match reading.verdict {
            Verdict::Fine => self.compare_tabs(job),
            Verdict::Refused => self.stats.refusal(job.op, &reading.code),
            Verdict::Failed => self.stats.error(job.op, &reading.code, || reading.detail),
        }
        self.milestones(job.buyer, placed, inside, now_us);
        self.follow(job.buyer, next, now_us);
    }

    fn waited(&mut self, job: Job, sent_us: u64) {
        // Leaving comes in one burst that nobody asked about: that it was late says nothing of the load.
        let leaving = self.drained_from_us.is_some_and(|from| job.due_us >= from);
        if job.due_us < self.stats.timed_from_us || leaving || job.op == Op::Leave {
            return;
        }
        if job.crowded {
            self.stats
                .send_lag
                .record(job.noticed_us.saturating_sub(job.due_us));
            self.stats
                .connection_wait
                .record(sent_us.saturating_sub(job.noticed_us));
        } else {
            self.stats
                .send_lag
                .record(sent_us.saturating_sub(job.due_us));
        }
    }

    fn milestones(&mut self, index: u32, placed: bool, inside: bool, now_us: u64) {
        let buyer = &self.buyers[index as usize];
        if buyer.twin_of.is_some() || !(placed || inside) {
            return;
        }
        let arrival = u64::from((buyer.member - self.load.shard.index) / self.load.shard.of);
        let since = now_us.saturating_sub(self.load.arrivals.due_us(arrival));
        if placed {
            self.people.to_place.record(since);
        }
        if inside {
            self.people.to_admission.record(since);
        }
    }

    /// A second tab shows the place of the first.
    fn compare_tabs(&mut self, job: Job) {
        let Some(first) = self.buyers[job.buyer as usize].twin_of else {
            return;
        };
        let (shown, expected) = (
            self.buyers[job.buyer as usize].number,
            self.buyers[first as usize].number,
        );
        let compared = &mut self.buyers[job.buyer as usize].came_back;
        if !*compared && shown != 0 && expected != 0 {
            *compared = true;
            self.notes.same_place(expected, shown, "a second tab");
        }
    }

    /// Takes the next step of a journey.
    fn follow(&mut self, index: u32, next: Next, now_us: u64) {
        match next {
            Next::Ask(op, due_us) if due_us <= now_us => self.offer(index, op, due_us, now_us),
            Next::Ask(op, due_us) => {
                self.timers.push(Reverse((due_us, index, op as u8)));
                if due_us < self.sleeping_until_us {
                    self.wake.notify_one();
                }
            }
            Next::Leave(outcome) => self.leave(index, outcome, now_us),
            Next::End(outcome) => self.end(index, outcome, now_us),
            Next::Nothing => {}
        }
        self.begin_polls(now_us);
    }

    fn leave(&mut self, index: u32, outcome: Outcome, now_us: u64) {
        let buyer = &mut self.buyers[index as usize];
        if matches!(buyer.stage, Stage::Done | Stage::Leaving) {
            return;
        }
        buyer.parting = outcome;
        if buyer.place.is_none() || self.load.leave_within.is_zero() {
            return self.end(index, outcome, now_us);
        }
        let mut world = World {
            load: &self.load,
            target: &self.target,
            seats: &mut self.seats,
            notes: &mut self.notes,
            started_ms: self.started_ms,
        };
        journey::before_leaving(buyer, now_us, &mut world);
        self.offer(index, Op::Leave, now_us, now_us);
    }

    fn end(&mut self, index: u32, outcome: Outcome, now_us: u64) {
        let buyer = &mut self.buyers[index as usize];
        if buyer.stage == Stage::Done {
            return;
        }
        self.under_way -= 1;
        buyer.booking = None;
        // Who has entered only keeps the place until the end of the run.
        let stays = outcome == Outcome::Entered && !self.draining;
        if !stays {
            buyer.place = None;
        }
        buyer.stage = Stage::Done;
        if buyer.twin_of.is_some() {
            return;
        }
        *self.people.ended.entry(outcome).or_default() += 1;
        if outcome == Outcome::Confirmed {
            let arrival = u64::from((buyer.member - self.load.shard.index) / self.load.shard.of);
            self.people
                .to_confirmed
                .record(now_us.saturating_sub(self.load.arrivals.due_us(arrival)));
        }
    }

    fn begin_polls(&mut self, now_us: u64) {
        if self.load.polls.is_none()
            || self.polls_from_us.is_some()
            || self.arrivals < self.load.arrivals.len()
        {
            return;
        }
        // Every journey has entered, or failed to.
        let answered =
            self.people.to_place.histogram.len() + self.people.ended.values().sum::<u64>();
        if answered >= self.people.arrived {
            self.polls_from_us = Some(now_us + 1_000);
            self.wake.notify_one();
        }
    }

    /// Whether every journey has come to its end.
    pub fn finished(&self) -> bool {
        self.arrivals >= self.load.arrivals.len() && self.under_way == 0
    }

    /// The end of the run: nobody new comes, nobody waits on, places are given up. What is already due
    /// is still sent and timed: to drop it would hide the worst latencies.
    pub fn wind_down(&mut self) {
        self.draining = true;
        let now_us = self.now_us();
        self.drained_from_us = Some(now_us);
        for Reverse((due_us, buyer, op)) in std::mem::take(&mut self.timers).into_sorted_vec() {
            self.redirect(buyer, Next::Ask(Op::ALL[usize::from(op)], due_us), now_us);
        }
        let stay = self.load.leave_within.is_zero();
        for index in 0..self.buyers.len() as u32 {
            let buyer = &mut self.buyers[index as usize];
            if buyer.place.is_none() || buyer.twin_of.is_some() {
                continue;
            }
            if buyer.stage == Stage::Done && !stay {
                buyer.parting = Outcome::Entered;
                let mut world = World {
                    load: &self.load,
                    target: &self.target,
                    seats: &mut self.seats,
                    notes: &mut self.notes,
                    started_ms: self.started_ms,
                };
                // From here on it may be another's: a shard that ends must not count it to its deadline.
                journey::note_outside(buyer, now_us, &mut world);
                self.offer(index, Op::Leave, now_us, now_us);
            } else if self.load.polls.is_some() {
                self.redirect(index, Next::Nothing, now_us);
            }
        }
    }

    fn redirect(&mut self, index: u32, next: Next, now_us: u64) {
        let buyer = &mut self.buyers[index as usize];
        if matches!(buyer.stage, Stage::Done | Stage::Leaving) {
            return;
        }
        let next = journey::wind_down(buyer, next, self.load.scenario);
        self.follow(index, next, now_us);
    }

    /// Whether nothing is in flight or due any more.
    pub fn quiet(&self) -> bool {
        self.stats.in_flight == 0
            && self.pools.iter().all(|pool| pool.ready.is_empty())
            && self.timers.is_empty()
    }

    /// Ends every journey that is still under way.
    pub fn cut_off(&mut self) {
        let now_us = self.now_us();
        for index in 0..self.buyers.len() {
            if self.buyers[index].stage != Stage::Done {
                let polled = self.load.scenario == Scenario::Poll && self.buyers[index].number != 0;
                self.end(
                    index as u32,
                    if polled {
                        Outcome::Polled
                    } else {
                        Outcome::Unfinished
                    },
                    now_us,
                );
            }
        }
    }

    pub fn lost(&mut self, job: Job, lost: &Lost, sent_us: Option<u64>) {
        self.done(job, Err(lost), sent_us);
    }
}
