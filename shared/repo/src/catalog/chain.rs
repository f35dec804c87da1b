//! Whether the segments of a path continue each other, from the index: one entry of a directory for each group that is
//! sealed, all there and unbroken, the entries of the others.

use walpoint_base::chain::ChainFault;
use walpoint_base::chain::{ChainEnd, Link};
use walpoint_base::{Lsn, SegmentName, SegmentNo, TimelineId};
use walpoint_plan::restore::{Path, SegmentRange};
use walpoint_storage::error::{RepoError, Result};

use super::LineageCatalog;
use crate::index::{ChainWalk, SegmentEntry, first_of, group_of, last_of};

/// A segment that does not continue the one before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokenChain {
    /// The segment.
    pub segment: SegmentName,
    /// What is wrong.
    pub fault: ChainFault,
    /// Whether the archiver put on record that one server wrote both.
    pub recorded: bool,
}

impl BrokenChain {
    /// Whether it says that two servers wrote the WAL of one timeline.
    pub fn is_split_brain(&self) -> bool {
        self.fault.is_split_brain() && !self.recorded
    }
}

impl LineageCatalog {
    /// Where segments do not continue each other, along ranges in the order of a path. What is not there is not compared.
    pub async fn broken_chain(&mut self, ranges: &[SegmentRange]) -> Result<Vec<BrokenChain>> {
        for range in ranges {
            self.ask(None, |facts| facts.wal(range.timeline).cloned()).await?;
        }
        self.broken_in(ranges).await
    }

    /// The same, along ranges of timelines whose WAL was looked at.
    pub(super) async fn broken_in(&mut self, ranges: &[SegmentRange]) -> Result<Vec<BrokenChain>> {
        let size = self.lineage().segment_size;
        let (mut walk, mut broken) = (ChainWalk::new(), Vec::new());
        for range in ranges {
            let Some(wal) = self.wal_mut(range.timeline) else { continue };
            for n in group_of(range.first)..=group_of(range.last) {
                let (first, last) = (first_of(n).max(range.first), last_of(n).min(range.last));
                let whole = wal
                    .summary(n)
                    .filter(|s| first <= s.first && s.last <= last && s.is_plain_run() && s.breaks == 0);
                let mut note = |number: SegmentNo, fault: Option<ChainFault>| {
                    let segment = number.name(range.timeline, size);
                    broken.extend(fault.map(|fault| BrokenChain { segment, fault, recorded: false }));
                };
                if let Some(summary) = whole {
                    note(summary.first, walk.group(range.timeline, &summary));
                    continue;
                }
                match wal.entries(first, last).await {
                    Ok(entries) => {
                        for (number, entry) in entries {
                            note(number, walk.segment(range.timeline, number, &entry));
                        }
                    }
                    // A segment without a readable header is a damaged neighbor, with which nothing is compared.
                    Err(RepoError::Corrupt { .. }) => {
                        for number in (first.0..=last.0).map(SegmentNo) {
                            match wal.entries(number, number).await {
                                Ok(entries) => {
                                    for (number, entry) in entries {
                                        note(number, walk.segment(range.timeline, number, &entry));
                                    }
                                }
                                Err(RepoError::Corrupt { .. }) => walk = ChainWalk::new(),
                                Err(error) => return Err(error),
                            }
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        for one in broken.iter_mut().filter(|one| one.fault.is_split_brain()) {
            one.recorded = match self.archive().recorded_gap(one.segment).await {
                Ok(gap) => gap.is_some(),
                Err(RepoError::Corrupt { .. }) => false,
                Err(error) => return Err(error),
            };
        }
        Ok(broken)
    }

    /// Every place of a timeline where a segment does not continue the one before it, which may lie on another timeline.
    pub(super) async fn breaks(&mut self, timeline: TimelineId) -> Result<Vec<BrokenChain>> {
        let runs = self.ask(None, |facts| facts.wal(timeline).cloned()).await?;
        let mut broken = Vec::new();
        for run in runs.iter() {
            let history = self.facts().graph.history(timeline).filter(|_| run.first.0 > 0);
            let parent =
                history.map(|history| history.timeline_at(run.first.start(self.lineage().segment_size) - 1));
            let before = parent.filter(|parent| *parent != timeline).map(|timeline| {
                let number = SegmentNo(run.first.0 - 1);
                SegmentRange { timeline, first: number, last: number }
            });
            let here = SegmentRange { timeline, first: run.first, last: run.last };
            let ranges: Vec<SegmentRange> = before.into_iter().chain([here]).collect();
            broken.extend(self.broken_chain(&ranges).await?);
        }
        Ok(broken)
    }

    /// Where the stored WAL of a timeline begins, if its first segment is proven to continue the one before it on the path to
    /// another timeline. Of timelines whose WAL was looked at.
    pub(super) async fn begin_on(&mut self, of: TimelineId, on: TimelineId) -> Result<Option<Lsn>> {
        let ranges = Path::to(self.facts(), on).and_then(|path| path.present().ok()).unwrap_or_default();
        let Some(first) = self.wal(of).and_then(|wal| wal.runs().first()) else { return Ok(None) };
        let Some(before) = first.0.checked_sub(1).map(SegmentNo) else { return Ok(None) };
        let Some(owner) = ranges.iter().find(|range| range.first <= before && before <= range.last) else {
            return Ok(None);
        };
        let (Some(last), Some(next)) =
            (self.sound_entry(owner.timeline, before).await?, self.sound_entry(of, first).await?)
        else {
            return Ok(None);
        };
        let end = ChainEnd::UNKNOWN.after(&last.chain);
        let proven = end.last.is_some()
            && next.chain.begin.previous.is_some()
            && end.link(&next.chain) == Link::Continues;
        Ok(proven.then(|| first.start(self.lineage().segment_size)))
    }

    async fn sound_entry(&mut self, timeline: TimelineId, number: SegmentNo) -> Result<Option<SegmentEntry>> {
        let Some(wal) = self.wal_mut(timeline) else { return Ok(None) };
        match wal.entries(number, number).await {
            Ok(mut entries) => Ok(entries.remove(&number).filter(|entry| !entry.damaged)),
            Err(RepoError::Corrupt { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
