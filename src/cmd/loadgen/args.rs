//! The flags of `ticketping loadgen`. Every one is an `Option` where a preset may
//! fill it: what was typed always wins over what a preset says.

use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{ArgAction, ValueEnum};
use uuid::Uuid;

use super::expect::Objective;
use super::values::{Rate, Shard, Share, Span, duration, rate, seats, shard, share, span};

/// What the virtual buyers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// The whole journey: enter, wait, choose seats, hold, pay, be confirmed
    Surge,
    /// Everybody enters the queue; nobody polls
    Enter,
    /// Everybody enters, then polls until the end
    Poll,
    /// Enter, wait, hold the best seats, cancel, leave
    Hold,
    /// Enter, wait, hold the best seats, pay, be confirmed, without a pause
    Checkout,
    /// Merge the JSON reports named after it into one
    Report,
}

impl Scenario {
    pub fn name(self) -> &'static str {
        match self {
            Self::Surge => "surge",
            Self::Enter => "enter",
            Self::Poll => "poll",
            Self::Hold => "hold",
            Self::Checkout => "checkout",
            Self::Report => "report",
        }
    }
}

/// Named sets of flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// 10,000 people enter at once, then poll every 3 s for 15 min
    Reference,
}

/// Simulate the surge of a sale, and tell the truth about it.
///
/// Arrivals follow a schedule that no answer can delay, and latency counts from the moment a request was
/// due, so that a server that stalls cannot hide it. Exit code: 0 fine, 1 the run failed or an audit found a
/// breach, 2 usage, 3 an objective (--expect) was missed or a figure got worse (--compare), 130 interrupted.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the buyers do; may be left out with --preset
    #[arg(value_enum, env = "TICKETPING_LOADGEN_SCENARIO")]
    pub scenario: Option<Scenario>,
    /// With `report`: the JSON reports to merge
    #[arg(value_name = "REPORT.json")]
    pub reports: Vec<PathBuf>,

    #[command(flatten)]
    pub target: TargetArgs,
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub people: PeopleArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Target")]
pub struct TargetArgs {
    /// The gateway; without it, the server running on --data-dir
    #[arg(long, env = "TICKETPING_URL")]
    pub url: Option<String>,
    /// The Stripe sandbox where payments are confirmed [default: the one of the server on --data-dir]
    #[arg(long, env = "TICKETPING_STRIPE_URL")]
    pub stripe_url: Option<String>,
    /// Where an embedded server keeps its data
    #[arg(long, env = "TICKETPING_DATA_DIR", default_value = "./.ticketping")]
    pub data_dir: PathBuf,
    /// Access tokens, as JSON lines {userId, email, accessToken} [default: <data-dir>/tokens.jsonl]
    #[arg(long, env = "TICKETPING_LOADGEN_TOKENS", value_name = "FILE")]
    pub tokens: Option<PathBuf>,
    /// The performance to buy for [default: the first that is OPEN]
    #[arg(long, env = "TICKETPING_LOADGEN_PERFORMANCE", value_name = "ID")]
    pub performance: Option<Uuid>,
    /// Connections kept open, at most [default: 256; with --http2: 8]
    #[arg(long, env = "TICKETPING_LOADGEN_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=60_000))]
    pub connections: Option<u32>,
    /// Speak HTTP/2 (prior knowledge on http://), with at most 100 requests in flight on a connection
    #[arg(long, env = "TICKETPING_LOADGEN_HTTP2")]
    pub http2: bool,
    /// A request without an answer after this long has failed
    #[arg(long, env = "TICKETPING_LOADGEN_TIMEOUT", default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// End the run when nothing at all was answered for this long
    #[arg(long, env = "TICKETPING_LOADGEN_GIVE_UP_AFTER", default_value = "20s", value_parser = duration)]
    pub give_up_after: Duration,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Load")]
pub struct LoadArgs {
    /// A named set of flags; flags typed beside it win
    #[arg(long, env = "TICKETPING_LOADGEN_PRESET", value_enum)]
    pub preset: Option<Preset>,
    /// How many buyers (`10000` or `10k`)
    #[arg(long, env = "TICKETPING_LOADGEN_USERS", value_parser = super::values::count)]
    pub users: Option<u32>,
    /// Arrivals a second (`2000`, `0.5`, `2.5k`); with `poll`: polls a second, over everyone in the queue
    #[arg(long, env = "TICKETPING_LOADGEN_RATE", value_parser = rate)]
    pub rate: Option<Rate>,
    /// Spread the arrivals of --users evenly over this long [default: all at once]
    #[arg(long, env = "TICKETPING_LOADGEN_OVER", value_parser = duration, conflicts_with = "rate")]
    pub over: Option<Duration>,
    /// Let the rate climb from nothing to --rate for this long
    #[arg(long, env = "TICKETPING_LOADGEN_RAMP", value_parser = duration, requires = "rate")]
    pub ramp: Option<Duration>,
    /// How long [default: until every buyer is done; `poll` and `--rate` without --users: 30s]
    #[arg(long, env = "TICKETPING_LOADGEN_DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// Latencies of what is due before this long after the start are in the series only; all of it is
    /// counted and checked
    #[arg(long, env = "TICKETPING_LOADGEN_WARM_UP", default_value = "0s", value_parser = duration)]
    pub warm_up: Duration,
    /// Poll at this interval instead of as the server tells
    #[arg(long, env = "TICKETPING_LOADGEN_POLL_EVERY", value_parser = duration)]
    pub poll_every: Option<Duration>,
    /// Take every N-th buyer only, so that N processes share one test (`2/4`)
    #[arg(long, env = "TICKETPING_LOADGEN_SHARD", value_parser = shard, default_value = "1/1")]
    pub shard: Shard,
    /// Begin at this time (RFC 3339), so that shards begin together
    #[arg(long, env = "TICKETPING_LOADGEN_START_AT")]
    pub start_at: Option<DateTime<Utc>>,
    /// Fixes every random choice [default: drawn, and told in the report]
    #[arg(long, env = "TICKETPING_LOADGEN_RNG_SEED")]
    pub rng_seed: Option<u64>,
    /// How long buyers who are unfinished at the end may take to give up their places; 0s: they stay
    #[arg(long, env = "TICKETPING_LOADGEN_LEAVE_WITHIN", default_value = "30s", value_parser = duration)]
    pub leave_within: Duration,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "People")]
