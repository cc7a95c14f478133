//! Stripe's record, read through its API as anybody may who has the secret key: every intent of
//! this installation against the payments. Read-only and paced; a page that does not come is
//! asked for again, and the scan goes on where it was.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{Check, Progress, books::STRETCH};
use crate::{
    platform::secret::Secret,
    serve::payments::{ListedIntent, Page, PaymentMethods, Stretch, Stripe, StripeFailure},
};

const NAME: &str = "stripeAgrees";
const CLAIM: &str = "what Stripe captured and gave back is what payments says";
/// Between two pages: some ten a second leave the account's budget to the buyers.
const PACE: Duration = Duration::from_millis(100);
/// A page is asked for so often, with pauses of 1, 2, 4, 8 seconds.
const TRIES: u32 = 5;

struct Paid {
    id: Uuid,
    intent: Option<String>,
    state: String,
    /// What it captured, as payments knows it.
    captured: i64,
    /// Given back, or on its way.
    refunded: i64,
}

pub(super) async fn check(
    pool: &PgPool,
    stripe: Option<&(String, Secret)>,
    young: Duration,
    since: Option<DateTime<Utc>>,
    progress: &Progress,
) -> Result<Check, String> {
    let Some((url, key)) = stripe else {
        let why = "no key of Stripe was given (STRIPE_SECRET_KEY)";
        return Ok(Check::skipped(NAME, CLAIM, why));
    };
    let away = |e: StripeFailure| format!("Stripe at {url}: {e}");
    let books = |e: sqlx::Error| format!("PostgreSQL: {e}");
    let installation: Option<Uuid> =
        sqlx::query_scalar("select id from payments.installation limit 1")
            .fetch_optional(pool)
            .await
            .map_err(books)?;
    let mut scan = Scan {
        pool,
        // Behind the calls of buyers, within Stripe's documented limits.
        stripe: Stripe::new(url, key, None, PaymentMethods::default())?.background(),
        installation: installation.map(|id| id.to_string()).unwrap_or_default(),
        // A payment may just have been captured, its webhook on its way.
        young: (Utc::now() - young).timestamp(),
        looked_at: 0,
        rows: Vec::new(),
        hasher: RandomState::new(),
        seen: HashSet::new(),
    };
    let begun = Utc::now();
    let mut stretch = Stretch {
        from: since.map(|since| since.timestamp()),
        ..Stretch::default()
    };
    loop {
        let page = scan.page(&stretch).await.map_err(away)?;
        scan.compare(&page.items).await?;
        progress.tell(|| format!("{} intents of Stripe's", scan.looked_at));
        match page.items.last().filter(|_| page.more) {
            Some(last) => stretch.after = Some(last.id.clone()),
            None => break,
        }
        tokio::time::sleep(PACE).await;
    }
    scan.unknown_to_stripe(since, begun).await.map_err(books)?;
    Ok(Check::new(NAME, CLAIM, scan.looked_at, scan.rows))
}

struct Scan<'a> {
    pool: &'a PgPool,
    stripe: Stripe,
    installation: String,
    young: i64,
    looked_at: u64,
    rows: Vec<String>,
    hasher: RandomState,
    /// Hashes of the intents that were listed: eight bytes each.
    seen: HashSet<u64>,
}

