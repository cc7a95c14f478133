-- Up to when this role knows what was sold, by reservations' clock: whoever tells it goes on from
-- here, so that a schema restored to an older state is told again of what it has lost.
create table sales_told (
    one   boolean primary key default true check (one),
    up_to timestamptz not null
);
