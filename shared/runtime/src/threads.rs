//! The runtime of both agents, once it is known that the machine has threads for it.
//!
//! Where memory or the limit on tasks allows too few, tokio waits for ever: building a runtime one of whose workers cannot be started
//! waits for the other one to end, and blocking work that gets no thread waits for one of the workers to end.

use std::io;
use std::sync::mpsc;
use std::thread;

use tokio::runtime::{Builder, Runtime};

/// They keep the network busy; what is bound by the processor runs on blocking threads.
const WORKERS: usize = 2;

/// Threads for blocking work, each started when it is needed. What may hang takes a limited part of them.
pub const BLOCKING_THREADS: usize = 1536;

/// A runtime with two workers. Fails where these, and a thread for blocking work, cannot be started.
pub fn runtime() -> io::Result<Runtime> {
    let runtime = start_threads(WORKERS + 1).and_then(|()| {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING_THREADS).enable_all().build()
    });
    runtime.map_err(|error| {
        let hint = "Raise the limit on tasks (TasksMax) or on memory.";
        io::Error::new(error.kind(), format!("could not start the runtime: {error}\nHINT: {hint}"))
    })
}

/// Starts so many threads at the same time, and ends them.
fn start_threads(count: usize) -> io::Result<()> {
    let mut started = Vec::new();
    for _ in 0..count {
        let (end, ended) = mpsc::channel::<()>();
        let thread = thread::Builder::new().spawn(move || ended.recv().is_ok())?;
        started.push((end, thread));
    }
    for (end, thread) in started {
        drop(end);
        // It does nothing that could panic.
        thread.join().ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_runs_blocking_work() {
        let runtime = runtime().unwrap();
        assert_eq!(runtime.block_on(async { tokio::task::spawn_blocking(|| 7).await.unwrap() }), 7);
    }
}
