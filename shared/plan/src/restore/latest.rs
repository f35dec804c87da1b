//! Which timeline is the latest, and whether that is known.
//!
//! A timeline that a person says was abandoned is never the latest. A younger timeline whose origin is not known, or to which no
//! backup leads, keeps any other from being it, unless recovery stops where all of them have the same WAL.

use walpoint_base::{BackupId, Lsn, RecoveryTarget, TimelineId};

use super::facts::{Asking, Doubt};
use super::lost_history::{has_no_history, stays_on};
use super::note::Note;
use super::path::Path;
use super::planner::{Attempt, Planner, Refusal};
use super::unreachable::Why;

impl<'a> Planner<'a> {
    /// The timelines of which one may be the latest: not those that a person says were abandoned.
    pub(super) fn counting(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.facts.graph.ids().filter(|timeline| !self.facts.abandoned.contains_key(timeline))
    }

    fn doubts(&self) -> impl DoubleEndedIterator<Item = (&'a TimelineId, &'a Doubt)> + use<'a> {
        let facts = self.facts;
        facts.doubts.iter().filter(|(timeline, _)| !facts.abandoned.contains_key(timeline))
    }

    /// Along the path to the newest timeline that a backup leads to.
    pub(super) fn along_latest(&self, timeline: TimelineId) -> Asking<Attempt> {
        let listed = self.listed_on(timeline);
        let attempt = match self.doubt_about(timeline)?.or(self.without_backup(timeline)?) {
            Some(why) => return self.before_doubt(timeline, &listed, why),
            None => self.along(timeline, &listed)?,
        };
        let refused = matches!(&attempt, Err(Refusal { why: Why::BeforeFirstBackup { .. }, .. }));
        // Without a history no older backup leads to it; those of the timeline that it comes from do.
        if refused
            && has_no_history(self.facts, timeline)
            && let Some(older) = self.newest_timeline(|other| other < timeline)?
        {
            let why = Why::DoubtfulTimeline { timeline, doubt: Doubt::Missing, instead: older };
            let before = self.before_doubt(older, &self.listed_on(older), why)?;
            return Ok(if before.is_ok() { before } else { attempt });
        }
        Ok(attempt)
    }

    /// The newest of these timelines that can be reached from any complete backup.
    pub(super) fn newest_timeline(&self, of: impl Fn(TimelineId) -> bool) -> Asking<Option<TimelineId>> {
        for timeline in self.counting().rev().filter(|timeline| of(*timeline)) {
            let Some(path) = Path::to(self.facts, timeline) else { continue };
            for id in self.listed_on(timeline) {
                if self.facts.complete_backup(id)?.is_some_and(|b| path.holds(b)) {
                    return Ok(Some(timeline));
                }
            }
        }
        Ok(None)
    }

    /// Why `timeline` may not be the latest: a younger one is there, and it is not known where it comes from.
    pub(super) fn doubt_about(&self, timeline: TimelineId) -> Asking<Option<Why>> {
        let mut doubts = self.doubts().rev();
        // A damaged history keeps recovery from its own timeline, too, and of two histories either may be the right one.
        let doubtful = |(of, doubt): &(&TimelineId, &Doubt)| {
            **of > timeline || **of == timeline && **doubt != Doubt::Missing
        };
        let Some((of, doubt)) = doubts.find(doubtful) else { return Ok(None) };
        let instead = match *of == timeline && !doubt.is_of_two_servers() {
            true => self.newest_timeline(|other| other < timeline)?.unwrap_or(timeline),
            false => timeline,
        };
        Ok(Some(Why::DoubtfulTimeline { timeline: *of, doubt: doubt.clone(), instead }))
    }

    /// Refused because of a doubt about `timeline`, unless recovery stops where it is proven that every timeline in doubt has the same
    /// WAL: then whichever of them is the latest one has the target there.
    pub(super) fn before_doubt(
        &self,
        timeline: TimelineId,
        listed: &[BackupId],
        why: Why,
    ) -> Asking<Attempt> {
        if self.is_only_damaged(timeline, &why)?
            && let Ok(plan) = self.along(timeline, listed)?
            && stays_on(timeline, &plan)
        {
            return Ok(Ok(plan));
        }
        let refused = Ok(Err(Refusal::on(timeline, why)));
        if !matches!(self.request.target, RecoveryTarget::Time(_) | RecoveryTarget::Lsn(_))
            || self.without_backup(timeline)?.is_some()
        {
            return refused;
        }
        let mut common: Option<Lsn> = None;
        for (of, doubt) in self.doubts().filter(|(of, _)| **of >= timeline) {
            match doubt {
                Doubt::Missing if *of == timeline => continue,
                Doubt::Missing | Doubt::Damaged(_) if *of > timeline => {}
                _ => return refused,
            }
            let Some(begin) = self.begin_on(*of, timeline)? else { return refused };
            common = Some(common.unwrap_or(begin).min(begin));
        }
        let Some(common) = common else { return refused };
        match self.along(timeline, listed)? {
            Ok(mut plan) if plan.until <= common => {
                plan.notes.push(Note::SameUntil { timeline, common });
                Ok(Ok(plan))
            }
            _ => refused,
        }
    }

    /// Whether nothing else keeps `timeline` from being the latest than that its own history cannot be read. Wherever it comes from, it
    /// is what is meant, and a plan that stays on it needs no history. Where the backup is named, that decides what else may be meant.
    fn is_only_damaged(&self, timeline: TimelineId, why: &Why) -> Asking<bool> {
        let own = matches!(why, Why::DoubtfulTimeline { timeline: of, doubt: Doubt::Damaged(_), .. } if *of == timeline);
        Ok(own && (self.request.backup.is_some() || self.without_backup(timeline)?.is_none()))
    }

    fn begin_on(&self, of: TimelineId, on: TimelineId) -> Asking<Option<Lsn>> {
        self.facts.wal(of)?;
        if let Some(path) = Path::to(self.facts, on) {
            path.present()?;
        }
        self.facts.begin(of, on)
    }

    /// The youngest timeline after `timeline` that was written to. No backup leads there, so its rows cannot be brought back, and
    /// an older timeline's are not what was asked for.
    fn without_backup(&self, timeline: TimelineId) -> Asking<Option<Why>> {
        let known = |id: &TimelineId| *id > timeline && !self.facts.doubts.contains_key(id);
        for younger in self.counting().rev().filter(known) {
            if self.facts.wal(younger)?.first().is_some() {
                let doubt = Doubt::NoBackup;
                return Ok(Some(Why::DoubtfulTimeline { timeline: younger, doubt, instead: timeline }));
            }
        }
        Ok(None)
    }
}
