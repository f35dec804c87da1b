//! The command line, read without a framework: this program starts once for every segment.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg::{Long, Value};
use lexopt::Parser;
use walpoint_base::nearest::nearest;

/// What to push and whom to ask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// The daemon's socket of this cluster.
    pub(crate) socket: PathBuf,
    /// The configuration that `archive-agent push` shall read when there is no daemon.
    pub(crate) config: Option<PathBuf>,
    /// The file (`%p`), absolute or relative to the data directory.
    pub(crate) path: PathBuf,
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// To push a file.
    Push(Arguments),
    /// To print this and do nothing else.
    Print(String),
}

const OPTIONS: [&str; 2] = ["socket", "config"];

const USAGE: &str = "Usage: archive-push --socket SOCKET [--config FILE] PATH";

const HELP: &str = "\
Make one WAL file durable: PostgreSQL's archive_command.

Usage: archive-push --socket SOCKET [--config FILE] PATH

Arguments:
  PATH             Archive this file: %p, not %f

Options:
  --socket SOCKET  Ask the daemon at the cluster's push socket (push_socket in
                   the configuration)
  --config FILE    Read this configuration in \"archive-agent push\", which takes
                   over when no daemon answers
                   [default: /etc/walpoint/walpoint.toml]
  -h, --help       Print help
  -V, --version    Print version

Exit status: 0 the file is durable, 1 it is not durable, 2 wrong usage or
configuration; never above 125.

Examples:
  In postgresql.conf:
    archive_mode = on
    archive_command = 'archive-push --socket /run/walpoint/main.push %p'
";

/// Reads the arguments after the program's name. An error names the usage in its hint.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Parsed, String> {
    // Exit 0 tells PostgreSQL that the file is safe: only somebody who asks for nothing else may get it for a text.
    if let [only] = arguments.as_slice() {
        match only.to_str() {
            Some("--help" | "-h") => return Ok(Parsed::Print(HELP.to_owned())),
            Some("--version" | "-V") => {
                return Ok(Parsed::Print(format!("archive-push {}\n", env!("WALPOINT_VERSION"))));
            }
            _ => {}
        }
    }
    read(Parser::from_args(arguments))
        .map(Parsed::Push)
        .map_err(|problem| format!("{problem}\nHINT: {USAGE}"))
}

fn read(mut parser: Parser) -> Result<Arguments, lexopt::Error> {
    let (mut socket, mut config, mut path) = (None, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("socket") => socket = Some(PathBuf::from(value(&mut parser, "--socket")?)),
            Long("config") => config = Some(PathBuf::from(value(&mut parser, "--config")?)),
            Value(other) => {
                if let Some(first) = path.replace(PathBuf::from(&other)) {
                    return Err(format!("more than one path: {first:?} and {other:?}").into());
                }
            }
            Long(name) => return Err(unknown(name)),
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(Arguments {
        socket: socket.ok_or("--socket is missing")?,
        config,
        path: path.ok_or("the path of the file is missing (%p)")?,
    })
}

/// An option that there is not, and the one that was probably meant.
fn unknown(name: &str) -> lexopt::Error {
    let meant = nearest(name, OPTIONS);
    let meant = meant.map_or(String::new(), |meant| format!("\nHINT: Perhaps you meant '--{meant}'."));
    format!("invalid option '--{name}'{meant}").into()
}

/// An option's value. An empty one is a variable of the shell that was not set.
fn value(parser: &mut Parser, option: &str) -> Result<OsString, lexopt::Error> {
    let value = parser.value()?;
    if value.is_empty() { Err(format!("{option} needs a value").into()) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Parsed, String> {
        parse(line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect())
    }

    #[test]
    fn options_come_in_any_order_and_both_spellings() {
        let expected = Parsed::Push(Arguments {
            socket: "/run/s".into(),
            config: Some("/etc/c".into()),
            path: "pg_wal/x".into(),
        });
        for line in [
            "--socket /run/s --config /etc/c pg_wal/x",
            "pg_wal/x --config=/etc/c --socket=/run/s",
            "--socket /run/s --config=/etc/c -- pg_wal/x",
        ] {
            assert_eq!(parsed(line).as_ref(), Ok(&expected), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_one_line_that_says_what_is_missing() {
        for (line, says) in [
            ("", "--socket is missing"),
            ("--socket", "missing argument for option '--socket'"),
            ("--socket= x", "--socket needs a value"),
            ("--socket s", "path of the file is missing"),
            ("--socket s a b", "more than one path"),
            ("--sokcet s a", "invalid option '--sokcet'\nHINT: Perhaps you meant '--socket'."),
        ] {
            let problem = parsed(line).unwrap_err();
            assert!(problem.contains(says) && problem.contains("\nHINT: Usage:"), "{problem}");
        }
    }

    #[test]
    fn help_and_version_are_not_taken_for_an_archived_file() {
        assert!(matches!(parsed("--help"), Ok(Parsed::Print(text)) if text.contains("%p")));
        assert!(HELP.lines().all(|line| line.chars().count() <= 80));
        assert!(matches!(parsed("-V"), Ok(Parsed::Print(text)) if text.starts_with("archive-push ")));
        for line in ["--help --socket s p", "--socket s --version p", "-h p"] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
