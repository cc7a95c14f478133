//! The rules of the pre-queue and its draw: a registration by arrival, a number by lot.

use std::collections::BTreeMap;

use ticketping::serve::queue::draw::Permutation;

/// When the pre-queue opens, and when booking does; what the lots are drawn with.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    pub registers: i64,
    pub books: i64,
    pub seed: u8,
}

/// One step of the draw, as an instance writes it.
#[derive(Clone, Debug)]
pub struct Step {
    pub next: u64,
    pub indexes: Vec<u64>,
}

#[derive(Default)]
pub struct Draw {
    /// None: there is no pre-queue, and booking is open.
    pub opening: Option<Opening>,
    /// Who is registered, by index.
    pub registered: BTreeMap<u64, u8>,
    /// Indexes are above the first of these, and up to the second, once they are frozen.
    pub first: Option<u64>,
    pub frozen: Option<u64>,
    /// The lowest number that is not written yet.
    pub next: u64,
    /// The two bounds, as Postgres has them: they survive every loss.
    noted: Option<u64>,
    published: Option<(u64, u64)>,
    /// Redis has the seed: people are told their numbers.
    told: bool,
}

impl Draw {
    pub fn new(opening: Option<Opening>) -> Self {
        Self {
            opening,
            ..Self::default()
        }
    }

    pub fn seed(&self) -> [u8; 32] {
        [self.opening.map_or(0, |o| o.seed); 32]
    }

    pub fn books(&self, now: i64) -> bool {
        self.opening.is_none_or(|o| now >= o.books)
    }

    pub fn registers(&self, now: i64) -> bool {
        self.opening.is_some_and(|o| now >= o.registers) && !self.books(now)
    }

    pub fn register(&mut self, index: u64, person: u8) {
        self.first = Some(self.first.unwrap_or(index - 1));
        self.registered.insert(index, person);
    }

    pub fn index_of(&self, person: u8) -> Option<u64> {
        let found = self.registered.iter().find(|(_, p)| **p == person);
        found.map(|(index, _)| *index)
    }

    pub fn forget(&mut self, person: u8) {
        self.registered.retain(|_, p| *p != person);
    }

    /// Whoever has entered by now is drawn, and nobody else.
    pub fn freeze(&mut self, now: i64, last: u64) {
        if let Some(first) = self.first
            && self.frozen.is_none()
            && self.books(now)
        {
            (self.frozen, self.next) = (Some(last), first + 1);
        }
    }

    /// Nobody above it is admitted yet.
    pub fn written(&self) -> u64 {
        match self.frozen {
            Some(last) if self.next <= last => self.next - 1,
            Some(_) | None => u64::MAX,
        }
    }

    /// What the draw goes over, while nobody is told the seed.
    pub fn untold(&self) -> Option<(u64, Option<u64>)> {
        let first = self.first.filter(|_| !self.told)?;
        Some((first, self.frozen))
    }

    /// Postgres knows what the draw goes over.
    pub fn note(&mut self) {
        self.noted = self.first;
        if let (Some(first), Some(last)) = (self.first, self.frozen) {
            self.published = Some((first, last));
        }
    }

    /// The number that a registration has drawn, once people are told.
    pub fn lot(&self, index: u64) -> Option<u64> {
        let (first, last) = (self.first?, self.frozen?);
        self.told.then(|| self.number(first, last, index))
    }

    /// The registration that has drawn a number, once people are told.
    pub fn drawn_by(&self, number: u64) -> Option<u64> {
        let (first, last) = (self.first?, self.frozen?);
        let drawn = self.told && (first + 1..=last).contains(&number);
        drawn.then(|| first + 1 + self.permutation(first, last).invert(number - first - 1))
    }

    fn permutation(&self, first: u64, last: u64) -> Permutation {
        Permutation::new(&self.seed(), last - first)
    }

    /// Exactly as published: by the keyed permutation of the indexes.
    fn number(&self, first: u64, last: u64, index: u64) -> u64 {
        first + 1 + self.permutation(first, last).permute(index - first - 1)
    }

    /// The bounds are published, and then the next `size` numbers are written, lowest first:
    /// what an instance writes, and who has which number by it.
    pub fn step(&mut self, size: u64) -> Option<(Step, Vec<(u64, u8)>)> {
        let (first, last) = (self.first?, self.frozen?);
        if self.next > last {
            return None;
        }
        self.published = Some((first, last));
        if size == 0 {
            return None;
        }
        self.told = true;
        let numbers = self.next..=last.min(self.next + size - 1);
        let permutation = self.permutation(first, last);
        let place = |number| first + 1 + permutation.invert(number - first - 1);
        let step = Step {
            next: self.next,
            indexes: numbers.clone().map(place).collect(),
        };
        let drawn: Vec<(u64, u64, u8)> = self
            .registered
            .iter()
            .map(|(index, person)| (*index, self.number(first, last, *index), *person))
            .filter(|(_, number, _)| numbers.contains(number))
            .collect();
        for (index, _, _) in &drawn {
            self.registered.remove(index);
        }
        self.next = numbers.end() + 1;
        Some((step, drawn.into_iter().map(|(_, n, p)| (n, p)).collect()))
    }

    /// Everything in Redis is gone. What was published is as good as written: nobody's number
    /// is to come any more, everybody comes back with it.
    pub fn lose(&mut self) {
        self.registered.clear();
        (self.first, self.frozen, self.told) = (self.noted, None, false);
        if let Some((first, last)) = self.published {
            (self.first, self.frozen, self.told) = (Some(first), Some(last), true);
            self.next = last + 1;
        }
    }
}
