//! The Stripe sandbox against a real PostgreSQL, over HTTP, and through
//! async-stripe's own types and requests.

mod api;
mod client;
mod faults;
mod idempotency;
mod pages;
mod setup;
mod shapes;
mod speed;
mod webhooks;
