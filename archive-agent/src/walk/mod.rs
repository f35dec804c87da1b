//! What belongs into a backup: a walk over the data directory, its tablespaces and the paths outside it.
//!
//! The walk itself is in [`entries`], what it met in [`entered`].
//!
//! PostgreSQL goes on while this looks, so anything may vanish between two looks; that is normal and left out. What is held
//! for each file is its name, while its directory is walked through.

pub(crate) mod directory;
mod entered;
mod entries;

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::Access;
use walpoint_pg::control::ControlFile;
use walpoint_pg::files;
use walpoint_pg::server::{DEFAULT_TABLESPACE, TablespaceDirectory};
use walpoint_repo::backup::{Attributes, RelativePath, Root, TablePath};

use self::directory::{SeenEntry, cannot_read};
pub(crate) use self::entered::Entered;
use self::entries::Walk;

/// Something that belongs into the backup.
#[derive(Debug, Clone)]
pub(crate) struct FoundFile {
    /// Its name in the backup.
    pub(crate) path: TablePath,
    /// Where it is.
    pub(crate) place: PathBuf,
    /// What it is.
    pub(crate) kind: FoundKind,
    /// Owner, mode and time.
    pub(crate) attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FoundKind {
    /// A regular file, and how many bytes of disk it occupies at most.
    File(u64),
    Directory,
    /// A directory behind a link: a tablespace, `pg_wal`, or a part of the data directory that was moved elsewhere.
    LinkedDirectory(Vec<u8>),
    /// Any other link, and where it leads.
    Link(Vec<u8>),
}

/// What is walked over.
#[derive(Debug, Clone)]
pub(crate) struct BackupRoots {
    pgdata: PathBuf,
    extra_paths: Vec<PathBuf>,
    /// The directory of this version in a tablespace.
    version_directory: String,
}

/// The tablespaces outside the data directory that are there when a walk begins.
#[derive(Debug, Default)]
struct SpacesThere {
    /// Their directories, by device and inode. One that lies inside the data directory is seen once only.
    directories: HashSet<(u64, u64)>,
    /// The names of the links that lead to them.
    links: HashSet<OsString>,
}

/// What a walk adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Measure {
    /// Regular files.
    pub(crate) files: u64,
    /// Bytes to be read.
    pub(crate) bytes: u64,
}

impl BackupRoots {
    /// The data directory with that `pg_control`, and paths outside it.
    pub(crate) fn new(pgdata: &Path, control: &ControlFile, extra_paths: &[PathBuf]) -> Self {
        Self {
            pgdata: pgdata.to_owned(),
            extra_paths: extra_paths.to_vec(),
            version_directory: files::tablespace_version_directory(control.major, control.catalog_version),
        }
    }

    /// Visits everything, `pg_control` excepted, each directory before what is in it. Blocks; ends with the visitor's first
    /// error.
    pub(crate) fn walk(
        &self,
        visit: &mut dyn FnMut(FoundFile) -> anyhow::Result<()>,
    ) -> anyhow::Result<Entered> {
        let mut walk = Walk { roots: self, visit, spaces: self.spaces()?, entered: Entered::default() };
        let root = TablePath { root: Root::Data, path: RelativePath::default() };
        // The data directory itself may be reached through a link.
        let meta = fs::metadata(&self.pgdata).with_context(|| cannot_read(&self.pgdata))?;
        walk.visit(&root, &self.pgdata, FoundKind::Directory, &SeenEntry::from(&meta))?;
        walk.data_directory(&root, &self.pgdata, 0)?;
        for (n, extra) in (0u16..).zip(&self.extra_paths) {
            let root = TablePath { root: Root::Extra(n), path: RelativePath::default() };
            let meta = fs::metadata(extra)
                .with_context(|| format!("{} of extra_paths cannot be read", extra.display()))?;
            walk.extra(&root, extra, &SeenEntry::from(&meta), 0)?;
        }
        Ok(walk.entered)
    }

