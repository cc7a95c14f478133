//! The HTTP surface of members.

use std::time::Instant;

use axum::extract::State;
use chrono::{DateTime, Utc};
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};
use uuid::Uuid;

use super::{
    Error, Users,
    address::ClientAddress,
    input::{Login, RefreshToken, SignUp, normalise_email},
    store,
};
use crate::platform::{
    auth::{Caller, Jwks, Role},
    http::Json,
    problem::ProblemBody,
};

/// The routes of this role.
pub fn router(state: Users) -> OpenApiRouter {
    routes().with_state(state)
}

/// The paths alone, for the OpenAPI document.
pub fn routes() -> OpenApiRouter<Users> {
    OpenApiRouter::new()
        .routes(routes!(sign_up))
        .routes(routes!(log_in))
        .routes(routes!(refresh))
        .routes(routes!(log_out))
        .routes(routes!(me))
        .routes(routes!(jwks))
}

/// A member.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UserBody {
    id: Uuid,
    email: String,
    name: String,
    created_at: DateTime<Utc>,
}

impl From<store::User> for UserBody {
    fn from(user: store::User) -> Self {
        Self {
            id: user.id,
            email: user.email,
            name: user.name,
            created_at: user.created_at,
        }
    }
}

/// What a log-in gives.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TokensBody {
    /// Send it as `Authorization: Bearer <accessToken>`.
    access_token: String,
    /// Always `Bearer`.
    token_type: &'static str,
    /// Seconds until the access token expires.
    expires_in: u64,
    /// Trades for the next pair, once. Keep only the newest.
    refresh_token: String,
}

impl Users {
    fn tokens(&self, user: Uuid, role: Role, refresh_token: String) -> TokensBody {
        let ttl = self.config.access_token_ttl;
        TokensBody {
            access_token: self.signer.sign(user, role, ttl),
            token_type: "Bearer",
            expires_in: ttl.as_secs(),
            refresh_token,
        }
    }
}

/// Become a member.
#[utoipa::path(post, path = "/api/v1/users", tag = "Members", request_body = SignUp, responses(
    (status = 201, body = UserBody),
    (status = 409, description = "EMAIL_TAKEN", body = ProblemBody),
    (status = 422, description = "VALIDATION_FAILED", body = ProblemBody),
    (status = 429, description = "TOO_MANY_REQUESTS", body = ProblemBody)))]
async fn sign_up(
    State(users): State<Users>,
    ClientAddress(address): ClientAddress,
    Json(body): Json<SignUp>,
) -> Result<(StatusCode, Json<UserBody>), Error> {
    users
        .limits
        .sign_up
        .check(address)
        .map_err(Error::TooManyRequests)?;
    let user = body.validate().map_err(Error::Invalid)?;
    if store::email_taken(&users.pool, &user.email).await? {
        return Err(Error::EmailTaken);
    }
    let hash = users
        .passwords
        .turn()
        .await?
        .hash(user.password.clone())
        .await?;
    let user = store::create(&users.pool, &user, &hash).await?;
    users.counters.signed_up.inc();
    Ok((StatusCode::CREATED, Json(user.into())))
}

/// Log in.
#[utoipa::path(post, path = "/api/v1/auth/login", tag = "Members", request_body = Login, responses(
    (status = 200, body = TokensBody),
    (status = 401, description = "INVALID_CREDENTIALS", body = ProblemBody),
    (status = 422, description = "VALIDATION_FAILED", body = ProblemBody),
    (status = 429, description = "TOO_MANY_ATTEMPTS after repeated failures, TOO_MANY_REQUESTS", body = ProblemBody)))]
async fn log_in(
    State(users): State<Users>,
    ClientAddress(address): ClientAddress,
    Json(body): Json<Login>,
) -> Result<Json<TokensBody>, Error> {
    users
        .limits
        .login
        .check(address)
        .map_err(Error::TooManyRequests)?;
    // What can be nobody's address is treated like an unknown one, at the same cost.
    let email = normalise_email(&body.email);
    let account = email.as_deref().unwrap_or_default();
    let check = || match users.throttle.wait(address, account, Instant::now()) {
        Some(wait) => Err(Error::TooManyAttempts(wait)),
        None => Ok(()),
    };
    check()?;
    let turn = users.passwords.turn().await?;
    // Again: while this one waited, the turns before it may have used up the tries.
    check()?;
    let known = match &email {
        Some(email) => store::credentials(&users.pool, email).await?,
        None => None,
    };
    let hash = known.as_ref().map(|known| known.password_hash.clone());
    let right = turn.verify(body.password, hash).await?;
    let Some(known) = known.filter(|_| right) else {
        users.throttle.failed(address, account, Instant::now());
        users.counters.login_failed.inc();
        return Err(Error::InvalidCredentials);
    };
    drop(turn);
    users.throttle.succeeded(address, account);
    let token = store::open_session(&users.pool, known.id, users.config.refresh_token_ttl).await?;
    users.counters.logged_in.inc();
    Ok(Json(users.tokens(known.id, known.role(), token)))
}

/// Trade a refresh token for a new pair.
#[utoipa::path(post, path = "/api/v1/auth/refresh", tag = "Members", request_body = RefreshToken, responses(
    (status = 200, body = TokensBody),
    (status = 401, description = "REFRESH_REUSED (the whole session is revoked) or INVALID_REFRESH_TOKEN", body = ProblemBody)))]
async fn refresh(
    State(users): State<Users>,
    Json(body): Json<RefreshToken>,
) -> Result<Json<TokensBody>, Error> {
    match store::rotate(&users.pool, &body.refresh_token).await {
        Ok(session) => {
            users.counters.refreshed.inc();
            let tokens = users.tokens(session.user_id, session.role, session.refresh_token);
            Ok(Json(tokens))
        }
        Err(error) => {
            if matches!(error, Error::RefreshReused) {
                users.counters.refresh_reused.inc();
            }
            Err(error)
        }
    }
}

/// End a session: its refresh tokens are worth nothing from now on.
#[utoipa::path(post, path = "/api/v1/auth/logout", tag = "Members", request_body = RefreshToken, responses(
    (status = 204, description = "Ended, or was not there")))]
async fn log_out(
    State(users): State<Users>,
    Json(body): Json<RefreshToken>,
) -> Result<StatusCode, Error> {
    store::close_session(&users.pool, &body.refresh_token).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Who I am.
#[utoipa::path(get, path = "/api/v1/users/me", tag = "Members", security(("accessToken" = [])), responses(
    (status = 200, body = UserBody),
    (status = 401, description = "UNAUTHENTICATED, TOKEN_EXPIRED", body = ProblemBody)))]
async fn me(State(users): State<Users>, caller: Caller) -> Result<Json<UserBody>, Error> {
    let user = store::find(&users.pool, caller.user_id)
        .await?
        .ok_or(Error::NoSuchMember)?;
    Ok(Json(user.into()))
}

/// The public keys of access tokens.
#[utoipa::path(get, path = "/.well-known/jwks.json", tag = "Members", responses((status = 200, body = Jwks)))]
async fn jwks(State(users): State<Users>) -> ([(HeaderName, HeaderValue); 1], Json<Jwks>) {
    // Short, so that a key announced before a rotation is known everywhere in time.
    let cache = HeaderValue::from_static("public, max-age=60");
    (
        [(header::CACHE_CONTROL, cache)],
        Json((*users.jwks).clone()),
    )
}
