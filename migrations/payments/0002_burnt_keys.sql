-- Stripe keeps a failure of its own under a key for ever: then the list of refunds says what
-- it did, and another attempt is made only where there is nothing.
alter table refunds add column burnt boolean not null default false;
