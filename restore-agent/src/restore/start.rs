//! The command that starts a restored server, also where its configuration lay outside the data directory, as Debian's does.
//!
//! `pg_ctl` reads `postgresql.conf` in the data directory and nowhere else. Files that a backup took along (`extra_paths`) lie in a
//! directory beside it, and they still name the original's paths: both are set right on the command line, which overrides every file.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::owners::{self, Owner};
use crate::{settings, shell};

/// Where `postgresql.conf` is looked for: a backup may hold any tree.
const DEEPEST: usize = 6;
const MOST_ENTRIES: usize = 10_000;

/// The configuration files of a restored server, as far as they do not lie where PostgreSQL looks for them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ConfigurationFiles {
    /// `postgresql.conf`.
    pub(super) main: Option<PathBuf>,
    hba: Option<PathBuf>,
    ident: Option<PathBuf>,
}

impl ConfigurationFiles {
    /// Looks for them in what was restored. `original` is the data directory that was backed up.
    pub(super) fn find(layout: &Layout, original: &Path, major: u8) -> Self {
        let own = layout.pgdata().join("postgresql.conf");
        let main = if own.exists() { None } else { main_file(layout, original, major) };
        let text = settings::configuration_of(main.as_deref().unwrap_or(&own), layout.pgdata());
        let beside = main.as_deref().and_then(Path::parent);
        let other = |parameter: &str, name: &str| {
            let named = settings::value(&text, parameter).filter(|value| !value.is_empty()).map(Path::new);
            // Where PostgreSQL finds it by itself.
            let there = match named {
                Some(named) => main.is_none() && named.exists(),
                None => layout.pgdata().join(name).exists(),
            };
            if there {
                return None;
            }
            let restored = named.and_then(|named| layout.restored_extra(named));
            let near = || Some(beside?.join(named.and_then(Path::file_name).unwrap_or(OsStr::new(name))));
            restored.or_else(near).filter(|file| file.is_file())
        };
        let (hba, ident) = (other("hba_file", "pg_hba.conf"), other("ident_file", "pg_ident.conf"));
        Self { main, hba, ident }
    }

    /// The options of the server for a data directory; empty if it needs none.
    fn options(&self, pgdata: &Path) -> Vec<String> {
        // A configuration from elsewhere names the original's.
        let data = self.main.as_ref().map(|_| pgdata);
        let files = [
            ("config_file", self.main.as_deref()),
            ("hba_file", self.hba.as_deref()),
            ("ident_file", self.ident.as_deref()),
            ("data_directory", data),
        ];
        let given = files.iter().filter_map(|(name, path)| Some((name, (*path)?)));
        given.flat_map(|(name, path)| ["-c".to_owned(), format!("{name}={}", path.display())]).collect()
    }

    /// The command that starts the server, at that port if one is given. `pg_ctl` refuses to run as root.
    pub(super) fn command(&self, pgdata: &Path, owner: Option<Owner>, port: Option<&str>) -> String {
        let text = |text: &str| text.to_owned();
        let mut words = match owner.map(|owner| (owner, owners::name_of_user(owner.uid))) {
            None => Vec::new(),
            Some((_, Some(name))) => vec![text("runuser"), text("-u"), name, text("--")],
            Some((Owner { uid, gid }, None)) => vec![
                text("setpriv"),
                format!("--reuid={uid}"),
                format!("--regid={gid}"),
                text("--clear-groups"),
                text("--"),
            ],
        };
        words.extend([text("pg_ctl"), text("-D"), pgdata.display().to_string()]);
        let mut options = self.options(pgdata);
        options.extend(port.into_iter().flat_map(|port| ["-p".to_owned(), port.to_owned()]));
        if !options.is_empty() {
            // pg_ctl hands them to a shell of its own.
            words.extend([text("-o"), shell::line(&options)]);
        }
        // Recovery may take longer than the minute that pg_ctl waits by itself.
        words.extend(["-w", "-t", "3600", "start"].map(text));
        shell::line(&words)
    }
}

