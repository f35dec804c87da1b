//! The runtime of both agents, once it is known that the machine has a thread to give.
//!
//! tokio lets blocking work that it cannot start a thread for wait for one of the threads that it has, and its workers never end:
//! where memory or the limit on tasks allows no further thread, the first blocking call would wait for ever.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Runtime};

/// A runtime with two workers, which keep the network busy; what is bound by the processor runs on blocking threads. Fails where no
/// thread for those can be started.
pub fn runtime() -> io::Result<Runtime> {
    let failed = |error: io::Error| {
        let hint = "HINT: Raise the limit on tasks (TasksMax) or on memory.";
        io::Error::new(error.kind(), format!("could not start the runtime: {error}. {hint}"))
    };
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().map_err(failed)?;
    match thread::Builder::new().spawn(|| ()) {
        Ok(spare) => {
            // It does nothing that could panic.
            spare.join().ok();
            Ok(runtime)
        }
        Err(error) => {
            runtime.shutdown_background();
            Err(failed(error))
        }
    }
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
