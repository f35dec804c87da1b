//! Calls into a data directory, on threads for blocking work.
//!
//! A call into a filesystem that hangs cannot be cancelled, and keeps its thread. What always holds: a data directory that hangs,
//! with all that lies in it, takes its own part of the threads and no more, and many of them leave some for each of the others, so
//! that the other clusters of the daemon go on; and what asks for one more is answered, with the directory's name. No call into a
//! data directory, the smallest included, is made elsewhere: the runtime has two workers for all clusters.

use std::any::TypeId;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use walpoint_runtime::human;
use walpoint_runtime::threads::BLOCKING_THREADS;
use walpoint_storage::RepoError;

/// Threads for one data directory.
const THREADS: usize = 16;

/// From so many calls in all on, a data directory gets no more than [`FEW`] threads: those that hang are many.
const MANY: usize = ALL - 256;
const FEW: usize = 2;

/// Threads for all data directories together: others remain for the stores.
const ALL: usize = BLOCKING_THREADS / 2;

/// How long a call waits for one of them. Threads that hang hold a paused clock up, so tests do without one.
const TIME_LIMIT: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(10) };

/// How long a call that only looks at something may take.
const LOOK: Duration = TIME_LIMIT;

static CALLS: Mutex<Calls> = Mutex::new(Calls { of: BTreeMap::new(), next: 0 });

/// Told whenever a call has returned.
static RETURNED: Notify = Notify::const_new();

thread_local! {
    /// The call that runs on this thread, if one does.
    static CURRENT: RefCell<Option<(Arc<Path>, u64)>> = const { RefCell::new(None) };
}

/// Why a call has no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// All threads of the directory are taken by calls that have not returned.
    #[error(
        "{path:?} does not answer: {calls} calls have not returned, the oldest for {}\nHINT: The \
         filesystem hangs: check its mount or its disk.",
        human::span(*oldest)
    )]
    Hangs {
        /// Which directory.
        path: PathBuf,
        /// How many calls.
        calls: usize,
        /// Since when.
        oldest: Duration,
    },
    /// All threads for data directories are taken by calls into others that have not returned.
    #[error(
        "no thread is left to read {path:?}: {calls} calls into the data directories of other clusters have not \
         returned\nHINT: Their filesystems hang: check the mounts or the disks."
    )]
    AllHang {
        /// Which directory.
        path: PathBuf,
        /// How many calls.
        calls: usize,
    },
    /// A call that only looks at something has not returned.
    #[error(
        "{path:?} does not answer within {} s\nHINT: The filesystem hangs: check its mount or its disk.",
        limit.as_secs()
    )]
    Silent {
        /// Which directory.
        path: PathBuf,
        /// How long was waited.
        limit: Duration,
    },
    /// It panicked, or the process ends.
    #[error("a worker thread ended before its work was done\nDETAIL: Its panic is in the log.")]
    Ended,
}

impl From<DiskError> for RepoError {
    fn from(error: DiskError) -> Self {
        Self::Internal(error.to_string())
    }
}

/// The calls that have not returned, by data directory.
#[derive(Debug)]
struct Calls {
    of: BTreeMap<Arc<Path>, BTreeMap<u64, Running>>,
    next: u64,
}

#[derive(Debug)]
struct Running {
    /// The type of its work: one for each place that looks at something.
    kind: TypeId,
    /// When it began, or got on last.
    since: Instant,
}

fn calls() -> MutexGuard<'static, Calls> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The data directory that a path is, or is a part of, by its name alone: asking the filesystem may hang.
fn data_directory(path: &Path) -> &Path {
    let wal = if path.ends_with("archive_status") { path.parent().unwrap_or(path) } else { path };
    if wal.ends_with("pg_wal") { wal.parent().unwrap_or(wal) } else { wal }
}

