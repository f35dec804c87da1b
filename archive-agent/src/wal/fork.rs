//! Whether a timeline begins with what its parent's server wrote.
//!
//! PostgreSQL begins a timeline with a copy of what its parent's segment has before the switch point (`XLogInitNewTimeline` in
//! src/backend/access/transam/xlog.c). So where both segments are at hand, they show whether one server wrote both. A timeline that
//! begins between two segments has nothing of its parent's: its first record has to follow the parent's last one. Each fork is
//! compared once: whole segments are read for it. A timeline that turns out to be another server's stays where it is, and its
//! own history is kept beside it as refused, so that no reader takes it for the latest. A crash leaves that or not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Instant;

use walpoint_base::chain::{ChainFacts, Link};
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId, WalFileName};
use walpoint_pg::wal::WalIdentity;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::RepoError;
use walpoint_storage::object::ContentHash;

use super::beginning::{Beginning, stored};
use super::comparison::{self, Comparison, begun};
use super::contradiction;
use super::elsewhere;
use super::neighbors::{self, StoredNeighbor};
use super::pace::Pace;
use super::split_brain::SplitBrain;
use super::target::{TargetError, WalTarget};

/// Where a timeline begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fork {
    /// Its first segment.
    first: SegmentName,
    /// The segment of that position on the timeline that it left, or the one before it if the timeline begins between the two.
    parent: SegmentName,
    switch: Lsn,
    /// Bytes that both have; 0 if it begins between two segments.
    shared: u64,
}

impl Fork {
    /// Of the newest timeline of a history; `None` if there is nothing to compare.
    pub(super) fn of(history: &TimelineHistory, size: SegmentSize) -> Option<Self> {
        let child = history.timeline();
        let switch = history.begin_of(child).filter(|switch| switch.is_valid())?;
        let number = SegmentNo::of(switch, size);
        let shared = switch.since(number.start(size));
        let parent = SegmentNo::of(switch - 1, size).name(history.timeline_at(switch - 1), size);
        Some(Self { first: number.name(child, size), parent, switch, shared })
    }

    fn child(&self) -> TimelineId {
        self.first.timeline
    }

    fn differs(&self, parent: &str) -> Comparison {
        let Self { first, switch, shared, .. } = self;
        if *shared == 0 {
            let child = self.child();
            return Comparison::Other(format!(
                "segment {first} does not continue {parent}, after which timeline {child} begins at {switch}"
            ));
        }
        Comparison::Other(format!(
            "segment {first} does not begin with what {parent} has before {switch}, where timeline {} begins",
            self.child()
        ))
    }
}

