//! Members: who they are, and the tokens that prove it.
//!
//! Owns the schema `users`. Guarantees: one account an e-mail address, decided by the database;
//! passwords only as argon2id; a refresh token works once, and used again ends its whole session. Never
//! answers for another role whether a token is valid: every role verifies for itself with the public keys.

mod address;
mod http;
mod input;
pub mod password;
mod store;
mod throttle;

use std::{sync::Arc, time::Duration};

use ::http::StatusCode;
use axum::{
    extract::FromRef,
    response::{IntoResponse, Response},
};
use prometheus_client::metrics::counter::Counter;
use sqlx::PgPool;

pub use self::http::{router, routes};
use self::{
    address::TrustedProxies,
    password::{HashError, Passwords},
    throttle::{AddressLimit, LoginThrottle},
};
use crate::platform::{
    auth::{Jwks, Signer, Verifier},
    db,
    metrics::Metrics,
    net::Net,
    problem::{FieldError, Problem},
    tasks::Tasks,
};

/// The schema of this role.
pub const SCHEMA: &str = "users";
/// Its migrations.
pub static MIGRATOR: crate::platform::db::Migrations =
    crate::migrations!("users": "0001_users", "0002_leases");

/// How often ended sessions are deleted.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How often idle addresses are forgotten.
const FORGET_EVERY: Duration = Duration::from_secs(5);

/// Settings of the users role.
#[derive(clap::Args, Clone, Debug)]
#[group(skip)]
#[command(next_help_heading = "Members")]
pub struct Config {
    /// How long an access token is valid.
    #[arg(long, env = "TICKETPING_ACCESS_TOKEN_TTL", value_name = "DURATION", default_value = "15m", value_parser = humantime::parse_duration)]
    pub access_token_ttl: Duration,
    /// How long a log-in lasts, however often it is refreshed.
    #[arg(long, env = "TICKETPING_REFRESH_TOKEN_TTL", value_name = "DURATION", default_value = "30d", value_parser = humantime::parse_duration)]
    pub refresh_token_ttl: Duration,
    /// Passwords hashed at the same time, 19 MiB each; 0 is half the cores.
    #[arg(
        long,
        env = "TICKETPING_PASSWORD_HASHES",
        value_name = "N",
        default_value_t = 0
    )]
    pub password_hashes: usize,
    /// Log-ins a second that one address may try on average; 0 is no limit.
    #[arg(
        long,
        env = "TICKETPING_LOGIN_RATE",
        value_name = "PER_SECOND",
        default_value_t = 10
    )]
    pub login_rate: u32,
    /// Log-ins that one address may try at once. Generous, since a school or a carrier is one address too.
    #[arg(
        long,
        env = "TICKETPING_LOGIN_BURST",
        value_name = "N",
        default_value_t = 500
    )]
    pub login_burst: u32,
    /// Sign-ups a second that one address may try on average; 0 is no limit.
    #[arg(
        long,
        env = "TICKETPING_SIGNUP_RATE",
        value_name = "PER_SECOND",
        default_value_t = 10
    )]
    pub signup_rate: u32,
    /// Sign-ups that one address may try at once.
    #[arg(
        long,
        env = "TICKETPING_SIGNUP_BURST",
        value_name = "N",
        default_value_t = 500
    )]
    pub signup_burst: u32,
    /// Proxies whose X-Forwarded-For is believed: addresses or ranges, by comma. The
    /// gateway's address, where the users role runs apart from it.
    #[arg(
        long,
        env = "TICKETPING_TRUSTED_PROXIES",
        value_name = "NET,...",
        value_delimiter = ','
    )]
    pub trusted_proxies: Vec<Net>,
}

impl Config {
    /// How many passwords are hashed at the same time.
    fn hash_concurrency(&self) -> usize {
        match self.password_hashes {
            // The other half goes on answering.
            0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2)),
            n => n,
        }
    }
}

struct Limits {
    login: AddressLimit,
    sign_up: AddressLimit,
}

#[derive(Clone, Default)]
struct Counters {
    signed_up: Counter,
    logged_in: Counter,
    login_failed: Counter,
    refreshed: Counter,
    refresh_reused: Counter,
}

/// The state of this role. Cheap to clone.
#[derive(Clone)]
pub struct Users {
    pool: PgPool,
    signer: Signer,
    jwks: Arc<Jwks>,
    verifier: Verifier,
    passwords: Passwords,
    throttle: Arc<LoginThrottle>,
    limits: Arc<Limits>,
    proxies: TrustedProxies,
    counters: Counters,
    config: Arc<Config>,
}

impl FromRef<Users> for Verifier {
    fn from_ref(users: &Users) -> Self {
        users.verifier.clone()
    }
}

