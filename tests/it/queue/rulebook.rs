//! The rules of the waiting room, as design says them, with nothing of how they are kept.

use std::collections::{BTreeMap, HashMap, HashSet};

use ticketping::serve::queue::scripts::{Code, May};

pub const CLAIM_MS: i64 = 30_000;
pub const WORKING_MS: i64 = 50_000;
/// How long people are put back before anybody new is admitted: over after any jump.
pub const RECOVER_MS: i64 = 15_000;

/// A token, as its owner has it: the number, and until when it works (by the model, by Redis).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    pub number: u64,
    pub works: Option<(i64, u64)>,
    pub epoch: u32,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    pub number: u64,
    pub here: bool,
    pub until: i64,
}

/// The rules, as design says them, with nothing of how they are kept.
#[derive(Default)]
pub struct Model {
    pub limit: usize,
    pub paused: bool,
    pub remaining: i64,
    pub now: i64,
    pub last: u64,
    pub waiting: BTreeMap<u64, u8>,
    pub working: HashMap<u8, Turn>,
    /// Numbers whose turn has ended, as Postgres notes them.
    pub over: HashSet<u64>,
    /// Numbers put back in this epoch.
    pub back: HashSet<u64>,
    pub recover_until: i64,
    pub limited: bool,
    pub credit: f64,
    pub credit_at: Option<i64>,
}

impl Model {
    fn expire(&mut self) {
        let now = self.now;
        let over = &mut self.over;
        self.working.retain(|_, turn| {
            let runs = turn.until > now;
            if !runs {
                over.insert(turn.number);
            }
            runs
        });
    }

    pub fn settle(&mut self) {
        self.expire();
        if self.remaining == 0 {
            self.waiting.clear();
            return;
        }
        if self.paused || self.now < self.recover_until {
            return;
        }
        for _ in 0..self.room() {
            let Some((number, person)) = self.waiting.pop_first() else {
                return;
            };
            if self.limited {
                self.credit -= 1.0;
            }
            let turn = Turn {
                number,
                here: false,
                until: self.now + CLAIM_MS,
            };
            self.working.insert(person, turn);
        }
    }

    /// At most one admission is saved up, however long nobody came.
    fn room(&mut self) -> usize {
        let room = self.limit.saturating_sub(self.working.len());
        if !self.limited || room == 0 {
            return room;
        }
        let earned = (self.now - self.credit_at.unwrap_or(self.now)) as f64 / 10_000.0;
        self.credit = (self.credit + earned).min(1.0);
        self.credit_at = Some(self.now);
        room.min(self.credit as usize)
    }

    pub fn number_of(&self, person: u8) -> Option<u64> {
        let waits = self.waiting.iter().find(|(_, p)| **p == person);
        waits
            .map(|(n, _)| *n)
            .or_else(|| self.working.get(&person).map(|t| t.number))
    }

    pub fn enter(&mut self, people: &[u8]) {
        self.expire();
        if self.remaining == 0 {
            self.waiting.clear();
        }
        for &person in people {
            if self.number_of(person).is_none() && self.remaining > 0 {
                self.last += 1;
                self.waiting.insert(self.last, person);
            }
        }
        self.settle();
        for &person in people {
            self.arrive(person);
        }
    }

    fn arrive(&mut self, person: u8) {
        let now = self.now;
        if let Some(turn) = self.working.get_mut(&person)
            && !turn.here
        {
            turn.here = true;
            turn.until = now + WORKING_MS;
        }
    }

    pub fn check_in(&mut self, person: u8, number: u64) -> &'static str {
        if let Some(turn) = self.working.get(&person)
            && turn.number == number
        {
            if turn.until <= self.now {
                self.settle();
                return "ended";
            }
            self.arrive(person);
            return "working";
        }
        match self.waiting.get(&number) {
            Some(&p) if p == person => "waiting",
            _ => "ended",
        }
    }

    pub fn end(&mut self, person: u8, number: u64) {
        if self
            .working
            .get(&person)
            .is_some_and(|t| t.number == number)
        {
            self.working.remove(&person);
            self.over.insert(number);
        } else if self.waiting.get(&number) == Some(&person) {
            self.waiting.remove(&number);
            self.over.insert(number);
        }
        self.settle();
    }

    /// Everything in Redis is gone.
    pub fn lose(&mut self, base: u64) {
        self.waiting.clear();
        self.working.clear();
        self.back.clear();
        self.last = base;
        self.recover_until = self.now + RECOVER_MS;
        (self.credit, self.credit_at) = (0.0, None);
    }

    /// Whether the role lets the token of an earlier epoch come back at all.
    pub fn may(&self, token: Token) -> May {
        match token.works {
            _ if self.over.contains(&token.number) => May::Never,
            Some((until, _)) if until <= self.now => May::IfThere,
            Some(_) | None => May::Yes,
        }
    }

    pub fn come_back(&mut self, person: u8, token: Token) -> Code {
        if self.remaining == 0 {
            self.waiting.clear();
        }
        let proof = token
            .works
            .map(|(until, _)| until)
            .filter(|u| *u > self.now);
        let may = self.may(token) == May::Yes && (self.remaining > 0 || proof.is_some());
        let code = self.put_back(person, token.number, proof, may);
        match code {
            Code::Ended if !may && self.remaining == 0 => Code::SoldOut,
            code => code,
        }
    }

    fn put_back(&mut self, person: u8, number: u64, proof: Option<i64>, may: bool) -> Code {
        if let Some(turn) = self.working.get(&person).copied() {
            if turn.until <= self.now || turn.number != number {
                self.settle();
                return Code::Ended;
            }
            self.arrive(person);
            return Code::Working;
        }
        let stands = self.waiting.get(&number) == Some(&person);
        let proof = proof.filter(|_| self.working.len() < self.limit);
        match (stands, may) {
            (true, false) => return Code::Waiting,
            (true, true) if proof.is_none() => return Code::Waiting,
            (false, false) => return Code::Ended,
            (true | false, true) => {}
        }
        if !self.back.insert(number) && !stands {
            return Code::Ended;
        }
        self.waiting.retain(|_, p| *p != person);
        match proof {
            Some(until) => {
                let turn = Turn {
                    number,
                    here: true,
                    until,
                };
                self.working.insert(person, turn);
                Code::Working
            }
            None => {
                self.waiting.insert(number, person);
                Code::Waiting
            }
        }
    }
}
