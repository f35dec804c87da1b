//! The plan itself, once the backup, its WAL and the place where recovery stops are found: the path as steps, the settings, the
//! estimate.

use walpoint_base::{Lsn, RecoveryTarget, TargetTimeline, TimelineHistory, TimelineId};

use super::ending::Ending;
use super::estimate::{Estimate, Rates};
use super::facts::{Asking, BackupFacts, Doubt};
use super::path::{Path, SegmentRange};
use super::planner::Planner;
use super::request::RestoreRequest;
use super::restore_plan::{PathStep, RestorePlan};
use super::settings::{
    LOOK_AHEAD, LOOKS_AHEAD_SINCE, RecoverySetting, Signal, StopAt, settings, without_look_ahead,
};
use super::stop::Stop;

impl<'a> Planner<'a> {
    /// The plan, all of whose WAL was found.
    pub(super) fn build(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        ending: &Ending,
        stop: Option<&Stop>,
        (until, at): (Lsn, StopAt),
    ) -> Asking<RestorePlan> {
        let size = self.facts.segment_size;
        let Ending { timeline, wal, .. } = ending;
        let timeline = *timeline;
        let history = self.facts.graph.history(timeline).unwrap_or_else(|| path.history());
        let mut estimate = Estimate {
            file_bytes: backup.bytes,
            block_bytes: backup.block_bytes,
            wal_segments: wal.iter().map(SegmentRange::count).sum::<u64>() + ending.partials(),
            ..Estimate::default()
        };
        estimate.wal_bytes = estimate.wal_segments.saturating_mul(size.bytes());
        for range in wal {
            estimate.wal_stored += self.facts.wal(range.timeline)?.stored_within(range.first, range.last);
        }
        Ok(RestorePlan {
            lineage: self.facts.lineage,
            target: self.request.target.clone(),
            inclusive: self.request.inclusive,
            path: steps(history),
            timeline,
            leaf: ending.leaf,
            stop: stop.cloned(),
            until,
            wal: wal.clone(),
            fork: ending.fork,
            unfollowed: ending.unfollowed,
            youngest: self.facts.graph.ids().next_back().filter(|_| self.follows_the_latest()),
            without: self.doubtful_after(timeline),
            histories: history.parent().map(|_| timeline).into_iter().collect(),
            signal: if self.request.standby { Signal::Standby } else { Signal::Recovery },
            settings: self.settings(backup.id.timeline(), ending, (until, stop.is_some()), &at),
            estimate: estimate.at(Rates::default()),
            notes: self.notes(path, backup, ending, stop)?,
            backup: backup.clone(),
        })
    }

    /// The timelines after `timeline` that have no readable history.
    fn doubtful_after(&self, timeline: TimelineId) -> Vec<TimelineId> {
        let unreadable = |doubt: &Doubt| matches!(doubt, Doubt::Damaged(_) | Doubt::Missing);
        let doubts = self.facts.doubts.iter();
        doubts.filter(|(of, doubt)| **of > timeline && unreadable(doubt)).map(|(of, _)| *of).collect()
    }

    /// Whether the plan is one for the end of the youngest timeline, which nothing follows any more.
    fn follows_the_latest(&self) -> bool {
        let RestoreRequest { target, timeline, standby, .. } = self.request;
        *target == RecoveryTarget::Latest && *timeline == TargetTimeline::Latest && !standby
    }

    /// Whether a standby that begins on one timeline finds another one by itself: it asks for the history of each number in between, and
    /// takes the first that is missing for the end.
    pub(super) fn is_found_from(&self, from: TimelineId, timeline: TimelineId) -> bool {
        let mut between = std::iter::successors(from.next(), |id| id.next()).take_while(|id| *id <= timeline);
        let unreadable =
            |id: &TimelineId| matches!(self.facts.doubts.get(id), Some(Doubt::Damaged(_) | Doubt::Missing));
        between.all(|id| self.facts.graph.contains(id) && !unreadable(&id))
    }

    /// With a target, PostgreSQL must not read ahead of it: what lies behind may be damaged, or not to be had now, and is not
    /// needed. Without one, that counts where what follows is not proven to be absent.
    fn settings(
        &self,
        from: TimelineId,
        ending: &Ending,
        (until, stops): (Lsn, bool),
        at: &StopAt,
    ) -> Vec<RecoverySetting> {
        let newest = self.counting().next_back() == Some(ending.timeline);
        let newest = newest && self.is_found_from(from, ending.timeline);
        let mut all = settings(self.request, ending.timeline, newest, at);
        let gap = ending.missing.start(self.facts.segment_size);
        let near = gap.0.saturating_sub(until.0) <= LOOK_AHEAD;
        // What a child left later was written once, so its absence is not proven, even if nothing follows on the timeline.
        let children = || self.facts.graph.children(ending.timeline);
        let written = ending.fork.is_none() && children().iter().any(|(_, fork)| *fork > gap);
        let unproven = near && (ending.before_a_gap || written);
        let stops = stops || self.request.target == RecoveryTarget::Immediate;
        if (stops || unproven) && self.facts.major.get() >= LOOKS_AHEAD_SINCE {
            all.insert(0, without_look_ahead());
        }
        all
    }
}

/// The path as steps, oldest first, without timelines of which it has no byte.
fn steps(history: &TimelineHistory) -> Vec<PathStep> {
    let step = |timeline| {
        let begin = history.begin_of(timeline)?;
        Some(PathStep { timeline, begin, end: history.end_of(timeline) })
    };
    history.path().filter_map(step).collect()
}
