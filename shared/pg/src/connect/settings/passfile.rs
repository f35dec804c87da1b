//! `~/.pgpass`: one `host:port:database:user:password` a line, `*` for anything, `\` before `:` and `\`.
//!
//! A file that others can read is not used, as libpq has it. Source: `passwordFromFile` of libpq.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use walpoint_base::Secret;

/// Larger files are not password files.
const MAX_BYTES: u64 = 1 << 20;

/// What a password file says.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::connect) enum Lookup {
    /// There is a line for this connection.
    Found(Secret),
    /// There is no such file, or no line for this connection.
    Absent,
    /// The file is there and was not used; why.
    Refused(String),
}

/// For which connection a password is looked up.
#[derive(Debug)]
pub(in crate::connect) struct Wanted<'a> {
    /// As in the connection string; `localhost` for the default socket.
    pub(in crate::connect) host: &'a str,
    pub(in crate::connect) port: u16,
    pub(in crate::connect) database: &'a str,
    pub(in crate::connect) user: &'a str,
}

/// Looks into the file at `path`.
pub(in crate::connect) fn look_up(path: &Path, wanted: &Wanted<'_>) -> Lookup {
    let refused =
        |why: String| Lookup::Refused(format!("password file {} was not used: {why}", path.display()));
    let facts = match path.metadata() {
        Ok(facts) => facts,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Lookup::Absent,
        Err(error) => return refused(error.to_string()),
    };
    if !facts.is_file() {
        return refused("it is not a plain file".into());
    }
    if facts.permissions().mode() & 0o077 != 0 {
        return refused("group or others have access to it\nHINT: Run chmod 600 on it.".into());
    }
    if facts.len() > MAX_BYTES {
        return refused("it is larger than 1 MiB".into());
    }
    match std::fs::read(path) {
        Ok(bytes) => find(&String::from_utf8_lossy(&bytes), wanted).map_or(Lookup::Absent, Lookup::Found),
        Err(error) => refused(error.to_string()),
    }
}

/// The password in the first line that matches.
fn find(text: &str, wanted: &Wanted<'_>) -> Option<Secret> {
    let port = wanted.port.to_string();
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line;
        for value in [wanted.host, &port, wanted.database, wanted.user] {
            let (field, after) = field(rest)?;
            // A starred field is `*` itself; an escaped star is a name.
            if !(field.star || field.value == value) {
                return None;
            }
            rest = after;
        }
        let password = field(rest).map_or_else(|| unescape(rest), |(field, _)| field.value);
        Some(Secret::new(password))
    })
}

struct Field {
    value: String,
    star: bool,
}

/// The field at the start of `text` and what follows its `:`; `None` without a `:`.
fn field(text: &str) -> Option<(Field, &str)> {
    let mut escaped = false;
    let end = text.char_indices().find(|&(_, c)| {
        let stop = c == ':' && !escaped;
        escaped = c == '\\' && !escaped;
        stop
    });
    let (raw, after) = text.split_at(end?.0);
    Some((Field { value: unescape(raw), star: raw == "*" }, after.strip_prefix(':').unwrap_or(after)))
}

fn unescape(text: &str) -> String {
    let mut chars = text.chars();
    let mut value = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        value.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    value
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn wanted() -> Wanted<'static> {
        Wanted { host: "db1", port: 5432, database: "main", user: "me" }
    }

    fn password(text: &str) -> Option<String> {
        find(text, &wanted()).map(|secret| secret.expose().to_owned())
    }

    #[test]
    fn the_first_line_that_matches_counts() {
        assert_eq!(
            password("db2:*:*:*:no\n#db1:*:*:*:no\n*:5432:*:me:yes\ndb1:5432:main:me:late").as_deref(),
            Some("yes")
        );
        assert_eq!(password("db1:5433:*:*:x"), None);
        assert_eq!(password("db1:5432:main"), None);
        assert_eq!(password(r"*:*:*:*:a\:b\\c").as_deref(), Some(r"a:b\c"));
        assert_eq!(password("*:*:*:*:a:ignored").as_deref(), Some("a"));
        assert_eq!(password(r"\*:*:*:*:x"), None);
        assert_eq!(password("*:*:*:*:").as_deref(), Some(""));
    }

    #[test]
    fn a_file_that_others_can_read_is_not_used() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "*:*:*:*:secret").unwrap();
        assert_eq!(look_up(file.path(), &wanted()), Lookup::Found(Secret::new("secret".into())));
        for mode in [0o640, 0o604, 0o610] {
            file.as_file().set_permissions(std::fs::Permissions::from_mode(mode)).unwrap();
            let Lookup::Refused(why) = look_up(file.path(), &wanted()) else {
                panic!("used with mode {mode:o}")
            };
            assert!(why.contains("chmod 600") && !why.contains("secret"), "{why}");
        }
        assert_eq!(look_up(Path::new("/nonexistent/pgpass"), &wanted()), Lookup::Absent);
        assert!(matches!(look_up(Path::new("/dev/null"), &wanted()), Lookup::Refused(_)));
    }

    proptest! {
        #[test]
        fn any_text_is_looked_through(text in "[a-z:*\\\\\n]{0,80}") {
            let _result = find(&text, &wanted());
        }
    }
}
