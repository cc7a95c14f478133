//! `ticketping completions` and `ticketping man`: what packages and shells want of a command.

use std::{io, path::PathBuf};

use clap::Command;
use clap_complete::Shell;

use crate::platform::failure::Failure;

/// Print a script that completes commands and flags in a shell
///
/// bash: `source <(ticketping completions bash)`; zsh: save as _ticketping in a directory of $fpath;
/// fish: `ticketping completions fish > ~/.config/fish/completions/ticketping.fish`.
#[derive(Debug, clap::Args)]
pub struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Print the manual page, or write one for each command
///
/// `man <(ticketping man)` shows it.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write ticketping.1, ticketping-serve.1 and so on into this directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the script.
///
/// # Errors
/// When stdout takes nothing.
pub fn completions(args: &CompletionArgs, mut command: Command) -> Result<u8, Failure> {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    printed(io::Write::write_all(&mut io::stdout(), &script))
}

/// Prints the page, or writes all of them.
///
/// # Errors
/// When the directory, or stdout, takes nothing.
pub fn man(args: &ManArgs, command: Command) -> Result<u8, Failure> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        let rendered = clap_mangen::Man::new(command).render(&mut page);
        return printed(rendered.and_then(|()| io::Write::write_all(&mut io::stdout(), &page)));
    };
    clap_mangen::generate_to(command, dir)
        .map_err(|error| Failure::Failed(format!("--dir {}: {error}", dir.display())))?;
    Ok(0)
}

/// The exit code once stdout took everything, or its reader has left.
///
/// # Errors
/// When stdout takes nothing.
pub(super) fn printed(outcome: io::Result<()>) -> Result<u8, Failure> {
    match outcome {
        // Whoever reads a part of it has closed the pipe.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Failed(format!("cannot print: {error}")))
        }
        _ => Ok(0),
    }
}
