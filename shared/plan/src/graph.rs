//! The timelines of a lineage and how they hang together.
//!
//! A history names every ancestor with its switch point. About a timeline whose own history is stored only that one counts: a
//! descendant that says something else of it comes from another server's timeline of that number.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{Lsn, TimelineHistory, TimelineId};

/// Every timeline that a history file, WAL or a backup names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TimelineGraph {
    histories: BTreeMap<TimelineId, TimelineHistory>,
    /// As they are stored, those included that contradict others.
    stored: BTreeMap<TimelineId, TimelineHistory>,
}

/// Timelines that do not come from the stored timeline of an ancestor's number, but from another server's: that ancestor.
pub type Contradictions = BTreeMap<TimelineId, TimelineId>;

impl TimelineGraph {
    /// The graph of all stored histories, and those that contradict others. Such a timeline begins behind the ancestor that it
    /// contradicts: what is stored under that number and older ones is not what it comes from. If descendants contradict each other about an ancestor
    /// without a history, those of `last` do, or else all of them.
    pub fn of(
        stored: impl IntoIterator<Item = TimelineHistory>,
        last: &BTreeSet<TimelineId>,
    ) -> (Self, Contradictions) {
        let stored: BTreeMap<_, _> =
            stored.into_iter().map(|history| (history.timeline(), history)).collect();
        let mut contradictions = contradictions(&stored);
        add_contradictions_without_history(&stored, last, &mut contradictions);
        let mut graph = Self::default();
        let sound = |id: &TimelineId| !contradictions.contains_key(id);
        let (later, first): (Vec<_>, Vec<_>) =
            stored.keys().filter(|id| sound(id)).partition(|id| last.contains(id));
        for history in first.into_iter().chain(later).filter_map(|id| stored.get(id)) {
            graph.add(history.clone());
        }
        for (history, of) in
            contradictions.iter().filter_map(|(timeline, of)| Some((stored.get(timeline)?, of)))
        {
            // What is told of it and of no stored timeline behind it may be another server's as well.
            let entries = history.entries();
            let first = entries.iter().position(|e| e.parent > *of && stored.contains_key(&e.parent));
            let behind = first.map_or(0, |first| entries.len() - first);
            graph.histories.insert(history.timeline(), history.newest(behind));
        }
        graph.stored = stored;
        (graph, contradictions)
    }

    /// The histories that are stored, as they are, those included that contradict others.
    pub fn stored(&self) -> &BTreeMap<TimelineId, TimelineHistory> {
        &self.stored
    }

