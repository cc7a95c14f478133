-- The rate limits of the Stripe account, shared by all instances, and what is known of Stripe's
-- own list of events.

-- One row: the account behind the secret key.
create table stripe_account (
    singleton      boolean primary key default true check (singleton),
    -- Real money was taken with a live key.
    live_since     timestamptz,
    -- The list of events: who reads it, until when, and when it is due.
    polled_by      uuid,
    poll_leased_until timestamptz,
    poll_due_at    timestamptz not null default now(),
    -- The newest event that was read, and when it was made at Stripe (seconds).
    last_event_id  text,
    last_event_at  bigint,
    polled_at      timestamptz,
    -- Events that nobody delivered are looked for back to here again (seconds).
    swept_at       timestamptz
);
insert into stripe_account default values;

create table stripe_shares (
    instance       uuid primary key,
    -- What it may use, from 0 to 1, and what it may still be using: it hears of a smaller share
    -- only by the answer.
    share          double precision not null check (share between 0 and 1),
    in_use         double precision not null check (in_use between 0 and 1),
    -- Calls asked for since its heartbeat before.
    demand         double precision not null,
    leased_until   timestamptz not null,
    -- The longest that a create waited for the limits lately.
    create_wait_ms integer not null default 0,
    -- What Stripe said of the key, while it refuses it.
    key_refused    text
);

-- One heartbeat of an instance: its share from now on. A fifth of the limits is shared evenly, so
-- that nobody starts from nothing; the rest by demand. One statement for the caller, so that no
-- frozen instance can hold the lock.
create function lease_stripe_share(
    me uuid, using_now double precision, wanted double precision, lease_s double precision,
    slowest_ms integer, refused text
) returns double precision language plpgsql as $$
declare
    others   double precision;
    instances integer;
    wanted_by_all double precision;
    granted  double precision;
begin
    insert into stripe_account default values on conflict do nothing;
    perform 1 from stripe_account for update;
    delete from stripe_shares where leased_until < clock_timestamp() and instance <> me;
    insert into stripe_shares (instance, share, in_use, demand, leased_until)
        values (me, 0, using_now, wanted, clock_timestamp())
        on conflict (instance) do nothing;
    update stripe_shares set in_use = using_now, demand = wanted, create_wait_ms = slowest_ms,
            key_refused = refused, leased_until = clock_timestamp() + make_interval(secs => lease_s)
        where instance = me;
    select count(*), sum(demand), sum(greatest(share, in_use)) filter (where instance <> me)
        into instances, wanted_by_all, others from stripe_shares;
    granted := case when wanted_by_all > 0
        then 0.2 / instances + 0.8 * wanted / wanted_by_all else 1.0 / instances end;
    granted := greatest(0, least(granted, 1 - coalesce(others, 0)));
    update stripe_shares set share = granted where instance = me;
    return granted;
end $$;

-- Webhooks: whether an event was found in Stripe's list rather than delivered, whether it was
-- delivered after all, and when it was made.
alter table webhook_events
    add column polled boolean not null default false,
    add column delivered_at timestamptz,
    add column event_at bigint;
create index webhook_events_done on webhook_events (processed_at) where processed_at is not null;
create index webhook_events_missing on webhook_events (type) where polled and delivered_at is null;
create index webhook_events_by_type on webhook_events (type, received_at) where not polled;

-- Bodies whose signature did not fit, by the id that they claim: proof that our secret is wrong
-- where Stripe knows an event of that id, and nothing at all where it does not.
create table webhook_refusals (
    id         text primary key,
    reason     text not null,
    refused_at timestamptz not null default now()
);

-- The attempt at making the intent is leased, so that one caller asks Stripe and the others wait
-- for what it finds.
alter table payments
    add column creating_until timestamptz,
    -- When what is known of the intent was true at Stripe (seconds).
    add column intent_at bigint;
