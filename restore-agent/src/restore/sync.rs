//! Making what a restore wrote durable.
//!
//! One `syncfs` for each filesystem costs one commit of its journal where an fsync for each file costs thousands. It counts
//! only where Linux reports through it what could not be written: since 5.17, on filesystems that are known to do so, and
//! only to somebody who opened the filesystem before the writing began. Elsewhere every file is synced by itself.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Filesystems whose `syncfs` waits for the disk and reports its errors, by the type that `statfs` gives: ext4, XFS, Btrfs,
/// and memory, which has no disk. On network filesystems and FUSE it may return before the server has anything.
const KNOWN: [i64; 4] = [0xEF53, 0x5846_5342, 0x9123_683E, 0x0102_1994];

/// The first version of Linux whose `syncfs` reports every error.
const SINCE: (u32, u32) = (5, 17);

/// The filesystems that a restore writes to.
#[derive(Debug)]
pub(crate) struct Filesystems {
    /// A directory on each; `None` if files have to be synced one by one.
    open: Option<Vec<(PathBuf, File)>>,
}

impl Filesystems {
    /// Opens the filesystems of directories that exist, before anything is written.
    pub(crate) fn open<'a>(directories: impl IntoIterator<Item = &'a Path>) -> io::Result<Self> {
        if !reports_errors(&rustix::system::uname().release().to_string_lossy()) {
            return Ok(Self { open: None });
        }
        let (mut open, mut devices) = (Vec::new(), BTreeSet::new());
        for path in directories {
            // What is no directory by now is not waited for.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = File::from(rustix::fs::open(path, flags, Mode::empty())?);
            if !devices.insert(directory.metadata()?.dev()) {
                continue;
            }
            let kind = rustix::fs::fstatfs(&directory)?.f_type;
            #[allow(clippy::useless_conversion, reason = "its width depends on the machine")]
            if !KNOWN.contains(&i64::from(kind)) {
                return Ok(Self { open: None });
            }
            open.push((path.to_owned(), directory));
        }
        Ok(Self { open: Some(open) })
    }

    /// Whether [`Self::sync`] makes files durable; if not, each of them has to be synced.
    pub(crate) fn at_once(&self) -> bool {
        self.open.is_some()
    }

    /// Makes everything durable that was written since they were opened, if it can be done at once.
    pub(crate) fn sync(&self) -> Result<(), (PathBuf, io::Error)> {
        for (path, directory) in self.open.iter().flatten() {
            rustix::fs::syncfs(directory).map_err(|error| (path.clone(), error.into()))?;
        }
        Ok(())
    }
}

/// Whether the `syncfs` of a Linux of that release reports every error.
fn reports_errors(release: &str) -> bool {
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    version.is_some_and(|version| version >= SINCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_kernels_and_unknown_filesystems_sync_file_by_file() {
        for (release, reports) in [
            ("6.18.44-x", true),
            ("5.17.0", true),
            ("5.16.20", false),
            ("4.18.0-553.el8", false),
            ("x", false),
        ] {
            assert_eq!(reports_errors(release), reports, "{release}");
        }
        let proc = Filesystems::open([Path::new("/proc")]).unwrap();
        assert!(!proc.at_once());
        proc.sync().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let own = Filesystems::open([dir.path(), dir.path()]).unwrap();
        own.sync().unwrap();
        assert!(own.open.is_none_or(|open| open.len() == 1));
    }
}
