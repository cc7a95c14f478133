//! One binary, a module a guarantee. `harness` starts the real stores that the
//! tests run against; nothing here is faked that can be run.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::too_many_lines,
    reason = "one story, or one table of inputs, reads better whole"
)]

mod harness;

mod booking;
mod books;
mod chaos;
mod compose;
mod edge;
mod embedded;
mod events;
mod external_services;
mod frozen;
mod journey;
mod kafka_events;
mod leases;
mod lifecycle;
mod loadgen;
mod outages;
mod payments;
mod performances;
mod proof;
mod queue;
mod seed;
mod stripe_sandbox;
mod top;
mod traces;
mod users;
