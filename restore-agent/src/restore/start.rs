//! The command that starts a restored server, also where its configuration lay outside the data directory, as Debian's does.
//!
//! `pg_ctl` reads `postgresql.conf` in the data directory and nowhere else. Files that a backup took along (`extra_paths`) lie in a
//! directory beside it, and they still name the original's paths: both are set right on the command line, which overrides every file.
//! So is a `data_directory` that the configuration sets itself: PostgreSQL takes that one, whatever it is started with, and would run
//! in the original.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::layout::Layout;
use super::owners::Owner;
use crate::server::ServerUser;
use crate::{settings, shell};

/// Where `postgresql.conf` is looked for: a backup may hold any tree.
const DEEPEST: usize = 6;
const MOST_ENTRIES: usize = 10_000;

/// What the server puts its PID into where it must not be where the configuration says. No file of the server's has this name.
const PID_FILE: &str = "external.pid";

/// The configuration files of a restored server, as far as they do not lie where PostgreSQL looks for them, and what they say of another
/// data directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ConfigurationFiles {
    /// `postgresql.conf`.
    pub(super) main: Option<PathBuf>,
    hba: Option<PathBuf>,
    ident: Option<PathBuf>,
    /// The other data directory that `data_directory` names.
    pub(super) data: Option<PathBuf>,
    /// The `external_pid_file`.
    pid: Option<PidFile>,
}

/// Where a server outside of its data directory writes its PID, replacing what is there, and removes it when it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PidFile {
    /// In the original's data directory.
    InOriginal,
    /// Elsewhere: a server beside the original would take the original's away.
    Shared,
}

impl ConfigurationFiles {
    /// Looks for them in what was restored. `original` is the data directory that was backed up.
    pub(super) fn find(layout: &Layout, original: &Path, major: u8) -> Self {
        let own = layout.pgdata().join("postgresql.conf");
        let main = if own.exists() { None } else { main_file(layout, original, major) };
        let file = main.as_deref().unwrap_or(&own);
        let text = settings::configuration_of(file, layout.pgdata());
        let path = |parameter: &str| {
            settings::value(&text, parameter).filter(|value| !value.is_empty()).map(Path::new)
        };
        let data = other_directory(&settings::without_auto(file), layout.pgdata());
        // What lies in the original's data directory, by the path that it has there.
        let in_original = |path: &Path| {
            let named = [Some(original), data.as_deref()];
            let mut others = named.into_iter().flatten().filter(|directory| *directory != layout.pgdata());
            others.find_map(|directory| path.strip_prefix(directory).ok()).map(Path::to_owned)
        };
        let pid = path("external_pid_file").filter(|pid| !pid.starts_with(layout.pgdata()));
        let pid = pid.map(|pid| in_original(pid).map_or(PidFile::Shared, |_| PidFile::InOriginal));
        let beside = main.as_deref().and_then(Path::parent);
        let other = |parameter: &str, name: &str| {
            let named = path(parameter);
            let copied = named.and_then(in_original).map(|inside| layout.pgdata().join(inside));
            if let Some(copied) = copied.filter(|file| file.is_file()) {
                return Some(copied);
            }
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
        Self { main, hba, ident, data, pid }
    }

    /// The options of the server for a data directory, at that port if one is given; empty if it needs none. At another port the original
    /// may be running on this machine.
    pub(super) fn options(&self, pgdata: &Path, port: Option<&str>) -> Vec<String> {
        // A configuration from elsewhere names the original's.
        let data = self.main.as_ref().or(self.data.as_ref()).map(|_| pgdata);
        let moved = self.pid.filter(|pid| port.is_some() || *pid == PidFile::InOriginal);
        let pid = moved.map(|_| pgdata.join(PID_FILE));
        let files = [
            ("config_file", self.main.as_deref()),
            ("hba_file", self.hba.as_deref()),
            ("ident_file", self.ident.as_deref()),
            ("data_directory", data),
            ("external_pid_file", pid.as_deref()),
        ];
        let given = files.iter().filter_map(|(name, path)| Some((name, (*path)?)));
        let files = given.flat_map(|(name, path)| ["-c".to_owned(), format!("{name}={}", path.display())]);
        files.chain(port.into_iter().flat_map(|port| ["-p".to_owned(), port.to_owned()])).collect()
    }

    /// The command that starts the server, at that port if one is given. `pg_ctl` refuses to run as root.
    pub(super) fn command(&self, pgdata: &Path, owner: Option<Owner>, port: Option<&str>) -> String {
        let text = |text: &str| text.to_owned();
        let mut words = ServerUser::of(owner).words();
        words.extend([text("pg_ctl"), text("-D"), pgdata.display().to_string()]);
        let options = self.options(pgdata, port);
        if !options.is_empty() {
            // pg_ctl hands them to a shell of its own.
            words.extend([text("-o"), shell::line(&options)]);
        }
        // Recovery may take longer than the minute that pg_ctl waits by itself.
        words.extend(["-w", "-t", "3600", "start"].map(text));
        shell::line(&words)
    }
}

/// The configuration files in a data directory that are links out of it, each with what it leads to: of these a backup holds the link.
pub(super) fn links_out(pgdata: &Path) -> Vec<(&'static str, PathBuf)> {
    let link = |name: &'static str| {
        let path = pgdata.join(name);
        let target = pgdata.join(std::fs::read_link(&path).ok()?);
        let is_inside = path.canonicalize().is_ok_and(|real| real.starts_with(pgdata));
        (!is_inside).then_some((name, target))
    };
    ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"].into_iter().filter_map(link).collect()
}

