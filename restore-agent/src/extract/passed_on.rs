//! The options that a person passes on to pg_dump: which of them would lead it elsewhere, and what kind of output they ask for. No IO here.
//!
//! They are read as `getopt_long` reads them, with joined short options and shortened long ones. A word that it would take for the name of a
//! database is refused; so is one behind an option that is not known here to take a value, which can be joined to it instead.

use std::ffi::OsString;

use anyhow::bail;
use walpoint_base::diagnostic::shown;

/// What leads pg_dump to another server or another place, asks a person, or prints something else than a dump.
const REFUSED: &[(&str, char)] = &[
    ("host", 'h'),
    ("port", 'p'),
    ("dbname", 'd'),
    ("username", 'U'),
    ("file", 'f'),
    ("password", 'W'),
    ("version", 'V'),
    ("help", '?'),
];

/// The short options that take a value.
const SHORT_WITH_VALUE: &str = "eEFjnNStTZ";

/// The long options that take a value, in all versions.
const LONG_WITH_VALUE: &[&str] = &[
    "compress",
    "encoding",
    "exclude-extension",
    "exclude-schema",
    "exclude-table",
    "exclude-table-and-children",
    "exclude-table-data",
    "exclude-table-data-and-children",
    "extension",
    "extra-float-digits",
    "filter",
    "format",
    "include-foreign-data",
    "jobs",
    "lock-wait-timeout",
    "restrict-key",
    "role",
    "rows-per-insert",
    "schema",
    "section",
    "snapshot",
    "superuser",
    "sync-method",
    "table",
    "table-and-children",
];

/// What pg_dump writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One stream.
    File,
    /// A directory (`--format=directory`).
    Directory,
}

/// What the options say.
#[derive(Debug, Default)]
struct Read {
    format: Option<String>,
}

/// Reads the options; an error says which one cannot be passed on.
pub(super) fn read(words: &[OsString]) -> anyhow::Result<Shape> {
    let mut read = Read::default();
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        let takes_next = match (word.strip_prefix("--"), word.strip_prefix('-')) {
            (Some(""), _) | (None, None | Some("")) => return positional(&word),
            (Some(long), _) => read.long(long)?,
            (None, Some(short)) => read.short(short)?,
        };
        if let Some(name) = takes_next
            && let Some(value) = words.next()
        {
            read.value(&name, &value);
        }
    }
    let format = read.format.unwrap_or_default().to_ascii_lowercase();
    Ok(if ["d", "directory"].contains(&format.as_str()) { Shape::Directory } else { Shape::File })
}

impl Read {
    /// The name of the option whose value is the next word, if it is.
    fn long(&mut self, word: &str) -> anyhow::Result<Option<String>> {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        if let Some((long, _)) = REFUSED.iter().find(|(long, _)| long.starts_with(name)) {
            return refuse(&format!("--{name}"), long);
        }
        // As getopt_long completes it.
        let is_format = name.len() >= 2 && "format".starts_with(name);
        match value {
            Some(value) if is_format => self.value("format", value),
            None if LONG_WITH_VALUE.contains(&name) => return Ok(Some(name.to_owned())),
            _ => {}
        }
        Ok(None)
    }

    /// The same for a word of short options.
    fn short(&mut self, word: &str) -> anyhow::Result<Option<String>> {
        for (at, option) in word.char_indices() {
            if let Some((long, _)) = REFUSED.iter().find(|(_, short)| *short == option) {
                return refuse(&format!("-{option}"), long);
            }
            if !SHORT_WITH_VALUE.contains(option) {
                continue;
            }
            let name = if option == 'F' { "format" } else { "" };
            let value = word.get(at + option.len_utf8()..).unwrap_or_default();
            if value.is_empty() {
                return Ok(Some(name.to_owned()));
            }
            self.value(name, value);
            break;
        }
        Ok(None)
    }

    fn value(&mut self, name: &str, value: &str) {
        if name == "format" {
            self.format = Some(value.to_owned());
        }
    }
}

fn positional(word: &str) -> anyhow::Result<Shape> {
    bail!(
        "\"{}\" cannot be passed on to pg_dump: it is no option\nHINT: Name the database with --database, and join a value to its \
         option, as in --exclude-table=PATTERN.",
        shown(word)
    )
}

fn refuse<T>(given: &str, option: &str) -> anyhow::Result<T> {
    let hint = match option {
        "dbname" => "Name the database with --database.",
        "file" => "Name the file with --output, before the two dashes.",
        "version" | "help" => "Run pg_dump itself.",
        _ => {
            "The scratch instance is reached without it. For the rights of a role, give --role, before the two dashes."
        }
    };
    bail!("{} cannot be passed on to pg_dump\nHINT: {hint}", shown(given))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect()
    }

    #[test]
    fn what_leads_pg_dump_elsewhere_is_refused_however_it_is_written() {
        for line in [
            "--host=x",
            "--hos x",
            "-hx",
            "--port 1",
            "-Op 1",
            "--dbname=x",
            "--db x",
            "-d x",
            "--username=x",
            "-sU x",
            "--file=x",
            "--fil x",
            "-Fcf x",
            "-vfx",
            "--password",
            "-W",
            "--version",
            "-V",
            "--help",
            "-?",
            "--no-owner shop",
            "shop",
            "-",
            "-- shop",
            "--unknown shop",
        ] {
            let outcome = read(&words(line)).map_err(|error| error.to_string());
            // What follows a short option that takes a value is the value.
            let expected = if line == "-Fcf x" { "no option" } else { "cannot be passed on" };
            assert!(outcome.as_ref().is_err_and(|error| error.contains(expected)), "{line}: {outcome:?}");
        }
    }

    #[test]
    fn the_others_are_passed_on_and_the_format_is_known() {
        for (line, shape) in [
            ("", Shape::File),
            ("--schema-only --no-owner -x", Shape::File),
            ("--exclude-table x -T y --exclude-table-data=z", Shape::File),
            ("-Fc", Shape::File),
            ("-F d -j 4", Shape::Directory),
            ("-xFd", Shape::Directory),
            ("--format=directory --jobs=4", Shape::Directory),
            ("--format D", Shape::Directory),
            ("--form=d", Shape::Directory),
            ("--format=d --format=custom", Shape::File),
            ("-t --format=d", Shape::File),
            ("--table -Fd", Shape::File),
            ("--filter=x", Shape::File),
            ("--no-password", Shape::File),
        ] {
            assert_eq!(read(&words(line)).unwrap(), shape, "{line}");
        }
    }
}
