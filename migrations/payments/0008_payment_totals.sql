-- Payments that succeeded and that were refunded in full, for what operators see: kept as they change, so that nobody
-- counts all payments there ever were. Changes are rows of their own, folded into the totals every few seconds: one counter
-- would make payments wait for one another.

create table payment_totals (
    "only"    boolean primary key default true check ("only"),
    succeeded bigint  not null default 0,
    refunded  bigint  not null default 0
);
create table payment_changes (
    id        bigint generated always as identity primary key,
    succeeded integer not null,
    refunded  integer not null
);

create function note_payment_totals() returns trigger language plpgsql set search_path from current as $$
declare
    succeeded_by integer := 0;
    refunded_by  integer := 0;
begin
    if tg_op <> 'INSERT' then
        succeeded_by := succeeded_by - (old.state = 'SUCCEEDED')::integer;
        refunded_by := refunded_by - (old.amount > 0 and old.refunded_amount >= old.amount)::integer;
    end if;
    if tg_op <> 'DELETE' then
        succeeded_by := succeeded_by + (new.state = 'SUCCEEDED')::integer;
        refunded_by := refunded_by + (new.amount > 0 and new.refunded_amount >= new.amount)::integer;
    end if;
    if succeeded_by <> 0 or refunded_by <> 0 then
        insert into payment_changes (succeeded, refunded) values (succeeded_by, refunded_by);
    end if;
    return null;
end $$;
create trigger payment_totals_on_insert after insert on payments for each row when (new.state = 'SUCCEEDED')
    execute function note_payment_totals();
create trigger payment_totals_on_update after update on payments for each row
    when (old.state <> new.state or old.refunded_amount <> new.refunded_amount) execute function note_payment_totals();
create trigger payment_totals_on_delete after delete on payments for each row when (old.state = 'SUCCEEDED')
    execute function note_payment_totals();

-- The triggers hold writers back until this transaction ends: nothing is counted twice or not at all.
insert into payment_totals (succeeded, refunded)
    select count(*) filter (where state = 'SUCCEEDED'),
           count(*) filter (where amount > 0 and refunded_amount >= amount) from payments;
