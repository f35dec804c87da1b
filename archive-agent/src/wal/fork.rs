//! Whether a timeline begins with what its parent's server wrote.
//!
//! PostgreSQL begins a timeline with a copy of what its parent's segment has before the switch point (`XLogInitNewTimeline` in
//! src/backend/access/transam/xlog.c). So where both segments are at hand, they show whether one server wrote both. Each fork is
//! compared once: whole segments are read for it. A timeline that turns out to be another server's stays where it is, and its
//! own history is kept beside it as refused, so that no reader takes it for the latest. A crash leaves that or not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use walpoint_base::chain::{ChainFacts, Link};
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_repo::wal::{WalArchive, WalReader};
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::comparison::{Comparison, begun};
use super::disk;
use super::elsewhere;
use super::neighbors::{self, StoredNeighbor};
use super::split_brain::SplitBrain;
use super::target::{TargetError, WalTarget};

/// How often to look for forks that others stored, if segments come that often.
const INTERVAL: Duration = Duration::from_secs(15);

/// Where a timeline begins in the middle of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fork {
    /// Its first segment.
    first: SegmentName,
    /// The segment of that position on the timeline that it left.
    parent: SegmentName,
    switch: Lsn,
    /// Bytes that both have.
    shared: u64,
}

impl Fork {
    /// Of the newest timeline of a history; `None` if there is nothing to compare.
    pub(super) fn of(history: &TimelineHistory, size: SegmentSize) -> Option<Self> {
        let child = history.timeline();
        let switch = history.begin_of(child).filter(|switch| switch.is_valid())?;
        let number = SegmentNo::of(switch, size);
        let shared = switch.since(number.start(size));
        let parent = number.name(history.timeline_at(switch - 1), size);
        (shared > 0).then_some(Self { first: number.name(child, size), parent, switch, shared })
    }

    fn child(&self) -> TimelineId {
        self.first.timeline
    }

    fn differs(&self, parent: &str) -> Comparison {
        let Self { first, switch, .. } = self;
        Comparison::Other(format!(
            "segment {first} does not begin with what {parent} has before {switch}, where timeline {} begins",
            self.child()
        ))
    }
}

/// The beginning of a segment, without the zeros that it ends with.
struct Beginning {
    hasher: blake3::Hasher,
    given: u64,
    filled: u64,
    /// Bytes from here on are not looked at.
    limit: u64,
}

impl Beginning {
    fn new(limit: u64) -> Self {
        Self { hasher: blake3::Hasher::new(), given: 0, filled: 0, limit }
    }

    async fn of_stored(reader: WalReader, limit: u64) -> Result<Self, RepoError> {
        Ok(reader.write_to(Self::new(limit)).await?.0)
    }

    /// Of a file; `None` if it cannot be read.
    async fn of_file(path: &Path, limit: u64) -> Option<Self> {
        let (directory, path) = (path.parent().unwrap_or(path), path.to_owned());
        let read = move || {
            let mut beginning = Self::new(limit);
            io::copy(&mut std::fs::File::open(path)?.take(limit), &mut beginning).map(|_| beginning)
        };
        disk::run(directory, read).await.ok()?.ok()
    }

    fn is(&self, other: &Self) -> bool {
        (self.filled, self.hasher.finalize()) == (other.filled, other.hasher.finalize())
    }
}

