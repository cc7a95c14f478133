//! The data directory: who may use it, where its stores live, as whom they run.
//!
//! Owns `<data-dir>/lock`, held for as long as a server or `seed` uses the
//! stores, and `<data-dir>/stores.json`, which remembers where the stores live
//! and their passwords. The kernel drops the lock with the process, however it
//! ends, so nothing needs cleaning after a crash.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Gid, Uid, User};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::EmbeddedError;
use super::files;

/// Where stores live whose user cannot reach the data directory.
const FALLBACK: &str = "/var/lib/ticketping";

pub(super) struct Home {
    pub(super) data_dir: PathBuf,
    pub(super) stores_dir: PathBuf,
    pub(super) redis_password: String,
    pub(super) postgres_password: String,
    /// Whom the stores run as; None: as we do.
    pub(super) run_as: Option<RunAs>,
    _locks: Vec<File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RunAs {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Remembered {
    stores_dir: PathBuf,
    redis_password: String,
    postgres_password: String,
}

impl Home {
    pub(super) fn open(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = make_dir(data_dir)?;
        let mut locks = vec![lock(&data_dir)?];
        let remembered_at = data_dir.join("stores.json");
        let remembered = files::read_json::<Remembered>(&remembered_at).map_err(|cause| {
            EmbeddedError::Damaged {
                path: remembered_at.clone(),
                what: "where the stores live",
                cause: cause.to_string(),
            }
        })?;
        let remembered = match remembered {
            Some(remembered) if remembered.stores_dir.is_dir() => remembered,
            Some(remembered) => {
                return Err(EmbeddedError::StoresGone {
                    data_dir,
                    stores_dir: remembered.stores_dir,
                });
            }
            None => {
                let fresh = Remembered {
                    stores_dir: choose_stores_dir(&data_dir)?,
                    redis_password: password(),
                    postgres_password: password(),
                };
                files::replace_json(&remembered_at, &fresh)
                    .map_err(EmbeddedError::unusable(&data_dir))?;
                fresh
            }
        };
        let stores_dir = remembered.stores_dir;
        if stores_dir != data_dir {
            // A copy of the data directory names the same stores.
            locks.push(lock(&stores_dir)?);
        }
        let run_as = run_as(&stores_dir)?;
        if let Some(user) = run_as
            && !reaches(user, &stores_dir)
        {
            let cause = io::Error::other("the stores' user cannot reach it any more");
            return Err(EmbeddedError::unusable(&stores_dir)(cause));
        }
        Ok(Self {
            data_dir,
            stores_dir,
            redis_password: remembered.redis_password,
            postgres_password: remembered.postgres_password,
            run_as,
            _locks: locks,
        })
    }

    /// A directory for one store, private to the user that it runs as.
    pub(super) fn store_dir(&self, name: &str) -> Result<PathBuf, EmbeddedError> {
        let dir = self.stores_dir.join(name);
        match DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(EmbeddedError::unusable(&dir)(error));
            }
            _ => {}
        }
        self.give(&dir)?;
        Ok(dir)
    }

    /// Makes a file or directory of ours the stores' user's.
    pub(super) fn give(&self, path: &Path) -> Result<(), EmbeddedError> {
        let Some(user) = self.run_as else {
            return Ok(());
        };
        chown(path, Some(user.uid), Some(user.gid)).map_err(EmbeddedError::unusable(path))
    }
}

fn make_dir(path: &Path) -> Result<PathBuf, EmbeddedError> {
    // Root's stores run as somebody else, who must be able to pass through.
    let mode = if Uid::effective().is_root() {
        0o711
    } else {
        0o700
    };
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .and_then(|()| fs::canonicalize(path))
        .map_err(EmbeddedError::unusable(path))
}

/// A child that is being started holds every open file between its fork and its
/// exec, a lock that was just let go included: so "taken" is believed after a moment only.
fn lock_within_a_moment(file: &File) -> Result<(), TryLockError> {
    const TRIES: u32 = 20;
    const PAUSE: std::time::Duration = std::time::Duration::from_millis(10);
    for _ in 1..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            outcome => return outcome,
        }
    }
    file.try_lock()
}

