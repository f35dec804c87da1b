//! Which files of a data directory belong into a base backup, and what the names of relation files mean.
//!
//! Sources: the lists in `src/backend/backup/basebackup.c`, `src/common/relpath.c`. Paths are relative to the data
//! directory, tablespaces under `pg_tblspc/<oid>`; they need not be text. Whether something is a regular file, and that
//! links outside `pg_tblspc` and sockets stay out, is the reader's to see.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use walpoint_base::PgMajor;

/// What a base backup does with a file or directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Take it; of a directory, look at what is in it.
    Keep,
    /// Keep the directory, leave out what is in it.
    KeepEmpty,
    /// Leave it out, with everything in it.
    LeaveOut,
}

/// Directories that the server empties or fills again when it starts. Its access rights are worth keeping.
const EMPTY_DIRECTORIES: [&str; 8] = [
    "pg_wal",
    "pg_replslot",
    "pg_dynshmem",
    "pg_notify",
    "pg_serial",
    "pg_snapshots",
    "pg_stat_tmp",
    "pg_subtrans",
];

/// Directories that are not PostgreSQL's: where WAL waits for a recovery in progress.
const OWN_DIRECTORIES: [&str; 1] = ["walpoint-spool"];

/// Files of a running server, or of another backup.
const LEFT_OUT: [&str; 7] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];

/// Prefix of temporary files and of the directories that hold them.
const TEMPORARY: &[u8] = b"pgsql_tmp";
/// Prefix of caches that the server makes again.
const RELATION_CACHE: &[u8] = b"pg_internal.init";

/// Blocks of a relation's file, unless `pg_control` says otherwise: 1 GiB of 8 KiB.
pub const DEFAULT_RELATION_SEGMENT_BLOCKS: u32 = 131_072;

/// A relation's fork.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RelationFork {
    /// Its data.
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// The empty state of an unlogged relation, which recovery copies over the others.
    Init,
}

impl RelationFork {
    fn from_suffix(suffix: &[u8]) -> Option<Self> {
        match suffix {
            b"fsm" => Some(Self::FreeSpaceMap),
            b"vm" => Some(Self::VisibilityMap),
            b"init" => Some(Self::Init),
            _ => None,
        }
    }
}

/// What the name of a relation's file says.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RelationFile {
    /// Its file node number.
    pub number: u32,
    /// Which fork.
    pub fork: RelationFork,
    /// Which file of the fork: 0, then `.1`, `.2` …
    pub segment: u32,
    /// The backend whose temporary relation it is.
    pub temporary: Option<u32>,
}

impl RelationFile {
    /// Reads a file's name: `16384`, `16384.1`, `16384_fsm`, `t3_16384`. `None` for any other file.
    pub fn parse(name: &OsStr) -> Option<Self> {
        let name = name.as_bytes();
        let (temporary, name) = match name.strip_prefix(b"t") {
            None => (None, name),
            Some(rest) => {
                let (backend, rest) = split_at(rest, b'_')?;
                (Some(number(backend)?), rest)
            }
        };
        let (name, segment) = match split_at(name, b'.') {
            None => (name, 0),
            Some((name, segment)) => (name, number(segment).filter(|segment| *segment > 0)?),
        };
        let (name, fork) = match split_at(name, b'_') {
            None => (name, RelationFork::Main),
            Some((name, suffix)) => (name, RelationFork::from_suffix(suffix)?),
        };
        Some(Self { number: number(name).filter(|number| *number > 0)?, fork, segment, temporary })
    }

    /// The number within the relation of the file's block `block`, which goes into its checksum; `None` if it is none.
    pub fn block_in_relation(&self, block: u32, segment_blocks: u32) -> Option<u32> {
        self.segment.checked_mul(segment_blocks)?.checked_add(block)
    }
}

/// The unlogged relations of one directory: those that have an init fork. Recovery makes their other forks anew.
#[derive(Clone, Debug, Default)]
pub struct Unlogged(HashSet<u32>);

impl Unlogged {
    /// Finds them among the names of a directory's files. Holds one number for each unlogged relation.
    pub fn among<N: AsRef<OsStr>>(names: impl IntoIterator<Item = N>) -> Self {
        let mut found = Self::default();
        names.into_iter().for_each(|name| found.note(name.as_ref()));
        found
    }