impl Write for Beginning {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.limit.saturating_sub(self.given)).unwrap_or(usize::MAX);
        let looked_at = buffer.get(..wanted).unwrap_or(buffer);
        if let Some(last) = looked_at.iter().rposition(|byte| *byte != 0) {
            io::copy(&mut Read::take(io::repeat(0), self.given - self.filled), &mut self.hasher)?;
            self.hasher.update(looked_at.get(..=last).unwrap_or(looked_at));
            self.filled = self.given + last as u64 + 1;
        }
        self.given += buffer.len() as u64;
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Compares the segment that a timeline begins in, as a directory has it, with its parent's as an archive has it: the whole one, or
/// else the valid part of its `.partial` files, of which one that agrees is enough.
pub(super) async fn in_directory(
    archive: &WalArchive,
    history: &TimelineHistory,
    wal: &Path,
    size: SegmentSize,
) -> Result<Comparison, RepoError> {
    let Some(fork) = Fork::of(history, size) else { return Ok(Comparison::Unknown) };
    let path = wal.join(fork.first.to_string());
    if !begun(wal, fork.first, size).await? {
        return Ok(Comparison::Unknown);
    }
    if let Some(parent) = stored(archive, fork.parent, fork.shared).await? {
        return Ok(match Beginning::of_file(&path, fork.shared).await {
            None => Comparison::Unknown,
            Some(ours) if ours.is(&parent) => Comparison::Same,
            Some(_) => fork.differs(&format!("{}, which is stored,", fork.parent)),
        });
    }
    let mut compared = Comparison::Unknown;
    for hash in archive.partials(fork.parent).await? {
        let partial = match archive.read_partial(fork.parent, hash).await {
            Ok(Some(reader)) => Beginning::of_stored(reader, fork.shared).await,
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        let partial = match partial {
            Ok(partial) => partial,
            // What is damaged proves nothing.
            Err(RepoError::Corrupt { .. }) => continue,
            Err(error) => return Err(error),
        };
        let Some(ours) = Beginning::of_file(&path, partial.filled).await else { continue };
        if ours.is(&partial) {
            return Ok(Comparison::Same);
        }
        compared = fork.differs(&format!("{}.partial, which is stored,", fork.parent));
    }
    Ok(compared)
}

/// The beginning of a segment that is stored; `None` if it is not, or is damaged and proves nothing.
async fn stored(archive: &WalArchive, name: SegmentName, limit: u64) -> Result<Option<Beginning>, RepoError> {
    let StoredNeighbor::Sound(_) = neighbors::header(archive, name).await? else { return Ok(None) };
    let read = async {
        match archive.read(WalFileName::Segment(name)).await? {
            Some(reader) => Ok(Some(Beginning::of_stored(reader, limit).await?)),
            None => Ok(None),
        }
    };
    match read.await {
        Err(RepoError::Corrupt { .. }) => Ok(None),
        read => read,
    }
}

/// What is known of the forks in an archive.
#[derive(Debug, Default)]
pub(super) struct Forks {
    looked: Option<Instant>,
    /// By the timeline that begins there: the hash of its history, and the fork.
    found: BTreeMap<TimelineId, (ContentHash, Option<Fork>, ForkComparison)>,
    disputed: Vec<SplitBrain>,
    /// Timelines that a person says do not count.
    abandoned: BTreeSet<TimelineId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ForkComparison {
    /// To be compared.
    Open,
    /// A side was missing. Tried again when the archive was looked at again.
    Waits,
    Compared,
    /// The two sides differ, and this server's is refused as long as nothing shows that it was there first.
    Differs,
}

impl Forks {
    /// Timelines that are stored and did not come from their parents' servers, unless they were settled or abandoned.
    pub(super) fn disputed(&self) -> Vec<SplitBrain> {
        let open = self.disputed.iter().filter(|split| !self.abandoned.contains(&split.timeline()));
        open.cloned().collect()
    }
}

/// A segment of a directory that is about to be stored.
pub(super) struct ForkSide<'a> {
    pub(super) target: &'a WalTarget,
    pub(super) archive: &'a WalArchive,
    pub(super) name: SegmentName,
    /// Where it lies.
    pub(super) path: &'a Path,
    pub(super) chain: Option<ChainFacts>,
}

impl ForkSide<'_> {
    /// Compares the forks that the segment's timeline has to do with, as far as they have come. An error refuses the segment: what
    /// is stored of the other timeline came first, or this one is known to be another server's. `true` if a stored timeline
    /// was found to be another server's.
    pub(super) async fn judge(&self) -> Result<bool, TargetError> {
        look(self.target, self.archive).await?;
        let (timeline, lineage) = (self.name.timeline, self.archive.lineage().id);
        let (split, forks) = self.target.known(lineage, |known| {
            let split = known.forks.disputed.iter().find(|split| split.timeline() == timeline).cloned();
            let of_it = |(_, fork, progress): &(ContentHash, Option<Fork>, ForkComparison)| {
                let fork = fork.filter(|fork| match fork.first.timeline == timeline {
                    true => self.name >= fork.first,
                    false => fork.parent.timeline == timeline && self.name >= fork.parent,
                })?;
                let judged = match progress {
                    ForkComparison::Open => false,
                    ForkComparison::Waits => ![fork.first, fork.parent].contains(&self.name),
                    ForkComparison::Differs => fork.parent.timeline != timeline,
                    ForkComparison::Compared => true,
                };
                (!judged).then_some((fork, *progress == ForkComparison::Differs))
            };
            (split, known.forks.found.values().filter_map(of_it).collect::<Vec<(Fork, bool)>>())
        });
        if let Some(split) = split {
            return Err(split.into());
        }
        let mut found = false;
        for (fork, differs) in forks {
            found |= match differs || self.differs(&fork).await? {
                true => self.judge_fork(&fork).await?,
                false => false,
            };
        }
        Ok(found)
    }

    async fn differs(&self, fork: &Fork) -> Result<bool, RepoError> {
        // What is stored meanwhile does not read them as well.
        self.note(fork, ForkComparison::Waits);
        let (progress, differs) = match self.beginnings(fork).await? {
            Some((parent, first)) => (ForkComparison::Compared, !parent.is(&first)),
            None => (ForkComparison::Waits, false),
        };
        self.note(fork, progress);
        Ok(differs)
    }

    /// Decides whose server is refused where the two sides of a fork differ.
    async fn judge_fork(&self, fork: &Fork) -> Result<bool, TargetError> {
        let Comparison::Other(what) = fork.differs(&fork.parent.to_string()) else { return Ok(false) };
        if self.is_of_another_server(fork).await? {
            if self.is_settled(fork).await? {
                self.note(fork, ForkComparison::Compared);
                return Ok(false);
            }
            let split = dispute(self.archive, fork, what.clone()).await?;
            tracing::error!(repository = self.target.name(), "{split}");
            let lineage = self.archive.lineage().id;
            self.target.known(lineage, |known| known.forks.disputed.push(split.clone()));
            self.note(fork, ForkComparison::Compared);
            return if self.name.timeline == fork.child() { Err(split.into()) } else { Ok(true) };
        }
        // Of two servers the one that comes second is refused, each time that it asks.
        if self.name.timeline == fork.parent.timeline {
            self.note(fork, ForkComparison::Differs);
            return Err(SplitBrain::new(self.archive, self.name.timeline, what).into());
        }
        Ok(false)
    }

    /// Whether a person has decided that the stored history of the timeline counts, whatever the WAL before it shows. Each process
    /// that begins knows nothing of the forks, and would dispute them again.
    async fn is_settled(&self, fork: &Fork) -> Result<bool, RepoError> {
        let (child, lineage) = (fork.child(), self.archive.lineage().id);
        let found = self.target.known(lineage, |known| known.forks.found.get(&child).map(|found| found.0));
        let Some(hash) = found else { return Ok(false) };
        match self.archive.settlement(child, hash).await {
            Ok(settlement) => Ok(settlement.is_some()),
            // A listing counts it by its name, too.
            Err(RepoError::Corrupt { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn note(&self, fork: &Fork, progress: ForkComparison) {
        self.target.known(self.archive.lineage().id, |known| {
            if let Some(found) = known.forks.found.get_mut(&fork.child()) {
                found.2 = progress;
            }
        });
    }

    /// What both sides begin with; `None` if one is missing: then neither is read.
    async fn beginnings(&self, fork: &Fork) -> Result<Option<(Beginning, Beginning)>, RepoError> {
        for name in [fork.parent, fork.first].into_iter().filter(|name| *name != self.name) {
            if !matches!(neighbors::header(self.archive, name).await?, StoredNeighbor::Sound(_)) {
                return Ok(None);
            }
        }
        let parent = self.beginning(fork.parent, fork).await?;
        Ok(parent.zip(self.beginning(fork.first, fork).await?))
    }

    async fn beginning(&self, name: SegmentName, fork: &Fork) -> Result<Option<Beginning>, RepoError> {
        match name == self.name {
            true => Ok(Beginning::of_file(self.path, fork.shared).await),
            false => stored(self.archive, name, fork.shared).await,
        }
    }

    /// Whether the timeline that begins at a fork is not that of the server that wrote the WAL before it: its first segment does
    /// not continue that, or this server is on the parent's timeline and stored that itself.
    async fn is_of_another_server(&self, fork: &Fork) -> Result<bool, RepoError> {
        let size = self.archive.lineage().segment_size;
        let Some(before) = neighbors::before(fork.parent, None, size) else { return Ok(false) };
        let StoredNeighbor::Sound(header) = neighbors::header(self.archive, before).await? else {
            return Ok(false);
        };
        let chain = match fork.first == self.name {
            true => self.chain,
            false => match neighbors::header(self.archive, fork.first).await? {
                StoredNeighbor::Sound(first) => Some(first.chain),
                StoredNeighbor::Absent | StoredNeighbor::Damaged => None,
            },
        };
        if chain.is_some_and(|chain| matches!(header.chain.end.link(&chain), Link::Broken(_))) {
            return Ok(true);
        }
        let timeline = fork.parent.timeline;
        if self.name.timeline != timeline {
            return Ok(false);
        }
        let wal = self.path.parent().unwrap_or(self.path);
        let claimed = self.target.known(self.archive.lineage().id, |known| known.has_claimed(timeline));
        Ok(claimed
            || elsewhere::claimed(wal, self.archive, timeline).await?.is_some_and(|noted| noted >= before))
    }
}

/// Looks for forks that are stored, and for timelines that were found to be another server's, unless that was done a moment
/// ago: one listing, and one request for each history that is new.
async fn look(target: &WalTarget, archive: &WalArchive) -> Result<(), RepoError> {
    let lineage = archive.lineage().id;
    let due = target.known(lineage, |known| {
        let due = known.forks.looked.is_none_or(|looked| looked.elapsed() > INTERVAL);
        if due {
            known.forks.looked = Some(Instant::now());
        }
        due
    });
    if !due {
        return Ok(());
    }
    let looked = look_now(target, archive).await;
    if looked.is_err() {
        target.known(lineage, |known| known.forks.looked = None);
    }
    looked
}

async fn look_now(target: &WalTarget, archive: &WalArchive) -> Result<(), RepoError> {
    let (lineage, size) = (archive.lineage().id, archive.lineage().segment_size);
    let listed = archive.all_histories().await?;
    for timeline in listed.stored.iter().copied() {
        if target.known(lineage, |known| known.forks.found.contains_key(&timeline)) {
            continue;
        }
        // One that is damaged proves nothing.
        let content = match archive.get(WalFileName::History(timeline)).await {
            Ok(Some(file)) => file.content,
            Ok(None) | Err(RepoError::Corrupt { .. }) => continue,
            Err(error) => return Err(error),
        };
        let hash = archive.repository().sealer().content_hash(&content);
        let fork = TimelineHistory::parse(timeline, &content).ok();
        let fork = fork.and_then(|history| Fork::of(&history, size));
        target.known(lineage, |known| known.forks.found.insert(timeline, (hash, fork, ForkComparison::Open)));
    }
    let disputed = disputed_of(archive, &listed.refused, &listed.settled).await?;
    let abandoned = archive.abandoned_here(&listed.abandoned).await?;
    target.known(lineage, |known| {
        known.forks.disputed = disputed;
        known.forks.abandoned = abandoned.into_keys().collect();
        for (_, _, progress) in
            known.forks.found.values_mut().filter(|found| found.2 == ForkComparison::Waits)
        {
            *progress = ForkComparison::Open;
        }
    });
    Ok(())
}

/// The timelines of an archive that did not come from their parents' servers, unless they were settled or abandoned.
pub(super) async fn disputed(archive: &WalArchive) -> Result<Vec<SplitBrain>, RepoError> {
    let listed = archive.all_histories().await?;
    let mut disputed = disputed_of(archive, &listed.refused, &listed.settled).await?;
    let abandoned = archive.abandoned_here(&listed.abandoned).await?;
    disputed.retain(|split| !abandoned.contains_key(&split.timeline()));
    Ok(disputed)
}

async fn disputed_of(
    archive: &WalArchive,
    refused: &[(TimelineId, ContentHash)],
    settled: &[(TimelineId, ContentHash)],
) -> Result<Vec<SplitBrain>, RepoError> {
    let mut disputed = Vec::new();
    for (timeline, hash) in refused.iter().filter(|refused| !settled.contains(refused)) {
        let content = match archive.get(WalFileName::History(*timeline)).await {
            Ok(Some(file)) => file.content,
            Ok(None) | Err(RepoError::Corrupt { .. }) => continue,
            Err(error) => return Err(error),
        };
        if archive.repository().sealer().content_hash(&content) == *hash {
            let what = "it does not begin with what is stored of the timeline that it left".to_owned();
            disputed.push(SplitBrain::new(archive, *timeline, what).of_the_timeline());
        }
    }
    Ok(disputed)
}

/// Puts a stored timeline in doubt: its own history is kept as refused.
async fn dispute(archive: &WalArchive, fork: &Fork, what: String) -> Result<SplitBrain, RepoError> {
    let child = fork.child();
    if let Some(file) = archive.get(WalFileName::History(child)).await? {
        archive.put_refused_history(child, file.content).await?;
    }
    Ok(SplitBrain::new(archive, child, what).of_the_timeline())
}

/// Whether the history of a timeline is stored and known not to come from its parent's server; what that means.
pub(super) async fn is_disputed(
    archive: &WalArchive,
    timeline: TimelineId,
    content: &[u8],
) -> Result<Option<SplitBrain>, RepoError> {
    let hash = archive.repository().sealer().content_hash(content);
    if archive.refused_history(timeline, hash).await?.is_none()
        || archive.settlement(timeline, hash).await?.is_some()
    {
        return Ok(None);
    }
    disputed_of(archive, &[(timeline, hash)], &[]).await.map(|mut found| found.pop())
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{Bed, switch_in};
    use super::*;

    /// A timeline whose first segment does not continue its parent's WAL, and the next segment of it.
    async fn forked() -> (Bed, Vec<u8>, SegmentName) {
        let bed = Bed::new().await;
        let history = switch_in("000000010000000000000003", 0x800);
        bed.put_history(2, history.clone()).await;
        for (name, seed) in [
            ("000000010000000000000002", 1),
            ("000000010000000000000003", 1),
            ("000000020000000000000003", 2),
        ] {
            bed.put(name, seed).await;
        }
        (bed, history, "000000020000000000000004".parse().unwrap())
    }

    /// What a process finds that knows nothing of the forks yet.
    async fn judged(bed: &Bed, name: SegmentName) -> Result<bool, TargetError> {
        let path = bed.pgdata().join("pg_wal").join(name.to_string());
        let target = bed.target(true);
        let side = ForkSide { target: &target, archive: &bed.archive, name, path: &path, chain: None };
        side.judge().await
    }

    #[tokio::test]
    async fn a_settled_timeline_is_disputed_by_no_later_process() {
        let (bed, history, next) = forked().await;
        for _ in 0..2 {
            let told = judged(&bed, next).await.unwrap_err();
            assert!(matches!(told, TargetError::SplitBrain(_)), "{told}");
        }
        assert_eq!(disputed(&bed.archive).await.unwrap().len(), 1);
        let hash = bed.archive.repository().sealer().content_hash(&history);
        bed.archive.settle_history(next.timeline, hash, "the other one was a test", "dba").await.unwrap();
        assert!(!judged(&bed, next).await.unwrap());
        assert!(disputed(&bed.archive).await.unwrap().is_empty());
    }
}
