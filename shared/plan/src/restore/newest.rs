//! The newest backup from which recovery reaches a target that lies behind its end: a time, a position, the latest moment.
//!
//! Commit times are not monotone: clocks are set back, and the hosts of one cluster disagree. PostgreSQL stops at the first
//! transaction that ended after the target, so a backup that already holds such a transaction begins behind that moment, however
//! early it ended by the clock. An older one is taken then. The WAL that is there shows it, and what the backup notes of WAL that was
//! deleted since.

use walpoint_base::{BackupId, PgTimestamp, RecoveryTarget, SegmentNo};

use super::facts::{Asking, BackupFacts, PassedQuestion};
use super::note::Note;
use super::notes::instead_of;
use super::path::Path;
use super::planner::{Attempt, Planner, Refusal};
use super::stop::StopRule;
use super::unreachable::Why;

/// A backup that holds a transaction which ended after the target.
struct Passed {
    backup: BackupId,
    /// When it ended, by its commit time.
    time: PgTimestamp,
}

impl<'a> Planner<'a> {
    /// Time, LSN, immediate, latest: from the newest backup that lies before the target.
    pub(super) fn with_newest_before(&self, path: &Path<'a>, listed: &[BackupId]) -> Asking<Attempt> {
        let mut passed = None;
        let attempt = match self.newest_before(path, listed, &mut passed)? {
            Ok(plan) => self.beside_unreadable(path, listed, plan)?,
            refused => refused,
        };
        let Some(Passed { backup, time }) = passed else { return Ok(attempt) };
        Ok(match attempt {
            Ok(mut plan) if plan.backup.id == backup => {
                plan.notes.push(Note::HoldsLaterCommit { backup, time });
                Ok(plan)
            }
            Ok(mut plan) => {
                plan.notes.push(Note::NewerHoldsLaterCommit { backup, time });
                Ok(plan)
            }
            Err(Refusal { why: Why::BeforeFirstBackup { .. } | Why::NoBackupOnPath { .. }, .. }) => {
                Err(Refusal::on(path.timeline(), Why::ClockSetBack { backup, time }))
            }
            refused => refused,
        })
    }

    /// The commit time of a transaction that stops recovery by a time target and that a backup holds.
    fn passed(&self, path: &Path<'a>, backup: &BackupFacts) -> Asking<Option<PgTimestamp>> {
        let rule = StopRule::of(&self.request.target, self.request.inclusive);
        let Some(rule @ StopRule::Time { .. }) = rule else { return Ok(None) };
        // What the backup itself notes outlives the WAL that it was found in.
        if let Some(latest) = backup.latest_commit.filter(|latest| rule.stops_at(*latest)) {
            return Ok(Some(latest));
        }
        path.present()?;
        self.facts.passed(PassedQuestion { path: path.timeline(), rule, before: backup.start() })
    }

    /// Time, LSN, immediate, latest: the newest backup that ends before the target is the only one to try, unless it starts in a
    /// segment that is not whole; and one that is known to be damaged only if no sound one before it serves.
    fn newest_before(
        &self,
        path: &Path<'a>,
        listed: &[BackupId],
        passed: &mut Option<Passed>,
    ) -> Asking<Attempt> {
        let (mut too_late, mut spare, mut refused) = (None, None, None);
        for &id in listed {
            let started = id.started().map(PgTimestamp::from_time);
            let surely_late = match self.request.target {
                RecoveryTarget::Time(time) => started.is_some_and(|s| s > time),
                RecoveryTarget::Lsn(lsn) => id.start() > lsn,
                _ => false,
            };
            if surely_late {
                too_late = too_late.or(Some(id));
                continue;
            }
            let Some(backup) = self.facts.complete_backup(id)?.filter(|b| path.holds(b)) else { continue };
            let late = match self.request.target {
                RecoveryTarget::Time(time) => backup.ended > time,
                RecoveryTarget::Lsn(lsn) => backup.end > lsn,
                _ => false,
            };
            if !late && let Some(time) = self.passed(path, backup)? {
                passed.get_or_insert(Passed { backup: id, time });
                if self.request.backup.is_none() {
                    continue;
                }
            }
            if !late && self.is_last_resort(backup) {
                spare = spare.or(Some(backup));
                continue;
            }
            let attempt = if late { None } else { self.with_one(path, backup)? };
            match (attempt, spare) {
                (Some(Ok(plan)), Some(spare)) => return Ok(Ok(instead_of(spare, plan))),
                (Some(Err(refusal)), None) if self.needs_incomplete(path, backup)? => {
                    refused = refused.or(Some(refusal));
                }
                (Some(Ok(plan)), None) => return Ok(Ok(plan)),
                (Some(Err(refusal)), None) => return Ok(Err(refused.unwrap_or(refusal))),
                (Some(Err(_)), Some(_)) => break,
                (None, _) => too_late = too_late.or(Some(id)),
            }
        }
        if let Some(spare) = spare {
            match self.with_one(path, spare)? {
                Some(attempt) => return Ok(attempt),
                None => too_late = too_late.or(Some(spare.id)),
            }
        }
        if let Some(refusal) = refused {
            return Ok(Err(refusal));
        }
        let timeline = path.timeline();
        let why = match (too_late, self.request.backup) {
            (Some(id), Some(_)) => Why::BackupTooLate(id),
            (Some(_), None) => Why::BeforeFirstBackup { timeline },
            (None, _) => Why::NoBackupOnPath { timeline },
        };
        Ok(Err(Refusal::on(timeline, why)))
    }

    /// Whether the segment that a backup starts in is not whole, or the last one that it needs, in which its timeline was left and which
    /// something stands in for. Recovery cannot begin in an incomplete copy, nor end before the backup does; an older one gets as far as
    /// there is something.
    fn needs_incomplete(&self, path: &Path<'a>, backup: &BackupFacts) -> Asking<bool> {
        let size = self.facts.segment_size;
        let (first, last) = (SegmentNo::of(backup.start(), size), SegmentNo::before(backup.end, size));
        let coverage = path.replayable(backup.start())?;
        if coverage.missing == first {
            return Ok(true);
        }
        let stands_in = |left: Option<(_, Option<_>)>| left.is_some_and(|(_, source)| source.is_some());
        Ok(coverage.missing == last
            && coverage.gap().is_none()
            && stands_in(self.left_behind(path.timeline(), &coverage)?))
    }
}
