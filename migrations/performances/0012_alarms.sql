-- What needs a person, as platform::alarms has it in every schema that raises any.
create table alarms (
    id           uuid primary key,
    kind         text        not null,
    key          text        not null,
    order_id     uuid,
    payment_id   uuid,
    detail       text        not null,
    raised_at    timestamptz not null default now(),
    last_seen_at timestamptz not null default now(),
    count        bigint      not null default 1,
    resolved_at  timestamptz,
    -- A user's id, or SYSTEM where the cause went away.
    resolved_by  text,
    reason       text
);
create unique index one_open_alarm on alarms (kind, key) where resolved_at is null;
