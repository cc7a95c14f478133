//! `ticketping serve <role>`.

use crate::{platform::failure::Failure, serve};

pub use crate::serve::Args;

/// Runs until it is told to stop.
///
/// # Errors
/// Whatever keeps it from starting.
pub async fn run(args: Args) -> Result<u8, Failure> {
    serve::run(args).await.map(|()| 0)
}
