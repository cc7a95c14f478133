//! `Idempotency-Key`: a buyer's retry gets the first answer, not a second order.
//!
//! Decided in Postgres, so that it holds across instances and restarts. Each
//! role that takes such keys has a table `idempotency_keys` of the shape in
//! `migrations/reservations/0001_orders.sql`. The id of what will be made is
//! allotted with the key, before the work: whoever takes over a key whose
//! request died makes the same thing, not another.
//!
//! Kept are 2xx and final 4xx. What may turn out otherwise next time (401, 403,
//! 429, 5xx) is not: the key is let go, and its resource id stays with it.

use std::{future::Future, time::Duration};

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, PgPool, Row};
use tracing::Instrument;
use uuid::Uuid;

use super::{
    db,
    problem::{FieldError, Problem},
};

/// The request header.
pub const HEADER: &str = "idempotency-key";
const REPLAYED: &str = "idempotency-replayed";
const IN_PROGRESS: &str = "IDEMPOTENCY_IN_PROGRESS";
/// While a request runs it refreshes its key, from now on and so often.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A request whose key was not refreshed for so long has died, is frozen, or is cut off. Its fence
/// keeps it from writing should it go on.
const TAKEOVER_S: i32 = 5;
/// Between tries to give a key up while the database is away; then it is taken over anyway.
const LET_GO_EVERY: Duration = Duration::from_millis(500);
/// How long an answer is replayed; older keys are free again.
const KEPT_H: i32 = 24;
/// Rows removed in one statement, so that cleaning never holds locks for long.
const PURGE_BATCH: i64 = 1_000;

/// A key that this request holds until it answers.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The id of what the request will make.
    pub resource_id: Uuid,
    /// Whose key it is.
    pub user_id: Uuid,
    /// The key.
    pub key: String,
    /// Which attempt this is; an overtaken one cannot write its answer.
    pub fence: i32,
}

/// What a piece of work answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// 200 or 201.
    pub status: StatusCode,
    /// The JSON body.
    pub body: Bytes,
    /// True when the work has already kept the answer, in its own transaction.
    pub kept: bool,
}

enum Begin {
    Mine(Claim),
    Replay(StatusCode, Vec<u8>),
}

/// The key of a request, where it has one.
///
/// # Errors
/// 422 when it is not 1..255 visible ASCII characters.
pub fn key_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(HEADER) else {
        return Ok(None);
    };
    let bytes = value.as_bytes();
    if (1..=255).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic) {
        return Ok(Some(String::from_utf8_lossy(bytes).into_owned()));
    }
    Err(Problem::validation(vec![FieldError::new(
        "Idempotency-Key",
        "must be 1 to 255 visible ASCII characters",
    )]))
}

/// Runs `work` under the request's key, or replays what it answered before.
///
/// `work` gets the id to give to what it makes, and the claim where there is a
/// key. It runs in a task of its own: a client that hangs up does not leave it
/// half done.
///
/// # Errors
/// What `work` fails with, and 422 `IDEMPOTENCY_KEY_REUSED`, 409 `IDEMPOTENCY_IN_PROGRESS`.
pub async fn run<F, Fut>(
    pool: &PgPool,
    user_id: Uuid,
    headers: &HeaderMap,
    body: &Value,
    work: F,
) -> Result<Response, Problem>
where
    F: FnOnce(Uuid, Option<Claim>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<Answer, Problem>> + Send + 'static,
{
    let Some(key) = key_of(headers)? else {
        let answer = detached(work(Uuid::now_v7(), None)).await?;
        return Ok(respond(answer.status, answer.body));
    };
    let claim = match begin(pool, user_id, key, body).await? {
        Begin::Mine(claim) => claim,
        Begin::Replay(status, kept) => {
            return Ok(replay(status, kept, headers));
        }
    };
    let pool = pool.clone();
    detached(async move {
        let result = tokio::select! {
            // A thawed request finds out first that it was overtaken.
            biased;
            () = overtaken(&pool, &claim) => Err(in_progress(1)),
            result = work(claim.resource_id, Some(claim.clone())) => result,
        };
        match &result {
            Err(problem) if problem.code() == IN_PROGRESS => {}
            Ok(answer) if answer.kept => {}
            Ok(answer) => keep(&pool, &claim, answer.status, &answer.body).await,
            Err(problem) if is_final(problem.status()) => {
                keep(&pool, &claim, problem.status(), &problem.body(None)).await;
            }
            // The answer does not wait for it: the database may be what is away.
            Err(_) => drop(tokio::spawn(async move { let_go(&pool, &claim).await })),
        }
        result
    })
    .await
    .map(|answer| respond(answer.status, answer.body))
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result,
        Err(panic) => Err(Problem::internal(panic)),
    }
}

