-- Orders and payments are compared all the time, and Redis with what PostgreSQL has.

-- When payments was last asked again for the end of a payment, or for a refund, whose event or
-- answer did not come.
alter table orders add column asked_again_at timestamptz;
alter table refunds add column asked_again_at timestamptz;
create index refunds_unsettled on refunds (requested_at) where settled_at is null;

-- What was sold and what was given back, by time: others compare their counts with it.
create index orders_by_confirmation on orders (confirmed_at) where confirmed_at is not null;
create index sales_by_end on orders (closed_at) where confirmed_at is not null and closed_at is not null;

-- Scans run on one instance at a time: its holder renews at every tick, and another takes over
-- soon after it stops. `position` is where the scan goes on.
create table scans (
    name       text        primary key,
    holder     uuid        not null,
    held_until timestamptz not null,
    position   jsonb
);

-- Counts up here first, then in Redis. Behind Redis, this PostgreSQL is an older state of itself.
create table restore_guard (
    singleton  boolean     primary key default true check (singleton),
    beats      bigint      not null default 0,
    beat_at    timestamptz not null default now(),
    created_at timestamptz not null default now()
);

-- PostgreSQL was found to be an older state.
create table restores (
    id          uuid        primary key,
    -- What this PostgreSQL does not know happened after that.
    since       timestamptz not null,
    evidence    text        not null,
    detected_at timestamptz not null default now(),
    -- Every captured intent since then has its order, or an alarm.
    matched_at  timestamptz,
    done_at     timestamptz
);
create unique index one_restore_at_a_time on restores ((done_at is null)) where done_at is null;

-- No seats of these performances are sold until it is done.
create table sales_stops (
    performance_id uuid        primary key,
    restore_id     uuid        not null references restores (id),
    stopped_at     timestamptz not null default now()
);
