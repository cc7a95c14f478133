//! What a loss of Redis must not lose: epochs, number ceilings, ended turns, draws.

use std::collections::HashSet;

use sha2::{Digest, Sha256};
use sqlx::PgPool;
use uuid::Uuid;

/// Numbers are reserved in blocks of this many: at 20,000 entries a second still one
/// write in three seconds. A new epoch skips what is left of a block.
pub const BLOCK: i64 = 65_536;

/// One performance's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Epoch {
    /// Which life of the Redis state it is.
    pub epoch: i32,
    /// Its numbers start above this.
    pub base: i64,
    /// Its numbers end here.
    pub ceiling: i64,
    /// Noted as served.
    pub served: i64,
    /// Noted as issued.
    pub last: i64,
    /// What the epochs before had served.
    pub lost_served: i64,
    /// Places ended together.
    pub cut_lo: Option<i64>,
    /// To this number.
    pub cut_hi: Option<i64>,
    /// Registrations for the draw have indexes above this.
    pub draw_lo: Option<i64>,
    /// No place of an earlier epoch comes back.
    pub fresh_from: i32,
    /// Somebody opened it a moment ago, and may be about to begin it in Redis.
    pub just_opened: bool,
}

impl Epoch {
    /// It begins with nobody: the first, or the one after everything was removed.
    pub fn is_fresh(&self) -> bool {
        self.fresh_from == self.epoch
    }
}

crate::from_row!(Epoch {
    epoch,
    base,
    ceiling,
    served,
    last,
    lost_served,
    cut_lo,
    cut_hi,
    draw_lo,
    fresh_from,
    just_opened,
});

/// What an [`Epoch`] is read from.
macro_rules! epoch_columns {
    () => {
        "epoch::int as epoch, base, ceiling, served, last, lost_served, cut_lo, cut_hi, draw_lo,
         fresh_from::int as fresh_from,
         opened_at > now() - interval '2 seconds' as just_opened"
    };
}

/// The row of `performance`, if it ever had a queue.
pub async fn load(pool: &PgPool, performance: Uuid) -> sqlx::Result<Option<Epoch>> {
    sqlx::query_as(concat!(
        "select ",
        epoch_columns!(),
        " from epochs where performance_id = $1"
    ))
    .bind(performance)
    .fetch_optional(pool)
    .await
}

/// Opens the epoch after `seen` (None: the first), by compare-and-set; `served`
/// is the highest number the caller knows to have been served. None: another
/// instance was faster.
pub async fn open(
    pool: &PgPool,
    performance: Uuid,
    seen: Option<i32>,
    served: i64,
) -> sqlx::Result<Option<Epoch>> {
    let Some(seen) = seen else {
        return sqlx::query_as(concat!(
            "insert into epochs (performance_id, epoch, base, ceiling) values ($1, 1, 0, $2)
             on conflict do nothing
             returning ",
            epoch_columns!()
        ))
        .bind(performance)
        .bind(BLOCK)
        .fetch_optional(pool)
        .await;
    };
    sqlx::query_as(concat!(
        "update epochs set epoch = epoch + 1,
            base = case when fresh then 0 else ceiling end,
            ceiling = case when fresh then 0 else ceiling end + $3,
            served = case when fresh then 0 else greatest(served, $4) end,
            lost_served = case when fresh then 0 else greatest(served, $4) end,
            last = case when fresh then 0 else last end,
            cut_lo = case when not fresh then cut_lo end,
            cut_hi = case when not fresh then cut_hi end,
            draw_lo = case when not fresh then draw_lo end,
            opened_at = now(), live_at = now()
         from (select epoch + 1 = fresh_from as fresh from epochs where performance_id = $1) as next
         where performance_id = $1 and epoch = $2
         returning ",
        epoch_columns!()
    ))
    .bind(performance)
    .bind(seen)
    .bind(BLOCK)
    .bind(served)
    .fetch_optional(pool)
    .await
}

/// Reserves the next block of numbers, if the ceiling is still `ceiling`; returns
/// the ceiling that holds now, None when the epoch is over.
pub async fn reserve(
    pool: &PgPool,
    performance: Uuid,
    epoch: i32,
    ceiling: i64,
) -> sqlx::Result<Option<i64>> {
    sqlx::query_scalar(
        "update epochs set ceiling = case when ceiling <= $3 then $3 + $4 else ceiling end
         where performance_id = $1 and epoch = $2 returning ceiling",
    )
    .bind(performance)
    .bind(epoch)
    .bind(ceiling)
    .bind(BLOCK)
    .fetch_optional(pool)
    .await
}

/// How far an epoch has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which epoch.
    pub epoch: i32,
    /// The turn of everybody at or below has come.
    pub served: i64,
    /// The last number issued.
    pub last: i64,
    /// Places ended together: above the first, up to the second.
    pub cut: Option<(i64, i64)>,
    /// Registrations for the draw have indexes above this.
    pub draw_lo: Option<i64>,
}

/// Everything is removed: the next epoch of every queue begins with nobody, and no place of
/// the epochs before comes back, though servers still run that remember them.
pub async fn forget_everything(executor: impl sqlx::PgExecutor<'_>) -> sqlx::Result<()> {
    sqlx::query("update queue.epochs set fresh_from = epoch + 1, live_at = '-infinity'")
        .execute(executor)
        .await
        .map(drop)
}

