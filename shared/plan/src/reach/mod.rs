//! Which segments of a lineage are needed.
//!
//! A backup needs the segments from its start to where it is consistent. One that leads onward needs all after its start on
//! its own timeline, and all of every timeline whose path goes through it: those forked after it. A timeline forked before
//! it is out of its reach, whatever the numbers of its segments. A backup that is still running leads onward.

use std::collections::BTreeMap;

use walpoint_base::{BackupId, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

use crate::graph::TimelineGraph;
use crate::retention::Candidate;
use crate::runs::{Runs, SegmentRun};

#[cfg(test)]
mod tests;

/// What WAL of a lineage is kept for.
#[derive(Clone, Copy, Debug)]
pub struct WalRoots<'a> {
    /// The lineage's timelines.
    pub graph: &'a TimelineGraph,
    /// The size of its segments.
    pub size: SegmentSize,
    /// Backups that stay with all WAL after them.
    pub onward: &'a [Candidate],
    /// Backups that stay with the WAL that makes them consistent.
    pub alone: &'a [Candidate],
    /// Backups that are not finished.
    pub unfinished: &'a [BackupId],
    /// Whether the cluster may be writing WAL of this lineage.
    pub in_use: bool,
    /// The timelines that it may be writing beside the newest one.
    pub beside: &'a [TimelineId],
}

/// The segments of a lineage that are needed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct WalNeed {
    /// Whether all of it is, because it is not known what hangs together.
    everything: bool,
    timelines: BTreeMap<TimelineId, Runs>,
}

impl WalNeed {
    /// All WAL of a lineage.
    pub fn everything() -> Self {
        Self { everything: true, timelines: BTreeMap::new() }
    }

    /// What the roots need.
    pub fn of(roots: &WalRoots<'_>) -> Self {
        let WalRoots { graph, size, onward, alone, unfinished, in_use, beside } = *roots;
        let mut need =
            Self { everything: false, timelines: graph.ids().map(|id| (id, Runs::default())).collect() };
        for backup in onward.iter().chain(alone) {
            need.add_consistent(graph, size, backup);
        }
        for backup in onward {
            let until = |path: &TimelineHistory| path.timeline_at(backup.stop - 1) == backup.stop_timeline;
            need.add_onward(graph, size, backup.id, until);
        }
        for id in unfinished {
            need.add_onward(graph, size, *id, |_| true);
        }
        need.add_unexplained(graph, onward.iter().map(|b| b.id).chain(unfinished.iter().copied()));
        // WAL that is being written is never out of reach because no backup of it exists yet.
        let current = graph.ids().next_back().into_iter().chain(beside.iter().copied());
        for current in current.filter(|_| in_use) {
            if need.timelines.get(&current).is_some_and(|runs| runs.iter().next().is_none()) {
                need.add(current, SegmentNo(0), last_of_all(size));
            }
        }
        need
    }

    /// Whether a segment is needed. One of a timeline that is not known is.
    pub fn needs(&self, timeline: TimelineId, segment: SegmentNo) -> bool {
        self.needs_any(timeline, segment, segment)
    }

    /// Whether any segment from `first` to `last` is needed.
    pub fn needs_any(&self, timeline: TimelineId, first: SegmentNo, last: SegmentNo) -> bool {
        if self.everything {
            return true;
        }
        let Some(runs) = self.timelines.get(&timeline) else { return true };
        runs.from(first).is_some_and(|run| run.first <= last)
    }

    /// The segments of a timeline that are needed; `None` if all are.
    pub fn needed(&self, timeline: TimelineId) -> Option<&Runs> {
        self.timelines.get(&timeline).filter(|_| !self.everything)
    }

    fn add(&mut self, timeline: TimelineId, first: SegmentNo, last: SegmentNo) {
        self.timelines.entry(timeline).or_default().add(SegmentRun { first, last, stored: 0 });
    }

    /// From the start of a backup to where it is consistent, under every timeline under which PostgreSQL looks for it: also
    /// those forked later in its last segment, whose file may be the only one there is when the server that wrote the
    /// backup's end was lost before it archived it.
    fn add_consistent(&mut self, graph: &TimelineGraph, size: SegmentSize, backup: &Candidate) {
        let (first, last) = (SegmentNo::of(backup.id.start(), size), SegmentNo::before(backup.stop, size));
        let (start, stop) = (backup.id.timeline(), backup.stop_timeline);
        if !graph.history(stop).is_some_and(|path| path.contains(start)) {
            self.add(start, first, last);
            self.add(stop, first, last);
            return;
        }
        let holds = |path: &&TimelineHistory| {
            path.timeline() == stop
                || path.timeline_at(backup.id.start()) == start && path.timeline_at(backup.stop - 1) == stop
        };
        for path in graph.ids().filter_map(|id| graph.history(id)).filter(holds) {
            for timeline in path.path().filter(|timeline| *timeline >= start) {
                let Some((begin, end)) = path.files_of(timeline, size) else { continue };
                let (first, last) = (first.max(begin), end.map_or(last, |end| last.min(end)));
                if first <= last {
                    self.add(timeline, first, last);
                }
            }
        }
    }

    /// Everything after the start of a backup that can be replayed on it. `fits` says whether recovery from it can follow a
    /// path on which it starts.
    fn add_onward(
        &mut self,
        graph: &TimelineGraph,
        size: SegmentSize,
        id: BackupId,
        fits: impl Fn(&TimelineHistory) -> bool,
    ) {
        let own = id.timeline();
        for timeline in graph.ids() {
            let path =
                graph.history(timeline).filter(|path| path.timeline_at(id.start()) == own && fits(path));
            let Some(begin) = path.and_then(|path| path.begin_of(timeline)) else { continue };
            let first = if timeline == own { id.start() } else { begin };
            self.add(timeline, SegmentNo::of(first, size), last_of_all(size));
        }
        if !graph.contains(own) {
            self.add(own, SegmentNo::of(id.start(), size), last_of_all(size));
        }
    }

    /// A timeline other than the first whose history nobody has may hang on any older one: while a backup on one of those
    /// leads onward, all of it is needed.
    fn add_unexplained(&mut self, graph: &TimelineGraph, onward: impl Iterator<Item = BackupId>) {
        let Some(oldest) = onward.map(BackupId::timeline).min() else { return };
        let all: Vec<TimelineId> = graph.roots().filter(|root| *root > oldest).collect();
        for timeline in all {
            self.add(timeline, SegmentNo(0), SegmentNo(u64::MAX >> 31));
        }
    }
}

/// A number behind that of every segment that can be.
fn last_of_all(size: SegmentSize) -> SegmentNo {
    SegmentNo(u64::MAX / size.bytes() - 1)
}
