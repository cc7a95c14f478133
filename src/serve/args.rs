//! The flags of `ticketping serve`: its manual.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{gateway, payments, queue, reservations, secrets::SecretArgs, stripe_sandbox, users};
use crate::platform::{
    db, edge,
    events::{KafkaConfig, kafka::KafkaSecurity},
    failure::Failure,
    redis,
    secret::Secret,
    telemetry::LogFormat,
};

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Every role in one process
    All,
    /// The one door for buyers and operators
    Gateway,
    /// Members, log-in, access tokens
    Users,
    /// Performances, schedules, seats as they are built
    Performances,
    /// The waiting room
    Queue,
    /// Holds, orders, seat maps, tickets
    Reservations,
    /// Payments and Stripe's webhooks
    Payments,
    /// A stateful stand-in for Stripe, for development and tests
    StripeSandbox,
}

impl Role {
    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Gateway => "gateway",
            Self::Users => "users",
            Self::Performances => "performances",
            Self::Queue => "queue",
            Self::Reservations => "reservations",
            Self::Payments => "payments",
            Self::StripeSandbox => "stripe-sandbox",
        }
    }
}

/// Run a role, or all of them in one process.
///
/// `serve all` with nothing configured starts its own Redis and PostgreSQL under the data
/// directory and takes payments in the Stripe sandbox. Every part is replaced by naming a real
/// one: --redis-url, --database-url, --kafka-brokers, STRIPE_SECRET_KEY.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Which role to run
    #[arg(value_enum)]
    pub role: Role,
    /// Seed the demo sale, if it is not there yet, before serving (`serve all` only)
    #[arg(long, env = "TICKETPING_DEMO")]
    pub demo: bool,
    #[command(flatten)]
    pub process: ProcessArgs,
    #[command(flatten)]
    pub http: HttpArgs,
    #[command(flatten)]
    pub tls: edge::tls::Config,
    #[command(flatten)]
    pub stores: StoreArgs,
    #[command(flatten)]
    pub secrets: SecretArgs,
    #[command(flatten)]
    pub urls: UrlArgs,
    #[command(flatten)]
    pub gateway: gateway::Config,
    #[command(flatten)]
    pub users: users::Config,
    #[command(flatten)]
    pub queue: queue::Config,
    #[command(flatten)]
    pub reservations: reservations::Config,
    #[command(flatten)]
    pub payments: payments::Config,
    #[command(flatten)]
    pub stripe_sandbox: stripe_sandbox::Config,
}

/// Where the process listens, writes and logs.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Process")]
pub struct ProcessArgs {
    /// Where HTTP is served: 127.0.0.1:8080, localhost:8080 or 8080 (this machine only), :8080 (every
    /// address of it); port 0 picks a free one
    #[arg(
        long,
        env = "TICKETPING_LISTEN",
        value_name = "ADDRESS",
        value_parser = crate::platform::net::listen_address,
        default_value = "127.0.0.1:8080"
    )]
    pub listen: SocketAddr,
    /// Where /livez, /readyz and /metrics are served; port 0 picks a free one
    #[arg(
        long,
        env = "TICKETPING_OPS_LISTEN",
        value_name = "ADDRESS",
        value_parser = crate::platform::net::listen_address,
        default_value = "127.0.0.1:9090"
    )]
    pub ops_listen: SocketAddr,
    /// How long requests are still taken after SIGTERM or Ctrl-C, while /readyz says 503 already: long
    /// enough for a balancer to notice (its probe's interval times its threshold). A second signal
    /// ends the process at once
    /// [default: 5s; 0s with embedded stores]
    #[arg(long, env = "TICKETPING_SHUTDOWN_DELAY", value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub shutdown_delay: Option<Duration>,
    /// Where the embedded default keeps its stores and secrets
    #[arg(
        long,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = "./.ticketping"
    )]
    pub data_dir: PathBuf,
    /// How log lines look
    #[arg(
        long,
        env = "TICKETPING_LOG_FORMAT",
        value_enum,
        default_value = "text"
    )]
    pub log_format: LogFormat,
    /// What is logged: a level, or target=level pairs with commas
    #[arg(
        long,
        env = "TICKETPING_LOG",
        value_name = "FILTER",
        default_value = "info,sqlx=warn"
    )]
    pub log: String,
    /// The OpenTelemetry collector that traces go to (OTLP over HTTP, such as http://127.0.0.1:4318).
    /// OTEL_TRACES_SAMPLER and the other standard variables apply
    /// [default: no traces]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL", value_parser = http_url)]
    pub otlp_endpoint: Option<url::Url>,
}

