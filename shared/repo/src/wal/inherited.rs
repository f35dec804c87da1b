//! What a lineage has in common with the one that it was split off from: the parent's WAL up to the fork, histories and
//! restore points included. A reader finds it as if it were the lineage's own; what the lineage stored itself comes first.
//!
//! Nothing behind the fork is inherited, and no timeline that does not lead there: that is the other server's.

use walpoint_base::{LineageId, Lsn, SegmentName, SegmentNo, TimelineHistory, TimelineId, WalFileName};
use walpoint_storage::error::{RepoError, Result};

use super::WalArchive;
use crate::lineage::{Lineage, LineageFork, ParentLineage};
use crate::repository::Repository;

/// The WAL of a parent, up to a fork.
#[derive(Clone, Debug)]
pub struct Inherited {
    archive: WalArchive,
    fork: LineageFork,
    /// Of the timeline of the fork; `None` if that cannot be read, so that nothing is known of the timelines before it.
    history: Option<TimelineHistory>,
}

impl Repository {
    /// The WAL of a lineage to be read: with what it has in common with the lineage that it was split off from, up to the
    /// fork. A parent that is gone or whose facts are damaged, or of which it is not known where the fork is, has nothing in common
    /// with it.
    pub async fn wal_to_read(&self, lineage: &Lineage) -> Result<WalArchive> {
        let mut forks: Vec<(Lineage, LineageFork)> = Vec::new();
        let mut at = lineage.clone();
        while let Some(ParentLineage { lineage: parent, fork: Some(fork), .. }) = at.parent {
            let parent = match self.read_lineage(&lineage.cluster, parent).await {
                Ok(Some(parent)) => parent,
                Ok(None) | Err(RepoError::Corrupt { .. }) => break,
                Err(error) => return Err(error),
            };
            let odd = parent.system_id() != at.system_id() || parent.segment_size != at.segment_size;
            // A lineage descends from one with a lower number.
            if odd || parent.id.n >= at.id.n {
                break;
            }
            forks.push((std::mem::replace(&mut at, parent), fork));
        }
        let mut archive = self.wal(&at);
        for (child, fork) in forks.into_iter().rev() {
            let own = self.wal(&child);
            let history = origin(&archive, &own, fork).await?;
            let inherited = Inherited::new(archive, fork, history);
            archive = WalArchive::inheriting(own.repository().clone(), child, Some(inherited));
        }
        Ok(archive)
    }
}

/// Where the timeline of a fork comes from: what the parent says or, if that is damaged or missing, what the lineage itself says,
/// which has the timeline too. A younger timeline of its own comes from there as well.
async fn origin(parent: &WalArchive, own: &WalArchive, fork: LineageFork) -> Result<Option<TimelineHistory>> {
    if fork.timeline == TimelineId::FIRST {
        return Ok(Some(TimelineHistory::root(fork.timeline)));
    }
    if let Some(history) = unless_damaged(parent, fork.timeline).await? {
        return Ok(Some(history));
    }
    let younger = own.histories().await?.into_iter().filter(|timeline| *timeline > fork.timeline);
    for timeline in std::iter::once(fork.timeline).chain(younger) {
        let history = unless_damaged(own, timeline).await?;
        let history = history.and_then(|history| match timeline == fork.timeline {
            true => Some(history),
            false => history.of_ancestor(fork.timeline),
        });
        // In the segment of the fork, the fork may be noted as the segment's start.
        let size = own.lineage().segment_size;
        let agrees = |begin: Lsn| SegmentNo::of(begin, size) <= SegmentNo::of(fork.lsn, size);
        if let Some(history) = history.filter(|one| one.begin_of(fork.timeline).is_some_and(agrees)) {
            return Ok(Some(history));
        }
    }
    Ok(None)
}

async fn unless_damaged(archive: &WalArchive, timeline: TimelineId) -> Result<Option<TimelineHistory>> {
    match archive.history(timeline).await {
        Err(RepoError::Corrupt { .. }) => Ok(None),
        history => history,
    }
}

