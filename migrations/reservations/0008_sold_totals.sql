-- Seats sold, by performance, for what operators see: kept as they change, so that nobody sums all orders there ever were.
-- A change is a row of its own, since one counter that every confirmation updates would make them wait for one another;
-- the changes are folded into the totals every few seconds.

create table sold_totals (
    performance_id uuid   primary key,
    seats          bigint not null
);
create table sold_changes (
    id             bigint generated always as identity primary key,
    performance_id uuid   not null,
    seats          bigint not null
);

create function note_sold() returns trigger language plpgsql set search_path from current as $$
begin
    if tg_op <> 'INSERT' then
        if old.state = 'CONFIRMED' then
            insert into sold_changes (performance_id, seats) values (old.performance_id, -old.seat_count);
        end if;
    end if;
    if tg_op <> 'DELETE' then
        if new.state = 'CONFIRMED' then
            insert into sold_changes (performance_id, seats) values (new.performance_id, new.seat_count);
        end if;
    end if;
    return null;
end $$;
create trigger sold_on_insert after insert on orders for each row when (new.state = 'CONFIRMED')
    execute function note_sold();
create trigger sold_on_update after update on orders for each row
    when ((old.state = 'CONFIRMED') <> (new.state = 'CONFIRMED')) execute function note_sold();
create trigger sold_on_delete after delete on orders for each row when (old.state = 'CONFIRMED')
    execute function note_sold();

-- The triggers hold writers back until this transaction ends: nothing is counted twice or not at all.
insert into sold_totals (performance_id, seats)
    select performance_id, sum(seat_count) from orders where state = 'CONFIRMED' group by performance_id;
