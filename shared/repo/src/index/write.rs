//! Writing the index: called by the daemon after uploads, whenever [`IndexWriter::note`] says that something is due.
//!
//! What always holds: an object names only segments that this writer's process has stored or whose headers it has read
//! back, so nothing is indexed that is not there. Writers do not exclude each other: a generation is claimed, and who loses
//! reads what the winner wrote and goes on from there. A crash in the middle leaves a group without its directory's next
//! generation; the next write supplies it.
//!
//! Whoever stores all segments itself costs the store one request for each [`STEP`] of them: the index is remembered as it
//! was written. What others store is found by listing, in [`IndexWriter::catch_up`].

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{SegmentName, SegmentNo, TimelineId};
use walpoint_plan::runs::Runs;
use walpoint_storage::error::{RepoError, Result};
use walpoint_storage::object::SealedObject;
use walpoint_storage::store::NumberClaim;

use super::entry::SegmentEntry;
use super::page::{Directory, Group};
use super::read::TimelineIndex;
use super::{DIRECTORY_LEVEL, FANOUT, GROUP_LEVEL, SLACK, STEP, first_of, gather, group_of, last_of};
use crate::wal::WalArchive;

/// How often a lost claim is tried again before somebody else is left to it.
const ATTEMPTS: usize = 5;

/// Sealed groups with gaps that [`IndexWriter::catch_up`] lists again, newest first.
const GROUPS_WITH_GAPS: usize = 8;

/// Groups that are written anew at a time when segments are forgotten: about 4 MB.
const FORGOTTEN: usize = 32;

/// Segments that are listed and indexed at a time: eight groups, so that memory does not grow with the archive.
const BATCH: usize = 8192;

/// Segments that were stored, and what the index keeps of them where that is known already.
type Noted = BTreeMap<SegmentNo, Option<SegmentEntry>>;

/// Writes the index of a lineage. Holds what was stored since the last write, and the index of the timeline written last.
#[derive(Debug)]
pub struct IndexWriter {
    archive: WalArchive,
    noted: BTreeMap<TimelineId, Noted>,
    /// As this writer left it. Somebody else may have written since: then the next claim is lost.
    written: Option<TimelineIndex>,
}

/// What a write did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IndexWritten {
    /// Groups that got a new generation.
    pub groups: usize,
    /// Directories that got a new generation.
    pub directories: usize,
}

impl IndexWriter {
    /// A writer that has noted nothing yet.
    pub fn new(archive: WalArchive) -> Self {
        Self { archive, noted: BTreeMap::new(), written: None }
    }

    /// The WAL that it indexes.
    pub fn archive(&self) -> &WalArchive {
        &self.archive
    }

    /// Remembers that a whole segment was stored; says whether [`Self::write_due`] has something to do. Without an `entry`
    /// its header is read back.
    pub fn note(&mut self, name: SegmentName, entry: Option<SegmentEntry>) -> bool {
        let Some(number) = name.number(self.archive.lineage().segment_size) else { return false };
        let noted = self.noted.entry(name.timeline).or_default();
        // Whoever never writes shall not fill the memory: what is dropped here is found by the next catch-up.
        if noted.len() < BATCH {
            noted.insert(number, entry);
        }
        noted.len() >= STEP
    }

    /// Reads what the index says about a timeline, so that the next write on it need not.
    pub async fn remember(&mut self, timeline: TimelineId) -> Result<()> {
        if self.written.as_ref().is_none_or(|index| index.timeline() != timeline) {
            self.written = Some(TimelineIndex::load(&self.archive, timeline).await?);
        }
        Ok(())
    }

    /// Writes what is due on every timeline noted. On an error the rest stays noted: call again later.
    pub async fn write_due(&mut self) -> Result<IndexWritten> {
        let mut written = IndexWritten::default();
        while let Some((&timeline, _)) = self.noted.iter().find(|(_, noted)| noted.len() >= STEP) {
            let noted = self.noted.get(&timeline).cloned().unwrap_or_default();
            let list = noted.values().any(Option::is_none);
            written.add(self.write(timeline, &noted, list).await?.0);
            self.noted.remove(&timeline);
        }
        Ok(written)
    }

