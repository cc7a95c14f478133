//! Access tokens: EdDSA JWTs, signed by the users role, verified in every
//! process by itself. Verifying one costs some 50 µs, so verified tokens are
//! remembered until they expire; a flood of requests by the same people costs
//! a hash look-up each.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

use arc_swap::ArcSwap;
use axum::extract::{FromRef, FromRequestParts};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::Utc;
use ed25519_dalek::{
    SigningKey,
    pkcs8::{DecodePrivateKey, EncodePrivateKey, spki::der::pem::LineEnding},
};
use http::{StatusCode, header, request::Parts};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use quick_cache::sync::Cache;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{eddsa, problem::Problem, secret::Secret};

/// The `iss` of our tokens: another issuer's token is not ours, whatever key signed it.
pub const ISSUER: &str = "ticketping";

/// How many verified tokens are remembered. At some 400 bytes each this bounds
/// the cache near 26 MB; beyond it the least used are verified again.
const VERIFIED_MAX: usize = 65_536;

/// What a token must be beyond well signed.
static VALIDATION: LazyLock<Validation> = LazyLock::new(|| {
    let mut validation = Validation::new(Algorithm::EdDSA);
    validation.leeway = 0;
    validation.set_issuer(&[ISSUER]);
    validation
});

/// What the bearer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Role {
    /// A buyer.
    User,
    /// An operator: `/admin/v1`.
    Admin,
}

/// The claims of an access token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Claims {
    /// Whose token it is.
    pub sub: Uuid,
    /// What they may do.
    pub role: Role,
    /// Always [`ISSUER`].
    pub iss: String,
    /// Issued at, seconds since 1970.
    pub iat: i64,
    /// Expires at, seconds since 1970.
    pub exp: i64,
}

/// Why a token was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// There is none.
    Missing,
    /// Not a token of ours.
    Invalid,
    /// It was ours, and its time is over.
    Expired,
    /// Nobody can tell yet: the users role has not been asked for its keys. Its answer must not
    /// be "log in again", which would throw a good token away.
    Unknown,
}

impl From<AuthError> for Problem {
    fn from(error: AuthError) -> Self {
        let (code, detail) = match error {
            AuthError::Missing => (
                "UNAUTHENTICATED",
                "Send an access token: Authorization: Bearer <token>.",
            ),
            AuthError::Invalid => (
                "UNAUTHENTICATED",
                "The access token is not valid. Log in again.",
            ),
            AuthError::Expired => (
                "TOKEN_EXPIRED",
                "The access token has expired. Refresh it or log in again.",
            ),
            AuthError::Unknown => {
                return Self::unavailable("the keys of access tokens are not read yet");
            }
        };
        Self::new(StatusCode::UNAUTHORIZED, code, detail)
    }
}

/// One public key of a JWK set.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Jwk {
    /// Always `OKP`.
    pub kty: String,
    /// Always `Ed25519`.
    pub crv: String,
    /// The public key, base64url.
    pub x: String,
    /// The key's id, named by the tokens it verifies.
    pub kid: String,
    /// Always `EdDSA`.
    pub alg: String,
    /// Always `sig`.
    pub r#use: String,
}

/// The public keys of access tokens.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Jwks {
    /// Newest first; the older ones overlap during a rotation.
    pub keys: Vec<Jwk>,
}

/// Signs access tokens. Only the users role and the `token` command hold one.
#[derive(Clone)]
pub struct Signer {
    kid: String,
    key: Arc<EncodingKey>,
    public: Jwk,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("kid", &self.kid)
            .finish_non_exhaustive()
    }
}

impl Signer {
    /// Reads an Ed25519 private key, PKCS#8 in PEM.
    ///
    /// # Errors
    /// When `pem` is no such key.
    pub fn from_pem(pem: &str) -> Result<Self, String> {
        let key = SigningKey::from_pkcs8_pem(pem.trim())
            .map_err(|e| format!("not an Ed25519 private key in PKCS#8 PEM: {e}"))?;
        Self::new(&key)
    }

    /// A new random key, and its PKCS#8 PEM to keep.
    ///
    /// # Errors
    /// Never in practice: encoding a key cannot fail.
    pub fn generate() -> Result<(Self, String), String> {
        let key = SigningKey::from_bytes(&rand::random());
        let pem = key
            .to_pkcs8_pem(LineEnding::LF)
            .map_err(|e| e.to_string())?;
        Ok((Self::new(&key)?, pem.to_string()))
    }

    fn new(key: &SigningKey) -> Result<Self, String> {
        eddsa::install();
        let public = key.verifying_key().to_bytes();
        let kid = hex::encode(&Sha256::digest(public)[..8]);
        let der = key.to_pkcs8_der().map_err(|e| e.to_string())?;
        Ok(Self {
            kid: kid.clone(),
            key: Arc::new(EncodingKey::from_ed_der(der.as_bytes())),
            public: Jwk {
                kty: "OKP".into(),
                crv: "Ed25519".into(),
                x: URL_SAFE_NO_PAD.encode(public),
                kid,
                alg: "EdDSA".into(),
                r#use: "sig".into(),
            },
        })
    }

