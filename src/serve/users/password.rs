//! Password hashing, kept off the async threads and within bounds: one hash
//! takes 19 MiB and tens of milliseconds of a core, and a flood of log-ins must
//! not starve the rest of the process of either.

use std::sync::{Arc, LazyLock};

use argon2::{
    Argon2,
    password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many may wait for a turn, for each one that hashes. At some 30 ms a hash the last
/// of them is answered within about 8 s; who comes after is told 503 at once.
const WAITING_MAX_EACH: usize = 256;

/// What a password is compared with when there is no such member, so that the
/// answer takes as long as for one that exists. No password matches it: it
/// is the hash of random bytes that are gone.
static DECOY: LazyLock<String> = LazyLock::new(|| {
    let nobody: [u8; 32] = rand::random();
    hash_blocking(&nobody).expect("argon2id with its default parameters accepts 32 bytes")
});

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum HashError {
    /// Too many are waiting already.
    #[error("too many passwords are waiting to be hashed")]
    Busy,
    /// A bug, or a process that is ending.
    #[error("password hashing failed: {0}")]
    Failed(String),
}

/// Hashes and verifies passwords, a few at a time. Cheap to clone.
#[derive(Clone)]
pub struct Passwords {
    hashing: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
}

impl Passwords {
    /// At most `concurrency` at the same time.
    pub fn new(concurrency: usize) -> Self {
        let concurrency = concurrency.max(1);
        Self {
            hashing: Arc::new(Semaphore::new(concurrency)),
            admitted: Arc::new(Semaphore::new(concurrency * (WAITING_MAX_EACH + 1))),
        }
    }

    /// Waits for a turn. What must hold at the very moment of hashing (that the
    /// account may still be tried, say) is checked once it is there.
    ///
    /// # Errors
    /// [`HashError::Busy`] when too many wait.
    pub async fn turn(&self) -> Result<Turn, HashError> {
        let _admitted = self.admitted.try_acquire().map_err(|_| HashError::Busy)?;
        match self.hashing.clone().acquire_owned().await {
            Ok(permit) => Ok(Turn(Arc::new(permit))),
            Err(closed) => Err(HashError::Failed(closed.to_string())),
        }
    }
}

/// The right to hash; the next one's turn comes when it is dropped.
pub struct Turn(Arc<OwnedSemaphorePermit>);

impl Turn {
    /// The PHC string (argon2id) to keep for `password`.
    ///
    /// # Errors
    /// Never in practice.
    pub async fn hash(&self, password: String) -> Result<String, HashError> {
        self.run(move || hash_blocking(password.as_bytes())).await?
    }

    /// Whether `password` is the one behind `hash`. Without a hash it takes as
    /// long, and the answer is no.
    ///
    /// # Errors
    /// Never in practice.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool, HashError> {
        self.run(move || verify_blocking(password.as_bytes(), hash.as_deref()))
            .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, HashError> {
        let permit = self.0.clone();
        tokio::task::spawn_blocking(move || {
            // The turn lasts as long as the work, even when the caller has gone away.
            let _permit = permit;
            work()
        })
        .await
        .map_err(|e| HashError::Failed(e.to_string()))
    }
}

fn hash_blocking(password: &[u8]) -> Result<String, HashError> {
    Argon2::default()
        .hash_password(password)
        .map(|hash| hash.to_string())
        .map_err(|e| HashError::Failed(e.to_string()))
}

fn verify_blocking(password: &[u8], hash: Option<&str>) -> bool {
    let parsed = hash.and_then(|hash| PasswordHash::new(hash).ok());
    let known = parsed.is_some();
    let Some(hash) = parsed.or_else(|| PasswordHash::new(&DECOY).ok()) else {
        return false;
    };
    Argon2::default().verify_password(password, &hash).is_ok() && known
}

/// Hashes on this very thread: for `ticketping seed`, whose members share one.
///
/// # Errors
/// Never in practice.
pub fn hash_now(password: &str) -> Result<String, String> {
    hash_blocking(password.as_bytes()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_matches_and_a_missing_or_locked_account_never() {
        let turn = Passwords::new(2).turn().await.unwrap();
        let hash = turn.hash("correct horse".into()).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        assert!(
            turn.verify("correct horse".into(), Some(hash.clone()))
                .await
                .unwrap()
        );
        assert!(
            !turn
                .verify("correct hors".into(), Some(hash))
                .await
                .unwrap()
        );
        assert!(!turn.verify("!".into(), Some("!".into())).await.unwrap());
        assert!(!turn.verify("anything".into(), None).await.unwrap());
    }

    #[tokio::test]
    async fn turns_are_bounded_and_a_flood_is_refused_at_once() {
        let passwords = Passwords::new(1);
        let first = passwords.turn().await.unwrap();
        let waiting: Vec<_> = (0..=WAITING_MAX_EACH)
            .map(|_| {
                let passwords = passwords.clone();
                tokio::spawn(async move { passwords.turn().await.map(drop) })
            })
            .collect();
        while passwords.admitted.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(matches!(passwords.turn().await, Err(HashError::Busy)));
        drop(first);
        for task in waiting {
            task.await.unwrap().unwrap();
        }
        passwords.turn().await.unwrap();
    }
}
