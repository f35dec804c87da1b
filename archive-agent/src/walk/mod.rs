//! What belongs into a backup: a walk over the data directory, its tablespaces and the paths outside it.
//!
//! PostgreSQL goes on while this looks, so anything may vanish between two looks; that is normal and left out. What is held
//! for each file is its name, while its directory is walked through.

pub(crate) mod directory;

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::Access;
use walpoint_pg::control::{CONTROL_FILE, ControlFile};
use walpoint_pg::files::{self, Action, Unlogged};
use walpoint_pg::server::{DEFAULT_TABLESPACE, Place};
use walpoint_repo::backup::{Attributes, RelativePath, Root, TablePath};

use self::directory::{Directory, Seen, cannot_read, present};

/// Deeper nesting can only be links that lead in a circle.
const MAX_DEPTH: usize = 100;

/// Something that belongs into the backup.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    /// Its name in the backup.
    pub(crate) path: TablePath,
    /// Where it is.
    pub(crate) place: PathBuf,
    /// What it is.
    pub(crate) kind: Kind,
    /// Owner, mode and time.
    pub(crate) attributes: Attributes,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A regular file, and how many bytes of disk it occupies at most.
    File(u64),
    /// A directory.
    Directory,
    /// A directory behind a link: a tablespace, `pg_wal`, or a part of the data directory that was moved elsewhere.
    LinkedDirectory(Vec<u8>),
    /// Any other link, and where it leads.
    Link(Vec<u8>),
}

/// What is walked over.
#[derive(Debug, Clone)]
pub(crate) struct Ground {
    pgdata: PathBuf,
    extra_paths: Vec<PathBuf>,
    /// The directory of this version in a tablespace.
    version_directory: String,
}

/// What a walk adds up to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Measure {
    /// Regular files.
    pub(crate) files: u64,
    /// Bytes to be read.
    pub(crate) bytes: u64,
}

/// What a walk met of what every cluster, every tablespace and every database has.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entered {
    /// Directories of databases in which there is anything, by the OIDs of tablespace and database.
    databases: BTreeSet<(u32, u32)>,
    /// Tablespaces in which there is the directory of this version.
    tablespaces: BTreeSet<u32>,
    /// Directories of [`NEEDED`] in which there is anything.
    needed: BTreeSet<&'static str>,
}

/// What no cluster is without, never empty.
const NEEDED: [&str; 4] = ["base", "global", "pg_multixact", "pg_xact"];

impl Entered {
    /// Whether the walk met it.
    pub(crate) fn has(&self, place: &Place) -> bool {
        match place.database {
            None => self.tablespaces.contains(&place.tablespace),
            Some(database) => self.databases.contains(&(place.tablespace, database)),
        }
    }

    /// What a server does not run without and the walk did not meet.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        match NEEDED.iter().find(|name| !self.needed.contains(*name)) {
            Some(name) => bail!(
                "{name} is missing or empty here, and no server runs without it: is it a link or a mount that leads nowhere \
                 here? Make it visible, or let the server send the cluster (backup --remote)"
            ),
            None => Ok(()),
        }
    }

    /// Notes a directory that was opened.
    fn note(&mut self, path: &Path, directory: &Directory) {
        let anything = directory.names().next().is_some();
        if let Some((space, database)) = files::database_directory(path) {
            if anything {
                self.databases.insert((space.unwrap_or(DEFAULT_TABLESPACE), database));
            }
        } else if let Some(space) = space_of_version_directory(path) {
            self.tablespaces.insert(space);
        } else if let Some(name) = NEEDED.iter().find(|name| anything && path == Path::new(name)) {
            self.needed.insert(name);
        }
    }
}

/// The OID in `pg_tblspc/<oid>/PG_<version>`. The walk enters that of its own version only.
fn space_of_version_directory(path: &Path) -> Option<u32> {
    let rest = path.strip_prefix("pg_tblspc").ok()?;
    let (space, version) = (rest.parent()?, rest.file_name()?);
    version.as_bytes().starts_with(b"PG_").then(|| space.to_str()?.parse().ok()).flatten()
}