    /// An access token for `user`, valid for `ttl` from now.
    pub fn sign(&self, user: Uuid, role: Role, ttl: std::time::Duration) -> String {
        let iat = Utc::now().timestamp();
        let exp = iat + i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX / 2);
        let claims = Claims {
            sub: user,
            role,
            iss: ISSUER.into(),
            iat,
            exp,
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.kid.clone());
        jsonwebtoken::encode(&header, &claims, &self.key)
            .expect("signing plain claims with an Ed25519 key cannot fail")
    }

    /// The public half.
    pub fn jwk(&self) -> &Jwk {
        &self.public
    }
}

/// Verifies access tokens against a set of public keys. Cheap to clone.
#[derive(Clone)]
pub struct Verifier {
    keys: Arc<ArcSwap<Vec<(String, DecodingKey)>>>,
    verified: Arc<Cache<Box<str>, Arc<Claims>>>,
}

impl Verifier {
    /// A verifier for `jwks`.
    ///
    /// # Errors
    /// When a key of the set is not an Ed25519 key.
    pub fn new(jwks: &Jwks) -> Result<Self, String> {
        eddsa::install();
        let this = Self {
            keys: Arc::default(),
            verified: Arc::new(Cache::new(VERIFIED_MAX)),
        };
        this.replace(jwks)?;
        Ok(this)
    }

    /// Takes `jwks` in place of the keys so far; tokens of keys that are gone
    /// are refused from now on.
    ///
    /// # Errors
    /// When a key of the set is not an Ed25519 key; the old keys stay then.
    pub fn replace(&self, jwks: &Jwks) -> Result<(), String> {
        let keys = jwks
            .keys
            .iter()
            .map(|jwk| {
                DecodingKey::from_ed_components(&jwk.x)
                    .map(|key| (jwk.kid.clone(), key))
                    .map_err(|e| format!("public key {}: {e}", jwk.kid))
            })
            .collect::<Result<Vec<_>, _>>()?;
        self.keys.store(Arc::new(keys));
        self.verified.clear();
        Ok(())
    }

    /// Whether there is any key yet.
    pub fn has_keys(&self) -> bool {
        !self.keys.load().is_empty()
    }

    /// The claims of `token`.
    ///
    /// # Errors
    /// [`AuthError::Invalid`], [`AuthError::Expired`], or [`AuthError::Unknown`].
    pub fn verify(&self, token: &str) -> Result<Arc<Claims>, AuthError> {
        if let Some(claims) = self.verified.get(token) {
            return if claims.exp > Utc::now().timestamp() {
                Ok(claims)
            } else {
                self.verified.remove(token);
                Err(AuthError::Expired)
            };
        }
        let claims = Arc::new(self.verify_signature(token)?);
        // The library takes a token to the end of its last second; ours ends with its beginning,
        // at first sight as from the cache.
        if claims.exp <= Utc::now().timestamp() {
            return Err(AuthError::Expired);
        }
        self.verified.insert(token.into(), claims.clone());
        Ok(claims)
    }

    fn verify_signature(&self, token: &str) -> Result<Claims, AuthError> {
        use jsonwebtoken::errors::ErrorKind;
        let header = jsonwebtoken::decode_header(token).map_err(|_| AuthError::Invalid)?;
        let keys = self.keys.load();
        if keys.is_empty() {
            return Err(AuthError::Unknown);
        }
        let kid = header.kid.as_deref().ok_or(AuthError::Invalid)?;
        let (_, key) = keys
            .iter()
            .find(|(k, _)| k == kid)
            .ok_or(AuthError::Invalid)?;
        match jsonwebtoken::decode::<Claims>(token, key, &VALIDATION) {
            Ok(data) => Ok(data.claims),
            Err(e) if matches!(e.kind(), ErrorKind::ExpiredSignature) => Err(AuthError::Expired),
            Err(_) => Err(AuthError::Invalid),
        }
    }

    /// The claims of the bearer of a request with these `headers`.
    ///
    /// # Errors
    /// As [`Verifier::verify`], and [`AuthError::Missing`].
    pub fn bearer(&self, headers: &http::HeaderMap) -> Result<Arc<Claims>, AuthError> {
        let value = headers
            .get(header::AUTHORIZATION)
            .ok_or(AuthError::Missing)?;
        let value = value.to_str().map_err(|_| AuthError::Invalid)?;
        let (scheme, token) = value.split_once(' ').ok_or(AuthError::Invalid)?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(AuthError::Missing);
        }
        self.verify(token.trim())
    }
}

/// Who calls: extracted from a verified access token.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The user.
    pub user_id: Uuid,
    /// What they may do.
    pub role: Role,
}