impl Calls {
    /// Begins a call, if there is a thread for it.
    fn begin(&mut self, of: &Arc<Path>, kind: TypeId) -> Option<u64> {
        let all: usize = self.of.values().map(BTreeMap::len).sum();
        let own = self.of.get(of).map_or(0, BTreeMap::len);
        if all >= ALL || own >= if all < MANY { THREADS } else { FEW } {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.of.entry(Arc::clone(of)).or_default().insert(id, Running { kind, since: Instant::now() });
        Some(id)
    }

    fn end(&mut self, of: &Arc<Path>, id: u64) {
        if let Some(own) = self.of.get_mut(of) {
            own.remove(&id);
            if own.is_empty() {
                self.of.remove(of);
            }
        }
    }

    fn progresses(&mut self, of: &Arc<Path>, id: u64) {
        if let Some(running) = self.of.get_mut(of).and_then(|own| own.get_mut(&id)) {
            running.since = Instant::now();
        }
    }

    fn oldest(&self, of: &Path) -> Option<Duration> {
        self.of.get(of)?.values().map(|running| running.since.elapsed()).max()
    }

    /// Whether a call of that kind has not returned for so long.
    fn hangs(&self, of: &Path, kind: TypeId, limit: Duration) -> bool {
        let own = self.of.get(of).into_iter().flat_map(BTreeMap::values);
        own.filter(|running| running.kind == kind).any(|running| running.since.elapsed() >= limit)
    }

    /// Why there is no thread.
    fn refusal(&self, path: &Path, of: &Path) -> DiskError {
        let path = path.to_owned();
        match self.of.get(of) {
            Some(own) => {
                DiskError::Hangs { path, calls: own.len(), oldest: self.oldest(of).unwrap_or_default() }
            }
            None => DiskError::AllHang { path, calls: self.of.values().map(BTreeMap::len).sum() },
        }
    }
}

/// A call, over when dropped.
struct Call {
    of: Arc<Path>,
    id: u64,
}

impl Call {
    /// Begins one as soon as there is a thread for it.
    async fn begin(directory: &Path, kind: TypeId) -> Result<Self, DiskError> {
        let of: Arc<Path> = data_directory(directory).into();
        let begun = async {
            loop {
                let mut returned = pin!(RETURNED.notified());
                returned.as_mut().enable();
                let begun = calls().begin(&of, kind);
                match begun {
                    Some(id) => return Self { of: Arc::clone(&of), id },
                    None => returned.await,
                }
            }
        };
        tokio::time::timeout(TIME_LIMIT, begun).await.map_err(|_| calls().refusal(directory, &of))
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        calls().end(&self.of, self.id);
        RETURNED.notify_waiters();
    }
}

/// A call on its thread, until dropped, also when its work panics.
struct OnThread {
    _call: Call,
}

impl OnThread {
    fn begin(call: Call) -> Self {
        CURRENT.set(Some((Arc::clone(&call.of), call.id)));
        Self { _call: call }
    }
}

impl Drop for OnThread {
    fn drop(&mut self) {
        CURRENT.take();
    }
}

/// The call on this thread gets on: one that reads a large file takes long, and does not hang.
pub(crate) fn progresses() {
    if let Some((of, id)) = CURRENT.with_borrow(Clone::clone) {
        calls().progresses(&of, id);
    }
}

/// Runs `work`, which reads or writes below `directory`, on one of the threads of its data directory. It is not cancelled with the
/// caller.
///
/// # Errors
///
/// [`DiskError::Hangs`] and [`DiskError::AllHang`] if none of them is free for some seconds.
pub(crate) async fn run<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    directory: &Path,
    work: F,
) -> Result<T, DiskError> {
    let call = Call::begin(directory, TypeId::of::<F>()).await?;
    let work = move || {
        let _call = OnThread::begin(call);
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| DiskError::Ended)
}

/// [`run`] for work that only looks at something, which takes no time where a filesystem answers.
///
/// # Errors
///
/// The same, and [`DiskError::Silent`] if it does not.
pub(crate) async fn look<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    directory: &Path,
    work: F,
) -> Result<T, DiskError> {
    look_within(LOOK, directory, work).await
}

