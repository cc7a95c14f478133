//! What PostgreSQL alone can answer: each check is one query for what was looked
//! at and one for the rows that breach it.

use std::time::Duration;

use sqlx::{PgPool, Row};

use super::Check;

/// A question in SQL. `breaches` gives one text a row.
struct Question {
    name: &'static str,
    claim: &'static str,
    looked_at: &'static str,
    breaches: &'static str,
}

/// In a question's text: seconds; what is younger may still be on its way between two roles.
const YOUNG: &str = "$young";

const QUESTIONS: &[Question] = &[
    Question {
        name: "oneLiveOrderASeat",
        claim: "every seat that is held or sold belongs to one live order",
        looked_at: "select count(*) from reservations.order_seats where live",
        breaches: "select 'schedule ' || schedule_id || ' seat ' || seat_id || ': ' || count(*) || ' live orders'
            from reservations.order_seats where live group by schedule_id, seat_id having count(*) > 1",
    },
    Question {
        name: "seatsFollowTheirOrder",
        claim: "an order has its seats exactly while it is live",
        looked_at: "select count(*) from reservations.orders",
        breaches: "select 'order ' || o.id || ' is ' || o.state || ' with ' || count(s.*) filter (where s.live)
                || ' of ' || o.seat_count || ' seats live'
            from reservations.orders o left join reservations.order_seats s on s.order_id = o.id
            group by o.id
            having count(s.*) <> o.seat_count or count(s.*) filter (where s.live)
                <> case when o.state in ('PENDING', 'PAYING', 'CONFIRMED') then o.seat_count else 0 end",
    },
    Question {
        name: "amountsAddUp",
        claim: "an order costs what its seats cost",
        looked_at: "select count(*) from reservations.orders",
        breaches: "select 'order ' || o.id || ' costs ' || o.amount || ', its seats ' || sum(s.price)
            from reservations.orders o join reservations.order_seats s on s.order_id = o.id
            group by o.id having o.amount <> sum(s.price)",
    },
    Question {
        name: "confirmedOrdersArePaid",
        claim: "every confirmed order was paid, once, in full, and nothing of it went back in full",
        looked_at: "select count(*) from reservations.orders where state = 'CONFIRMED' and channel = 'QUEUE'",
        breaches: "select 'order ' || o.id || ': payment ' || coalesce(p.id::text, 'none') || ' '
                || coalesce(p.state, '') || ' ' || coalesce(p.amount, 0) || ', given back '
                || coalesce(p.refunded_amount, 0) || coalesce(', dispute ' || p.dispute_state, '')
            from reservations.orders o
            left join payments.payments p on p.id = o.payment_id
            where o.state = 'CONFIRMED' and o.channel = 'QUEUE'
              and (p.id is null or p.state <> 'SUCCEEDED' or p.amount <> o.amount or p.order_id <> o.id
                   or p.dispute_state = 'LOST'
                   or exists (select 1 from payments.refunds r where r.payment_id = p.id and r.amount >= p.amount)
                   or p.refunded_amount >= p.amount and p.amount > 0)
              and o.confirmed_at < now() - interval '5 seconds'",
    },
    Question {
        name: "paymentsAreKeptOrGivenBack",
        claim: "every captured payment is one confirmed order, one full refund, or a lost dispute",
        looked_at: "select count(*) from payments.payments where state = 'SUCCEEDED' or captured_amount > 0",
        breaches: "select 'payment ' || p.id || ' of order ' || p.order_id || ' (' || coalesce(o.state, 'none')
                || '): neither an order nor given back, ' || p.refunded_amount || ' of '
                || coalesce(p.captured_amount, p.amount)
            from payments.payments p left join reservations.orders o on o.payment_id = p.id and o.state = 'CONFIRMED'
            where (p.state = 'SUCCEEDED' or p.captured_amount > 0) and o.id is null and p.amount > 0
              and p.refunded_amount < coalesce(p.captured_amount, p.amount)
              and p.dispute_state is distinct from 'LOST'
              and not exists (select 1 from payments.refunds r
                  where r.payment_id = p.id and r.state in ('REQUESTED', 'PENDING'))
              and coalesce(p.succeeded_at, p.updated_at) < now() - interval '$young seconds'
            union all
            select 'refund ' || r.id || ' of payment ' || r.payment_id || ' is ' || r.state || ' of '
                || r.amount || ' since ' || r.created_at || coalesce(': ' || r.last_error, '')
            from payments.refunds r join payments.payments p on p.id = r.payment_id
            where r.amount > coalesce(p.captured_amount, p.amount)
               or r.state = 'REQUESTED' and p.dispute_state is distinct from 'OPEN'
                  and (r.refusals > 0 or r.created_at < now() - interval '$young seconds')
               or r.state = 'PENDING' and r.created_at < now() - interval '7 days'
               or r.state = 'SUCCEEDED' and r.refusals > 0 and r.settled_at > now() - interval '3 seconds'",
    },
    Question {
        name: "refundsAgree",
        claim: "what reservations asks back, payments gives back, and both say so",
        looked_at: "select count(*) from reservations.refunds",
        breaches: "select 'payment ' || a.payment_id || ': asked ' || a.amount || ' back for ' || a.reason
                || ', payments has ' || coalesce(r.state, 'nothing')
            from reservations.refunds a left join payments.refunds r on r.request_id = a.id
            left join payments.payments p on p.id = a.payment_id
            where r.id is null and a.reason <> 'REFUNDED_AT_STRIPE' and coalesce(p.refunded_amount, 0) < a.amount
              and a.requested_at < now() - interval '$young seconds'
            union all
            select 'payment ' || k.payment_id || ': reservations knows of ' || k.refunded
                || ' given back, payments of ' || p.refunded_amount
            from reservations.payment_refunds k join payments.payments p on p.id = k.payment_id
            where k.refunded <> p.refunded_amount and p.updated_at < now() - interval '$young seconds'",
    },
    Question {
        name: "noHoldPastItsDeadline",
        claim: "no order is held past its deadline, nor waits for its payment for ever",
        looked_at: "select count(*) from reservations.orders where state in ('PENDING', 'PAYING')",
        breaches: "select 'order ' || id || ' is ' || state || coalesce(' (closing)' || closing, '') || ', was held until ' || expires_at
            from reservations.orders
            where state in ('PENDING', 'PAYING')
              and (closing is null and expires_at < now() - interval '5 seconds'
                   or closing_at < now() - interval '30 minutes')",
    },
];

