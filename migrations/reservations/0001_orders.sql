-- Orders, their seats, and what a buyer's retry may replay.
--
-- `state` is the machine's own; the API shows PENDING and PAYING both as
-- PENDING_PAYMENT. `version` grows by one with every change of state and
-- travels with each write to Redis, so that a late step changes nothing there.

create table orders (
    id              uuid        primary key,
    user_id         uuid        not null,
    performance_id  uuid        not null,
    schedule_id     uuid        not null,
    -- BOX_OFFICE: sold over the counter; there is no payment of ours, and the
    -- limit per person does not apply.
    channel         text        not null default 'QUEUE' check (channel in ('QUEUE', 'BOX_OFFICE')),
    state           text        not null check (state in ('PENDING', 'PAYING', 'CONFIRMED', 'EXPIRED', 'CANCELLED', 'REFUNDED')),
    version         integer     not null default 1,
    -- A PAYING order whose hold has lapsed, or whose buyer gave up, waits for
    -- what payments says is final: this is what it becomes if nothing was paid.
    closing         text        check (closing in ('EXPIRED', 'CANCELLED')),
    closing_at      timestamptz,
    status_reason   text,
    performance_title text      not null,
    starts_at       timestamptz not null,
    seat_count      integer     not null check (seat_count > 0),
    amount          bigint      not null check (amount >= 0),
    currency        text        not null,
    hold_ttl_ms     bigint      not null default 0,
    expires_at      timestamptz not null,
    -- The place in the queue that this order used up.
    place_epoch     bigint,
    place_number    bigint,
    payment_id      uuid,
    created_at      timestamptz not null default now(),
    confirmed_at    timestamptz,
    closed_at       timestamptz,
    ticket_used_at  timestamptz,
    ticket_used_by  uuid
);

create index orders_of_a_user on orders (user_id, id desc);
create index orders_to_expire on orders (expires_at) where state in ('PENDING', 'PAYING');
create index live_orders_of_a_performance on orders (performance_id) where state in ('PENDING', 'PAYING', 'CONFIRMED');

create table order_seats (
    order_id     uuid    not null references orders (id),
    schedule_id  uuid    not null,
    seat_id      uuid    not null,
    -- Position in the schedule's catalogue, which is its byte in Redis.
    seat_index   integer not null,
    section      text    not null,
    row_label    text    not null,
    seat_number  integer not null,
    grade        text    not null,
    price        bigint  not null,
    -- True while the order is PENDING, PAYING or CONFIRMED; changes in the
    -- same transaction as the order's state.
    live         boolean not null default true,
    primary key (order_id, seat_id)
);

-- The last word on "never sold twice".
create unique index one_live_order_a_seat on order_seats (schedule_id, seat_id) where live;

-- What was captured and must go back, one row a payment.
create table refunds (
    payment_id   uuid        primary key,
    order_id     uuid        not null references orders (id),
    amount       bigint      not null,
    reason       text        not null,
    requested_at timestamptz not null default now(),
    settled_at   timestamptz
);
create index refunds_of_an_order on refunds (order_id);

-- A buyer's own key for one POST. `resource_id` is allotted before the work
-- begins, so that whoever takes the key over makes the same order.
create table idempotency_keys (
    user_id     uuid        not null,
    key         text        not null,
    body_hash   bytea       not null,
    resource_id uuid        not null,
    -- Grows with each takeover: an overtaken attempt cannot write its answer.
    fence       integer     not null default 1,
    locked_at   timestamptz not null default now(),
    created_at  timestamptz not null default now(),
    status      smallint,
    body        bytea,
    primary key (user_id, key)
);
create index idempotency_keys_by_age on idempotency_keys (created_at);