/// Compares the segment that a timeline begins in, as a directory has it, with its parent's as an archive has it: the whole one, or
/// else the valid part of its `.partial` files, of which one that agrees is enough. Of a timeline that begins between two segments
/// its parent's last one is compared, and whether the first one continues it.
pub(super) async fn in_directory(
    archive: &WalArchive,
    history: &TimelineHistory,
    wal: &Path,
    size: SegmentSize,
) -> Result<Comparison, RepoError> {
    let Some(fork) = Fork::of(history, size) else { return Ok(Comparison::Unknown) };
    if fork.shared == 0 {
        return between_segments(archive, &fork, wal).await;
    }
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

/// [`in_directory`] for a timeline that begins between two segments.
async fn between_segments(archive: &WalArchive, fork: &Fork, wal: &Path) -> Result<Comparison, RepoError> {
    let StoredNeighbor::Sound(parent) = neighbors::header(archive, fork.parent).await? else {
        return Ok(Comparison::Unknown);
    };
    if let Some(what) = comparison::another(archive, wal, fork.parent).await? {
        return Ok(Comparison::Other(what));
    }
    let lineage = archive.lineage();
    let (system_id, major) = (lineage.system_id(), lineage.major);
    let cluster = WalIdentity { system_id, major, segment_size: lineage.segment_size };
    Ok(match comparison::edges(wal, fork.first, &cluster).await {
        None => Comparison::Unknown,
        Some(first) if matches!(parent.chain.end.link(&first), Link::Broken(_)) => {
            fork.differs(&format!("{}, which is stored,", fork.parent))
        }
        Some(_) => Comparison::Same,
    })
}

/// What is known of the forks in an archive.
#[derive(Debug, Default)]
pub(super) struct Forks {
    pace: Pace,
    /// By the timeline that begins there: the hash of its history, and the fork.
    found: BTreeMap<TimelineId, (ContentHash, Option<Fork>, ForkComparison)>,
    disputed: Vec<SplitBrain>,
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// The last segment, if no look was due at it.
    left: Option<SegmentName>,
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

    /// Whether a segment came at which no look was due, and none since.
    pub(super) fn are_left(&self) -> bool {
        self.left.is_some()
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
        let looked = look(self.target, self.archive).await?;
        let left = (!looked).then_some(self.name);
        self.target.known(self.archive.lineage().id, |known| known.forks.left = left);
        self.compare().await
    }

    /// [`Self::judge`] by what is known already.
    async fn compare(&self) -> Result<bool, TargetError> {
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
        let differs = match fork.shared {
            0 => self.is_broken(fork).await?,
            _ => self.beginnings(fork).await?.map(|(parent, first)| !parent.is(&first)),
        };
        let progress = if differs.is_some() { ForkComparison::Compared } else { ForkComparison::Waits };
        let differs = differs.unwrap_or(false);
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

    /// Whether a timeline that begins between two segments does not continue its parent's last one; `None` if one is missing.
    async fn is_broken(&self, fork: &Fork) -> Result<Option<bool>, RepoError> {
        let parent = self.edges(fork.parent).await?;
        let broken = |first| parent.map(|parent| matches!(parent.end.link(&first), Link::Broken(_)));
        Ok(self.edges(fork.first).await?.and_then(broken))
    }

    /// The edges of the segment itself, or of a stored one.
    async fn edges(&self, name: SegmentName) -> Result<Option<ChainFacts>, RepoError> {
        if name == self.name {
            return Ok(self.chain);
        }
        Ok(match neighbors::header(self.archive, name).await? {
            StoredNeighbor::Sound(header) => Some(header.chain),
            StoredNeighbor::Absent | StoredNeighbor::Damaged => None,
        })
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
        // What is being stored just now proves nothing yet.
        let is_stored = fork.shared == 0 && fork.parent != self.name;
        let before = if is_stored { Some(fork.parent) } else { neighbors::before(fork.parent, None, size) };
        let Some(before) = before else { return Ok(false) };
        let StoredNeighbor::Sound(header) = neighbors::header(self.archive, before).await? else {
            return Ok(false);
        };
        let adjoins = fork.shared > 0 || is_stored;
        let first = if adjoins { self.edges(fork.first).await? } else { None };
        if first.is_some_and(|first| matches!(header.chain.end.link(&first), Link::Broken(_))) {
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
/// ago: one listing, and one request for each history that is new. Whether it looked.
async fn look(target: &WalTarget, archive: &WalArchive) -> Result<bool, RepoError> {
    let lineage = archive.lineage().id;
    let due = target.known(lineage, |known| known.forks.pace.is_due(Instant::now()));
    if !due {
        return Ok(false);
    }
    let looked = look_now(target, archive).await;
    if looked.is_err() {
        target.known(lineage, |known| known.forks.pace = Pace::default());
    }
    looked.map(|()| true)
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
        let history = TimelineHistory::parse(timeline, &content).ok();
        let fork = history.as_ref().and_then(|history| Fork::of(history, size));
        target.known(lineage, |known| {
            known.forks.found.insert(timeline, (hash, fork, ForkComparison::Open));
            known.forks.histories.extend(history.map(|history| (timeline, history)));
        });
    }
    let mut disputed = disputed_of(archive, &listed.refused, &listed.settled).await?;
    let histories = target.known(lineage, |known| known.forks.histories.clone());
    disputed.extend(contradiction::among_stored(archive, &listed, &histories).await?);
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

/// Compares what was left out at the last segments, because they came too fast, as it is stored by now: the next one may not come for
/// hours. `true` if a stored timeline was found to be another server's; an error as of [`ForkSide::judge`].
pub(super) async fn compare_left(
    target: &WalTarget,
    archive: &WalArchive,
    wal: &Path,
) -> Result<bool, TargetError> {
    let (lineage, size) = (archive.lineage().id, archive.lineage().segment_size);
    let Some(last) = target.known(lineage, |known| known.forks.left.take()) else { return Ok(false) };
    if let Err(error) = look_now(target, archive).await {
        target.known(lineage, |known| known.forks.left = known.forks.left.or(Some(last)));
        return Err(error.into());
    }
    let Some(number) = last.number(size) else { return Ok(false) };
    // As when the next one came: the last one lies in the archive now, and its file may be gone.
    let name = SegmentNo(number.0 + 1).name(last.timeline, size);
    let path = wal.join(name.to_string());
    ForkSide { target, archive, name, path: &path, chain: None }.compare().await
}

/// The timelines of an archive that did not come from their parents' servers, or come from another server's timeline than the stored
/// one, unless they were settled or abandoned.
pub(super) async fn disputed(archive: &WalArchive) -> Result<Vec<SplitBrain>, RepoError> {
    let listed = archive.all_histories().await?;
    let mut disputed = disputed_of(archive, &listed.refused, &listed.settled).await?;
    let histories = contradiction::read_all(archive, &listed).await?;
    disputed.extend(contradiction::among_stored(archive, &listed, &histories).await?);
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

/// Whether the history of a timeline that is stored is known not to come from its parent's server, or to contradict a stored
/// ancestor's; what that means.
pub(super) async fn is_disputed(
    archive: &WalArchive,
    timeline: TimelineId,
    content: &[u8],
) -> Result<Option<SplitBrain>, RepoError> {
    let hash = archive.repository().sealer().content_hash(content);
    if archive.refused_history(timeline, hash).await?.is_none()
        || archive.settlement(timeline, hash).await?.is_some()
    {
        return contradiction::of_stored(archive, timeline, content).await;
    }
    disputed_of(archive, &[(timeline, hash)], &[]).await.map(|mut found| found.pop())
}

#[cfg(test)]
mod tests;
