//! Targets that have to be found before it is known which backup they need: transactions and restore points.
//!
//! Both may occur more than once: xids wrap around, names can be given again. PostgreSQL stops at the first one after the
//! backup's start, so the newest backup that finds one reaches the latest. Asking every backup would be a search each;
//! instead the newest that finds one is found by doubling and halving.

use walpoint_base::target::FullXid;
use walpoint_base::{BackupId, Lsn, RecoveryTarget};

use super::facts::{Asking, BackupFacts, StopQuestion};
use super::notes::instead_of;
use super::path::{Coverage, Path, SegmentRange};
use super::planner::{Attempt, Planner, Refusal};
use super::restore_plan::RestorePlan;
use super::settings::StopAt;
use super::stop::{Stop, StopRule};
use super::unreachable::Why;

/// Backups from which recovery replays the same WAL up to the same gap or end, newest first.
struct SameReach {
    until: Lsn,
    backups: Vec<BackupId>,
}

impl<'a> Planner<'a> {
    /// From the newest of `listed` (newest first) from which recovery stops at the target.
    pub(super) fn with_newest_that_finds(&self, path: &Path<'a>, listed: &[BackupId]) -> Asking<Attempt> {
        match self.newest_that_finds(path, listed)? {
            Ok(plan) => self.beside_unreadable(path, listed, plan),
            refused => Ok(refused),
        }
    }

    fn newest_that_finds(&self, path: &Path<'a>, listed: &[BackupId]) -> Asking<Attempt> {
        let timeline = path.timeline();
        let mut found = false;
        let ranges = self.ranges(path, listed)?;
        for range in &ranges {
            let Some(newest) = self.newest_with_target(path, range)? else { continue };
            found = true;
            // One that is not complete, or is not consistent in time, leaves it to the next older one.
            let mut spare: Option<(&BackupFacts, RestorePlan)> = None;
            for &id in range.backups.iter().skip(newest) {
                let Some(backup) = self.facts.complete_backup(id)?.filter(|b| path.holds(b)) else {
                    continue;
                };
                let stop = self.stop_from(path, range, id)?.filter(|s| s.record >= backup.end);
                if let Some(stop) = stop.filter(|stop| self.is_of_epoch(stop)) {
                    let coverage = self.coverage_from(path, id)?;
                    let ending = self.ending(path, backup, &coverage, stop.end)?;
                    let plan =
                        self.build(path, backup, &ending, Some(stop), (stop.end, StopAt::Requested))?;
                    match spare {
                        None if self.is_last_resort(backup) => spare = Some((backup, plan)),
                        None => return Ok(Ok(plan)),
                        Some((damaged, other)) => {
                            let serves = !self.is_last_resort(backup) && plan.stop == other.stop;
                            if serves {
                                return Ok(Ok(instead_of(damaged, plan)));
                            }
                            spare = Some((damaged, other));
                        }
                    }
                }
            }
            if let Some((_, plan)) = spare {
                return Ok(Ok(plan));
            }
        }
        if let Some(&id) = listed.first()
            && let Some(refused) = self.contradicting(path, self.coverage_from(path, id)?.missing)
        {
            return Ok(refused);
        }
        let others = self.of_other_epochs(path, &ranges)?;
        if let (false, true, Some(id)) = (found, others.is_empty(), listed.first())
            && let Some(refused) = self.not_past_unread(path, &self.coverage_from(path, *id)?)
        {
            return Ok(refused);
        }
        let why = match (&self.request.target, self.request.backup) {
            _ if listed.is_empty() => Why::NoBackupOnPath { timeline },
            _ if !others.is_empty() => Why::XidOfOtherEpoch(others),
            (_, Some(id)) if found => Why::BackupTooLate(id),
            _ if found => Why::BeforeFirstBackup { timeline },
            (RecoveryTarget::Xid(_) | RecoveryTarget::FullXid(_), _) => Why::XidNotFound,
            _ => Why::NameNotFound,
        };
        let missing = self.gaps(path, listed)?;
        Ok(Err(Refusal { why, missing, path: Some(timeline) }))
    }

