//! Restore points as targets. A name can be given again, and PostgreSQL stops at the first one that it replays: which one that is
//! depends on where the backup begins. So a name that may mean several moments is refused with all of them, and one that
//! recovery would meet too early is reached by its position, at which it lies alone.

use walpoint_base::facts::is_exact_name;
use walpoint_base::{BackupId, Lsn, RecoveryTarget, TargetTimeline};

use super::facts::{Asking, NamedPoint};
use super::hint::Hint;
use super::note::Note;
use super::path::Path;
use super::planner::{Attempt, Planner, Refusal};
use super::request::RestoreRequest;
use super::unreachable::Why;

/// Restore points of one name that are listed, the newest ones.
pub(super) const LISTED: usize = 20;

impl<'a> Planner<'a> {
    /// From the newest of `listed` (newest first) from which the only reachable restore point of that name is reached.
    pub(super) fn with_point(&self, path: &Path<'a>, listed: &[BackupId], name: &str) -> Asking<Attempt> {
        let mut reachable = Vec::new();
        for point in self.points_on(path, name)? {
            if self.can_reach(path, listed, point.lsn)? {
                reachable.push(point);
            }
        }
        if !reachable.is_empty() && !is_exact_name(name) {
            let points = reachable.into_iter().cloned().collect();
            return Ok(Err(Refusal::on(path.timeline(), Why::NameNotUtf8(points))));
        }
        let only = match &reachable[..] {
            [] if !is_exact_name(name) => return Ok(Err(Refusal::on(path.timeline(), Why::NameNotFound))),
            [] => return self.with_newest_that_finds(path, listed),
            [only] => *only,
            _ => {
                let points = reachable.into_iter().cloned().collect();
                return Ok(Err(Refusal::on(path.timeline(), Why::SeveralPoints(points))));
            }
        };
        let attempt = self.with_newest_that_finds(path, listed)?;
        if attempt.as_ref().is_ok_and(|plan| plan.stop.as_ref().is_some_and(|s| s.record == only.lsn)) {
            return Ok(attempt);
        }
        // Another one of that name comes first, where no backup is consistent yet.
        let request =
            RestoreRequest { target: RecoveryTarget::Lsn(only.lsn), inclusive: true, ..self.request.clone() };
        let planner = Planner { request: &request, ..*self };
        Ok(planner.with_newest_before(path, listed)?.map(|mut plan| {
            plan.notes.push(Note::PointByPosition { name: name.to_owned(), lsn: only.lsn });
            plan
        }))
    }

    /// The restore points of that name on the path, by position.
    fn points_on(&self, path: &Path<'a>, name: &str) -> Asking<Vec<&'a NamedPoint>> {
        let mut points: Vec<_> = self.facts.points_named(name)?.iter().collect();
        points.retain(|point| path.history().timeline_at(point.lsn) == point.timeline);
        points.sort_by_key(|point| point.lsn);
        Ok(points)
    }

    /// Whether a backup is consistent before a position from which all WAL up to there is present.
    fn can_reach(&self, path: &Path<'a>, listed: &[BackupId], lsn: Lsn) -> Asking<bool> {
        for &id in listed.iter().rev().filter(|id| id.start() < lsn) {
            if self.coverage_from(path, id)?.until <= lsn {
                continue;
            }
            if self.facts.complete_backup(id)?.is_some_and(|b| b.end <= lsn && path.holds(b)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Notes about restore points of the name asked for that the path does not lead to.
    pub(super) fn points_on_other_timelines(&self, path: &Path<'_>) -> Asking<Vec<Note>> {
        let (RecoveryTarget::Name(name), TargetTimeline::Latest) =
            (&self.request.target, self.request.timeline)
        else {
            return Ok(Vec::new());
        };
        let elsewhere = |point: &&NamedPoint| path.history().timeline_at(point.lsn) != point.timeline;
        let others = self.facts.points_named(name)?.iter().rev().filter(elsewhere).take(LISTED);
        Ok(others.cloned().map(Note::PointAlsoOn).collect())
    }
}

/// How to reach each of some restore points of one name, oldest first.
pub(super) fn choices(points: &[NamedPoint]) -> Vec<Hint> {
    let older = points.len().saturating_sub(LISTED);
    let listed = points.iter().skip(older).cloned().map(Hint::PointAt);
    listed.chain(Some(older).filter(|older| *older > 0).map(Hint::OlderPoints)).collect()
}
