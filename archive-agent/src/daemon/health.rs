//! What each task of the daemon says about itself, for the log, `/healthz` and `/readyz`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use walpoint_base::socket::{HealthProblem, ProblemKind};
use walpoint_base::{ClusterName, Diagnostic};

use crate::health::{CONFIGURATION, PUSH_SOCKET};

/// A task that has not begun after so long is a problem: those that it replaces end within their drain, mostly at once.
const BEGINS_WITHIN: Duration = Duration::from_secs(60);

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

/// Why a task has not begun.
const LATE: &str = "the data directory was not found, or the tasks that this one replaces have not \
    ended\nHINT: If the daemon's log does not show what they are waiting for, restart the daemon.";

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

/// What the board says of a task.
#[derive(Debug)]
struct Entry {
    state: TaskState,
    /// Since when it waits for its begin, by two clocks; `None` once it began.
    waits: Option<(Timestamp, Instant)>,
    /// Whose entry it is ([`Health::number`]).
    number: u64,
}

impl Entry {
    /// Since when it has not begun, if it should have.
    fn is_late(&self) -> Option<Timestamp> {
        let (since, waits) = self.waits.filter(|_| self.state == TaskState::Starting)?;
        (waits.elapsed() > BEGINS_WITHIN).then_some(since)
    }
}

/// The states of all tasks, by name; shared by all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Board(Arc<Mutex<BTreeMap<TaskName, Entry>>>);

/// How many entries there were.
static ENTRIES: AtomicU64 = AtomicU64::new(0);

/// One task's entry on the board. The entry goes when this is dropped, unless a task of the same name has taken its place.
#[derive(Debug)]
pub(crate) struct Health {
    board: Board,
    number: u64,
    name: TaskName,
    /// The name as logs have it.
    shown: String,
}

impl Board {
    /// Adds a task of a cluster.
    pub(crate) fn add(&self, cluster: &ClusterName, task: String) -> Health {
        let name = TaskName { cluster: cluster.clone(), task };
        let waits = Some((Timestamp::now(), Instant::now()));
        let number = ENTRIES.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(name.clone(), Entry { state: TaskState::Starting, waits, number });
        Health { board: self.clone(), number, shown: name.to_string(), name }
    }

    /// A new configuration cannot be used, which its reader logs: until one can, this is a problem of each cluster that runs by the old
    /// one.
    pub(crate) fn not_reloaded(&self, cluster: &ClusterName, why: &str) {
        let name = TaskName { cluster: cluster.clone(), task: CONFIGURATION.to_owned() };
        let problem = format!(
            "the configuration was not reloaded, and the old one stays in use: {why}\nHINT: Correct it, then reload the daemon again."
        );
        let mut entries = self.lock();
        let since = match entries.get(&name).map(|entry| &entry.state) {
            Some(TaskState::Failing { since, .. }) => *since,
            _ => Timestamp::now(),
        };
        let state = TaskState::Failing { since, kind: ProblemKind::Other, problem };
        let number = ENTRIES.fetch_add(1, Ordering::Relaxed);
        entries.insert(name, Entry { state, waits: None, number });
    }

    /// All tasks and their states.
    pub(crate) fn all(&self) -> BTreeMap<TaskName, TaskState> {
        self.lock().iter().map(|(name, entry)| (name.clone(), entry.state.clone())).collect()
    }

    /// The tasks that answer `archive-push`, and their states.
    pub(crate) fn push_sockets(&self) -> impl Iterator<Item = (String, TaskState)> {
        let sockets = self.all().into_iter().filter(|(name, _)| name.task == PUSH_SOCKET);
        sockets.map(|(name, state)| (name.to_string(), state))
    }

