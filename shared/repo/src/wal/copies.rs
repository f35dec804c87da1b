//! The WAL of one lineage in several repositories: what is damaged in one is read from another.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use walpoint_base::{SegmentName, TimelineHistory, TimelineId, WalFileName};
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::ContentHash;

use super::WalArchive;
use super::beginning::BeginningHasher;
use super::fetched::FetchedWal;
use super::get::WalReader;
use super::header::WalHeader;

/// The archives of one lineage, in the order in which they are asked.
///
/// What is read is what the first of them has that has it undamaged. That an archive after the first one cannot be reached says
/// nothing about a file; that the first one cannot is an error.
#[derive(Debug)]
pub struct WalCopies {
    first: WalArchive,
    /// The first one included.
    archives: Vec<WalArchive>,
    damaged: Mutex<BTreeSet<String>>,
}

impl WalCopies {
    /// `first` is asked first, then `others` in their order.
    pub fn new(first: WalArchive, others: impl IntoIterator<Item = WalArchive>) -> Self {
        let archives = [first.clone()].into_iter().chain(others).collect();
        Self { first, archives, damaged: Mutex::default() }
    }

    /// All of them, in the order in which they are asked.
    pub fn archives(&self) -> &[WalArchive] {
        &self.archives
    }

    /// The one that is asked first.
    pub fn first(&self) -> &WalArchive {
        &self.first
    }

    /// The objects that were found damaged so far, each with its repository, for people.
    pub fn damaged(&self) -> Vec<String> {
        self.lock_damaged().iter().cloned().collect()
    }

    fn lock_damaged(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A file of that name, checked, as [`WalArchive::get`].
    pub async fn get(&self, name: WalFileName) -> Result<Option<FetchedWal>> {
        self.sound(async |archive: &WalArchive| archive.get(name).await).await
    }

    /// The incomplete copy of a segment that holds most, checked, as [`WalArchive::get_incomplete`].
    pub async fn get_incomplete(&self, segment: SegmentName) -> Result<Option<FetchedWal>> {
        match self.read_incomplete(segment).await? {
            Some(reader) => reader.fetch_into(Vec::new()).await.map(Some),
            None => Ok(None),
        }
    }

    /// What a file begins with, as [`WalArchive::beginning`]: of incomplete copies the one that holds most.
    pub async fn beginning(&self, name: WalFileName, length: u64) -> Result<Option<ContentHash>> {
        if let WalFileName::Partial(segment) = name
            && let Some(reader) = self.read_incomplete(segment).await?
        {
            return Ok(reader.write_to(BeginningHasher::of(length)).await?.0.hash());
        }
        self.joined().beginning(name, length).await
    }

    async fn read_incomplete(&self, segment: SegmentName) -> Result<Option<WalReader>> {
        let joined = self.joined();
        if joined.beside().is_empty() {
            return joined.read_incomplete(segment).await;
        }
        let (reader, damaged) = joined.read_longest(segment).await?;
        self.lock_damaged().extend(damaged);
        Ok(reader)
    }

    fn joined(&self) -> WalArchive {
        self.first.joined(self.archives.iter().skip(1).cloned().collect())
    }

    /// What is stored about a segment, as [`WalArchive::header`].
    pub async fn header(&self, segment: SegmentName) -> Result<Option<WalHeader>> {
        self.sound(async |archive: &WalArchive| archive.header(segment).await).await
    }

    /// A timeline's history, as [`WalArchive::history`].
    pub async fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
        self.sound(async |archive: &WalArchive| archive.history(timeline).await).await
    }

    /// The first sound answer to a question that each archive is asked. What is damaged in all of them is an error.
    pub async fn sound<T>(&self, ask: impl AsyncFn(&WalArchive) -> Result<Option<T>>) -> Result<Option<T>> {
        let mut failure = None;
        for (at, archive) in self.archives.iter().enumerate() {
            match ask(archive).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error @ RepoError::Corrupt { .. }) => {
                    self.note(archive, &error);
                    failure.get_or_insert(error);
                }
                Err(error) if at == 0 => return Err(error),
                Err(error) => tracing::debug!("repository \"{}\": {error}", archive.repository().name()),
            }
        }
        failure.map_or(Ok(None), Err)
    }

    fn note(&self, archive: &WalArchive, error: &RepoError) {
        let what = format!("repository \"{}\": {error}", archive.repository().name());
        self.lock_damaged().insert(what);
    }
}
