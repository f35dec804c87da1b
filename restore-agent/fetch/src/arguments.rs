//! The command line, read without a framework: this program starts once for every file of WAL.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg::{Long, Value};
use lexopt::Parser;
use walpoint_base::nearest::nearest;

/// What to fetch and whom to ask.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// The prefetcher's socket.
    pub(crate) socket: PathBuf,
    /// Options for `restore-agent`, whether as prefetcher or in our place: `--config` and what selects the cluster.
    pub(crate) options: Vec<OsString>,
    /// The file that PostgreSQL asks for (`%f`).
    pub(crate) name: String,
    /// Where it wants it (`%p`), absolute or relative to the data directory.
    pub(crate) path: PathBuf,
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// To fetch a file.
    Fetch(Arguments),
    /// To print this and do nothing else.
    Print(String),
}

const OPTIONS: [&str; 4] = ["socket", "config", "cluster", "repo"];

const USAGE: &str = "Usage: restore-fetch --socket SOCKET [--config FILE] NAME PATH";

const HELP: &str = "\
Fetch one WAL file, verified: PostgreSQL's restore_command.

Usage: restore-fetch --socket SOCKET [--config FILE] NAME PATH

Arguments:
  NAME             Fetch the file that PostgreSQL requests: %f
  PATH             Put it where PostgreSQL wants it: %p

Options:
  --socket SOCKET  Ask the prefetcher at this socket, and start one if none
                   answers
  --config FILE    Read this configuration in \"restore-agent\", which prefetches
                   or takes over [default: /etc/walpoint/walpoint.toml]
  --cluster NAME   Select the cluster; needed only when the configuration has
                   several
  --repo NAME|URL  Use only this repository: its name in the configuration, or a
                   URL, which needs no configuration. A name can be repeated
                   [default: all of the cluster's]
  -h, --help       Print help; only as the sole argument
  -V, --version    Print version; only as the sole argument

Exit status: 0 the file was written, verified; 1 the archive provably does not
have it (on a standby: or it cannot be fetched now); 255 anything else, so that
PostgreSQL stops instead of ending recovery early.

Examples:
  In postgresql.conf:
    restore_command = 'restore-fetch --socket pg_dynshmem/walpoint-fetch %f %p'
";

/// Reads the arguments after the program's name. An error names the usage in its hint.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Parsed, String> {
    // Exit 0 tells PostgreSQL that the file is there: only somebody who asks for nothing else may get it for a text.
    if let [only] = arguments.as_slice() {
        match only.to_str() {
            Some("--help" | "-h") => return Ok(Parsed::Print(HELP.to_owned())),
            Some("--version" | "-V") => {
                return Ok(Parsed::Print(format!("restore-fetch {}\n", env!("WALPOINT_VERSION"))));
            }
            _ => {}
        }
    }
    read(Parser::from_args(arguments))
        .map(Parsed::Fetch)
        .map_err(|problem| format!("{problem}\nHINT: {USAGE}"))
}

fn read(mut parser: Parser) -> Result<Arguments, lexopt::Error> {
    let (mut socket, mut options, mut operands) = (None, Vec::new(), Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("socket") => socket = Some(PathBuf::from(value(&mut parser, "--socket")?)),
            Long(name @ ("config" | "cluster" | "repo")) => {
                let name = format!("--{name}");
                let value = value(&mut parser, &name)?;
                options.extend([OsString::from(name), value]);
            }
            Value(operand) => operands.push(operand),
            Long(name) => return Err(unknown(name)),
            _ => return Err(argument.unexpected()),
        }
    }
    let socket = socket.ok_or("--socket is missing")?;
    let [name, path]: [OsString; 2] =
        operands.try_into().map_err(|_| "both NAME (%f) and PATH (%p) are needed")?;
    let name = name.into_string().map_err(|name| format!("the name {name:?} is not text"))?;
    Ok(Arguments { socket, options, name, path: PathBuf::from(path) })
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
        let expected = Parsed::Fetch(Arguments {
            socket: "s".into(),
            options: vec!["--config".into(), "/etc/c".into()],
            name: "n".into(),
            path: "pg_wal/x".into(),
        });
        for line in [
            "--socket s --config /etc/c n pg_wal/x",
            "n pg_wal/x --config=/etc/c --socket=s",
            "--socket s --config=/etc/c -- n pg_wal/x",
        ] {
            assert_eq!(parsed(line).as_ref(), Ok(&expected), "{line}");
        }
    }

    #[test]
    fn wrong_usage_is_one_line_that_says_what_is_missing() {
        for (line, says) in [
            ("", "--socket is missing"),
            ("n p", "--socket is missing"),
            ("--socket", "missing argument for option '--socket'"),
            ("--socket= n p", "--socket needs a value"),
            ("--socket s n", "both NAME"),
            ("--socket s n p q", "both NAME"),
            ("--sokcet s n p", "invalid option '--sokcet'\nHINT: Perhaps you meant '--socket'."),
            ("--socket s n p --help", "invalid option '--help'"),
        ] {
            let problem = parsed(line).unwrap_err();
            assert!(problem.contains(says) && problem.contains("\nHINT: Usage:"), "{line}: {problem}");
        }
    }

    #[test]
    fn help_and_version() {
        assert!(matches!(parsed("--help"), Ok(Parsed::Print(text)) if text.contains("%f")));
        assert!(HELP.lines().all(|line| line.chars().count() <= 80));
        assert!(matches!(parsed("--version"), Ok(Parsed::Print(text)) if text.starts_with("restore-fetch ")));
    }
}
