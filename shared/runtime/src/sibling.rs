//! Commands that a program does not have: the other program's, and what other tools call theirs.

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// What a command is called elsewhere, and here: program and command.
const ELSEWHERE: &[(&str, &str)] = &[
    ("archive-get", "restore-agent fetch"),
    ("archive-push", "archive-agent push"),
    ("backup-fetch", "restore-agent restore"),
    ("backup-list", "restore-agent list"),
    ("backup-push", "archive-agent backup"),
    ("delete", "archive-agent expire"),
    ("info", "archive-agent status"),
    ("list-backups", "restore-agent list"),
    ("prune", "archive-agent expire"),
    ("recover", "restore-agent restore"),
    ("show", "archive-agent status"),
    ("stanza-create", "archive-agent init"),
    ("wal-fetch", "restore-agent fetch"),
    ("wal-push", "archive-agent push"),
];

/// Prints how the command line is wrong, or the help that was asked for, and what was meant ([`meant`]).
pub fn print(error: &clap::Error, other: &str, commands: &[&str], arguments: &[OsString]) {
    // A closed standard error is no reason to fail differently.
    error.print().ok();
    std::io::stdout().flush().ok();
    if let Some(meant) = meant(error, other, commands, arguments) {
        writeln!(std::io::stderr(), "\nHINT: {meant}").ok();
    }
}

/// The command line that was meant, if `error` is about a command that another program has: one of `commands`, or one that another
/// tool calls so.
pub fn meant(error: &clap::Error, other: &str, commands: &[&str], arguments: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(name)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    if commands.contains(&name.as_str()) {
        let others = arguments.iter().skip(1).map(|argument| argument.to_string_lossy());
        let others = others.map(|argument| quoted(&argument)).collect::<Vec<String>>().join(" ");
        return Some(format!("{name} is a command of {other}: {other} {others}"));
    }
    let (_, here) = ELSEWHERE.iter().find(|(elsewhere, _)| elsewhere == name)?;
    Some(format!("{name} is called {here} here: see {here} --help"))
}

/// A word of a command line, as a shell has to be given it.
pub fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_owned(),
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn hint(arguments: &[&str]) -> Option<String> {
        let program = Command::new("here").subcommand_required(true).subcommand(Command::new("backup"));
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let error = program.try_get_matches_from(&arguments).unwrap_err();
        meant(&error, "there", &["plan", "restore"], &arguments)
    }

    #[test]
    fn a_command_of_the_other_program_is_answered_with_its_command_line() {
        assert_eq!(
            hint(&["here", "restore", "--target-time", "2026-01-01 12:00", "--pgdata=/x"]).as_deref(),
            Some("restore is a command of there: there restore --target-time '2026-01-01 12:00' --pgdata=/x")
        );
        assert_eq!(
            hint(&["here", "info"]).as_deref(),
            Some("info is called archive-agent status here: see archive-agent status --help")
        );
        assert_eq!(hint(&["here", "bakcup"]), None, "the parser names what is nearest");
        assert_eq!(hint(&["here", "backup", "--what"]), None);
    }
}
