//! The directory in which prefetched files wait for PostgreSQL, `pg_wal/walpoint-spool`.
//!
//! ```text
//! lock       locked by the prefetcher that owns the spool
//! target     the note that `restore` left, here also if the spool lies elsewhere
//! ready/     verified files under the names that PostgreSQL asks for
//! history/   what a standby keeps of the histories it has seen
//! ```
//!
//! A file in `ready` is whole and verified by the process that holds the lock, or it has a temporary name. Nothing found
//! at the start is believed: a kill, a power cut or pg_rewind may have left anything. It is moved aside at once and deleted
//! in the background, so that the first answer does not wait for thousands of files.
//!
//! Where the server is gone, no name is removed either. `pg_rewind` may be at work by then: it lists the directory first, removes what
//! the new primary does not have later, and fails if one of these files is missing.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use walpoint_base::{WalFileName, durable};

use crate::wal::note::TargetNote;

/// The spool's name in `pg_wal`.
pub const DIRECTORY: &str = "walpoint-spool";

const READY: &str = "ready";
const LOCK: &str = "lock";
const DISCARDED: &str = "discarded-";

/// A spool that this process owns.
#[derive(Debug)]
pub(crate) struct Spool {
    root: PathBuf,
    ready: PathBuf,
    lock: File,
}

impl Spool {
    /// Takes the spool over, empty; `None` if another process owns it.
    pub(crate) fn open(root: &Path) -> io::Result<Option<Self>> {
        let Some(lock) = take_lock(root)? else { return Ok(None) };
        let ready = root.join(READY);
        if ready.exists() {
            durable::hand_over(&ready, &free_name(root))?;
        }
        fs::create_dir(&ready)?;
        Ok(Some(Self { root: root.to_owned(), ready, lock }))
    }

    /// Deletes what [`Spool::open`] found and moved aside.
    pub(crate) fn delete_discarded(root: &Path) -> io::Result<()> {
        for entry in fs::read_dir(root)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(DISCARDED) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        durable::remove_abandoned(root).map(drop)
    }

    /// Where a verified file waits.
    pub(crate) fn path(&self, name: WalFileName) -> PathBuf {
        self.ready.join(name.to_string())
    }

    /// The path of a waiting file as `restore-fetch` can use it: relative to `pg_wal` where the spool lies in it, because
    /// the client may see that directory under another path.
    pub(crate) fn path_for_client(&self, name: WalFileName, wal: &Path) -> String {
        let path = self.path(name);
        path.strip_prefix(wal).unwrap_or(&path).to_string_lossy().into_owned()
    }

    /// The size of a waiting file, if it is there.
    pub(crate) fn size_of(&self, name: WalFileName) -> Option<u64> {
        fs::metadata(self.path(name)).ok().map(|meta| meta.len())
    }

