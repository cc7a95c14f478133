//! What PostgreSQL alone can answer.
//!
//! Each table is passed over once, in stretches of its primary key, so that no query grows with
//! history; what is asked of a stretch stands in [`Pass`]es below. What is open at the moment has
//! indexes of its own, and is asked whole.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgPool, Row, postgres::PgRow};
use uuid::Uuid;

use super::{Check, Progress};

/// Rows of one stretch: each of its queries stays far below any timeout.
pub(super) const STRETCH: i64 = 4_000;

/// A question about the rows of one `stretch`: `$1 < key <= $2`.
struct Question {
    name: &'static str,
    claim: &'static str,
    /// How many of the stretch it is about; without it, all of them.
    looked_at: Option<&'static str>,
    /// One text a breach.
    breaches: &'static str,
}

/// A table, and what is asked of its rows.
struct Pass {
    table: &'static str,
    key: &'static str,
    questions: &'static [Question],
}

/// In a question's text: seconds; what is younger may still be on its way between two roles.
const YOUNG: &str = "$young";

const PASSES: &[Pass] = &[
    Pass {
        table: "reservations.orders",
        key: "id",
        questions: &[
            Question {
                name: "oneLiveOrderASeat",
                claim: "every seat that is held or sold belongs to one live order",
                looked_at: Some("select count(*) from (select live from reservations.order_seats
                    where order_id > $1 and order_id <= $2 offset 0) s where live"),
                breaches: "select 'schedule ' || s.schedule_id || ' seat ' || s.seat_id || ': order ' || s.order_id || ' is not its only live one'
                    from (select order_id, schedule_id, seat_id, live from reservations.order_seats
                          where order_id > $1 and order_id <= $2 offset 0) s
                    where s.live
                      and exists (select 1 from reservations.order_seats o
                          where o.schedule_id = s.schedule_id and o.seat_id = s.seat_id and o.live
                            and o.order_id <> s.order_id)",
            },
            Question {
                name: "seatsFollowTheirOrder",
                claim: "an order has its seats exactly while it is live",
                looked_at: None,
                breaches: "select 'order ' || o.id || ' is ' || o.state || ' with ' || count(s.*) filter (where s.live)
                        || ' of ' || o.seat_count || ' seats live'
                    from stretch o left join reservations.order_seats s
                        on s.order_id = o.id and s.order_id > $1 and s.order_id <= $2
                    group by o.id, o.state, o.seat_count
                    having count(s.*) <> o.seat_count or count(s.*) filter (where s.live)
                        <> case when o.state in ('PENDING', 'PAYING', 'CONFIRMED') then o.seat_count else 0 end",
            },
            Question {
                name: "amountsAddUp",
                claim: "an order costs what its seats cost",
                looked_at: None,
                breaches: "select 'order ' || o.id || ' costs ' || o.amount || ', its seats ' || sum(s.price)
                    from stretch o join reservations.order_seats s
                        on s.order_id = o.id and s.order_id > $1 and s.order_id <= $2
                    group by o.id, o.amount having o.amount <> sum(s.price)",
            },
            Question {
                name: "confirmedOrdersArePaid",
                claim: "every confirmed order was paid, once, in full, and nothing of it went back in full",
                looked_at: Some("select count(*) from stretch where state = 'CONFIRMED' and channel = 'QUEUE'"),
                breaches: "select 'order ' || o.id || ': payment ' || coalesce(p.id::text, 'none') || ' '
                        || coalesce(p.state, '') || ' ' || coalesce(p.amount, 0) || ', given back '
                        || coalesce(p.refunded_amount, 0) || coalesce(', dispute ' || p.dispute_state, '')
                    from stretch o
                    left join payments.payments p on p.id = o.payment_id
                    where o.state = 'CONFIRMED' and o.channel = 'QUEUE'
                      and (p.id is null or p.state <> 'SUCCEEDED' or p.amount <> o.amount or p.order_id <> o.id
                           or p.dispute_state = 'LOST'
                           or exists (select 1 from payments.refunds r where r.payment_id = p.id and r.amount >= p.amount)
                           or p.refunded_amount >= p.amount and p.amount > 0)
                      and o.confirmed_at < now() - interval '5 seconds'",
            },
        ],
    },
    Pass {
        table: "payments.payments",
        key: "id",
        questions: &[Question {
            name: "paymentsAreKeptOrGivenBack",
            claim: "every captured payment is one confirmed order, one full refund, or a lost dispute",
            looked_at: Some("select count(*) from stretch where state = 'SUCCEEDED' or captured_amount > 0"),
            breaches: "select 'payment ' || p.id || ' of order ' || p.order_id || ' (' || coalesce(o.state, 'none')
                    || '): neither an order nor given back, ' || p.refunded_amount || ' of '
                    || coalesce(p.captured_amount, p.amount)
                from stretch p
                left join reservations.orders o on o.id = p.order_id and o.payment_id = p.id and o.state = 'CONFIRMED'
                where (p.state = 'SUCCEEDED' or p.captured_amount > 0) and o.id is null and p.amount > 0
                  and p.refunded_amount < coalesce(p.captured_amount, p.amount)
                  and p.dispute_state is distinct from 'LOST'
                  and not exists (select 1 from payments.refunds r
                      where r.payment_id = p.id and r.state in ('REQUESTED', 'PENDING'))
                  and coalesce(p.succeeded_at, p.updated_at) < now() - interval '$young seconds'",
        }],
    },
    Pass {
        table: "payments.refunds",
        key: "id",
        questions: &[Question {
            name: "refundsAreDone",
            claim: "every refund is done, or under way at Stripe",
            looked_at: None,
            breaches: "select 'refund ' || r.id || ' of payment ' || r.payment_id || ' is ' || r.state || ' of '
                    || r.amount || ' since ' || r.created_at || coalesce(': ' || r.last_error, '')
                from stretch r join payments.payments p on p.id = r.payment_id
                where (r.amount > coalesce(p.captured_amount, p.amount)
                   or r.state = 'REQUESTED' and p.dispute_state is distinct from 'OPEN'
                      and (r.refusals > 0 or r.created_at < now() - interval '$young seconds')
                   or r.state = 'PENDING' and r.created_at < now() - interval '7 days'
                   or r.state = 'SUCCEEDED' and r.refusals > 0 and r.settled_at > now() - interval '3 seconds')",
        }],
    },
    Pass {
        table: "reservations.refunds",
        key: "id",
        questions: &[Question {
            name: "refundsAgree",
            claim: "what reservations asks back, payments gives back",
            looked_at: None,
            breaches: "select 'payment ' || a.payment_id || ': asked ' || a.amount || ' back for ' || a.reason
                    || ', payments has ' || coalesce(r.state, 'nothing')
                from stretch a left join payments.refunds r on r.request_id = a.id
                left join payments.payments p on p.id = a.payment_id
                where r.id is null and a.reason <> 'REFUNDED_AT_STRIPE' and coalesce(p.refunded_amount, 0) < a.amount
                  and a.requested_at < now() - interval '$young seconds'",
        }],
    },
    Pass {
        table: "reservations.payment_refunds",
        key: "payment_id",
        questions: &[Question {
            name: "refundedTotalsAgree",
            claim: "both sides say the same of what was given back",
            looked_at: None,
            breaches: "select 'payment ' || k.payment_id || ': reservations knows of ' || k.refunded
                    || ' given back, payments of ' || p.refunded_amount
                from stretch k join payments.payments p on p.id = k.payment_id
                where k.refunded <> p.refunded_amount and p.updated_at < now() - interval '$young seconds'",
        }],
    },
];