/// Notes how far an epoch has come.
pub async fn note(pool: &PgPool, performance: Uuid, progress: Progress) -> sqlx::Result<()> {
    sqlx::query(
        "update epochs set served = greatest(served, $3), last = greatest(last, $4),
            cut_lo = coalesce($5, cut_lo), cut_hi = coalesce($6, cut_hi),
            draw_lo = least(draw_lo, $7), live_at = now()
         where performance_id = $1 and epoch = $2",
    )
    .bind(performance)
    .bind(progress.epoch)
    .bind(progress.served)
    .bind(progress.last)
    .bind(progress.cut.map(|c| c.0))
    .bind(progress.cut.map(|c| c.1))
    .bind(progress.draw_lo)
    .execute(pool)
    .await
    .map(drop)
}

/// Performances whose queue had people in it within the last hours, so that a
/// restarted instance sweeps them before anybody asks.
pub async fn live(pool: &PgPool) -> sqlx::Result<Vec<Uuid>> {
    sqlx::query_scalar(
        "select performance_id from epochs where live_at > now() - interval '6 hours' order by live_at desc limit 1000",
    )
    .fetch_all(pool)
    .await
}

/// A turn that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its number.
    pub number: i64,
    /// Whose it was.
    pub user: Uuid,
    /// `NO_SHOW`, `LAPSED`, `COMPLETED` or `LEFT`.
    pub reason: &'static str,
}

/// Notes turns that are over; noting one twice keeps the first reason.
pub async fn note_ended(
    executor: impl sqlx::PgExecutor<'_>,
    performance: Uuid,
    ended: &[Ended],
) -> sqlx::Result<()> {
    let numbers: Vec<i64> = ended.iter().map(|e| e.number).collect();
    let users: Vec<Uuid> = ended.iter().map(|e| e.user).collect();
    let reasons: Vec<&str> = ended.iter().map(|e| e.reason).collect();
    sqlx::query(
        "insert into ended_turns (performance_id, number, user_id, reason)
         select $1, number, user_id, reason from unnest($2::bigint[], $3::uuid[], $4::text[]) as t (number, user_id, reason)
         on conflict do nothing",
    )
    .bind(performance)
    .bind(numbers)
    .bind(users)
    .bind(reasons)
    .execute(executor)
    .await
    .map(drop)
}

/// Which of `numbers` belong to turns that are over.
pub async fn ended_among(
    pool: &PgPool,
    performance: Uuid,
    numbers: &[i64],
) -> sqlx::Result<HashSet<i64>> {
    let rows: Vec<i64> = sqlx::query_scalar(
        "select number from ended_turns where performance_id = $1 and number = any($2)",
    )
    .bind(performance)
    .bind(numbers)
    .fetch_all(pool)
    .await?;
    Ok(rows.into_iter().collect())
}

/// Every turn that has ended: what a Redis with an older state may not know. Of a hundred
/// thousand seats sold that is some megabytes, for a moment.
pub async fn ended(pool: &PgPool, performance: Uuid) -> sqlx::Result<Vec<(Uuid, i64)>> {
    sqlx::query_as("select user_id, number from ended_turns where performance_id = $1")
        .bind(performance)
        .fetch_all(pool)
        .await
}

/// A performance's draw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Secret until the opening.
    pub seed: Vec<u8>,
    /// Numbers `first + 1 ..= first + count` were drawn; set once published.
    pub first: Option<i64>,
    /// How many.
    pub count: Option<i64>,
}

crate::from_row!(Draw { seed, first, count });

impl Draw {
    /// SHA-256 of the seed, public as soon as the pre-queue opens.
    pub fn commitment(&self) -> String {
        hex::encode(Sha256::digest(&self.seed))
    }
}

/// The draw of `performance`; its seed is chosen by the first who asks.
pub async fn draw(pool: &PgPool, performance: Uuid) -> sqlx::Result<Draw> {
    sqlx::query("insert into draws (performance_id, seed) values ($1, $2) on conflict do nothing")
        .bind(performance)
        .bind(rand::random::<[u8; 32]>().as_slice())
        .execute(pool)
        .await?;
    sqlx::query_as("select seed, first, count from draws where performance_id = $1")
        .bind(performance)
        .fetch_one(pool)
        .await
}

/// Registrations for the draw have indexes above `above`. False: the epoch is over.
pub async fn note_draw(
    pool: &PgPool,
    performance: Uuid,
    epoch: i32,
    above: i64,
) -> sqlx::Result<bool> {
    let noted = sqlx::query(
        "update epochs set draw_lo = least(draw_lo, $3) where performance_id = $1 and epoch = $2",
    )
    .bind(performance)
    .bind(epoch)
    .bind(above)
    .execute(pool)
    .await?;
    Ok(noted.rows_affected() == 1)
}

/// The registrations are frozen: these numbers are drawn with the seed. The first to say so
/// decides, while the epoch lasts; false when it is not so, since the epoch is over.
pub async fn reveal(
    pool: &PgPool,
    performance: Uuid,
    epoch: i32,
    first: i64,
    count: i64,
) -> sqlx::Result<bool> {
    // The lock keeps the next epoch, which reads what was drawn, from beginning in between.
    sqlx::query(
        "with current as (select 1 from epochs where performance_id = $1 and epoch = $4 for share)
         update draws set first = $2, count = $3, revealed_at = now()
         where performance_id = $1 and first is null and exists (select 1 from current)",
    )
    .bind(performance)
    .bind(first)
    .bind(count)
    .bind(epoch)
    .execute(pool)
    .await?;
    sqlx::query_scalar(
        "select exists (select 1 from draws where performance_id = $1 and first = $2 and count = $3)",
    )
    .bind(performance)
    .bind(first)
    .bind(count)
    .fetch_one(pool)
    .await
}
