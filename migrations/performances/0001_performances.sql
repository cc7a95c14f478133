-- Halls, performances, their schedules and every seat of each schedule, with
-- prices, and how many of them are sold. Runs inside the schema of the
-- performances role.

create table venues (
    id      uuid primary key,
    name    text not null,
    address text not null,
    -- The hall as built: [{"name", "floor", "rows": [{"label", "seats", "grade"}]}], in seat order.
    layout  jsonb not null
);

create table performances (
    id                uuid primary key,
    venue_id          uuid not null references venues (id),
    title             text not null,
    description       text not null default '',
    runtime_minutes   integer not null constraint performances_runtime_positive check (runtime_minutes > 0),
    age_rating        text not null,
    currency          text not null default 'krw' constraint performances_currency_iso check (currency ~ '^[a-z]{3}$'),
    booking_opens_at  timestamptz not null,
    booking_closes_at timestamptz not null,
    created_at        timestamptz not null default now(),
    constraint performances_window_ordered check (booking_opens_at < booking_closes_at)
);
create index performances_venue_id on performances (venue_id);

create table price_grades (
    performance_id uuid not null references performances (id) on delete cascade,
    grade          smallint not null,
    name           text not null,
    -- In the minor unit of the performance's currency (krw has no decimals).
    price          bigint not null constraint price_grades_price_not_negative check (price >= 0),
    primary key (performance_id, grade),
    constraint price_grades_name_key unique (performance_id, name)
);

create table schedules (
    id             uuid primary key,
    performance_id uuid not null references performances (id) on delete cascade,
    starts_at      timestamptz not null,
    total_seats    integer not null constraint schedules_total_not_negative check (total_seats >= 0)
);
create index schedules_performance_id on schedules (performance_id, starts_at, id);

-- The names of a hall's parts, so that a seat carries two bytes instead of a text.
create table sections (
    venue_id uuid not null references venues (id),
    section  smallint not null,
    name     text not null,
    primary key (venue_id, section)
);

-- A seat's idx is its place in the schedule's seat order and its byte in the
-- live seat state: 0, 1, 2, ... without a hole. The table only ever grows by whole schedules in one COPY,
-- written with the schedule in one transaction; a foreign key would ask the schedules table a
-- million times what that transaction already knows.
create table seats (
    schedule_id uuid not null,
    idx         integer not null,
    section     smallint not null,
    grade       smallint not null,
    number      smallint not null,
    row_label   text not null,
    id          uuid not null,
    primary key (schedule_id, idx)
);

-- How many seats of a schedule are sold, kept from order events. Apart from
-- schedules, so that the catalogue never changes under a sale.
create table schedule_sales (
    schedule_id uuid primary key references schedules (id) on delete cascade,
    sold        integer not null default 0
);

-- What each order counts for. Events come twice and in any order: an order
-- counts while it was confirmed and not refunded, whichever was heard of first.
create table counted_orders (
    order_id    uuid primary key,
    schedule_id uuid not null,
    seats       integer not null constraint counted_orders_seats_positive check (seats > 0),
    confirmed   boolean not null,
    refunded    boolean not null
);

-- As platform::events asks of a consumer.
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