pub(super) async fn checks(
    pool: &PgPool,
    young: Duration,
    since: Option<DateTime<Utc>>,
    progress: &Progress,
) -> sqlx::Result<Vec<Check>> {
    let young = young.as_secs().to_string();
    let mut checks = Vec::new();
    let unique = seats_are_unique(pool).await?;
    for pass in PASSES {
        checks.extend(pass.run(pool, &young, since, unique, progress).await?);
    }
    checks.push(holds(pool).await?);
    checks.push(outboxes(pool, &young).await?);
    checks.push(dead_letters(pool).await?);
    Ok(checks)
}

/// Without its unique index, a seat's other orders can only be found by reading them all.
async fn seats_are_unique(pool: &PgPool) -> sqlx::Result<bool> {
    sqlx::query_scalar(
        "select exists (select 1 from pg_index i
             where i.indexrelid = to_regclass('reservations.one_live_order_a_seat')
               and i.indisunique and i.indisvalid)",
    )
    .fetch_one(pool)
    .await
}

/// The smallest id of that moment: ids are UUIDv7.
fn first_id(since: Option<DateTime<Utc>>) -> Uuid {
    since.map_or(Uuid::nil(), |since| {
        let ms = u64::try_from(since.timestamp_millis()).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(ms, &[0; 10]).into_uuid()
    })
}

impl Pass {
    async fn run(
        &self,
        pool: &PgPool,
        young: &str,
        since: Option<DateTime<Utc>>,
        unique: bool,
        progress: &Progress,
    ) -> sqlx::Result<Vec<Check>> {
        let mut found: Vec<(u64, Vec<String>)> = vec![(0, Vec::new()); self.questions.len()];
        let mut after = first_id(since);
        let mut done = 0_u64;
        while let Some((until, rows)) = self.stretch(pool, after).await? {
            done += rows;
            for (question, found) in self.questions.iter().zip(&mut found) {
                found.0 += match question.looked_at {
                    None => rows,
                    Some(sql) => {
                        let sql = sqlx::AssertSqlSafe(self.of_stretch(sql));
                        let count: i64 = sqlx::query_scalar(sql)
                            .bind(after)
                            .bind(until)
                            .fetch_one(pool)
                            .await?;
                        u64::try_from(count).unwrap_or(0)
                    }
                };
                if question.name == "oneLiveOrderASeat" && !unique {
                    continue;
                }
                // The text is ours, and what is put into it a number.
                let sql = self.of_stretch(&question.breaches.replace(YOUNG, young));
                let sql = sqlx::AssertSqlSafe(sql);
                let rows = sqlx::query(sql)
                    .bind(after)
                    .bind(until)
                    .fetch_all(pool)
                    .await?;
                found.1.extend(texts(&rows)?);
            }
            progress.tell(|| format!("{done} rows of {}", self.table));
            after = until;
        }
        let checks = self.questions.iter().zip(found);
        Ok(checks
            .map(|(question, (looked_at, mut rows))| {
                if question.name == "oneLiveOrderASeat" && !unique {
                    rows.push(
                        "the unique index one_live_order_a_seat is missing or invalid".to_owned(),
                    );
                }
                Check::new(question.name, question.claim, looked_at, rows)
            })
            .collect())
    }

