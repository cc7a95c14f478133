-- Many refunds an order, as payments tells of them; and its dispute.

alter table refunds drop constraint refunds_pkey;
alter table refunds
    -- What payments knows the request by. Before there were many, the payment was its own request.
    add column id     uuid not null default gen_random_uuid(),
    -- COVERED: the money went back another way, such as by a refund made at Stripe.
    add column status text not null default 'PENDING'
        check (status in ('PENDING', 'SUCCEEDED', 'FAILED', 'COVERED'));
update refunds set id = payment_id;
update refunds set status = 'SUCCEEDED' where settled_at is not null;
alter table refunds add primary key (id);
create index refunds_of_a_payment on refunds (payment_id);

-- The newest that payments has told of a payment's refunds: what is older changes nothing.
create table payment_refunds (
    payment_id uuid   primary key,
    order_id   uuid   not null,
    version    bigint not null,
    refunded   bigint not null
);

alter table orders
    -- There are refunds to read, also where the order stands.
    add column has_refunds     boolean not null default false,
    -- OPEN, LOST, PARTLY_LOST, INQUIRY, WON or CLOSED, as payments tells; older news changes nothing.
    add column dispute_state   text,
    add column dispute_version bigint  not null default 0;
update orders set has_refunds = true where id in (select order_id from refunds);
