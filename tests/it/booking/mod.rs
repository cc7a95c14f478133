//! Sold once, paid once, or refunded: the reservations role on real stores.

mod audit;
mod best;
mod holds;
mod house;
mod idempotency;
mod model;
mod money;
mod races;
mod rebuild;
mod recovery;
mod sales;
mod tickets;
mod turns;
mod world;
