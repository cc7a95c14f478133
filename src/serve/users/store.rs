//! Members and sessions in PostgreSQL.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

use super::{Error, input::NewUser};
use crate::platform::auth::Role;

/// How many ended sessions one sweep deletes, so that it never holds locks for long.
const SWEEP_MAX: i64 = 1_000;

/// A member as the API shows one.
pub struct User {
    pub id: Uuid,
    pub email: String,
    pub name: String,
    pub created_at: DateTime<Utc>,
}

crate::from_row!(User {
    id,
    email,
    name,
    created_at
});

/// What a log-in is checked against.
pub struct Credentials {
    pub id: Uuid,
    pub password_hash: String,
    role: String,
}

crate::from_row!(Credentials {
    id,
    password_hash,
    role
});

impl Credentials {
    pub fn role(&self) -> Role {
        role(&self.role)
    }
}

/// A session's newest refresh token, and whose it is.
pub struct Session {
    pub user_id: Uuid,
    pub role: Role,
    pub refresh_token: String,
}

fn role(text: &str) -> Role {
    if text == "ADMIN" {
        Role::Admin
    } else {
        Role::User
    }
}

/// A new refresh token: 256 random bits, told apart from access tokens by its prefix.
fn new_token() -> String {
    format!("tpr_{}", URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>()))
}

fn hash(token: &str) -> Vec<u8> {
    Sha256::digest(token).to_vec()
}

/// Whether `email` has an account: spares a hash, decides nothing.
pub async fn email_taken(pool: &PgPool, email: &str) -> Result<bool, Error> {
    Ok(
        sqlx::query_scalar("select exists (select from users where email = $1)")
            .bind(email)
            .fetch_one(pool)
            .await?,
    )
}

/// Adds a member; the unique constraint decides who is first.
pub async fn create(pool: &PgPool, user: &NewUser, password_hash: &str) -> Result<User, Error> {
    sqlx::query_as(
        "insert into users (id, email, name, password_hash) values ($1, $2, $3, $4)
         returning id, email, name, created_at",
    )
    .bind(Uuid::now_v7())
    .bind(&user.email)
    .bind(&user.name)
    .bind(password_hash)
    .fetch_one(pool)
    .await
    .map_err(|error| match &error {
        sqlx::Error::Database(db) if db.constraint() == Some("users_email_key") => {
            Error::EmailTaken
        }
        _ => error.into(),
    })
}

pub async fn find(pool: &PgPool, id: Uuid) -> Result<Option<User>, Error> {
    Ok(
        sqlx::query_as("select id, email, name, created_at from users where id = $1")
            .bind(id)
            .fetch_optional(pool)
            .await?,
    )
}

pub async fn credentials(pool: &PgPool, email: &str) -> Result<Option<Credentials>, Error> {
    Ok(
        sqlx::query_as("select id, password_hash, role from users where email = $1")
            .bind(email)
            .fetch_optional(pool)
            .await?,
    )
}

/// Opens a session: a family with its first refresh token, which is returned.
pub async fn open_session(pool: &PgPool, user_id: Uuid, ttl: Duration) -> Result<String, Error> {
    let token = new_token();
    sqlx::query(
        "with family as (
             insert into refresh_families (id, user_id, expires_at)
             values ($1, $2, now() + make_interval(secs => $3))
             returning id, expires_at)
         insert into refresh_tokens (hash, family_id, expires_at)
         select $4, id, expires_at from family",
    )
    .bind(Uuid::now_v7())
    .bind(user_id)
    .bind(ttl.as_secs_f64())
    .bind(hash(&token))
    .execute(pool)
    .await?;
    Ok(token)
}

struct Family {
    id: Uuid,
    user_id: Uuid,
    role: String,
    expired: bool,
    revoked_reason: Option<String>,
}

crate::from_row!(Family {
    id,
    user_id,
    role,
    expired,
    revoked_reason
});

/// Trades `token` for the next of its family. Shown a second time, however
/// close to the first, it ends the whole family: either the member or a thief has a copy.
pub async fn rotate(pool: &PgPool, token: &str) -> Result<Session, Error> {
    let mut tx = pool.begin().await?;
    // The family is locked first, and its token read by a statement of its own: that
    // sees what the holder of the lock before us has committed.
    let family: Option<Family> = sqlx::query_as(
        "select f.id, f.user_id, u.role, f.expires_at <= now() as expired, f.revoked_reason
         from refresh_families f join users u on u.id = f.user_id
         where f.id = (select family_id from refresh_tokens where hash = $1)
         for update of f",
    )
    .bind(hash(token))
    .fetch_optional(&mut *tx)
    .await?;
    let family = family.ok_or(Error::InvalidRefreshToken)?;
    match family.revoked_reason.as_deref() {
        Some("REUSED") => return Err(Error::RefreshReused),
        Some(_) => return Err(Error::InvalidRefreshToken),
        None if family.expired => return Err(Error::InvalidRefreshToken),
        None => {}
    }
    let traded = sqlx::query(
        "update refresh_tokens set used_at = now() where hash = $1 and used_at is null",
    )
    .bind(hash(token))
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if traded == 0 {
        sqlx::query(
            "update refresh_families set revoked_at = now(), revoked_reason = 'REUSED' where id = $1",
        )
        .bind(family.id)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        tracing::warn!(user.id = %family.user_id, family.id = %family.id, "refresh token reused; session revoked");
        return Err(Error::RefreshReused);
    }
    let next = new_token();
    sqlx::query(
        "insert into refresh_tokens (hash, family_id, expires_at)
         select $2, id, expires_at from refresh_families where id = $1",
    )
    .bind(family.id)
    .bind(hash(&next))
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Session {
        user_id: family.user_id,
        role: role(&family.role),
        refresh_token: next,
    })
}

/// Ends the session of `token`, if there is one.
pub async fn close_session(pool: &PgPool, token: &str) -> Result<(), Error> {
    sqlx::query(
        "update refresh_families set revoked_at = now(), revoked_reason = 'LOGOUT'
         where id = (select family_id from refresh_tokens where hash = $1) and revoked_at is null",
    )
    .bind(hash(token))
    .execute(pool)
    .await?;
    Ok(())
}

/// Deletes some sessions that ended by time. Revoked ones stay until then, so
/// that their tokens are still answered for what they are.
pub async fn sweep(pool: &PgPool) -> Result<u64, sqlx::Error> {
    Ok(sqlx::query(
        "delete from refresh_families where id in (
             select id from refresh_families where expires_at <= now()
             order by expires_at limit $1 for update skip locked)",
    )
    .bind(SWEEP_MAX)
    .execute(pool)
    .await?
    .rows_affected())
}