/// Will the same request be answered the same way for ever?
fn is_final(status: StatusCode) -> bool {
    status.is_client_error()
        && !matches!(
            status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::TOO_MANY_REQUESTS
        )
}

fn respond(status: StatusCode, body: Bytes) -> Response {
    let kind = if status.is_success() {
        "application/json"
    } else {
        super::problem::PROBLEM_JSON
    };
    let mut response = (status, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The kept answer; a problem names the request that asks now, not the first one.
fn replay(status: StatusCode, mut body: Vec<u8>, headers: &HeaderMap) -> Response {
    let request_id = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    if let (false, Some(id)) = (status.is_success(), request_id)
        && let Ok(Value::Object(mut problem)) = serde_json::from_slice(&body)
    {
        problem.insert("requestId".into(), id.into());
        body = Value::Object(problem).to_string().into_bytes();
    }
    let mut response = respond(status, body.into());
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// The same JSON is the same request, however it is spaced or ordered.
fn hash(body: &Value) -> [u8; 32] {
    Sha256::digest(body.to_string()).into()
}

async fn begin(pool: &PgPool, user_id: Uuid, key: String, body: &Value) -> Result<Begin, Problem> {
    let body_hash = hash(body);
    // One statement decides: a new row, a key whose 24 h are over, or the
    // takeover of a dead request. No row comes back where another one holds it.
    let mine = sqlx::query(
        "insert into idempotency_keys as k (user_id, key, body_hash, resource_id)
         values ($1, $2, $3, $4)
         on conflict (user_id, key) do update set
             resource_id = case when k.created_at < now() - make_interval(hours => $6)
                                then excluded.resource_id else k.resource_id end,
             created_at = case when k.created_at < now() - make_interval(hours => $6)
                               then now() else k.created_at end,
             body_hash = excluded.body_hash, status = null, body = null,
             fence = k.fence + 1, locked_at = now()
         where k.created_at < now() - make_interval(hours => $6)
            or (k.status is null and k.body_hash = excluded.body_hash
                and k.locked_at < now() - make_interval(secs => $5))
         returning resource_id, fence::int as fence",
    )
    .bind(user_id)
    .bind(&key)
    .bind(&body_hash[..])
    .bind(Uuid::now_v7())
    .bind(f64::from(TAKEOVER_S))
    .bind(KEPT_H)
    .fetch_optional(pool)
    .await?;
    if let Some(row) = mine {
        let (resource_id, fence) = (row.try_get("resource_id")?, row.try_get("fence")?);
        return Ok(Begin::Mine(Claim {
            resource_id,
            user_id,
            key,
            fence,
        }));
    }
    held_by_another(pool, user_id, &key, &body_hash).await
}

async fn held_by_another(
    pool: &PgPool,
    user_id: Uuid,
    key: &str,
    body_hash: &[u8],
) -> Result<Begin, Problem> {
    let row = sqlx::query(
        "select body_hash, status::smallint as status, body,
                ceil(extract(epoch from locked_at + make_interval(secs => $3) - now()))::int as wait_s
         from idempotency_keys where user_id = $1 and key = $2",
    )
    .bind(user_id)
    .bind(key)
    .bind(f64::from(TAKEOVER_S))
    .fetch_optional(pool)
    .await?;
    // Gone between the two statements: it was just let go or cleaned away.
    let Some(row) = row else {
        return Err(in_progress(1));
    };
    if row.try_get::<Vec<u8>, _>("body_hash")? != body_hash {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "IDEMPOTENCY_KEY_REUSED",
            "This Idempotency-Key was used for another request. Use a new key.",
        ));
    }
    let Some(status) = row.try_get::<Option<i16>, _>("status")? else {
        return Err(in_progress(row.try_get::<i32, _>("wait_s")?));
    };
    let status = u16::try_from(status)
        .ok()
        .and_then(|s| StatusCode::from_u16(s).ok())
        .ok_or_else(|| Problem::internal(format!("kept status {status}")))?;
    Ok(Begin::Replay(
        status,
        row.try_get::<Option<_>, _>("body")?.unwrap_or_default(),
    ))
}

fn in_progress(wait_s: i32) -> Problem {
    // Most first requests end within a second; only a dead one takes longer.
    let wait_s = u64::try_from(wait_s).unwrap_or(0).clamp(1, 2);
    Problem::new(
        StatusCode::CONFLICT,
        IN_PROGRESS,
        "The first request with this Idempotency-Key is still running.",
    )
    .retry_after(wait_s)
}

/// Keeps the answer, in the caller's transaction. False: another attempt took
/// the key over, and its answer counts.
///
/// # Errors
/// When the database fails.
pub async fn finish(
    conn: &mut PgConnection,
    claim: &Claim,
    status: StatusCode,
    body: &[u8],
) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "update idempotency_keys set status = $4, body = $5
         where user_id = $1 and key = $2 and fence = $3 and status is null",
    )
    .bind(claim.user_id)
    .bind(&claim.key)
    .bind(claim.fence)
    .bind(i16::try_from(status.as_u16()).unwrap_or(i16::MAX))
    .bind(body)
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// An answer that could not be kept is still an answer: the next attempt finds
/// what was made under the same resource id.
async fn keep(pool: &PgPool, claim: &Claim, status: StatusCode, body: &[u8]) {
    let done = async {
        let mut conn = pool.acquire().await?;
        finish(&mut conn, claim, status, body).await
    };
    if let Err(error) = done.await {
        db::observe(&error);
        tracing::warn!(%error, "an idempotent answer could not be kept");
    }
}

