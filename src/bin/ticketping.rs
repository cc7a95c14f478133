//! Parses, runs, chooses an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    ticketping::cmd::main()
}
