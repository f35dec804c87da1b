//! `archive-agent health`: does the daemon answer?

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use walpoint_base::ClusterName;
use walpoint_base::socket::{HealthProblem, HealthReply, HealthRequest, Message, connect};
use walpoint_runtime::args::CommonArgs;
use walpoint_runtime::exit::Failure;
use walpoint_runtime::human;

use crate::selection::selections;

/// The task of each cluster that answers `archive-push`.
pub(crate) const PUSH_SOCKET: &str = "push socket";

/// What health calls the configuration that a daemon was to reload and could not use.
pub(crate) const CONFIGURATION: &str = "configuration";

/// A daemon that has not answered by then hangs: nothing that is asked needs a store.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Runs the command: an error names every socket that does not answer. Where the daemon of another cluster knows why one is
/// not there, that is one of the problems that it has, which a restart would not cure.
pub(crate) async fn run(common: &CommonArgs) -> Result<(), Failure> {
    let (mut problems, mut silent) = (BTreeSet::new(), Vec::new());
    for selection in selections(common)? {
        let socket = selection.settings.push_socket(&selection.cluster);
        match ask(&socket) {
            // A daemon answers for all its clusters at each of their sockets.
            Ok(reply) => problems.extend(reply.problems),
            Err(error) => silent.push((selection.cluster, socket, error)),
        }
    }
    problems.iter().for_each(|problem| tracing::warn!("{problem}"));
    let known = |cluster: &ClusterName| problems.iter().any(|problem| is_of_push_socket(problem, cluster));
    silent.retain(|(cluster, _, error)| !(matches!(error, NoAnswer::Absent(_)) && known(cluster)));
    let silent: Vec<String> = silent
        .iter()
        .map(|(cluster, socket, error)| {
            format!("cluster {cluster}: the daemon at {}: {error}", socket.display())
        })
        .collect();
    match silent.is_empty() {
        true => Ok(()),
        false => Err(anyhow!("no daemon answers: {}", silent.join("; ")).into()),
    }
}

/// Whether a problem is that the push socket of this cluster does not answer.
fn is_of_push_socket(problem: &HealthProblem, cluster: &ClusterName) -> bool {
    problem.cluster == *cluster && problem.task == PUSH_SOCKET
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// No process listens there.
    #[error("no process listens there: {0}")]
    Absent(std::io::Error),
    /// One does, and it does not answer.
    #[error("it gave no answer within {}: {error}", human::span(TIME_LIMIT))]
    Silent {
        /// What became of the conversation.
        error: std::io::Error,
    },
}

/// What the daemon at a socket says.
pub(crate) fn ask(socket: &Path) -> Result<HealthReply, NoAnswer> {
    let mut stream = connect(socket, TIME_LIMIT).map_err(|error| match error.kind() {
        std::io::ErrorKind::TimedOut => NoAnswer::Silent { error },
        _ => NoAnswer::Absent(error),
    })?;
    HealthRequest
        .write(&mut stream)
        .and_then(|()| HealthReply::read(&mut stream))
        .map_err(|error| NoAnswer::Silent { error })
}

#[cfg(test)]
mod tests {
    use walpoint_base::socket::ProblemKind;

    use super::*;

    #[test]
    fn only_the_clusters_own_push_socket_counts() {
        let problem = |task: &str, text: &str| HealthProblem {
            cluster: "main".parse().unwrap(),
            task: task.to_owned(),
            kind: ProblemKind::Other,
            text: text.to_owned(),
        };
        let (main, other) = ("main".parse().unwrap(), "other".parse().unwrap());
        let socket = problem(PUSH_SOCKET, "failing");
        assert!(is_of_push_socket(&socket, &main) && !is_of_push_socket(&socket, &other));
        assert!(!is_of_push_socket(&problem("queue", "main: push socket: failing"), &main));
    }
}
