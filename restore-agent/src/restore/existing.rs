//! The data directory that lies where a cluster is to be restored: whose it is, and which directories outside belong to it.
//!
//! Nothing is changed here. What belongs to a data directory is proven by its own links, `pg_tblspc/<oid>` and `pg_wal`:
//! what no link of it leads to is somebody else's, whatever a command line says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walpoint_base::{SystemId, WalFileName};
use walpoint_pg::control::{CONTROL_FILE, ControlFile};

use super::directory::DirectoryError;
use super::identity::{self, Identity};
use super::owners::Owner;
use super::tablespaces::{self, TablespaceTarget};
use super::{directory, reach, running, workdir};

/// Bytes of a `pg_control` that are read; PostgreSQL's has 8 KiB.
const LONGEST_CONTROL: u64 = 64 << 10;

/// Where tablespaces are linked.
const TABLESPACES: &str = "pg_tblspc";

/// A data directory as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Existing {
    /// The cluster's identity; `None` if `pg_control` is missing or damaged.
    pub(crate) system_id: Option<SystemId>,
    /// Its tablespaces by oid: a link, with the directory it leads to, or a directory in the link's place.
    pub(crate) tablespaces: BTreeMap<u32, TablespaceTarget>,
    /// Where `pg_wal` leads, if it is a link.
    pub(crate) wal: Option<PathBuf>,
    /// The user id of the directory's owner, who makes its links.
    pub(crate) uid: u32,
}

impl Existing {
    /// Looks at a directory; `None` if it is no data directory: `PG_VERSION` makes one.
    pub(crate) fn look(pgdata: &Path) -> io::Result<Option<Self>> {
        if !pgdata.join("PG_VERSION").is_file() {
            return Ok(None);
        }
        let system_id = control(pgdata).map(|control| control.system_id);
        let mut tablespaces = BTreeMap::new();
        let entries = match fs::read_dir(pgdata.join(TABLESPACES)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            let Some(oid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let place = match link(&entry.path())? {
                Some(target) => TablespaceTarget::Link(target),
                None => TablespaceTarget::Inside,
            };
            tablespaces.insert(oid, place);
        }
        let (wal, uid) = (link(&pgdata.join("pg_wal"))?, fs::metadata(pgdata)?.uid());
        Ok(Some(Self { system_id, tablespaces, wal, uid }))
    }

    /// The link, relative to the data directory, that leads to a directory outside it. No link: it is not this cluster's. `user`:
    /// for whom root acts; for root a link proves nothing about a directory that is not its maker's own.
    pub(crate) fn link_to(&self, directory: &Path, user: Option<Owner>) -> Option<PathBuf> {
        if let Some(user) = user
            && !([0, user.uid].contains(&self.uid)
                && fs::metadata(directory).is_ok_and(|meta| meta.uid() == user.uid))
        {
            return None;
        }
        if self.wal.as_deref().is_some_and(|wal| identity::same(wal, directory)) {
            return Some(PathBuf::from("pg_wal"));
        }
        let leads = |place: &TablespaceTarget| matches!(place, TablespaceTarget::Link(target) if identity::same(target, directory));
        let (oid, _) = self.tablespaces.iter().find(|(_, place)| leads(place))?;
        Some(Path::new(TABLESPACES).join(oid.to_string()))
    }

    /// The same with some directories under other names.
    pub(crate) fn renamed(mut self, name: impl Fn(&Path) -> Option<PathBuf>) -> Self {
        let links = self.tablespaces.values_mut().filter_map(|place| match place {
            TablespaceTarget::Link(target) => Some(target),
            TablespaceTarget::Inside => None,
        });
        for target in links.chain(self.wal.as_mut()) {
            if let Some(new) = name(target) {
                *target = new;
            }
        }
        self
    }
}

/// A data directory's `pg_control`; `None` if it is missing or damaged.
pub(super) fn control(pgdata: &Path) -> Option<ControlFile> {
    let mut control = Vec::new();
    let file = reach::plain(&pgdata.join(CONTROL_FILE)).ok()?;
    file.take(LONGEST_CONTROL).read_to_end(&mut control).ok()?;
    ControlFile::parse(&control).ok()
}

/// Where a link leads; `None` if it is none. The administrator's own spelling is kept: a directory may get its name from a
/// link further up.
fn link(path: &Path) -> io::Result<Option<PathBuf>> {
    let target = match fs::read_link(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
            return Ok(None);
        }
        target => target?,
    };
    if tablespaces::plain_absolute(&target) {
        return Ok(Some(target));
    }
    // Relative to where the link lies.
    let target = path.parent().unwrap_or(Path::new("/")).join(target);
    match directory::resolve(&target) {
        // It leads nowhere. Only where something is to be written there does that matter.
        Err(DirectoryError::Nowhere { .. }) => Ok(Some(target)),
        resolved => resolved.map(Some).map_err(io::Error::other),
    }
}