pub struct PeopleArgs {
    /// Pause before each choice (`2s`, or drawn from `1s..4s`)
    #[arg(long, env = "TICKETPING_LOADGEN_THINK", value_parser = span, default_value = "0s")]
    pub think: Span,
    /// Seats each buyer wants (`2`, or drawn from `1..4`)
    #[arg(long, env = "TICKETPING_LOADGEN_SEATS", value_parser = seats, default_value = "1")]
    pub seats: (u8, u8),
    /// Share of buyers who vanish without a word: waiting, once admitted, or with seats held (`10%`, `0.1`)
    #[arg(long, env = "TICKETPING_LOADGEN_WALK_AWAY", value_parser = share, default_value = "0")]
    pub walk_away: Share,
    /// Share whose card is declined; half of them then pay with another, the others cancel
    #[arg(long, env = "TICKETPING_LOADGEN_DECLINE", value_parser = share, default_value = "0")]
    pub decline: Share,
    /// Share who close the page while waiting and enter again: they must find the same place
    #[arg(long, env = "TICKETPING_LOADGEN_COME_BACK", value_parser = share, default_value = "0")]
    pub come_back: Share,
    /// Share who open a second tab: both must show the same place
    #[arg(long, env = "TICKETPING_LOADGEN_TWO_TABS", value_parser = share, default_value = "0")]
    pub two_tabs: Share,
    /// Share who all click the first free seat on the map, rather than one they like
    #[arg(long, env = "TICKETPING_LOADGEN_SAME_SEAT", value_parser = share, default_value = "0")]
    pub same_seat: Share,
}

#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Report")]
pub struct OutputArgs {
    /// Objective: `p99<50ms`, `poll.p99<20ms`, `errors<0.1%`, `enter.max<2s`, `rate>1000`, `unfinished=0`; may be repeated
    #[arg(long, env = "TICKETPING_LOADGEN_EXPECT", action = ArgAction::Append, value_delimiter = ',', value_parser = Objective::parse)]
    pub expect: Vec<Objective>,
    /// Write the report as JSON (docs/loadgen.md); `-` is standard output
    #[arg(long, env = "TICKETPING_LOADGEN_JSON", value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the report as one HTML page with charts
    #[arg(long, env = "TICKETPING_LOADGEN_HTML", value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// An earlier report (--json) of the same scenario: say what got worse since, and by how much; exit code 3 beyond
    /// --worse-by
    #[arg(long, env = "TICKETPING_LOADGEN_COMPARE", value_name = "FILE")]
    pub compare: Option<PathBuf>,
    /// With --compare: how much worse a figure may be (latencies: and by more than a millisecond)
    #[arg(long, env = "TICKETPING_LOADGEN_WORSE_BY", value_name = "PERCENT", default_value = "20%", value_parser = super::values::percent)]
    pub worse_by: Share,
    /// No progress; the table, the files and the exit code only
    #[arg(long, short, env = "TICKETPING_LOADGEN_QUIET")]
    pub quiet: bool,
    /// Plain progress lines even on a terminal
    #[arg(long, env = "TICKETPING_LOADGEN_PLAIN")]
    pub plain: bool,
    /// Skip the audit of what the run left behind
    #[arg(long, env = "TICKETPING_LOADGEN_NO_AUDIT")]
    pub no_audit: bool,
}
