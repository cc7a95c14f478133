-- Until when a schedule is sold: its start where nothing else is said, and never later than that.
alter table schedules add column sales_end_at timestamptz;
create index schedules_by_sales_end on schedules (least(sales_end_at, starts_at)) include (performance_id);

-- Which transaction changed a performance last: its times, its prices, its schedules, its hall. Every instance of every
-- role that caches them asks for what is new (a row a performance, so this never grows), whoever wrote it: the catalogue,
-- seed, or a person with psql. A transaction's id tells what was not committed yet at an earlier reading; a sequence would not.
create table catalogue_changes (
    performance_id uuid        primary key,
    changed_by     xid8        not null default pg_current_xact_id(),
    changed_at     timestamptz not null default now()
);
create index catalogue_changes_by_transaction on catalogue_changes (changed_by);

-- The argument names the column that has the performance's id.
create function note_catalogue_change() returns trigger language plpgsql set search_path from current as $$
declare
    changed uuid;
begin
    if tg_op = 'DELETE' then
        changed := to_jsonb(old) ->> tg_argv[0];
    else
        changed := to_jsonb(new) ->> tg_argv[0];
    end if;
    insert into catalogue_changes (performance_id) values (changed)
    on conflict (performance_id) do update set changed_by = excluded.changed_by, changed_at = excluded.changed_at;
    return null;
end $$;
create trigger catalogue_change after insert or update or delete on performances
    for each row execute function note_catalogue_change('id');
create trigger catalogue_change after insert or update or delete on schedules
    for each row execute function note_catalogue_change('performance_id');
create trigger catalogue_change after insert or update or delete on price_grades
    for each row execute function note_catalogue_change('performance_id');

-- The argument names the column that has the venue's id.
create function note_venue_change() returns trigger language plpgsql set search_path from current as $$
begin
    insert into catalogue_changes (performance_id)
        select p.id from performances p where p.venue_id = (to_jsonb(new) ->> tg_argv[0])::uuid
    on conflict (performance_id) do update set changed_by = excluded.changed_by, changed_at = excluded.changed_at;
    return null;
end $$;
create trigger catalogue_change after update on venues for each row execute function note_venue_change('id');
create trigger catalogue_change after insert or update on sections
    for each row execute function note_venue_change('venue_id');
