//! What each task of the daemon says about itself, for the log, `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::health::PUSH_SOCKET;

use jiff::Timestamp;
use walpoint_base::Diagnostic;

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

/// The states of all tasks, by name; shared by all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<BTreeMap<String, TaskState>>>);

/// One task's entry on the board. The entry goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Health {
    board: Board,
    name: String,
}

impl Board {
    /// Adds a task.
    pub(crate) fn add(&self, name: String) -> Health {
        self.lock().insert(name.clone(), TaskState::Starting);
        Health { board: self.clone(), name }
    }

    /// All tasks and their states.
    pub(crate) fn all(&self) -> BTreeMap<String, TaskState> {
        self.lock().clone()
    }

    /// The tasks that answer `archive-push`, and their states.
    pub(crate) fn push_sockets(&self) -> impl Iterator<Item = (String, TaskState)> {
        self.all().into_iter().filter(|(name, _)| name.ends_with(PUSH_SOCKET))
    }

    /// What fails, a line for each task; details and hints follow each on lines of their own.
    pub(crate) fn problems(&self) -> String {
        let failing = self.all().into_iter().filter_map(|(name, state)| match state {
            TaskState::Failing { since, problem } => {
                Some(Diagnostic::new(format!("{name}: failing since {since:.0}: {problem}")))
            }
            _ => None,
        });
        failing.flat_map(|failing| failing.lines().collect::<Vec<_>>()).map(|line| line + "\n").collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, TaskState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// The task's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// It does its work. Logged when it did not before.
    pub(crate) fn working(&self) {
        if let Some(TaskState::Failing { .. } | TaskState::Waiting { .. }) = self.set(TaskState::Working) {
            tracing::info!(task = self.name, "working again");
        }
    }

    /// It waits for something that is not a fault. Logged once.
    pub(crate) fn waiting(&self, reason: &str) {
        let state = TaskState::Waiting { reason: reason.to_owned() };
        if self.set(state.clone()) != Some(state) {
            tracing::warn!(task = self.name, "waiting: {reason}");
        }
    }

    /// It failed and will be tried again. Logged when the problem is another than before.
    pub(crate) fn failing(&self, problem: &str) {
        let mut states = self.board.lock();
        let (since, known) = match states.get(&self.name) {
            Some(TaskState::Failing { since, problem: before }) => (*since, before == problem),
            _ => (Timestamp::now(), false),
        };
        states.insert(self.name.clone(), TaskState::Failing { since, problem: problem.to_owned() });
        drop(states);
        if !known {
            tracing::error!(task = self.name, "{problem}");
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
        let health = board.add("main: push".to_owned());
        assert_eq!(board.all()["main: push"], TaskState::Starting);
        health.failing("no disk");
        let first = board.all()["main: push"].clone();
        health.failing("no network");
        let (TaskState::Failing { since: a, .. }, TaskState::Failing { since: b, problem }) =
            (first, board.all()["main: push"].clone())
        else {
            unreachable!("both are failing")
        };
        assert_eq!((a, problem.as_str()), (b, "no network"));
        let told = board.problems();
        assert!(
            told.starts_with("main: push: failing since 2") && told.ends_with("Z: no network\n"),
            "{told}"
        );
        health.working();
        assert_eq!(
            (board.all()["main: push"].clone(), board.problems()),
            (TaskState::Working, String::new())
        );
        drop(health);
        assert!(board.all().is_empty());
    }
}
