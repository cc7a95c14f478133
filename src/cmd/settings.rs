//! Where settings come from beside the command line and the environment: one TOML file, and a
//! file for each secret. Both become defaults of the arguments, so that flags and variables are
//! over them, and everything is checked as a flag would be.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    path::{Path, PathBuf},
};

use clap::{Arg, Command};
use toml::{Table, Value};

use crate::platform::failure::Failure;

/// The file that is read where no other is named.
pub const DEFAULT_FILE: &str = "ticketping.toml";
/// Names another file.
pub const FILE_VARIABLE: &str = "TICKETPING_CONFIG";

/// Where the default of an argument was found: (subcommand, id of the argument) to a file.
pub type Sources = BTreeMap<(String, String), PathBuf>;

/// `command` with what the file and the files of secrets say as its arguments' defaults, and
/// where each was found. `args` are the process's, with its name; only `--config` is read of them.
///
/// # Errors
/// A file that cannot be read, is not TOML, or sets what does not exist; a secret that is given
/// twice. The sentence names the file and the setting.
pub fn settle(
    mut command: Command,
    args: &[OsString],
    env: impl Fn(&str) -> Option<OsString>,
) -> Result<(Command, Sources), Failure> {
    let file = file(args, &env)?;
    let mut sources = Sources::new();
    if let Some((path, table)) = &file {
        check(&command, path, table)?;
    }
    let names: Vec<String> = (command.get_subcommands())
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        let Some(sub) = command.find_subcommand(&name).cloned() else {
            continue;
        };
        let settled = settle_one(sub, &name, file.as_ref(), &env, &mut sources)?;
        command = command.mut_subcommand(&name, |_| settled);
    }
    Ok((command, sources))
}

/// One command of the table `name`, and the commands below it.
fn settle_one(
    mut command: Command,
    name: &str,
    file: Option<&(PathBuf, Table)>,
    env: &impl Fn(&str) -> Option<OsString>,
    sources: &mut Sources,
) -> Result<Command, Failure> {
    let mut found = Vec::new();
    for arg in command.get_arguments() {
        let (from, values) = if let Some((path, secret)) = secret_file(&command, arg, env)? {
            (path, vec![secret])
        } else if let Some((path, table)) = file
            && let Some(value) = lookup(table, name, arg)
        {
            (path.clone(), words(path, arg, value)?)
        } else {
            continue;
        };
        sources.insert((name.to_owned(), arg.get_id().to_string()), from);
        found.push((arg.get_id().clone(), values));
    }
    for (id, values) in found {
        command = command.mut_arg(id, |arg| {
            let secret = arg.is_hide_env_values_set();
            let arg = arg.required(false).default_values(values);
            arg.hide_default_value(secret)
        });
    }
    let below: Vec<String> = (command.get_subcommands())
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for sub in below {
        let Some(one) = command.find_subcommand(&sub).cloned() else {
            continue;
        };
        let settled = settle_one(one, name, file, env, sources)?;
        command = command.mut_subcommand(&sub, |_| settled);
    }
    Ok(command)
}

/// The file that is named, or the one in the working directory, if any.
fn file(
    args: &[OsString],
    env: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(PathBuf, Table)>, Failure> {
    let mut named = env(FILE_VARIABLE).filter(|value| !value.is_empty());
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--") => break,
            Some("--config") => named = args.next().cloned(),
            Some(text) => {
                if let Some(path) = text.strip_prefix("--config=") {
                    named = Some(path.into());
                }
            }
            None => {}
        }
    }
    let path = PathBuf::from(named.clone().unwrap_or_else(|| DEFAULT_FILE.into()));
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => {
            return Err(Failure::Usage(format!(
                "--config {}: {error}",
                path.display()
            )));
        }
    };
    let table = text.parse::<Table>().map_err(|error| {
        Failure::Usage(format!(
            "--config {}: {}",
            path.display(),
            error.to_string().trim_end()
        ))
    })?;
    Ok(Some((path, table)))
}

/// Nothing in the file is overlooked: each key is a setting of the command whose table it stands in,
/// or, at the top, of some command.
fn check(command: &Command, path: &Path, table: &Table) -> Result<(), Failure> {
    let wrong = |what: String| Failure::Usage(format!("--config {}: {what}", path.display()));
    let all: BTreeSet<&str> = command.get_subcommands().flat_map(settable).collect();
    for (key, value) in table {
        let Value::Table(of_command) = value else {
            if !all.contains(key.as_str()) {
                return Err(wrong(unknown(key, "any command", &all)));
            }
            continue;
        };
        let Some(sub) = command.find_subcommand(key) else {
            return Err(wrong(format!("[{key}] is no command of ticketping")));
        };
        let known: BTreeSet<&str> = settable(sub).into_iter().collect();
        for (setting, value) in of_command {
            if !known.contains(setting.as_str()) {
                return Err(wrong(unknown(setting, &format!("`{key}`"), &known)));
            }
            if value.is_table() {
                return Err(wrong(format!(
                    "`{setting}` in [{key}] is a value, not a table"
                )));
            }
        }
    }
    Ok(())
}

