//! Work for the processor: hashing, compression, encryption, decoding, in units of 1 to 16 MiB.
//!
//! It runs on tokio's blocking threads, at most one unit per core at a time: more would only share the cores and hold
//! more memory.

use std::sync::LazyLock;

use tokio::sync::Semaphore;

use crate::error::{RepoError, Result};

static CORES: LazyLock<Semaphore> =
    LazyLock::new(|| Semaphore::new(std::thread::available_parallelism().map_or(1, usize::from)));

/// Runs `work` on a blocking thread when a core is free. Work that has begun is not cancelled with the caller.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let permit = CORES.acquire().await.map_err(|_| ended())?;
    // The permit goes with the work, so that a caller that gives up does not let another unit in beside it.
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| ended())
}

fn ended() -> RepoError {
    RepoError::Internal("a worker thread ended before its work was done; its panic is in the log".to_owned())
}
