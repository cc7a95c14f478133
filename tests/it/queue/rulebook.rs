//! The rules of the waiting room, as design says them, with nothing of how they are kept.

use std::collections::{BTreeMap, HashMap, HashSet};

use ticketping::{
    platform::place::Turn as Bound,
    serve::queue::scripts::{Code, May},
};

use super::draw_rules::{Draw, Step};

pub const CLAIM_MS: i64 = 30_000;
pub const WORKING_MS: i64 = 50_000;
/// How long a hold lasts; nobody holds here, but the bounds of a turn follow from it.
pub const HOLD_MS: i64 = 20_000;
/// How long people are put back before anybody new is admitted: over after any jump.
pub const RECOVER_MS: i64 = 15_000;
/// Waiting places come back for so long when the last seat goes.
pub const SUSPENDED_MS: i64 = 600_000;

/// A token, as its owner has it: the number, and until when it works (by the model, by Redis).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Token {
    pub number: u64,
    /// Given before the draw: the number is a registration's index.
    pub registered: bool,
    pub works: Option<(i64, Bound)>,
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
    /// The script's clock, and the clock of Redis, which can be set back.
    pub now: i64,
    pub wall: i64,
    /// Since when the waiting places are suspended.
    pub suspended_at: Option<i64>,
    pub last: u64,
    pub ceiling: u64,
    pub draw: Draw,
    pub waiting: BTreeMap<u64, u8>,
    pub working: HashMap<u8, Turn>,
    /// Turns that wait at the head of the line for a slot, after a loss: number, and until when.
    pub returned: HashMap<u8, (u64, i64)>,
    /// Numbers whose turn has ended, as Postgres notes them; registrations as negative ones.
    pub over: HashSet<i64>,
    /// Those that wait for it in Redis.
    pub unnoted: Vec<i64>,
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
        let unnoted = &mut self.unnoted;
        self.working.retain(|_, turn| {
            let runs = turn.until > now;
            if !runs {
                unnoted.push(signed(turn.number));
            }
            runs
        });
    }

    /// What has ended reaches Postgres.
    pub fn note(&mut self) {
        self.over.extend(self.unnoted.drain(..));
    }

    /// Time passes; after the clock was set back, a tenth slower until both agree again.
    pub fn pass(&mut self, ms: i64) {
        let ahead = self.now - self.wall;
        self.wall += ms;
        self.now += ms - (ms / 10).min(ahead);
    }

    pub fn step_back(&mut self, ms: i64) {
        self.wall -= ms;
    }

    /// Nobody is served meanwhile: no deadline comes nearer.
    pub fn stall(&mut self, ms: i64) {
        let before = self.now;
        self.pass(ms);
        let lost = self.now - before;
        for turn in self.working.values_mut() {
            turn.until += lost;
        }
        if self.recover_until > 0 {
            self.recover_until += lost;
        }
        self.suspended_at = self.suspended_at.map(|at| at + lost);
    }

    /// When the last seat goes, places are suspended; after ten minutes they have ended.
    fn suspend(&mut self) {
        if self.remaining > 0 {
            self.suspended_at = None;
            return;
        }
        self.suspended_at.get_or_insert(self.now);
        if self.is_over() {
            self.waiting.clear();
        }
    }

    fn is_over(&self) -> bool {
        let suspended = self.suspended_at.filter(|_| self.remaining == 0);
        suspended.is_some_and(|at| self.now >= at + SUSPENDED_MS)
    }

    pub fn settle(&mut self) {
        self.expire();
        self.suspend();
        if self.remaining == 0 {
            return;
        }
        if self.paused || self.now < self.recover_until || !self.draw.books(self.wall) {
            return;
        }
        let written = self.draw.written();
        for _ in 0..self.room() {
            let next = self.waiting.first_entry().filter(|e| *e.key() <= written);
            let Some((number, person)) = next.map(|e| e.remove_entry()) else {
                return;
            };
            if self.limited {
                self.credit -= 1.0;
            }
            // A turn that began before a loss goes on; it does not begin anew.
            let begun = self.returned.remove(&person).filter(|(n, _)| *n == number);
            let turn = Turn {
                number,
                here: begun.is_some(),
                until: begun.map_or(self.now + CLAIM_MS, |(_, until)| until),
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

    /// What each is told.
    pub fn enter(&mut self, people: &[u8]) -> Vec<Code> {
        self.expire();
        self.suspend();
        let codes: Vec<Code> = people.iter().map(|&p| self.line_up(p)).collect();
        self.settle();
        let told = |(&person, code): (&u8, Code)| self.told(person, code);
        people.iter().zip(codes).map(told).collect()
    }

    fn told(&mut self, person: u8, code: Code) -> Code {
        self.arrive(person);
        if let Some(turn) = self.working.get(&person) {
            if turn.until > self.now {
                return Code::Working;
            }
            self.settle();
        }
        match code {
            Code::Waiting if self.number_of(person).is_none() => Code::Ended,
            code => code,
        }
    }

    /// Who has a place keeps it; anybody else gets one at the end, where there is one to get.
    fn line_up(&mut self, person: u8) -> Code {
        if self.waiting.values().any(|p| *p == person) && self.remaining == 0 {
            return Code::SoldOut;
        }
        if self.number_of(person).is_some() {
            return Code::Waiting;
        }
        if self.draw.index_of(person).is_some() {
            return Code::Registered;
        }
        let registers = self.draw.registers(self.wall);
        if !registers && !self.draw.books(self.wall) {
            return Code::NotOpen;
        }
        if self.remaining == 0 {
            return Code::SoldOut;
        }
        if self.last >= self.ceiling {
            return Code::NoNumber;
        }
        self.last += 1;
        match registers {
            true => {
                self.draw.register(self.last, person);
                Code::Registered
            }
            false => {
                self.waiting.insert(self.last, person);
                Code::Waiting
            }
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
            self.unnoted.push(signed(number));
        } else if self.waiting.get(&number) == Some(&person) {
            self.waiting.remove(&number);
            self.returned.remove(&person);
            self.unnoted.push(signed(number));
        }
        self.settle();
    }

    /// Given up, known to Postgres also where it stands nowhere. A registration that is not
    /// drawn yet leaves a hole.
    pub fn leave(&mut self, person: u8, token: Token) {
        for name in self.names(token) {
            self.over.insert(name);
            let index = name.unsigned_abs();
            if name < 0 && self.draw.registered.get(&index) == Some(&person) {
                self.draw.registered.remove(&index);
            }
        }
        match self.lot(token) {
            Some(number) => self.end(person, number),
            None => self.settle(),
        }
    }

    /// The draw goes on by so many numbers; what an instance writes for that.
    pub fn draw_on(&mut self, size: u64) -> Option<Step> {
        let (step, drawn) = self.draw.step(size)?;
        for (number, person) in drawn {
            self.back.insert(number);
            let other = self.waiting.insert(number, person);
            assert_eq!(other, None, "number {number} is given twice");
        }
        self.settle();
        Some(step)
    }

    /// Everything in Redis is gone.
    pub fn lose(&mut self, base: u64, ceiling: u64) {
        self.draw.lose();
        self.ceiling = ceiling;
        self.waiting.clear();
        self.working.clear();
        self.returned.clear();
        self.back.clear();
        self.unnoted.clear();
        self.last = base;
        // The new state knows nothing of a clock that was set back.
        self.now = self.wall;
        self.suspended_at = None;
        self.recover_until = self.now + RECOVER_MS;
        (self.credit, self.credit_at) = (0.0, None);
    }

    /// Whether the role lets the token of an earlier epoch come back at all.
    pub fn may(&self, token: Token) -> May {
        let names = self.names(token);
        match token.works {
            _ if names.iter().any(|name| self.over.contains(name)) => May::Never,
            Some((until, _)) if until + 2 * HOLD_MS <= self.now => May::Never,
            Some((until, _)) if until <= self.now => May::IfThere,
            Some(_) | None => May::Yes,
        }
    }

    /// The number that a token stands for by now; None: a registration's, not told yet.
    pub fn lot(&self, token: Token) -> Option<u64> {
        match token.registered {
            true => self.draw.lot(token.number),
            false => Some(token.number),
        }
    }

    /// What Redis and Postgres call a place: its number, and its registration as a negative one.
    pub fn names(&self, token: Token) -> Vec<i64> {
        let index = match token.registered {
            true => Some(token.number),
            false => self.draw.drawn_by(token.number),
        };
        let number = self.lot(token).map(signed);
        number
            .into_iter()
            .chain(index.map(|i| -signed(i)))
            .collect()
    }

    /// Together, by tokens of an earlier epoch; what each is told.
    pub fn come_back(&mut self, asked: &[(u8, Token, May)]) -> Vec<Code> {
        self.suspend();
        let told = |&(person, token, may): &_| self.come_back_one(person, token, may);
        let codes = asked.iter().map(told).collect();
        self.settle();
        codes
    }

    fn come_back_one(&mut self, person: u8, token: Token, may: May) -> Code {
        let gone = match self.remaining {
            0 => Code::SoldOut,
            _ => Code::Ended,
        };
        if may == May::Never {
            return gone;
        }
        let Some(number) = self.lot(token) else {
            return self.register_again(person, token.number, gone);
        };
        let had = token.works.map(|(until, _)| until);
        let proof = had.filter(|u| *u > self.now);
        let may = may == May::Yes && (!self.is_over() || proof.is_some());
        let code = self.put_back(person, number, proof, may);
        if let (Code::Waiting, Some(until)) = (code, had) {
            self.returned.insert(person, (number, until));
        }
        match code {
            Code::Ended if !may => gone,
            // It stands there, and says why it does not move.
            Code::Waiting if may && self.remaining == 0 => Code::SoldOut,
            code => code,
        }
    }

    fn register_again(&mut self, person: u8, index: u64, gone: Code) -> Code {
        // Who entered anew meanwhile keeps that registration.
        if self.draw.index_of(person).is_some() {
            return Code::Registered;
        }
        if self.draw.frozen.is_some() {
            return Code::Drawing;
        }
        if self.is_over() {
            return gone;
        }
        self.draw.register(index, person);
        Code::Registered
    }

    fn put_back(&mut self, person: u8, number: u64, proof: Option<i64>, may: bool) -> Code {
        if let Some(turn) = self.working.get(&person).copied() {
            let runs = turn.until > self.now;
            if runs && turn.number == number {
                self.arrive(person);
                return Code::Working;
            }
            if !runs {
                self.settle();
            }
            if runs || turn.number == number {
                return Code::Ended;
            }
        }
        // Who entered anew meanwhile keeps the better of the two numbers.
        if may && self.number_of(person).is_some_and(|other| other < number) {
            return Code::Ended;
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
        self.draw.forget(person);
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

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap()
}