/// The `postgresql.conf` that was backed up from outside the data directory: the only one, or of several the one that names the data
/// directory, or lies in a directory of the version.
fn main_file(layout: &Layout, original: &Path, major: u8) -> Option<PathBuf> {
    let (mut found, mut left) = (Vec::new(), MOST_ENTRIES);
    for (from, to) in layout.extras() {
        look(&from, &to, 0, &mut left, &mut found);
    }
    if let [(_, only)] = &found[..] {
        return Some(only.clone());
    }
    let names_it = |path: &Path| {
        let text = settings::configuration_of(path, layout.pgdata());
        settings::value(&text, "data_directory").is_some_and(|named| Path::new(named) == original)
    };
    let version = major.to_string();
    let of_version = |from: &Path| from.iter().any(|part| part == version.as_str());
    let by_name = found.iter().find(|(_, to)| names_it(to));
    let mut by_version = found.iter().filter(|(from, _)| of_version(from));
    let chosen = by_name.or_else(|| by_version.next().filter(|_| by_version.next().is_none()));
    chosen.map(|(_, to)| to.clone())
}

/// Collects each `postgresql.conf` in a restored tree, with its original path. Links are not followed.
fn look(from: &Path, to: &Path, depth: usize, left: &mut usize, found: &mut Vec<(PathBuf, PathBuf)>) {
    let Ok(metadata) = std::fs::symlink_metadata(to) else { return };
    if metadata.is_file() && from.file_name() == Some(OsStr::new("postgresql.conf")) {
        found.push((from.to_owned(), to.to_owned()));
    }
    if !metadata.is_dir() || depth == DEEPEST {
        return;
    }
    for entry in std::fs::read_dir(to).into_iter().flatten().flatten() {
        let Some(rest) = left.checked_sub(1) else { return };
        *left = rest;
        look(&from.join(entry.file_name()), &entry.path(), depth + 1, left, found);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn file(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        walpoint_base::durable::create(path, text.as_bytes()).unwrap();
    }

    #[test]
    fn the_command_names_the_configuration_files_of_debian() {
        let dir = tempfile::tempdir().unwrap();
        let (pgdata, extra) = (dir.path().join("my data"), dir.path().join("extra"));
        std::fs::create_dir(&pgdata).unwrap();
        let layout =
            |path: &str| Layout::new(pgdata.clone(), BTreeMap::new(), None, extra.clone(), vec![path.into()]);
        let text = "data_directory = '/var/17'\nhba_file = '/etc/postgresql/17/main/pg_hba.conf'\n";
        file(&extra.join("0-postgresql/17/main/postgresql.conf"), text);
        file(&extra.join("0-postgresql/17/main/pg_hba.conf"), "");
        file(&extra.join("0-postgresql/17/main/pg_ident.conf"), "");
        file(&extra.join("0-postgresql/16/main/postgresql.conf"), "data_directory = '/var/16'\n");
        let debian = layout("/etc/postgresql");
        let found = ConfigurationFiles::find(&debian, Path::new("/var/17"), 17);
        let (main, data) = (extra.join("0-postgresql/17/main"), pgdata.display());
        let main = main.display();
        let inner = format!(
            "-c config_file={main}/postgresql.conf -c hba_file={main}/pg_hba.conf -c ident_file={main}/pg_ident.conf -c \
             'data_directory={data}'"
        );
        let inner = inner.replace('\'', "'\\''");
        let expected = format!("pg_ctl -D '{data}' -o '{inner}' -w -t 3600 start");
        assert_eq!(found.command(&pgdata, None, None), expected);
        // A data directory that is reached by another name.
        assert_eq!(ConfigurationFiles::find(&debian, Path::new("/other"), 17), found);
        assert_eq!(ConfigurationFiles::find(&debian, Path::new("/other"), 15).main, None);

        file(&pgdata.join("postgresql.conf"), "hba_file = '/etc/postgresql/17/main/pg_hba.conf'\n");
        file(&pgdata.join("pg_ident.conf"), "");
        let inside = ConfigurationFiles::find(&debian, Path::new("/var/17"), 17);
        assert_eq!(
            inside.command(&pgdata, None, None),
            format!("pg_ctl -D '{data}' -o '-c hba_file={main}/pg_hba.conf' -w -t 3600 start")
        );
        let none = ConfigurationFiles::find(&layout("/etc/other"), Path::new("/var/17"), 17);
        assert_eq!(none.command(&pgdata, None, None), format!("pg_ctl -D '{data}' -w -t 3600 start"));
        let port = none.command(&pgdata, None, Some("5433"));
        assert_eq!(port, format!("pg_ctl -D '{data}' -o '-p 5433' -w -t 3600 start"));
    }
}
