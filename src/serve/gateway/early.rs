//! What is refused before any role is asked.

use http::{HeaderMap, Method, StatusCode};

use super::State;
use crate::platform::problem::Problem;

/// Whether the path answers only who is signed in.
fn needs_access_token(method: &Method, path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/api/v1/") else {
        return path.starts_with("/admin/v1/");
    };
    match rest.split('/').next() {
        Some("orders") => true,
        Some("payments") => rest != "payments/webhook",
        Some("users") => rest == "users/me",
        Some("queues") => *method == Method::POST && rest.ends_with("/tokens"),
        _ => false,
    }
}

/// Refuses what no role could accept: a missing or bad access token, and a hold
/// without a place. The roles check all of it again, and more.
///
/// # Errors
/// The problem to answer with.
pub(super) fn check(
    state: &State,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
) -> Result<(), Problem> {
    if needs_access_token(method, path) {
        state.verifier.bearer(headers)?;
    }
    if *method == Method::POST && path == "/api/v1/orders" {
        let token = headers.get("queue-token").and_then(|v| v.to_str().ok());
        let known = match (token, &state.places) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(token), Some(keys)) => keys.open(token).is_ok(),
        };
        if !known {
            return Err(Problem::new(
                StatusCode::UNAUTHORIZED,
                "INVALID_QUEUE_TOKEN",
                "Send the newest Queue-Token of your place in this performance's queue.",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_personal_paths_need_an_access_token() {
        let need = |m: Method, p: &str| needs_access_token(&m, p);
        assert!(need(Method::POST, "/api/v1/orders"));
        assert!(need(Method::GET, "/api/v1/orders/x"));
        assert!(need(Method::POST, "/api/v1/payments"));
        assert!(need(Method::POST, "/api/v1/queues/x/tokens"));
        assert!(need(Method::GET, "/api/v1/users/me"));
        assert!(need(Method::PATCH, "/admin/v1/queues/x"));
        assert!(!need(Method::POST, "/api/v1/payments/webhook"));
        assert!(!need(Method::GET, "/api/v1/queues/x/tokens/me"));
        assert!(!need(Method::POST, "/api/v1/users"));
        assert!(!need(Method::GET, "/api/v1/performances"));
    }
}
