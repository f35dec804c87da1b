//! Whether a repository that is open is still the one that was opened, and has the lineage still.
//!
//! A bucket can be emptied, and become another repository, and a cluster can be forgotten, and registered again, while a daemon
//! runs. What the daemon then stores is sealed for a repository that no longer exists, or is of no lineage, and what it remembers
//! to have stored is gone. So nothing is acknowledged unless the descriptor and the lineage's document were read within the last
//! seconds: by two small requests for all uploads, while they are under way. A crash leaves nothing.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use walpoint_repo::{Lineage, Repository};
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;
use walpoint_storage::object::RepositoryId;

use super::complete;
use super::opening::OpenedTarget;
use super::target::{TargetError, WalTarget};
use super::upload::UploadError;

/// How long a look counts.
const COUNTS_FOR: Duration = Duration::from_secs(3);

/// A repository as it was seen last.
#[derive(Debug, Default)]
pub(super) struct Presence {
    state: std::sync::Mutex<State>,
    /// Held while it is looked at: one request serves all that wait for it.
    looking: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    repository: Option<Repository>,
    /// What it is archived into, as it was read.
    lineage: Option<Lineage>,
    seen: Option<Instant>,
    /// How often it was found to be gone, or another one.
    changes: u64,
}

/// What became of the lineage that is archived into, since it was read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineageChange {
    /// Nothing, or it is the first one.
    None,
    /// It is another one.
    Other,
    /// It was forgotten, and registered again.
    Anew,
}

impl Presence {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes whenever the repository was found to be gone, or another one.
    fn changes(&self) -> u64 {
        self.state().changes
    }

    /// Which lineage of which repository is archived into, as a note of it names them.
    pub(super) fn place(&self) -> Option<String> {
        let state = self.state();
        Some(complete::place(state.repository.as_ref()?.id(), state.lineage.as_ref()?))
    }

    /// Whether this is the repository that was opened last.
    pub(super) fn is(&self, id: RepositoryId) -> bool {
        self.state().repository.as_ref().is_some_and(|repository| repository.id() == id)
    }

    /// The repository was opened, its descriptor read after `begun`. Whether it is another one than before.
    pub(super) fn opened(&self, repository: &Repository, begun: Instant) -> bool {
        let mut state = self.state();
        let other = state.repository.as_ref().is_some_and(|before| before.id() != repository.id());
        state.changes += u64::from(other);
        state.lineage.take_if(|_| other);
        (state.repository, state.seen) = (Some(repository.clone()), Some(begun));
        other
    }

    /// What is archived into from now on was read, however often the repository was opened since it was read before.
    pub(super) fn archives_into(&self, lineage: &Lineage) -> LineageChange {
        let mut state = self.state();
        match state.lineage.replace(lineage.clone()) {
            Some(before) if before.id != lineage.id => LineageChange::Other,
            Some(before) if before != *lineage => {
                state.changes += 1;
                LineageChange::Anew
            }
            _ => LineageChange::None,
        }
    }

    /// The repository to look at, unless there is none, or it was seen a moment ago.
    fn stale(&self) -> Option<Repository> {
        let state = self.state();
        let fresh = state.seen.is_some_and(|seen| seen.elapsed() < COUNTS_FOR);
        state.repository.clone().filter(|_| !fresh)
    }

    /// It was looked at after `begun`, and everything is the same.
    fn saw(&self, repository: &Repository, begun: Instant) {
        let mut state = self.state();
        if state.repository.as_ref().is_some_and(|now| now.id() == repository.id()) {
            state.seen = state.seen.max(Some(begun));
        }
    }

    /// A repository, or its lineage, is gone or another one. Whether that is news.
    fn lost(&self, repository: &Repository) -> bool {
        let mut state = self.state();
        let news = state.repository.as_ref().is_some_and(|now| now.id() == repository.id());
        if news {
            *state = State { changes: state.changes + 1, ..State::default() };
        }
        news
    }
}

impl WalTarget {
    /// Makes sure that the repository is the one that was opened, unless that was seen a moment ago. One that is not open is what
    /// it is found to be when it is opened.
    async fn is_still_there(&self) -> Result<(), TargetError> {
        if self.presence.stale().is_none() {
            return Ok(());
        }
        let _one = self.presence.looking.lock().await;
        match self.presence.stale() {
            Some(repository) => self.look(&repository).await,
            None => Ok(()),
        }
    }

    /// Makes sure that the repository is this one still, before something is stored in it.
    pub(super) async fn is_still(&self, repository: &Repository) -> Result<(), TargetError> {
        self.is_still_there().await?;
        if self.presence.is(repository.id()) {
            return Ok(());
        }
        let store = repository.store().name().to_owned();
        let what = "it was found to be gone, or another one, a moment ago".to_owned();
        Err(RepoError::Replaced { repository: self.name().to_owned(), store, what, remedy: None }.into())
    }

