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
    /// An instance has opened it, or written down a reading of it, within the last seconds.
    pub alive: bool,
    /// The newest reading written down: the script's clock, ms.
    pub clock: i64,
    /// What had been served a poll interval before that.
    pub served_then: i64,
    /// The process of the Redis where it lives.
    pub store: String,
    /// Pairs (above, up to) of numbers that were never issued.
    pub skips: Vec<i64>,
    /// How long nobody could be served before it began, ms.
    pub lost_ms: i64,
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
    alive,
    clock,
    served_then,
    store,
    skips,
    lost_ms,
});

/// What an [`Epoch`] is read from.
macro_rules! epoch_columns {
    () => {
        "epoch::int as epoch, base, ceiling, served, last, lost_served, cut_lo, cut_hi, draw_lo,
         fresh_from::int as fresh_from,
         opened_at > now() - interval '2 seconds' as just_opened,
         live_at > now() - interval '5 seconds' as alive, clock, served_then, store, skips, lost_ms"
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

/// What the instance that opens an epoch knows of the one before.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The highest number that was served.
    pub served: i64,
    /// The highest number that was issued.
    pub last: i64,
    /// How long nobody could be served, ms.
    pub lost_ms: i64,
    /// The process of the Redis where the epoch is to live.
    pub store: String,
}

/// Opens the epoch after `seen` (None: the first), by compare-and-set. None: another instance was
/// faster.
pub async fn open(
    pool: &PgPool,
    performance: Uuid,
    seen: Option<i32>,
    known: &Known,
) -> sqlx::Result<Option<Epoch>> {
    let Some(seen) = seen else {
        return sqlx::query_as(concat!(
            "insert into epochs (performance_id, epoch, base, ceiling, store) values ($1, 1, 0, $2, $3)
             on conflict do nothing
             returning ",
            epoch_columns!()
        ))
        .bind(performance)
        .bind(BLOCK)
        .bind(&known.store)
        .fetch_optional(pool)
        .await;
    };
    sqlx::query_as(concat!(
        "update epochs set epoch = epoch + 1,
            base = case when fresh then 0 else ceiling end,
            ceiling = case when fresh then 0 else ceiling end + $3,
            served = case when fresh then 0 else greatest(served, $4) end,
            lost_served = case when fresh then 0 else greatest(served, $4) end,
            last = case when fresh then 0 else greatest(last, $5) end,
            -- What is left of the block is skipped; of many such stretches the latest matter.
            skips = case when fresh then '{}' else
                (skips || array[greatest(last, $5), ceiling])[greatest(1, cardinality(skips) - 61):] end,
            clock = 0, store = $6, lost_ms = case when fresh then 0 else $7 end,
            served_then = case when fresh then 0 else served_then end,
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
    .bind(known.served)
    .bind(known.last)
    .bind(&known.store)
    .bind(known.lost_ms)
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
    /// Whose queue.
    pub performance: Uuid,
    /// Which epoch.
    pub epoch: i32,
    /// The script's clock at the reading.
    pub clock: i64,
    /// What had been served a poll interval before.
    pub served_then: i64,
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

/// Writes down how far many epochs have come, in one commit. The performances whose epoch is over
/// are not among those returned.
pub async fn checkpoint(pool: &PgPool, progress: &[Progress]) -> sqlx::Result<HashSet<Uuid>> {
    let column = |of: fn(&Progress) -> i64| progress.iter().map(of).collect::<Vec<_>>();
    let optional = |of: fn(&Progress) -> Option<i64>| progress.iter().map(of).collect::<Vec<_>>();
    let written: Vec<Uuid> = sqlx::query_scalar(
        "update epochs as e set served = greatest(e.served, p.served), last = greatest(e.last, p.last),
            clock = greatest(e.clock, p.clock),
            served_then = greatest(e.served_then, p.served_then),
            cut_lo = coalesce(p.cut_lo, e.cut_lo), cut_hi = coalesce(p.cut_hi, e.cut_hi),
            draw_lo = least(e.draw_lo, p.draw_lo), live_at = now()
         from unnest($1::uuid[], $2::int[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[],
            $8::bigint[], $9::bigint[])
            as p (performance_id, epoch, served, last, clock, served_then, cut_lo, cut_hi, draw_lo)
         where e.performance_id = p.performance_id and e.epoch = p.epoch
         returning e.performance_id",
    )
    .bind(progress.iter().map(|p| p.performance).collect::<Vec<_>>())
    .bind(progress.iter().map(|p| p.epoch).collect::<Vec<_>>())
    .bind(column(|p| p.served))
    .bind(column(|p| p.last))
    .bind(column(|p| p.clock))
    .bind(column(|p| p.served_then))
    .bind(optional(|p| p.cut.map(|c| c.0)))
    .bind(optional(|p| p.cut.map(|c| c.1)))
    .bind(optional(|p| p.draw_lo))
    .fetch_all(pool)
    .await?;
    Ok(written.into_iter().collect())
}

/// What other instances have written of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elsewhere {
    /// Which queue.
    pub performance: Uuid,
    /// The epoch in force; 0: none yet.
    pub epoch: i32,
    /// The newest reading of it.
    pub clock: i64,
    /// The version of its settings; 0: it has none of its own.
    pub settings: i64,
}

crate::from_row!(Elsewhere {
    performance: "performance_id",
    epoch,
    clock,
    settings,
});

/// What other instances have written of `performances`, in one query.
pub async fn elsewhere(pool: &PgPool, performances: &[Uuid]) -> sqlx::Result<Vec<Elsewhere>> {
    sqlx::query_as(
        "select i.performance_id, coalesce(e.epoch, 0) as epoch, coalesce(e.clock, 0) as clock,
            coalesce(s.version, 0) as settings
         from unnest($1::uuid[]) as i (performance_id)
         left join epochs e on e.performance_id = i.performance_id
         left join settings s on s.performance_id = i.performance_id",
    )
    .bind(performances)
    .fetch_all(pool)
    .await
}

/// Removes turns that ended so long ago that no token of theirs counts any more; how many.
pub async fn prune_ended(pool: &PgPool) -> sqlx::Result<u64> {
    let removed = sqlx::query(
        "delete from ended_turns where (performance_id, number) in (
            select performance_id, number from ended_turns
            where ended_at < now() - interval '30 days' limit 10000)",
    )
    .execute(pool)
    .await?;
    Ok(removed.rows_affected())
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

/// Turns that have ended: what a Redis with an older state may not know. All of them, or those of the last
/// minutes. Of a hundred thousand seats sold that is some megabytes, for a moment.
pub async fn ended(pool: &PgPool, performance: Uuid, all: bool) -> sqlx::Result<Vec<(Uuid, i64)>> {
    sqlx::query_as(
        "select user_id, number from ended_turns
         where performance_id = $1 and ($2 or ended_at > now() - interval '10 minutes')",
    )
    .bind(performance)
    .bind(all)
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

/// How far a pre-queue has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registrations {
    /// Nobody has registered.
    None,
    /// Somebody has, and the draw is still to come.
    Some,
    /// The draw is made.
    Drawn,
}

/// How far the pre-queue of `performance` has come.
pub async fn registrations(pool: &PgPool, performance: Uuid) -> sqlx::Result<Registrations> {
    let (drawn, some): (bool, bool) = sqlx::query_as(
        "select exists (select 1 from draws where performance_id = $1 and first is not null),
                exists (select 1 from epochs where performance_id = $1 and draw_lo is not null)",
    )
    .bind(performance)
    .fetch_one(pool)
    .await?;
    Ok(match (drawn, some) {
        (true, _) => Registrations::Drawn,
        (false, true) => Registrations::Some,
        (false, false) => Registrations::None,
    })
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