    /// Looks at one more name.
    pub fn note(&mut self, name: &OsStr) {
        let file = RelationFile::parse(name)
            .filter(|file| file.fork == RelationFork::Init && file.temporary.is_none());
        self.0.extend(file.map(|file| file.number));
    }

    /// Whether this relation is unlogged.
    pub fn contains(&self, number: u32) -> bool {
        self.0.contains(&number)
    }
}

/// What to do with a directory.
pub fn directory(path: &Path) -> Action {
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    if name.starts_with(TEMPORARY) || is_one_of(path, &OWN_DIRECTORIES) {
        Action::LeaveOut
    } else if is_one_of(path, &EMPTY_DIRECTORIES) {
        Action::KeepEmpty
    } else {
        Action::Keep
    }
}

/// What to do with a regular file; `unlogged` are those of the directory it lies in.
pub fn file(path: &Path, unlogged: &Unlogged) -> Action {
    let name = path.file_name().map(OsStr::as_bytes).unwrap_or_default();
    if name.starts_with(TEMPORARY) || name.starts_with(RELATION_CACHE) || is_one_of(path, &LEFT_OUT) {
        return Action::LeaveOut;
    }
    match relation(path) {
        Some(file) if file.temporary.is_some() => Action::LeaveOut,
        Some(file) if file.fork != RelationFork::Init && unlogged.contains(file.number) => Action::LeaveOut,
        _ => Action::Keep,
    }
}

/// The relation file at `path`, if it lies where such files lie and is named like one. These are the files whose blocks
/// have checksums.
pub fn relation(path: &Path) -> Option<RelationFile> {
    is_relation_directory(path.parent()?).then(|| RelationFile::parse(path.file_name()?)).flatten()
}

/// What a database has in one tablespace, if this is a directory for that: the OIDs of the tablespace, `None` for `base`, and
/// of the database.
pub fn database_directory(path: &Path) -> Option<(Option<u32>, u32)> {
    is_relation_directory(path).then_some(())?;
    let database = number(path.file_name()?.as_bytes())?;
    let mut parts = path.components();
    match parts.next()?.as_os_str().as_bytes() {
        b"base" => Some((None, database)),
        _ => Some((Some(number(parts.next()?.as_os_str().as_bytes())?), database)),
    }
}

/// Whether relation files lie in this directory: `global`, `base/<oid>`, `pg_tblspc/<oid>/PG_<version>/<oid>`.
pub fn is_relation_directory(path: &Path) -> bool {
    let mut parts = [&b""[..]; 4];
    let mut count = 0;
    for part in path.components() {
        let Component::Normal(part) = part else { return false };
        let Some(place) = parts.get_mut(count) else { return false };
        *place = part.as_bytes();
        count += 1;
    }
    match (count, parts) {
        (1, [b"global", ..]) => true,
        (2, [b"base", database, ..]) => number(database).is_some(),
        (4, [b"pg_tblspc", space, version, database]) => {
            number(space).is_some() && version.starts_with(b"PG_") && number(database).is_some()
        }
        _ => false,
    }
}

/// The directory in a tablespace that belongs to this version, such as `PG_15_202209061`. Others were left behind by an
/// upgrade and stay out of a backup.
pub fn tablespace_version_directory(major: PgMajor, catalog_version: u32) -> String {
    format!("PG_{major}_{catalog_version}")
}

/// Whether the path is one of these names at the top of the data directory.
fn is_one_of(path: &Path, names: &[&str]) -> bool {
    names.iter().any(|name| path == Path::new(name))
}

fn split_at(name: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = name.iter().position(|b| *b == separator)?;
    Some((name.get(..at)?, name.get(at + 1..)?))
}