impl Scan<'_> {
    async fn page(&self, stretch: &Stretch) -> Result<Page<ListedIntent>, StripeFailure> {
        let mut tried = 1;
        loop {
            match self.stripe.list_intents(stretch).await {
                Err(StripeFailure::Unknown(_)) if tried < TRIES => {
                    tokio::time::sleep(Duration::from_secs(1 << (tried - 1))).await;
                    tried += 1;
                }
                answer => return answer,
            }
        }
    }

    async fn compare(&mut self, listed: &[ListedIntent]) -> Result<(), String> {
        let books = |e: sqlx::Error| format!("PostgreSQL: {e}");
        let payments = self.payments(listed).await.map_err(books)?;
        for intent in listed {
            self.seen.insert(self.hasher.hash_one(&intent.id));
            let known = (payments.iter()).find(|p| p.intent.as_ref() == Some(&intent.id));
            let ours = intent.metadata.get("installation") == Some(&self.installation);
            if !ours && known.is_none() {
                continue;
            }
            self.looked_at += 1;
            let breach = match known {
                None if intent.captured == 0 => None,
                None => self.not_known(intent).await?,
                Some(paid) => self.differs(intent, paid).await?,
            };
            let settled = known.is_some_and(|p| p.state == "SUCCEEDED");
            if let Some(breach) = breach.filter(|_| settled || intent.created < self.young) {
                self.rows.push(breach);
            }
        }
        Ok(())
    }

    async fn payments(&self, listed: &[ListedIntent]) -> sqlx::Result<Vec<Paid>> {
        let ids: Vec<&str> = listed.iter().map(|i| &*i.id).collect();
        let rows = sqlx::query(
            "select p.id, p.intent_id, p.state,
                 coalesce(p.captured_amount, case when p.state = 'SUCCEEDED' then p.amount else 0 end)::bigint,
                 p.refunded_amount::bigint
             from payments.payments p where p.intent_id = any($1)",
        )
        .bind(ids)
        .fetch_all(self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(Paid {
                    id: row.try_get(0)?,
                    intent: row.try_get(1)?,
                    state: row.try_get(2)?,
                    captured: row.try_get(3)?,
                    refunded: row.try_get(4)?,
                })
            })
            .collect()
    }

    async fn not_known(&self, intent: &ListedIntent) -> Result<Option<String>, String> {
        let back = match intent.refunded {
            0 => 0,
            _ => self.given_back(&intent.id).await?,
        };
        Ok((back < intent.captured).then(|| {
            format!(
                "{}: captured {}, gave back {back}, and payments does not know it",
                intent.id, intent.captured
            )
        }))
    }

    async fn differs(&self, intent: &ListedIntent, paid: &Paid) -> Result<Option<String>, String> {
        let captured = paid.captured;
        let mut back = intent.refunded;
        if back != paid.refunded {
            // What is pending counts as refunded there, and not here.
            back = self.given_back(&intent.id).await?;
        }
        // What a payment that is not paid has taken must be back, or on its way.
        let kept = paid.state != "SUCCEEDED" && captured > back.max(intent.refunded);
        if intent.captured == captured && back == paid.refunded && back <= captured && !kept {
            return Ok(None);
        }
        Ok(Some(format!(
            "{} (payment {}, {}): Stripe captured {} and gave back {back}; payments says {captured} and {}",
            intent.id, paid.id, paid.state, intent.captured, paid.refunded
        )))
    }

    /// What has arrived at the buyer, whoever sent it.
    async fn given_back(&self, intent: &str) -> Result<i64, String> {
        let refunds = self.stripe.refunds(intent).await;
        let refunds = refunds.map_err(|e| format!("Stripe: {e}"))?;
        Ok(refunds
            .iter()
            .filter(|one| one.succeeded())
            .map(|one| one.amount)
            .sum())
    }

    /// Payments that say SUCCEEDED by an intent which Stripe did not list.
    async fn unknown_to_stripe(
        &mut self,
        since: Option<DateTime<Utc>>,
        begun: DateTime<Utc>,
    ) -> sqlx::Result<()> {
        let mut after = Uuid::nil();
        loop {
            let rows = sqlx::query(
                "select id, intent_id, state = 'SUCCEEDED' and created_at >= $3 and created_at < $4 as due
                 from payments.payments where id > $1 order by id limit $2",
            )
            .bind(after)
            .bind(STRETCH)
            // An hour, in which the payment may have been noted before its intent was made.
            .bind(since.map_or(DateTime::UNIX_EPOCH, |since| since + chrono::Duration::hours(1)))
            .bind(begun)
            .fetch_all(self.pool)
            .await?;
            let Some(last) = rows.last() else {
                return Ok(());
            };
            after = last.try_get(0)?;
            for row in &rows {
                let intent: Option<String> = row.try_get(1)?;
                let Some(intent) = intent.filter(|_| row.try_get(2).unwrap_or(false)) else {
                    continue;
                };
                if !self.seen.contains(&self.hasher.hash_one(&intent)) {
                    let id: Uuid = row.try_get(0)?;
                    self.rows.push(format!(
                        "payment {id}: SUCCEEDED by {intent}, which Stripe does not know"
                    ));
                }
            }
        }
    }
}
