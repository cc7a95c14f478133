//! The keys a server signs and seals with: given by the operator, or, on the
//! embedded default only, made once and kept in the data directory.

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::payments;

use crate::platform::{auth::Signer, failure::Failure, secret::Secret};

/// Secrets by flag, environment or file. Outside the embedded default none has a
/// default.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(
    next_help_heading = "Secrets (prefer the environment, or a file that the variable with _FILE behind it names, to flags)"
)]
pub struct SecretArgs {
    /// Signs access tokens: an Ed25519 private key, PKCS#8 PEM (`openssl genpkey -algorithm ed25519`)
    #[arg(
        long,
        env = "TICKETPING_JWT_KEY",
        hide_env_values = true,
        value_name = "PEM"
    )]
    pub jwt_key: Option<Secret>,
    /// A file with the key that signs access tokens
    #[arg(
        long,
        env = "TICKETPING_JWT_KEY_FILE",
        value_name = "FILE",
        conflicts_with = "jwt_key"
    )]
    pub jwt_key_file: Option<PathBuf>,
    /// A file with the key before it, whose tokens are still accepted during a rotation
    #[arg(long, env = "TICKETPING_JWT_PREVIOUS_KEY_FILE", value_name = "FILE")]
    pub jwt_previous_key_file: Option<PathBuf>,
    /// Seals places in the queue: `id:secret` pairs, commas between; the first seals, all open. To rotate, restart every
    /// process three times: with the new pair behind the old one, with the two swapped, and, when nobody holds an
    /// older token any more, without the old one
    /// (`echo 1:$(openssl rand -hex 32)`)
    #[arg(
        long,
        env = "TICKETPING_PLACE_KEYS",
        hide_env_values = true,
        value_name = "KEYS"
    )]
    pub place_keys: Option<Secret>,
    /// What the roles show each other on /internal, the same for all
    #[arg(
        long,
        env = "TICKETPING_INTERNAL_SECRET",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    pub internal_secret: Option<Secret>,
    /// Signs tickets: 32 bytes in hexadecimal
    #[arg(
        long,
        env = "TICKETPING_TICKET_KEY",
        hide_env_values = true,
        value_name = "HEX"
    )]
    pub ticket_key: Option<Secret>,
}

impl SecretArgs {
    /// The key that signs access tokens, and the one before it.
    ///
    /// # Errors
    /// When it is missing or malformed; names the flag.
    pub fn signers(&self) -> Result<(Signer, Option<Signer>), Failure> {
        let current = match (&self.jwt_key, &self.jwt_key_file) {
            (Some(pem), _) => Signer::from_pem(pem.expose())
                .map_err(|e| Failure::Usage(format!("--jwt-key: {e}")))?,
            (None, Some(file)) => signer_file("--jwt-key-file", file)?,
            (None, None) => return Err(missing("--jwt-key-file", "TICKETPING_JWT_KEY_FILE")),
        };
        let previous = self.jwt_previous_key_file.as_deref();
        let previous = previous
            .map(|f| signer_file("--jwt-previous-key-file", f))
            .transpose()?;
        Ok((current, previous))
    }

    /// The secret between roles.
    ///
    /// # Errors
    /// When it is missing.
    pub fn internal(&self) -> Result<Secret, Failure> {
        required(
            &self.internal_secret,
            "--internal-secret",
            "TICKETPING_INTERNAL_SECRET",
        )
    }

    /// The keys of places.
    ///
    /// # Errors
    /// When they are missing.
    pub fn places(&self) -> Result<Secret, Failure> {
        required(&self.place_keys, "--place-keys", "TICKETPING_PLACE_KEYS")
    }

    /// The key of tickets.
    ///
    /// # Errors
    /// When it is missing.
    pub fn ticket(&self) -> Result<Secret, Failure> {
        required(&self.ticket_key, "--ticket-key", "TICKETPING_TICKET_KEY")
    }
}

fn signer_file(flag: &str, file: &Path) -> Result<Signer, Failure> {
    let fail = |e: String| Failure::Usage(format!("{flag} {}: {e}", file.display()));
    let pem = fs::read_to_string(file).map_err(|e| fail(e.to_string()))?;
    Signer::from_pem(&pem).map_err(fail)
}

