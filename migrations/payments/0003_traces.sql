-- The trace that an event was said in, where traces are on (platform::events' own shape), and
-- the one in which Stripe told us something.
alter table outbox add column traceparent text;
alter table webhook_events add column traceparent text;