impl Ground {
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
    pub(crate) fn walk(&self, visit: &mut dyn FnMut(Found) -> anyhow::Result<()>) -> anyhow::Result<Entered> {
        let mut walk = Walk { ground: self, visit, spaces: self.spaces()?, entered: Entered::default() };
        let root = TablePath { root: Root::Data, path: RelativePath::default() };
        // The data directory itself may be reached through a link.
        let meta = fs::metadata(&self.pgdata).with_context(|| cannot_read(&self.pgdata))?;
        walk.visit(&root, &self.pgdata, Kind::Directory, &Seen::from(&meta))?;
        walk.data_directory(&root, &self.pgdata, 0)?;
        for (n, extra) in (0u16..).zip(&self.extra_paths) {
            let root = TablePath { root: Root::Extra(n), path: RelativePath::default() };
            let meta = fs::metadata(extra)
                .with_context(|| format!("{} of extra_paths cannot be read", extra.display()))?;
            walk.extra(&root, extra, &Seen::from(&meta), 0)?;
        }
        Ok(walk.entered)
    }

    /// Whether the directory of a place is there now, that of a database with anything in it. Blocks.
    pub(crate) fn sees(&self, place: &Place) -> bool {
        let space = self.pgdata.join(format!("pg_tblspc/{}", place.tablespace)).join(&self.version_directory);
        match (place.database, place.tablespace) {
            (None, _) => space.is_dir(),
            (Some(database), DEFAULT_TABLESPACE) => is_filled(&self.pgdata.join(format!("base/{database}"))),
            (Some(database), _) => is_filled(&space.join(database.to_string())),
        }
    }

    /// Where it is, for a person.
    pub(crate) fn shown(&self, place: &Place) -> String {
        let Place { tablespace, database, name } = place;
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
            let Kind::File(bytes) = found.kind else { return Ok(()) };
            measure.files += 1;
            measure.bytes = measure.bytes.saturating_add(bytes);
            let plain = found.attributes.uid == ours && found.attributes.mode & 0o400 != 0;
            if !plain && rustix::fs::access(&found.place, Access::READ_OK) == Err(rustix::io::Errno::ACCESS) {
                bail!(
                    "{} belongs to uid {} and this process (uid {ours}) may not read it: give it to PostgreSQL's user, or \
                     move it out of what is backed up",
                    found.place.display(),
                    found.attributes.uid
                );
            }
            Ok(())
        })?;
        entered.check()?;
        Ok((measure, entered))
    }

    /// The directories of tablespaces, by device and inode. One that lies inside the data directory is seen once only.
    fn spaces(&self) -> anyhow::Result<HashSet<(u64, u64)>> {
        let mut spaces = HashSet::new();
        let directory = self.pgdata.join("pg_tblspc");
        for entry in fs::read_dir(&directory).with_context(|| cannot_read(&directory))? {
            let path = entry.with_context(|| cannot_read(&directory))?.path();
            if path.is_symlink()
                && let Ok(meta) = fs::metadata(&path)
            {
                spaces.insert(Seen::from(&meta).identity);
            }
        }
        Ok(spaces)
    }
}

/// One walk.
struct Walk<'a> {
    ground: &'a Ground,
    visit: &'a mut dyn FnMut(Found) -> anyhow::Result<()>,
    spaces: HashSet<(u64, u64)>,
    entered: Entered,
}

