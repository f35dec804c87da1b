//! Work for the processor: hashing, compression, encryption, decoding, in units of 1 to 16 MiB.
//!
//! It runs on tokio's blocking threads, at most one unit per core at a time: more would only share the cores and hold
//! more memory. A unit that waits long for a file leaves its core to another one ([`without_core`]).

use std::cell::RefCell;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::task::AbortOnDropHandle;

use walpoint_storage::error::{RepoError, Result};

static CORES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));

/// A wait that takes longer leaves the core.
const LATE: Duration = Duration::from_secs(1);

thread_local! {
    /// The core of the unit that runs on this thread, if one does.
    static CORE: RefCell<Option<SemaphorePermit<'static>>> = const { RefCell::new(None) };
}

/// Gives back the core of this thread, also when the unit panics.
struct Unit;

impl Unit {
    fn begin(core: SemaphorePermit<'static>) -> Self {
        CORE.set(Some(core));
        Self
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        drop(CORE.take());
    }
}

/// Runs `work` on a blocking thread when a core is free. Work that has begun is not cancelled with the caller.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let unit = async move {
        let core = CORES.acquire().await.map_err(|_| ended())?;
        // The core goes with the work, so that a caller that gives up does not let another unit in beside it.
        let work = move || {
            let _unit = Unit::begin(core);
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| ended())
    };
    // It waits for the core in a task of its own. The caller's future may not be polled for a while, where it is one of several that are
    // read ahead: it would be given a core that it does not use, and their reader may wait for that core.
    AbortOnDropHandle::new(tokio::spawn(unit)).await.map_err(|_| ended())?
}

/// Runs `work` on this thread, which is one for blocking work, when a core is free. Blocks.
pub fn run_here<T>(work: impl FnOnce() -> T) -> Result<T> {
    let core = Handle::current().block_on(CORES.acquire()).map_err(|_| ended())?;
    let _unit = Unit::begin(core);
    Ok(work())
}

/// Runs what waits for something else than the processor, in the middle of a unit: a read of a file that may hang. Where it takes long,
/// the core is another unit's until it returns; a short wait keeps it, so that no more units are under way, each with its memory, than
/// there are cores. Blocks; outside a unit it only runs `wait`.
pub fn without_core<T>(wait: impl FnOnce() -> T) -> T {
    let Some(core) = CORE.take() else { return wait() };
    let lent = Arc::new(Mutex::new(Some(core)));
    let late = Arc::clone(&lent);
    let timer = Handle::current().spawn(async move {
        tokio::time::sleep(LATE).await;
        drop(take(&late));
    });
    let done = wait();
    timer.abort();
    // Never closed; a unit without a core would be one too many, and no less right.
    CORE.set(take(&lent).or_else(|| Handle::current().block_on(CORES.acquire()).ok()));
    done
}

fn take(core: &Mutex<Option<SemaphorePermit<'static>>>) -> Option<SemaphorePermit<'static>> {
    core.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn ended() -> RepoError {
    RepoError::Internal(
        "a worker thread ended before its work was done\nDETAIL: Its panic is in the log.".to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn who_is_not_polled_keeps_no_core_from_others() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (release, held): (Vec<_>, Vec<_>) = (0..cores).map(|_| mpsc::channel::<()>()).unzip();
        let busy: Vec<_> = held.into_iter().map(|held| tokio::spawn(run(move || held.recv()))).collect();
        // As many as there are cores, read ahead.
        let mut ahead: Vec<_> = (0..cores).map(|_| Box::pin(run(|| ()))).collect();
        for one in &mut ahead {
            assert!(futures_util::poll!(one).is_pending());
        }
        drop(release);
        for unit in busy {
            unit.await.unwrap().unwrap().unwrap_err();
        }
        let next = tokio::time::timeout(Duration::from_secs(60), run(|| 1)).await;
        assert_eq!(next.expect("a core is free").unwrap(), 1);
        drop(ahead);
        assert_eq!(run(|| 2).await.unwrap(), 2, "nor does one that was dropped");
    }

    #[tokio::test]
    async fn units_that_wait_for_files_leave_the_cores_to_others() {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (release, held): (Vec<_>, Vec<_>) = (0..cores).map(|_| mpsc::channel::<()>()).unzip();
        let (begun, begins) = mpsc::channel();
        let units: Vec<_> = held
            .into_iter()
            .map(|held| {
                let begun = begun.clone();
                tokio::spawn(run(move || {
                    without_core(|| {
                        begun.send(()).unwrap();
                        held.recv().unwrap_err();
                    });
                    CORE.with_borrow(Option::is_some)
                }))
            })
            .collect();
        tokio::task::spawn_blocking(move || (0..cores).for_each(|_| begins.recv().unwrap())).await.unwrap();
        assert_eq!(run(|| 1).await.unwrap(), 1, "no core is taken");
        assert_eq!(tokio::task::spawn_blocking(|| run_here(|| 2)).await.unwrap().unwrap(), 2);
        drop(release);
        for unit in units {
            assert!(unit.await.unwrap().unwrap(), "it continues with a core of its own");
        }
        assert!(!tokio::task::spawn_blocking(|| CORE.with_borrow(Option::is_some)).await.unwrap());
    }
}
