//! Tablespaces that recovery under a plan creates: the search for their records, and the segments that it is fed with.

use walpoint_base::{CreatedTablespace, SegmentName, SegmentNo};

use super::path::SegmentRange;
#[cfg(doc)]
use super::restore_plan::RestorePlan;

/// Looks for such records, fed with consecutive segments in LSN order, beginning anywhere.
pub trait TablespaceSearch: Send {
    /// The records that end in the next whole segment. The error says what is wrong with its content.
    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<Vec<CreatedTablespace>, String>;
}

/// A segment that a plan replays: the place of its range in [`RestorePlan::wal`], and its number.
pub type PlannedSegment = (usize, SegmentNo);

/// The segment before one of a path.
pub fn before(path: &[SegmentRange], at: usize, number: SegmentNo) -> Option<(usize, SegmentNo)> {
    if path.get(at)?.first < number {
        return Some((at, SegmentNo(number.0 - 1)));
    }
    let at = at.checked_sub(1)?;
    path.get(at).map(|range| (at, range.last))
}

/// The segment behind one of a path.
pub fn behind(path: &[SegmentRange], at: usize, number: SegmentNo) -> Option<(usize, SegmentNo)> {
    if number < path.get(at)?.last {
        return Some((at, number.next()));
    }
    path.get(at + 1).map(|range| (at + 1, range.first))
}