    /// The WAL that is missing on the path and may hold the target, oldest first.
    fn gaps(&self, path: &Path<'a>, listed: &[BackupId]) -> Asking<Vec<SegmentRange>> {
        let mut gaps = Vec::new();
        for &id in listed {
            let coverage = self.coverage_from(path, id)?;
            let Some(last) = coverage.gap() else { continue };
            for gap in path.missing(coverage.missing, last)? {
                if !gaps.contains(&gap) {
                    gaps.push(gap);
                }
            }
        }
        gaps.sort_by_key(|gap| (gap.first, gap.timeline));
        Ok(gaps)
    }

    /// The backups by unbroken range. One whose first segment is missing belongs to none.
    fn ranges(&self, path: &Path<'a>, listed: &[BackupId]) -> Asking<Vec<SameReach>> {
        let mut ranges: Vec<SameReach> = Vec::new();
        for &id in listed {
            let until = self.coverage_from(path, id)?.until;
            match ranges.last_mut() {
                _ if until <= id.start() => {}
                Some(last) if last.until == until => last.backups.push(id),
                _ => ranges.push(SameReach { until, backups: vec![id] }),
            }
        }
        Ok(ranges)
    }

    /// The index of the newest backup of a range after whose start the target occurs. The older a backup, the more
    /// it replays, so the answers change once: twice as far back each time, then halving what is left.
    fn newest_with_target(&self, path: &Path<'a>, range: &SameReach) -> Asking<Option<usize>> {
        let occurs = |index: usize| -> Asking<bool> {
            let Some(&id) = range.backups.get(index) else { return Ok(false) };
            // The older a backup, the older the epoch of the first transaction of that number: a newer one is not it yet.
            let wanted = self.wanted_epoch();
            let early = |stop: &Stop| wanted.zip(stop.full_xid).is_none_or(|(wanted, full)| full <= wanted);
            Ok(self.stop_from(path, range, id)?.is_some_and(early))
        };
        let last = range.backups.len().saturating_sub(1);
        let (mut without, mut with) = (0, 0);
        while !occurs(with)? {
            if with == last {
                return Ok(None);
            }
            without = with + 1;
            with = (2 * with + 1).min(last);
        }
        while without < with {
            let middle = without + (with - without) / 2;
            if occurs(middle)? { with = middle } else { without = middle + 1 }
        }
        Ok(Some(with))
    }

    /// The transaction with its epoch, if one was asked for.
    fn wanted_epoch(&self) -> Option<FullXid> {
        match self.request.target {
            RecoveryTarget::FullXid(full) => Some(FullXid(full)),
            _ => None,
        }
    }

    /// Whether a stop is not known to be of another epoch than was asked for.
    fn is_of_epoch(&self, stop: &Stop) -> bool {
        self.wanted_epoch().zip(stop.full_xid).is_none_or(|(wanted, full)| full == wanted)
    }

    /// The transactions of the number asked for that recovery from the oldest backups would stop at, of other epochs.
    fn of_other_epochs(&self, path: &Path<'a>, ranges: &[SameReach]) -> Asking<Vec<FullXid>> {
        let mut others = Vec::new();
        if self.wanted_epoch().is_none() {
            return Ok(others);
        }
        for range in ranges {
            for &id in range.backups.first().into_iter().chain(range.backups.last()) {
                let stop = self.stop_from(path, range, id)?.filter(|stop| !self.is_of_epoch(stop));
                others.extend(stop.and_then(|stop| stop.full_xid));
            }
        }
        others.sort_unstable();
        others.dedup();
        Ok(others)
    }

    pub(super) fn coverage_from(&self, path: &Path<'a>, id: BackupId) -> Asking<Coverage> {
        path.with_tail(path.replayable(id.start())?)
    }

    fn stop_from(&self, path: &Path<'a>, range: &SameReach, id: BackupId) -> Asking<Option<&'a Stop>> {
        let Some(rule) = StopRule::of(&self.request.target, self.request.inclusive) else { return Ok(None) };
        let (path, from, until) = (path.timeline(), id.start(), range.until);
        self.facts.stop(StopQuestion { path, rule, from, until })
    }
}
