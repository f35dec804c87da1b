//! Timelines whose own history is damaged or lost, and how PostgreSQL recovers to one all the same.
//!
//! A timeline that is given by its number (`recovery_target_timeline = '3'`) has to have a history: without one PostgreSQL does not
//! start. With `current` it takes the timeline of the checkpoint in `pg_control` (of the last record that a standby replayed, where
//! that is younger), and reads the history of that only to learn of its ancestors; where there is none, it has none
//! (`readTimeLineHistory` in timeline.c). A backup that began and ended on the timeline has no other timeline in its `pg_control`, and
//! all that is replayed from there bears that timeline's name. So such a backup needs no history: one that began on an ancestor does,
//! and so does a standby, which others follow along the histories that it has.

use walpoint_base::{RecoveryTarget, TargetTimeline, TimelineId};

use super::facts::{Asking, Doubt, Facts};
use super::hint::Hint;
use super::note::Note;
use super::planner::{Attempt, Planner, Refusal};
use super::request::RestoreRequest;
use super::restore_plan::RestorePlan;
use super::settings;
use super::unreachable::{Moment, MomentTarget, Why};

/// Whether a timeline's own history is not to be had.
pub(super) fn has_no_history(facts: &Facts, timeline: TimelineId) -> bool {
    let unreadable = matches!(facts.doubts.get(&timeline), Some(Doubt::Missing | Doubt::Damaged(_)));
    facts.without_history.contains(&timeline) || unreadable
}

/// Whether recovery begins, becomes consistent and ends on `timeline`.
pub(super) fn stays_on(timeline: TimelineId, plan: &RestorePlan) -> bool {
    let backup = &plan.backup;
    [plan.timeline, backup.timeline(), backup.end_timeline].iter().all(|on| *on == timeline)
}

impl Planner<'_> {
    /// What planning ends with, before a refusal is explained: a plan that PostgreSQL can carry out with the histories that there are.
    pub(super) fn attempt(&self) -> Asking<Attempt> {
        Ok(self.run()?.and_then(|plan| self.with_histories(plan)))
    }

    fn with_histories(&self, mut plan: RestorePlan) -> Attempt {
        let timeline = plan.timeline;
        if !has_no_history(self.facts, timeline) {
            return Ok(plan);
        }
        if self.request.standby || !stays_on(timeline, &plan) {
            return Err(Refusal::on(timeline, Why::NoHistory(timeline)));
        }
        settings::follow_current(&mut plan.settings);
        plan.histories.clear();
        plan.without.insert(0, timeline);
        plan.notes.push(Note::HistoryLost(timeline));
        Ok(plan)
    }

    /// What helps where recovery needs a history that is lost: each way was tried.
    pub(super) fn without_history(&self, timeline: TimelineId) -> Asking<Vec<Hint>> {
        let mut hints = vec![Hint::ArchiveHistory(timeline)];
        let alone = RestoreRequest { standby: false, ..self.request.clone() };
        if self.request.standby && self.is_reached_by(&alone)? {
            hints.push(Hint::WithoutStandby);
        }
        let older = |other| other < timeline && !has_no_history(self.facts, other);
        if let Some(instead) = self.newest_timeline(older)? {
            let along = RestoreRequest { timeline: TargetTimeline::Id(instead), ..self.request.clone() };
            hints.extend(self.is_reached_by(&along)?.then_some(Hint::Without { timeline, instead }));
        }
        Ok(hints)
    }

    /// Whether a moment that is to be offered can be recovered. It is in the archive; on a timeline without a history that is not
    /// enough.
    pub(super) fn may_be_offered(&self, moment: &Moment) -> Asking<bool> {
        if !has_no_history(self.facts, moment.timeline) {
            return Ok(true);
        }
        let (target, backup) = match moment.target {
            MomentTarget::End => (RecoveryTarget::Latest, None),
            MomentTarget::Record(record) => (RecoveryTarget::Lsn(record), None),
            MomentTarget::Consistent(backup) => (RecoveryTarget::Immediate, Some(backup)),
        };
        let timeline = TargetTimeline::Id(moment.timeline);
        self.is_reached_by(&RestoreRequest { target, backup, timeline, ..RestoreRequest::default() })
    }

    fn is_reached_by(&self, request: &RestoreRequest) -> Asking<bool> {
        let planner = Planner { facts: self.facts, request, now: self.now };
        Ok(planner.attempt()?.is_ok())
    }
}
