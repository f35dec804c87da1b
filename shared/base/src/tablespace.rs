//! Tablespaces that replay creates: what lies at their locations on this machine.
//!
//! Replay of `CREATE TABLESPACE` uses the location in the record, whatever was put elsewhere at restore. It removes what
//! this version of PostgreSQL has there and begins anew. Beside the original that is the original's directory, so a
//! location where this version has something counts as taken, unless a link of the recovering data directory leads there.
//! Only a process that sees the files of PostgreSQL can tell: one that shares its mounts. Nothing is changed here.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::Lsn;
use crate::diagnostic::shown;

/// A tablespace that replay creates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreatedTablespace {
    /// Where the record starts.
    pub record: Lsn,
    /// The tablespace's OID.
    pub oid: u32,
    /// Its location, as bytes; empty if it is in place, below `pg_tblspc`.
    pub location: Vec<u8>,
}

impl CreatedTablespace {
    /// The location as a path; `None` if the tablespace is in place.
    pub fn path(&self) -> Option<&Path> {
        (!self.location.is_empty()).then(|| Path::new(OsStr::from_bytes(&self.location)))
    }
}

/// What one major version of PostgreSQL has in a tablespace: its directories (`PG_<major>_<catalog>`), in order. `None` if
/// the location does not exist or is no directory.
pub fn version_directories(location: &Path, major: u8) -> io::Result<Option<Vec<PathBuf>>> {
    let entries = match fs::read_dir(location) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        entries => entries?,
    };
    let prefix = format!("PG_{major}_");
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let catalog = name.to_str().and_then(|name| name.strip_prefix(&prefix));
        if catalog.is_some_and(|catalog| catalog.bytes().all(|b| b.is_ascii_digit())) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(Some(found))
}

/// Judges whether a recovery in `pgdata` may replay these records. What it should know is returned: locations that do not
/// exist, at which replay stops. The error is why it may not, and what to do.
pub fn permit(pgdata: &Path, created: &[CreatedTablespace]) -> Result<Vec<String>, String> {
    let mut missing = Vec::new();
    for (tablespace, location) in created.iter().filter_map(|one| Some((one, one.path()?))) {
        let CreatedTablespace { record, oid, .. } = tablespace;
        let shown = shown(&location.to_string_lossy());
        let what = format!("at {record} replay creates tablespace {oid} in \"{shown}\"");
        let unknown =
            |error: io::Error| format!("{what}, and the contents of that directory are unknown: {error}");
        let major = major(pgdata).map_err(unknown)?;
        match version_directories(location, major).map_err(unknown)? {
            None => missing.push(format!(
                "{what}, which does not exist: PostgreSQL will stop there\nHINT: Create the directory, empty, for \
                 PostgreSQL's user, and start PostgreSQL again."
            )),
            Some(there) if there.is_empty() || is_linked(pgdata, location) => {}
            Some(there) => {
                let there: Vec<String> = there.iter().map(|path| format!("\"{}\"", path.display())).collect();
                let there = there.join(", ");
                return Err(format!(
                    "{what} and would overwrite {there}, which is not this server's\nHINT: If another server uses it, recover \
                     to a moment before the record (in postgresql.auto.conf: recovery_target_lsn = '{record}' and \
                     recovery_target_inclusive = off), or run this server where \"{shown}\" is another directory: on another \
                     machine or in a container. If no server uses it, rename {there}, and start PostgreSQL again: recovery \
                     continues."
                ));
            }
        }
    }
    Ok(missing)
}

/// The major version that a data directory belongs to.
fn major(pgdata: &Path) -> io::Result<u8> {
    let text = fs::read_to_string(pgdata.join("PG_VERSION"))?;
    text.trim().parse().map_err(|_| io::Error::other(format!("PG_VERSION is {:?}", text.trim())))
}

/// Whether a tablespace of the data directory lies there already.
fn is_linked(pgdata: &Path, location: &Path) -> bool {
    let identity = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    let wanted = identity(location);
    let links = fs::read_dir(pgdata.join("pg_tblspc")).into_iter().flatten().flatten();
    wanted.is_some()
        && links
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_symlink()))
            .any(|entry| identity(&entry.path()) == wanted)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::durable;

    fn created(location: &Path) -> CreatedTablespace {
        let location = location.as_os_str().as_bytes().to_vec();
        CreatedTablespace { record: Lsn(0x100_0028), oid: 16400, location }
    }

    #[test]
    fn only_directories_of_this_version_are_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["PG_16_202307071", "PG_17_202406281", "PG_17_202406281.walpoint-old-20260101T000000Z"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        durable::create(&dir.path().join("other"), b"").unwrap();
        let found = version_directories(dir.path(), 17).unwrap().unwrap();
        assert_eq!(found, [dir.path().join("PG_17_202406281")]);
        assert_eq!(version_directories(&dir.path().join("missing"), 17).unwrap(), None);
    }

    #[test]
    fn what_is_not_this_servers_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (pgdata, space) = (dir.path().join("data"), dir.path().join("space"));
        fs::create_dir_all(pgdata.join("pg_tblspc")).unwrap();
        let in_place = CreatedTablespace { location: Vec::new(), ..created(&space) };
        assert_eq!(permit(&pgdata, std::slice::from_ref(&in_place)), Ok(Vec::new()));
        assert!(permit(&pgdata, &[created(&space)]).is_err(), "no version is known");
        durable::create(&pgdata.join("PG_VERSION"), b"17\n").unwrap();
        let missing = permit(&pgdata, &[in_place, created(&space)]).unwrap();
        assert!(missing[0].contains("does not exist") && missing.len() == 1, "{missing:?}");
        fs::create_dir_all(space.join("PG_16_202307071")).unwrap();
        assert_eq!(permit(&pgdata, &[created(&space)]), Ok(Vec::new()), "another version's");
        fs::create_dir(space.join("PG_17_202406281")).unwrap();
        let refused = permit(&pgdata, &[created(&space)]).unwrap_err();
        assert!(refused.contains("PG_17_202406281") && refused.contains("0/1000028"), "{refused}");
        symlink(&space, pgdata.join("pg_tblspc/16399")).unwrap();
        assert_eq!(permit(&pgdata, &[created(&space)]), Ok(Vec::new()), "its own");
    }
}
