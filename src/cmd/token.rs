//! `ticketping token`: an access token, for who holds the signing key.

use std::{path::PathBuf, time::Duration};

use uuid::Uuid;

use crate::{
    platform::{auth::Role, failure::Failure},
    serve::secrets::{Kept, SecretArgs},
};

/// What the bearer may do.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum RoleArg {
    /// A buyer
    User,
    /// An operator
    Admin,
}

/// Print an access token, signed with the key given or that of the data directory.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// What the bearer may do
    #[arg(long, value_enum, default_value = "admin")]
    role: RoleArg,
    /// Whose token it is: a user's id [default: a random one]
    #[arg(long, value_name = "UUID")]
    user: Option<Uuid>,
    /// How long it is valid, from 1s to 1year
    #[arg(long, value_name = "DURATION", default_value = "15m", value_parser = ttl)]
    ttl: Duration,
    /// Whose key signs, where none is given
    #[arg(
        long,
        env = "TICKETPING_DATA_DIR",
        value_name = "DIR",
        default_value = "./.ticketping"
    )]
    data_dir: PathBuf,
    #[command(flatten)]
    secrets: SecretArgs,
}

/// A second to a year: a token that has expired as it is made, or outlives every key, is a slip of the hand.
pub(super) fn ttl(text: &str) -> Result<Duration, String> {
    const MAX: Duration = Duration::from_secs(366 * 86_400);
    let ttl = humantime::parse_duration(text).map_err(|e| e.to_string())?;
    if (Duration::from_secs(1)..=MAX).contains(&ttl) {
        Ok(ttl)
    } else {
        Err("must be from 1s to 1year, such as 12h".to_owned())
    }
}

/// Prints the token on stdout.
///
/// # Errors
/// When there is no signing key.
pub fn run(args: &Args) -> Result<u8, Failure> {
    let mut secrets = args.secrets.clone();
    if secrets.jwt_key.is_none() && secrets.jwt_key_file.is_none() {
        Kept::load(&args.data_dir)?.complete(&mut secrets);
    }
    let (signer, _) = secrets.signers()?;
    let role = match args.role {
        RoleArg::User => Role::User,
        RoleArg::Admin => Role::Admin,
    };
    println!(
        "{}",
        signer.sign(args.user.unwrap_or_else(Uuid::now_v7), role, args.ttl)
    );
    Ok(0)
}
