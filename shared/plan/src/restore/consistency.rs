//! The WAL without which a backup does not become consistent.
//!
//! Where the server was promoted before it had filled the segment of the backup's end, that segment is never finished under the
//! name of the backup's timeline: only the next timeline's copy holds the end. So there may be several ways to it, and one
//! is enough.

use walpoint_base::{Lsn, SegmentNo, TimelineId};

use super::facts::{Asking, Facts};
use super::path::{Path, SegmentRange, missing_of};

/// From where to where a backup needs WAL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Consistency {
    /// Where recovery begins.
    pub start: Lsn,
    /// From where on it is consistent.
    pub end: Lsn,
    /// The timeline of the byte before that.
    pub end_timeline: TimelineId,
}

impl Consistency {
    /// For each way the files that recovery reads, whether they are there or not; first of all on the path to the timeline of the
    /// end. Of a timeline that is not known nothing is stored, neither WAL nor a history, its own or a descendant's: then all
    /// files are taken for its own.
    pub fn ways(&self, facts: &Facts) -> Vec<Vec<SegmentRange>> {
        let size = facts.segment_size;
        let (first, last) = (SegmentNo::of(self.start, size), SegmentNo::before(self.end, size));
        let Some(own) = Path::to(facts, self.end_timeline) else {
            return vec![vec![SegmentRange { timeline: self.end_timeline, first, last }]];
        };
        let begin = own.history().timeline_at(self.start);
        let holds = |path: &Path<'_>| {
            let history = path.history();
            let end = Lsn(self.end.0.saturating_sub(1));
            history.timeline_at(self.start) == begin && history.timeline_at(end) == self.end_timeline
        };
        let mut ways = vec![own.right(first, last)];
        for path in facts.graph.ids().filter_map(|id| Path::to(facts, id)).filter(holds) {
            let way = path.right(first, last);
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    /// The files that are missing, of the first way if some are on each.
    pub fn missing(&self, facts: &Facts) -> Asking<Vec<SegmentRange>> {
        let mut of_first = None;
        for way in self.ways(facts) {
            let missing = missing_of(facts, &way)?;
            if missing.is_empty() {
                return Ok(missing);
            }
            of_first.get_or_insert(missing);
        }
        Ok(of_first.unwrap_or_default())
    }
}
