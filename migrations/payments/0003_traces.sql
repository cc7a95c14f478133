-- The trace that an event was said in, where traces are on (platform::events' own shape).
alter table outbox add column traceparent text;