    /// Indexes all that is stored of a timeline and not indexed yet, whoever stored it: after a start, and now and then.
    /// Also the way to rebuild an index that was deleted.
    pub async fn catch_up(&mut self, timeline: TimelineId) -> Result<IndexWritten> {
        let mut index = TimelineIndex::load(&self.archive, timeline).await?;
        let mut late = self.noted.get(&timeline).cloned().unwrap_or_default();
        let with_gaps: Vec<u64> = index.sealed().filter(|(_, s)| !s.is_plain_run()).map(|(n, _)| n).collect();
        for n in with_gaps.into_iter().rev().take(GROUPS_WITH_GAPS) {
            let group = index.group(n).await?;
            let (listed, _) =
                gather::list(&self.archive, timeline, first_of(n), last_of(n), usize::MAX).await?;
            let missed = listed.into_keys().filter(|&number| group.get(number).is_none());
            for number in missed {
                late.entry(number).or_default();
            }
        }
        let mut written = IndexWritten::default();
        loop {
            let (step, more) = self.write(timeline, &late, true).await?;
            written.add(step);
            if !more || step == IndexWritten::default() {
                self.noted.remove(&timeline);
                return Ok(written);
            }
        }
    }

    /// Takes segments out of the index, wherever they lie. `expire` calls it before it deletes them, so that no index
    /// promises for long what is gone.
    pub async fn forget(&mut self, timeline: TimelineId, gone: &Runs) -> Result<IndexWritten> {
        let mut written = IndexWritten::default();
        let mut lost = 0;
        // Groups without any of them; no group is read twice but after a lost claim.
        let mut done = BTreeSet::new();
        loop {
            let mut index = TimelineIndex::load(&self.archive, timeline).await?;
            let concerned = |n: &u64| gone.from(first_of(*n)).is_some_and(|run| run.first <= last_of(*n));
            let mut numbers: BTreeSet<u64> = index.sealed().map(|(n, _)| n).collect();
            numbers.extend(index.open_groups().map(|group| group.n));
            let mut changed = Vec::new();
            let next: Vec<u64> =
                numbers.into_iter().filter(concerned).filter(|n| !done.contains(n)).take(FORGOTTEN).collect();
            for n in next.iter().copied() {
                let mut group = index.group_to_write(n).await?;
                let known: Vec<SegmentNo> =
                    group.iter().map(|(number, _)| number).filter(|number| gone.contains(*number)).collect();
                for number in &known {
                    group.set(*number, None);
                }
                changed.extend((!known.is_empty()).then_some(group));
                done.insert(n);
            }
            if next.is_empty() {
                return Ok(written);
            }
            if changed.is_empty() {
                continue;
            }
            let sealed = index.sealed_through();
            let groups: Vec<u64> = changed.iter().map(|group| group.n).collect();
            match self.store(&mut index, changed, |n| sealed.is_some_and(|s| n <= s)).await? {
                Some(step) => written.add(step),
                None => {
                    lost += 1;
                    if lost >= ATTEMPTS {
                        return Err(self.beaten(timeline));
                    }
                    groups.iter().for_each(|n| {
                        done.remove(n);
                    });
                }
            }
        }
    }