    /// Makes sure, now, that the repository is the one that was opened: what a listing does not show is proven to be missing only
    /// then.
    pub(super) async fn look_again(&self) -> Result<(), TargetError> {
        let repository = self.presence.state().repository.clone();
        match repository {
            Some(repository) => self.look(&repository).await,
            None => Ok(()),
        }
    }

    async fn look(&self, repository: &Repository) -> Result<(), TargetError> {
        let begun = Instant::now();
        let lineage = self.presence.state().lineage.clone();
        let mut found = compare(repository, lineage.as_ref()).await;
        if found.as_ref().is_err_and(may_be_renewed) {
            // Refused to the secrets with which it was opened, which may have been renewed since. Nothing else leads to opening it anew
            // where no object is written before it was looked at.
            let mut opened = self.opened.lock().await;
            let anew = self.open_now().await?;
            found = compare(&anew, lineage.as_ref()).await;
            *opened = Some(OpenedTarget { repository: anew, archive: None });
        }
        match found {
            Ok(()) => {
                self.presence.saw(repository, begun);
                Ok(())
            }
            Err(error @ RepoError::Replaced { .. }) => {
                if self.presence.lost(repository) {
                    tracing::error!(repository = self.name(), "{}", walpoint_words::error(&error));
                    self.forget(repository.id()).await;
                }
                Err(error.into())
            }
            Err(error) => {
                // Opening it does not show that all of it is there.
                self.presence.state().seen = None;
                Err(error.into())
            }
        }
    }
}

/// Whether an error may be gone with other secrets.
fn may_be_renewed(error: &RepoError) -> bool {
    !matches!(error, RepoError::Replaced { .. } | RepoError::Unavailable { .. } | RepoError::Conflict { .. })
}

/// Reads the descriptor and a lineage's document again. Fails with [`RepoError::Replaced`] if either is gone or another one.
async fn compare(repository: &Repository, lineage: Option<&Lineage>) -> Result<(), RepoError> {
    let Some(lineage) = lineage else { return repository.read_descriptor_again().await };
    let (cluster, id) = (&lineage.cluster, lineage.id);
    let (same, found) =
        tokio::join!(repository.read_descriptor_again(), repository.read_lineage(cluster, id));
    same?;
    let what = match found {
        Ok(Some(found)) if found == *lineage => return Ok(()),
        // It is there, which is what counts here.
        Err(RepoError::Corrupt { .. }) => return Ok(()),
        Ok(Some(_)) => format!("lineage {id} of cluster {cluster} was deleted, and registered again"),
        Ok(None) => {
            // Absence is proven only by a descriptor that is read afterwards.
            repository.read_descriptor_again().await?;
            format!(
                "it no longer has lineage {id} of cluster {cluster} (\"archive-agent forget\" deletes that)\nHINT: Stop \
                 archiving, or register the cluster with \"archive-agent init\" and take a backup."
            )
        }
        Err(error) => return Err(error),
    };
    let (repository, store) = (repository.name().to_owned(), repository.store().name().to_owned());
    Err(RepoError::Replaced { repository, store, what, remedy: None })
}

/// Stores something in these repositories, and makes sure meanwhile that each of them is the one that was opened.
pub(super) async fn during<T>(
    targets: &[&WalTarget],
    store: impl Future<Output = Result<T, UploadError>>,
) -> Result<T, UploadError> {
    let changes = || -> Vec<u64> { targets.iter().map(|target| target.presence.changes()).collect() };
    let before = changes();
    let (stored, looked) = tokio::join!(store, look(targets));
    // What is there now says more than what an upload into it ran into.
    if let Err(error @ UploadError { permanent: true, .. }) = looked {
        return Err(error);
    }
    let stored = stored?;
    // The upload took its time, or opened the repository. Mostly nothing is asked.
    look(targets).await?;
    if changes() != before {
        return Err(UploadError {
            text: "the repository was found to be another one during the upload".to_owned(),
            permanent: false,
        });
    }
    Ok(stored)
}

/// Makes sure that each of these repositories is the one that was opened.
pub(super) async fn look(targets: &[&WalTarget]) -> Result<(), UploadError> {
    let looked = join_all(targets.iter().map(|target| target.is_still_there())).await;
    let failed =
        |error: TargetError| UploadError { permanent: !error.is_transient(), text: error_chain(&error) };
    looked.into_iter().collect::<Result<(), TargetError>>().map_err(failed)
}

#[cfg(test)]
mod tests;
