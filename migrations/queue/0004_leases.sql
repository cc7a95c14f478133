-- Leases: what one instance at a time does (platform::lease). No session holds anything: an
-- instance that is frozen or cut off is replaced when its lease runs out.
create table leases (
    name   text primary key,
    holder uuid not null,
    fence  bigint not null default 1,
    until  timestamptz not null
);