/// Bounds on what clients may take of the process.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Connections")]
pub struct HttpArgs {
    /// Open connections at most; lowered, with a warning, to what the limit on open files allows. Above
    /// three quarters of it, addresses with more than their share give way to others, but for
    /// --trusted-proxies
    /// [default: what the limit on open files allows, at most 100000]
    #[arg(
        long,
        env = "TICKETPING_MAX_CONNECTIONS",
        value_name = "N",
        value_parser = connections
    )]
    pub max_connections: Option<usize>,
    /// Time from a request's first byte to the end of its headers; later is 408
    #[arg(long, env = "TICKETPING_HEAD_TIMEOUT", value_name = "DURATION", default_value = "15s", value_parser = timeout)]
    pub head_timeout: Duration,
    /// Time for a request's body after its headers; later is 408
    #[arg(long, env = "TICKETPING_BODY_TIMEOUT", value_name = "DURATION", default_value = "15s", value_parser = timeout)]
    pub body_timeout: Duration,
    /// A connection without a request ends after this long; more than the longest poll interval, 60 s
    #[arg(long, env = "TICKETPING_IDLE_TIMEOUT", value_name = "DURATION", default_value = "75s", value_parser = timeout)]
    pub idle_timeout: Duration,
    /// A client that reads none of its answer for this long is cut off
    #[arg(long, env = "TICKETPING_WRITE_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = timeout)]
    pub write_timeout: Duration,
    /// A client that has not read all of its answer after this long is cut off
    #[arg(long, env = "TICKETPING_ANSWER_TIMEOUT", value_name = "DURATION", default_value = "2m", value_parser = timeout)]
    pub answer_timeout: Duration,
    /// An event stream ends after this long; its client connects again
    #[arg(long, env = "TICKETPING_STREAM_TIMEOUT", value_name = "DURATION", default_value = "15m", value_parser = timeout)]
    pub stream_timeout: Duration,
}

impl HttpArgs {
    /// The same, as the listener takes them.
    pub fn limits(&self) -> edge::Limits {
        edge::Limits {
            connections_max: self
                .max_connections
                .unwrap_or(edge::Limits::default().connections_max),
            head: self.head_timeout,
            body: self.body_timeout,
            idle: self.idle_timeout,
            write: self.write_timeout,
            answer: self.answer_timeout,
            stream: self.stream_timeout,
            ..edge::Limits::default()
        }
    }
}

fn connections(given: &str) -> Result<usize, String> {
    match given.parse() {
        Ok(0) | Err(_) => Err("want a whole number above 0".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// A limit on time: not zero, and not longer than a connection lives.
fn timeout(given: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(given).map_err(|e| e.to_string())?;
    let fits = (Duration::from_millis(10)..=Duration::from_secs(3600)).contains(&time);
    fits.then_some(time)
        .ok_or_else(|| "want 10ms to 1h".to_owned())
}

/// The real stores, where they are not embedded.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Stores")]
pub struct StoreArgs {
    /// Redis of the waiting room and the seats: redis://[:password@]host:port[/db],
    /// redis+cluster://host:port,host:port, or redis+sentinel://host:port,host:port/service[/db];
    /// with rediss in place of redis, TLS
    /// [default: embedded, with `serve all`]
    #[arg(
        long,
        env = "TICKETPING_REDIS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub redis_url: Option<Secret>,
    /// PEM file of the certificate authorities that Redis servers and Sentinels are checked against,
    /// where the URL begins with rediss [default: the public ones]
    #[arg(long, env = "TICKETPING_REDIS_CA", value_name = "FILE")]
    pub redis_ca: Option<PathBuf>,
    /// In front of every Redis key, so that several installations can share one Redis
    #[arg(
        long,
        env = "TICKETPING_REDIS_PREFIX",
        value_name = "PREFIX",
        default_value = redis::DEFAULT_PREFIX
    )]
    pub redis_prefix: String,
    /// PostgreSQL 14 or newer: postgres://user:password@host:port/database [default: embedded,
    /// with `serve all`]
    #[arg(
        long,
        env = "TICKETPING_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database_url: Option<Secret>,
    /// How long the start waits for a store that is away; 0s: not at all. Meanwhile /livez answers, and
    /// /readyz names the store
    #[arg(long, env = "TICKETPING_STORE_WAIT", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    pub store_wait: Duration,
    /// Leave the schemas as they are: `ticketping migrate` has been there. The start waits, as for a
    /// store, while migrations that this version needs are pending
    #[arg(long, env = "TICKETPING_NO_MIGRATE")]
    pub no_migrate: bool,
    /// Database connections of each role at most
    #[arg(
        long,
        env = "TICKETPING_DATABASE_CONNECTIONS",
        value_name = "N",
        default_value_t = 10
    )]
    pub database_connections: u32,
    /// Kafka brokers, host:port with commas [default: events are handed over inside the process,
    /// with `serve all`]
    #[arg(long, env = "TICKETPING_KAFKA_BROKERS", value_name = "BROKERS")]
    pub kafka_brokers: Option<String>,
    /// In front of every Kafka topic and consumer group, so that several installations can share
    /// one cluster
    #[arg(
        long,
        env = "TICKETPING_KAFKA_PREFIX",
        value_name = "PREFIX",
        default_value = KafkaConfig::DEFAULT_PREFIX,
        value_parser = kafka_prefix
    )]
    pub kafka_prefix: String,
    /// Copies of each Kafka topic that is made here; with three or more, two must have a message
    /// before it counts as written. 0: three, or as many as there are brokers
    #[arg(
        long,
        env = "TICKETPING_KAFKA_REPLICATION",
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(i32).range(0..=32)
    )]
    pub kafka_replication: i32,
    #[command(flatten)]
    pub kafka_security: KafkaSecurity,
}