/// The data directory that a `postgresql.conf` names, if that is another one than `pgdata`.
fn other_directory(text: &str, pgdata: &Path) -> Option<PathBuf> {
    let named = Path::new(settings::value(text, "data_directory").filter(|named| !named.is_empty())?);
    let is_it = named == pgdata || named.canonicalize().is_ok_and(|named| named == *pgdata);
    (!is_it).then(|| named.to_owned())
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

    use walpoint_base::durable;

    use super::*;

    fn file(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        durable::create(path, text.as_bytes()).unwrap();
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

    #[test]
    fn links_to_configuration_elsewhere_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let data = dir.join("data");
        file(&data.join("conf/own.conf"), "");
        file(&dir.join("etc/pg_hba.conf"), "");
        assert_eq!(links_out(&data), []);
        for (name, target) in [
            ("postgresql.conf", "conf/own.conf"),
            ("pg_hba.conf", "../etc/pg_hba.conf"),
            ("pg_ident.conf", "/none"),
        ] {
            std::os::unix::fs::symlink(target, data.join(name)).unwrap();
        }
        let expected = [("pg_hba.conf", data.join("../etc/pg_hba.conf")), ("pg_ident.conf", "/none".into())];
        assert_eq!(links_out(&data), expected);
    }

    #[test]
    fn the_command_overrides_what_leads_into_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let (original, back) = (dir.join("original"), dir.join("back"));
        for data in [&original, &back] {
            file(&data.join("pg_hba.conf"), "");
            file(&data.join("pg_ident.conf"), "");
        }
        let layout = Layout::new(back.clone(), BTreeMap::new(), None, dir.join("extra"), Vec::new());
        let command = |port| {
            let found = ConfigurationFiles::find(&layout, &original, 17);
            (found.command(&back, None, port), found.data)
        };
        let (of_it, of_back) = (original.display(), back.display());
        let plain = format!("pg_ctl -D {of_back} -w -t 3600 start");
        let with = |options: &str| format!("pg_ctl -D {of_back} -o '{options}' -w -t 3600 start");

        let conf =
            |text: &str| durable::replace(&back.join("postgresql.conf"), text.as_bytes(), 0o600).unwrap();
        conf("include 'more.conf'\n");
        file(&back.join("more.conf"), &format!("data_directory = '{of_it}'\n"));
        let moved = format!("-c data_directory={of_back}");
        assert_eq!(command(None), (with(&moved), Some(original.clone())));
        assert_eq!(command(Some("5433")).0, with(&format!("{moved} -p 5433")));
        conf(&format!("data_directory = '{of_back}'\n"));
        assert_eq!(command(None), (plain.clone(), None));
        // PostgreSQL does not take it from there.
        conf("");
        file(&back.join("postgresql.auto.conf"), &format!("data_directory = '{of_it}'\n"));
        assert_eq!(command(None), (plain.clone(), None));

        conf(&format!(
            "hba_file = '{of_it}/pg_hba.conf'\nident_file = '{of_it}/none.conf'\nexternal_pid_file = '{of_it}/pid'\n"
        ));
        let pid = format!("-c external_pid_file={of_back}/external.pid");
        assert_eq!(command(None).0, with(&format!("-c hba_file={of_back}/pg_hba.conf {pid}")));
        conf("external_pid_file = '/run/main.pid'\n");
        assert_eq!((command(None).0, command(Some("1")).0), (plain, with(&format!("{pid} -p 1"))));
        conf(&format!("external_pid_file = '{of_back}/pid'\n"));
        assert_eq!(command(Some("1")).0, with("-p 1"));
    }
}
