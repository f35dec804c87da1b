//! Where consecutive segments do not continue each other, told from what the index says of them: pure, so that planners and
//! `verify` use the same rule as the archiver. The rule itself, with what it exempts, is [`walpoint_base::chain`].

use walpoint_base::chain::{ChainEnd, ChainFault, Link};
use walpoint_base::facts::HistoryHash;
use walpoint_base::{SegmentNo, TimelineId};

use super::{GroupSummary, SegmentEntry};

/// Follows segments along a path of timelines, in order.
#[derive(Clone, Debug)]
pub struct ChainWalk {
    before: Option<(TimelineId, SegmentNo)>,
    end: ChainEnd,
    history: Option<(TimelineId, HistoryHash)>,
}

impl Default for ChainWalk {
    fn default() -> Self {
        Self { before: None, end: ChainEnd::UNKNOWN, history: None }
    }
}

impl ChainWalk {
    /// A walk that knows of nothing before the first segment.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next segment. Where it is not the one behind the last, nothing is compared. What is wrong with it, if something
    /// is; the walk goes on from it all the same.
    pub fn segment(
        &mut self,
        timeline: TimelineId,
        number: SegmentNo,
        entry: &SegmentEntry,
    ) -> Option<ChainFault> {
        let follows = self.follows(timeline, number);
        self.before = Some((timeline, number));
        if entry.damaged {
            self.end = ChainEnd::UNKNOWN;
            return None;
        }
        let before = if follows { self.end } else { ChainEnd::UNKNOWN };
        self.end = before.after(&entry.chain);
        let link = before.link(&entry.chain);
        self.fault(link, timeline, entry.history, follows)
    }

    /// All segments of a group of which none is missing or damaged, and which continue each other.
    pub fn group(&mut self, timeline: TimelineId, summary: &GroupSummary) -> Option<ChainFault> {
        let follows = self.follows(timeline, summary.first);
        self.before = Some((timeline, summary.last));
        let before = if follows { self.end } else { ChainEnd::UNKNOWN };
        let mut chain = summary.chain;
        // Where no record starts in the first segment, the one that came in may go on behind it: what the segment contributes is not
        // all that is due.
        if chain.begin.previous.is_none() {
            chain.begin.rest = None;
        }
        let link = before.link(&chain);
        self.end = summary.chain.end;
        self.fault(link, timeline, summary.history, follows)
    }

    fn follows(&self, timeline: TimelineId, number: SegmentNo) -> bool {
        self.before.is_some_and(|(last_timeline, last)| last_timeline <= timeline && last.0 + 1 == number.0)
    }

    fn fault(
        &mut self,
        link: Link,
        timeline: TimelineId,
        history: HistoryHash,
        follows: bool,
    ) -> Option<ChainFault> {
        let known =
            self.history.filter(|(known, _)| *known == timeline).map_or(HistoryHash::NONE, |(_, h)| h);
        if history != HistoryHash::NONE {
            self.history = Some((timeline, history));
        }
        match link {
            Link::Broken(fault) => Some(ChainFault::Broken(fault)),
            Link::Reset if follows => Some(ChainFault::Reset),
            _ => known.contradicts(history).then_some(ChainFault::History),
        }
    }

    /// What is known where the last segment ends.
    pub fn end(&self) -> ChainEnd {
        self.end
    }
}
