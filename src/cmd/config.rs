//! `ticketping config`: what `serve` would run with, and who says so.

use std::{fmt::Write as _, io::Write as _};

use clap::{ArgMatches, Command, ValueEnum, parser::ValueSource};

use super::{
    manual::printed,
    settings::{DEFAULT_FILE, Sources},
};
use crate::{platform::failure::Failure, serve::Role};

/// Print every setting of `serve`, and where it comes from
///
/// What is printed is a ticketping.toml of the same settings; secrets are left out. A flag is over
/// an environment variable, that over the file, that over the default.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The role whose settings are checked
    #[arg(value_enum, default_value = "all")]
    role: Role,
}

/// Prints the settings.
///
/// # Errors
/// When `serve` would refuse them, as it would say it.
pub fn run(args: &Args, command: &Command, sources: &Sources) -> Result<u8, Failure> {
    let role = args.role.to_possible_value();
    let role = role.as_ref().map_or("all", |role| role.get_name());
    let words = [command.get_name(), "serve", role];
    let parsed = command.clone().try_get_matches_from(words);
    let matches = parsed.map_err(|error| Failure::Usage(plain(&error)))?;
    let (Some((_, matches)), Some(serve)) =
        (matches.subcommand(), command.find_subcommand("serve"))
    else {
        return Err(Failure::Failed("`serve` is no command".to_owned()));
    };
    let text = listing(serve, matches, sources);
    printed(std::io::stdout().write_all(text.as_bytes()))
}

/// What clap says, without the word that the process's own error line begins with.
fn plain(error: &clap::Error) -> String {
    let text = error.to_string();
    text.trim_start_matches("error: ").trim_end().to_owned()
}

fn listing(serve: &Command, matches: &ArgMatches, sources: &Sources) -> String {
    let mut text = format!(
        "# The settings of `ticketping serve`, as a {DEFAULT_FILE}. A flag is over an environment variable,\n\
         # that over the file, that over the default.\n\n[serve]\n"
    );
    let mut heading = None;
    for arg in serve.get_arguments() {
        let (Some(long), Some(env)) = (arg.get_long(), arg.get_env()) else {
            continue;
        };
        // --config names the file and stands in none.
        if arg.is_global_set() {
            continue;
        }
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let _ = writeln!(text, "\n# {}", heading.unwrap_or_default());
        }
        let id = arg.get_id().as_str();
        let env = env.to_string_lossy();
        let values: Vec<String> = (matches.get_raw(id).into_iter().flatten())
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        if values.is_empty() {
            let _ = writeln!(text, "# {long} =    # not set ({env})");
            continue;
        }
        let from = match matches.value_source(id) {
            Some(ValueSource::EnvVariable) => env.into_owned(),
            _ => match sources.get(&("serve".to_owned(), id.to_owned())) {
                Some(path) => path.display().to_string(),
                None => "default".to_owned(),
            },
        };
        // A comment, so that nobody's secret becomes three stars when this is read as a file.
        let _ = match arg.is_hide_env_values_set() {
            true => writeln!(text, "# {long} = \"***\"    # {from}"),
            false => writeln!(text, "{long} = {}    # {from}", toml(&values)),
        };
    }
    text
}

/// As TOML: what reads as a number or a truth, as that.
fn toml(values: &[String]) -> String {
    let one = |value: &String| match value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok() {
        true => value.clone(),
        false => ::toml::Value::String(value.clone()).to_string(),
    };
    match values {
        [value] => one(value),
        values => format!(
            "[{}]",
            values.iter().map(one).collect::<Vec<_>>().join(", ")
        ),
    }
}
