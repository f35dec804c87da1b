//! What a person should know of a plan before it is carried out, in words: what it leaves out, what is built for it, and what
//! else may have been meant.

use walpoint_base::{RecoveryTarget, TargetTimeline};

use super::ending::Ending;
use super::facts::{Asking, BackupFacts};
use super::locks;
use super::path::Path;
use super::planner::Planner;
use super::restore_plan::{ForkSegment, ForkSource, RestorePlan};
use super::stop::Stop;

impl Planner<'_> {
    pub(super) fn notes(
        &self,
        path: &Path<'_>,
        backup: &BackupFacts,
        ending: &Ending,
        stop: Option<&Stop>,
    ) -> Asking<Vec<String>> {
        let mut notes = Vec::new();
        if backup.damaged_pages > 0 {
            let pages = backup.damaged_pages;
            notes.push(format!(
                "{pages} pages had wrong checksums when the backup was taken; restored as they were."
            ));
        }
        if let Some(unfollowed) = ending.unfollowed {
            notes.push(format!(
                "Timeline {}, which was forked from timeline {} at {}, has no whole segment in the archive yet: recovery ends there.",
                unfollowed.timeline,
                path.timeline(),
                unfollowed.from
            ));
        } else if self.request.target == RecoveryTarget::Latest
            && ending.wal.last().is_none_or(|f| f.timeline != path.timeline())
        {
            let leaf = path.timeline();
            notes.push(format!("Timeline {leaf} has no whole segment in the archive yet."));
        }
        if let Some(fork) = ending.fork.as_ref().filter(|fork| fork.is_of_itself()) {
            notes.push(format!(
                "Of {} restore-fetch hands out what lies before {}, where timeline {} was left.",
                fork.name, fork.cut, fork.name.timeline
            ));
        } else if let Some(fork) = ending.fork.as_ref().filter(|fork| self.is_left_in_none(fork)) {
            notes.push(format!(
                "{} is not whole in the archive; restore-fetch builds it from the incomplete copy, up to its last record's end, \
                 {}.",
                fork.name, fork.cut
            ));
        } else if let Some(fork) = &ending.fork {
            notes.push(format!(
                "{} is not in the archive; restore-fetch builds it from {}, up to {}, where timeline {} was left.",
                fork.name,
                fork.source_name(),
                fork.cut,
                fork.name.timeline
            ));
        }
        if let Some((timeline, cut)) = ending.more_until {
            notes.push(format!(
                "A younger timeline left timeline {timeline} at {cut} and has what comes before: --use-partial recovers up to there."
            ));
        }
        if let (RecoveryTarget::Time(_), TargetTimeline::Latest, Some(stop)) =
            (&self.request.target, self.request.timeline, stop)
        {
            let others = self.on_other_timelines(path.timeline(), Some(stop.record))?.into_iter();
            notes.extend(others.map(|other| {
                format!("Timeline {other} has that moment, too: --target-timeline {other} recovers it there.")
            }));
        }
        if let (RecoveryTarget::Xid(_), Some(full)) = (&self.request.target, stop.and_then(|s| s.full_xid))
            && full.epoch() > 0
        {
            notes.push(format!(
                "Transaction ids repeat: {} is taken for {full} (pg_current_xact_id() printed {}), the newest of that number that \
                 can be reached. For one of another epoch: --target-xid EPOCH:{}.",
                full.xid(),
                full.0,
                full.xid()
            ));
        }
        if self.request.timeline == TargetTimeline::Latest {
            let abandoned = self.facts.abandoned.iter().filter(|(timeline, _)| **timeline > path.timeline());
            notes.extend(abandoned.map(|(timeline, record)| {
                format!(
                    "Not the latest: {record}. --target-timeline {timeline} recovers what was written there."
                )
            }));
        }
        notes.extend(self.points_on_other_timelines(path)?);
        if let RecoveryTarget::Name(name) = &self.request.target {
            notes.extend(self.facts.damaged_points.iter().map(|damaged| {
                format!("A damaged list of restore points may hold \"{name}\" once more: {damaged}.")
            }));
        }
        if let Some(stop) = stop {
            notes.extend(locks::notes(stop, backup, self.request.action));
        }
        Ok(notes)
    }

    /// Whether a segment that is built is a timeline's last one, which no other timeline left.
    fn is_left_in_none(&self, fork: &ForkSegment) -> bool {
        let timeline = fork.name.timeline;
        fork.source == ForkSource::Partial(timeline)
            && self.facts.graph.left_at(timeline).all(|left| left < fork.cut)
    }
}

/// A plan that does without a newer backup, because that is damaged.
pub(super) fn instead_of(damaged: &BackupFacts, mut plan: RestorePlan) -> RestorePlan {
    let BackupFacts { id, damaged_pages, damaged_packs, damaged_segments, .. } = damaged;
    let found = if *damaged_packs > 0 {
        format!("{damaged_packs} of the packs that it uses were found damaged or missing")
    } else if *damaged_segments > 0 {
        format!("{damaged_segments} of the WAL segments that make it consistent were found damaged")
    } else if damaged.damaged_manifest {
        "its manifest was found damaged".to_owned()
    } else {
        plan.notes.push(format!(
            "Backup {id} is newer, and was not chosen: {damaged_pages} of its pages had wrong checksums when it was taken. \
             --backup {id} restores it all the same."
        ));
        return plan;
    };
    plan.notes.push(format!(
        "Backup {id} is newer, and was not chosen: {found}. \"archive-agent verify\" says more."
    ));
    plan
}
