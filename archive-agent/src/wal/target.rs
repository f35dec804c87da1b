//! One repository as the target of a cluster's WAL: opened when it is needed first ([`opening`](super::opening)), and again after it failed in
//! a way that another opening may cure.
//!
//! A daemon starts, and goes on, while a repository cannot be reached. New credentials are read at the next opening.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio::sync::{Mutex, Notify};
use walpoint_base::{ClusterName, LineageId, SegmentName, TimelineId, WalFileName};
use walpoint_repo::index::SegmentEntry;
use walpoint_repo::wal::{SealedSegment, Stored, WalArchive, WalContent};
use walpoint_storage::RepoError;
use walpoint_storage::error::error_chain;
use walpoint_storage::object::{ContentHash, Level, RepositoryId};
use walpoint_storage::store::StoreSettings;

use super::beside::Beside;
use super::blocked::Blocked;
use super::disk;
use super::known::{Incarnation, Known};
use super::lineage::Remembered;
use super::opening::OpenedTarget;
use super::points;
use super::presence::Presence;
use super::split_brain::SplitBrain;
use super::switched::SwitchedRecords;
pub(crate) use super::target_error::TargetError;
pub(super) use super::target_error::in_the_way;
use super::unfinished::Unfinished;
use super::writes::Writes;

/// A repository that has not answered a write for so long rests.
const SLOW: Duration = Duration::from_secs(5);

/// Names kept for the index, at the most.
const NOTES: usize = 4096;

/// A segment that was stored, in which lineage, and what the index keeps of it if that is known.
#[derive(Debug)]
pub(crate) struct Noted {
    pub(crate) lineage: LineageId,
    pub(crate) name: SegmentName,
    pub(crate) entry: Option<SegmentEntry>,
}

/// The first file of each timeline that a repository missed; everything after it may be missing.
pub(crate) type Missed = BTreeMap<TimelineId, SegmentName>;

/// Segments stored ahead of PostgreSQL's questions of which something is kept.
const REMEMBERED: usize = 256;

/// A repository that receives a cluster's WAL.
#[derive(Debug)]
pub(crate) struct WalTarget {
    pub(super) name: String,
    pub(super) cluster: ClusterName,
    pub(super) pgdata: PathBuf,
    pub(super) settings: StoreSettings,
    pub(super) level: Level,
    /// Whether an acknowledgement waits for it.
    pub(crate) acknowledges: bool,
    pub(super) opened: Mutex<Option<OpenedTarget>>,
    pub(super) presence: Presence,
    /// What the WAL of the directory showed last, if it is not bound and there are several lineages.
    pub(super) shown: std::sync::Mutex<Option<Remembered>>,
    /// What is being stored there.
    pub(super) writes: Writes,
    /// Whole segments that were stored and not taken by the index yet, with what it keeps of those stored anew.
    stored: std::sync::Mutex<VecDeque<Noted>>,
    stored_more: Notify,
    /// Until when it is left out, if it does not have to acknowledge.
    resting: std::sync::Mutex<Option<Instant>>,
    /// What it did not get, if it does not have to acknowledge.
    missed: std::sync::Mutex<Missed>,
    /// What waits for it, if it does not have to acknowledge.
    pub(super) beside: Beside,
    /// What could not be copied there.
    pub(super) unfinished: Unfinished,
    /// What could not be stored there because a damaged object is in its place, if it does not have to acknowledge.
    pub(super) blocked: Blocked,
    /// Whether it was reported that it does not record those that acknowledge.
    pub(super) unrecorded: AtomicBool,
    known: std::sync::Mutex<Known>,
    /// The newest segments that were stored there, and what `pg_wal` has to remember of them.
    unremembered: std::sync::Mutex<VecDeque<(SegmentName, String)>>,
    /// Why `pg_wal` cannot remember what was stored, if there is no room for it.
    unnoted: std::sync::Mutex<Option<String>>,
    /// Told when a segment is no longer being stored.
    landed: Notify,
    /// How often the data directory was bound to another lineage, or the repository was another one.
    pub(super) lineages_left: AtomicU64,
}

/// A segment that is being stored, until dropped.
pub(crate) struct UnderWay<'a>(&'a WalTarget, SegmentName);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner).end(self.1);
        self.0.landed.notify_waiters();
    }
}

