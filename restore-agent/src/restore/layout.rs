//! Where the paths of a backup lead on this machine.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walpoint_repo::backup::{RelativePath, Root, TablePath};

use super::tablespaces::TablespaceTarget;

/// The directories that a restore writes to.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pgdata: PathBuf,
    /// Places of tablespaces by oid.
    tablespaces: BTreeMap<u32, TablespaceTarget>,
    /// Where `pg_wal` goes, if not inside PGDATA.
    wal: Option<PathBuf>,
    /// The directory for what lay outside PGDATA, and the original paths.
    extra: PathBuf,
    extra_paths: Vec<PathBuf>,
}

/// Where a directory goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Spot {
    /// It is a directory in its place.
    Inside,
    /// It is a link to this directory.
    Elsewhere(PathBuf),
}

impl Layout {
    /// A layout. `extra_paths` are those of the backup, in its order.
    pub(crate) fn new(
        pgdata: PathBuf,
        tablespaces: BTreeMap<u32, TablespaceTarget>,
        wal: Option<PathBuf>,
        extra: PathBuf,
        extra_paths: Vec<PathBuf>,
    ) -> Self {
        Self { pgdata, tablespaces, wal, extra, extra_paths }
    }

    /// The data directory.
    pub(crate) fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// The directory of a tablespace that lies outside PGDATA.
    pub(crate) fn tablespace(&self, oid: u32) -> Option<&Path> {
        match self.tablespaces.get(&oid)? {
            TablespaceTarget::Link(directory) => Some(directory),
            TablespaceTarget::Inside => None,
        }
    }

    /// The directory for what lay outside PGDATA, if anything did.
    pub(crate) fn extra(&self) -> Option<&Path> {
        (!self.extra_paths.is_empty()).then_some(self.extra.as_path())
    }

    /// The directory of `pg_wal`, if it is not inside PGDATA.
    pub(crate) fn wal(&self) -> Option<&Path> {
        self.wal.as_deref()
    }

    /// The directories outside PGDATA that are written to.
    pub(crate) fn others(&self) -> Vec<PathBuf> {
        let links = self.tablespaces.values().filter_map(|place| match place {
            TablespaceTarget::Link(directory) => Some(directory.clone()),
            TablespaceTarget::Inside => None,
        });
        links.chain(self.wal.clone()).chain(self.extra().map(Path::to_owned)).collect()
    }

