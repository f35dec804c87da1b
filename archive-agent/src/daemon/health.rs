//! What each task of the daemon says about itself, for the log, `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use walpoint_base::socket::{HealthProblem, ProblemKind};
use walpoint_base::{ClusterName, Diagnostic};

use crate::health::PUSH_SOCKET;

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub(crate) enum TaskState {
    /// It has not said anything yet.
    Starting,
    Working,
    /// It cannot work yet, and nothing is wrong: another daemon does its work, for example.
    Waiting {
        /// For what.
        reason: String,
    },
    /// It failed and will be tried again.
    Failing {
        /// Since when, without a success in between.
        since: Timestamp,
        /// What clients tell apart.
        kind: ProblemKind,
        /// What failed last.
        problem: String,
    },
}

impl TaskState {
    /// Whether nothing is wrong with a task that has started.
    pub(crate) fn is_fit(&self) -> bool {
        matches!(self, Self::Working | Self::Waiting { .. })
    }
}

/// Whose task it is, and which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TaskName {
    cluster: ClusterName,
    task: String,
}

impl fmt::Display for TaskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.cluster, self.task)
    }
}

/// The states of all tasks, by name; shared by all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<BTreeMap<TaskName, TaskState>>>);

/// One task's entry on the board. The entry goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Health {
    board: Board,
    name: TaskName,
    /// The name as logs have it.
    shown: String,
}

impl Board {
    /// Adds a task of a cluster.
    pub(crate) fn add(&self, cluster: &ClusterName, task: String) -> Health {
        let name = TaskName { cluster: cluster.clone(), task };
        self.lock().insert(name.clone(), TaskState::Starting);
        Health { board: self.clone(), shown: name.to_string(), name }
    }

    /// All tasks and their states.
    pub(crate) fn all(&self) -> BTreeMap<TaskName, TaskState> {
        self.lock().clone()
    }

    /// The tasks that answer `archive-push`, and their states.
    pub(crate) fn push_sockets(&self) -> impl Iterator<Item = (String, TaskState)> {
        let sockets = self.all().into_iter().filter(|(name, _)| name.task == PUSH_SOCKET);
        sockets.map(|(name, state)| (name.to_string(), state))
    }

    /// What fails.
    pub(crate) fn problems(&self) -> Vec<HealthProblem> {
        let failing = self.all().into_iter().filter_map(|(name, state)| match state {
            TaskState::Failing { since, kind, problem } => {
                let found = Diagnostic::new(format!("failing since {since:.0}: {problem}"));
                let text = found.lines().collect::<Vec<_>>().join("\n");
                Some(HealthProblem { cluster: name.cluster, task: name.task, kind, text })
            }
            _ => None,
        });
        failing.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskName, TaskState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// The task's name.
    pub(crate) fn name(&self) -> &str {
        &self.shown
    }

    /// It does its work. Logged when it did not before.
    pub(crate) fn working(&self) {
        if let Some(TaskState::Failing { .. } | TaskState::Waiting { .. }) = self.set(TaskState::Working) {
            tracing::info!(task = self.shown, "working again");
        }
    }

    /// It waits for something that is not a fault. Logged once.
    pub(crate) fn waiting(&self, reason: &str) {
        let state = TaskState::Waiting { reason: reason.to_owned() };
        if self.set(state.clone()) != Some(state) {
            tracing::warn!(task = self.shown, "waiting: {reason}");
        }
    }

    /// It failed and will be tried again. Logged when the problem is another than before.
    pub(crate) fn failing(&self, kind: ProblemKind, problem: &str) {
        let mut states = self.board.lock();
        let (since, known) = match states.get(&self.name) {
            Some(TaskState::Failing { since, problem: before, .. }) => (*since, before == problem),
            _ => (Timestamp::now(), false),
        };
        let state = TaskState::Failing { since, kind, problem: problem.to_owned() };
        states.insert(self.name.clone(), state);
        drop(states);
        if !known {
            tracing::error!(task = self.shown, "{problem}");
        }
    }

    fn set(&self, state: TaskState) -> Option<TaskState> {
        self.board.lock().insert(self.name.clone(), state)
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.board.lock().remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_lasts_from_its_first_report_to_the_next_success() {
        let board = Board::default();
        let health = board.add(&"main".parse().unwrap(), "push".to_owned());
        let state = || board.all()[&health.name].clone();
        assert_eq!((state(), health.name()), (TaskState::Starting, "main: push"));
        health.failing(ProblemKind::Other, "no disk");
        let first = state();
        health.failing(ProblemKind::Gap, "no network\nHINT: Look.");
        let (TaskState::Failing { since: a, .. }, TaskState::Failing { since: b, problem, .. }) =
            (first, state())
        else {
            unreachable!("both are failing")
        };
        assert_eq!((a, problem.as_str()), (b, "no network\nHINT: Look."));
        let problems = board.problems();
        let [told] = &problems[..] else { unreachable!("one is failing") };
        assert_eq!(
            (told.cluster.as_str(), told.task.as_str(), told.kind),
            ("main", "push", ProblemKind::Gap)
        );
        assert!(
            told.text.starts_with("failing since 2") && told.text.ends_with("Z: no network\nHINT: Look."),
            "{told}"
        );
        health.working();
        assert_eq!((state(), board.problems()), (TaskState::Working, Vec::new()));
        drop(health);
        assert!(board.all().is_empty());
    }
}
