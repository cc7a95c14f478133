//! A virtual buyer: what one person remembers, in about a hundred bytes.

use uuid::Uuid;

use super::args::PeopleArgs;
use super::values::Span;

/// Where a buyer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Has not come yet, or is on the way in.
    Coming,
    /// Has a place and waits.
    Waiting,
    /// Was told WORKING.
    Inside,
    /// Has confirmed a payment and waits for the order.
    Paid,
    /// Gives up the place on the way out.
    Leaving,
    Done,
}

/// How a journey ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// `enter`: has a place.
    Entered,
    /// `poll`: polled until the end.
    Polled,
    /// `hold`: held seats and gave them back.
    Held,
    Confirmed,
    /// Declined, and cancelled the order.
    Declined,
    WalkedAway,
    SoldOut,
    QueueFull,
    /// Not open, draining: the sale does not take buyers now.
    NotOpen,
    /// Every seat wanted was taken.
    NoSeats,
    SeatLimit,
    /// The turn ended before the buyer was done.
    Lapsed,
    HoldExpired,
    /// Paid, and the order came to another end than CONFIRMED.
    PaidNotConfirmed,
    /// An error that the buyer could not get over.
    Failed,
    Unfinished,
}

impl Outcome {
    pub fn name(self) -> &'static str {
        match self {
            Self::Entered => "entered",
            Self::Polled => "polled",
            Self::Held => "held",
            Self::Confirmed => "confirmed",
            Self::Declined => "declined",
            Self::WalkedAway => "walkedAway",
            Self::SoldOut => "soldOut",
            Self::QueueFull => "queueFull",
            Self::NotOpen => "notOpen",
            Self::NoSeats => "noSeats",
            Self::SeatLimit => "seatLimit",
            Self::Lapsed => "lapsed",
            Self::HoldExpired => "holdExpired",
            Self::PaidNotConfirmed => "paidNotConfirmed",
            Self::Failed => "failed",
            Self::Unfinished => "unfinished",
        }
    }
}

/// What a buyer will do beyond the plain journey, drawn once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    pub walks_away: Option<Walk>,
    pub declined: bool,
    /// After a declined card: another one, or give up.
    pub second_card: bool,
    pub comes_back: bool,
    pub two_tabs: bool,
    pub same_seat: bool,
    pub seats: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    WhileWaiting,
    OnceAdmitted,
    WithSeats,
}

/// Numbers that depend on the seed and the buyer only, never on the order of events:
/// SplitMix64, eight bytes of state. Nothing here needs to be unpredictable.
#[derive(Clone, Copy, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, buyer: u64) -> Self {
        let mut dice = Self(seed ^ buyer.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        dice.roll();
        dice
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn chance(&mut self, share: f64) -> bool {
        ((self.roll() >> 11) as f64) / ((1u64 << 53) as f64) < share
    }

    /// 0 to `n - 1`.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.roll()) * n.max(1) as u128) >> 64) as usize
    }

    pub fn span_us(&mut self, span: Span) -> u64 {
        let (least, most) = (span.least.as_micros() as u64, span.most.as_micros() as u64);
        least + self.below((most - least + 1) as usize) as u64
    }
}

impl Fate {
    pub fn draw(dice: &mut Dice, people: &PeopleArgs) -> Self {
        // Every draw is made, whatever the others gave, so that changing one share leaves the rest as it was.
        let walks = dice.chance(people.walk_away.0);
        let where_to = [Walk::WhileWaiting, Walk::OnceAdmitted, Walk::WithSeats][dice.below(3)];
        Self {
            walks_away: walks.then_some(where_to),
            declined: dice.chance(people.decline.0),
            second_card: dice.chance(0.5),
            comes_back: dice.chance(people.come_back.0),
            two_tabs: dice.chance(people.two_tabs.0),
            same_seat: dice.chance(people.same_seat.0),
            seats: people.seats.0
                + dice.below(usize::from(people.seats.1 - people.seats.0) + 1) as u8,
        }
    }
}