    /// The names of the links in a directory of the data directory.
    pub(crate) fn links_in(&self, directory: &RelativePath) -> Vec<OsString> {
        match directory.as_bytes() {
            b"" => self.wal.iter().map(|_| OsString::from("pg_wal")).collect(),
            b"pg_tblspc" => {
                let links =
                    self.tablespaces.iter().filter(|(_, place)| matches!(place, TablespaceTarget::Link(_)));
                links.map(|(oid, _)| OsString::from(oid.to_string())).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Whether a path lies in the data directory.
    pub(crate) fn is_data(&self, path: &TablePath) -> bool {
        path.root == Root::Data
    }

    /// Whether a path is `pg_wal`.
    pub(crate) fn is_wal(&self, path: &TablePath) -> bool {
        self.is_data(path) && path.path.as_bytes() == b"pg_wal"
    }

    /// Whether something lies where a server keeps data that it opens to write to it. What a link there leads to is the original's, on the
    /// original's machine, and PostgreSQL follows it; the backup does not hold that, so nothing is lost without the link.
    pub(crate) fn is_among_data(&self, path: &TablePath) -> bool {
        let mut components = path.path.as_bytes().split(|b| *b == b'/');
        let first = components.next().unwrap_or_default();
        let is_servers = matches!(first, b"base" | b"global") || first.starts_with(b"pg_");
        self.is_data(path) && is_servers && components.next().is_some()
    }

    /// Whether something lies directly in a tablespace and is not the directory of a version of PostgreSQL. No backup holds
    /// such a thing, but one that lies could name any directory a tablespace and put files there.
    pub(crate) fn is_stray(&self, path: &TablePath, is_directory: bool) -> bool {
        let mut components = path.path.as_bytes().split(|b| *b == b'/').skip(2);
        let direct = components.next().filter(|_| components.next().is_none());
        let in_space = self.is_data(path) && path.path.as_bytes().starts_with(b"pg_tblspc/");
        in_space && direct.is_some_and(|name| !is_directory || !name.starts_with(b"PG_"))
    }

    /// The place of a file. What lies below a link of the layout is reached by the directory's own name: the link itself may
    /// lead elsewhere by then.
    pub(crate) fn path(&self, path: &TablePath) -> PathBuf {
        let root = match path.root {
            Root::Data => self.pgdata.clone(),
            Root::Extra(n) => self.extra_root(n),
        };
        if path.path.is_root() {
            return root;
        }
        let below = (path.root == Root::Data).then(|| self.below_link(path.path.as_bytes())).flatten();
        below.unwrap_or_else(|| root.join(path.path.as_path()))
    }

    /// The place of what lies below a link of the data directory; `None` of everything else, the links included.
    fn below_link(&self, path: &[u8]) -> Option<PathBuf> {
        let (directory, rest) = match path.strip_prefix(b"pg_tblspc/") {
            Some(path) => {
                let slash = path.iter().position(|b| *b == b'/')?;
                let (oid, rest) = path.split_at_checked(slash)?;
                (self.tablespace(std::str::from_utf8(oid).ok()?.parse().ok()?)?, rest.get(1..)?)
            }
            None => (self.wal.as_deref()?, path.strip_prefix(b"pg_wal/")?),
        };
        Some(directory.join(OsStr::from_bytes(rest)))
    }

    /// The side directory of an extra path: its number and its last component, so that two of one name do not collide.
    fn extra_root(&self, n: u16) -> PathBuf {
        let original = self.extra_paths.get(usize::from(n));
        let name = original.and_then(|p| p.file_name()).unwrap_or(OsStr::new("root"));
        let mut side = format!("{n}-").into_bytes();
        side.extend_from_slice(name.as_bytes());
        self.extra.join(OsStr::from_bytes(&side))
    }

    /// What was backed up from outside PGDATA: the original path of each, and where it lies now.
    pub(crate) fn extras(&self) -> impl Iterator<Item = (PathBuf, PathBuf)> {
        (0..).zip(&self.extra_paths).map(|(n, original)| (original.clone(), self.extra_root(n)))
    }

    /// Where something of an extra path lies now, by its original path.
    pub(crate) fn restored_extra(&self, original: &Path) -> Option<PathBuf> {
        self.extras().find_map(|(from, to)| {
            let below = original.strip_prefix(from).ok()?;
            Some(if below.as_os_str().is_empty() { to } else { to.join(below) })
        })
    }

    /// Where a directory of the backup goes.
    pub(crate) fn spot(&self, path: &TablePath) -> Spot {
        if path.root != Root::Data {
            return Spot::Inside;
        }
        let name = path.path.as_bytes();
        if name == b"pg_wal" {
            return self.wal.clone().map_or(Spot::Inside, Spot::Elsewhere);
        }
        let oid =
            name.strip_prefix(b"pg_tblspc/").and_then(|oid| std::str::from_utf8(oid).ok()?.parse().ok());
        match oid.and_then(|oid: u32| self.tablespaces.get(&oid)) {
            Some(TablespaceTarget::Link(directory)) => Spot::Elsewhere(directory.clone()),
            _ => Spot::Inside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let tablespaces = BTreeMap::from([
            (16400, TablespaceTarget::Link("/fast".into())),
            (16401, TablespaceTarget::Inside),
        ]);
        Layout::new(
            "/data".into(),
            tablespaces,
            Some("/wal".into()),
            "/extra".into(),
            vec!["/etc/postgresql".into()],
        )
    }

    #[test]
    fn paths_stay_below_their_roots() {
        let layout = layout();
        assert_eq!(layout.path(&TablePath::data(*b"base/1/2").unwrap()), Path::new("/data/base/1/2"));
        assert_eq!(layout.path(&TablePath::data(*b"").unwrap()), Path::new("/data"));
        let below = layout.path(&TablePath::data(*b"pg_tblspc/16400/PG_17_1/5/6").unwrap());
        assert_eq!(below, Path::new("/fast/PG_17_1/5/6"));
        assert_eq!(layout.path(&TablePath::data(*b"pg_wal/x").unwrap()), Path::new("/wal/x"));
        for own in ["pg_tblspc/16400", "pg_tblspc/16401/PG_17_1/5", "pg_wal"] {
            assert_eq!(layout.path(&TablePath::data(own).unwrap()), Path::new("/data").join(own));
        }
        let extra = TablePath { root: Root::Extra(0), ..TablePath::data(*b"main/pg_hba.conf").unwrap() };
        assert_eq!(layout.path(&extra), Path::new("/extra/0-postgresql/main/pg_hba.conf"));
        assert_eq!(layout.others(), [Path::new("/fast"), Path::new("/wal"), Path::new("/extra")]);
    }

    #[test]
    fn a_tablespace_holds_nothing_but_directories_of_versions() {
        let stray =
            |path: &str, is_directory| layout().is_stray(&TablePath::data(path).unwrap(), is_directory);
        assert!(!stray("pg_tblspc/16400", true) && !stray("pg_tblspc/16400/PG_17_202406281", true));
        assert!(!stray("pg_tblspc/16400/PG_17_202406281/5/16401", false) && !stray("base/5/1", false));
        assert!(stray("pg_tblspc/16400/authorized_keys", false) && stray("pg_tblspc/16400/x", true));
        assert!(stray("pg_tblspc/16400/PG_17_202406281", false));
    }

    #[test]
    fn what_a_server_writes_to_is_known() {
        let among = |path: &str| layout().is_among_data(&TablePath::data(path).unwrap());
        for data in ["base/5/16384", "global/1262", "pg_xact/0000", "pg_tblspc/16400/PG_17_202406281/5/1"] {
            assert!(among(data), "{data}");
        }
        for other in ["postgresql.conf", "pg_hba.conf", "conf.d/own.conf", "log", "log/a"] {
            assert!(!among(other), "{other}");
        }
        let extra = TablePath { root: Root::Extra(0), ..TablePath::data("base/5/16384").unwrap() };
        assert!(!layout().is_among_data(&extra));
    }

    #[test]
    fn linked_directories_go_where_they_were_told() {
        let spot = |path: &[u8]| layout().spot(&TablePath::data(path).unwrap());
        assert_eq!(spot(b"pg_tblspc/16400"), Spot::Elsewhere("/fast".into()));
        assert_eq!(spot(b"pg_tblspc/16401"), Spot::Inside);
        assert_eq!(spot(b"pg_tblspc/9"), Spot::Inside);
        assert_eq!(spot(b"pg_wal"), Spot::Elsewhere("/wal".into()));
        assert_eq!(spot(b"base"), Spot::Inside);
    }
}
