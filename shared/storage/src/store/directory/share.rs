//! How many threads, and how much memory, the calls into one place may take.
//!
//! A call into a filesystem that hangs cannot be cancelled: the request may have timed out long ago, and it keeps its thread, and
//! what it writes, until it returns. What always holds: one place takes no more than its share, and many that hang leave some
//! threads to each of the others. What is mounted in the place of a filesystem that hangs has a share of its own.

use std::collections::HashMap;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinError;
use tokio_util::task::AbortOnDropHandle;

use crate::store::failure::{Failure, FailureKind};

/// Threads that one place takes at the most.
const THREADS: usize = 16;

/// Of these, how many are its own. The others are taken from [`SHARED`]: many places that hang leave these two to each of the others.
const OWN: usize = 2;

/// Threads for all places together, beside what each has of its own: the runtime has some more.
static SHARED: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(512)));

/// A call that has waited so long for a thread looks whether its filesystem is still the one that is mounted.
const WAITS: Duration = Duration::from_secs(1);

/// KiB of what is being written to one place: one object of the largest size.
const WRITING: u32 = 32 << 10;

static SHARES: LazyLock<Mutex<HashMap<Spot, Arc<Share>>>> = LazyLock::new(Mutex::default);

/// What has a share.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) enum Spot {
    /// A path at which a directory is looked for, and the mount on which it lies: a look that hangs in one mount takes nothing from
    /// those into the next one.
    Path(PathBuf, Option<u64>),
    /// A directory, by device, inode and mount. NFS gives the same device to two mounts of one export.
    Directory(u64, u64, Option<u64>),
}

/// What one place may take of this process, over all stores that are opened there.
#[derive(Debug)]
pub(super) struct Share {
    threads: Arc<Semaphore>,
    /// Of these, what it has where other places have all that are [`SHARED`].
    own: Arc<Semaphore>,
    /// KiB that are being written.
    writing: Arc<Semaphore>,
}

/// A thread, and memory for what is written, until dropped.
#[derive(Debug)]
struct Turn {
    _memory: OwnedSemaphorePermit,
    _thread: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl Share {
    pub(super) fn of(spot: Spot) -> Arc<Self> {
        let mut shares = SHARES.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Self {
            threads: Arc::new(Semaphore::new(THREADS)),
            own: Arc::new(Semaphore::new(OWN)),
            writing: Arc::new(Semaphore::new(usize::try_from(WRITING).unwrap_or(usize::MAX))),
        };
        if let Some(share) = shares.get(&spot) {
            return Arc::clone(share);
        }
        // Each mount of a directory is another spot: what nothing uses, and nothing hangs in, is made anew when it is needed.
        shares.retain(|_, share| Arc::strong_count(share) > 1 || !share.is_idle());
        Arc::clone(shares.entry(spot).or_insert_with(|| Arc::new(new())))
    }

    /// Whether no call is under way: one that hangs keeps its thread when nobody waits for it any more.
    fn is_idle(&self) -> bool {
        self.threads.available_permits() == THREADS
    }

    /// Runs `work` on a thread for blocking calls when this place has one to spare, and memory for so many bytes to write. An error of
    /// `goes_on`, which is asked now and then, ends the wait.
    pub(super) async fn run<T: Send + 'static>(
        self: Arc<Self>,
        bytes: usize,
        goes_on: impl Fn() -> Result<(), Failure> + Send + 'static,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let call = async move {
            let mut taken = pin!(self.take(bytes));
            loop {
                match tokio::time::timeout(WAITS, taken.as_mut()).await {
                    Ok(turn) => return turn?.run(work).await,
                    Err(_) => goes_on()?,
                }
            }
        };
        // A task of its own: a caller that is not polled for a while, as one of many that are read ahead, would keep a thread from others.
        AbortOnDropHandle::new(tokio::spawn(call)).await.unwrap_or_else(|error| Err(ended(&error)))
    }

    /// Waits until this place has a thread to spare, and memory for so many bytes to write.
    async fn take(&self, bytes: usize) -> Result<Turn, Failure> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(WRITING).min(WRITING);
        let closed = |_: AcquireError| Failure::new(FailureKind::Transient, "the process is ending");
        let memory = Arc::clone(&self.writing).acquire_many_owned(kib).await.map_err(closed)?;
        let thread = Arc::clone(&self.threads).acquire_owned().await.map_err(closed)?;
        let of_all = tokio::select! {
            biased;
            shared = Arc::clone(&SHARED).acquire_owned() => shared,
            own = Arc::clone(&self.own).acquire_owned() => own,
        };
        Ok(Turn { _memory: memory, _thread: thread, _of_all: of_all.map_err(closed)? })
    }
}

