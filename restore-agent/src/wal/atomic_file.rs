//! Files that appear whole: written under a temporary name beside the one they get, then renamed.
//!
//! Killed in the middle, this leaves a temporary file that is not locked; the next prefetcher or fetch into the same
//! directory removes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use walpoint_base::durable;

/// Who makes a file survive a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Durability {
    /// PostgreSQL syncs what it restores, and a spool is discarded after a crash.
    Readers,
    /// This process does: no reader will.
    Ours,
}

/// A file cannot be written where it is wanted: whoever has what belongs into it is not to blame.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unwritable(pub(crate) String);

/// Why a file could not be written, once it could not: what reads from an object and writes to a file has one error for both.
#[derive(Clone, Debug, Default)]
pub(crate) struct Trouble(Arc<OnceLock<String>>);

impl Trouble {
    /// That a file could not be written, if so; else the other error.
    pub(crate) fn or(&self, other: impl Into<anyhow::Error>) -> anyhow::Error {
        self.0.get().map_or_else(|| other.into(), |why| Unwritable(why.clone()).into())
    }
}

/// A file that is being written. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    finished: bool,
    trouble: Trouble,
}

impl AtomicFile {
    /// Begins a file that will be `path`.
    pub(crate) fn begin(path: &Path) -> anyhow::Result<Self> {
        let temporary = durable::temporary_beside(path);
        let file = durable::create_locked(&temporary)
            .map_err(|error| Unwritable(format!("{} cannot be created: {error}", temporary.display())))?;
        let trouble = Trouble::default();
        Ok(Self { file, temporary, path: path.to_owned(), finished: false, trouble })
    }

    /// Where it is noted that a write failed.
    pub(crate) fn trouble(&self) -> Trouble {
        self.trouble.clone()
    }

    fn unwritable(&self, error: &io::Error) -> Unwritable {
        Unwritable(format!("{} cannot be written: {error}", self.path.display()))
    }

    /// Gives the file its name, replacing what is there.
    pub(crate) fn finish(mut self, durability: Durability) -> anyhow::Result<()> {
        let finished = match durability {
            Durability::Readers => durable::hand_over(&self.temporary, &self.path),
            Durability::Ours => {
                self.file.sync_all().and_then(|()| durable::rename(&self.temporary, &self.path))
            }
        };
        finished.map_err(|error| self.unwritable(&error))?;
        self.finished = true;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted {
                self.trouble.0.get_or_init(|| self.unwritable(error).0);
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.finished {
            // Why it was given up is what to report.
            fs::remove_file(&self.temporary).ok();
        }
    }
}

/// Makes `path` a file with that content, all or nothing.
pub(crate) fn land(path: &Path, content: &[u8], durability: Durability) -> anyhow::Result<()> {
    let mut file = AtomicFile::begin(path)?;
    let trouble = file.trouble();
    file.write_all(content).map_err(|error| trouble.or(error))?;
    file.finish(durability)
}

/// Runs what waits for a disk on a thread that may.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("internal error: a worker ended before its work")?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_whole_or_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        land(&path, b"old", Durability::Readers).unwrap();
        land(&path, b"new", Durability::Ours).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mut begun = AtomicFile::begin(&path).unwrap();
        begun.write_all(b"half").unwrap();
        drop(begun);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(land(&dir.path().join("missing/x"), b"", Durability::Readers).is_err());
        fs::create_dir(dir.path().join("directory")).unwrap();
        let error = land(&dir.path().join("directory"), b"", Durability::Readers).unwrap_err();
        assert!(error.is::<Unwritable>(), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");
        let mut full = AtomicFile::begin(&path).unwrap();
        full.file = File::options().write(true).open("/dev/full").unwrap();
        let trouble = full.trouble();
        let error = full.write_all(b"x").unwrap_err();
        let error = trouble.or(error);
        assert!(error.is::<Unwritable>() && error.to_string().contains("No space left"), "{error}");
        assert!(!Trouble::default().or(io::Error::other("x")).is::<Unwritable>());
    }
}
