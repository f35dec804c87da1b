//! Files that appear whole: written under a temporary name beside the one they get, then renamed.
//!
//! Killed in the middle, this leaves a temporary file that is not locked; the next prefetcher or fetch into the same
//! directory removes it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

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

/// A file that is being written. Dropped before it is finished, it is removed.
#[derive(Debug)]
pub(crate) struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    finished: bool,
}

impl AtomicFile {
    /// Begins a file that will be `path`.
    pub(crate) fn begin(path: &Path) -> anyhow::Result<Self> {
        let temporary = durable::temporary_beside(path);
        let file = durable::create_locked(&temporary)
            .with_context(|| format!("{} cannot be created", temporary.display()))?;
        Ok(Self { file, temporary, path: path.to_owned(), finished: false })
    }

    /// Gives the file its name, replacing what is there.
    pub(crate) fn finish(mut self, durability: Durability) -> anyhow::Result<()> {
        let finished = match durability {
            Durability::Readers => durable::hand_over(&self.temporary, &self.path),
            Durability::Ours => {
                self.file.sync_all().and_then(|()| durable::rename(&self.temporary, &self.path))
            }
        };
        finished.with_context(|| format!("{} cannot be written", self.path.display()))?;
        self.finished = true;
        Ok(())
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
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
    file.write_all(content).with_context(|| format!("{} cannot be written", path.display()))?;
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
        assert!(land(&dir.path().join("directory"), b"", Durability::Readers).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing temporary is left");
    }
}
