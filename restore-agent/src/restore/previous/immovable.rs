//! Whether a directory can be moved aside, found out before anything is moved.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::anyhow;

/// Why a directory cannot be renamed within its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::restore) enum Immovable {
    /// It has no parent.
    Root,
    /// It is a filesystem of its own.
    MountPoint,
    /// Nothing may be written to its parent.
    ReadOnly { parent: PathBuf },
    /// Whether it can could not be found out.
    Unknown {
        /// What cannot be looked at: the directory, or its parent.
        path: PathBuf,
        /// Why.
        error: String,
    },
}

impl Immovable {
    /// Looks at a directory and its parent; `None` if nothing keeps it where it is.
    pub(in crate::restore) fn look(directory: &Path) -> Option<Self> {
        let Some(parent) = directory.parent() else { return Some(Self::Root) };
        let device = |path: &Path| {
            let unknown =
                |error: io::Error| Self::Unknown { path: path.to_owned(), error: error.to_string() };
            fs::metadata(path).map(|meta| meta.dev()).map_err(unknown)
        };
        match (device(directory), device(parent)) {
            (Err(unknown), _) | (Ok(_), Err(unknown)) => return Some(unknown),
            (Ok(own), Ok(above)) if own != above => return Some(Self::MountPoint),
            (Ok(_), Ok(_)) => {}
        }
        let write = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        let is_denied = rustix::fs::access(parent, write).is_err();
        is_denied.then(|| Self::ReadOnly { parent: parent.to_owned() })
    }

    /// Says it of a directory.
    pub(in crate::restore) fn explain(&self, directory: &Path) -> anyhow::Error {
        let shown = directory.display();
        let hint = "nothing was changed\nHINT: Use --delta, or put the new one elsewhere.";
        match self {
            Self::Root => anyhow!("{shown} is the root directory and cannot be renamed"),
            Self::MountPoint => anyhow!("{shown} is a mount point, which cannot be renamed: {hint}"),
            Self::ReadOnly { parent } => {
                anyhow!("{shown} cannot be renamed, because {} is not writable: {hint}", parent.display())
            }
            Self::Unknown { path, error } => anyhow!("{error}").context(path.display().to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_moved_is_found_out_and_said() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Immovable::look(dir.path()), None);
        assert_eq!(Immovable::look(Path::new("/")), Some(Immovable::Root));
        assert_eq!(Immovable::look(Path::new("/proc")), Some(Immovable::MountPoint));
        let missing = dir.path().join("missing");
        let unknown = Immovable::look(&missing).unwrap();
        assert!(matches!(&unknown, Immovable::Unknown { path, .. } if *path == missing));
        let read_only = Immovable::ReadOnly { parent: "/".into() };
        for immovable in [Immovable::Root, Immovable::MountPoint, read_only, unknown] {
            let error = format!("{:#}", immovable.explain(&missing));
            assert!(error.starts_with(&missing.display().to_string()), "{immovable:?}: {error}");
        }
    }
}