impl<S> FromRequestParts<S> for Caller
where
    S: Send + Sync,
    Verifier: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let claims = Verifier::from_ref(state).bearer(&parts.headers)?;
        Ok(Self {
            user_id: claims.sub,
            role: claims.role,
        })
    }
}

/// A caller who is an operator; anybody else gets 403.
#[derive(Clone, Copy, Debug)]
pub struct Admin(pub Caller);

impl<S> FromRequestParts<S> for Admin
where
    S: Send + Sync,
    Verifier: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        match caller.role {
            Role::Admin => Ok(Self(caller)),
            Role::User => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "FORBIDDEN",
                "This needs an operator's access token (role ADMIN).",
            )),
        }
    }
}

/// What one role shows another on `/internal/v1`, so that nobody else gets in
/// where the roles run apart.
#[derive(Clone, Debug)]
pub struct InternalSecret(pub Secret);

impl InternalSecret {
    /// The value of the `Authorization` header.
    pub fn header(&self) -> String {
        format!("Internal {}", self.0.expose())
    }
}

/// Proof that the caller is another role.
#[derive(Clone, Copy, Debug)]
pub struct Internal;

impl<S> FromRequestParts<S> for Internal
where
    S: Send + Sync,
    InternalSecret: FromRef<S>,
{
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let want = InternalSecret::from_ref(state).header();
        let got = parts
            .headers
            .get(header::AUTHORIZATION)
            .map_or(&[][..], |v| v.as_bytes());
        if bool::from(want.as_bytes().ct_eq(got)) {
            Ok(Self)
        } else {
            Err(Problem::new(
                StatusCode::FORBIDDEN,
                "FORBIDDEN",
                "This path is for Ticketping's own roles.",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn pair() -> (Signer, Verifier) {
        let (signer, _) = Signer::generate().unwrap();
        let verifier = Verifier::new(&Jwks {
            keys: vec![signer.jwk().clone()],
        })
        .unwrap();
        (signer, verifier)
    }

    #[test]
    fn a_token_is_verified_once_and_then_remembered() {
        let (signer, verifier) = pair();
        let user = Uuid::now_v7();
        let token = signer.sign(user, Role::Admin, Duration::from_secs(60));
        for _ in 0..2 {
            let claims = verifier.verify(&token).unwrap();
            assert_eq!((claims.sub, claims.role), (user, Role::Admin));
        }
        assert_eq!(verifier.verified.len(), 1);
    }

    #[test]
    fn expired_foreign_and_tampered_tokens_are_refused() {
        let (signer, verifier) = pair();
        let expired = signer.sign(Uuid::now_v7(), Role::User, Duration::ZERO);
        assert_eq!(verifier.verify(&expired).unwrap_err(), AuthError::Expired);
        let (other, _) = pair();
        let foreign = other.sign(Uuid::now_v7(), Role::Admin, Duration::from_secs(60));
        assert_eq!(verifier.verify(&foreign).unwrap_err(), AuthError::Invalid);
        let mut tampered = signer.sign(Uuid::now_v7(), Role::User, Duration::from_secs(60));
        let middle = tampered.len() / 2;
        let swap = if tampered.as_bytes()[middle] == b'A' {
            "B"
        } else {
            "A"
        };
        tampered.replace_range(middle..=middle, swap);
        assert_eq!(verifier.verify(&tampered).unwrap_err(), AuthError::Invalid);
    }

    /// Found by `chaos`: a gateway that started while the users role was down told everybody to
    /// log in again.
    #[test]
    fn without_keys_no_token_is_called_invalid() {
        let (signer, _) = Signer::generate().unwrap();
        let token = signer.sign(Uuid::now_v7(), Role::User, Duration::from_secs(60));
        let verifier = Verifier::new(&Jwks::default()).unwrap();
        let refused = verifier.verify(&token).unwrap_err();
        assert_eq!(refused, AuthError::Unknown);
        assert_eq!(
            Problem::from(refused).status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(verifier.verify("nonsense").unwrap_err(), AuthError::Invalid);
    }

    #[test]
    fn a_rotated_key_verifies_until_it_is_gone() {
        let (old, verifier) = pair();
        let token = old.sign(Uuid::now_v7(), Role::User, Duration::from_secs(60));
        let (new, _) = Signer::generate().unwrap();
        let both = Jwks {
            keys: vec![new.jwk().clone(), old.jwk().clone()],
        };
        verifier.replace(&both).unwrap();
        assert!(verifier.verify(&token).is_ok());
        verifier
            .replace(&Jwks {
                keys: vec![new.jwk().clone()],
            })
            .unwrap();
        assert_eq!(verifier.verify(&token).unwrap_err(), AuthError::Invalid);
    }

    #[test]
    fn a_key_survives_its_pem() {
        let (signer, pem) = Signer::generate().unwrap();
        assert_eq!(Signer::from_pem(&pem).unwrap().jwk().kid, signer.jwk().kid);
        assert!(
            Signer::from_pem("nonsense")
                .unwrap_err()
                .contains("Ed25519")
        );
    }
}
