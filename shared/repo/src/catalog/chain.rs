//! Whether the segments of a path continue each other, from the index: one entry of a directory for each group that is
//! sealed, all there and unbroken, the entries of the others.

use walpoint_base::{SegmentName, SegmentNo};

use super::LineageCatalog;
use crate::error::{RepoError, Result};
use crate::index::{ChainFault, ChainWalk, first_of, group_of, last_of};
use crate::plan::SegmentRange;

/// A segment that does not continue the one before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokenChain {
    /// The segment.
    pub segment: SegmentName,
    /// What is wrong.
    pub fault: ChainFault,
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
                    broken.extend(fault.map(|fault| BrokenChain { segment, fault }));
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
        Ok(broken)
    }
}
