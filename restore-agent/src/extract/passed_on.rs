//! The options that a person passes on to pg_dump: which of them would lead it elsewhere, and what kind of output they ask for. No IO here.
//!
//! They are read as `getopt_long` reads them, with joined short options and shortened long ones. A word that it would take for the name of a
//! database is refused; so is one behind an option that is not known here to take a value, which can be joined to it instead.

use std::ffi::OsString;

use anyhow::{anyhow, bail};
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

/// The options that decide what is selected: their long and their short names.
const SELECTING: &[(&str, char)] = &[
    ("exclude-extension", NO_SHORT),
    ("exclude-schema", 'N'),
    ("exclude-table", 'T'),
    ("exclude-table-and-children", NO_SHORT),
    ("extension", 'e'),
    ("filter", NO_SHORT),
    ("schema", 'n'),
    ("table", 't'),
    ("table-and-children", NO_SHORT),
];

/// The options that leave rows out on purpose.
const WITHOUT_ROWS: &[(&str, char)] = &[
    ("exclude-table-data", NO_SHORT),
    ("exclude-table-data-and-children", NO_SHORT),
    ("filter", NO_SHORT),
    ("no-data", NO_SHORT),
    ("schema-only", 's'),
    ("section", NO_SHORT),
    ("statistics-only", NO_SHORT),
];

/// In the place of a short name.
const NO_SHORT: char = '\0';

/// What the options say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PassedOptions {
    /// What pg_dump writes.
    pub(super) shape: Shape,
    /// Those that decide what is selected.
    pub(super) selecting: Vec<OsString>,
    /// Whether all rows of what is selected are asked for.
    pub(super) has_all_rows: bool,
}

/// What was read so far.
#[derive(Debug, Default)]
struct Read {
    format: Option<String>,
    selecting: Vec<OsString>,
    leaves_rows_out: bool,
}

/// Reads the options; an error says which one cannot be passed on.
pub(super) fn read(words: &[OsString]) -> anyhow::Result<PassedOptions> {
    let mut read = Read::default();
    let mut words = words.iter().map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        let takes_next = match (word.strip_prefix("--"), word.strip_prefix('-')) {
            (Some(""), _) | (None, None | Some("")) => return Err(positional(&word)),
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
    let is_directory = ["d", "directory"].contains(&format.as_str());
    Ok(PassedOptions {
        shape: if is_directory { Shape::Directory } else { Shape::File },
        selecting: read.selecting,
        has_all_rows: !read.leaves_rows_out,
    })
}

impl Read {
    /// The name of the option whose value is the next word, if it is.
    fn long(&mut self, word: &str) -> anyhow::Result<Option<String>> {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        if let Some((long, _)) = REFUSED.iter().find(|(long, _)| long.starts_with(name)) {
            return refuse(&format!("--{name}"), long);
        }
        // As getopt_long completes it; pg_dump refuses what it cannot complete.
        let is_format = name.len() >= 2 && "format".starts_with(name);
        self.leaves_rows_out |= is_one_of(WITHOUT_ROWS, name);
        match value {
            Some(value) if is_format => self.value("format", value),
            Some(_) if is_one_of(SELECTING, name) => self.selecting.push(format!("--{word}").into()),
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
            self.leaves_rows_out |= WITHOUT_ROWS.iter().any(|(_, short)| *short == option);
            if !SHORT_WITH_VALUE.contains(option) {
                continue;
            }
            let selecting = SELECTING.iter().find(|(_, short)| *short == option).map(|(long, _)| *long);
            let name = if option == 'F' { "format" } else { selecting.unwrap_or_default() };
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
        } else if SELECTING.iter().any(|(long, _)| *long == name) {
            self.selecting.push(format!("--{name}={value}").into());
        }
    }
}

/// Whether a long option is one of these, whole or shortened.
fn is_one_of(list: &[(&str, char)], name: &str) -> bool {
    let is_whole = list.iter().any(|(long, _)| *long == name);
    is_whole || !LONG_WITH_VALUE.contains(&name) && list.iter().any(|(long, _)| long.starts_with(name))
}

fn positional(word: &str) -> anyhow::Error {
    anyhow!(
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
            assert_eq!(read(&words(line)).unwrap().shape, shape, "{line}");
        }
    }

    #[test]
    fn what_selects_and_what_leaves_rows_out_is_known_however_it_is_written() {
        for (line, selecting, has_all_rows) in [
            ("--no-owner -xO --create --inserts", &[][..], true),
            (
                "-T a --exclude-table=b -Nc -n d",
                &["--exclude-table=a", "--exclude-table=b", "--exclude-schema=c", "--schema=d"],
                true,
            ),
            ("--table x -xte", &["--table=x", "--table=e"], true),
            ("--exclude-sch=x --table-and-c=y", &["--exclude-sch=x", "--table-and-c=y"], true),
            ("--table-and-children=x", &["--table-and-children=x"], true),
            ("--schema=s", &["--schema=s"], true),
            ("--schema-only", &[], false),
            ("--schema-o", &[], false),
            ("-xs", &[], false),
            ("-ts", &["--table=s"], true),
            ("--section=post-data", &[], false),
            ("--exclude-table-data=x", &[], false),
            ("--exclude-table-data x", &[], false),
            ("--filter=f", &["--filter=f"], false),
        ] {
            let read = read(&words(line)).unwrap();
            assert_eq!(read.selecting, selecting, "{line}");
            assert_eq!(read.has_all_rows, has_all_rows, "{line}");
        }
    }
}
