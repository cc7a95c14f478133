-- The waiting room's own schema. Redis holds the live state; here stands what a
-- loss of Redis must not lose, and what people decided.

-- One row a performance that differs from the flags' defaults. Any writer is seen:
-- the trigger moves the version, and running instances compare it once a second.
create table settings (
    performance_id uuid primary key,
    max_working integer not null constraint settings_max_working check (max_working between 0 and 1000000),
    working_ttl_ms bigint not null constraint settings_working_ttl check (working_ttl_ms between 1000 and 86400000),
    claim_ttl_ms bigint not null constraint settings_claim_ttl check (claim_ttl_ms between 1000 and 3600000),
    hold_ttl_ms bigint not null constraint settings_hold_ttl check (hold_ttl_ms between 1000 and 86400000),
    -- null: no limit of its own on the inflow
    admissions_per_minute integer constraint settings_admissions check (admissions_per_minute >= 0),
    -- 0: no limit on how many may wait
    queue_factor double precision not null constraint settings_queue_factor check (queue_factor >= 0),
    paused boolean not null default false,
    draining boolean not null default false,
    pre_queue_opens_at timestamptz,
    poll_min_ms bigint not null default 1000 constraint settings_poll_min check (poll_min_ms between 100 and 60000),
    poll_max_ms bigint not null default 60000 constraint settings_poll_max check (poll_max_ms between 100 and 600000),
    -- milliseconds longer for every person ahead
    poll_step_ms bigint not null default 10 constraint settings_poll_step check (poll_step_ms between 0 and 60000),
    version bigint not null default 1,
    updated_at timestamptz not null default now()
);

create function settings_touch() returns trigger language plpgsql as $$
begin
    new.updated_at := clock_timestamp();
    if tg_op = 'UPDATE' then
        new.version := old.version + 1;
    else
        -- Later than any version a deleted row can have had.
        new.version := (extract(epoch from clock_timestamp()) * 1000)::bigint;
    end if;
    return new;
end $$;

create trigger settings_touch before insert or update on settings
    for each row execute function settings_touch();

-- Who changed what, when and why.
create table setting_changes (
    id uuid primary key,
    performance_id uuid not null,
    actor uuid not null,
    reason text not null,
    before jsonb not null,
    after jsonb not null,
    changed_at timestamptz not null default now()
);
create index setting_changes_newest on setting_changes (id desc);

-- The lives of a performance's state in Redis. A new epoch is opened by compare-and-set
-- on `epoch`; numbers are issued only at or below `ceiling`.
create table epochs (
    performance_id uuid primary key,
    epoch integer not null,
    -- numbers of this epoch start above it
    base bigint not null,
    ceiling bigint not null,
    -- known to have been served; when an epoch begins, what its predecessor had served
    served bigint not null default 0,
    lost_served bigint not null default 0,
    -- known to have been issued
    last bigint not null default 0,
    -- waiting places ended together, when the last seat went or booking closed
    cut_lo bigint,
    cut_hi bigint,
    opened_at timestamptz not null default now(),
    live_at timestamptz not null default now()
);
create index epochs_live on epochs (live_at);

-- A place whose turn is over never returns by an old token.
create table ended_turns (
    performance_id uuid not null,
    number bigint not null,
    user_id uuid not null,
    reason text not null constraint ended_turns_reason check (reason in ('NO_SHOW', 'LAPSED', 'COMPLETED', 'LEFT')),
    ended_at timestamptz not null default now(),
    primary key (performance_id, number)
);
create index ended_turns_recent on ended_turns (performance_id, ended_at);

-- The draw: the seed is secret until the opening, its SHA-256 is not.
create table draws (
    performance_id uuid primary key,
    seed bytea not null,
    created_at timestamptz not null default now(),
    -- set together when the seed is published: numbers first+1 ..= first+count were drawn
    first bigint,
    count bigint,
    revealed_at timestamptz
);
