//! What a directory is, whatever it is called: links and mounts give one directory many names.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::directory;

/// The device and the inode of a directory that exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// Of what a path leads to; `None` if nothing is there, or it cannot be looked at.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        fs::metadata(path).ok().map(|meta| Self::from(&meta))
    }
}

impl From<&Metadata> for Identity {
    fn from(meta: &Metadata) -> Self {
        Self { device: meta.dev(), inode: meta.ino() }
    }
}

/// The inode of a directory, by which a record in it knows it again: whatever it is called and wherever it is mounted. `None` if it cannot
/// be looked at.
pub(crate) fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// Whether two paths lead to the same directory; if it does not exist, whether they would.
pub(crate) fn same(a: &Path, b: &Path) -> bool {
    match (Identity::of(a), Identity::of(b)) {
        (Some(a), Some(b)) => a == b,
        (None, None) => directory::resolve(a).is_ok_and(|a| directory::resolve(b).is_ok_and(|b| a == b)),
        _ => false,
    }
}

/// A path with what it leads to and what lies above it: by that alone it is known whether one directory lies within another,
/// whatever they are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Position {
    path: PathBuf,
    /// Of the path and of each one above it; `None` where nothing is, or it cannot be looked at.
    identities: Vec<Option<Identity>>,
}

impl Position {
    /// Looks at a path and at those above it.
    pub(crate) fn of(path: PathBuf) -> Self {
        let identities = path.ancestors().map(Identity::of).collect();
        Self { path, identities }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the path leads to, if something is there.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identities.first().copied().flatten()
    }

    /// What lies above the path, innermost first.
    pub(crate) fn above(&self) -> impl Iterator<Item = Identity> {
        self.identities.iter().skip(1).copied().flatten()
    }

    /// The nearest path above it that leads to something.
    pub(crate) fn nearest_above(&self) -> Option<&Path> {
        let mut above = self.path.ancestors().zip(&self.identities).skip(1);
        above.find(|(_, identity)| identity.is_some()).map(|(path, _)| path)
    }

    /// Whether it lies within a directory, or is that.
    pub(crate) fn lies_within(&self, directory: &Self) -> bool {
        self.path.starts_with(&directory.path)
            || directory.identity().is_some_and(|outer| self.identities.contains(&Some(outer)))
    }
}

/// Positions without a filesystem.
#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    /// A path of which this many of the outermost directories exist, `/` included; their inodes are these.
    pub(crate) fn position(path: &str, inodes: &[u64]) -> Position {
        let path = PathBuf::from(path);
        let missing = path.ancestors().count() - inodes.len();
        let found = inodes.iter().rev().map(|inode| Some(Identity { device: 1, inode: *inode }));
        let identities = std::iter::repeat_n(None, missing).chain(found).collect();
        Position { path, identities }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn names_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("real/inner")).unwrap();
        symlink(path("real"), path("link")).unwrap();
        assert!(same(&path("real/inner"), &path("link/inner")));
        assert!(same(&path("real/new"), &path("link/new")) && !same(&path("real/new"), &path("real/old")));
        assert!(!same(&path("real"), &path("real/inner")) && !same(&path("real"), &path("real/new")));
    }

    #[test]
    fn a_position_lies_within_what_is_above_it_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("real/inner")).unwrap();
        symlink(dir.path().join("real"), dir.path().join("link")).unwrap();
        let at = |name: &str| Position::of(dir.path().join(name));
        assert!(at("link/inner/new").lies_within(&at("real")) && at("real").lies_within(&at("link")));
        assert!(!at("real").lies_within(&at("link/inner")) && !at("real/new").lies_within(&at("real/inner")));
        assert!(at("real/new/deep").lies_within(&at("real/new")), "by name, where nothing is");
        assert_eq!(at("real/new/deep").nearest_above(), Some(dir.path().join("real").as_path()));
        assert_eq!((at("real/new").identity(), at("link").identity()), (None, at("real").identity()));
        assert_eq!(at("link/inner").above().next(), at("real").identity());
    }
}