    /// Indexes what was noted and, if it is to `list`, the tail, or its first [`BATCH`]; says whether there is more. What was
    /// noted without an entry lies in the tail only if that is listed.
    async fn write(
        &mut self,
        timeline: TimelineId,
        noted: &Noted,
        list: bool,
    ) -> Result<(IndexWritten, bool)> {
        for _ in 0..ATTEMPTS {
            let remembered = self.written.take().filter(|index| !list && index.timeline() == timeline);
            let mut index = match remembered {
                Some(index) => index,
                None => TimelineIndex::load(&self.archive, timeline).await?,
            };
            let unsealed = index.first_unsealed();
            let (mut listed, more) = if list {
                gather::list(&self.archive, timeline, unsealed, SegmentNo(u64::MAX), BATCH).await?
            } else {
                (
                    noted
                        .range(unsealed..)
                        .filter_map(|(n, entry)| Some((*n, entry.as_ref()?.stored)))
                        .collect(),
                    false,
                )
            };
            let highest = listed.keys().next_back().copied().unwrap_or(unsealed);
            for (&number, entry) in noted.range(..unsealed) {
                if let Some(entry) = entry {
                    listed.insert(number, entry.stored);
                } else {
                    listed.extend(gather::list(&self.archive, timeline, number, number, 1).await?.0);
                }
            }
            let mut numbers: BTreeSet<u64> = listed.keys().map(|&n| group_of(n)).collect();
            numbers.extend(index.open_groups().map(|g| g.n));
            let (mut changed, mut sealing) = (Vec::new(), BTreeSet::new());
            for n in numbers {
                let sealed = n < group_of(unsealed);
                let known = index.group(n).await?;
                let new = listed.range(first_of(n)..=last_of(n)).filter(|(at, _)| known.get(**at).is_none());
                let new: gather::SegmentSizes = new.map(|(n, stored)| (*n, *stored)).collect();
                let complete = is_complete(&known, &new, highest);
                // What is not written now is found again by listing, or not at all.
                let enough = if list && !sealed { STEP } else { 1 };
                if !complete && new.len() < enough {
                    continue;
                }
                if sealed && new.is_empty() {
                    continue;
                }
                let mut group = index.group_to_write(n).await?;
                let mut unread = gather::SegmentSizes::new();
                for (&number, &stored) in &new {
                    if let Some(entry) = noted.get(&number).copied().flatten() {
                        group.set(number, Some(entry));
                    } else {
                        unread.insert(number, stored);
                    }
                }
                for (number, entry) in gather::entries(&self.archive, timeline, unread).await? {
                    group.set(number, Some(entry));
                }
                if sealed || complete {
                    sealing.insert(n);
                }
                changed.push(group);
            }
            if let Some(written) = self.store(&mut index, changed, |n| sealing.contains(&n)).await? {
                self.written = Some(index);
                return Ok((written, more));
            }
        }
        Err(self.beaten(timeline))
    }

    /// Stores groups, whose generations are already the next ones, and then the next generation of each directory that
    /// has or gets one of them; `index` is then as it was written. `None` if somebody else was faster.
    async fn store(
        &self,
        index: &mut TimelineIndex,
        changed: Vec<Group>,
        enters: impl Fn(u64) -> bool,
    ) -> Result<Option<IndexWritten>> {
        let timeline = index.timeline();
        let sealer = self.archive.repository().sealer();
        let mut written = IndexWritten::default();
        let mut directories: BTreeMap<u64, Directory> = BTreeMap::new();
        for group in changed {
            let n = group.n;
            let key = self.archive.paths().index_object(timeline, GROUP_LEVEL, n, group.generation);
            if !self.claim(group.seal(sealer, &key)?).await? {
                return Ok(None);
            }
            written.groups += 1;
            if enters(n) {
                let at = n / FANOUT;
                let known = || index.directories().get(&at).cloned();
                let directory = directories
                    .entry(at)
                    .or_insert_with(|| known().unwrap_or_else(|| Directory::empty(timeline, at)));
                directory.set(n, group.summary());
            }
            index.wrote_group(group);
        }
        for (at, mut directory) in directories {
            directory.generation = index.next_generation(DIRECTORY_LEVEL, at);
            let key = self.archive.paths().index_object(timeline, DIRECTORY_LEVEL, at, directory.generation);
            if !self.claim(directory.seal(sealer, &key)?).await? {
                return Ok(None);
            }
            written.directories += 1;
            index.wrote_directory(directory);
        }
        Ok(Some(written))
    }

    async fn claim(&self, object: SealedObject) -> Result<bool> {
        Ok(self.archive.repository().store().claim(&object).await? == NumberClaim::Won)
    }

    fn beaten(&self, timeline: TimelineId) -> RepoError {
        RepoError::Internal(format!(
            "the index of timeline {timeline} of {} was written by other processes {ATTEMPTS} times in a \
             row\nDETAIL: The index is correct, but may lack what was stored last.",
            self.archive.lineage().id
        ))
    }
}

impl IndexWritten {
    fn add(&mut self, other: Self) {
        self.groups += other.groups;
        self.directories += other.directories;
    }
}

/// Whether a group can be sealed: it ends without a gap, or the timeline is far enough beyond it.
fn is_complete(known: &Group, new: &gather::SegmentSizes, highest: SegmentNo) -> bool {
    let mut numbers: BTreeSet<SegmentNo> = known.iter().map(|(n, _)| n).collect();
    numbers.extend(new.keys());
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else { return false };
    let plain = *last == last_of(known.n) && last.0 - first.0 + 1 == numbers.len() as u64;
    plain || highest.0 >= last_of(known.n).0.saturating_add(SLACK)
}
