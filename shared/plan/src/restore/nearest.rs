//! What to offer when a target cannot be reached: the nearest moments that can be, and what helps.

use walpoint_base::{Lsn, RecoveryTarget, SegmentNo, TargetTimeline, TimelineId};

use super::facts::Asking;
use super::hint::Hint;
use super::path::Path;
use super::planner::{Planner, Refusal};
use super::unreachable::{Moment, MomentTarget, Unreachable, Why};
use super::windows::{self, Window};

/// How many other timelines are searched for the target's moment.
const OTHER_TIMELINES: usize = 8;

impl Planner<'_> {
    /// The refusal with everything that helps.
    pub(super) fn explain(&self, refusal: Refusal) -> Asking<Unreachable> {
        let windows = match refusal.path {
            Some(timeline) => windows::on_path(self.facts, timeline)?,
            None => Vec::new(),
        };
        let nearest = self.nearest(&refusal, &windows)?;
        let mut hints = self.hints(&refusal)?;
        if let Why::NewestUnreadable { older, .. } = refusal.why {
            hints.push(Hint::NameBackup(older));
        }
        Ok(Unreachable {
            target: self.request.target.clone(),
            timeline: self.request.timeline,
            lineage: None,
            why: refusal.why,
            missing: refusal.missing,
            nearest,
            hints,
            segment_size: self.facts.segment_size,
            youngest: None,
        })
    }

    /// The end of the last window before the target and the start of the first one after it.
    fn nearest(&self, refusal: &Refusal, windows: &[Window]) -> Asking<Vec<Moment>> {
        // The target can be reached, only which one is not said.
        if let Why::SeveralPoints(_) | Why::NameNotUtf8(_) | Why::NewestUnreadable { .. } = refusal.why {
            return Ok(Vec::new());
        }
        let gap = match refusal.why {
            Why::MinimalWal { at, .. } => Some(at),
            _ => refusal.missing.first().map(|m| m.first.start(self.facts.segment_size)),
        };
        let before = |w: &&Window| match (&self.request.target, gap) {
            (RecoveryTarget::Time(time), _) => w.from_time.is_some_and(|t| t <= *time),
            (RecoveryTarget::Lsn(lsn), _) => w.from <= *lsn,
            (_, Some(gap)) => w.from <= gap,
            _ => true,
        };
        let mut moments = Vec::new();
        if let Some(window) = windows.iter().rev().find(before) {
            // The end of the archive was asked for and cannot be reached without naming what is there.
            let refused = matches!(
                refusal.why,
                Why::MissingWal { .. }
                    | Why::MinimalWal { .. }
                    | Why::EndsInFork { .. }
                    | Why::EndsIncomplete { .. }
                    | Why::ContradictingCopies { .. }
            );
            moments.push(self.end_of(window, refused)?);
        }
        if let Some(window) = windows.iter().find(|w| !before(w)) {
            moments.push(start_of(window));
        }
        let mut offered = Vec::new();
        for moment in moments {
            offered.extend(self.may_be_offered(&moment)?.then_some(moment));
        }
        Ok(offered)
    }

    /// Everything up to the end of a window.
    fn end_of(&self, window: &Window, named: bool) -> Asking<Moment> {
        let path = Path::to(self.facts, window.timeline);
        let size = self.facts.segment_size;
        let end = SegmentNo::before(window.until, size);
        // Where it ends inside a segment, that one may be lost as a whole.
        let next = SegmentNo::of(window.until, size);
        let is_gap = match path {
            Some(path) => path.last_present()? > Some(end) || path.last_lost(next)?.is_some(),
            None => false,
        };
        // The end of the archive needs no target; before a gap the last record that is there has to be named.
        let target = match window.last_record {
            Some(record) if named || is_gap => MomentTarget::Record(record),
            _ => MomentTarget::End,
        };
        let (lsn, time) = (window.last_record.unwrap_or(window.until), window.until_time);
        Ok(Moment { earlier: true, timeline: window.timeline, lsn, time, lineage: None, target })
    }

    /// Branches that the path does not follow and that hold the moment asked for. With `reached`, where recovery along the path
    /// stops, only those that parted from it before.
    pub(super) fn on_other_timelines(
        &self,
        path: TimelineId,
        reached: Option<Lsn>,
    ) -> Asking<Vec<TimelineId>> {
        let Some(history) = self.facts.graph.history(path) else { return Ok(Vec::new()) };
        if self.request.timeline == TargetTimeline::Current || self.request.backup.is_some() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        let others: Vec<TimelineId> = self.facts.graph.ids().rev().filter(|&t| t != path).collect();
        for timeline in others.into_iter().take(OTHER_TIMELINES) {
            let abandoned = history.end_of(timeline);
            let begin = || self.facts.graph.history(timeline).and_then(|other| other.begin_of(timeline));
            if reached < abandoned.or_else(begin).filter(|_| reached.is_some()) {
                continue;
            }
            for window in windows::of_timeline(self.facts, timeline)? {
                // What this path shares with the other was searched already.
                if abandoned.is_some_and(|end| window.until <= end) {
                    continue;
                }
                let holds = match &self.request.target {
                    RecoveryTarget::Time(time) => {
                        window.from_time.is_some_and(|t| t <= *time)
                            && window.until_time.is_some_and(|t| *time < t)
                    }
                    RecoveryTarget::Lsn(lsn) => {
                        abandoned.is_none_or(|end| *lsn >= end)
                            && window.from <= *lsn
                            && window.last_record.is_some_and(|last| *lsn <= last)
                    }
                    _ => false,
                };
                if holds {
                    found.push(timeline);
                    break;
                }
            }
        }
        Ok(found)
    }
}

/// The first consistent moment of a window.
fn start_of(window: &Window) -> Moment {
    let Window { timeline, from: lsn, from_time: time, oldest, .. } = *window;
    Moment { earlier: false, timeline, lsn, time, lineage: None, target: MomentTarget::Consistent(oldest) }
}