/// [`look`] with another limit. Where a look of this kind has not returned for that long, another one takes no thread.
///
/// # Errors
///
/// The same.
pub(crate) async fn look_within<T: Send + 'static, F: FnOnce() -> T + Send + 'static>(
    limit: Duration,
    directory: &Path,
    work: F,
) -> Result<T, DiskError> {
    let silent = DiskError::Silent { path: directory.to_owned(), limit };
    if calls().hangs(data_directory(directory), TypeId::of::<F>(), limit) {
        return Err(silent);
    }
    match tokio::time::timeout(limit, run(directory, work)).await {
        Ok(done) => done,
        Err(_) => Err(silent),
    }
}

/// For how long the oldest call into a data directory, or into a part of it, has not returned.
pub(crate) fn oldest(directory: &Path) -> Option<Duration> {
    calls().oldest(data_directory(directory))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
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
        let under_way: Vec<_> =
            held.into_iter().map(|held| tokio::spawn(run(hangs, move || held.recv().is_err()))).collect();
        while oldest(hangs).is_none() || calls().of[hangs].len() < THREADS {
            tokio::task::yield_now().await;
        }
        let refused = run(hangs, || ()).await.unwrap_err();
        assert!(matches!(&refused, DiskError::Hangs { path, .. } if path == hangs), "{refused}");
        assert_eq!(run(answers, || 1).await.unwrap(), 1);
        assert!(oldest(answers).is_none());
        drop(release);
        for call in under_way {
            assert!(call.await.unwrap().unwrap());
        }
        assert!(oldest(hangs).is_none());
        run(hangs, || ()).await.unwrap();
    }

    #[tokio::test]
    async fn looks_of_one_kind_take_no_further_thread_while_one_of_them_hangs() {
        let (data, limit) = (Path::new("/looks"), Duration::from_millis(50));
        let (status, held) = (data.join("pg_wal/archive_status"), Arc::new(AtomicBool::new(true)));
        let look = |directory: PathBuf| {
            let held = Arc::clone(&held);
            let hangs = move || {
                while held.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            async move { look_within(limit, &directory, hangs).await }
        };
        look(data.to_owned()).await.unwrap_err();
        let begun = Instant::now();
        for _ in 0..THREADS {
            assert!(matches!(look(status.clone()).await, Err(DiskError::Silent { .. })));
        }
        assert!(begun.elapsed() < limit, "it is answered at once");
        assert_eq!(calls().of[data].len(), 1);
        assert!(oldest(&data.join("pg_wal")).is_some(), "it is one directory");
        assert_eq!(look_within(limit, &status, || 1).await.unwrap(), 1, "another kind is tried");
        held.store(false, Ordering::Relaxed);
    }

    #[test]
    fn many_directories_that_hang_leave_threads_for_the_others() {
        let mut calls = Calls { of: BTreeMap::new(), next: 0 };
        let kind = TypeId::of::<()>();
        let mut fill = |name: &str| {
            let of: Arc<Path> = Path::new(name).into();
            std::iter::from_fn(|| calls.begin(&of, kind)).count()
        };
        let hung: Vec<usize> = (0..120).map(|n| fill(&format!("/hangs/{n}"))).collect();
        assert_eq!((hung[0], hung[100]), (THREADS, FEW));
        assert_eq!(fill("/answers"), FEW);
        assert!(hung.iter().sum::<usize>() < ALL);
        (0..ALL).for_each(|n| {
            fill(&format!("/hangs as well/{n}"));
        });
        assert_eq!(fill("/late"), 0, "the stores keep theirs");
        assert!(matches!(calls.refusal(Path::new("/late"), Path::new("/late")), DiskError::AllHang { .. }));
    }

    #[test]
    fn what_lies_in_a_data_directory_belongs_to_it() {
        for part in ["/data", "/data/pg_wal", "/data/pg_wal/archive_status"] {
            assert_eq!(data_directory(Path::new(part)), Path::new("/data"));
        }
        assert_eq!(data_directory(Path::new("/data/archive_status")), Path::new("/data"));
        assert_eq!(data_directory(Path::new("/")), Path::new("/"));
    }
}
