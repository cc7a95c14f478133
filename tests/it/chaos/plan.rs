//! What a round does, drawn from its seed alone: who dies when, and for how long.

use std::time::Duration;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::harness::partition::Cut;

/// How the sale is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Every role in a process of its own; events by Kafka.
    Apart,
    /// One `serve all` on its embedded stores; events inside the process.
    All,
}

/// Roles that die apart. The sandbox stands for Stripe, which restarts too.
pub const ROLES: [&str; 7] = [
    "stripe-sandbox",
    "users",
    "performances",
    "queue",
    "reservations",
    "payments",
    "gateway",
];

/// Links that can be cut, apart: who, and to what. `*` is everybody's way to a role.
pub const LINKS: [(&str, &str); 11] = [
    ("queue", "redis"),
    ("queue", "postgres"),
    ("reservations", "redis"),
    ("reservations", "postgres"),
    ("payments", "postgres"),
    ("performances", "postgres"),
    ("users", "postgres"),
    ("*", "queue"),
    ("*", "reservations"),
    ("*", "payments"),
    ("*", "performances"),
];

/// Who is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Redis,
    Postgres,
    Kafka,
    /// A place in [`ROLES`].
    Role(usize),
    /// A place in [`LINKS`].
    Link(usize),
    /// The one process of [`Shape::All`].
    Server,
}

impl Victim {
    pub fn name(self) -> String {
        match self {
            Self::Redis => "redis".to_owned(),
            Self::Postgres => "postgres".to_owned(),
            Self::Kafka => "kafka".to_owned(),
            Self::Role(at) => ROLES[at].to_owned(),
            Self::Link(at) => format!("{} to {}", LINKS[at].0, LINKS[at].1),
            Self::Server => "server".to_owned(),
        }
    }
}

/// What is done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blow {
    /// SIGKILL; started again after so long.
    Kill(Duration),
    /// SIGSTOP for so long: it goes on later as if nothing had been, with what it knew.
    Pause(Duration),
    /// Nothing passes for so long, one way or both, and nobody is told.
    Cut(Duration, Cut),
}

#[derive(Clone, Copy, Debug)]
pub struct Strike {
    /// Since the first buyer came.
    pub at: Duration,
    pub victim: Victim,
    pub blow: Blow,
}

/// The size of a round.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub buyers: usize,
    /// How long strikes fall and buyers come.
    pub storm: Duration,
    pub strikes: usize,
    /// How long a journey may take.
    pub patience: Duration,
    /// The longest freeze and the longest partition.
    pub standstill: Duration,
}

impl Shape {
    fn victims(self) -> Vec<Victim> {
        let stores = [Victim::Redis, Victim::Postgres];
        match self {
            Self::Apart => stores
                .into_iter()
                .chain([Victim::Kafka])
                .chain((0..ROLES.len()).map(Victim::Role))
                .chain((0..LINKS.len()).map(Victim::Link))
                .collect(),
            Self::All => stores.into_iter().chain([Victim::Server]).collect(),
        }
    }
}

/// Strikes in the order of their time. Every store dies once, and what holds money is preferred.
pub fn strikes(shape: Shape, size: Size, seed: u64) -> Vec<Strike> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let all = shape.victims();
    let mut victims: Vec<Victim> = (all.iter().copied())
        .filter(|victim| !matches!(victim, Victim::Role(_) | Victim::Link(_)))
        .chain(
            ["payments", "reservations"]
                .iter()
                .filter_map(|name| all.iter().find(|one| one.name() == *name))
                .copied(),
        )
        .collect();
    while victims.len() < size.strikes {
        victims.extend(all.choose(&mut rng));
    }
    victims.truncate(size.strikes);
    victims.shuffle(&mut rng);
    let mut times: Vec<f64> = (0..victims.len())
        .map(|_| rng.random_range(0.2..1.0))
        .collect();
    times.sort_by(f64::total_cmp);
    (victims.into_iter().zip(times))
        .map(|(victim, at)| Strike {
            at: size.storm.mul_f64(at),
            victim,
            blow: blow(victim, size.standstill, &mut rng),
        })
        .collect()
}

fn blow(victim: Victim, longest: Duration, rng: &mut ChaCha8Rng) -> Blow {
    // As many short ones as long ones: from half a second on, in powers.
    let span = (longest.as_secs_f64() / 0.5).ln();
    let still = Duration::from_secs_f64(0.5 * (rng.random_range(0.0..1.0) * span).exp());
    let down = Duration::from_millis(rng.random_range(0..1_500));
    match victim {
        Victim::Link(_) => {
            let both = rng.random_bool(0.6);
            let one = rng.random_bool(0.5);
            let cut = Cut {
                to_server: both || one,
                to_client: both || !one,
                forget: rng.random_bool(0.4),
            };
            Blow::Cut(still, cut)
        }
        Victim::Redis | Victim::Postgres | Victim::Kafka | Victim::Role(_) | Victim::Server
            if rng.random_bool(0.35) =>
        {
            Blow::Pause(still)
        }
        Victim::Redis | Victim::Postgres | Victim::Kafka | Victim::Role(_) | Victim::Server => {
            Blow::Kill(down)
        }
    }
}

#[test]
fn the_same_seed_strikes_the_same_and_every_store_dies() {
    let size = Size {
        buyers: 1,
        storm: Duration::from_secs(10),
        strikes: 8,
        patience: Duration::ZERO,
        standstill: Duration::from_secs(20),
    };
    for (shape, stores) in [(Shape::Apart, 3), (Shape::All, 2)] {
        for seed in 0..50 {
            let (once, again) = (strikes(shape, size, seed), strikes(shape, size, seed));
            assert_eq!(format!("{once:?}"), format!("{again:?}"));
            assert!(once.is_sorted_by_key(|strike| strike.at));
            let mut hit: Vec<Victim> = once.iter().map(|strike| strike.victim).collect();
            hit.retain(|victim| {
                !matches!(victim, Victim::Role(_) | Victim::Link(_) | Victim::Server)
            });
            hit.sort_unstable();
            hit.dedup();
            assert_eq!(hit.len(), stores, "{shape:?} {seed}");
        }
    }
}
