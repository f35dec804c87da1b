//! The process group of a command that runs beside the instance.

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Child;

/// The process group of a command that was started in one of its own. It is killed when this is dropped: after a limit, and when the run is
/// interrupted.
#[derive(Debug)]
pub(crate) struct ProcessGroup(Option<Pid>);

impl ProcessGroup {
    /// That of a process which was just started.
    pub(crate) fn of(child: &Child) -> Self {
        Self(child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw))
    }

    /// The process was waited for: its number may be another's by now.
    pub(crate) fn has_ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.map(|group| kill_process_group(group, Signal::KILL)) {
            tracing::debug!("a command was not ended: {error}");
        }
    }
}
