//! Finds what a person should know of a plan before it is carried out ([`Note`]).

use walpoint_base::{BackupId, RecoveryTarget, TargetTimeline};

use super::ending::Ending;
use super::facts::{Asking, BackupFacts, BackupState, Unusable};
use super::locks;
use super::note::{DamageNote, Note};
use super::path::Path;
use super::planner::{Attempt, Planner, Refusal};
use super::request::RestoreRequest;
use super::restore_plan::{ForkSegment, ForkSource, RestorePlan};
use super::stop::Stop;
use super::unreachable::Why;

impl Planner<'_> {
    /// All that a person should know of a plan.
    pub(super) fn notes(
        &self,
        path: &Path<'_>,
        backup: &BackupFacts,
        ending: &Ending,
        stop: Option<&Stop>,
    ) -> Asking<Vec<Note>> {
        let mut notes = Vec::new();
        notes.extend(Some(backup.damaged_pages).filter(|pages| *pages > 0).map(Note::DamagedPages));
        notes.extend(self.at_the_end(path, ending)?);
        notes.extend(self.on_target(path, stop)?);
        if self.request.timeline == TargetTimeline::Latest {
            let abandoned = self.facts.abandoned.iter().filter(|(timeline, _)| **timeline > path.timeline());
            notes.extend(abandoned.map(|(timeline, record)| Note::NotTheLatest {
                timeline: *timeline,
                record: record.clone(),
            }));
        }
        notes.extend(self.points_on_other_timelines(path)?);
        let RestoreRequest { standby, timeline, target, .. } = self.request;
        if *standby
            && (*timeline, target) == (TargetTimeline::Latest, &RecoveryTarget::Latest)
            && !self.is_found_from(backup.id.timeline(), ending.timeline)
        {
            notes.push(Note::StandbyStays(ending.timeline));
        }
        if let RecoveryTarget::Name(name) = &self.request.target {
            let damaged = self.facts.damaged_points.iter().cloned();
            notes.extend(damaged.map(|damaged| Note::DamagedPoints { name: name.clone(), damaged }));
        }
        if let Some(stop) = stop {
            notes.extend(locks::notes(stop, backup, self.request.action));
        }
        Ok(notes)
    }

    /// What recovery does not follow at its end, what is built for it, and what it leaves out.
    fn at_the_end(&self, path: &Path<'_>, ending: &Ending) -> Asking<Vec<Note>> {
        let mut notes = Vec::new();
        if let Some(next) = ending.unfollowed {
            notes.push(Note::Unfollowed { on: path.timeline(), next });
        } else if self.request.target == RecoveryTarget::Latest
            && ending.wal.last().is_none_or(|f| f.timeline != path.timeline())
            && self.facts.wal(path.timeline())?.first().is_none()
        {
            notes.push(Note::NoWholeSegment(path.timeline()));
        }
        notes.extend(ending.fork.map(|fork| match fork.is_of_itself() {
            true => Note::PartHandedOut(fork),
            false if self.is_left_in_none(&fork) => Note::LastSegmentBuilt(fork),
            false => Note::ForkBuilt(fork),
        }));
        notes.extend(ending.more_until.map(|(timeline, cut)| Note::MoreUntil { timeline, cut }));
        Ok(notes)
    }

    /// What else the target may mean.
    fn on_target(&self, path: &Path<'_>, stop: Option<&Stop>) -> Asking<Vec<Note>> {
        let Some(stop) = stop else { return Ok(Vec::new()) };
        Ok(match (&self.request.target, self.request.timeline, stop.full_xid) {
            (RecoveryTarget::Time(_), TargetTimeline::Latest, _) => {
                let others = self.on_other_timelines(path.timeline(), Some(stop.record))?;
                others.into_iter().map(Note::AlsoOn).collect()
            }
            (RecoveryTarget::Xid(_), _, Some(full)) if full.epoch() > 0 => vec![Note::EpochChosen(full)],
            _ => Vec::new(),
        })
    }

    /// What a plan is beside a newer backup that was finished and cannot be read. To the end of the newest backup there is none: it is
    /// another moment than that of an older one. Elsewhere a person should know of it.
    pub(super) fn beside_unreadable(
        &self,
        path: &Path<'_>,
        listed: &[BackupId],
        mut plan: RestorePlan,
    ) -> Asking<Attempt> {
        let older = plan.backup.id;
        let to_its_end = self.request.target == RecoveryTarget::Immediate;
        let newer = listed.iter().take_while(|id| **id != older);
        for &backup in newer.filter(|id| to_its_end || id.start() < plan.until) {
            let why = match self.facts.backup(backup)? {
                BackupState::Unusable(why) if why.is_unreadable() => *why,
                BackupState::Complete(known) if to_its_end && known.damaged_manifest && path.holds(known) => {
                    Unusable::DamagedManifest
                }
                _ => continue,
            };
            if to_its_end {
                let why = Why::NewestUnreadable { backup, why, older };
                return Ok(Err(Refusal::on(path.timeline(), why)));
            }
            plan.notes.push(Note::NewerDamaged { backup, damage: DamageNote::Manifest });
            break;
        }
        Ok(Ok(plan))
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
    let damage = if *damaged_packs > 0 {
        DamageNote::Packs(*damaged_packs)
    } else if *damaged_segments > 0 {
        DamageNote::Segments(*damaged_segments)
    } else if damaged.damaged_manifest {
        DamageNote::Manifest
    } else {
        DamageNote::Pages(*damaged_pages)
    };
    plan.notes.push(Note::NewerDamaged { backup: *id, damage });
    plan
}