impl WalTarget {
    /// A repository that is not opened yet, for the WAL of a data directory, to be compressed at that level.
    pub(crate) fn new(
        name: &str,
        (cluster, pgdata): (&ClusterName, &Path),
        settings: StoreSettings,
        level: Level,
        acknowledges: bool,
    ) -> Self {
        Self {
            name: name.to_owned(),
            cluster: cluster.clone(),
            pgdata: pgdata.to_owned(),
            settings,
            level,
            acknowledges,
            opened: Mutex::default(),
            presence: Presence::default(),
            shown: std::sync::Mutex::default(),
            writes: Writes::default(),
            stored: std::sync::Mutex::default(),
            stored_more: Notify::new(),
            resting: std::sync::Mutex::default(),
            missed: std::sync::Mutex::default(),
            beside: Beside::default(),
            unfinished: Unfinished::default(),
            blocked: Blocked::default(),
            unrecorded: AtomicBool::new(false),
            known: std::sync::Mutex::default(),
            unremembered: std::sync::Mutex::default(),
            unnoted: std::sync::Mutex::default(),
            landed: Notify::new(),
            lineages_left: AtomicU64::new(0),
        }
    }

    /// Looks at what is known of a lineage, or changes it.
    pub(super) fn known<T>(&self, lineage: LineageId, look: impl FnOnce(&mut Known) -> T) -> T {
        look(self.known.lock().unwrap_or_else(PoisonError::into_inner).of(lineage))
    }

    /// Keeps what `pg_wal` has to remember of a segment until PostgreSQL asks for it.
    pub(super) fn remember_later(&self, name: SegmentName, line: String) {
        let mut lines = self.unremembered.lock().unwrap_or_else(PoisonError::into_inner);
        lines.retain(|(other, _)| *other != name);
        lines.push_back((name, line));
        if lines.len() > REMEMBERED {
            lines.pop_front();
        }
    }

    /// What `pg_wal` has to remember of a segment that was stored.
    pub(super) fn to_remember(&self, name: SegmentName) -> Option<String> {
        let lines = self.unremembered.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().find(|(other, _)| *other == name).map(|(_, line)| line.clone())
    }

    /// Why `pg_wal` cannot remember what was stored, as of the last attempt.
    pub(super) fn set_unnoted(&self, why: Option<String>) {
        let mut unnoted = self.unnoted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(why) = why.as_ref().filter(|_| unnoted.is_none()) {
            tracing::warn!(repository = self.name, "{why}");
        }
        *unnoted = why;
    }

