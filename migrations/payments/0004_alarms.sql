-- Alarms as platform::alarms has them in every schema: one open per kind and key, resolved with
-- who, when and why.
alter table alarms drop constraint one_alarm;
alter table alarms
    add column key          text,
    add column last_seen_at timestamptz not null default now(),
    add column count        bigint      not null default 1,
    add column resolved_at  timestamptz,
    -- A user's id, or SYSTEM where the cause went away.
    add column resolved_by  text,
    add column reason       text;
update alarms set key = coalesce(payment_id::text, id::text), last_seen_at = raised_at;
-- Of several of a kind about one payment the newest stays open.
update alarms old set resolved_at = now(), resolved_by = 'SYSTEM', reason = 'A newer alarm of this kind stands.'
where exists (select 1 from alarms new where new.kind = old.kind and new.key = old.key and new.id > old.id);
alter table alarms alter column key set not null;
create unique index one_open_alarm on alarms (kind, key) where resolved_at is null;
