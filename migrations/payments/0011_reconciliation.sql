-- Payments and orders are compared all the time, and both with what Stripe has.

-- The id of this installation stands in every intent's metadata: only those are ours. Made once;
-- a backup carries it along, `seed --reset` begins another.
create table installation (
    singleton  boolean     primary key default true check (singleton),
    id         uuid        not null default gen_random_uuid(),
    created_at timestamptz not null default now()
);
insert into installation default values;

-- Beyond the ids that have columns: what the intent's metadata says, as it was when the attempt was
-- noted. With it alone the order can be built again.
alter table payments add column metadata jsonb;

-- Since when reservations is known to have accounted for this capture as it stands; null again
-- with every change of the money. Until then it is asked again.
alter table payments add column accounted_at timestamptz;
alter table payments add column account_after timestamptz not null default now();
alter table payments add column account_tries integer not null default 0;
create index payments_unaccounted on payments (account_after)
    where state = 'SUCCEEDED' and accounted_at is null;

create function unaccounted() returns trigger language plpgsql as $$
begin
    new.accounted_at := null;
    -- The event is usually there first.
    new.account_after := now() + interval '8 seconds';
    new.account_tries := 0;
    return new;
end $$;
create trigger payments_new before insert on payments
    for each row when (new.state = 'SUCCEEDED') execute function unaccounted();
create trigger payments_changed before update on payments
    for each row when (new.state = 'SUCCEEDED' and (old.state, old.refund_version, old.dispute_version)
        is distinct from (new.state, new.refund_version, new.dispute_version))
    execute function unaccounted();

-- Scans run on one instance at a time: its holder renews at every tick, and another takes over
-- soon after it stops. `position` is where the scan goes on.
create table scans (
    name       text        primary key,
    holder     uuid        not null,
    held_until timestamptz not null,
    position   jsonb
);

-- Reservations found PostgreSQL behind what Redis has: every intent since then is matched.
create table restores (
    id         uuid        primary key,
    since      timestamptz not null,
    begun_at   timestamptz not null default now(),
    -- Up to when the intents have been matched, and the last one of that second.
    position   jsonb,
    matched    bigint      not null default 0,
    problem    text,
    done_at    timestamptz
);
