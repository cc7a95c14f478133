//! Members, and access tokens for load tests.

use std::{
    collections::HashSet,
    fs,
    io::{self, BufWriter, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;

use super::{
    ids::{Ids, id_range},
    load::{CHUNK_BYTES, CopyRows, lock},
    progress::Progress,
    words::person,
};
use crate::platform::auth::{Role, Signer};

/// The password of every seeded member.
pub const PASSWORD: &str = "ticketping";

/// How many tokens each core signs before they are written.
const SIGNED_AT_ONCE: u64 = 4_096;

/// The members of one `--rng-seed`, numbered from 0.
#[derive(Clone, Copy)]
pub struct Members {
    ids: Ids,
    rng_seed: u64,
    pub count: u64,
}

impl Members {
    pub fn new(rng_seed: u64, count: u64) -> Self {
        Self {
            ids: Ids::new(rng_seed),
            rng_seed,
            count,
        }
    }

    pub fn id(&self, nth: u64) -> Uuid {
        self.ids.id("member", &[nth], nth)
    }

    /// A domain that exists nowhere (RFC 2606), and a local part that no other seed gives out.
    pub fn email(&self, nth: u64) -> String {
        match self.rng_seed {
            super::RNG_SEED_DEFAULT => format!("member{:07}@seed.ticketping.example", nth + 1),
            seed => format!("member{:07}.{seed}@seed.ticketping.example", nth + 1),
        }
    }

    /// Adds those who are missing, and says how many they were.
    ///
    /// # Errors
    /// When PostgreSQL is away or refuses; nobody is added then.
    pub async fn load(&self, pool: &PgPool, hash: &str, progress: &Progress) -> sqlx::Result<u64> {
        let mut conn = pool.acquire().await?;
        let mut tx = conn.begin().await?;
        lock(&mut tx).await?;
        let (from, to) = id_range(self.count);
        let there: Vec<Uuid> =
            sqlx::query_scalar("select id from users.users where id >= $1 and id < $2")
                .bind(from)
                .bind(to)
                .fetch_all(&mut *tx)
                .await?;
        let there: HashSet<Uuid> = there.into_iter().collect();
        let added = self.copy(&mut tx, hash, &there, progress).await?;
        tx.commit().await?;
        Ok(added)
    }

    async fn copy(
        &self,
        conn: &mut PgConnection,
        hash: &str,
        there: &HashSet<Uuid>,
        progress: &Progress,
    ) -> sqlx::Result<u64> {
        let bar = progress.bar("members", self.count);
        let mut copy = conn
            .copy_in_raw(
                "copy users.users (id, email, name, password_hash) from stdin (format binary)",
            )
            .await?;
        let mut rows = CopyRows::new();
        for nth in 0..self.count {
            let id = self.id(nth);
            if there.contains(&id) {
                continue;
            }
            rows.row(4);
            rows.field(id.as_bytes());
            rows.field(self.email(nth).as_bytes());
            rows.field(person(&mut self.ids.rng("name", &[nth])).as_bytes());
            rows.field(hash.as_bytes());
            if rows.len() >= CHUNK_BYTES {
                bar.set_position(nth);
                copy.send(rows.take()).await?;
            }
        }
        copy.send(rows.finish()).await?;
        let added = copy.finish().await?;
        bar.finish();
        Ok(added)
    }

    /// Writes an access token of each to `path`, one JSON object a line, signed on all cores. The
    /// file is its owner's alone, and there only once it is whole.
    ///
    /// # Errors
    /// When the file cannot be written, or `stop` was set meanwhile.
    pub fn write_tokens(
        &self,
        path: &Path,
        (signer, ttl): (&Signer, Duration),
        progress: &Progress,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let fresh = path.with_extension(format!("new.{}", std::process::id()));
        let written = self.sign_into(&fresh, (signer, ttl), progress, stop);
        match written.and_then(|()| fs::rename(&fresh, path)) {
            Ok(()) => Ok(()),
            Err(error) => {
                let _ = fs::remove_file(&fresh);
                Err(error)
            }
        }
    }

    fn sign_into(
        &self,
        path: &Path,
        (signer, ttl): (&Signer, Duration),
        progress: &Progress,
        stop: &AtomicBool,
    ) -> io::Result<()> {
        let bar = progress.bar("tokens", self.count);
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut file = BufWriter::with_capacity(CHUNK_BYTES, file);
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let mut begin = 0;
        while begin < self.count {
            if stop.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let end = self.count.min(begin + cores * SIGNED_AT_ONCE);
            let parts: Vec<String> = std::thread::scope(|scope| {
                let workers = (begin..end).step_by(SIGNED_AT_ONCE as usize).map(|from| {
                    let to = end.min(from + SIGNED_AT_ONCE);
                    scope.spawn(move || self.signed(from, to, signer, ttl))
                });
                let workers: Vec<_> = workers.collect();
                let parts = workers
                    .into_iter()
                    .map(|worker| worker.join().unwrap_or_default());
                parts.collect()
            });
            for part in parts {
                file.write_all(part.as_bytes())?;
            }
            begin = end;
            bar.set_position(end);
        }
        file.flush()?;
        bar.finish();
        Ok(())
    }

    fn signed(&self, from: u64, to: u64, signer: &Signer, ttl: Duration) -> String {
        let mut lines = String::with_capacity((to - from) as usize * 512);
        for nth in from..to {
            let id = self.id(nth);
            let token = signer.sign(id, Role::User, ttl);
            // Nothing in these needs escaping.
            lines.push_str(&format!(
                "{{\"userId\":\"{id}\",\"email\":\"{}\",\"accessToken\":\"{token}\"}}\n",
                self.email(nth)
            ));
        }
        lines
    }
}

/// Copies the tokens to another file of their owner's alone, and says whether it is another: under whatever name
/// the same file is asked for, it stays as it is. A file that is no plain one (a pipe, say) is written to as it is.
///
/// # Errors
/// When it cannot be written.
pub fn copy_tokens(from: &Path, to: &Path) -> io::Result<bool> {
    let mut source = fs::File::open(from)?;
    let file = |of: &fs::Metadata| (of.dev(), of.ino());
    if let Ok(there) = fs::metadata(to)
        && file(&there) == file(&source.metadata()?)
    {
        return Ok(false);
    }
    let mut options = fs::OpenOptions::new();
    let mut target = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(to)?;
    io::copy(&mut source, &mut target)?;
    target.flush()?;
    Ok(true)
}
