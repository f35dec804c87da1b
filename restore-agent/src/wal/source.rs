//! One repository of an archive, opened when it is needed, and what it failed with.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walpoint_base::Diagnostic;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::store::StoreSettings;
use walpoint_words::format_chain;

use crate::wal::refusal::LastingError;

/// For how long a repository that did not answer in time is asked last.
const LATE: Duration = Duration::from_secs(60);

/// One repository.
#[derive(Debug)]
pub(crate) struct FetchSource {
    /// What the configuration calls it.
    pub(crate) name: String,
    /// Where it is.
    pub(crate) settings: StoreSettings,
    open: Mutex<Option<WalArchive>>,
    /// When others were asked because this one did not begin to answer.
    late: Mutex<Option<Instant>>,
}

impl FetchSource {
    /// Of the configuration; it is not opened yet.
    pub(crate) fn new((name, settings): (String, StoreSettings)) -> Self {
        Self { name, settings, open: Mutex::new(None), late: Mutex::new(None) }
    }

    /// Its archive, if it is open.
    pub(crate) fn opened(&self) -> Option<WalArchive> {
        lock(&self.open).clone()
    }

    pub(crate) fn set_open(&self, wal: &WalArchive) {
        *lock(&self.open) = Some(wal.clone());
    }

    /// The next attempt opens it anew.
    pub(crate) fn close(&self) {
        *lock(&self.open) = None;
    }

    /// Whether it did not answer in time a while ago.
    pub(crate) fn is_late(&self) -> bool {
        lock(&self.late).is_some_and(|at| at.elapsed() < LATE)
    }

    /// It does not answer in time.
    pub(crate) fn set_late(&self) {
        *lock(&self.late) = Some(Instant::now());
    }

    /// The failure of one that has not answered.
    pub(crate) fn unanswered(&self) -> Failed {
        Failed { repository: self.name.clone(), why: "it has not answered yet".to_owned(), refused: false }
    }

    /// Notes a failure: the next attempt opens the repository anew, unless that cannot help.
    pub(crate) fn failed(&self, error: &anyhow::Error) -> Failed {
        if !matches!(error.downcast_ref(), Some(RepoError::Corrupt { .. })) {
            self.close();
        }
        let refused = error.downcast_ref::<LastingError>().is_some();
        Failed { repository: self.name.clone(), why: format_chain(error), refused }
    }
}

/// A repository that could not say whether it has a file, or could not give it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failed {
    /// What the configuration calls it.
    pub(crate) repository: String,
    pub(crate) why: String,
    /// Whether a later attempt would fail as well.
    pub(crate) refused: bool,
}

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "repository {}: {}", self.repository, self.why)
    }
}

/// All failures in one line.
pub(crate) fn listed(failures: &[Failed]) -> String {
    Diagnostic::gather("", failures.iter().map(Failed::to_string)).into()
}

/// What is behind a lock. A panic elsewhere leaves it usable: each change is a single assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
