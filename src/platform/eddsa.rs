//! Ed25519 for `jsonwebtoken`, by `ed25519-dalek`.
//!
//! Its own providers bring RSA and three NIST curves along, which no token of ours uses and
//! which cost a cold build half a minute. Here there is one algorithm, so no token can ask for
//! another either.

use std::cell::Cell;

use ed25519_dalek::{Signature, SigningKey, VerifyingKey, pkcs8::DecodePrivateKey};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{Error, ErrorKind},
    signature,
};

/// Makes it the process's provider. Needed before anything is signed or verified; any number
/// of times.
pub(super) fn install() {
    // The second time it is there already, which is all that we want.
    let _already = PROVIDER.install_default().is_err();
}

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory,
    verifier_factory,
    key_utils: KeyUtils::new_unimplemented(),
};

fn signer_factory(algorithm: &Algorithm, key: &EncodingKey) -> Result<Box<dyn JwtSigner>, Error> {
    only_eddsa(*algorithm)?;
    let key = SigningKey::from_pkcs8_der(key.as_bytes()).map_err(|_| ErrorKind::InvalidEddsaKey)?;
    Ok(Box::new(Ed25519Signer(key)))
}

fn verifier_factory(
    algorithm: &Algorithm,
    key: &DecodingKey,
) -> Result<Box<dyn JwtVerifier>, Error> {
    only_eddsa(*algorithm)?;
    let bytes: &[u8; 32] = key
        .try_get_as_bytes()?
        .try_into()
        .map_err(|_| ErrorKind::InvalidEddsaKey)?;
    Ok(Box::new(Ed25519Verifier(unpacked(bytes)?)))
}

thread_local! {
    /// The key that was last needed: almost always the one that is needed next.
    static UNPACKED: Cell<Option<([u8; 32], VerifyingKey)>> = const { Cell::new(None) };
}

/// The point that `bytes` stand for. Finding it takes a tenth of a verification's time.
fn unpacked(bytes: &[u8; 32]) -> Result<VerifyingKey, Error> {
    if let Some((known, key)) = UNPACKED.get()
        && known == *bytes
    {
        return Ok(key);
    }
    let key = VerifyingKey::from_bytes(bytes).map_err(|_| ErrorKind::InvalidEddsaKey)?;
    UNPACKED.set(Some((*bytes, key)));
    Ok(key)
}

fn only_eddsa(algorithm: Algorithm) -> Result<(), Error> {
    if algorithm == Algorithm::EdDSA {
        Ok(())
    } else {
        Err(ErrorKind::InvalidAlgorithm.into())
    }
}

struct Ed25519Signer(SigningKey);

impl signature::Signer<Vec<u8>> for Ed25519Signer {
    fn try_sign(&self, message: &[u8]) -> Result<Vec<u8>, signature::Error> {
        let signature = ed25519_dalek::Signer::try_sign(&self.0, message);
        let signature = signature.map_err(|_| signature::Error::new())?;
        Ok(signature.to_bytes().to_vec())
    }
}

impl JwtSigner for Ed25519Signer {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}

struct Ed25519Verifier(VerifyingKey);

impl signature::Verifier<Vec<u8>> for Ed25519Verifier {
    fn verify(&self, message: &[u8], given: &Vec<u8>) -> Result<(), signature::Error> {
        let given = Signature::from_slice(given).map_err(|_| signature::Error::new())?;
        let verified = ed25519_dalek::Verifier::verify(&self.0, message, &given);
        verified.map_err(|_| signature::Error::new())
    }
}

impl JwtVerifier for Ed25519Verifier {
    fn algorithm(&self) -> Algorithm {
        Algorithm::EdDSA
    }
}
