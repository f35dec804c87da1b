//! PostgreSQL's programs of the version that a backup needs. They are run as the server's user, also to ask for their version: their
//! directory may be another user's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use walpoint_base::PgMajor;

use super::process::ServerUser;

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
    pub(crate) fn find(given: Option<&Path>, major: PgMajor, user: &ServerUser) -> anyhow::Result<Self> {
        if let Some(bindir) = given {
            let bindir = std::path::absolute(bindir)?;
            let (version, of) = version_in(&bindir, user)?;
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
            if let Ok((version, of)) = version_in(bindir, user)
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
    pub(crate) fn server(&self) -> PathBuf {
        self.bindir.join(SERVER)
    }

    /// Another program, if this installation has it.
    pub(crate) fn optional(&self, name: &str) -> Option<PathBuf> {
        Some(self.bindir.join(name)).filter(|path| path.is_file())
    }

    /// A client program that can work with a server of this version: in the directory that a person names, or beside the server. It is run
    /// for its version, as the server's user.
    pub(crate) fn client(
        &self,
        name: &str,
        given: Option<&Path>,
        major: PgMajor,
        user: &ServerUser,
    ) -> anyhow::Result<PathBuf> {
        let directory = given.map_or_else(|| Ok(self.bindir.clone()), std::path::absolute)?;
        let program = directory.join(name);
        if !program.is_file() {
            bail!(
                "\"{}\" has no {name}\nHINT: Install the client programs of PostgreSQL {major}, or name a directory that has those of \
                 this or a newer version with --client-bindir.",
                directory.display()
            );
        }
        let (version, of) = version_of(&program, user)?;
        if of < major.get() {
            bail!(
                "\"{}\" is of PostgreSQL {version}, and the backup is of PostgreSQL {major}\nHINT: Name a directory that has programs \
                 of this or a newer version with --client-bindir.",
                program.display()
            );
        }
        Ok(program)
    }

    /// The major version of a client program that was found. It is run for it, as the server's user.
    pub(crate) fn client_major(program: &Path, user: &ServerUser) -> anyhow::Result<u8> {
        Ok(version_of(program, user)?.1)
    }

    /// The directory of the programs.
    pub(crate) fn bindir(&self) -> &Path {
        &self.bindir
    }

    /// Where the server looks for libraries (`$libdir`): what `pg_config` says, else the usual places beside the programs.
    pub(crate) fn libraries(&self, user: &ServerUser) -> Vec<PathBuf> {
        let told = self.optional("pg_config").and_then(|program| {
            let mut command = user.command(program.as_os_str());
            let output = command.arg("--pkglibdir").current_dir("/").stderr(Stdio::null()).output().ok()?;
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
fn version_in(bindir: &Path, user: &ServerUser) -> anyhow::Result<(String, u8)> {
    version_of(&bindir.join(SERVER), user)
}

/// The version of a program: what it prints, and the major version in it.
fn version_of(program: &Path, user: &ServerUser) -> anyhow::Result<(String, u8)> {
    let output = user.command(program.as_os_str()).arg("--version").current_dir("/").output();
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::server::owner::Owner;

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

    /// A directory with a server that is a script.
    fn installation(script: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let server = dir.path().join("postgres");
        walpoint_base::durable::create(&server, format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        for path in [dir.path(), &server] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    #[test]
    fn programs_of_another_version_are_refused() {
        let dir = installation("echo 'postgres (PostgreSQL) 16.4'");
        let user = ServerUser::default();
        let find = |bindir: &Path, major| Programs::find(Some(bindir), PgMajor::new(major).unwrap(), &user);
        assert_eq!(find(dir.path(), 16).unwrap().version, "16.4");
        let error = find(dir.path(), 17).unwrap_err().to_string();
        assert!(error.contains("has PostgreSQL 16, and the backup is of PostgreSQL 17"), "{error}");
        assert!(find(&dir.path().join("none"), 17).is_err());
    }

    #[test]
    fn a_client_program_is_of_the_servers_version_or_a_newer_one() {
        let dir = installation("echo 'postgres (PostgreSQL) 16.4'");
        let (user, major) = (ServerUser::default(), PgMajor::new(16).unwrap());
        let programs = Programs::find(Some(dir.path()), major, &user).unwrap();
        let missing = programs.client("pg_dump", None, major, &user).unwrap_err().to_string();
        assert!(missing.contains("has no pg_dump") && missing.contains("--client-bindir"), "{missing}");
        for (version, is_right) in [("15.9", false), ("16.1", true), ("19rc1", true)] {
            let other = installation(&format!("echo 'pg_dump (PostgreSQL) {version}'"));
            std::fs::hard_link(other.path().join("postgres"), other.path().join("pg_dump")).unwrap();
            let found = programs.client("pg_dump", Some(other.path()), major, &user);
            assert_eq!(found.is_ok(), is_right, "{version}: {found:?}");
        }
    }

    #[test]
    fn programs_are_run_as_the_servers_user() {
        let own = walpoint_base::user::effective();
        let owner = (own == 0).then_some(Owner { uid: 65534, gid: 65534 });
        let dir = installation("echo \"postgres (PostgreSQL) 16.$(id -u)\"");
        let user = ServerUser::of(owner);
        let found = Programs::find(Some(dir.path()), PgMajor::new(16).unwrap(), &user).unwrap();
        assert_eq!(found.version, format!("16.{}", owner.map_or(own, |owner| owner.uid)));
    }
}
