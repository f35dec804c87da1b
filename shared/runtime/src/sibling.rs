//! Commands that a program does not have: the other program's, and what other tools call theirs.

use std::ffi::OsString;
use std::io::Write;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use walpoint_base::diagnostic::shown;

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

/// Prints how the command line is wrong, or the help that was asked for. Where another program was meant ([`meant`]), that is the answer,
/// and not what is spelled alike here.
pub fn print(error: &clap::Error, other: &str, commands: &[&str], arguments: &[OsString]) {
    // A closed standard error is no reason to fail differently.
    match meant(error, other, commands, arguments) {
        Some(meant) => {
            let name = invalid(error).map(shown).unwrap_or_default();
            let text = format!("error: unrecognized subcommand '{name}'\n\nHINT: {meant}\n");
            std::io::stderr().write_all(text.as_bytes()).ok();
        }
        None => {
            error.print().ok();
            std::io::stdout().flush().ok();
        }
    }
}

/// The word that is no command.
fn invalid(error: &clap::Error) -> Option<&str> {
    match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) => Some(name),
        _ => None,
    }
}

/// Whether the word stands where the program's own commands do, and not behind one of them that has commands itself.
fn is_at_the_top(error: &clap::Error) -> bool {
    let Some(ContextValue::StyledStr(usage)) = error.get(ContextKind::Usage) else { return true };
    let usage = usage.to_string();
    let names = usage.split_whitespace().skip_while(|word| *word == "Usage:");
    names.take_while(|word| !word.starts_with(['[', '<', '-'])).count() == 1
}

/// The command line that was meant, if `error` is about a command that another program has: one of `commands`, or one that another
/// tool calls so.
pub fn meant(error: &clap::Error, other: &str, commands: &[&str], arguments: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let name = invalid(error).filter(|_| is_at_the_top(error))?;
    if commands.contains(&name) {
        if arguments.windows(2).any(|words| words[0] == "help" && words[1] == name) {
            return Some(format!("{name} is a command of {other}: {other} {name} --help"));
        }
        let others = arguments.iter().skip(1).map(|argument| argument.to_string_lossy());
        let others = others.map(|argument| quoted(&argument)).collect::<Vec<String>>().join(" ");
        return Some(format!("{name} is a command of {other}: {other} {others}"));
    }
    let (_, here) = ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == name)?;
    Some(format!("{name} is called {here} here: see {here} --help"))
}

/// A word of a command line, as a shell has to be given it.
pub fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    match !argument.is_empty() && argument.chars().all(plain) {
        true => argument.to_owned(),
        false if argument.chars().any(char::is_control) => escaped(argument),
        false => format!("'{}'", argument.replace('\'', "'\\''")),
    }
}

/// A word with control characters in the form `$'…'`, which shows them and lets none of them reach the terminal.
fn escaped(argument: &str) -> String {
    let mut word = "$'".to_owned();
    for c in argument.chars() {
        match c {
            '\'' | '\\' => word.extend(['\\', c]),
            c if c.is_control() => {
                let mut bytes = [0; 4];
                c.encode_utf8(&mut bytes).bytes().for_each(|byte| word += &format!("\\{byte:03o}"));
            }
            c => word.push(c),
        }
    }
    word + "'"
}

#[cfg(test)]
mod tests {
    use clap::{Arg, Command};

    use super::*;

    fn hint(arguments: &[&str]) -> Option<String> {
        let hold = Command::new("hold").subcommand_required(true).subcommand(Command::new("add"));
        let program = Command::new("here").subcommand_required(true).subcommand(Command::new("backup"));
        let program = program.subcommand(hold).arg(Arg::new("config").long("config").global(true));
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let error = program.try_get_matches_from(&arguments).unwrap_err();
        meant(&error, "there", &["plan", "restore"], &arguments)
    }

    #[test]
    fn words_are_quoted_and_hold_no_control_character() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's\n\u{1b}[2J\\\u{9b}"), "$'it\\'s\\012\\033[2J\\\\\\302\\233'");
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
        assert_eq!(
            hint(&["here", "help", "plan"]).as_deref(),
            Some("plan is a command of there: there plan --help")
        );
        let behind = hint(&["here", "--config", "hold", "plan"]);
        assert_eq!(behind.as_deref(), Some("plan is a command of there: there --config hold plan"));
        for nested in
            [&["here", "hold", "restore"][..], &["here", "hold", "info"], &["here", "help", "hold", "plan"]]
        {
            assert_eq!(hint(nested), None, "{nested:?}: the other program has no such command either");
        }
        assert_eq!(hint(&["here", "bakcup"]), None, "the parser names what is nearest");
        assert_eq!(hint(&["here", "backup", "--what"]), None);
    }
}
