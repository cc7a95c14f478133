-- A setting that nobody gave follows the server's flags: a row with one setting says nothing of the others.
alter table settings
    alter column max_working drop not null,
    alter column working_ttl_ms drop not null,
    alter column claim_ttl_ms drop not null,
    alter column hold_ttl_ms drop not null,
    alter column queue_factor drop not null,
    -- Null in admissions_per_minute means no limit, unless this says that the flag decides.
    add column admissions_default boolean not null default false;

alter table epochs
    -- The newest reading of the state that any instance wrote down: the script's clock, ms. A state in Redis
    -- that is behind it has lost something.
    add column clock bigint not null default 0,
    -- What had been served a poll interval before that.
    add column served_then bigint not null default 0,
    -- The process (run_id) of the Redis where the epoch lives.
    add column store text not null default '',
    -- How long nobody could be served before the epoch began, ms: turns of earlier epochs last so much longer.
    add column lost_ms bigint not null default 0,
    -- Numbers that were never issued, as pairs (above, up to): what an epoch skipped of a reserved block.
    add column skips bigint[] not null default '{}';

-- Ended turns are removed when no token of theirs can count any more.
create index ended_turns_by_age on ended_turns (ended_at);
