//! What lies in a directory, for comparisons.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything below a directory with its inode, owner, mode, size, times and, for a link, its target.
pub(crate) fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    walk(root, root, &mut |path, meta| {
        let link = fs::read_link(root.join(path)).unwrap_or_default();
        let (owner, mode) = ((meta.uid(), meta.gid()), meta.mode());
        let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        let text = format!("{} {owner:?} {mode:o} {} {times:?} {}", meta.ino(), meta.size(), link.display());
        found.insert(path.to_owned(), text);
    });
    found
}

/// Type and permissions of everything below a directory, and its owner.
pub(crate) fn modes(root: &Path) -> BTreeMap<PathBuf, (u32, u32, u32)> {
    let mut found = BTreeMap::new();
    walk(root, root, &mut |path, meta| {
        found.insert(path.to_owned(), (meta.mode(), meta.uid(), meta.gid()));
    });
    found
}

fn walk(root: &Path, at: &Path, seen: &mut dyn FnMut(&Path, &fs::Metadata)) {
    let meta = fs::symlink_metadata(at).unwrap();
    seen(at.strip_prefix(root).unwrap(), &meta);
    if meta.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            walk(root, &entry.unwrap().path(), seen);
        }
    }
}

/// What every file below a directory holds and where every link leads, links to tablespaces followed. Left out is what
/// differs between two restores of the same: where tablespaces are, and the random id of the recovery that begins.
pub(crate) fn contents(pgdata: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let at = pgdata.join(&path);
        let meta = fs::symlink_metadata(&at).unwrap();
        let space = path.parent() == Some(Path::new("pg_tblspc"));
        if meta.is_dir() || (space && meta.is_symlink()) {
            let entries = fs::read_dir(&at).unwrap().map(|entry| path.join(entry.unwrap().file_name()));
            // Another cluster's, see the tests.
            pending.extend(entries.filter(|path| !path.ends_with("PG_12_201909212")));
            found.insert(path, "directory".to_owned());
        } else if meta.is_symlink() {
            found.insert(path, format!("link to {}", fs::read_link(&at).unwrap().display()));
        } else if path != Path::new("tablespace_map") && path != Path::new("pg_wal/walpoint-origin") {
            let content = fs::read(&at).unwrap();
            let mut hasher = std::hash::DefaultHasher::new();
            std::hash::Hash::hash(&content, &mut hasher);
            let hash = std::hash::Hasher::finish(&hasher);
            found.insert(path, format!("{:o}, {} bytes, hash {hash:x}", meta.mode() & 0o777, content.len()));
        }
    }
    found
}

/// What is not the same in two of them, and how.
pub(crate) fn differing<'a>(
    one: &'a BTreeMap<PathBuf, String>,
    other: &'a BTreeMap<PathBuf, String>,
) -> Vec<(&'a Path, [Option<&'a String>; 2])> {
    let paths: BTreeSet<&PathBuf> = one.keys().chain(other.keys()).collect();
    let both = paths.into_iter().map(|path| (path.as_path(), [one.get(path), other.get(path)]));
    both.filter(|(_, [one, other])| one != other).collect()
}
