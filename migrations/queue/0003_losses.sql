alter table epochs
    -- Registrations for the draw have indexes above this number. Noted, so that after a loss of Redis
    -- the draw is still over every index that was given out: who comes back late has a number in it.
    add column draw_lo bigint,
    -- No place of an epoch before this one comes back: the books it belonged to were removed.
    add column fresh_from integer not null default 1;