impl Turn {
    /// Runs `work` on a thread for blocking calls. The turn ends when it returns, whether or not the caller still waits.
    async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let work = move || {
            let done = work();
            drop(self);
            done
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(ended(&error)))
    }
}

fn ended(_: &JoinError) -> Failure {
    Failure::new(FailureKind::Transient, "a worker thread ended before its work was done")
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc::{self, Sender};

    use super::super::local::Local;
    use super::super::mounts;
    use super::*;

    /// Takes all threads of a share with calls that return when what is returned is dropped.
    async fn hang(spot: Spot) -> Vec<Sender<()>> {
        let share = Share::of(spot);
        let mut held = Vec::new();
        for _ in 0..THREADS {
            let (release, until) = mpsc::channel::<()>();
            held.push(release);
            let turn = share.take(0).await.unwrap();
            tokio::spawn(turn.run(move || {
                until.recv().ok();
                Ok(())
            }));
        }
        held
    }

    #[tokio::test]
    async fn only_what_is_used_or_hangs_keeps_a_share() {
        let spot = |name: &str| Spot::Path(PathBuf::from("/share").join(name), None);
        let held = |name: &str| SHARES.lock().unwrap().contains_key(&spot(name));
        let used = Share::of(spot("used"));
        let hung = hang(spot("hung")).await;
        for n in 0..8 {
            drop(Share::of(spot(&format!("gone{n}"))));
        }
        assert!(held("used") && held("hung") && (0..7).all(|n| !held(&format!("gone{n}"))));
        drop((used, hung));
    }

    fn directory(path: &Path, mount: u64) -> Spot {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(path).unwrap();
        Spot::Directory(meta.dev(), meta.ino(), Some(mount))
    }

    #[tokio::test]
    async fn what_is_mounted_in_the_place_of_a_directory_that_hangs_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        mounts::testing::mount(dir.path(), 1);
        let before = Local::open(dir.path()).await.unwrap();
        let _looks = hang(Spot::Path(dir.path().to_owned(), Some(1))).await;
        let _calls = hang(directory(dir.path(), 1)).await;
        let limit = Duration::from_millis(1500);
        assert!(tokio::time::timeout(limit, Local::open(dir.path())).await.is_err(), "it hangs");
        assert!(tokio::time::timeout(limit, before.head("a/one")).await.is_err(), "it hangs");

        // The export is the same one, and so are device and inode.
        mounts::testing::mount(dir.path(), 2);
        let limit = Duration::from_secs(20);
        let failure = tokio::time::timeout(limit, before.head("a/one")).await.unwrap().unwrap_err();
        assert_eq!(failure.kind, FailureKind::NoStore, "{failure:?}");
        let anew = tokio::time::timeout(limit, Local::open(dir.path())).await.unwrap().unwrap();
        let failure = tokio::time::timeout(limit, anew.head("a/one")).await.unwrap().unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound, "{failure:?}");
    }

    #[tokio::test]
    async fn who_is_not_polled_keeps_no_thread_from_others() {
        let spot = || Spot::Path(PathBuf::from("/share/read-ahead"), None);
        let held = hang(spot()).await;
        let share = Share::of(spot());
        let run = || Arc::clone(&share).run(0, || Ok(()), || Ok(1));
        let mut ahead: Vec<_> = (0..THREADS).map(|_| Box::pin(run())).collect();
        for one in &mut ahead {
            assert!(futures_util::poll!(one).is_pending());
        }
        drop(held);
        let next = tokio::time::timeout(Duration::from_secs(60), run()).await;
        assert_eq!(next.expect("a thread is free").unwrap(), 1);
    }
}
