//! Idempotency keys as Stripe has them: the first answer, whatever its status, is
//! kept with the effect in one transaction and given again; other parameters
//! under the same key are an error, and so is asking while the first still runs.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::http::StatusCode;
use sha2::Digest as _;

use super::error::{ApiError, Kind};
use super::form::Form;

/// Stripe's limit.
const KEY_CHARS_MAX: usize = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub key: String,
    pub path: String,
    pub fingerprint: Vec<u8>,
}

impl Key {
    pub fn new(key: &str, path: &str, form: &Form) -> Result<Self, ApiError> {
        if key.is_empty() || key.chars().count() > KEY_CHARS_MAX {
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                Kind::InvalidRequest,
                format!("Idempotency keys must be between 1 and {KEY_CHARS_MAX} characters long."),
            ));
        }
        let mut digest = sha2::Sha256::new();
        digest.update(path.as_bytes());
        digest.update([0]);
        digest.update(form.canonical().as_bytes());
        Ok(Self {
            key: key.to_owned(),
            path: path.to_owned(),
            fingerprint: digest.finalize().to_vec(),
        })
    }
}

/// An answer once given.
#[derive(Clone, Debug)]
pub struct Kept {
    pub path: String,
    pub fingerprint: Vec<u8>,
    pub request_id: String,
    pub status: u16,
    pub body: String,
}

impl Kept {
    /// Whether `key` asks for the very same thing.
    pub fn check(&self, key: &Key) -> Result<(), ApiError> {
        if self.path != key.path {
            return Err(mismatch(format!(
                "Keys for idempotent requests can only be used for the same endpoint they were \
                 first used for ('{}' vs '{}'). Try using a key other than '{}' if you meant to \
                 execute a different request.",
                key.path, self.path, key.key
            )));
        }
        if self.fingerprint != key.fingerprint {
            return Err(mismatch(format!(
                "Keys for idempotent requests can only be used with the same parameters they were \
                 first used with. Try using a key other than '{}' if you meant to execute a \
                 different request.",
                key.key
            )));
        }
        Ok(())
    }
}

fn mismatch(message: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, Kind::Idempotency, message)
}

/// The keys whose first call still runs in this process.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Mutex<HashSet<String>>>);

/// One such call. It rides with the call itself, not with the connection, so
/// that a client who hangs up does not free the key early.
#[derive(Debug)]
pub struct Running {
    keys: InFlight,
    key: String,
}

impl InFlight {
    pub fn begin(&self, key: &Key) -> Result<Running, ApiError> {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.insert(key.key.clone()) {
            return Err(ApiError::new(
                StatusCode::CONFLICT,
                Kind::Idempotency,
                format!(
                    "There is currently another in-progress request using this Stripe Idempotent \
                     Key (that probably means you submitted twice, and the other request is still \
                     going through): {}. Please try again later.",
                    key.key
                ),
            )
            .code("idempotency_key_in_use"));
        }
        Ok(Running {
            keys: self.clone(),
            key: key.key.clone(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.keys
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, path: &str, form: &str) -> Key {
        Key::new(name, path, &Form::parse(form.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn parameters_and_endpoint_are_compared() {
        let first = key("k", "/v1/refunds", "payment_intent=pi_1&amount=5");
        let kept = Kept {
            path: first.path.clone(),
            fingerprint: first.fingerprint.clone(),
            request_id: "req_1".into(),
            status: 200,
            body: "{}".into(),
        };
        assert!(
            kept.check(&key("k", "/v1/refunds", "amount=5&payment_intent=pi_1"))
                .is_ok()
        );
        for other in [
            key("k", "/v1/refunds", "payment_intent=pi_1&amount=6"),
            key("k", "/v1/payment_intents", "payment_intent=pi_1&amount=5"),
        ] {
            let error = kept.check(&other).unwrap_err();
            assert_eq!(error.status(), StatusCode::BAD_REQUEST);
            assert_eq!(error.field("type").unwrap(), "idempotency_error");
        }
    }

    #[test]
    fn a_key_is_in_use_until_its_call_ends() {
        let keys = InFlight::default();
        let key = key("k", "/v1/refunds", "");
        let running = keys.begin(&key).unwrap();
        let error = keys.begin(&key).unwrap_err();
        assert_eq!(error.status(), StatusCode::CONFLICT);
        assert_eq!(error.field("code").unwrap(), "idempotency_key_in_use");
        drop(running);
        assert!(keys.begin(&key).is_ok());
    }

    #[test]
    fn a_key_has_a_length() {
        let form = Form::default();
        assert!(Key::new("", "/", &form).is_err());
        assert!(Key::new(&"k".repeat(256), "/", &form).is_err());
        assert!(Key::new(&"k".repeat(255), "/", &form).is_ok());
    }
}
