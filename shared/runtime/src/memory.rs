//! Memory that is given back: what keeps a process that moves megabytes within its bounds.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// glibc's setting for the size from which an allocation is a mapping of its own.
const THRESHOLD: &str = "MALLOC_MMAP_THRESHOLD_";

/// One MiB: buffers of segments and objects are larger, everything that is allocated often is smaller.
const BYTES: &str = "1048576";

/// glibc's setting for how many arenas threads allocate from. Each keeps what small allocations left in it, and a daemon that has
/// had many threads for blocking work would keep that many.
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Makes freed buffers of megabytes go back to the system at once. Left alone, glibc raises that threshold with the first
/// such buffer that is freed and then keeps up to twice its size for every thread.
///
/// The setting is read when a process begins, so this process starts anew with it, once. To be called first of all, before
/// there are threads, locks or files. Where it does not work the process goes on and merely keeps more.
pub fn give_back() {
    if std::env::var_os(THRESHOLD).is_some() {
        return;
    }
    let Ok(own) = std::env::current_exe() else { return };
    let mut arguments = std::env::args_os();
    let mut command = Command::new(own);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).env(THRESHOLD, BYTES).env(ARENAS.0, ARENAS.1).exec();
    tracing::debug!("not started anew, so freed memory is kept longer: {error}");
}