impl Walk<'_> {
    fn visit(&mut self, path: &TablePath, place: &Path, kind: Kind, seen: &Seen) -> anyhow::Result<()> {
        let attributes = seen.attributes;
        (self.visit)(Found { path: path.clone(), place: place.to_owned(), kind, attributes })
    }

    /// What is in a directory of the data directory.
    fn data_directory(&mut self, path: &TablePath, place: &Path, depth: usize) -> anyhow::Result<()> {
        if depth > MAX_DEPTH {
            bail!("{} is nested too deep: do links lead in a circle?", place.display());
        }
        let Some(directory) = Directory::open(place)? else { return Ok(()) };
        self.entered.note(path.path.as_path(), &directory);
        let mut unlogged = Unlogged::default();
        if files::is_relation_directory(path.path.as_path()) {
            directory.names().for_each(|name| unlogged.note(name));
        }
        directory.each(place, |name, seen| {
            self.data_entry(&child(path, name)?, &place.join(name), seen, &unlogged, depth)
        })
    }

    fn data_entry(
        &mut self,
        path: &TablePath,
        place: &Path,
        seen: &Seen,
        unlogged: &Unlogged,
        depth: usize,
    ) -> anyhow::Result<()> {
        if self.of_another_version(path.path.as_path()) {
            return Ok(());
        }
        if seen.is_directory() {
            self.directory(path, place, seen, depth)
        } else if seen.is_link() {
            self.data_link(path, place, seen, depth)
        } else if seen.is_file()
            && path.path.as_path() != Path::new(CONTROL_FILE)
            && files::file(path.path.as_path(), unlogged) == Action::Keep
        {
            self.visit(path, place, Kind::File(seen.occupied), seen)
        } else {
            Ok(())
        }
    }

    fn directory(&mut self, path: &TablePath, place: &Path, seen: &Seen, depth: usize) -> anyhow::Result<()> {
        let relative = path.path.as_path();
        if self.spaces.contains(&seen.identity) {
            return Ok(());
        }
        match files::directory(relative) {
            Action::LeaveOut => Ok(()),
            Action::KeepEmpty => self.visit(path, place, Kind::Directory, seen),
            Action::Keep => {
                self.visit(path, place, Kind::Directory, seen)?;
                self.data_directory(path, place, depth + 1)
            }
        }
    }

    /// Whether this lies in a tablespace and beside the directory of this version: another version's, or nobody's.
    fn of_another_version(&self, relative: &Path) -> bool {
        let in_space = relative.starts_with("pg_tblspc") && relative.components().count() == 3;
        in_space && relative.file_name() != Some(self.ground.version_directory.as_ref())
    }

    /// A link in the data directory.
    fn data_link(&mut self, path: &TablePath, place: &Path, seen: &Seen, depth: usize) -> anyhow::Result<()> {
        let relative = path.path.as_path();
        let Some(target) = present(fs::read_link(place), place)? else { return Ok(()) };
        let target = target.as_os_str().as_bytes().to_vec();
        let action = files::directory(relative);
        let behind = match fs::metadata(place) {
            Err(error) if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::LOOP) => {
                return Err(error)
                    .with_context(|| format!("{}: do links lead in a circle?", place.display()));
            }
            behind => behind.ok().map(|meta| Seen::from(&meta)).filter(Seen::is_directory),
        };
        if behind.is_none() && relative.starts_with("pg_tblspc") {
            // A tablespace that was dropped just now, or left behind by one.
            return Ok(());
        }
        let Some(behind) = behind.filter(|_| action != Action::LeaveOut && is_the_servers(relative)) else {
            return match action {
                Action::LeaveOut => Ok(()),
                _ => self.visit(path, place, Kind::Link(target), seen),
            };
        };
        if action == Action::KeepEmpty && relative != Path::new("pg_wal") {
            // As BASE_BACKUP does: what is empty needs no place elsewhere.
            return self.visit(path, place, Kind::Directory, &behind);
        }
        self.visit(path, place, Kind::LinkedDirectory(target), &behind)?;
        if action == Action::Keep { self.data_directory(path, place, depth + 1) } else { Ok(()) }
    }

    /// A file or directory outside the data directory, with everything in it.
    fn extra(&mut self, path: &TablePath, place: &Path, seen: &Seen, depth: usize) -> anyhow::Result<()> {
        if seen.is_file() {
            return self.visit(path, place, Kind::File(seen.occupied), seen);
        }
        if seen.is_link() {
            let Some(target) = present(fs::read_link(place), place)? else { return Ok(()) };
            let target = target.as_os_str().as_bytes().to_vec();
            return self.visit(path, place, Kind::Link(target), seen);
        }
        if !seen.is_directory() || depth > MAX_DEPTH {
            return Ok(());
        }
        self.visit(path, place, Kind::Directory, seen)?;
        let Some(directory) = Directory::open(place)? else { return Ok(()) };
        directory
            .each(place, |name, seen| self.extra(&child(path, name)?, &place.join(name), seen, depth + 1))
    }
}

