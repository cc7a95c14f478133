//! One module a subcommand; each parses its own arguments and runs.

pub mod audit;
pub mod draw;
pub mod events;
pub mod loadgen;
pub mod migrate;
pub mod seed;
pub mod serve;
pub mod token;
pub mod top;

use std::process::ExitCode;

use clap::Parser;

use crate::platform::{failure::Failure, telemetry};

/// Sells tickets under a flood: a waiting room, seat holds, payments and events in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "ticketping",
    version,
    propagate_version = true,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Audit(Box<audit::Args>),
    Draw(draw::Args),
    Events(events::Args),
    /// Create halls, performances, seats, members and access tokens
    Seed(Box<seed::Args>),
    Serve(Box<serve::Args>),
    Loadgen(Box<loadgen::Args>),
    Migrate(migrate::Args),
    Top(Box<top::Args>),
    Token(token::Args),
}

/// Parses, runs, and chooses the exit code: 0 fine, 1 failed, 2 usage, 3 objective missed.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let outcome = match runtime {
        Ok(runtime) => runtime.block_on(run(cli.command)),
        Err(e) => Err(Failure::Failed(format!("cannot start the runtime: {e}"))),
    };
    match outcome {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            telemetry::fatal(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

async fn run(command: Command) -> Result<u8, Failure> {
    match command {
        Command::Audit(args) => audit::run(*args).await,
        Command::Draw(args) => draw::run(args).await,
        Command::Events(args) => events::run(args).await,
        Command::Seed(args) => seed::run(*args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Serve(args) => serve::run(*args).await,
        Command::Loadgen(args) => loadgen::run(*args)
            .await
            .map_err(|e| Failure::Failed(format!("{e:#}"))),
        Command::Top(args) => top::run(*args)
            .await
            .map_err(|e| Failure::Failed(format!("{e:#}"))),
        Command::Token(args) => token::run(&args),
    }
}
