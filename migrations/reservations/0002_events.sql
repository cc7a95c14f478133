-- Events leave by the outbox, in the transaction of the change they tell of,
-- and enter by the inbox, in the transaction of their effect. The shape is
-- platform::events' own, the same in every schema.

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
