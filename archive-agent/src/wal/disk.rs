//! Calls into a data directory, on threads for blocking work.
//!
//! A call into a filesystem that hangs cannot be cancelled, and keeps its thread. What always holds: a directory that hangs takes
//! its own part of the threads and no more, so that the other clusters of the daemon go on; and what asks for one more is
//! answered, with the directory's name. No call into a data directory, the smallest included, is made elsewhere: the runtime has
//! two workers for all clusters.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use walpoint_runtime::human;
use walpoint_storage::RepoError;

/// Threads for one directory.
const THREADS: usize = 16;

/// How long a call waits for one of them. Threads that hang hold a paused clock up, so tests do without one.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };

/// How long a call that only looks at something may take.
const LOOK: Duration = PATIENCE;

static DIRECTORIES: LazyLock<Mutex<HashMap<PathBuf, Arc<Directory>>>> = LazyLock::new(Mutex::default);

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// All threads of the directory are taken by calls that have not returned.
    #[error(
        "{path:?} does not answer: {THREADS} calls have not returned, the oldest for {}; HINT: the filesystem hangs, look at its \
         mount or its disk",
        human::span(*oldest)
    )]
    Hangs {
        /// Which directory.
        path: PathBuf,
        /// Since when.
        oldest: Duration,
    },
    /// A call that only looks at something has not returned.
    #[error(
        "{path:?} does not answer within {} s; HINT: the filesystem hangs, look at its mount or its disk",
        limit.as_secs()
    )]
    Silent {
        /// Which directory.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// It panicked, or the process ends.
    #[error("a worker thread ended before its work was done; its panic is in the log")]
    Ended,
}

impl From<DiskError> for RepoError {
    fn from(error: DiskError) -> Self {
        Self::Internal(error.to_string())
    }
}

#[derive(Debug)]
struct Directory {
    threads: Arc<Semaphore>,
    /// When each call began that has not returned.
    calls: Mutex<BTreeMap<u64, Instant>>,
}

impl Directory {
    fn of(path: &Path) -> Arc<Self> {
        let mut directories = DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = directories.get(path) {
            return Arc::clone(known);
        }
        let new = Self { threads: Arc::new(Semaphore::new(THREADS)), calls: Mutex::default() };
        Arc::clone(directories.entry(path.to_owned()).or_insert(Arc::new(new)))
    }

    fn calls(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn oldest(&self) -> Option<Duration> {
        self.calls().values().map(Instant::elapsed).max()
    }
}

/// A call, over when dropped.
struct Call {
    of: Arc<Directory>,
    id: u64,
}

impl Call {
    fn begin(of: Arc<Directory>) -> Self {
        let mut calls = of.calls();
        let id = calls.last_key_value().map_or(0, |(last, _)| last + 1);
        calls.insert(id, Instant::now());
        drop(calls);
        Self { of, id }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.of.calls().remove(&self.id);
    }
}

/// Runs `work`, which reads or writes below `directory`, on one of the directory's threads. It is not cancelled with the caller.
///
/// # Errors
///
/// [`DiskError::Hangs`] if none of them is free for some seconds.
pub(crate) async fn run<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DiskError> {
    let of = Directory::of(directory);
    let thread = match tokio::time::timeout(PATIENCE, Arc::clone(&of.threads).acquire_owned()).await {
        Ok(thread) => thread.map_err(|_| DiskError::Ended)?,
        Err(_) => {
            let oldest = of.oldest().unwrap_or_default();
            return Err(DiskError::Hangs { path: directory.to_owned(), oldest });
        }
    };
    let call = Call::begin(of);
    let work = move || {
        let done = work();
        drop((call, thread));
        done
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| DiskError::Ended)
}

/// [`run`] for work that only looks at something, which takes no time where a filesystem answers.
///
/// # Errors
///
/// [`DiskError::Hangs`] and [`DiskError::Silent`] if it does not.
pub(crate) async fn look<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DiskError> {
    look_within(LOOK, directory, work).await
}

/// [`look`] with another limit.
///
/// # Errors
///
/// The same.
pub(crate) async fn look_within<T: Send + 'static>(
    limit: Duration,
    directory: &Path,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, DiskError> {
    match tokio::time::timeout(limit, run(directory, work)).await {
        Ok(done) => done,
        Err(_) => Err(DiskError::Silent { path: directory.to_owned(), limit }),
    }
}

/// For how long the oldest call into a directory has not returned.
pub(crate) fn oldest(directory: &Path) -> Option<Duration> {
    Directory::of(directory).oldest()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_look_ends_in_time() {
        let (release, held) = mpsc::channel::<()>();
        let silent =
            look_within(Duration::from_millis(50), Path::new("/silent"), move || held.recv().is_err()).await;
        assert!(
            matches!(&silent, Err(DiskError::Silent { path, .. }) if path == Path::new("/silent")),
            "{silent:?}"
        );
        assert!(oldest(Path::new("/silent")).is_some(), "it keeps its thread");
        drop(release);
    }

    #[tokio::test]
    async fn a_directory_that_hangs_keeps_its_own_threads_and_no_others() {
        let (hangs, answers) = (Path::new("/hangs"), Path::new("/answers"));
        let (release, held): (Vec<_>, Vec<_>) = (0..THREADS).map(|_| mpsc::channel::<()>()).unzip();
        let calls: Vec<_> =
            held.into_iter().map(|held| tokio::spawn(run(hangs, move || held.recv().is_err()))).collect();
        while oldest(hangs).is_none() || Directory::of(hangs).calls().len() < THREADS {
            tokio::task::yield_now().await;
        }
        let refused = run(hangs, || ()).await.unwrap_err();
        assert!(matches!(&refused, DiskError::Hangs { path, .. } if path == hangs), "{refused}");
        assert_eq!(run(answers, || 1).await.unwrap(), 1);
        assert!(oldest(answers).is_none());
        drop(release);
        for call in calls {
            assert!(call.await.unwrap().unwrap());
        }
        assert!(oldest(hangs).is_none());
        run(hangs, || ()).await.unwrap();
    }
}
