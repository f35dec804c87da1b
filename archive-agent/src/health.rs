//! `archive-agent health`: does the daemon answer?

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use walpoint_base::socket::{HealthReply, HealthRequest, Message};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::{Failure, told};

use crate::daemon;

/// A daemon that has not answered by then hangs: nothing that is asked needs a store.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs the command: an error names every socket at which nobody answers.
pub(crate) async fn run(common: &CommonArgs) -> Result<(), Failure> {
    let mut silent = Vec::new();
    for selection in daemon::selections(common)? {
        let socket = selection.settings.push_socket(&selection.cluster);
        match ask(&socket) {
            Ok(reply) => reply.problems.lines().for_each(|problem| tracing::warn!("{problem}")),
            Err(error) => silent.push(format!("cluster {}: {}", selection.cluster, told(&error))),
        }
    }
    match silent.is_empty() {
        true => Ok(()),
        false => Err(anyhow!("no daemon answers; {}", silent.join("; ")).into()),
    }
}

/// What the daemon at a socket says.
pub(crate) fn ask(socket: &Path) -> anyhow::Result<HealthReply> {
    let shown = socket.display();
    let mut stream = UnixStream::connect(socket).with_context(|| format!("nobody listens at {shown}"))?;
    let silent = || format!("the daemon at {shown} gave no answer");
    stream.set_read_timeout(Some(PATIENCE)).and_then(|()| stream.set_write_timeout(Some(PATIENCE)))?;
    HealthRequest.write(&mut stream).and_then(|()| HealthReply::read(&mut stream)).with_context(silent)
}
