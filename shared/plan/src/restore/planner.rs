//! From facts and a request to a plan, or to the reason why there is none.
//!
//! Of the backups on the path to the target, the newest that ends before it is taken: any older one would need the same
//! WAL and more. "Before" has to be said for each kind of target:
//!
//! | target | the backup ends | and recovery stops |
//! |---|---|---|
//! | time | at or before that time | at the first commit or abort past it, which must start at or after the backup's end |
//! | LSN | at or before it | at the first record from there on |
//! | xid, name | at or before the record that stops recovery | there |
//! | immediate | | at the backup's end |
//! | latest | | where the archive ends; a gap before that is an error |
//!
//! A time is never looked up in a table of commit times alone: they are not monotone in LSN order.

use jiff::Timestamp;
use walpoint_base::{BackupId, RecoveryTarget, SegmentNo, TargetTimeline, TimelineId};

use super::facts::{Asking, BackupFacts, BackupState, ExtentQuestion, Facts, StopQuestion, Unusable};
use super::note::Note;
use super::path::{Coverage, Path, SegmentRange};
use super::request::RestoreRequest;
use super::restore_plan::RestorePlan;
use super::settings::StopAt;
use super::stop::StopRule;
use super::unreachable::{Unreachable, Why};

/// What planning ends with.
pub type Verdict = Result<RestorePlan, Box<Unreachable>>;

/// Plans a restore. Pure: returns the first question whose answer is missing, to be called again with it answered.
pub fn plan(facts: &Facts, request: &RestoreRequest, now: Timestamp) -> Asking<Verdict> {
    let planner = Planner { facts, request, now };
    match planner.attempt()? {
        Ok(mut plan) => {
            // It leads elsewhere, so it comes first.
            plan.notes.splice(0..0, planner.removed_before(&plan)?.map(Note::RemovedBefore));
            Ok(Ok(plan))
        }
        Err(refusal) => Ok(Err(Box::new(planner.explain(refusal)?))),
    }
}

/// Why there is no plan, before it is explained.
pub(super) struct Refusal {
    pub(super) why: Why,
    pub(super) missing: Vec<SegmentRange>,
    /// The timeline whose path was followed, if there was one.
    pub(super) path: Option<TimelineId>,
}

impl Refusal {
    /// Before any path was followed.
    pub(super) fn at_once(why: Why) -> Self {
        Self { why, missing: Vec::new(), path: None }
    }

    /// On the path to `timeline`, for another reason than missing WAL.
    pub(super) fn on(timeline: TimelineId, why: Why) -> Self {
        Self { why, missing: Vec::new(), path: Some(timeline) }
    }
}

pub(super) type Attempt = Result<RestorePlan, Refusal>;

pub(super) struct Planner<'a> {
    pub(super) facts: &'a Facts,
    pub(super) request: &'a RestoreRequest,
    pub(super) now: Timestamp,
}

impl<'a> Planner<'a> {
    /// A plan, as if each timeline had its history ([`super::lost_history`]).
    pub(super) fn run(&self) -> Asking<Attempt> {
        let refuse = |why| Ok(Err(Refusal::at_once(why)));
        if let TargetTimeline::Id(timeline) = self.request.timeline
            && !self.facts.graph.contains(timeline)
        {
            return refuse(Why::UnknownTimeline(timeline));
        }
        if let Some(id) = self.request.backup {
            return self.with_backup(id);
        }
        if self.facts.backups.is_empty() {
            return refuse(Why::NoBackup);
        }
        match self.request.timeline {
            TargetTimeline::Id(timeline) => self.along(timeline, &self.listed_on(timeline)),
            TargetTimeline::Latest => match self.newest_timeline(|_| true)? {
                Some(timeline) => self.along_latest(timeline),
                None => match self.counting().next_back().filter(|_| !self.facts.abandoned.is_empty()) {
                    Some(timeline) => refuse(Why::NoBackupOnPath { timeline }),
                    None => refuse(Why::NoBackup),
                },
            },
            TargetTimeline::Current => self.along_current(),
        }
    }

    /// Only one backup will do.
    fn with_backup(&self, id: BackupId) -> Asking<Attempt> {
        let refuse = |why| Ok(Err(Refusal::at_once(why)));
        if !self.facts.backups.contains(&id) {
            return refuse(Why::UnknownBackup(id));
        }
        let backup = match self.facts.backup(id)? {
            BackupState::Complete(backup) if backup.lineage == self.facts.lineage => backup,
            BackupState::Complete(backup) => {
                return refuse(Why::UnusableBackup(id, Unusable::OfLineage(backup.lineage)));
            }
            BackupState::OtherLineage(lineage) => {
                return refuse(Why::UnusableBackup(id, Unusable::OfLineage(*lineage)));
            }
            BackupState::Unusable(why) => return refuse(Why::UnusableBackup(id, *why)),
        };
        let holds = |t: &TimelineId| Path::to(self.facts, *t).is_some_and(|p| p.holds(backup));
        let timeline = match self.request.timeline {
            TargetTimeline::Id(timeline) => timeline,
            TargetTimeline::Current => backup.end_timeline,
            TargetTimeline::Latest => self.counting().rev().find(holds).unwrap_or(backup.end_timeline),
        };
        if !holds(&timeline) {
            return Ok(Err(Refusal::on(timeline, Why::BackupNotOnPath(id, timeline))));
        }
        if self.request.timeline == TargetTimeline::Latest
            && let Some(why) = self.doubt_about(timeline)?
        {
            return self.before_doubt(timeline, &[id], why);
        }
        self.along(timeline, &[id])
    }