fn unknown(key: &str, whose: &str, known: &BTreeSet<&str>) -> String {
    // As a flag or a variable would be written, in the wrong one of the two forms.
    let dashed = key.trim_start_matches('-').to_lowercase().replace('_', "-");
    let dashed = dashed.trim_start_matches("ticketping-");
    let file = format!("{dashed}-file");
    let hint = match [dashed, &file].iter().find(|one| known.contains(*one)) {
        Some(right) => format!("; the setting is `{right}`"),
        None => {
            "; settings are the long flags without their dashes: `ticketping config` prints them"
                .to_owned()
        }
    };
    format!("`{key}` is no setting of {whose}{hint}")
}

/// The long flags that a file may set, of a command and those below it: those that an environment
/// variable may. Where one of two is given, such as a key or its file, only the one that names the
/// other is a setting: a default of both would hide which was meant.
fn settable(command: &Command) -> Vec<&str> {
    let displaced: BTreeSet<_> = (command.get_arguments())
        .flat_map(|arg| command.get_arg_conflicts_with(arg))
        .map(Arg::get_id)
        .collect();
    let own = (command.get_arguments()).filter(|arg| !displaced.contains(arg.get_id()));
    let own = own.filter_map(|arg| arg.get_env().and(arg.get_long()));
    own.chain(command.get_subcommands().flat_map(settable))
        .collect()
}

fn lookup<'a>(table: &'a Table, command: &str, arg: &Arg) -> Option<&'a Value> {
    let long = arg.get_env().and(arg.get_long())?;
    let own = table.get(command).and_then(Value::as_table);
    own.and_then(|own| own.get(long))
        .or_else(|| table.get(long).filter(|value| !value.is_table()))
}

/// A value as it would be written after the flag.
fn words(path: &Path, arg: &Arg, value: &Value) -> Result<Vec<String>, Failure> {
    let word = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(truth) => Some(truth.to_string()),
        _ => None,
    };
    let words = match value {
        Value::Array(values) => values.iter().map(word).collect(),
        value => word(value).map(|word| vec![word]),
    };
    words.ok_or_else(|| {
        Failure::Usage(format!(
            "--config {}: `{}` is a text, a number, true or false, or an array of those",
            path.display(),
            arg.get_long().unwrap_or_default(),
        ))
    })
}