    /// Adds a timeline and every ancestor that its history names. A history given for an ancestor itself wins over what
    /// a descendant's says about it, whichever comes first.
    pub fn add(&mut self, history: TimelineHistory) {
        for parent in history.entries().iter().map(|entry| entry.parent) {
            if !self.histories.contains_key(&parent)
                && let Some(ancestor) = history.of_ancestor(parent)
            {
                self.histories.insert(parent, ancestor);
            }
        }
        self.stored.insert(history.timeline(), history.clone());
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

/// The timelines that contradict a stored ancestor's own history.
pub fn contradictions(stored: &BTreeMap<TimelineId, TimelineHistory>) -> Contradictions {
    let mut found = Contradictions::new();
    // Ancestors have lower ids.
    for (timeline, history) in stored {
        for ancestor in history.entries().iter().rev().filter_map(|entry| stored.get(&entry.parent)) {
            if history.contradicts(ancestor) {
                found.insert(*timeline, ancestor.timeline());
                break;
            }
            // What holds for the ancestor holds for what comes from it.
            if history.entries_before(ancestor.timeline()) == Some(ancestor.entries()) {
                found.extend(
                    found
                        .get(&ancestor.timeline())
                        .map(|of| (*timeline, *of))
                        .into_iter()
                        .collect::<Vec<_>>(),
                );
                break;
            }
        }
    }
    found
}

/// Adds the timelines that contradict each other about an ancestor without a history.
fn add_contradictions_without_history(
    stored: &BTreeMap<TimelineId, TimelineHistory>,
    last: &BTreeSet<TimelineId>,
    found: &mut Contradictions,
) {
    let mut told: BTreeMap<TimelineId, Vec<&TimelineHistory>> = BTreeMap::new();
    for history in stored.values().filter(|history| !found.contains_key(&history.timeline())) {
        for entry in history.entries().iter().filter(|entry| !stored.contains_key(&entry.parent)) {
            told.entry(entry.parent).or_default().push(history);
        }
    }
    for (ancestor, by) in told {
        // One of each kind is enough: most say the same.
        let mut kinds: Vec<(TimelineHistory, bool)> = Vec::new();
        for history in &by {
            let is_last = last.contains(&history.timeline());
            let entries = history.entries_before(ancestor);
            match kinds.iter_mut().find(|(kind, _)| Some(kind.entries()) == entries) {
                Some((_, only_last)) => *only_last &= is_last,
                None => kinds.extend(history.of_ancestor(ancestor).map(|kind| (kind, is_last))),
            }
        }
        for history in by {
            let counts = |only_last: bool| !only_last || last.contains(&history.timeline());
            if kinds.iter().any(|(kind, only_last)| counts(*only_last) && history.contradicts(kind)) {
                found.insert(history.timeline(), ancestor);
            }
        }
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

    fn of(histories: &[(u32, &str)], last: &[u32]) -> (TimelineGraph, Vec<(u32, u32)>) {
        let stored =
            histories.iter().map(|(id, text)| TimelineHistory::parse(tli(*id), text.as_bytes()).unwrap());
        let (graph, found) = TimelineGraph::of(stored, &last.iter().map(|id| tli(*id)).collect());
        (graph, found.into_iter().map(|(one, other)| (one.get(), other.get())).collect())
    }

    #[test]
    fn a_descendant_of_another_servers_timeline_redefines_no_ancestor() {
        let (own, child, other) =
            ("1\t0/4000000\tx\n", "1\t0/4000000\tx\n2\t0/6000000\ty\n", "1\t0/5000060\tx\n2\t0/7000000\ty\n");
        let below = format!("{other}4\t0/9000000\tz\n");
        let (graph, found) = of(&[(2, own), (3, child), (4, other), (5, &below)], &[]);
        assert_eq!(found, [(4, 2), (5, 2)]);
        assert_eq!(graph.history(tli(2)).unwrap().begin_of(tli(2)), Some(Lsn(0x4000000)));
        assert_eq!(graph.children(tli(2)), [(tli(3), Lsn(0x6000000))]);
        assert_eq!(graph.left_at(tli(1)).collect::<Vec<_>>(), [Lsn(0x4000000), Lsn(0x4000000)]);
        assert_eq!(graph.roots().map(TimelineId::get).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(graph.children(tli(4)), [(tli(5), Lsn(0x9000000))]);
        assert_eq!(graph.stored().len(), 4);
    }

    #[test]
    fn an_ancestor_without_a_history_is_what_its_descendants_agree_on() {
        let (one, other) = ("1\t0/4000000\tx\n2\t0/6000000\ty\n", "1\t0/5000060\tx\n2\t0/7000000\ty\n");
        let (graph, found) = of(&[(3, one), (4, one)], &[]);
        assert_eq!((found, graph.history(tli(2)).unwrap().entries().len()), (vec![], 1));
        let (graph, found) = of(&[(3, one), (4, other)], &[]);
        assert_eq!(found, [(3, 2), (4, 2)]);
        assert!(!graph.contains(tli(2)));
        let (graph, found) = of(&[(3, one), (4, other)], &[4]);
        assert_eq!(found, [(4, 2)]);
        assert_eq!(graph.history(tli(2)).unwrap().begin_of(tli(2)), Some(Lsn(0x4000000)));
    }
}