fn lock(dir: &Path) -> Result<File, EmbeddedError> {
    let path = dir.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(EmbeddedError::unusable(dir))?;
    match lock_within_a_moment(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The holder's pid is for people only; without it the message is
            // poorer, not wrong.
            let _ = file.read_to_string(&mut pid);
            let holder = match pid.trim() {
                "" => "another server".to_owned(),
                pid => format!("process {pid}"),
            };
            return Err(EmbeddedError::InUse {
                path: dir.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(cause)) => return Err(EmbeddedError::unusable(dir)(cause)),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(EmbeddedError::unusable(dir))?;
    Ok(file)
}

fn choose_stores_dir(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    match run_as(data_dir)? {
        Some(user) if !reaches(user, data_dir) => {
            let digest = Sha256::digest(data_dir.as_os_str().as_bytes());
            let dir = Path::new(FALLBACK).join(hex::encode(&digest[..8]));
            set_aside(&dir)?;
            make_dir(&dir)
        }
        _ => Ok(data_dir.to_owned()),
    }
}

/// Stores of a data directory that was removed and is now made anew at the same
/// path: who removed it wanted to begin afresh, and would have removed them too
/// had they been inside. The last ones are kept beside, in case that was not so.
fn set_aside(dir: &Path) -> Result<(), EmbeddedError> {
    if !dir.exists() {
        return Ok(());
    }
    let aside = dir.with_extension("removed");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(EmbeddedError::unusable(&aside)(error));
        }
        _ => {}
    }
    fs::rename(dir, &aside).map_err(EmbeddedError::unusable(dir))
}

/// PostgreSQL refuses to run as root, and Redis has no need to: as root, both
/// run as the user who owns the stores already, else as `postgres` or `nobody`.
fn run_as(stores_dir: &Path) -> Result<Option<RunAs>, EmbeddedError> {
    let owner = fs::metadata(stores_dir.join(super::postgres::DIR))
        .ok()
        .map(|of| RunAs {
            uid: of.uid(),
            gid: of.gid(),
        });
    let us = Uid::effective();
    if !us.is_root() {
        return match owner {
            Some(owner) if owner.uid != us.as_raw() => Err(EmbeddedError::ForeignStores {
                path: stores_dir.to_owned(),
                owner: user_name(owner.uid),
            }),
            _ => Ok(None),
        };
    }
    if let Some(owner) = owner.filter(|owner| owner.uid != 0) {
        return Ok(Some(owner));
    }
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| User::from_name(name).ok().flatten())
        .map(|user| RunAs {
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
        })
        .map(Some)
        .ok_or(EmbeddedError::NoServiceUser)
}

fn user_name(uid: u32) -> String {
    match User::from_uid(Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("with id {uid}"),
    }
}

/// Asks the kernel by trying, as that user: modes, groups, access lists and
/// mount options all have their say.
fn reaches(user: RunAs, dir: &Path) -> bool {
    Command::new("/bin/sh")
        .args(["-c", r#"test -x "$1""#, "sh"])
        .arg(dir)
        .uid(Uid::from_raw(user.uid).as_raw())
        .gid(Gid::from_raw(user.gid).as_raw())
        .current_dir("/")
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn password() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_of_the_directory_is_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path()).unwrap();
        let Err(error) = Home::open(dir.path()) else {
            panic!("two have the lock");
        };
        let told = error.to_string();
        assert!(
            told.contains(&format!("process {}", std::process::id())),
            "{told}"
        );
        assert!(told.contains("--data-dir"), "{told}");
        drop(first);
        Home::open(dir.path()).unwrap();
    }

    #[test]
    fn passwords_and_place_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path()).unwrap();
        let (place, password) = (first.stores_dir.clone(), first.redis_password.clone());
        drop(first);
        let second = Home::open(dir.path()).unwrap();
        assert_eq!(second.stores_dir, place);
        assert_eq!(second.redis_password, password);
        assert_ne!(second.redis_password, second.postgres_password);
    }

    #[test]
    fn a_file_in_place_of_the_directory_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "").unwrap();
        let Err(error) = Home::open(&path) else {
            panic!("a file passed for a directory");
        };
        let told = error.to_string();
        assert!(told.contains(path.to_str().unwrap()), "{told}");
        assert!(told.contains("--data-dir"), "{told}");
    }
}