    /// Why `pg_wal` cannot remember what was stored, if it cannot.
    pub(crate) fn unnoted(&self) -> Option<String> {
        self.unnoted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a stored segment for this server's, as a person says, for as long as the server runs: nothing else remembers it.
    pub(super) fn take_for_own(&self, lineage: LineageId, name: SegmentName, incarnation: Incarnation) {
        self.known(lineage, |known| {
            known.since(incarnation);
            known.add(name, false, incarnation);
        });
    }

    /// Changes whenever what was stored before may not count any more: it went into another lineage, or another repository.
    pub(crate) fn lineages_left(&self) -> u64 {
        self.lineages_left.load(Ordering::Acquire)
    }

    /// What was refused as another server's WAL.
    pub(crate) fn split_brains(&self) -> Vec<SplitBrain> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).refused()
    }

    /// Timelines that are stored and did not come from their parents' servers.
    pub(crate) fn disputed_timelines(&self) -> Vec<SplitBrain> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).forks.disputed()
    }

    /// Whether segments came at which no look for forks was due, and none since.
    pub(super) fn has_forks_left(&self) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).forks.are_left()
    }

    /// What is wrong with histories that are stored, while this server has sound ones of its own.
    pub(crate) fn damaged_histories(&self) -> Vec<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).damaged()
    }

    /// Remembers what was refused as another server's WAL.
    pub(super) fn refuse(&self, split: &SplitBrain, segment: Option<SegmentName>) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).refuse(split.clone(), segment);
    }

    /// Begins to store a segment, when the one before it is no longer being stored or shows nothing.
    pub(super) async fn begin(
        &self,
        lineage: LineageId,
        name: SegmentName,
        before: Option<SegmentName>,
    ) -> UnderWay<'_> {
        loop {
            let landed = self.landed.notified();
            if self.known(lineage, |known| known.begin(name, before)) {
                return UnderWay(self, name);
            }
            // The one before may have landed since.
            tokio::time::timeout(Duration::from_millis(200), landed).await.ok();
        }
    }

    /// Refuses to begin anything where a write hangs.
    pub(super) fn answers(&self) -> Result<(), TargetError> {
        if self.writes.hang() { Err(TargetError::Hangs) } else { Ok(()) }
    }

    /// Whether it is left out at the moment.
    pub(crate) fn rests(&self) -> bool {
        if self.writes.hang() || self.writes.oldest().is_some_and(|span| span > SLOW) {
            return true;
        }
        let until = *self.resting.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Leaves it out for that long.
    pub(crate) fn rest(&self, span: Duration) {
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + span);
    }

    /// It answers again.
    pub(crate) fn end_rest(&self) {
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Remembers that it did not get a file.
    pub(super) fn note_missed(&self, name: WalFileName) {
        if let Some(segment) = name.segment() {
            self.miss_again(Missed::from([(name.timeline(), segment)]));
        }
    }

    /// Whether it is known to have missed anything that is not being made good.
    pub(super) fn missed_any(&self) -> bool {
        !self.missed.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Remembers what was taken and not made good.
    pub(crate) fn miss_again(&self, missed: Missed) {
        let mut all = self.missed.lock().unwrap_or_else(PoisonError::into_inner);
        for (timeline, segment) in missed {
            all.entry(timeline).and_modify(|first| *first = segment.min(*first)).or_insert(segment);
        }
    }

    /// Takes what it missed, to make it good.
    pub(crate) fn take_missed(&self) -> Missed {
        std::mem::take(&mut *self.missed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The repository's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Stores a segment that was sealed for the archive that [`Self::archive`] gave, durably; with the hash of what is stored under its name,
    /// which is another one where only what lies behind a switch differs. `content`: what was sealed. That it is stored does not yet
    /// show whose the timeline is.
    // Boxed: the compiler cannot prove a nest of that many futures to be `Send`.
    pub(crate) fn store_segment<'a>(
        &'a self,
        archive: &'a WalArchive,
        name: SegmentName,
        sealed: SealedSegment,
        content: &'a WalContent,
    ) -> BoxFuture<'a, Result<(Stored, ContentHash), TargetError>> {
        let store = async move {
            let (entry, lineage) = (sealed.entry(), archive.lineage().id);
            let (hash, damaged) = (sealed.hash(), sealed.is_damaged());
            let records = SwitchedRecords::of(sealed.facts()).filter(|_| !damaged);
            let sealed = points::store(archive, sealed, content).await.map_err(in_the_way)?;
            let stored = match archive.put_sealed(sealed, content).await {
                Ok(stored) => stored,
                Err(conflict @ RepoError::Conflict { .. }) if accepted(archive, name).await => {
                    let repository = self.name.clone();
                    let name = WalFileName::Segment(name);
                    return Err(TargetError::StoredDamaged {
                        name,
                        repository,
                        conflict: Box::new(conflict),
                    });
                }
                Err(error @ RepoError::Conflict { .. }) => {
                    return match self.stored_records(archive, records, content).await? {
                        Some(stored) => Ok((Stored::Same, stored)),
                        None => Err(SplitBrain::new(archive, name.timeline, error_chain(&error)).into()),
                    };
                }
                Err(error) => return Err(in_the_way(error).into()),
            };
            match stored {
                Stored::New => self.note(Noted { lineage, name, entry }),
                // Somebody else's bytes may be more or fewer.
                Stored::Same => self.note(Noted { lineage, name, entry: None }),
                Stored::Ended(_) => {}
            }
            Ok((stored, hash))
        };
        Box::pin(self.or_start_over(store))
    }

    /// The hash of the segment that is stored, if it has these records of `content`. One that is damaged is in the way.
    async fn stored_records(
        &self,
        archive: &WalArchive,
        records: Option<SwitchedRecords>,
        content: &WalContent,
    ) -> Result<Option<ContentHash>, RepoError> {
        let Some(records) = records else { return Ok(None) };
        let content = content.clone();
        let hashed = disk::run(&self.pgdata, move || records.hash(&content)).await?;
        let hashed = hashed.map_err(|source| RepoError::Io {
            what: "the segment to be stored cannot be read".to_owned(),
            source,
        })?;
        let Some(ours) = hashed else { return Ok(None) };
        records.stored(archive, ours).await.map_err(in_the_way)
    }

    /// Stores a file that is no segment in the archive that [`Self::archive`] gave, durably.
    pub(crate) fn store_other<'a>(
        &'a self,
        archive: &'a WalArchive,
        name: WalFileName,
        content: &'a WalContent,
    ) -> BoxFuture<'a, Result<Stored, TargetError>> {
        let store = async move {
            match archive.put_file(name, content.clone()).await {
                // For people alone: recovery never reads it, so it is nothing to stop for.
                Err(error @ RepoError::Conflict { .. }) if matches!(name, WalFileName::Backup(..)) => {
                    tracing::warn!(
                        file = %name,
                        repository = self.name,
                        "the file about a backup that is stored differs, and stays as it is: {}",
                        error_chain(&error)
                    );
                    Ok(Stored::Same)
                }
                stored => Ok(stored.map_err(in_the_way)?),
            }
        };
        Box::pin(self.or_start_over(store))
    }

    pub(super) async fn or_start_over<T>(
        &self,
        attempt: impl Future<Output = Result<T, TargetError>>,
    ) -> Result<T, TargetError> {
        let result = attempt.await;
        if let Err(TargetError::Repository(error)) = &result
            && opening_may_cure(error)
        {
            *self.opened.lock().await = None;
        }
        result
    }

    /// [`Self::or_start_over`] after what was asked of its archive directly: nothing else opens a repository anew where a comparison fails
    /// before anything is stored.
    pub(super) async fn start_over_after(&self, error: &anyhow::Error) {
        if error.chain().filter_map(|cause| cause.downcast_ref()).any(opening_may_cure) {
            *self.opened.lock().await = None;
        }
    }

    /// Forgets a repository that is gone, or another one now, and all that was known of it.
    pub(super) async fn forget(&self, id: RepositoryId) {
        self.opened.lock().await.take_if(|opened| opened.repository.id() == id);
        self.writes.leave_behind();
        self.forget_stored();
    }

    pub(super) fn forget_stored(&self) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).forget();
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.missed.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.unfinished.forget();
        self.blocked.forget();
        self.lineages_left.fetch_add(1, Ordering::AcqRel);
        // Another one has missed all that was stored before.
        self.beside.forget();
    }

    fn note(&self, noted: Noted) {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        // What does not fit is found by the index's next catch-up.
        if stored.len() < NOTES {
            stored.push_back(noted);
            self.stored_more.notify_one();
        }
    }

    /// Waits for the next whole segment that was stored. For one listener: the index.
    pub(crate) async fn next_stored(&self) -> Noted {
        loop {
            let next = self.stored.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            match next {
                Some(noted) => return noted,
                None => self.stored_more.notified().await,
            }
        }
    }
}

