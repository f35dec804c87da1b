//! The options about a server that is loaded into, and which options of pg_dump go with it. No IO here.
//!
//! Few options of pg_dump make sense where the script is never seen, and one that cleans or creates would reach what is there. So they are
//! listed here, in full; the ones that an archive leaves to pg_restore go to both.

use std::ffi::OsString;

use anyhow::bail;
use clap::Args;
use walpoint_base::diagnostic::shown;

/// The heading of these options.
const INTO: &str = "Into a server";

/// The longest name that PostgreSQL keeps, in bytes.
const LONGEST_NAME: usize = 63;

/// Where what is extracted is loaded.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct IntoArgs {
    /// Load tables or a schema into this running server instead, into a new schema of its database: a connection string or URI of libpq,
    /// without a password.
    #[arg(
        long = "into",
        value_name = "CONNINFO",
        conflicts_with_all = ["output", "force", "query", "list", "role"],
        help_heading = INTO
    )]
    pub(super) server: Option<String>,
    /// Load tables or a schema into a new schema of this name [default: walpoint_ and the current time].
    #[arg(long = "into-schema", value_name = "NAME", value_parser = name, requires = "server", help_heading = INTO)]
    pub(super) schema: Option<String>,
}

/// Reads the name of something new.
fn name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > LONGEST_NAME {
        return Err(format!("a name has 1 to {LONGEST_NAME} bytes"));
    }
    if text.starts_with("pg_") {
        return Err("names that begin with pg_ are PostgreSQL's own".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("a name here has no control characters".to_owned());
    }
    Ok(text.to_owned())
}

/// What an option of pg_dump is good for here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    /// It decides what is selected.
    Select,
    /// It decides what is dumped.
    Dump,
    /// The same, and pg_restore needs it, too.
    Both,
}

/// In the place of a short name.
const NO_SHORT: char = '\0';

/// The options that are passed on: long and short name, whether a value follows, and their use.
const KNOWN: &[(&str, char, bool, Use)] = &[
    ("exclude-table", 'T', true, Use::Select),
    ("table-and-children", NO_SHORT, true, Use::Select),
    ("schema-only", 's', false, Use::Dump),
    ("lock-wait-timeout", NO_SHORT, true, Use::Dump),
    ("no-owner", 'O', false, Use::Both),
    ("no-privileges", 'x', false, Use::Both),
    ("no-acl", NO_SHORT, false, Use::Both),
    ("no-comments", NO_SHORT, false, Use::Both),
    ("no-security-labels", NO_SHORT, false, Use::Both),
    ("no-tablespaces", NO_SHORT, false, Use::Both),
];

/// The options that a person passes on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PassedOn {
    words: Vec<(&'static str, Option<String>, Use)>,
}

impl PassedOn {
    /// Reads them; an error says which one does not go with a server.
    pub(super) fn read(words: &[OsString]) -> anyhow::Result<Self> {
        let mut read = Self::default();
        let mut words = words.iter().map(|word| word.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            let (given, joined) = split(&word);
            let known = KNOWN.iter().find(|(long, short, ..)| {
                let is_short =
                    *short != NO_SHORT && given.strip_prefix('-') == Some(short.encode_utf8(&mut [0; 4]));
                is_short || given.strip_prefix("--") == Some(*long)
            });
            let Some((long, _, takes_value, used)) = known else { return refuse(&word) };
            let value = match (takes_value, joined) {
                (true, Some(value)) => Some(value),
                (true, None) => match words.next() {
                    Some(value) => Some(value),
                    None => bail!("the option {given} of pg_dump lacks its value"),
                },
                (false, Some(_)) => return refuse(&word),
                (false, None) => None,
            };
            read.words.push((long, value, *used));
        }
        Ok(read)
    }

    /// The words for the dump that shows what is selected.
    pub(super) fn for_selection(&self) -> Vec<String> {
        self.words_of(|used| used == Use::Select)
    }

    /// The words for the dump that is loaded. What is not selected is not there any more.
    pub(super) fn for_dump(&self) -> Vec<String> {
        self.words_of(|used| used != Use::Select)
    }

    /// The words for pg_restore.
    pub(super) fn for_load(&self) -> Vec<String> {
        self.words_of(|used| used == Use::Both)
    }

    /// Whether one of these was given.
    pub(super) fn has(&self, names: &[&str]) -> bool {
        self.words.iter().any(|(long, ..)| names.contains(long))
    }

    fn words_of(&self, is_right: impl Fn(Use) -> bool) -> Vec<String> {
        let right = self.words.iter().filter(|(.., used)| is_right(*used));
        right
            .map(|(long, value, _)| match value {
                Some(value) => format!("--{long}={value}"),
                None => format!("--{long}"),
            })
            .collect()
    }
}

/// An option and the value that is joined to it.
fn split(word: &str) -> (String, Option<String>) {
    if word.starts_with("--") {
        return match word.split_once('=') {
            Some((option, value)) => (option.to_owned(), Some(value.to_owned())),
            None => (word.to_owned(), None),
        };
    }
    let end = word.char_indices().nth(2).map_or(word.len(), |(at, _)| at);
    let (option, value) = word.split_at(end);
    (option.to_owned(), Some(value.to_owned()).filter(|value| !value.is_empty()))
}

fn refuse<T>(word: &str) -> anyhow::Result<T> {
    let known: Vec<String> = KNOWN.iter().map(|(long, ..)| format!("--{long}")).collect();
    bail!(
        "\"{}\" cannot be passed on to pg_dump with --into\nDETAIL: These can be, written in full: {}.",
        shown(word),
        known.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> anyhow::Result<PassedOn> {
        let words: Vec<OsString> =
            line.split(' ').filter(|word| !word.is_empty()).map(OsString::from).collect();
        PassedOn::read(&words)
    }

    #[test]
    fn only_options_that_go_with_a_server_are_passed_on_each_to_the_right_program() {
        let read_well =
            read("-O --no-acl --exclude-table=a* -T b -Tc --table-and-children d --schema-only --lock-wait-timeout 5").unwrap();
        assert_eq!(
            read_well.for_selection(),
            ["--exclude-table=a*", "--exclude-table=b", "--exclude-table=c", "--table-and-children=d"]
        );
        assert_eq!(
            read_well.for_dump(),
            ["--no-owner", "--no-acl", "--schema-only", "--lock-wait-timeout=5"]
        );
        assert_eq!(read_well.for_load(), ["--no-owner", "--no-acl"]);
        assert!(read_well.has(&["no-privileges", "no-acl"]) && !read_well.has(&["no-tablespaces"]));
        for line in [
            "--clean",
            "-c",
            "--create",
            "-Fc",
            "--no-own",
            "-Ox",
            "--no-owner=1",
            "-T",
            "shop",
            "-",
            "--",
            "-\0",
            "--format=d",
        ] {
            assert!(read(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_new_name_is_one_that_postgresql_keeps() {
        for (text, is_right) in
            [("before", true), ("Old \"x\"", true), ("", false), ("pg_old", false), ("a\nb", false)]
        {
            assert_eq!(name(text).is_ok(), is_right, "{text}");
        }
        assert!(name(&"ä".repeat(31)).is_ok() && name(&"ä".repeat(32)).is_err());
    }
}