/// What the file says that the variable of a secret with `_FILE` behind it names: as container
/// platforms hand secrets over.
fn secret_file(
    command: &Command,
    arg: &Arg,
    env: &impl Fn(&str) -> Option<OsString>,
) -> Result<Option<(PathBuf, String)>, Failure> {
    let Some(variable) = arg.get_env().and_then(|name| name.to_str()) else {
        return Ok(None);
    };
    let of_file = format!("{variable}_FILE");
    // --jwt-key-file is an argument of its own.
    let own = |arg: &Arg| arg.get_env().is_some_and(|name| *name == *of_file);
    if !arg.is_hide_env_values_set() || command.get_arguments().any(own) {
        return Ok(None);
    }
    let Some(path) = env(&of_file).filter(|path| !path.is_empty()) else {
        return Ok(None);
    };
    if env(variable).is_some_and(|value| !value.is_empty()) {
        return Err(Failure::Usage(format!(
            "{variable} and {of_file} are both set: unset one of them"
        )));
    }
    let path = PathBuf::from(path);
    let secret = std::fs::read_to_string(&path)
        .map_err(|error| Failure::Usage(format!("{of_file} {}: {error}", path.display())))?;
    // Editors and `echo` end files with a line break; no secret does.
    let secret = secret.trim_end_matches(['\n', '\r']);
    if secret.is_empty() {
        return Err(Failure::Usage(format!(
            "{of_file} {}: the file is empty",
            path.display()
        )));
    }
    Ok(Some((path, secret.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::ArgAction;

    use super::*;

    fn commands() -> Command {
        Command::new("t")
            .subcommand(
                Command::new("serve")
                    .arg(
                        Arg::new("listen")
                            .long("listen")
                            .env("T_LISTEN_X")
                            .default_value("1:1"),
                    )
                    .arg(
                        Arg::new("nets")
                            .long("nets")
                            .env("T_NETS_X")
                            .value_delimiter(',')
                            .action(ArgAction::Append),
                    )
                    .arg(
                        Arg::new("demo")
                            .long("demo")
                            .env("T_DEMO_X")
                            .action(ArgAction::SetTrue),
                    )
                    .arg(
                        Arg::new("key")
                            .long("key")
                            .env("T_KEY_X")
                            .hide_env_values(true)
                            .required(true),
                    )
                    .arg(Arg::new("only-flag").long("only-flag")),
            )
            .subcommand(
                Command::new("top").arg(Arg::new("listen").long("listen").env("T_LISTEN_X")),
            )
    }

    /// With a file of this text and these variables: the command, or what is wrong.
    fn settled(text: &str, env: &[(&str, &str)]) -> Result<(Command, Sources), String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.toml");
        fs::write(&file, text).unwrap();
        let args = [
            "t".into(),
            "serve".into(),
            format!("--config={}", file.display()).into(),
        ];
        let env = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        settle(commands(), &args, env).map_err(|failure| failure.to_string())
    }

    fn value(command: &Command, args: &[&str], id: &str) -> String {
        let matches = command.clone().try_get_matches_from(args).unwrap();
        let (_, matches) = matches.subcommand().unwrap();
        let raw = matches.get_raw(id).unwrap();
        raw.map(|word| word.to_str().unwrap())
            .collect::<Vec<_>>()
            .join("|")
    }

    #[test]
    fn a_file_is_over_defaults_and_under_flags() {
        let text = "listen = '2:2'\n[serve]\nkey = 'k'\nnets = ['a', 'b']\ndemo = true\n[top]\nlisten = 3\n";
        let (command, sources) = settled(text, &[]).unwrap();
        let serve = ["t", "serve"];
        assert_eq!(value(&command, &serve, "listen"), "2:2");
        assert_eq!(value(&command, &serve, "nets"), "a|b");
        assert_eq!(value(&command, &serve, "key"), "k");
        assert_eq!(value(&command, &serve, "demo"), "true");
        assert_eq!(
            value(&command, &["t", "serve", "--listen", "9:9"], "listen"),
            "9:9"
        );
        assert_eq!(value(&command, &["t", "top"], "listen"), "3");
        assert_eq!(sources.len(), 5);
        assert!(
            command
                .clone()
                .render_long_help()
                .to_string()
                .contains("serve")
        );
        let help = command
            .find_subcommand("serve")
            .unwrap()
            .clone()
            .render_long_help()
            .to_string();
        assert!(
            help.contains("2:2") && !help.contains("[default: k]"),
            "{help}"
        );
    }

    #[test]
    fn what_is_wrong_in_a_file_is_named() {
        for (text, want) in [
            ("listne = 1", "`listne` is no setting of any command"),
            ("only-flag = 1", "`only-flag` is no setting"),
            ("T_LISTEN = 1", "`T_LISTEN` is no setting"),
            ("[serve]\nlisten_ = 1", "`listen_` is no setting of `serve`"),
            ("[serve]\n[serve.listen]\nx = 1", "not a table"),
            ("[served]\n", "[served] is no command"),
            ("listen = 1979-05-27", "`listen` is a text"),
            ("listen = ", "line 1"),
        ] {
            let error = settled(text, &[]).unwrap_err();
            assert!(
                error.contains(want) && error.contains("t.toml"),
                "{text}: {error}"
            );
        }
        let underlined = settled("[serve]\nTICKETPING_LISTEN = 1", &[]).unwrap_err();
        assert!(
            underlined.contains("the setting is `listen`"),
            "{underlined}"
        );
        let missing = settle(
            commands(),
            &["t".into(), "--config".into(), "/no/file".into()],
            |_| None,
        );
        assert!(missing.unwrap_err().to_string().contains("/no/file"));
    }

    #[test]
    fn a_secret_is_read_from_the_file_that_its_variable_names() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let path = file.to_str().unwrap();
        fs::write(&file, "s3cret\n").unwrap();
        let (command, _) =
            settled("[serve]\nkey = 'of the file'", &[("T_KEY_X_FILE", path)]).unwrap();
        assert_eq!(value(&command, &["t", "serve"], "key"), "s3cret");
        assert_eq!(
            value(&command, &["t", "serve", "--key", "flag"], "key"),
            "flag"
        );
        let twice = settled("", &[("T_KEY_X_FILE", path), ("T_KEY_X", "x")]).unwrap_err();
        assert!(twice.contains("both set"), "{twice}");
        fs::write(&file, "\n").unwrap();
        let empty = settled("", &[("T_KEY_X_FILE", path)]).unwrap_err();
        assert!(empty.contains("empty"), "{empty}");
        let missing = settled("", &[("T_KEY_X_FILE", "/no/key")]).unwrap_err();
        assert!(missing.contains("T_KEY_X_FILE /no/key"), "{missing}");
    }
}
