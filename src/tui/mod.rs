//! The operator's dashboard: `state` is what is known (pure), `view` draws it
//! (pure), `keys` is the one table of keys, `conn` reads the server, `terminal`
//! owns the screen and gives it back. `run` ties them together and holds nothing.

pub mod capture;
pub mod conn;
pub mod keys;
pub mod once;
pub mod run;
pub mod state;
mod terminal;
pub mod theme;
pub mod view;
