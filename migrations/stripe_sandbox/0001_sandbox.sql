-- The stand-in for Stripe. An intent is one document with its charges and
-- refunds; the columns beside it are what is searched, counted or guarded.

create table intents (
    id        text primary key,
    -- Ids are random: this is the order of creation, for lists and pages.
    seq       bigint generated always as identity unique,
    created   bigint not null,
    amount    bigint not null,
    currency  text   not null,
    status    text   not null,
    captured  bigint not null,
    refunded  bigint not null,
    customer  text,
    -- When something follows by itself: a slow payment settles, a dispute opens.
    due_at_ms bigint,
    doc       jsonb  not null,
    constraint intents_captured_within_amount check (captured between 0 and amount),
    -- The engine decides this as well; the database has the last word on money.
    constraint intents_refunded_within_captured check (refunded between 0 and captured)
);

create index intents_due on intents (due_at_ms) where due_at_ms is not null;

create table charges (
    id        text primary key,
    seq       bigint generated always as identity unique,
    intent_id text not null references intents
);

create index charges_intent on charges (intent_id);

create table refunds (
    id        text primary key,
    seq       bigint generated always as identity unique,
    intent_id text not null references intents
);

create index refunds_intent on refunds (intent_id);

create table events (
    id        text primary key,
    seq       bigint generated always as identity unique,
    type      text   not null,
    created   bigint not null,
    intent_id text   not null,
    doc       jsonb  not null
);

create index events_intent on events (intent_id);

create table deliveries (
    id             bigint generated always as identity primary key,
    event_id       text     not null references events on delete cascade,
    -- The place in the list of endpoints, not its URL: a port may change between
    -- two starts.
    endpoint       integer  not null,
    state          text     not null default 'pending'
        check (state in ('pending', 'delivered', 'failed', 'dropped')),
    attempts       integer  not null default 0,
    due_at         timestamptz not null,
    leased         boolean  not null default false,
    -- Faults that were asked for when the event was made.
    lose           integer  not null default 0,
    two_signatures boolean  not null default false,
    forged         boolean  not null default false,
    skewed         boolean  not null default false,
    delivered_at   timestamptz,
    last_status    integer,
    last_error     text
);

create index deliveries_due on deliveries (due_at) where state = 'pending';
create index deliveries_event on deliveries (event_id);

create table idempotency (
    key         text primary key,
    path        text  not null,
    fingerprint bytea not null,
    request_id  text  not null,
    status      smallint not null,
    -- The very bytes that were answered.
    body        text  not null,
    created_at  timestamptz not null default now()
);

create index idempotency_age on idempotency (created_at);
