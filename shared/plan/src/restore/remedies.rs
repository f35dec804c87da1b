//! What helps against a refusal: by its reason, and by what else is known.

use std::cmp::Reverse;

use walpoint_base::facts::{PointRef, is_exact_name};
use walpoint_base::{RecoveryTarget, SegmentName, SegmentNo, TimelineId};

use super::facts::{Asking, BackupState, Doubt};
use super::hint::Hint;
use super::path::{Path, SegmentRange};
use super::planner::{Planner, Refusal};
use super::points;
use super::unreachable::Why;

/// How many restore points are named, the newest ones.
const KNOWN_POINTS: usize = 20;

/// How many backups that cannot be used are named, the newest first.
const UNUSABLE_BACKUPS: usize = 5;

impl Planner<'_> {
    /// Everything that helps.
    pub(super) fn hints(&self, refusal: &Refusal) -> Asking<Vec<Hint>> {
        let mut hints = self.remedies(refusal)?;
        if refusal.why == Why::NameNotFound {
            hints.extend(self.facts.damaged_points.iter().cloned().map(Hint::DamagedPoints));
        }
        if matches!(refusal.why, Why::XidNotFound | Why::NameNotFound) && !refusal.missing.is_empty() {
            hints.push(Hint::MaybeInMissing);
        }
        if let (Why::XidNotFound | Why::NameNotFound, Some(path)) = (&refusal.why, refusal.path)
            && let Some(path) = Path::to(self.facts, path)
            && let Some(at) = path.minimal()?.last()
        {
            hints.push(Hint::MaybeBehindMinimal(*at));
        }
        let removed = self.removed_before_end(refusal)?;
        if removed.is_some() {
            // To recover everything would bring the accident along.
            hints.retain(|hint| *hint != Hint::TimeNotOver);
        }
        hints.splice(0..0, removed.map(Hint::RemovedBefore));
        if let (RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_), Some(path)) =
            (&self.request.target, refusal.path)
        {
            // It decides, where there is one.
            let others = self.on_other_timelines(path, None)?.into_iter().map(Hint::OtherTimeline);
            hints.splice(0..0, others);
        }
        Ok(hints)
    }

    /// What helps against the reason by itself.
    fn remedies(&self, refusal: &Refusal) -> Asking<Vec<Hint>> {
        Ok(match (&refusal.why, &self.request.target) {
            (Why::UnknownTimeline(_), _) => vec![Hint::KnownTimelines(self.facts.graph.ids().collect())],
            (Why::NoBackup | Why::NoBackupOnPath { .. }, _) => self.without_backups(refusal)?,
            (Why::MissingWal { .. }, _) => {
                let stored = self.was_stored(&refusal.missing)?.map(Hint::WasStored);
                stored.into_iter().chain([Hint::ArchiveMissing]).collect()
            }
            (Why::MinimalWal { .. }, _) => vec![Hint::BackupAfterMinimal],
            (Why::ContradictingCopies { segment, .. }, _) => vec![Hint::DecideCopies(*segment)],
            (Why::EndsIncomplete { damaged, .. }, _) => {
                let copy = if damaged.is_some() { Hint::ArchiveAnotherCopy } else { Hint::AllowCopy };
                vec![Hint::ArchiveWhole, copy]
            }
            (Why::EndsInFork { timeline, until }, _) => {
                let younger = refusal.path.filter(|younger| younger > timeline);
                let size = self.facts.segment_size;
                let first = younger.map(|timeline| Hint::ArchiveFirst {
                    timeline,
                    first: SegmentNo::of(*until, size).name(timeline, size),
                });
                first.into_iter().chain([Hint::AllowBuilt, Hint::ArchiveRest]).collect()
            }
            (Why::DoubtfulTimeline { timeline, doubt, instead }, _) => {
                let (timeline, instead) = (*timeline, *instead);
                let without = (instead != timeline).then_some(Hint::Without { timeline, instead });
                [against(doubt, timeline, instead)].into_iter().chain(without).collect()
            }
            (Why::ClockSetBack { backup, .. }, _) => vec![Hint::SecondTime(*backup)],
            (Why::NoHistory(timeline), _) => self.without_history(*timeline)?,
            (Why::AfterEnd { .. }, RecoveryTarget::Time(time)) => {
                let ahead = (time.to_time() > self.now).then_some(Hint::AheadOfClock);
                ahead.into_iter().chain([Hint::ArchiveRest, Hint::TimeNotOver]).collect()
            }
            (Why::AfterEnd { .. }, _) => vec![Hint::ArchiveRest, Hint::LeaveTargetOut],
            (Why::SeveralPoints(points) | Why::NameNotUtf8(points), _) => points::choices(points),
            (Why::XidOfOtherEpoch(_), _) => vec![Hint::CheckEpoch],
            (_, RecoveryTarget::Name(name)) => self.points_elsewhere(name, refusal.path)?,
            _ => Vec::new(),
        })
    }

    /// Why the newest backups cannot be used, and that another one is needed.
    fn without_backups(&self, refusal: &Refusal) -> Asking<Vec<Hint>> {
        let mut hints = Vec::new();
        // Each was asked for on the way to this refusal.
        let asked = self.facts.backups.iter().rev().filter(|_| refusal.why == Why::NoBackup);
        for id in asked.take(UNUSABLE_BACKUPS) {
            if let BackupState::Unusable(why) = self.facts.backup(*id)? {
                hints.push(Hint::UnusableBackup { backup: *id, why: *why });
            }
        }
        // A backup may lead to a timeline of which nothing shows where it comes from.
        let unread = |(_, doubt): &(&TimelineId, &Doubt)| matches!(doubt, Doubt::Damaged(_) | Doubt::Missing);
        let unread = self.facts.doubts.iter().filter(unread).map(|(timeline, _)| *timeline);
        hints.extend(unread.map(Hint::ArchiveHistory));
        hints.push(Hint::TakeBackup);
        Ok(hints)
    }

    /// The first of the missing files that was stored once.
    fn was_stored(&self, missing: &[SegmentRange]) -> Asking<Option<SegmentName>> {
        for range in missing {
            let lost = self.facts.lost(range.timeline)?.and_then(|lost| lost.from(range.first));
            if let Some(run) = lost.filter(|run| run.first <= range.last) {
                let number = run.first.max(range.first);
                return Ok(Some(number.name(range.timeline, self.facts.segment_size)));
            }
        }
        Ok(None)
    }

    /// Restore points of that name that the path does not lead through; those that there are if none bears it.
    fn points_elsewhere(&self, name: &str, path: Option<TimelineId>) -> Asking<Vec<Hint>> {
        let points = self.facts.points()?;
        let named = points.iter().filter(|point| point.name == name);
        let hints = named.map(|&PointRef { timeline, lsn, .. }| {
            match path.is_some_and(|path| self.facts.graph.share(path, timeline, lsn)) {
                false => Hint::PointOn { timeline, lsn },
                true => Hint::PointMade { timeline, lsn },
            }
        });
        let hints: Vec<Hint> = hints.collect();
        Ok(if hints.is_empty() { vec![Hint::KnownPoints(known_points(points))] } else { hints })
    }
}

/// What helps against a doubt about a timeline.
fn against(doubt: &Doubt, timeline: TimelineId, instead: TimelineId) -> Hint {
    match doubt {
        Doubt::Refused | Doubt::OtherAncestor(_) => Hint::ClaimedTwice { instead },
        Doubt::NoBackup => Hint::LostBackups(timeline),
        Doubt::Damaged(_) | Doubt::Missing => Hint::ArchiveHistory(timeline),
    }
}

/// The names that might have been meant, the newest first.
fn known_points(points: &[PointRef]) -> Vec<String> {
    let mut newest: Vec<&PointRef> = points.iter().filter(|point| is_exact_name(&point.name)).collect();
    newest.sort_by_key(|point| Reverse(point.lsn));
    let mut names: Vec<String> = Vec::new();
    for point in newest {
        if !names.contains(&point.name) && names.len() < KNOWN_POINTS {
            names.push(point.name.clone());
        }
    }
    names
}
