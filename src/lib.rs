//! Ticketping sells tickets under a flood: one binary that lets people in at the
//! pace a sale can bear, holds the seats they choose, takes payment through
//! Stripe and tells its parts about it by events. ARCHITECTURE.md is the map.

pub mod cmd;
pub mod platform;
pub mod serve;
pub mod tui;