/// A decimal number as PostgreSQL prints it: no sign, no leading zero.
fn number(digits: &[u8]) -> Option<u32> {
    let plain = digits.iter().all(u8::is_ascii_digit) && (digits.len() == 1 || !digits.starts_with(b"0"));
    plain.then(|| std::str::from_utf8(digits).ok()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kept(path: &str, unlogged: &[&str]) -> Action {
        file(Path::new(path), &Unlogged::among(unlogged))
    }

    #[test]
    fn relation_names() {
        let parse = |name: &str| {
            RelationFile::parse(OsStr::new(name)).map(|f| (f.number, f.fork, f.segment, f.temporary))
        };
        assert_eq!(parse("16384"), Some((16384, RelationFork::Main, 0, None)));
        assert_eq!(parse("16384.12"), Some((16384, RelationFork::Main, 12, None)));
        assert_eq!(parse("16384_fsm.1"), Some((16384, RelationFork::FreeSpaceMap, 1, None)));
        assert_eq!(parse("2619_vm"), Some((2619, RelationFork::VisibilityMap, 0, None)));
        assert_eq!(parse("16384_init"), Some((16384, RelationFork::Init, 0, None)));
        assert_eq!(parse("t3_16384_fsm.1"), Some((16384, RelationFork::FreeSpaceMap, 1, Some(3))));
        for other in [
            "",
            "0",
            "016384",
            "16384.0",
            "16384.",
            "16384_xyz",
            "16384.1_fsm",
            "+1",
            "4294967296",
            "t_1",
            "t3",
            "PG_VERSION",
            "pg_filenode.map",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }

    #[test]
    fn block_numbers_go_on_over_the_files_of_a_relation() {
        let file = RelationFile::parse(OsStr::new("16384.2")).unwrap();
        assert_eq!(file.block_in_relation(5, DEFAULT_RELATION_SEGMENT_BLOCKS), Some(262_149));
        let file = RelationFile::parse(OsStr::new("16384.4000000")).unwrap();
        assert_eq!(file.block_in_relation(5, DEFAULT_RELATION_SEGMENT_BLOCKS), None);
    }

    #[test]
    fn unlogged_relations_keep_their_init_fork_only() {
        let listing = ["16384", "16384_init", "16385"];
        assert_eq!(kept("base/5/16384", &listing), Action::LeaveOut);
        assert_eq!(kept("base/5/16384.1", &listing), Action::LeaveOut);
        assert_eq!(kept("base/5/16384_vm", &listing), Action::LeaveOut);
        assert_eq!(kept("base/5/16384_init", &listing), Action::Keep);
        assert_eq!(kept("base/5/16385", &listing), Action::Keep);
        assert_eq!(kept("somewhere/16384", &listing), Action::Keep, "no relation lies there");
    }

    #[test]
    fn what_stays_out() {
        for path in [
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
            "global/pg_internal.init",
            "base/5/pg_internal.init.1234",
            "base/5/t3_16384",
            "pg_tblspc/16390/PG_17_202406281/5/t3_16384_vm",
            "base/pgsql_tmp/pgsql_tmp123.0",
        ] {
            assert_eq!(kept(path, &[]), Action::LeaveOut, "{path}");
        }
        for path in [
            "PG_VERSION",
            "global/pg_control",
            "base/5/16384",
            "backup_label.old",
            "conf/backup_label",
            "t3_1",
        ] {
            assert_eq!(kept(path, &[]), Action::Keep, "{path}");
        }
        let dir = |path: &str| directory(Path::new(path));
        assert_eq!(dir("base/pgsql_tmp"), Action::LeaveOut);
        assert_eq!(dir("walpoint-spool"), Action::LeaveOut);
        for path in EMPTY_DIRECTORIES {
            assert_eq!(dir(path), Action::KeepEmpty, "{path}");
        }
        for path in ["", "base", "base/5", "pg_xact", "pg_logical", "log", "log/pg_wal"] {
            assert_eq!(dir(path), Action::Keep, "{path}");
        }
    }

    #[test]
    fn relations_lie_in_three_kinds_of_directories() {
        for path in ["global", "base/5", "pg_tblspc/16390/PG_17_202406281/5"] {
            assert!(is_relation_directory(Path::new(path)), "{path}");
        }
        for path in [
            "",
            "base",
            "base/x",
            "base/5/6",
            "pg_tblspc/16390",
            "pg_tblspc/16390/x/5",
            "/base/5",
            "../base/5",
        ] {
            assert!(!is_relation_directory(Path::new(path)), "{path}");
        }
        let place = |path: &str| database_directory(Path::new(path));
        assert_eq!(place("base/5"), Some((None, 5)));
        assert_eq!(place("pg_tblspc/16390/PG_17_202406281/5"), Some((Some(16390), 5)));
        assert_eq!([place("global"), place("base"), place("base/5/6")], [None; 3]);
        assert_eq!(tablespace_version_directory(PgMajor::new(15).unwrap(), 202_209_061), "PG_15_202209061");
    }

    proptest! {
        #[test]
        fn any_name_is_understood_or_kept(bytes: Vec<u8>) {
            let path = Path::new(OsStr::from_bytes(&bytes));
            let _actions = (directory(path), file(path, &Unlogged::default()), relation(path));
        }
    }
}