/// A server's URL.
fn http_url(given: &str) -> Result<url::Url, String> {
    let url = url::Url::parse(given).ok();
    url.filter(|url| matches!(url.scheme(), "http" | "https"))
        .ok_or_else(|| "want http://host:port or https://host:port".to_owned())
}

/// What Kafka takes in a topic's name; short enough for what follows the prefix.
fn kafka_prefix(given: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if (1..=200).contains(&given.len()) && given.chars().all(fits) {
        return Ok(given.to_owned());
    }
    Err("1 to 200 letters, digits, '.', '_' and '-' are what a Kafka topic's name takes".to_owned())
}

impl StoreArgs {
    /// Refuses malformed URLs before anything is started.
    ///
    /// # Errors
    /// Names the flag and what is wrong.
    pub fn check(&self) -> Result<(), Failure> {
        let fail = |flag: &str, e: String| Failure::Usage(format!("{flag}: {e}"));
        if let Some(url) = &self.redis_url {
            redis::check_url(url.expose()).map_err(|e| fail("--redis-url", e))?;
        }
        if let Some(url) = &self.database_url {
            db::check_url(url.expose()).map_err(|e| fail("--database-url", e))?;
        }
        Ok(())
    }

    /// The Redis URL of a role on its own.
    ///
    /// # Errors
    /// When it is missing; names the flag.
    pub fn redis(&self) -> Result<&str, Failure> {
        needed(&self.redis_url, "--redis-url", "TICKETPING_REDIS_URL")
    }

    /// What Redis servers that speak TLS are checked against.
    ///
    /// # Errors
    /// Names the file, and what is wrong with it.
    pub fn redis_trust(&self) -> Result<redis::Trust, Failure> {
        redis::Trust::of_file(self.redis_ca.as_deref()).map_err(Failure::Usage)
    }

    /// The database URL of a role on its own.
    ///
    /// # Errors
    /// When it is missing; names the flag.
    pub fn database(&self) -> Result<&str, Failure> {
        needed(
            &self.database_url,
            "--database-url",
            "TICKETPING_DATABASE_URL",
        )
    }
}

fn needed<'a>(value: &'a Option<Secret>, flag: &str, env: &str) -> Result<&'a str, Failure> {
    value.as_ref().map(Secret::expose).ok_or_else(|| {
        Failure::Usage(format!(
            "{flag} is missing: a role on its own needs it (only `serve all` embeds its stores); give it, or set {env}"
        ))
    })
}

/// Where the other roles are, for a role on its own.
#[derive(Clone, Debug, clap::Args)]
#[command(
    next_help_heading = "Other roles (for a role on its own; http://host:port, several with commas; requests are spread over all addresses of every host)"
)]
pub struct UrlArgs {
    /// The users role: its public keys verify access tokens
    #[arg(long, env = "TICKETPING_USERS_URL", value_name = "URLS", value_delimiter = ',', value_parser = role_url)]
    pub users_url: Vec<url::Url>,
    /// The performances role
    #[arg(long, env = "TICKETPING_PERFORMANCES_URL", value_name = "URLS", value_delimiter = ',', value_parser = role_url)]
    pub performances_url: Vec<url::Url>,
    /// The queue role
    #[arg(long, env = "TICKETPING_QUEUE_URL", value_name = "URLS", value_delimiter = ',', value_parser = role_url)]
    pub queue_url: Vec<url::Url>,
    /// The reservations role
    #[arg(long, env = "TICKETPING_RESERVATIONS_URL", value_name = "URLS", value_delimiter = ',', value_parser = role_url)]
    pub reservations_url: Vec<url::Url>,
    /// The payments role
    #[arg(long, env = "TICKETPING_PAYMENTS_URL", value_name = "URLS", value_delimiter = ',', value_parser = role_url)]
    pub payments_url: Vec<url::Url>,
}

/// Where a role is.
fn role_url(given: &str) -> Result<url::Url, String> {
    let url = url::Url::parse(given.trim()).ok();
    url.filter(|url| url.scheme() == "http" && url.has_host() && url.path() == "/")
        .ok_or_else(|| "want http://host:port (roles talk on a private network)".to_owned())
}