    /// What fails, and what has not begun though it should have. A cluster whose push socket fails has one problem for all its tasks that
    /// wait.
    pub(crate) fn problems(&self) -> Vec<HealthProblem> {
        let entries = self.lock();
        let waits_for_directory = |cluster: &ClusterName| {
            let push = TaskName { cluster: cluster.clone(), task: PUSH_SOCKET.to_owned() };
            entries.get(&push).is_some_and(|push| matches!(push.state, TaskState::Failing { .. }))
        };
        let found = entries.iter().filter_map(|(name, entry)| {
            let (kind, text) = match (&entry.state, entry.is_late()) {
                (TaskState::Failing { since, kind, problem }, _) => {
                    (*kind, format!("failing since {since:.0}: {problem}"))
                }
                (_, Some(since)) if !waits_for_directory(&name.cluster) => {
                    (ProblemKind::Other, format!("not begun since {since:.0}: {LATE}"))
                }
                _ => return None,
            };
            let text = Diagnostic::new(text).lines().collect::<Vec<_>>().join("\n");
            Some(HealthProblem { cluster: name.cluster.clone(), task: name.task.clone(), kind, text })
        });
        found.collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<TaskName, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Health {
    /// The task's name.
    pub(crate) fn name(&self) -> &str {
        &self.shown
    }

    /// It has what it waited for, and begins.
    pub(crate) fn begins(&self) {
        if let Some(entry) = self.entry(&mut self.board.lock()) {
            entry.waits = None;
        }
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
        let mut entries = self.board.lock();
        let mut known = false;
        if let Some(entry) = self.entry(&mut entries) {
            let since = match &entry.state {
                TaskState::Failing { since, problem: before, .. } => {
                    known = before == problem;
                    *since
                }
                _ => Timestamp::now(),
            };
            entry.state = TaskState::Failing { since, kind, problem: problem.to_owned() };
            entry.waits = None;
        }
        drop(entries);
        if !known {
            tracing::error!(task = self.shown, "{problem}");
        }
    }

    fn set(&self, state: TaskState) -> Option<TaskState> {
        let mut entries = self.board.lock();
        let entry = self.entry(&mut entries)?;
        entry.waits = None;
        Some(std::mem::replace(&mut entry.state, state))
    }

    /// Its entry, unless another task has taken its place.
    fn entry<'a>(&self, entries: &'a mut BTreeMap<TaskName, Entry>) -> Option<&'a mut Entry> {
        entries.get_mut(&self.name).filter(|entry| entry.number == self.number)
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        let mut entries = self.board.lock();
        if self.entry(&mut entries).is_some() {
            entries.remove(&self.name);
        }
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
        let next = board.add(&"main".parse().unwrap(), "push".to_owned());
        next.failing(ProblemKind::Other, "a bug");
        health.working();
        drop(health);
        assert_eq!(board.problems().len(), 1, "the entry is that of the task that took its place");
        drop(next);
        assert!(board.all().is_empty());
    }

    #[test]
    fn a_configuration_that_cannot_be_used_is_a_problem_until_the_board_is_replaced() {
        let (board, main) = (Board::default(), "main".parse().unwrap());
        board.not_reloaded(&main, "line 3: unknown key");
        board.not_reloaded(&main, "line 4: unknown key");
        let problems = board.problems();
        let [told] = &problems[..] else { unreachable!("{problems:?}") };
        assert_eq!((told.task.as_str(), told.kind), (CONFIGURATION, ProblemKind::Other));
        assert!(told.text.contains("stays in use: line 4: unknown key\nHINT: "), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_begin_is_a_problem() {
        let (board, main) = (Board::default(), "main".parse().unwrap());
        let (push, index) = (board.add(&main, PUSH_SOCKET.to_owned()), board.add(&main, "index".to_owned()));
        let told = || board.problems().into_iter().map(|problem| problem.task).collect::<Vec<_>>();
        tokio::time::advance(BEGINS_WITHIN).await;
        assert!(told().is_empty(), "it has time");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(told(), ["index", PUSH_SOCKET]);
        push.failing(ProblemKind::Other, "no data directory");
        assert_eq!(told(), [PUSH_SOCKET], "the others wait for that");
        push.working();
        let text = board.problems().remove(0).text;
        assert!(text.starts_with("not begun since 2") && text.contains("\nHINT: "), "{text}");
        index.begins();
        assert!(told().is_empty(), "a first look may take long");
    }
}
