//! What every role stands on: configuration, problems, stores, events,
//! telemetry, shutdown. Nothing here knows a role.

pub mod alarms;
pub mod auth;
pub mod catalogue_changes;
pub mod currency;
pub mod db;
pub mod descriptors;
mod eddsa;
pub mod edge;
pub mod embedded;
pub mod event_stream;
pub mod events;
pub mod failpoint;
pub mod failure;
pub mod http;
pub mod idempotency;
pub mod keyspace_listener;
pub mod lease;
pub mod metrics;
pub mod net;
pub mod overview;
pub mod place;
pub mod problem;
pub mod readiness;
pub mod redis;
pub mod repeat;
pub mod scans;
pub mod secret;
pub mod tasks;
pub mod telemetry;
pub mod upstream;
