//! `archive-agent health`: does the daemon answer?

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use walpoint_base::socket::{HealthReply, HealthRequest, Message};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;

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
            Err(error) => silent.push(format!(
                "cluster {}: the daemon at {}: {error}",
                selection.cluster,
                socket.display()
            )),
        }
    }
    match silent.is_empty() {
        true => Ok(()),
        false => Err(anyhow!("no daemon answers; {}", silent.join("; ")).into()),
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// No process listens there.
    #[error("no process listens there: {0}")]
    Absent(std::io::Error),
    /// One does, and it does not answer.
    #[error("it gave no answer within {} s: {error}", PATIENCE.as_secs())]
    Silent {
        /// What became of the conversation.
        error: std::io::Error,
    },
}

/// What the daemon at a socket says.
pub(crate) fn ask(socket: &Path) -> Result<HealthReply, NoAnswer> {
    let mut stream = UnixStream::connect(socket).map_err(NoAnswer::Absent)?;
    let answer = |stream: &mut UnixStream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        HealthRequest.write(stream)?;
        HealthReply::read(stream)
    };
    answer(&mut stream).map_err(|error| NoAnswer::Silent { error })
}
