//! Why the stores did not start: each variant is one sentence that names the
//! cause and the way out, fit to be the last line a newcomer reads.

use std::io;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    #[error(
        "cannot use the data directory {}: {cause}; make it a directory that this user may write, or choose another with --data-dir",
        path.display()
    )]
    Unusable { path: PathBuf, cause: io::Error },

    #[error(
        "the data directory {} is in use by {holder}; stop that server first, or choose another directory with --data-dir",
        path.display()
    )]
    InUse { path: PathBuf, holder: String },

    #[error(
        "the data directory {} keeps its stores in {}, which is gone; restore it, or remove {} to begin with empty stores",
        data_dir.display(), stores_dir.display(), data_dir.display()
    )]
    StoresGone {
        data_dir: PathBuf,
        stores_dir: PathBuf,
    },

    #[error(
        "the stores in {} belong to the user {owner}; run as that user or as root, or choose another directory with --data-dir",
        path.display()
    )]
    ForeignStores { path: PathBuf, owner: String },

    #[error(
        "{} is not readable as {what}: {cause}; restore it, or remove the data directory to begin with empty stores",
        path.display()
    )]
    Damaged {
        path: PathBuf,
        what: &'static str,
        cause: String,
    },

    #[error(
        "neither redis-server nor valkey-server is installed (not in PATH); `make setup` installs one, or name a running Redis with --redis-url"
    )]
    NoRedis,

    #[error(
        "PostgreSQL's server is not installed (no initdb and postgres in PATH or /usr/lib/postgresql/*/bin); `make setup` installs it, or name a running one with --database-url"
    )]
    NoPostgres,

    #[error(
        "{} holds data of PostgreSQL {wanted}, but only {found} is installed here; install postgresql-{wanted}, or choose another directory with --data-dir",
        path.display()
    )]
    OtherMajor {
        path: PathBuf,
        wanted: String,
        found: String,
    },

    #[error(
        "running as root, and there is neither a user postgres nor a user nobody to run PostgreSQL as; create one, or start as another user"
    )]
    NoServiceUser,

    #[error(
        "no free port for {store} between {} and {} on 127.0.0.1; free one, or name a running server instead",
        super::ports::LOWEST,
        super::ports::HIGHEST
    )]
    NoPort { store: &'static str },

    #[error("{store} did not start: {cause}; its log is {}", log.display())]
    DidNotStart {
        store: &'static str,
        cause: String,
        log: PathBuf,
    },
}

impl EmbeddedError {
    pub(super) fn unusable(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |cause| Self::Unusable { path, cause }
    }
}