    /// Whether the directory of a place is there now, that of a database with anything in it. Blocks.
    pub(crate) fn sees(&self, place: &TablespaceDirectory) -> bool {
        let space = self.pgdata.join(format!("pg_tblspc/{}", place.tablespace)).join(&self.version_directory);
        match (place.database, place.tablespace) {
            (None, _) => space.is_dir(),
            (Some(database), DEFAULT_TABLESPACE) => is_filled(&self.pgdata.join(format!("base/{database}"))),
            (Some(database), _) => is_filled(&space.join(database.to_string())),
        }
    }

    /// Where it is, for a person.
    pub(crate) fn shown(&self, place: &TablespaceDirectory) -> String {
        let TablespaceDirectory { tablespace, database, name } = place;
        let version = &self.version_directory;
        match (database, *tablespace) {
            (None, _) => format!("tablespace {name:?} (pg_tblspc/{tablespace}/{version})"),
            (Some(database), DEFAULT_TABLESPACE) => format!("database {name:?} (base/{database})"),
            (Some(database), _) => format!("database {name:?} (pg_tblspc/{tablespace}/{version}/{database})"),
        }
    }

    /// Adds everything up, and finds what this process may not read, or what is missing that every cluster has.
    pub(crate) fn measure(&self) -> anyhow::Result<(Measure, Entered)> {
        let mut measure = Measure::default();
        let ours = rustix::process::geteuid().as_raw();
        let entered = self.walk(&mut |found| {
            let FoundKind::File(bytes) = found.kind else { return Ok(()) };
            measure.files += 1;
            measure.bytes = measure.bytes.saturating_add(bytes);
            let plain = found.attributes.uid == ours && found.attributes.mode & 0o400 != 0;
            if !plain && rustix::fs::access(&found.place, Access::READ_OK) == Err(rustix::io::Errno::ACCESS) {
                bail!(
                    "{} belongs to uid {} and this process (uid {ours}) may not read it\nHINT: Give it to PostgreSQL's user, \
                     or move it out of what is backed up.",
                    found.place.display(),
                    found.attributes.uid
                );
            }
            Ok(())
        })?;
        entered.check()?;
        Ok((measure, entered))
    }

    fn spaces(&self) -> anyhow::Result<SpacesThere> {
        let mut spaces = SpacesThere::default();
        let directory = self.pgdata.join("pg_tblspc");
        for entry in fs::read_dir(&directory).with_context(|| cannot_read(&directory))? {
            let entry = entry.with_context(|| cannot_read(&directory))?;
            let path = entry.path();
            if path.is_symlink() {
                spaces.links.insert(entry.file_name());
                if let Ok(meta) = fs::metadata(&path) {
                    spaces.directories.insert(SeenEntry::from(&meta).identity);
                }
            }
        }
        Ok(spaces)
    }
}

