//! What a run will do, once flags, preset and target are known. Fixed from then on.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use url::Url;
use uuid::Uuid;

use super::args::{Args, PeopleArgs, Preset, Scenario};
use super::expect::Objective;
use super::schedule::{Schedule, Shape};
use super::values::{Rate, Shard};

/// Arrivals and duration as asked for; the target adds the rest.
#[derive(Clone, Debug)]
pub struct Load {
    pub scenario: Scenario,
    pub preset: Option<Preset>,
    pub seed: u64,
    pub shard: Shard,
    /// When each buyer comes.
    pub arrivals: Schedule,
    /// `poll --rate`: when each poll is due, counted from when everyone is in the queue.
    pub polls: Option<Schedule>,
    /// Arrivals and polls end here. None: when every buyer is done.
    pub duration: Option<Duration>,
    /// Latencies of what is due earlier are in the series only.
    pub warm_up: Duration,
    pub poll_every: Option<Duration>,
    pub leave_within: Duration,
    pub start_at: Option<DateTime<Utc>>,
    pub people: PeopleArgs,
    pub expect: Vec<Objective>,
    pub timeout: Duration,
    pub give_up_after: Duration,
    pub connections: usize,
    pub http2: bool,
}

/// Where the buyers go.
#[derive(Clone, Debug)]
pub struct Target {
    pub url: Url,
    pub stripe_url: Option<Url>,
    pub performance: Uuid,
    pub title: String,
    pub schedules: Vec<Uuid>,
    /// Known where the server's data directory is at hand.
    pub stores: Option<Stores>,
}

/// What stands behind the server.
#[derive(Clone, Debug)]
pub struct Stores {
    pub data_dir: PathBuf,
    pub redis_url: String,
    /// The certificate authorities that it is checked against, where they are not the public ones.
    pub redis_ca: Option<PathBuf>,
    /// What its keys begin with.
    pub redis_prefix: String,
}

/// Requests in flight on one HTTP/2 connection: what servers commonly allow.
pub const STREAMS_PER_CONNECTION: usize = 100;

/// Without any word about how many: enough to see something, few enough for a laptop.
const USERS_DEFAULT: u64 = 100;
const POLLERS_DEFAULT: u64 = 1_000;

impl Load {
    /// `Err` is a usage error, in one sentence.
    pub fn from_args(args: &Args) -> Result<Self, String> {
        let load = &args.load;
        let scenario = match (args.scenario, load.preset) {
            (Some(Scenario::Report), _) => {
                return Err("`report` merges reports; it makes no load".into());
            }
            (Some(scenario), _) => scenario,
            (None, Some(Preset::Reference)) => Scenario::Poll,
            (None, None) => {
                return Err("say what the buyers do: surge, enter, poll, hold or checkout".into());
            }
        };
        let (mut users, mut duration, mut poll_every) =
            (load.users.map(u64::from), load.duration, load.poll_every);
        if load.preset == Some(Preset::Reference) {
            if load.rate.is_none() {
                users = users.or(Some(10_000));
            }
            duration = duration.or(Some(Duration::from_secs(15 * 60)));
            poll_every = poll_every.or(Some(Duration::from_secs(3)));
        }
        if poll_every.is_some_and(|every| every.is_zero()) {
            return Err("--poll-every must be above zero".into());
        }
        if duration.is_some_and(|duration| duration.is_zero()) {
            return Err("--duration must be above zero".into());
        }
        if duration.is_some_and(|duration| load.warm_up >= duration) {
            return Err(
                "--warm-up must be shorter than --duration: nothing would be measured".into(),
            );
        }
        let by_rate = load.rate.is_some();
        if duration.is_none() && (scenario == Scenario::Poll || (by_rate && users.is_none())) {
            duration = Some(Duration::from_secs(30));
        }
        let (arrivals, polls) = arrivals(scenario, args, users, duration);
        if arrivals.is_empty() {
            return Err("nobody arrives: --rate × --duration, or this --shard of --users, is less than one buyer".into());
        }
        let connections = load_connections(args);
        Ok(Self {
            scenario,
            preset: load.preset,
            // Of 53 bits: a page's script, and most readers of JSON, know no larger integers.
            seed: load.rng_seed.unwrap_or_else(|| rand::random::<u64>() >> 11),
            shard: load.shard,
            arrivals,
            polls,
            duration,
            warm_up: load.warm_up,
            poll_every,
            leave_within: load.leave_within,
            start_at: load.start_at,
            people: args.people.clone(),
            expect: args.output.expect.clone(),
            timeout: args.target.timeout,
            give_up_after: args.target.give_up_after,
            connections,
            http2: args.target.http2,
        })
    }

