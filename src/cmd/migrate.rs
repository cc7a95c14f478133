//! `ticketping migrate`: brings the schemas up to date, apart from serving.

use std::{path::PathBuf, time::Duration};

use crate::{
    platform::{db, embedded::runtime::RuntimeFile, failure::Failure, secret::Secret},
    serve::migrate::Schema,
};

/// Bring the database schemas up to date
///
/// Roles do so as they start; with `serve --no-migrate` this does it instead, before the new
/// version is rolled out. Running versions go on beside a newer schema. Exit code: 0 all is up to
/// date, 1 not (`--check`), or a migration failed.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The roles whose schemas are meant [default: all of a sale, without the sandbox]
    #[arg(value_enum, value_name = "ROLE")]
    roles: Vec<Schema>,
    /// Only say what is pending, and change nothing
    #[arg(long)]
    check: bool,
    /// How long a migration tries to get its locks; it waits two seconds at a time, so that nobody
    /// queues behind it for longer
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    lock_wait: Duration,
    /// Where the server's data directory is, where no database is named
    #[arg(
        long,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = "./.ticketping"
    )]
    data_dir: PathBuf,
    /// PostgreSQL: postgres://user:password@host:port/database
    #[arg(
        long,
        env = "TICKETPING_DATABASE_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    database_url: Option<Secret>,
}

/// Migrates, or checks.
///
/// # Errors
/// When the database cannot be found or read, or a migration fails.
pub async fn run(args: Args) -> Result<u8, Failure> {
    let url = database_url(&args)?;
    db::check_url(&url).map_err(|e| Failure::Usage(format!("--database-url: {e}")))?;
    db::check_sessions(&url)
        .await
        .map_err(|e| Failure::Failed(e.to_string()))?;
    let roles = match args.roles.is_empty() {
        true => Schema::SALE.to_vec(),
        false => args.roles.clone(),
    };
    let mut pending = 0;
    for role in roles {
        let name = role.name();
        let before = role.versions(&url).await?;
        if args.check {
            pending += before.pending;
            println!(
                "{name}: {} pending, {} newer than this binary",
                before.pending, before.newer
            );
            continue;
        }
        role.migrate(&url, args.lock_wait).await?;
        println!("{name}: {} applied, up to date", before.pending);
    }
    Ok(u8::from(pending > 0))
}

fn database_url(args: &Args) -> Result<String, Failure> {
    if let Some(url) = &args.database_url {
        return Ok(url.expose().to_owned());
    }
    let dir = args.data_dir.display();
    match RuntimeFile::of_running(&args.data_dir) {
        Ok(Some(server)) => Ok(server.database_url),
        Ok(None) => Err(Failure::Usage(format!(
            "no server runs on {dir}; give --database-url, or set TICKETPING_DATABASE_URL"
        ))),
        Err(e) => Err(Failure::Failed(format!(
            "cannot read runtime.json in {dir}: {e}"
        ))),
    }
}
