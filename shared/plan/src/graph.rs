//! The timelines of a lineage and how they hang together.
//!
//! A history names every ancestor with its switch point, so the histories of the newest timelines tell those of all
//! timelines on their paths: as many files are read as the graph has branches.

use std::collections::BTreeMap;

use walpoint_base::{Lsn, TimelineHistory, TimelineId};

/// Every timeline that a history file, WAL or a backup names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimelineGraph {
    histories: BTreeMap<TimelineId, TimelineHistory>,
}

impl TimelineGraph {
    /// Adds a timeline and every ancestor that its history names. A history given for an ancestor itself wins over what
    /// a descendant's says about it, whichever comes first.
    pub fn add(&mut self, history: TimelineHistory) {
        for ancestor in history.entries().iter().filter_map(|entry| history.of_ancestor(entry.parent)) {
            self.histories.entry(ancestor.timeline()).or_insert(ancestor);
        }
        self.histories.insert(history.timeline(), history);
    }

    /// Adds a timeline that is only known by its WAL or a backup: without a history it has no ancestors. To be
    /// called after the histories are added.
    pub fn add_known(&mut self, timeline: TimelineId) {
        self.histories.entry(timeline).or_insert_with(|| TimelineHistory::root(timeline));
    }

    /// Where a timeline comes from.
    pub fn history(&self, timeline: TimelineId) -> Option<&TimelineHistory> {
        self.histories.get(&timeline)
    }

    /// Whether the timeline is known.
    pub fn contains(&self, timeline: TimelineId) -> bool {
        self.histories.contains_key(&timeline)
    }

    /// Every timeline, lowest id first.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.histories.keys().copied()
    }

    /// Timelines without a parent.
    pub fn roots(&self) -> impl Iterator<Item = TimelineId> + '_ {
        self.histories.values().filter(|h| h.parent().is_none()).map(TimelineHistory::timeline)
    }

    /// The timelines whose own bytes follow on `timeline`'s and where, in the order of the forks. One that a history names
    /// as parent, but only passes through, is not followed.
    pub fn children(&self, timeline: TimelineId) -> Vec<(TimelineId, Lsn)> {
        let fork = |h: &TimelineHistory| {
            h.parent().filter(|p| p.parent == timeline).map(|p| (h.timeline(), p.switch))
        };
        let mut children: Vec<_> = self.histories.values().filter_map(fork).collect();
        children.sort_by_key(|&(child, switch)| (switch, child));
        children
    }

    /// Where younger timelines left `timeline`, each by its own history, those passed through included: WAL up to there was
    /// written.
    pub fn left_at(&self, timeline: TimelineId) -> impl Iterator<Item = Lsn> + '_ {
        let younger = self.histories.values().filter(move |history| history.timeline() > timeline);
        younger.filter_map(move |history| {
            history.entries().iter().find(|entry| entry.parent == timeline).map(|entry| entry.switch)
        })
    }

    /// Whether the byte at `lsn` is the same one on the paths to both timelines. A file is named after the timeline that wrote
    /// it, and begins with what that took over from its ancestors.
    pub fn share(&self, one: TimelineId, other: TimelineId, lsn: Lsn) -> bool {
        let owner = |timeline| self.history(timeline).map(|history| history.timeline_at(lsn));
        owner(one).is_some() && owner(one) == owner(other)
    }

    /// How many timelines there are.
    pub fn len(&self) -> usize {
        self.histories.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.histories.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tli(id: u32) -> TimelineId {
        TimelineId::new(id).unwrap()
    }

    #[test]
    fn one_history_tells_those_of_its_ancestors() {
        let newest = TimelineHistory::parse(tli(5), b"1\t0/5000060\tx\n2\t0/7000000\ty\n").unwrap();
        let mut graph = TimelineGraph::default();
        graph.add(newest);
        graph.add(TimelineHistory::parse(tli(3), b"1\t0/3000000\tx\n").unwrap());
        graph.add_known(tli(1));
        assert_eq!(graph.ids().map(TimelineId::get).collect::<Vec<_>>(), [1, 2, 3, 5]);
        let second = TimelineHistory::parse(tli(2), b"1\t0/5000060\tx\n").unwrap();
        assert_eq!(graph.history(tli(2)), Some(&second));
        assert_eq!(graph.children(tli(1)), [(tli(3), Lsn(0x3000000)), (tli(2), Lsn(0x5000060))]);
        assert_eq!(graph.roots().collect::<Vec<_>>(), [tli(1)]);
    }

    #[test]
    fn a_timeline_passed_through_has_no_child_there() {
        let mut graph = TimelineGraph::default();
        graph.add(TimelineHistory::parse(tli(3), b"1\t0/5000060\tx\n2\t0/3000000\ty\n").unwrap());
        assert_eq!(graph.children(tli(1)), [(tli(3), Lsn(0x3000000)), (tli(2), Lsn(0x5000060))]);
        assert!(graph.children(tli(2)).is_empty());
        let second = TimelineHistory::parse(tli(2), b"1\t0/5000060\tx\n").unwrap();
        assert_eq!(graph.history(tli(2)), Some(&second));
    }

    #[test]
    fn a_timelines_own_history_wins() {
        let own = TimelineHistory::parse(tli(2), b"1\t0/4000000\tx\n").unwrap();
        let child = TimelineHistory::parse(tli(3), b"1\t0/5000060\tx\n2\t0/7000000\ty\n").unwrap();
        for order in [[own.clone(), child.clone()], [child, own.clone()]] {
            let mut graph = TimelineGraph::default();
            order.into_iter().for_each(|h| graph.add(h));
            assert_eq!(graph.history(tli(2)), Some(&own));
        }
    }
}