/// What a buyer holds and pays for; few have one at a time.
#[derive(Clone, Debug, Default)]
pub struct Booking {
    pub schedule: Uuid,
    pub wanted: Vec<Uuid>,
    pub order: Uuid,
    pub payment: Uuid,
    pub intent: String,
    pub client_secret: String,
    pub publishable_key: String,
    pub card_declined: bool,
}

#[derive(Debug)]
pub struct Buyer {
    /// Which member this is: the line of the token file.
    pub member: u32,
    /// For a second tab: the buyer whose place it must show.
    pub twin_of: Option<u32>,
    pub stage: Stage,
    pub fate: Fate,
    /// Tries of the present step.
    pub tries: u8,
    pub started: bool,
    pub came_back: bool,
    pub was_inside: bool,
    /// Where to go once the place is given up.
    pub parting: Outcome,
    pub poll_after_ms: u32,
    /// Last position told; never grows.
    pub position: u32,
    pub number: u64,
    pub dice: Dice,
    /// The newest queue token.
    pub place: Option<Box<[u8]>>,
    pub booking: Option<Box<Booking>>,
    /// Index of this buyer's admission among the notes for the audit.
    pub admission: Option<u32>,
}

impl Buyer {
    pub fn new(member: u32, seed: u64, people: &PeopleArgs) -> Self {
        let mut dice = Dice::new(seed, u64::from(member));
        let fate = Fate::draw(&mut dice, people);
        Self {
            member,
            twin_of: None,
            stage: Stage::Coming,
            fate,
            tries: 0,
            started: false,
            came_back: false,
            was_inside: false,
            parting: Outcome::Unfinished,
            poll_after_ms: 0,
            position: 0,
            number: 0,
            dice,
            place: None,
            booking: None,
            admission: None,
        }
    }

    /// Keeps the newest token; in place where it fits, since it nearly always has the same length.
    pub fn keep_token(&mut self, token: &str) {
        match &mut self.place {
            Some(place) if place.len() == token.len() => place.copy_from_slice(token.as_bytes()),
            place => *place = Some(token.as_bytes().into()),
        }
    }

    /// Forgets the place, for a new one.
    pub fn forget_place(&mut self) {
        (self.place, self.number, self.position, self.admission) = (None, 0, 0, None);
        (self.came_back, self.was_inside, self.stage) = (false, false, Stage::Coming);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cmd::loadgen::values::Share;

    fn people() -> PeopleArgs {
        PeopleArgs {
            think: Span {
                least: std::time::Duration::ZERO,
                most: std::time::Duration::ZERO,
            },
            seats: (1, 4),
            walk_away: Share(0.3),
            decline: Share(0.0),
            come_back: Share(1.0),
            two_tabs: Share(0.0),
            same_seat: Share(0.5),
        }
    }

    #[test]
    fn a_seed_fixes_every_fate() {
        let fates = |seed| {
            (0..1_000)
                .map(|m| Buyer::new(m, seed, &people()).fate)
                .collect::<Vec<_>>()
        };
        assert_eq!(fates(7), fates(7));
        assert_ne!(fates(7), fates(8));
        let walkers = fates(7).iter().filter(|f| f.walks_away.is_some()).count();
        assert!((240..=360).contains(&walkers), "{walkers}");
        assert!(
            fates(7)
                .iter()
                .all(|f| f.comes_back && !f.declined && (1..=4).contains(&f.seats))
        );
    }

    #[test]
    fn changing_one_share_leaves_the_other_draws() {
        let mut other = people();
        other.decline = Share(1.0);
        for member in 0..200 {
            let (a, b) = (
                Buyer::new(member, 1, &people()).fate,
                Buyer::new(member, 1, &other).fate,
            );
            assert_eq!(
                (a.walks_away, a.same_seat, a.seats),
                (b.walks_away, b.same_seat, b.seats)
            );
        }
    }

    #[test]
    fn a_million_of_them_are_small() {
        assert!(size_of::<Buyer>() <= 112, "{}", size_of::<Buyer>());
    }
}
