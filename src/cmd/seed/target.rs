//! Where to seed: the database named, the running server's, or the data directory's own stores,
//! started for as long as it takes.

use std::path::{Path, PathBuf};

use crate::{
    platform::{
        auth::Signer,
        embedded::{EmbeddedStores, runtime::RuntimeFile},
        failure::Failure,
        redis,
        secret::Secret,
    },
    serve::secrets::{Kept, SecretArgs},
};

/// Where the embedded default keeps its data, when nothing else is said.
const DATA_DIR_DEFAULT: &str = "./.ticketping";

/// Where the stores are, and who signs.
#[derive(Clone, Debug, clap::Args)]
#[command(next_help_heading = "Where")]
pub struct TargetArgs {
    /// The data directory of the embedded default: its running server is found there, or its stores are
    /// started for as long as it takes; tokens.jsonl is written there
    #[arg(
        long,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = DATA_DIR_DEFAULT
    )]
    pub data_dir: PathBuf,
    /// Make the directory that --data-dir names, where there is none yet
    #[arg(long)]
    pub create: bool,
    /// PostgreSQL, where it is not the embedded one
    #[arg(
        long,
        env = "TICKETPING_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub database_url: Option<Secret>,
    /// Redis, where it is not the embedded one; only --reset needs it
    #[arg(
        long,
        env = "TICKETPING_REDIS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub redis_url: Option<Secret>,
    /// PEM file of the certificate authorities that Redis is checked against, where its URL begins with
    /// rediss [default: as the running embedded server says; else the public ones]
    #[arg(long, env = "TICKETPING_REDIS_CA", value_name = "FILE")]
    pub redis_ca: Option<PathBuf>,
    /// What Redis keys begin with [default: as the running embedded server says; else tp]
    #[arg(long, env = "TICKETPING_REDIS_PREFIX", value_name = "PREFIX")]
    pub redis_prefix: Option<String>,
    #[command(flatten)]
    pub secrets: SecretArgs,
}

/// Stores that can be reached.
pub struct Target {
    pub database_url: String,
    pub redis_url: Option<String>,
    /// What keys begin with there.
    pub redis_prefix: String,
    /// The certificate authorities that it is checked against, where they are not the public ones.
    pub redis_ca: Option<PathBuf>,
    embedded: Option<EmbeddedStores>,
}

impl TargetArgs {
    /// What to call the target when asking whether to empty it.
    pub fn describe(&self) -> String {
        match &self.database_url {
            Some(_) => "the database of --database-url".to_owned(),
            None => self.data_dir.display().to_string(),
        }
    }

    /// Finds the stores, or starts them.
    ///
    /// # Errors
    /// One sentence that names what is wrong and the way out.
    pub async fn open(&self) -> Result<Target, Failure> {
        let redis_url = self.redis_url.as_ref().map(|url| url.expose().to_owned());
        let default_prefix = || redis::DEFAULT_PREFIX.to_owned();
        let (prefix, redis_ca) = (self.redis_prefix.clone(), self.redis_ca.clone());
        if let Some(url) = &self.database_url {
            return Ok(Target {
                database_url: url.expose().to_owned(),
                redis_url,
                redis_prefix: prefix.unwrap_or_else(default_prefix),
                redis_ca,
                embedded: None,
            });
        }
        let running = RuntimeFile::of_running(&self.data_dir).map_err(|e| {
            Failure::Failed(format!(
                "{}: {e}",
                RuntimeFile::path(&self.data_dir).display()
            ))
        })?;
        if let Some(server) = running {
            return Ok(Target {
                database_url: server.database_url,
                redis_url: Some(redis_url.unwrap_or(server.redis_url)),
                redis_prefix: prefix.unwrap_or(server.redis_prefix),
                redis_ca: redis_ca.or(server.redis_ca),
                embedded: None,
            });
        }
        self.refuse_mistyped()?;
        let stores = EmbeddedStores::start(&self.data_dir)
            .await
            .map_err(|e| Failure::Failed(e.to_string()))?;
        Ok(Target {
            database_url: stores.database_url().to_owned(),
            redis_url: Some(redis_url.unwrap_or_else(|| stores.redis_url().to_owned())),
            redis_prefix: prefix.unwrap_or_else(default_prefix),
            redis_ca,
            embedded: Some(stores),
        })
    }

    /// A new world where nothing was is seldom what a name that was typed means.
    fn refuse_mistyped(&self) -> Result<(), Failure> {
        if self.create || self.data_dir == Path::new(DATA_DIR_DEFAULT) || self.data_dir.exists() {
            return Ok(());
        }
        let dir = self.data_dir.display();
        Err(Failure::usage(format!(
            "there is no directory {dir}: correct --data-dir, or begin a new one there with --create"
        )))
    }

    /// The key that signs members' tokens: the one given, or the data directory's.
    ///
    /// # Errors
    /// When there is none that the server would accept.
    pub fn signer(&self) -> Result<Signer, Failure> {
        let mut secrets = self.secrets.clone();
        let given = secrets.jwt_key.is_some() || secrets.jwt_key_file.is_some();
        if !given && self.database_url.is_none() {
            Kept::load_or_make(&self.data_dir)?.complete(&mut secrets);
        } else if !given && self.data_dir.join("secrets.json").exists() {
            Kept::load(&self.data_dir)?.complete(&mut secrets);
        }
        secrets.signers().map(|(current, _)| current)
    }
}

impl Target {
    /// Ends the stores that were started for this.
    pub async fn close(self) {
        if let Some(stores) = self.embedded {
            stores.stop().await;
        }
    }
}
