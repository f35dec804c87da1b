//! The command line, read by hand: this program starts once for every segment.

use std::ffi::OsString;
use std::path::PathBuf;

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

const USAGE: &str = "usage: archive-push --socket SOCKET [--config FILE] PATH";

const HELP: &str = "\
Asks Walpoint's daemon to make one WAL file durable; PostgreSQL's archive_command.

Usage: archive-push --socket SOCKET [--config FILE] PATH

  --socket SOCKET  the cluster's push socket (push_socket in the configuration)
  --config FILE    configuration for \"archive-agent push\", which takes over when no daemon answers
  --help           print this and end
  --version        print the version and end
  PATH             the file to archive: %p, not %f

In postgresql.conf:

  archive_mode = on
  archive_command = 'archive-push --socket /run/walpoint/main.push %p'

Exit status: 0 the file is durable, 1 it is not, 2 wrong usage; never above 125.
";

/// Reads the arguments after the program's name. An error is one line.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Parsed, String> {
    let (mut socket, mut config, mut path) = (None, None, None);
    let mut only_paths = false;
    let mut rest = arguments.into_iter();
    while let Some(argument) = rest.next() {
        let text = argument.to_string_lossy().into_owned();
        let (name, value) = match text.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
            _ => (text.as_str(), None),
        };
        let slot = match name {
            _ if only_paths || !name.starts_with('-') => {
                if let Some(first) = path.replace(PathBuf::from(&argument)) {
                    return Err(format!("more than one path: {} and {text}; {USAGE}", first.display()));
                }
                continue;
            }
            "--help" | "-h" => return Ok(Parsed::Print(HELP.to_owned())),
            "--version" | "-V" => {
                return Ok(Parsed::Print(format!("archive-push {}\n", env!("WALPOINT_VERSION"))));
            }
            "--" => {
                only_paths = true;
                continue;
            }
            "--socket" => &mut socket,
            "--config" => &mut config,
            _ => return Err(format!("unknown option {text}; {USAGE}")),
        };
        let value = value.or_else(|| rest.next()).filter(|value| !value.is_empty());
        *slot = Some(PathBuf::from(value.ok_or_else(|| format!("{name} needs a value; {USAGE}"))?));
    }
    let socket = socket.ok_or_else(|| format!("--socket is missing; {USAGE}"))?;
    let path = path.ok_or_else(|| format!("the path of the file is missing (%p); {USAGE}"))?;
    Ok(Parsed::Push(Arguments { socket, config, path }))
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
            ("--socket", "--socket needs a value"),
            ("--socket= x", "--socket needs a value"),
            ("--socket s", "path of the file is missing"),
            ("--socket s a b", "more than one path"),
            ("--sokcet s a", "unknown option --sokcet"),
        ] {
            let problem = parsed(line).unwrap_err();
            assert!(
                problem.contains(says) && problem.contains("usage:") && !problem.contains('\n'),
                "{problem}"
            );
        }
    }

    #[test]
    fn help_and_version() {
        assert!(matches!(parsed("--help"), Ok(Parsed::Print(text)) if text.contains("%p")));
        assert!(
            matches!(parsed("--socket s --version x"), Ok(Parsed::Print(text)) if text.starts_with("archive-push "))
        );
    }
}