    /// What all shards of one test have in common, in words: two that differ in it are of different tests.
    pub fn plan(&self) -> String {
        let people = &self.people;
        format!(
            "{} to 1/{}, {:?} polls {:?} for {:?}, polling {:?}, thinking {:?}, seats {:?}, walking away {}, declined {}, \
             coming back {}, two tabs {}, same seat {}",
            self.arrivals.whole(),
            self.shard.of,
            self.scenario,
            self.polls.map(|polls| polls.whole()),
            self.duration,
            self.poll_every,
            people.think,
            people.seats,
            people.walk_away.0,
            people.decline.0,
            people.come_back.0,
            people.two_tabs.0,
            people.same_seat.0,
        )
    }

    /// How many tokens the file must hold: shards read every N-th.
    pub fn members(&self) -> u64 {
        self.arrivals.global(self.arrivals.len() - 1) + 1
    }
}

fn load_connections(args: &Args) -> usize {
    let default = if args.target.http2 { 8 } else { 256 };
    args.target.connections.map_or(default, |n| n as usize)
}

/// The arrivals of buyers and, for `poll --rate`, of polls.
fn arrivals(
    scenario: Scenario,
    args: &Args,
    users: Option<u64>,
    duration: Option<Duration>,
) -> (Schedule, Option<Schedule>) {
    let load = &args.load;
    let over = load.over.unwrap_or_default();
    let Some(Rate(rate)) = load.rate else {
        let total = users.unwrap_or(USERS_DEFAULT);
        return (
            Schedule::new(Shape::Spread { total, over }, load.shard, None, duration),
            None,
        );
    };
    let shape = Shape::Rate {
        rate: Rate(rate),
        ramp: load.ramp.unwrap_or_default(),
    };
    if scenario == Scenario::Poll {
        let everyone = Shape::Spread {
            total: users.unwrap_or(POLLERS_DEFAULT),
            over,
        };
        let arrivals = Schedule::new(everyone, load.shard, None, None);
        return (
            arrivals,
            Some(Schedule::new(shape, load.shard, None, duration)),
        );
    }
    (Schedule::new(shape, load.shard, users, duration), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn load(line: &str) -> Result<Load, String> {
        let words = ["loadgen"].into_iter().chain(line.split_whitespace());
        let cli = Cli::try_parse_from(words).map_err(|err| err.to_string())?;
        Load::from_args(&cli.args)
    }

    #[test]
    fn the_reference_preset_fills_what_was_not_typed() {
        let reference = load("--preset reference").unwrap();
        assert_eq!(
            (reference.scenario, reference.arrivals.len()),
            (Scenario::Poll, 10_000)
        );
        assert_eq!(reference.duration, Some(Duration::from_secs(900)));
        assert_eq!(reference.poll_every, Some(Duration::from_secs(3)));
        assert_eq!(reference.arrivals.due_us(9_999), 0);
        let typed = load("surge --preset reference --users 40k --duration 1m").unwrap();
        assert_eq!(
            (typed.scenario, typed.arrivals.len()),
            (Scenario::Surge, 40_000)
        );
        assert_eq!(typed.duration, Some(Duration::from_secs(60)));
    }

    #[test]
    fn rates_spikes_and_shards() {
        assert_eq!(
            load("enter --rate 2k --duration 3s")
                .unwrap()
                .arrivals
                .len(),
            6_000
        );
        assert_eq!(
            load("enter --rate 2k --users 500").unwrap().arrivals.len(),
            500
        );
        assert_eq!(
            load("enter --users 10 --over 5s --shard 2/4")
                .unwrap()
                .arrivals
                .len(),
            3
        );
        assert_eq!(load("enter --users 10 --shard 2/4").unwrap().members(), 10);
        let poll = load("poll --users 20 --rate 50 --duration 2s").unwrap();
        assert_eq!((poll.arrivals.len(), poll.polls.unwrap().len()), (20, 100));
    }

    #[test]
    fn wrong_usage_is_told() {
        for wrong in [
            "",
            "dance",
            "surge --users 0",
            "surge --rate 5 --over 3s",
            "surge --ramp 3s",
            "surge --users 1 --shard 2/2",
            "enter --rate 0.001 --duration 1ms --shard 2/2",
            "poll --poll-every 0s",
            "surge --expect p98<1",
            "surge --duration 0s",
        ] {
            assert!(load(wrong).is_err(), "{wrong}");
        }
    }
}