/// Refreshes the key for as long as this request has it; returns when another one took it over.
async fn overtaken(pool: &PgPool, claim: &Claim) {
    loop {
        tokio::time::sleep(HEARTBEAT).await;
        let refreshed = sqlx::query(
            "update idempotency_keys set locked_at = now()
             where user_id = $1 and key = $2 and fence = $3",
        )
        .bind(claim.user_id)
        .bind(&claim.key)
        .bind(claim.fence)
        .execute(pool);
        match db::within(HEARTBEAT * 3, refreshed).await {
            Ok(done) if done.rows_affected() == 0 => {
                tracing::warn!(
                    "an overtaken request with an Idempotency-Key ends without an answer"
                );
                return;
            }
            Ok(_) => {}
            Err(error) => {
                db::observe(&error);
                tracing::debug!(%error, "an idempotency key is not refreshed now");
            }
        }
    }
}

/// Gives the key to the next try, which need not wait for the takeover then.
async fn let_go(pool: &PgPool, claim: &Claim) {
    let begun = tokio::time::Instant::now();
    loop {
        let done = sqlx::query(
            "update idempotency_keys set locked_at = 'epoch'
             where user_id = $1 and key = $2 and fence = $3 and status is null",
        )
        .bind(claim.user_id)
        .bind(&claim.key)
        .bind(claim.fence)
        .execute(pool)
        .await;
        let Err(error) = done else { return };
        db::observe(&error);
        if begun.elapsed().as_secs() >= u64::from(TAKEOVER_S.unsigned_abs()) {
            tracing::warn!(%error, "an idempotency key could not be let go; it is taken over soon");
            return;
        }
        tokio::time::sleep(LET_GO_EVERY).await;
    }
}

/// Removes the keys whose 24 hours are over. Call it every few minutes.
///
/// # Errors
/// When the database fails.
pub async fn purge(pool: &PgPool) -> sqlx::Result<u64> {
    let mut total = 0;
    loop {
        let gone = sqlx::query(
            "delete from idempotency_keys where (user_id, key) in (
                 select user_id, key from idempotency_keys
                 where created_at < now() - make_interval(hours => $1) limit $2)",
        )
        .bind(KEPT_H)
        .bind(PURGE_BATCH)
        .execute(pool)
        .await?
        .rows_affected();
        total += gone;
        if gone < PURGE_BATCH.unsigned_abs() {
            return Ok(total);
        }
    }
}