impl Inherited {
    /// Of the WAL in `archive` what leads to `fork`; `history` is that of the fork's timeline, if it is known.
    pub(crate) fn new(archive: WalArchive, fork: LineageFork, history: Option<TimelineHistory>) -> Self {
        Self { archive, fork, history }
    }

    /// The parent's WAL, with what that inherited in its turn.
    pub fn archive(&self) -> &WalArchive {
        &self.archive
    }

    /// Up to which position a timeline leads to the fork; `None` for one that does not.
    fn limit(&self, timeline: TimelineId) -> Option<Lsn> {
        let LineageFork { timeline: of, lsn } = self.fork;
        if timeline == of {
            return Some(lsn);
        }
        self.history.as_ref()?.end_of(timeline).map(|end| end.min(lsn))
    }

    /// Whether the byte before a position of a timeline lies before the fork and leads there.
    pub fn holds_before(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.limit(timeline).is_some_and(|limit| lsn <= limit)
    }

    /// Whether it may, as far as is known: without a history of the fork's timeline, any older one may lead there.
    fn may_hold_before(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        let unknown = self.history.is_none() && timeline < self.fork.timeline && lsn <= self.fork.lsn;
        unknown || self.holds_before(timeline, lsn)
    }

    /// The last segment of a timeline that is inherited, if any is.
    pub fn last_of(&self, timeline: TimelineId) -> Option<SegmentNo> {
        let size = self.archive.lineage().segment_size;
        let limit = self.limit(timeline).filter(|limit| limit.is_valid())?;
        // Up to the fork only whole segments are the same.
        let whole = SegmentNo((self.fork.lsn.0 / size.bytes()).checked_sub(1)?);
        Some(SegmentNo::before(limit, size).min(whole))
    }

    /// Whether a segment is inherited, if the parent has it.
    pub fn covers(&self, name: SegmentName) -> bool {
        let size = self.archive.lineage().segment_size;
        name.number(size).is_some_and(|number| Some(number) <= self.last_of(name.timeline))
    }

    /// Whether the history of a timeline is inherited, if the parent has it.
    pub fn covers_history(&self, timeline: TimelineId) -> bool {
        self.limit(timeline).is_some()
    }

    fn covers_file(&self, name: WalFileName) -> bool {
        match name {
            WalFileName::History(timeline) => self.covers_history(timeline),
            WalFileName::Segment(segment)
            | WalFileName::Backup(segment, _)
            | WalFileName::Partial(segment) => self.covers(segment),
        }
    }
}

impl WalArchive {
    /// What this lineage has in common with its parent; `None` if it has none, the fork is not known, or this archive was
    /// opened for writing.
    pub fn inherited(&self) -> Option<&Inherited> {
        self.inner.inherited.as_ref()
    }

    /// Whether a segment lies before the fork from a parent lineage: whoever stored it, it is the parent's.
    pub fn inherits(&self, name: SegmentName) -> bool {
        self.inherited().is_some_and(|inherited| inherited.covers(name))
    }

    /// Whether the WAL of another lineage up to a position of a timeline is this one's too.
    pub fn shares(&self, lineage: LineageId, timeline: TimelineId, lsn: Lsn) -> bool {
        self.inherited().filter(|inherited| inherited.holds_before(timeline, lsn)).is_some_and(|inherited| {
            let archive = inherited.archive();
            archive.lineage().id == lineage || archive.shares(lineage, timeline, lsn)
        })
    }

    /// Whether it may be, as far as is known: more than [`Self::shares`] says where the history of a fork's timeline cannot be
    /// read.
    pub fn may_share(&self, lineage: LineageId, timeline: TimelineId, lsn: Lsn) -> bool {
        self.inherited().filter(|inherited| inherited.may_hold_before(timeline, lsn)).is_some_and(
            |inherited| {
                let archive = inherited.archive();
                archive.lineage().id == lineage || archive.may_share(lineage, timeline, lsn)
            },
        )
    }

    /// The parent's archive, where a file that this one does not have may lie.
    pub(super) fn parent_of(&self, name: WalFileName) -> Option<&WalArchive> {
        self.inherited().filter(|inherited| inherited.covers_file(name)).map(Inherited::archive)
    }
}
