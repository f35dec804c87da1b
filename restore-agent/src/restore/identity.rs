//! What a directory is, whatever it is called: links and mounts give one directory many names.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

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

/// Whether two paths lead to the same directory; if it does not exist, whether they would.
pub(crate) fn same(a: &Path, b: &Path) -> bool {
    match (Identity::of(a), Identity::of(b)) {
        (Some(a), Some(b)) => a == b,
        (None, None) => directory::resolve(a).is_ok_and(|a| directory::resolve(b).is_ok_and(|b| a == b)),
        _ => false,
    }
}

/// Whether a path lies within a directory, or leads to it.
pub(crate) fn lies_within(path: &Path, directory: &Path) -> bool {
    path.starts_with(directory)
        || Identity::of(directory)
            .is_some_and(|outer| path.ancestors().any(|ancestor| Identity::of(ancestor) == Some(outer)))
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
        assert!(lies_within(&path("link/inner/new"), &path("real")));
        assert!(
            lies_within(&path("real"), &path("link")) && !lies_within(&path("real"), &path("link/inner"))
        );
    }
}
