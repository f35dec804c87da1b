//! `pg_service.conf`: connection settings under a name.
//!
//! Lines are `[name]`, `keyword=value` (everything after `=`, no quotes), `#` comments or empty. Source: `parseServiceFile`
//! of libpq.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::syntax::Pair;
use super::{SettingsError, keywords};

/// Where distributions keep the file that all users share; `$PGSYSCONFDIR` names another place.
const SYSTEM_DIRECTORIES: &[&str] = &["/etc/postgresql-common", "/etc/sysconfig/pgsql", "/etc"];

/// The settings of `service`: from `file` if one is named, else from `~/.pg_service.conf`, else from the system's.
pub(super) fn look_up(
    service: &str,
    file: Option<&str>,
    environment: &Environment,
) -> Result<Vec<Pair>, SettingsError> {
    let missing =
        |path: &Path, source| SettingsError::File { what: "service file", path: path.to_owned(), source };
    let own = match file {
        Some(path) => {
            let path = PathBuf::from(path);
            let text = std::fs::read_to_string(&path).map_err(|source| missing(&path, source))?;
            Some((path, text))
        }
        None => environment.in_home(".pg_service.conf").and_then(read),
    };
    let shared = match environment.variable("PGSYSCONFDIR") {
        Some(directory) => read(Path::new(directory).join("pg_service.conf")),
        None => SYSTEM_DIRECTORIES.iter().find_map(|d| read(Path::new(d).join("pg_service.conf"))),
    };
    for (path, text) in own.into_iter().chain(shared) {
        if let Some(pairs) = section(&text, service, &path)? {
            return Ok(pairs);
        }
    }
    Err(SettingsError::Service { name: service.to_owned() })
}

fn read(path: PathBuf) -> Option<(PathBuf, String)> {
    std::fs::read_to_string(&path).ok().map(|text| (path, text))
}

/// The settings below `[service]`; `None` if there is no such section. Of two equal sections the first counts.
fn section(text: &str, service: &str, path: &Path) -> Result<Option<Vec<Pair>>, SettingsError> {
    let mut pairs = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let wrong = |what: &str| SettingsError::Syntax {
            what: format!("line {} of service file {}: {what}", index + 1, path.display()),
        };
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix('[') {
            if pairs.is_some() {
                break;
            }
            if name.strip_suffix(']') == Some(service) {
                pairs = Some(Vec::new());
            }
            continue;
        }
        let Some(pairs) = &mut pairs else { continue };
        if line.starts_with("ldap") {
            return Err(wrong("settings from LDAP are not supported"));
        }
        let (name, value) = line.split_once('=').ok_or_else(|| wrong("not keyword=value"))?;
        if matches!(name, "service" | "servicefile") {
            return Err(wrong("a service cannot name another service"));
        }
        keywords::checked(name, value)?;
        pairs.push((name.to_owned(), value.to_owned()));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FILE: &str = "# comment\n[other]\nhost=wrong\n\n[mine]\n  host=db1\nport=5433\noptions=-c a=b \n[mine]\nuser=late\n";

    #[test]
    fn the_named_section_counts() {
        let pairs = section(FILE, "mine", Path::new("f")).unwrap().unwrap();
        let pairs: Vec<_> = pairs.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(pairs, [("host", "db1"), ("port", "5433"), ("options", "-c a=b")]);
        assert!(section(FILE, "none", Path::new("f")).unwrap().is_none());
    }

    #[test]
    fn mistakes_name_the_line() {
        for (text, expected) in [
            ("[s]\nhost", "line 2"),
            ("[s]\nservice=x", "another service"),
            ("[s]\nldap://x/y", "LDAP"),
            ("[s]\nhots=x", "hots"),
        ] {
            let error = section(text, "s", Path::new("f")).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(section("[t]\nnonsense\n[s]\n", "s", Path::new("f")).unwrap().is_some());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[\\[\\]a-z=# \n]{0,80}") {
            let _result = section(&text, "s", Path::new("f"));
        }
    }
}
