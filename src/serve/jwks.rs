//! The public keys of access tokens, in a process without the users role.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::platform::{
    auth::{Jwks, Verifier},
    tasks::Tasks,
    upstream::Upstream,
};

/// How often the keys are read again: a rotation overlaps for far longer.
const REFRESH: Duration = Duration::from_secs(30);
/// How soon after a failure.
const RETRY: Duration = Duration::from_millis(500);

/// A verifier that reads its keys from the users role, now and again and again.
/// Until the first answer every token is 503, and the process is not ready.
pub(super) fn follow(users: Upstream, tasks: &Tasks) -> Result<Verifier, String> {
    let verifier = Verifier::new(&Jwks::default())?;
    let (keys, token) = (verifier.clone(), tasks.token());
    tasks.spawn("jwks", move || {
        keep_fresh(users.clone(), keys.clone(), token.clone())
    });
    Ok(verifier)
}

async fn keep_fresh(users: Upstream, keys: Verifier, stop: CancellationToken) {
    let mut known = String::new();
    loop {
        let wait = match refresh(&users, &keys, &mut known).await {
            Ok(()) => REFRESH,
            Err(error) => {
                tracing::warn!(%error, "cannot read the keys of access tokens; trying again");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

async fn refresh(users: &Upstream, keys: &Verifier, known: &mut String) -> Result<(), String> {
    let jwks: Jwks = users
        .get_json("/.well-known/jwks.json")
        .await
        .map_err(|e| e.to_string())?;
    let fresh = jwks
        .keys
        .iter()
        .map(|k| k.kid.as_str())
        .collect::<Vec<_>>()
        .join(",");
    if fresh != *known {
        keys.replace(&jwks)?;
        *known = fresh;
    }
    Ok(())
}