    /// Removes a waiting file; one that was taken is no error.
    pub(crate) fn remove(&self, name: WalFileName) -> io::Result<()> {
        match fs::remove_file(self.path(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether this is still the directory that was taken over: a restore may have replaced it.
    pub(crate) fn is_ours(&self) -> bool {
        same_file(&self.lock, &self.root.join(LOCK))
    }

    /// Bytes that other processes than root can still write on the spool's filesystem.
    pub(crate) fn free_bytes(&self) -> io::Result<u64> {
        let found = rustix::fs::statvfs(&self.root)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Gives the space of all waiting files back and leaves their names.
    pub(crate) fn empty(&self) -> io::Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if (name == READY || name.starts_with(DISCARDED)) && entry.file_type()?.is_dir() {
                empty_files(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Cleans up: everything but a standby's histories goes. The note stays while
    /// recovery may go on.
    pub(crate) fn close(&self, recovery_is_over: bool) -> io::Result<()> {
        if !self.is_ours() {
            return Ok(());
        }
        // Moved aside first: a transfer that has not heard of the end yet finds no place for another file.
        durable::hand_over(&self.ready, &free_name(&self.root))?;
        Self::delete_discarded(&self.root)?;
        if recovery_is_over {
            TargetNote::remove(&self.root)?;
        }
        fs::remove_file(self.root.join(LOCK))?;
        match fs::remove_dir(&self.root) {
            // The note or the histories stay, or the next prefetcher is here already.
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
            other => other,
        }
    }
}

/// Empties the files of a directory. It and any of them may be gone meanwhile.
fn empty_files(directory: &Path) -> io::Result<()> {
    let gone_is_fine = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => return gone_is_fine(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let emptied = OpenOptions::new().write(true).truncate(true).open(entry.path());
            emptied.map(drop).or_else(gone_is_fine)?;
        }
    }
    Ok(())
}

/// Locks `root/lock`, creating both; `None` if it is locked by another process.
fn take_lock(root: &Path) -> io::Result<Option<File>> {
    let path = root.join(LOCK);
    loop {
        durable::create_directories(root)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = match file {
            // A prefetcher that ends removed the directory in between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other?,
        };
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // A prefetcher that ends removed the file in between: the lock is on a name that is gone.
        if same_file(&file, &path) {
            return Ok(Some(file));
        }
    }
}

fn same_file(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (file.metadata(), fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (named.dev(), named.ino())
}

fn free_name(root: &Path) -> PathBuf {
    let mut n = 0u32;
    loop {
        let path = root.join(format!("{DISCARDED}{n}"));
        if !path.exists() {
            return path;
        }
        n = n.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> WalFileName {
        "000000010000000000000002".parse().unwrap()
    }

    #[test]
    fn what_is_found_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(DIRECTORY);
        let spool = Spool::open(&root).unwrap().unwrap();
        durable::create(&spool.path(name()), b"half").unwrap();
        drop(spool);
        let spool = Spool::open(&root).unwrap().unwrap();
        assert_eq!(spool.size_of(name()), None);
        assert!(root.join("discarded-0").exists());
        Spool::delete_discarded(&root).unwrap();
        assert!(!root.join("discarded-0").exists() && spool.is_ours());
    }

    #[test]
    fn there_is_one_owner_and_it_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(DIRECTORY);
        let spool = Spool::open(&root).unwrap().unwrap();
        assert!(Spool::open(&root).unwrap().is_none());
        durable::create(&spool.path(name()), b"whole").unwrap();
        assert_eq!(
            spool.path_for_client(name(), dir.path()),
            "walpoint-spool/ready/000000010000000000000002"
        );
        assert!(spool.path_for_client(name(), Path::new("/elsewhere")).starts_with('/'));
        spool.close(true).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn where_the_server_is_gone_names_stay_and_space_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(DIRECTORY);
        drop(Spool::open(&root).unwrap().unwrap());
        durable::create(&root.join("ready/000000010000000000000001"), b"old").unwrap();
        durable::create(&root.join("target"), b"note").unwrap();
        let spool = Spool::open(&root).unwrap().unwrap();
        durable::create(&spool.path(name()), b"whole").unwrap();
        spool.empty().unwrap();
        let size = |file: &str| fs::metadata(root.join(file)).unwrap().len();
        assert_eq!(spool.size_of(name()), Some(0));
        assert_eq!((size("discarded-0/000000010000000000000001"), size("target"), size("lock")), (0, 4, 0));
        drop(spool);
        let next = Spool::open(&root).unwrap().unwrap();
        Spool::delete_discarded(&root).unwrap();
        next.close(true).unwrap();
        assert!(!root.exists(), "the next prefetcher removes it");
    }

    #[test]
    fn a_replaced_directory_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(DIRECTORY);
        let old = Spool::open(&root).unwrap().unwrap();
        fs::remove_dir_all(&root).unwrap();
        let new = Spool::open(&root).unwrap().unwrap();
        durable::create(&new.path(name()), b"whole").unwrap();
        assert!(!old.is_ours());
        old.close(true).unwrap();
        assert_eq!(new.size_of(name()), Some(5));
    }
}
