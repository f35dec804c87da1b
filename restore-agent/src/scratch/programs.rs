//! PostgreSQL's programs of the version that a backup needs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use walpoint_base::PgMajor;

/// The server's program.
const SERVER: &str = "postgres";

/// The programs of one installation.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    bindir: PathBuf,
    /// What the server calls itself.
    pub(crate) version: String,
}

impl Programs {
    /// Finds those of a version: where the command line says, else in `PATH` and where distributions put them.
    pub(super) fn find(given: Option<&Path>, major: PgMajor) -> anyhow::Result<Self> {
        if let Some(bindir) = given {
            let bindir = std::path::absolute(bindir)?;
            let (version, of) = version_in(&bindir)?;
            if of != major.get() {
                bail!(
                    "--pg-bindir {} has PostgreSQL {of}, and the backup is of PostgreSQL {major}",
                    bindir.display()
                );
            }
            return Ok(Self { bindir, version });
        }
        let places = places(std::env::var_os("PATH").as_deref(), major);
        for bindir in places.iter().filter(|bindir| bindir.join(SERVER).is_file()) {
            if let Ok((version, of)) = version_in(bindir)
                && of == major.get()
            {
                return Ok(Self { bindir: bindir.clone(), version });
            }
        }
        let looked: Vec<String> = places.iter().map(|place| place.display().to_string()).collect();
        bail!(
            "PostgreSQL {major}, of which the backup is, was not found on this machine\nDETAIL: Looked in {}.\nHINT: Install its \
             server, or name the directory of its programs with --pg-bindir.",
            looked.join(", ")
        )
    }

    /// The server.
    pub(super) fn server(&self) -> PathBuf {
        self.bindir.join(SERVER)
    }

    /// Another program, if this installation has it.
    pub(crate) fn optional(&self, name: &str) -> Option<PathBuf> {
        Some(self.bindir.join(name)).filter(|path| path.is_file())
    }

    /// The directory of the programs.
    pub(crate) fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// Where the server looks for libraries (`$libdir`): what `pg_config` says, else the usual places beside the programs.
    pub(super) fn libraries(&self) -> Vec<PathBuf> {
        let told = self.optional("pg_config").and_then(|program| {
            let output = Command::new(program).arg("--pkglibdir").stderr(Stdio::null()).output().ok()?;
            let text = String::from_utf8(output.stdout).ok()?;
            Some(PathBuf::from(text.trim())).filter(|directory| directory.is_dir())
        });
        // Where pg_config is another installation's, the server's own directory is beside its programs.
        let parents = self.bindir.parent().into_iter();
        let beside = parents.flat_map(|parent| {
            ["lib/postgresql", "lib", "lib64", "lib64/pgsql"].map(|below| parent.join(below))
        });
        told.into_iter().chain(beside.filter(|directory| directory.is_dir())).collect()
    }
}

/// The directories in which the programs of a version may be, in the order in which they are looked at.
fn places(path: Option<&OsStr>, major: PgMajor) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = path.map(|path| std::env::split_paths(path).collect()).unwrap_or_default();
    // Debian and Ubuntu; Red Hat and its relatives; SUSE; Alpine; built from source.
    places.extend(
        [
            format!("/usr/lib/postgresql/{major}/bin"),
            format!("/usr/pgsql-{major}/bin"),
            format!("/usr/lib/postgresql{major}/bin"),
            format!("/usr/libexec/postgresql{major}"),
            "/usr/local/pgsql/bin".to_owned(),
        ]
        .map(PathBuf::from),
    );
    places.retain(|place| place.is_absolute());
    places
}

/// The version of the server in a directory: what it prints, and the major version in it.
fn version_in(bindir: &Path) -> anyhow::Result<(String, u8)> {
    let program = bindir.join(SERVER);
    let output = Command::new(&program).arg("--version").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("could not run \"{}\"", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let Some((version, major)) = read_version(&text).filter(|_| output.status.success()) else {
        bail!("\"{}\" --version printed {text:?}, which is no version of PostgreSQL", program.display());
    };
    Ok((version.to_owned(), major))
}

/// Reads `postgres (PostgreSQL) 17.2 (Debian 17.2-1)`.
fn read_version(text: &str) -> Option<(&str, u8)> {
    let version = text.split_once("(PostgreSQL) ")?.1.split_ascii_whitespace().next()?;
    let digits = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    Some((version, version.get(..digits)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_print_them() {
        assert_eq!(read_version("postgres (PostgreSQL) 17.2 (Debian 17.2-1)"), Some(("17.2", 17)));
        assert_eq!(read_version("postgres (PostgreSQL) 19rc1"), Some(("19rc1", 19)));
        assert_eq!(read_version("pg_ctl 17"), None);
        assert_eq!(read_version("postgres (PostgreSQL) x"), None);
    }

    #[test]
    fn the_path_comes_first_and_relative_directories_do_not_count() {
        let places = places(Some(OsStr::new("/my/bin:bin:/usr/bin")), PgMajor::new(17).unwrap());
        let expected = ["/my/bin", "/usr/bin", "/usr/lib/postgresql/17/bin"].map(PathBuf::from);
        assert_eq!(places[..3], expected);
    }

    #[test]
    fn programs_of_another_version_are_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("postgres");
        walpoint_base::durable::create(&script, b"#!/bin/sh\necho 'postgres (PostgreSQL) 16.4'\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let found = Programs::find(Some(dir.path()), PgMajor::new(16).unwrap()).unwrap();
        assert_eq!(found.version, "16.4");
        let error = Programs::find(Some(dir.path()), PgMajor::new(17).unwrap()).unwrap_err().to_string();
        assert!(error.contains("has PostgreSQL 16, and the backup is of PostgreSQL 17"), "{error}");
        assert!(Programs::find(Some(&dir.path().join("none")), PgMajor::new(17).unwrap()).is_err());
    }
}
