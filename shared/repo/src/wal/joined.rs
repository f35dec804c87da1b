//! One lineage's WAL in several repositories, read as one archive: what the first one does not have, or has damaged, is another one's.
//!
//! So recovery reads it. Whether all of it is one server's is not asked here ([`agreement`](crate::agreement)). Listings are those of
//! the first archive: who lists asks the others too ([`WalArchive::beside`]). Nothing is written through such an archive.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use walpoint_storage::error::{RepoError, Result};

use super::{Inner, WalArchive};

/// What several archives answered to a question.
pub(super) struct Answers<T> {
    /// In the order of the archives.
    pub(super) given: Vec<T>,
    /// Why one after the first gave none: it could not be reached, so what it has is not known.
    pub(super) unreached: Option<String>,
}

impl WalArchive {
    /// This archive with the same lineage in other repositories beside it.
    #[must_use]
    pub fn joined(&self, beside: Vec<Self>) -> Self {
        let Inner { repository, lineage, paths, inherited, .. } = &*self.inner;
        Self {
            inner: Arc::new(Inner {
                repository: repository.clone(),
                lineage: lineage.clone(),
                paths: paths.clone(),
                inherited: inherited.clone(),
                beside,
            }),
        }
    }

    /// The same lineage in other repositories, which is read where this one has nothing.
    pub(crate) fn beside(&self) -> &[Self] {
        &self.inner.beside
    }

    /// What this archive and those beside it answer to a question. That one after the first cannot be reached is no error: it says nothing
    /// about a file.
    pub(super) async fn ask_all<T: Send>(
        &self,
        ask: impl Fn(Self) -> BoxFuture<'static, Result<T>> + Send,
    ) -> Result<Answers<T>> {
        let mut answers = Answers { given: Vec::new(), unreached: None };
        for (at, archive) in self.all().enumerate() {
            match ask(archive.clone()).await {
                Ok(answer) => answers.given.push(answer),
                Err(error) if at == 0 || matches!(error, RepoError::Corrupt { .. }) => return Err(error),
                Err(error) => {
                    let name = archive.repository().name();
                    tracing::debug!("repository \"{name}\": {error}");
                    answers.unreached.get_or_insert(format!("repository \"{name}\" may have more: {error}"));
                }
            }
        }
        Ok(answers)
    }

    /// The first sound answer of this archive and of those beside it to a question; `sound` says which are. Without one the first
    /// that is not.
    pub(super) async fn first_sound<T: Send>(
        &self,
        ask: impl Fn(Self) -> BoxFuture<'static, Result<Option<T>>> + Send,
        sound: impl Fn(&T) -> bool + Send,
    ) -> Result<Option<T>> {
        let mut unsound = None;
        for (at, archive) in std::iter::once(self).chain(self.beside()).enumerate() {
            match ask(archive.clone()).await {
                Ok(None) => {}
                Ok(Some(found)) if sound(&found) => return Ok(Some(found)),
                Err(error) if at == 0 && !matches!(error, RepoError::Corrupt { .. }) => return Err(error),
                Err(error) if !matches!(error, RepoError::Corrupt { .. }) => {
                    tracing::debug!("repository \"{}\": {error}", archive.repository().name());
                }
                found => {
                    unsound.get_or_insert(found);
                }
            }
        }
        unsound.unwrap_or(Ok(None))
    }
}