/// Files that wait in a data directory's `pg_wal` to be archived and that recovery may need, in order: all but those about backups.
pub(crate) fn waiting(pgdata: &Path) -> io::Result<Vec<WalFileName>> {
    let entries = match fs::read_dir(pgdata.join("pg_wal/archive_status")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut waiting = BTreeSet::new();
    for entry in entries {
        let name = entry?.file_name();
        waiting.extend(name.to_str().and_then(|n| n.strip_suffix(".ready")?.parse::<WalFileName>().ok()));
    }
    waiting.retain(|name| !matches!(name, WalFileName::Backup(..)));
    Ok(waiting.into_iter().collect())
}

/// The data directory within which a place lies, other than itself.
pub(crate) fn around(place: &Path) -> Option<&Path> {
    let is_data = |at: &&Path| at.join("PG_VERSION").is_file() && at.join("global").is_dir();
    place.ancestors().skip(1).find(is_data)
}

/// A server that runs on another data directory and whose links lead to one of these directories: that directory, and the
/// server's. A copy of a data directory has the original's links. What a server uses whose directory does not answer is not known.
pub(crate) fn used_by_another_server(pgdata: &Path, directories: &[PathBuf]) -> Option<(PathBuf, PathBuf)> {
    let own = Identity::of(pgdata);
    let wanted: Vec<(Identity, &PathBuf)> =
        directories.iter().filter_map(|directory| Some((Identity::of(directory)?, directory))).collect();
    let mut seen = BTreeSet::new();
    let around: Vec<&Path> = wanted.iter().map(|(_, found)| found.as_path()).chain([pgdata]).collect();
    for process in running::processes_around(&around) {
        // A postmaster's working directory is its data directory. It may be called otherwise where the server runs.
        let Some(server) = workdir::look(&process, Identity::of)
            .flatten()
            .filter(|server| Some(*server) != own && seen.insert(*server))
        else {
            continue;
        };
        let root = process.join("root");
        let used = workdir::look(&process, move |cwd| {
            cwd.join("postmaster.pid").is_file().then(|| linked(cwd, &root))
        });
        let Some(used) = used.flatten() else { continue };
        if let Some((_, directory)) =
            wanted.iter().find(|(identity, _)| *identity == server || used.contains(identity))
        {
            let cwd = process.join("cwd");
            return Some(((*directory).clone(), fs::read_link(&cwd).unwrap_or(cwd)));
        }
    }
    None
}

/// The directories that the links of a data directory lead to, in the mounts of the process whose root that is and in ours.
pub(super) fn linked(pgdata: &Path, root: &Path) -> BTreeSet<Identity> {
    let spaces = fs::read_dir(pgdata.join(TABLESPACES)).into_iter().flatten().flatten();
    let links = spaces.map(|entry| entry.path()).chain([pgdata.join("pg_wal")]);
    let mut found = BTreeSet::new();
    for link in links {
        let Ok(target) = fs::read_link(&link) else { continue };
        let there = target.strip_prefix("/").map(|target| root.join(target));
        found.extend(there.ok().and_then(|there| Identity::of(&there)));
        found.extend(Identity::of(&link));
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use walpoint_base::durable;

    use super::*;

    #[test]
    fn what_a_data_directory_links_to_belongs_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let pgdata = root.join("data");
        fs::create_dir_all(pgdata.join("pg_tblspc")).unwrap();
        assert_eq!(Existing::look(&pgdata).unwrap(), None);
        durable::create(&pgdata.join("PG_VERSION"), b"17\n").unwrap();
        fs::create_dir_all(root.join("fast")).unwrap();
        symlink(root.join("fast"), root.join("alias")).unwrap();
        symlink(root.join("alias"), pgdata.join("pg_tblspc/16402")).unwrap();
        fs::create_dir_all(pgdata.join("pg_tblspc/16401")).unwrap();
        symlink("../wal", pgdata.join("pg_wal")).unwrap();
        let existing = Existing::look(&pgdata).unwrap().unwrap();
        assert_eq!(existing.system_id, None);
        assert_eq!(existing.tablespaces[&16401], TablespaceTarget::Inside);
        assert_eq!(
            existing.tablespaces[&16402],
            TablespaceTarget::Link(root.join("alias")),
            "the spelling is kept"
        );
        assert_eq!(existing.link_to(&root.join("fast"), None), Some("pg_tblspc/16402".into()));
        assert_eq!(existing.link_to(&root.join("other"), None), None);
        let renamed = existing.renamed(|path| (path == root.join("alias")).then(|| root.join("slow")));
        assert_eq!(renamed.link_to(&root.join("slow"), None), Some("pg_tblspc/16402".into()));
        assert_eq!(renamed.link_to(&root.join("fast"), None), None);
    }

    #[test]
    fn what_lies_within_a_data_directory_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let pgdata = dir.path().join("data");
        fs::create_dir_all(pgdata.join("global")).unwrap();
        assert_eq!(around(&pgdata.join("new/data")), None);
        durable::create(&pgdata.join("PG_VERSION"), b"17\n").unwrap();
        assert_eq!(around(&pgdata.join("new/data")), Some(pgdata.as_path()));
        assert_eq!(around(&pgdata), None);
    }

    #[test]
    fn files_that_wait_are_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(waiting(dir.path()).unwrap().is_empty());
        let status = dir.path().join("pg_wal/archive_status");
        fs::create_dir_all(&status).unwrap();
        for name in [
            "00000002.history.ready",
            "000000010000000000000002.done",
            "000000010000000000000003.ready",
            "000000010000000000000003.00000028.backup.ready",
            "000000010000000000000004.partial.ready",
        ] {
            durable::create(&status.join(name), b"").unwrap();
        }
        let found: Vec<String> = waiting(dir.path()).unwrap().iter().map(ToString::to_string).collect();
        let expected = ["000000010000000000000003", "00000002.history", "000000010000000000000004.partial"];
        assert_eq!(found, expected);
    }
}
