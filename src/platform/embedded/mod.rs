//! The stores of a sale that is configured with none: a Redis and a PostgreSQL
//! of its own, as child processes, their data under the data directory.
//!
//! Guarantees: one user of a data directory at a time; what was answered is found
//! again after a crash of the server, of a store, or of both; what a crash left
//! running is adopted by the next start, or ended; a store that dies is started
//! again on its port; `stop` takes at most ten seconds and leaves nothing running.
//! It never touches a store that it did not start.

mod binaries;
mod child;
mod error;
mod files;
mod home;
mod ports;
mod postgres;
mod process;
mod redis;
pub mod runtime;

use std::path::Path;

use child::Running;
pub use error::EmbeddedError;
use home::Home;

#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// False: PostgreSQL does not wait for the disk. Only for stores that are
    /// thrown away: killing the processes loses nothing, a power cut all.
    pub durable: bool,
    /// Whether a store that ends by itself is started again.
    pub supervise: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durable: true,
            supervise: true,
        }
    }
}

pub struct EmbeddedStores {
    redis_url: String,
    database_url: String,
    redis: Running,
    postgres: Running,
    // Last: the lock is let go when nothing uses the directory any more.
    home: Home,
}

impl EmbeddedStores {
    pub async fn start(data_dir: &Path) -> Result<Self, EmbeddedError> {
        Self::start_with(data_dir, Options::default()).await
    }

    pub async fn start_with(data_dir: &Path, options: Options) -> Result<Self, EmbeddedError> {
        let home = Home::open(data_dir)?;
        // The programs of both are looked for before either is started, so that
        // nothing has to be undone where one is missing.
        let redis = redis::Redis::prepare(&home)?;
        let postgres = postgres::Postgres::prepare(&home, options.durable).await?;
        let (redis, postgres) = tokio::join!(
            child::start(redis, options.supervise),
            child::start(postgres, options.supervise)
        );
        let (redis, postgres) = match (redis, postgres) {
            (Ok(redis), Ok(postgres)) => (redis, postgres),
            (Err(error), Ok(started)) | (Ok(started), Err(error)) => {
                started.stop().await;
                return Err(error);
            }
            (Err(error), Err(_)) => return Err(error),
        };
        let stores = Self {
            redis_url: redis::url(&home.redis_password, redis.port),
            database_url: postgres::url(&home.postgres_password, postgres.port),
            redis,
            postgres,
            home,
        };
        match postgres::make_database(&stores.home, stores.postgres.port).await {
            Ok(()) => Ok(stores),
            Err(error) => {
                stores.stop().await;
                Err(error)
            }
        }
    }

    /// With its password: not for logs.
    pub fn redis_url(&self) -> &str {
        &self.redis_url
    }

    /// With its password: not for logs.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    pub fn data_dir(&self) -> &Path {
        &self.home.data_dir
    }

    /// Where the stores' files are: the data directory, unless their user cannot
    /// reach it; then the start message should say so.
    pub fn stores_dir(&self) -> &Path {
        &self.home.stores_dir
    }

    /// Changes when the store is started again.
    pub fn redis_pid(&self) -> u32 {
        self.redis.pid()
    }

    /// Changes when the store is started again.
    pub fn postgres_pid(&self) -> u32 {
        self.postgres.pid()
    }

    /// Whether both were found running, left by a crash.
    pub fn adopted(&self) -> bool {
        self.redis.adopted && self.postgres.adopted
    }

    /// Ends both, their data written; at most ten seconds. Close connections first:
    /// what is under way is rolled back.
    pub async fn stop(self) {
        tokio::join!(self.redis.stop(), self.postgres.stop());
    }
}
