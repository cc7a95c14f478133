//! One module a subcommand; each parses its own arguments and runs.

pub mod audit;
pub mod config;
pub mod draw;
pub mod events;
pub mod loadgen;
pub mod manual;
pub mod migrate;
pub mod seed;
pub mod serve;
mod settings;
pub mod token;
pub mod top;

use std::process::ExitCode;

use clap::{
    CommandFactory, FromArgMatches, Parser,
    error::{ContextKind, ContextValue},
};

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
    /// A file with settings: long flags without their dashes, such as `redis-url = "redis://…"`, at the
    /// top for every command or under [serve] and so on for one. Flags and environment variables are over
    /// it [default: ticketping.toml in the working directory, where there is one]
    #[arg(
        long,
        global = true,
        env = settings::FILE_VARIABLE,
        value_name = "FILE",
        help_heading = "Settings",
        hide_env_values = true
    )]
    config: Option<std::path::PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Audit(Box<audit::Args>),
    Completions(manual::CompletionArgs),
    Config(config::Args),
    Draw(draw::Args),
    Events(events::Args),
    /// Create halls, performances, seats, members and access tokens
    Seed(Box<seed::Args>),
    Serve(Box<serve::Args>),
    Loadgen(Box<loadgen::Args>),
    Man(manual::ManArgs),
    Migrate(migrate::Args),
    Top(Box<top::Args>),
    Token(token::Args),
}

/// Parses, runs, and chooses the exit code: 0 fine, 1 failed, 2 usage, 3 objective missed.
pub fn main() -> ExitCode {
    match parse_and_run() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            telemetry::fatal(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

fn parse_and_run() -> Result<u8, Failure> {
    let args: Vec<_> = std::env::args_os().collect();
    let (mut command, sources) =
        settings::settle(Cli::command(), &args, |name| std::env::var_os(name))?;
    let matches = command.clone().try_get_matches_from(&args);
    let matches = matches.unwrap_or_else(|error| refuse(&error, &args, &sources));
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match &cli.command {
        Command::Config(args) => {
            command.build();
            return config::run(args, &command, &sources);
        }
        // Of the program, whatever this machine is set to.
        Command::Completions(args) => return manual::completions(args, Cli::command()),
        Command::Man(args) => return manual::man(args, Cli::command()),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Failed(format!("cannot start the runtime: {e}")))?;
    runtime.block_on(run(cli.command))
}

/// Says what is wrong with the command line, or shows the help that was asked for, and ends.
fn refuse(error: &clap::Error, args: &[std::ffi::OsString], sources: &settings::Sources) -> ! {
    // Nothing is left to be done where the terminal takes no words.
    let _ = error.print();
    if let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg)
        && let Some(flag) = arg.split(' ').next()
        && !args
            .iter()
            .any(|given| given.to_string_lossy().starts_with(flag))
        && let Some((_, file)) = sources
            .iter()
            .find(|((_, id), _)| flag == format!("--{}", id.replace('_', "-")))
    {
        telemetry::fatal(&format!("{flag} is set in {}", file.display()));
    }
    std::process::exit(error.exit_code())
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
        Command::Config(_) | Command::Completions(_) | Command::Man(_) => {
            Err(Failure::Failed("needs no runtime".to_owned()))
        }
    }
}
