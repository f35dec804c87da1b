//! What recovery asks for next: segment after segment, on the timelines that lead to its target.
//!
//! Pure: no file is read and no repository is asked here.

use walpoint_base::{SegmentName, SegmentNo, SegmentSize, TimelineHistory};

/// The way that recovery takes from a segment on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Route {
    history: TimelineHistory,
    size: SegmentSize,
    last: Option<SegmentNo>,
}

impl Route {
    /// Along the timelines of `history`, up to the segment `last` if there is a target.
    pub(crate) fn new(history: TimelineHistory, size: SegmentSize, last: Option<SegmentNo>) -> Self {
        Self { history, size, last }
    }

    /// The segments after `after`, each with the names under which PostgreSQL looks for it, in its order; at most
    /// `depth` segments, and none after the target's.
    pub(crate) fn ahead(&self, after: SegmentNo, depth: usize) -> Vec<Step> {
        let end = self.last.map_or(u64::MAX, |last| last.0.saturating_add(1));
        let numbers = (after.next().0..end).take(depth).map(SegmentNo);
        let step = |number| {
            let names = self.history.candidates(number, self.size).map(|t| number.name(t, self.size));
            Step { number, names: names.collect() }
        };
        numbers.map(step).collect()
    }
}

/// One segment of the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Step {
    pub(crate) number: SegmentNo,
    /// Its names, the newest timeline first. More than one only where a timeline was left.
    pub(crate) names: Vec<SegmentName>,
}

#[cfg(test)]
mod tests {
    use walpoint_base::TimelineId;

    use super::*;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    fn names(steps: Vec<Step>) -> Vec<Vec<String>> {
        steps.into_iter().map(|s| s.names.iter().map(ToString::to_string).collect()).collect()
    }

    #[test]
    fn the_way_crosses_logs_and_timelines() {
        let text = b"1\t1/60\tno recovery target specified\n";
        let history = TimelineHistory::parse(tli(3), text).unwrap();
        let route = Route::new(history, SegmentSize::DEFAULT, None);
        assert_eq!(
            names(route.ahead(SegmentNo(0xFD), 4)),
            [
                vec!["0000000100000000000000FE"],
                vec!["0000000100000000000000FF"],
                vec!["000000030000000100000000", "000000010000000100000000"],
                vec!["000000030000000100000001"],
            ]
        );
    }

    #[test]
    fn the_way_ends_at_the_target() {
        let route = Route::new(TimelineHistory::root(tli(1)), SegmentSize::DEFAULT, Some(SegmentNo(7)));
        assert_eq!(route.ahead(SegmentNo(4), 100).len(), 3);
        assert!(route.ahead(SegmentNo(7), 100).is_empty());
        assert!(route.ahead(SegmentNo(9), 100).is_empty());
        assert!(route.ahead(SegmentNo(u64::MAX), 100).is_empty());
    }
}