fn is_filled(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use walpoint_pg::label::TablespaceMap;

    use super::*;

    const VERSION: &str = "PG_17_202406281";

    fn file(place: &Path) {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        walpoint_base::durable::create(place, b"x").unwrap();
    }

    fn walk(roots: &BackupRoots) -> BTreeMap<String, FoundKind> {
        let mut all = BTreeMap::new();
        roots
            .walk(&mut |found| {
                let twice = all.insert(found.path.to_string(), found.kind);
                assert_eq!(twice, None, "{}", found.path);
                Ok(())
            })
            .unwrap();
        all
    }

    fn roots(pgdata: &Path, extra_paths: &[PathBuf]) -> BackupRoots {
        BackupRoots {
            pgdata: pgdata.to_owned(),
            extra_paths: extra_paths.to_vec(),
            version_directory: VERSION.to_owned(),
        }
    }

    #[test]
    fn what_a_walk_did_not_meet_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let (data, space) = (dir.path().join("data"), dir.path().join("space"));
        for name in ["base/5/PG_VERSION", "global/1262", "pg_xact/0000"] {
            file(&data.join(name));
        }
        for name in ["base/6", "pg_tblspc", "pg_multixact"] {
            fs::create_dir(data.join(name)).unwrap();
        }
        file(&space.join(VERSION).join("5/16400"));
        fs::create_dir(dir.path().join("unmounted")).unwrap();
        symlink(&space, data.join("pg_tblspc/16399")).unwrap();
        symlink(dir.path().join("unmounted"), data.join("pg_tblspc/16500")).unwrap();
        symlink(dir.path().join("nowhere"), data.join("pg_tblspc/16501")).unwrap();
        let roots = roots(&data, &[]);
        let entered = roots.walk(&mut |_| Ok(())).unwrap();
        for (tablespace, database, there) in [
            (16399, None, true),
            (16500, None, false),
            (16501, None, false),
            (16399, Some(5), true),
            (16399, Some(6), false),
            (DEFAULT_TABLESPACE, Some(5), true),
            (DEFAULT_TABLESPACE, Some(6), false),
        ] {
            let place = TablespaceDirectory { tablespace, database, name: String::new() };
            assert_eq!((entered.has(&place), roots.sees(&place)), (there, there), "{place:?}");
        }
        let error = entered.check().unwrap_err().to_string();
        assert!(error.starts_with("pg_multixact is missing or empty"), "{error}");
        file(&data.join("pg_multixact/offsets/0000"));
        roots.measure().unwrap().1.check().unwrap();
    }

    /// Replay of what was created after the backup began creates it again: it is no part of the backup. What was created just before
    /// the walk may be in the map or not.
    #[test]
    fn a_tablespace_that_is_created_during_the_walk_is_left_to_replay() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        file(&data.join("base/5/PG_VERSION"));
        fs::create_dir(data.join("pg_tblspc")).unwrap();
        let create = |oid: &str| {
            let space = dir.path().join(format!("space{oid}"));
            file(&space.join(VERSION).join("5/16400"));
            symlink(&space, data.join("pg_tblspc").join(oid)).unwrap();
        };
        create("16399");
        let mut all = Vec::new();
        let entered = roots(&data, &[]).walk(&mut |found| {
            if found.path.to_string() == "base" {
                create("16400");
            }
            all.push(found.path.to_string());
            Ok(())
        });
        let entered = entered.unwrap();
        assert!(all.iter().any(|path| path.starts_with("pg_tblspc/16399/")), "{all:?}");
        assert!(!all.iter().any(|path| path.starts_with("pg_tblspc/16400")), "{all:?}");
        let major = walpoint_base::PgMajor::new(17).unwrap();
        let map = |text: &str| TablespaceMap::parse(text.as_bytes(), major).unwrap();
        entered.require_mapped(&map("16399 /space\n")).unwrap();
        let refused = entered.require_mapped(&map("")).unwrap_err().to_string();
        assert!(refused.starts_with("no backup was taken: tablespace 16399 was created"), "{refused}");
    }

    #[test]
    fn a_data_directory_with_everything_that_is_odd() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        for name in [
            "PG_VERSION",
            "global/pg_control",
            "global/1262",
            "base/5/16384",
            "base/5/16384_fsm",
            "base/5/16390",
            "base/5/16390_init",
            "base/5/t3_1",
            "base/pgsql_tmp/pgsql_tmp1.0",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x.ready",
            "pg_replslot/slot/state",
            "log/server.log",
            "postmaster.pid",
            "inside/PG_17_202406281/5/77",
        ] {
            file(&data.join(name));
        }
        fs::create_dir(data.join("pg_tblspc")).unwrap();
        let space = dir.path().join("space");
        file(&space.join(VERSION).join("5/16400"));
        file(&space.join("PG_16_202307071/5/16400"));
        symlink(&space, data.join("pg_tblspc/16399")).unwrap();
        symlink(data.join("inside"), data.join("pg_tblspc/16500")).unwrap();
        symlink(dir.path().join("gone"), data.join("pg_tblspc/16501")).unwrap();
        let stat = dir.path().join("stat");
        file(&stat.join("x"));
        symlink(&stat, data.join("pg_stat_tmp")).unwrap();
        let moved = dir.path().join("moved");
        file(&moved.join("2619"));
        symlink(&moved, data.join("base/6")).unwrap();
        symlink("/etc/elsewhere.conf", data.join("postgresql.conf")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(data.join("socket")).unwrap();

        let all = walk(&roots(&data, &[]));
        let names: Vec<&str> = all.keys().map(String::as_str).collect();
        let expected = [
            "",
            "PG_VERSION",
            "base",
            "base/5",
            "base/5/16384",
            "base/5/16384_fsm",
            "base/5/16390_init",
            "base/6",
            "base/6/2619",
            "global",
            "global/1262",
            "log",
            "log/server.log",
            "pg_replslot",
            "pg_stat_tmp",
            "pg_tblspc",
            "pg_tblspc/16399",
            "pg_tblspc/16399/PG_17_202406281",
            "pg_tblspc/16399/PG_17_202406281/5",
            "pg_tblspc/16399/PG_17_202406281/5/16400",
            "pg_tblspc/16500",
            "pg_tblspc/16500/PG_17_202406281",
            "pg_tblspc/16500/PG_17_202406281/5",
            "pg_tblspc/16500/PG_17_202406281/5/77",
            "pg_wal",
            "postgresql.conf",
        ];
        assert_eq!(names, expected);
        assert_eq!(all["pg_tblspc/16399"], FoundKind::LinkedDirectory(space.as_os_str().as_bytes().to_vec()));
        assert!(matches!(all["base/6"], FoundKind::LinkedDirectory(_)));
        assert_eq!(all["postgresql.conf"], FoundKind::Link(b"/etc/elsewhere.conf".to_vec()));
        assert_eq!(all["pg_stat_tmp"], FoundKind::Directory);
        assert!(matches!(all["base/5/16384"], FoundKind::File(_)));
    }

    #[test]
    fn a_wal_directory_elsewhere_stays_empty_and_extra_paths_are_taken_whole() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        let wal = dir.path().join("wal");
        file(&wal.join("000000010000000000000001"));
        symlink(&wal, data.join("pg_wal")).unwrap();
        let etc = dir.path().join("etc");
        file(&etc.join("conf.d/a.conf"));
        file(&etc.join("backup_label"));
        symlink("conf.d/a.conf", etc.join("b.conf")).unwrap();
        let single = dir.path().join("single");
        file(&single);
        let all = walk(&roots(&data, &[etc, single.clone()]));
        assert_eq!(all["pg_wal"], FoundKind::LinkedDirectory(wal.as_os_str().as_bytes().to_vec()));
        assert!(!all.keys().any(|name| name.starts_with("pg_wal/")));
        let names: Vec<&str> = all.keys().map(String::as_str).filter(|name| name.contains("extra")).collect();
        let expected = [
            "(extra path 0)/",
            "(extra path 0)/b.conf",
            "(extra path 0)/backup_label",
            "(extra path 0)/conf.d",
            "(extra path 0)/conf.d/a.conf",
            "(extra path 1)/",
        ];
        assert_eq!(names, expected);
        assert!(matches!(all["(extra path 1)/"], FoundKind::File(_)));
        let missing = roots(&data, &[dir.path().join("nothing")]).measure().unwrap_err();
        assert!(missing.to_string().contains("nothing of extra_paths"), "{missing}");
    }

    #[test]
    fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("base")).unwrap();
        fs::create_dir(dir.path().join("pg_tblspc")).unwrap();
        symlink(".", dir.path().join("base/5")).unwrap();
        let error = roots(dir.path(), &[]).measure().unwrap_err();
        assert!(error.to_string().contains("circle"), "{error:#}");
    }
}