fn is_filled(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some())
}

/// Whether PostgreSQL itself keeps something at this path that a cluster cannot do without; a `log` that is a link
/// somewhere is none of that.
fn is_the_servers(relative: &Path) -> bool {
    let first = relative.components().next().map(|first| first.as_os_str().as_bytes().to_vec());
    first.is_some_and(|first| {
        first == b"base" || first == b"global" || (first.starts_with(b"pg_") && first != b"pg_log")
    })
}

fn child(path: &TablePath, name: &OsStr) -> anyhow::Result<TablePath> {
    let joined = path.path.join(name.as_bytes());
    Ok(TablePath { root: path.root, path: joined.context("a file has a name that cannot be backed up")? })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use super::*;

    const VERSION: &str = "PG_17_202406281";

    fn file(place: &Path) {
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        walpoint_base::durable::create(place, b"x").unwrap();
    }

    fn walk(ground: &Ground) -> BTreeMap<String, Kind> {
        let mut all = BTreeMap::new();
        ground
            .walk(&mut |found| {
                let twice = all.insert(found.path.to_string(), found.kind);
                assert_eq!(twice, None, "{}", found.path);
                Ok(())
            })
            .unwrap();
        all
    }

    fn ground(pgdata: &Path, extra_paths: &[PathBuf]) -> Ground {
        Ground {
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
        let ground = ground(&data, &[]);
        let entered = ground.walk(&mut |_| Ok(())).unwrap();
        for (tablespace, database, there) in [
            (16399, None, true),
            (16500, None, false),
            (16501, None, false),
            (16399, Some(5), true),
            (16399, Some(6), false),
            (DEFAULT_TABLESPACE, Some(5), true),
            (DEFAULT_TABLESPACE, Some(6), false),
        ] {
            let place = Place { tablespace, database, name: String::new() };
            assert_eq!((entered.has(&place), ground.sees(&place)), (there, there), "{place:?}");
        }
        let error = entered.check().unwrap_err().to_string();
        assert!(error.starts_with("pg_multixact is missing or empty"), "{error}");
        file(&data.join("pg_multixact/offsets/0000"));
        ground.measure().unwrap().1.check().unwrap();
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

        let all = walk(&ground(&data, &[]));
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
        assert_eq!(all["pg_tblspc/16399"], Kind::LinkedDirectory(space.as_os_str().as_bytes().to_vec()));
        assert!(matches!(all["base/6"], Kind::LinkedDirectory(_)));
        assert_eq!(all["postgresql.conf"], Kind::Link(b"/etc/elsewhere.conf".to_vec()));
        assert_eq!(all["pg_stat_tmp"], Kind::Directory);
        assert!(matches!(all["base/5/16384"], Kind::File(_)));
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
        let all = walk(&ground(&data, &[etc, single.clone()]));
        assert_eq!(all["pg_wal"], Kind::LinkedDirectory(wal.as_os_str().as_bytes().to_vec()));
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
        assert!(matches!(all["(extra path 1)/"], Kind::File(_)));
        let missing = ground(&data, &[dir.path().join("nothing")]).measure().unwrap_err();
        assert!(missing.to_string().contains("nothing of extra_paths"), "{missing}");
    }

    #[test]
    fn links_in_a_circle_end() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("base")).unwrap();
        fs::create_dir(dir.path().join("pg_tblspc")).unwrap();
        symlink(".", dir.path().join("base/5")).unwrap();
        let error = ground(dir.path(), &[]).measure().unwrap_err();
        assert!(error.to_string().contains("circle"), "{error:#}");
    }
}
