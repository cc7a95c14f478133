-- The queue hears of confirmed orders: its inbox, and what it could not handle.
-- The shapes are platform::events' own, the same in every schema.

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