impl FromRef<Users> for TrustedProxies {
    fn from_ref(users: &Users) -> Self {
        users.proxies.clone()
    }
}

impl Users {
    /// The role on `pool` (schema [`SCHEMA`], migrated). `signer` signs; `jwks` is what is published:
    /// its key, and those of a rotation under way.
    pub fn new(
        config: Config,
        pool: PgPool,
        signer: Signer,
        jwks: Jwks,
        verifier: Verifier,
        metrics: &Metrics,
    ) -> Self {
        let counters = Counters::default();
        metrics.register(|registry| {
            let c = counters.clone();
            registry.register("users_signed_up", "Accounts made", c.signed_up);
            registry.register("users_logged_in", "Log-ins", c.logged_in);
            registry.register(
                "users_login_failed",
                "Log-ins with a wrong address or password",
                c.login_failed,
            );
            registry.register("users_refreshed", "Refresh tokens traded in", c.refreshed);
            registry.register(
                "users_refresh_reused",
                "Sessions revoked for a reused token",
                c.refresh_reused,
            );
        });
        Self {
            pool,
            signer,
            jwks: Arc::new(jwks),
            verifier,
            passwords: Passwords::new(config.hash_concurrency()),
            throttle: Arc::default(),
            limits: Arc::new(Limits {
                login: AddressLimit::new(config.login_rate, config.login_burst),
                sign_up: AddressLimit::new(config.signup_rate, config.signup_burst),
            }),
            proxies: TrustedProxies(config.trusted_proxies.clone().into()),
            counters,
            config: Arc::new(config),
        }
    }
}

/// Starts what runs in the background.
pub fn tasks(users: &Users, tasks: &Tasks) {
    let limits = users.limits.clone();
    tasks.every("users.limits", FORGET_EVERY, move || {
        limits.login.forget_idle();
        limits.sign_up.forget_idle();
        std::future::ready(())
    });
    let pool = users.pool.clone();
    tasks.every("users.sessions", SWEEP_EVERY, move || {
        let pool = pool.clone();
        async move {
            if let Err(error) = store::sweep(&pool).await {
                tracing::warn!(%error, "cannot delete ended sessions; trying again later");
            }
        }
    });
}

/// Whether this role can answer.
///
/// # Errors
/// What is away.
pub async fn ready(users: &Users) -> Result<(), String> {
    match sqlx::query("select 1").execute(&users.pool).await {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("PostgreSQL (users): {error}")),
    }
}

/// Why a request was not granted.
#[derive(Debug)]
enum Error {
    Invalid(Vec<FieldError>),
    EmailTaken,
    InvalidCredentials,
    TooManyAttempts(Duration),
    TooManyRequests(Duration),
    InvalidRefreshToken,
    RefreshReused,
    NoSuchMember,
    Hash(HashError),
    Store(sqlx::Error),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        db::observe(&error);
        Self::Store(error)
    }
}

impl From<HashError> for Error {
    fn from(error: HashError) -> Self {
        Self::Hash(error)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let (status, code, detail) = match error {
            Error::Invalid(errors) => return Self::validation(errors),
            Error::Hash(HashError::Busy) => return Self::unavailable(HashError::Busy),
            Error::Hash(HashError::Failed(cause)) => return Self::internal(cause),
            Error::Store(error) => return error.into(),
            Error::TooManyAttempts(wait) => {
                return Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "TOO_MANY_ATTEMPTS",
                    "Too many failed log-ins. Wait a little before the next try.",
                )
                .retry_after(seconds(wait));
            }
            Error::TooManyRequests(wait) => {
                return Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "TOO_MANY_REQUESTS",
                    "Too many requests from this address.",
                )
                .retry_after(seconds(wait));
            }
            Error::EmailTaken => (
                StatusCode::CONFLICT,
                "EMAIL_TAKEN",
                "There is an account with this e-mail address already.",
            ),
            Error::InvalidCredentials => (
                StatusCode::UNAUTHORIZED,
                "INVALID_CREDENTIALS",
                "The e-mail address or the password is wrong.",
            ),
            Error::InvalidRefreshToken => (
                StatusCode::UNAUTHORIZED,
                "INVALID_REFRESH_TOKEN",
                "The refresh token is not valid, or its session has ended. Log in again.",
            ),
            Error::RefreshReused => (
                StatusCode::UNAUTHORIZED,
                "REFRESH_REUSED",
                "This refresh token was used before, so its session has been ended. Log in again.",
            ),
            Error::NoSuchMember => (
                StatusCode::UNAUTHORIZED,
                "UNAUTHENTICATED",
                "The account of this access token does not exist.",
            ),
        };
        Self::new(status, code, detail)
    }
}

/// Whole seconds, rounded up: who waits them is let in.
fn seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
