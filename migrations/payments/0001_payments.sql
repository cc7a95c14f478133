-- Payments: one an order, its refunds, and what Stripe told us.

create table payments (
    id              uuid primary key,
    order_id        uuid not null,
    -- Null in a tombstone: the order was closed before anybody began to pay, and
    -- this row makes sure that nobody does afterwards.
    user_id         uuid,
    performance_id  uuid,
    state           text not null check (state in
                        ('CREATING', 'REQUIRES_PAYMENT', 'FAILED', 'PROCESSING', 'SUCCEEDED', 'CANCELLED')),
    amount          bigint not null check (amount >= 0),
    currency        text not null,
    refunded_amount bigint not null default 0,
    -- What the buyer sees at Stripe, and the operator in its dashboard.
    description     text not null default '',
    -- The attempt at making the intent. Committed before Stripe is called, and part of the
    -- key that the call carries; a new attempt only after Stripe refused the last for good.
    attempt         integer not null default 1,
    attempted_at    timestamptz not null default now(),
    intent_id       text,
    client_secret   text,
    failure_code    text,
    failure_message text,
    disputed_at     timestamptz,
    -- The order is being closed: the intent is to be cancelled as soon as Stripe lets us.
    cancel_requested_at timestamptz,
    -- CANCELLED here, but an intent may be left over at Stripe that nobody can pay.
    cleanup         boolean not null default false,
    created_at      timestamptz not null default now(),
    updated_at      timestamptz not null default now(),
    succeeded_at    timestamptz,
    -- When the reconciler looks next, and how often it did.
    next_check_at   timestamptz not null,
    checks          integer not null default 0,
    constraint one_payment_an_order unique (order_id),
    constraint one_payment_an_intent unique (intent_id)
);
create index payments_to_check on payments (next_check_at)
    where state in ('CREATING', 'REQUIRES_PAYMENT', 'FAILED', 'PROCESSING') or cleanup;

-- Money that goes back on our own account, in full, at most once a payment.
create table refunds (
    id            uuid primary key,
    payment_id    uuid not null references payments (id),
    order_id      uuid not null,
    amount        bigint not null check (amount > 0),
    reason        text not null,
    state         text not null default 'REQUESTED' check (state in ('REQUESTED', 'PENDING', 'SUCCEEDED')),
    -- As with payments: part of the key, a new one only after a refusal for good.
    attempt       integer not null default 1,
    attempted_at  timestamptz,
    stripe_id     text,
    refusals      integer not null default 0,
    last_error    text,
    -- Set while Stripe refuses: somebody must look.
    alarmed_at    timestamptz,
    created_at    timestamptz not null default now(),
    settled_at    timestamptz,
    next_try_at   timestamptz not null default now(),
    tries         integer not null default 0,
    constraint one_refund_a_payment unique (payment_id)
);
create index refunds_to_do on refunds (next_try_at) where state <> 'SUCCEEDED';

-- Stripe's events as they came, verified. Kept longer than Stripe repeats them (3 days).
create table webhook_events (
    id           text primary key,
    type         text not null,
    payload      text not null,
    received_at  timestamptz not null default now(),
    processed_at timestamptz,
    outcome      text,
    next_try_at  timestamptz not null default now(),
    tries        integer not null default 0
);
create index webhook_events_to_do on webhook_events (next_try_at) where processed_at is null;

-- What needs a person: money that does not add up, refused refunds, disputes.
create table alarms (
    id         uuid primary key,
    kind       text not null,
    payment_id uuid,
    order_id   uuid,
    detail     text not null,
    raised_at  timestamptz not null default now(),
    constraint one_alarm unique nulls not distinct (kind, payment_id, detail)
);

-- A buyer's own key for one POST (platform::idempotency).
create table idempotency_keys (
    user_id     uuid        not null,
    key         text        not null,
    body_hash   bytea       not null,
    resource_id uuid        not null,
    fence       integer     not null default 1,
    locked_at   timestamptz not null default now(),
    created_at  timestamptz not null default now(),
    status      smallint,
    body        bytea,
    primary key (user_id, key)
);
create index idempotency_keys_by_age on idempotency_keys (created_at);

-- Events said and heard (platform::events).
create table outbox (
    id           uuid primary key,
    seq          bigint generated always as identity,
    shard        smallint not null,
    key          text not null,
    type         text not null,
    payload      json not null,
    created_at   timestamptz not null default now(),
    published_at timestamptz
);
create index outbox_unpublished on outbox (seq) where published_at is null;

create table inbox (
    consumer   text not null,
    event_id   uuid not null,
    handled_at timestamptz not null default now(),
    primary key (consumer, event_id)
);

create table dead_letters (
    id                  uuid primary key,
    consumer            text not null,
    event_id            uuid not null,
    origin              text not null,
    type                text not null,
    key                 text not null,
    payload             text not null,
    error               text not null,
    attempts            integer not null,
    created_at          timestamptz not null default now(),
    replay_requested_at timestamptz,
    resolved_at         timestamptz,
    constraint dead_letters_event unique (consumer, event_id)
);
create index dead_letters_open on dead_letters (created_at) where resolved_at is null;
