-- Many refunds a payment, each followed to its end at Stripe, where one may fail after it
-- succeeded; and the disputes of a charge.

alter table refunds drop constraint one_refund_a_payment;
alter table refunds
    -- The request that this refund answers: asked twice, it is made once. Before there were many,
    -- the payment itself was the request.
    add column request_id uuid,
    -- What this attempt asks Stripe for; a repeated key must ask for the same.
    add column asked      bigint;
update refunds set request_id = payment_id;
alter table refunds alter column request_id set default gen_random_uuid();
alter table refunds alter column request_id set not null;
alter table refunds add constraint one_refund_a_request unique (request_id);
alter table refunds drop constraint refunds_state_check;
-- DISPUTED: the bank gave the money back by a dispute that we lost.
alter table refunds add constraint refunds_state_check
    check (state in ('REQUESTED', 'PENDING', 'SUCCEEDED', 'DISPUTED'));
drop index refunds_to_do;
create index refunds_to_do on refunds (next_try_at) where state in ('REQUESTED', 'PENDING');
create index refunds_of_a_payment on refunds (payment_id);

-- Every refund that Stripe has of a payment: each attempt of ours, and those made in its dashboard.
-- A status only moves on (PENDING, SUCCEEDED, FAILED), whatever order it is learnt in.
create table stripe_refunds (
    id             text primary key,
    -- As others are told of it.
    public_id      uuid        not null default gen_random_uuid(),
    payment_id     uuid        not null references payments (id),
    -- Ours, where it is.
    refund_id      uuid,
    attempt        integer,
    -- In our unit.
    amount         bigint      not null,
    status         text        not null check (status in ('PENDING', 'SUCCEEDED', 'FAILED')),
    failure_reason text,
    created_at     timestamptz not null default now(),
    -- When it was last read at Stripe.
    read_at        timestamptz not null default now()
);
create index stripe_refunds_of_a_payment on stripe_refunds (payment_id);
create index stripe_refunds_pending on stripe_refunds (read_at) where status = 'PENDING';
insert into stripe_refunds (id, payment_id, refund_id, attempt, amount, status, created_at)
select stripe_id, payment_id, id, attempt, amount, state, created_at
from refunds where stripe_id is not null and state in ('PENDING', 'SUCCEEDED');

alter table payments
    -- What Stripe took, where that is another amount or currency than was asked for.
    add column captured_amount   bigint,
    add column captured_currency text,
    -- Grows with each change that is told of the refunds, and of the disputes.
    add column refund_version    bigint not null default 0,
    add column dispute_version   bigint not null default 0,
    -- OPEN, LOST, PARTLY_LOST, INQUIRY, WON or CLOSED; null without a dispute.
    add column dispute_state     text;
update payments p set captured_amount = p.amount, captured_currency = p.currency where p.state = 'SUCCEEDED';
update payments p set captured_amount = r.amount, captured_currency = p.currency
from refunds r where r.payment_id = p.id and r.reason = 'INTENT_MISMATCH' and p.captured_amount is null;

create table disputes (
    id         text primary key,
    payment_id uuid        not null references payments (id),
    -- Stripe's own word.
    status     text        not null,
    reason     text        not null,
    -- In our unit of `currency`.
    amount     bigint      not null,
    currency   text        not null,
    created_at timestamptz not null default now(),
    changed_at timestamptz not null default now()
);
create index disputes_of_a_payment on disputes (payment_id);