    /// The backups that start on the path to `timeline`, newest first. Whether they are complete is not known.
    pub(super) fn listed_on(&self, timeline: TimelineId) -> Vec<BackupId> {
        let Some(history) = self.facts.graph.history(timeline) else { return Vec::new() };
        let on_path = |id: &&BackupId| history.timeline_at(id.start()) == id.timeline();
        let mut listed: Vec<_> = self.facts.backups.iter().filter(on_path).copied().collect();
        listed.sort_by_key(|id| std::cmp::Reverse((id.start(), *id)));
        listed
    }

    /// Each backup on its own timeline: the newest one that reaches the target wins.
    fn along_current(&self) -> Asking<Attempt> {
        let mut first_refusal = None;
        let mut tried = Vec::new();
        for &id in self.facts.backups.iter().rev() {
            let Some(backup) = self.facts.complete_backup(id)? else { continue };
            let timeline = backup.end_timeline;
            if tried.contains(&timeline) || self.facts.abandoned.contains_key(&timeline) {
                continue;
            }
            tried.push(timeline);
            let mut own = self.listed_on(timeline);
            own.retain(|id| id.timeline() == timeline);
            match self.along(timeline, &own)? {
                Ok(plan) => return Ok(Ok(plan)),
                Err(refusal) => first_refusal = first_refusal.or(Some(refusal)),
            }
        }
        Ok(Err(first_refusal.unwrap_or_else(|| Refusal::at_once(Why::NoBackup))))
    }

    /// Along the path to `timeline` from one of `listed`, which are newest first.
    pub(super) fn along(&self, timeline: TimelineId, listed: &[BackupId]) -> Asking<Attempt> {
        let Some(path) = Path::to(self.facts, timeline) else {
            return Ok(Err(Refusal::at_once(Why::UnknownTimeline(timeline))));
        };
        match &self.request.target {
            RecoveryTarget::Xid(_) | RecoveryTarget::FullXid(_) => self.with_newest_that_finds(&path, listed),
            RecoveryTarget::Name(name) => self.with_point(&path, listed, name),
            _ => self.with_newest_before(&path, listed),
        }
    }

    /// Whether a backup is only taken if no sound one serves: it is damaged, and was not asked for.
    pub(super) fn is_last_resort(&self, backup: &BackupFacts) -> bool {
        backup.is_damaged() && self.request.backup.is_none()
    }

    /// From this backup; `None` if recovery would stop before it is consistent.
    pub(super) fn with_one(&self, path: &Path<'a>, backup: &BackupFacts) -> Asking<Option<Attempt>> {
        let size = self.facts.segment_size;
        let rule = StopRule::of(&self.request.target, self.request.inclusive);
        let mut coverage = path.replayable(backup.start())?;
        if rule.is_some() {
            coverage = path.with_tail(coverage)?;
        }
        if coverage.until < backup.end {
            if let Some(refused) = self.not_past_minimal(path, backup.id, &coverage) {
                return Ok(Some(refused));
            }
            return Ok(Some(self.missing(path, backup, &coverage, SegmentNo::before(backup.end, size))?));
        }
        let Some(rule) = rule else {
            return Ok(Some(match self.request.target {
                RecoveryTarget::Immediate => self.to_the_backups_end(path, backup, &coverage)?,
                _ => self.to_the_end(path, backup, &coverage)?,
            }));
        };
        let question =
            StopQuestion { path: path.timeline(), rule, from: backup.start(), until: coverage.until };
        match self.facts.stop(question)? {
            Some(stop) if stop.record < backup.end => Ok(None),
            Some(stop) => {
                let ending = self.ending(path, backup, &coverage, stop.end)?;
                Ok(Some(Ok(self.build(path, backup, &ending, Some(stop), (stop.end, StopAt::Requested))?)))
            }
            None => Ok(Some(self.not_stopped(path, backup, &coverage)?)),
        }
    }

    /// All WAL that can be replayed was searched, and nothing in it stops recovery.
    fn not_stopped(&self, path: &Path<'a>, backup: &BackupFacts, coverage: &Coverage) -> Asking<Attempt> {
        if let Some(refused) = self.not_past_minimal(path, backup.id, coverage) {
            return Ok(refused);
        }
        if let Some(last) = coverage.gap() {
            let last = match self.request.target {
                RecoveryTarget::Lsn(lsn) => SegmentNo::of(lsn, self.facts.segment_size),
                _ => last,
            };
            return self.missing(path, backup, coverage, last.max(coverage.missing));
        }
        if let Some(refused) = self.not_past_unread(path, coverage) {
            return Ok(refused);
        }
        let first = SegmentNo::of(backup.start(), self.facts.segment_size);
        let extent =
            self.facts.extent(ExtentQuestion { path: path.timeline(), first, until: coverage.until })?;
        let why = Why::AfterEnd { backup: backup.id, until: coverage.until, latest: extent.latest };
        Ok(Err(Refusal::on(path.timeline(), why)))
    }

    /// Refused: the files that are missing up to segment `last`.
    pub(super) fn missing(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        coverage: &Coverage,
        last: SegmentNo,
    ) -> Asking<Attempt> {
        let missing = path.missing(coverage.missing, last)?;
        Ok(Err(Refusal { why: Why::MissingWal { backup: backup.id }, missing, path: Some(path.timeline()) }))
    }
}