    /// The rows of the stretch are read by the key alone, before anything is asked of them: no
    /// other index of the table looks tempting then.
    fn of_stretch(&self, question: &str) -> String {
        format!(
            "with stretch as materialized (
                 select t.* from {table} t where {key} > $1 and {key} <= $2) {question}",
            key = self.key,
            table = self.table
        )
    }

    /// Where the stretch behind `after` ends, and how many rows it has.
    async fn stretch(&self, pool: &PgPool, after: Uuid) -> sqlx::Result<Option<(Uuid, u64)>> {
        let sql = format!(
            "select count(*), (array_agg(key order by key desc))[1] from (
                 select {key} as key from {table} where {key} > $1 order by {key} limit $2) t",
            key = self.key,
            table = self.table
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(after)
            .bind(STRETCH)
            .fetch_one(pool)
            .await?;
        let (rows, until): (i64, Option<Uuid>) = (row.try_get(0)?, row.try_get(1)?);
        Ok(until.map(|until| (until, u64::try_from(rows).unwrap_or(0))))
    }
}

fn texts(rows: &[PgRow]) -> sqlx::Result<Vec<String>> {
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// By the index of open orders.
async fn holds(pool: &PgPool) -> sqlx::Result<Check> {
    let open: i64 = sqlx::query_scalar(
        "select count(*) from reservations.orders where state in ('PENDING', 'PAYING')",
    )
    .fetch_one(pool)
    .await?;
    let rows = sqlx::query(
        "select 'order ' || id || ' is ' || state || coalesce(' (closing)' || closing, '') || ', was held until ' || expires_at
         from reservations.orders
         where state in ('PENDING', 'PAYING')
           and (closing is null and expires_at < now() - interval '5 seconds'
                or closing_at < now() - interval '30 minutes')",
    )
    .fetch_all(pool)
    .await?;
    let claim = "no order is held past its deadline, nor waits for its payment for ever";
    let open = u64::try_from(open).unwrap_or(0);
    Ok(Check::new(
        "noHoldPastItsDeadline",
        claim,
        open,
        texts(&rows)?,
    ))
}

/// The schemas that have a table of this name.
async fn schemas_with(pool: &PgPool, table: &str) -> sqlx::Result<Vec<String>> {
    let rows = sqlx::query(
        "select table_schema::text from information_schema.tables where table_name = $1 order by 1",
    )
    .bind(table)
    .fetch_all(pool)
    .await?;
    texts(&rows)
}

async fn outboxes(pool: &PgPool, young_s: &str) -> sqlx::Result<Check> {
    let (mut looked_at, mut rows) = (0, Vec::new());
    for schema in schemas_with(pool, "outbox").await? {
        // The name comes from the catalogue of the database itself.
        let late = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select id::text, type, created_at::text, created_at < now() - interval '{young_s} seconds' as late
             from \"{schema}\".outbox where published_at is null order by seq limit 10000"
        )))
        .fetch_all(pool)
        .await?;
        looked_at += late.len() as u64;
        for row in late {
            if row.try_get::<bool, _>("late")? {
                let (id, kind, since): (String, String, String) =
                    (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                rows.push(format!("{schema}: {kind} {id} since {since}"));
            }
        }
    }
    let claim = "no event has waited for longer than it may";
    Ok(Check::new("eventsLeave", claim, looked_at, rows))
}

async fn dead_letters(pool: &PgPool) -> sqlx::Result<Check> {
    let mut rows = Vec::new();
    let schemas = schemas_with(pool, "dead_letters").await?;
    for schema in &schemas {
        let dead = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select consumer || ': ' || type || ' ' || event_id || ' of ' || key || ': ' || left(error, 200)
             from \"{schema}\".dead_letters where resolved_at is null order by created_at limit 10000"
        )))
        .fetch_all(pool)
        .await?;
        rows.extend(texts(&dead)?);
    }
    let claim = "no message was put aside as bad";
    let looked_at = schemas.len() as u64;
    Ok(Check::new("noDeadLetters", claim, looked_at, rows))
}
