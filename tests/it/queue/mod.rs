//! The waiting room's guarantees, on real Redis and PostgreSQL, over HTTP.

mod cluster;
mod crowd;
mod draw;
mod draw_model;
mod draw_rules;
mod failover;
mod loss;
mod model;
mod operators;
mod phases;
pub mod redis_server;
mod replay;
mod replay_state;
mod rulebook;
mod rules;
mod sentinel;
mod weather;
mod world;
