//! The embedded default: `serve all` with nothing configured brings its own
//! stores, makes its own secrets and tells the other subcommands where it is.

use std::{io::Write, path::PathBuf, time::Duration};

use uuid::Uuid;

use super::{
    args::{Args, Role},
    build::Build,
    secrets::{Kept, write_private},
};
use crate::platform::{
    auth,
    embedded::{
        EmbeddedStores,
        runtime::{RuntimeFile, Served},
    },
    failure::Failure,
    secret::Secret,
    tasks::Tasks,
};

/// How long a token in `<data-dir>/ops-token` is valid, and after which part of
/// that it is renewed.
const OPS_TOKEN_TTL: Duration = Duration::from_secs(15 * 60);
const OPS_TOKEN_RENEW: Duration = Duration::from_secs(5 * 60);

/// What an embedded server holds on to while it runs.
pub(super) struct Embedded {
    stores: EmbeddedStores,
    data_dir: PathBuf,
}

impl Embedded {
    /// Starts what `serve all` was not given, and fills it into `args`. Any
    /// other role, or one that was given both stores, is not embedded.
    pub(super) async fn start(args: &mut Args) -> Result<Option<Self>, Failure> {
        let complete = args.stores.redis_url.is_some() && args.stores.database_url.is_some();
        if args.role != Role::All || complete {
            return Ok(None);
        }
        let data_dir = args.process.data_dir.clone();
        let stores = EmbeddedStores::start(&data_dir)
            .await
            .map_err(|e| Failure::Failed(e.to_string()))?;
        args.stores
            .redis_url
            .get_or_insert_with(|| Secret::new(stores.redis_url()));
        args.stores
            .database_url
            .get_or_insert_with(|| Secret::new(stores.database_url()));
        match Kept::load_or_make(&data_dir) {
            Ok(kept) => {
                kept.complete(&mut args.secrets);
                kept.complete_stripe(&mut args.payments);
            }
            Err(failure) => {
                stores.stop().await;
                return Err(failure);
            }
        }
        Ok(Some(Self { stores, data_dir }))
    }

    /// Writes `runtime.json` and the operator's token, and says where things are.
    pub(super) async fn announce(
        &self,
        build: &Build,
        (url, local_url): (&str, Option<String>),
        ops_url: &str,
        tasks: &Tasks,
    ) -> Result<(), Failure> {
        let fail = |e: std::io::Error| {
            Failure::Failed(format!("cannot write in {}: {e}", self.data_dir.display()))
        };
        let stores = &build.args.stores;
        let served = Served {
            url: url.to_owned(),
            local_url,
            ops_url: ops_url.to_owned(),
            stripe_url: build.stripe_url.clone(),
            redis_url: stores.redis()?.to_owned(),
            redis_prefix: stores.redis_prefix.clone(),
            redis_ca: stores
                .redis_ca
                .clone()
                .map(|file| std::path::absolute(&file).unwrap_or(file)),
            database_url: stores.database()?.to_owned(),
        };
        self.write_ops_token(build).map_err(fail)?;
        RuntimeFile::write(&self.data_dir, served).map_err(fail)?;
        self.keep_ops_token_fresh(build, tasks);
        self.greet(build, url, ops_url);
        Ok(())
    }

    fn write_ops_token(&self, build: &Build) -> std::io::Result<()> {
        let Some(signer) = &build.signer else {
            return Ok(());
        };
        let token = signer.sign(Uuid::nil(), auth::Role::Admin, OPS_TOKEN_TTL);
        write_private(&self.data_dir.join("ops-token"), token.as_bytes())
    }

    fn keep_ops_token_fresh(&self, build: &Build, tasks: &Tasks) {
        let Some(signer) = build.signer.clone() else {
            return;
        };
        let path = self.data_dir.join("ops-token");
        tasks.every("ops-token", OPS_TOKEN_RENEW, move || {
            let token = signer.sign(Uuid::nil(), auth::Role::Admin, OPS_TOKEN_TTL);
            if let Err(error) = write_private(&path, token.as_bytes()) {
                tracing::warn!(%error, path = %path.display(), "cannot renew the operator's token");
            }
            std::future::ready(())
        });
    }

    fn greet(&self, build: &Build, url: &str, ops_url: &str) {
        let dir = self.data_dir.display();
        let flag = if self.data_dir == std::path::Path::new("./.ticketping") {
            String::new()
        } else {
            format!(" --data-dir {dir}")
        };
        let stores = self.stores.stores_dir().display();
        let found = if self.stores.adopted() {
            " (adopted from a server that crashed)"
        } else {
            ""
        };
        let stripe = if build.stripe_url.is_empty() {
            "Stripe itself".to_owned()
        } else {
            format!("the sandbox at {}", build.stripe_url)
        };
        let me = program();
        let seed = match build.args.demo {
            true => String::new(),
            false => {
                format!("\n  {me} seed{flag}    a hall, a performance, and members to try it with")
            }
        };
        let members = crate::cmd::seed::USERS_DEFAULT;
        // A closed stdout is no reason to end: the greeting is for whoever looks.
        let _ = writeln!(
            std::io::stdout(),
            "Ticketping is open.\n\
             \n  page and API   {url}/   ({url}/openapi.json)\
             \n  operations     {ops_url}/metrics · /readyz · /livez\
             \n  payments by    {stripe}\
             \n  data in        {dir}, stores in {stores}{found}\
             \n\nTry next, from another terminal:{seed}\
             \n  {me} top{flag}    watch the sale\
             \n  {me} loadgen surge --users {members}{flag}    send {members} buyers through it\
             \n  curl {url}/api/v1/performances\
             \n\nCtrl-C stops everything; the next start finds all data."
        );
    }

    /// Ends the stores; nothing of the server is left running.
    pub(super) async fn stop(self) {
        for removed in [
            RuntimeFile::remove(&self.data_dir),
            std::fs::remove_file(self.data_dir.join("ops-token")),
        ] {
            if let Err(error) = removed
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "cannot remove the runtime files; they name a server that is gone");
            }
        }
        self.stores.stop().await;
    }
}

/// How this program is called from where it was started: by its name where the shell finds it so,
/// else by its path.
fn program() -> String {
    const NAME: &str = "ticketping";
    let Ok(me) = std::env::current_exe() else {
        return NAME.to_owned();
    };
    let same = |file: std::path::PathBuf| file.canonicalize().is_ok_and(|file| file == me);
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|dir| same(dir.join(NAME))) {
        return NAME.to_owned();
    }
    let here = std::env::current_dir().unwrap_or_default();
    let shown = me.strip_prefix(here).unwrap_or(&me).display().to_string();
    match shown.contains(|c: char| c.is_whitespace() || c == '\'') {
        true => format!("'{}'", shown.replace('\'', "'\\''")),
        false => shown,
    }
}