/// `value`, or a usage error that names the flag and its variable.
///
/// # Errors
/// When there is none.
pub fn required<T: Clone>(value: &Option<T>, flag: &str, env: &str) -> Result<T, Failure> {
    value.clone().ok_or_else(|| missing(flag, env))
}

/// The usage error of a flag that has no default outside the embedded one.
pub fn missing(flag: &str, env: &str) -> Failure {
    Failure::Usage(format!(
        "{flag} is missing: outside the embedded default (`ticketping serve all`) it has no default; give it, or set {env}"
    ))
}

/// What the embedded default keeps in `<data-dir>/secrets.json`, mode 0600.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    jwt_key: String,
    place_keys: String,
    internal_secret: String,
    ticket_key: String,
    /// The Stripe sandbox's secret key.
    pub stripe_secret_key: String,
    /// The Stripe sandbox's publishable key.
    pub stripe_publishable_key: String,
    /// Signs the Stripe sandbox's webhooks.
    pub stripe_webhook_secret: String,
}

fn random_hex(bytes: usize) -> String {
    let mut raw = vec![0_u8; bytes];
    rand::fill(&mut raw[..]);
    hex::encode(raw)
}

impl Kept {
    /// Reads the secrets of `data_dir`, making them the first time.
    ///
    /// # Errors
    /// When the file cannot be read or written, or is damaged.
    pub fn load_or_make(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join("secrets.json");
        let fail = |e: &dyn std::fmt::Display| Failure::Failed(format!("{}: {e}", path.display()));
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                fail(&format!(
                    "damaged ({e}); restore it, or delete it: everybody then signs in again"
                ))
            }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let kept = Self::make().map_err(|e| fail(&e))?;
                let bytes = serde_json::to_vec_pretty(&kept).map_err(|e| fail(&e))?;
                write_private(&path, &bytes).map_err(|e| fail(&e))?;
                Ok(kept)
            }
            Err(e) => Err(fail(&e)),
        }
    }

    /// Reads the secrets of `data_dir`.
    ///
    /// # Errors
    /// When there are none: nobody has served from there yet.
    pub fn load(data_dir: &Path) -> Result<Self, Failure> {
        let path = data_dir.join("secrets.json");
        if path.exists() {
            return Self::load_or_make(data_dir);
        }
        Err(Failure::Failed(format!(
            "{}: no server has run from this data directory yet; start one (`ticketping serve all`), name another --data-dir, or give --jwt-key-file",
            path.display()
        )))
    }

    fn make() -> Result<Self, String> {
        let (_, jwt_key) = Signer::generate()?;
        Ok(Self {
            jwt_key,
            place_keys: format!("1:{}", random_hex(32)),
            internal_secret: random_hex(32),
            ticket_key: random_hex(32),
            stripe_secret_key: format!("sk_test_{}", random_hex(24)),
            stripe_publishable_key: format!("pk_test_{}", random_hex(24)),
            stripe_webhook_secret: format!("whsec_{}", random_hex(24)),
        })
    }

    /// Without Stripe's own keys, payments are taken in the sandbox with keys of ours.
    pub fn complete_stripe(&self, config: &mut payments::Config) {
        if config.stripe_secret_key.is_some() {
            return;
        }
        config.stripe_secret_key = Some(Secret::new(&*self.stripe_secret_key));
        config.stripe_publishable_key = Some(self.stripe_publishable_key.clone());
        config.stripe_webhook_secret = Some(Secret::new(&*self.stripe_webhook_secret));
    }

    /// Fills in what the operator did not give.
    pub fn complete(&self, args: &mut SecretArgs) {
        if args.jwt_key.is_none() && args.jwt_key_file.is_none() {
            args.jwt_key = Some(Secret::new(&*self.jwt_key));
        }
        for (slot, kept) in [
            (&mut args.place_keys, &self.place_keys),
            (&mut args.internal_secret, &self.internal_secret),
            (&mut args.ticket_key, &self.ticket_key),
        ] {
            slot.get_or_insert_with(|| Secret::new(&**kept));
        }
    }
}

/// Writes `bytes` to `path` so that only the owner can read them, and so that a
/// crash leaves the old file or the new one.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension(format!("new.{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&fresh, path)
}