pub(super) async fn checks(pool: &PgPool, young: Duration) -> sqlx::Result<Vec<Check>> {
    let young = young.as_secs().to_string();
    let mut checks = Vec::new();
    for question in QUESTIONS {
        let looked_at: i64 = sqlx::query(question.looked_at)
            .fetch_one(pool)
            .await?
            .try_get(0)?;
        // The text is ours, and what is put into it a number.
        let breaches = sqlx::AssertSqlSafe(question.breaches.replace(YOUNG, &young));
        let rows = sqlx::query(breaches).fetch_all(pool).await?;
        let rows = rows
            .iter()
            .map(|row| row.try_get(0))
            .collect::<sqlx::Result<_>>()?;
        let looked_at = u64::try_from(looked_at).unwrap_or(0);
        checks.push(Check::new(question.name, question.claim, looked_at, rows));
    }
    checks.push(outboxes(pool, &young).await?);
    checks.push(dead_letters(pool).await?);
    Ok(checks)
}

/// The schemas that have a table of this name.
async fn schemas_with(pool: &PgPool, table: &str) -> sqlx::Result<Vec<String>> {
    let rows = sqlx::query(
        "select table_schema::text from information_schema.tables where table_name = $1 order by 1",
    )
    .bind(table)
    .fetch_all(pool)
    .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

async fn outboxes(pool: &PgPool, young_s: &str) -> sqlx::Result<Check> {
    let (mut looked_at, mut rows) = (0, Vec::new());
    for schema in schemas_with(pool, "outbox").await? {
        // The name comes from the catalogue of the database itself.
        let late = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select id::text, type, created_at::text, created_at < now() - interval '{young_s} seconds' as late
             from \"{schema}\".outbox where published_at is null"
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
             from \"{schema}\".dead_letters where resolved_at is null order by created_at"
        )))
        .fetch_all(pool)
        .await?;
        for row in dead {
            rows.push(row.try_get(0)?);
        }
    }
    let claim = "no message was put aside as bad";
    Ok(Check::new(
        "noDeadLetters",
        claim,
        schemas.len() as u64,
        rows,
    ))
}
