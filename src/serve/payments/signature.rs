//! `Stripe-Signature`: was this body sent by Stripe, and just now?
//!
//! Checked on the raw bytes and before any parsing, so that a field or an API version that we do
//! not know cannot turn a genuine event away: Stripe would take our 200 and never send it again.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::platform::secret::Secret;

/// As Stripe's own libraries: older ones may be replays.
const TOLERANCE_S: i64 = 300;
/// No genuine header is longer; bounds the work for a forged one.
const HEADER_BYTES_MAX: usize = 4_096;

/// Why a body was turned away. Told to nobody but the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the Stripe-Signature header is missing or malformed")]
    Malformed,
    #[error("the signature's time is more than {TOLERANCE_S} s off")]
    Stale,
    #[error("no signature matches")]
    Mismatch,
}

/// Verifies `body`: any `v1` by any of `secrets` (two while they are rotated).
///
/// # Errors
/// Why it cannot be trusted.
pub fn verify(body: &[u8], header: &str, secrets: &[Secret], now_s: i64) -> Result<(), Refused> {
    if header.len() > HEADER_BYTES_MAX {
        return Err(Refused::Malformed);
    }
    let mut time = None;
    let mut signatures = Vec::new();
    for part in header.split(',') {
        match part.trim().split_once('=') {
            Some(("t", value)) => time = Some(value),
            Some(("v1", value)) => signatures.push(value),
            // Other schemes (v0 is Stripe's test one) prove nothing.
            Some(_) => {}
            None => return Err(Refused::Malformed),
        }
    }
    let time = time.ok_or(Refused::Malformed)?;
    let sent_s: i64 = time.parse().map_err(|_| Refused::Malformed)?;
    if signatures.is_empty() {
        return Err(Refused::Malformed);
    }
    let genuine = secrets.iter().any(|secret| {
        let expected = sign(body, time, secret);
        // No early exit within a secret: how long it takes tells nothing.
        signatures.iter().fold(false, |found, signature| {
            found | bool::from(expected.as_bytes().ct_eq(signature.as_bytes()))
        })
    });
    if !genuine {
        return Err(Refused::Mismatch);
    }
    if now_s.abs_diff(sent_s) > TOLERANCE_S.unsigned_abs() {
        return Err(Refused::Stale);
    }
    Ok(())
}

/// The `v1` of `body` sent at `time`, in hexadecimal.
fn sign(body: &[u8], time: &str, secret: &Secret) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(body);
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_790_000_000;

    fn secret() -> Secret {
        Secret::new("whsec_test")
    }

    fn header(body: &[u8], at: i64, key: &Secret) -> String {
        format!("t={at},v1={}", sign(body, &at.to_string(), key))
    }

    #[test]
    fn known_signature() {
        // Computed with `printf '1790000000.{}' | openssl dgst -sha256 -hmac whsec_test`.
        let expected = "1c2847ad1f8158a1da978f36627ac1f07f7fd027321ac9ad40bccc06743f8396";
        assert_eq!(sign(b"{}", "1790000000", &secret()), expected);
    }

    #[test]
    fn genuine_and_recent_is_taken() {
        let sent = header(b"{\"id\":1}", NOW - 299, &secret());
        assert_eq!(verify(b"{\"id\":1}", &sent, &[secret()], NOW), Ok(()));
    }

    #[test]
    fn one_changed_byte_is_refused() {
        let sent = header(b"{\"id\":1}", NOW, &secret());
        assert_eq!(
            verify(b"{\"id\":2}", &sent, &[secret()], NOW),
            Err(Refused::Mismatch)
        );
    }

    #[test]
    fn old_and_future_ones_are_refused() {
        for at in [NOW - 301, NOW + 301] {
            let sent = header(b"{}", at, &secret());
            assert_eq!(verify(b"{}", &sent, &[secret()], NOW), Err(Refused::Stale));
        }
    }

    #[test]
    fn either_secret_counts_during_rotation() {
        let old = Secret::new("whsec_old");
        let sent = header(b"{}", NOW, &old);
        assert_eq!(verify(b"{}", &sent, &[secret(), old.clone()], NOW), Ok(()));
        assert_eq!(
            verify(b"{}", &sent, &[secret()], NOW),
            Err(Refused::Mismatch)
        );
    }

    #[test]
    fn any_v1_counts_and_other_schemes_do_not() {
        let good = sign(b"{}", &NOW.to_string(), &secret());
        let two = format!("t={NOW},v1={},v0=zz,v1={good}", "0".repeat(64));
        assert_eq!(verify(b"{}", &two, &[secret()], NOW), Ok(()));
        let v0 = format!("t={NOW},v0={good}");
        assert_eq!(
            verify(b"{}", &v0, &[secret()], NOW),
            Err(Refused::Malformed)
        );
    }

    #[test]
    fn malformed_headers_are_refused() {
        for bad in ["", "t=", "v1=abc", "t=soon,v1=abc", "nonsense", "t=1,v1"] {
            assert_eq!(
                verify(b"{}", bad, &[secret()], NOW),
                Err(Refused::Malformed),
                "{bad}"
            );
        }
        assert_eq!(
            verify(b"{}", "t=1,v1=abc", &[], NOW),
            Err(Refused::Mismatch)
        );
    }
}
