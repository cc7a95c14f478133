//! What a round does, drawn from its seed alone: who dies when, and for how long.

use std::time::Duration;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

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

/// Who is struck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Redis,
    Postgres,
    Kafka,
    /// A place in [`ROLES`].
    Role(usize),
    /// The one process of [`Shape::All`].
    Server,
}

impl Victim {
    pub fn name(self) -> &'static str {
        match self {
            Self::Redis => "redis",
            Self::Postgres => "postgres",
            Self::Kafka => "kafka",
            Self::Role(at) => ROLES[at],
            Self::Server => "server",
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
}

impl Shape {
    fn victims(self) -> Vec<Victim> {
        let stores = [Victim::Redis, Victim::Postgres];
        match self {
            Self::Apart => stores
                .into_iter()
                .chain([Victim::Kafka])
                .chain((0..ROLES.len()).map(Victim::Role))
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
        .filter(|victim| !matches!(victim, Victim::Role(_)))
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
            blow: blow(victim, &mut rng),
        })
        .collect()
}

fn blow(victim: Victim, rng: &mut ChaCha8Rng) -> Blow {
    let down = Duration::from_millis(rng.random_range(0..1_500));
    match victim {
        // Stopping PostgreSQL's first process stops none of those that work, and the broker is
        // slow enough to come back as it is.
        Victim::Postgres | Victim::Kafka => Blow::Kill(down),
        Victim::Redis | Victim::Role(_) | Victim::Server if rng.random_bool(0.2) => {
            Blow::Pause(Duration::from_millis(rng.random_range(500..3_000)))
        }
        Victim::Redis | Victim::Role(_) | Victim::Server => Blow::Kill(down),
    }
}

#[test]
fn the_same_seed_strikes_the_same_and_every_store_dies() {
    let size = Size {
        buyers: 1,
        storm: Duration::from_secs(10),
        strikes: 8,
        patience: Duration::ZERO,
    };
    for (shape, stores) in [(Shape::Apart, 3), (Shape::All, 2)] {
        for seed in 0..50 {
            let (once, again) = (strikes(shape, size, seed), strikes(shape, size, seed));
            assert_eq!(format!("{once:?}"), format!("{again:?}"));
            assert!(once.is_sorted_by_key(|strike| strike.at));
            let mut hit: Vec<Victim> = once.iter().map(|strike| strike.victim).collect();
            hit.retain(|victim| !matches!(victim, Victim::Role(_) | Victim::Server));
            hit.sort_unstable();
            hit.dedup();
            assert_eq!(hit.len(), stores, "{shape:?} {seed}");
        }
    }
}