/// Whether an error may be gone when a repository is opened anew: credentials may have been renewed, a directory mounted.
fn opening_may_cure(error: &RepoError) -> bool {
    !matches!(error, RepoError::Conflict { .. } | RepoError::Unavailable { .. })
}

/// Whether an archive is known to hold a segment as it was accepted although damaged.
async fn accepted(archive: &WalArchive, name: SegmentName) -> bool {
    matches!(archive.header(name).await, Ok(Some(header)) if header.damaged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wal::fixtures::{Bed, switch_in};

    /// A3: whatever is left of a stored object that is damaged, the refusal of its file says how to continue.
    #[tokio::test]
    async fn what_a_damaged_object_is_in_the_way_of_says_how_to_continue() {
        let (bed, name) = (Bed::new().await, "00000002.history".parse::<WalFileName>().unwrap());
        let (target, content) =
            (bed.target(true), WalContent::from(switch_in("000000020000000000000001", 64)));
        let store = async || target.store_other(&bed.archive, name, &content).await;
        assert_eq!(store().await.unwrap(), Stored::New);
        let object = bed.stored("00000002.history");
        let whole = std::fs::read(&object).unwrap();
        for length in [0, 10, whole.len() - 1] {
            walpoint_base::durable::replace(&object, &whole[..length], 0o600).unwrap();
            let refused = store().await.unwrap_err().to_string();
            assert!(
                refused.contains("\nDETAIL: It prevents storing an object under that name."),
                "{refused}"
            );
            assert!(
                refused.ends_with("\nHINT: Move that object away. The next attempt then stores the file."),
                "{refused}"
            );
        }
        std::fs::remove_file(&object).unwrap();
        assert_eq!(store().await.unwrap(), Stored::New);
    }
}
