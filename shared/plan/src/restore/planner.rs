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
//! | latest | | where the archive ends; a hole before that is an error |
//!
//! A time is never looked up in a table of commit times alone: they are not monotone in LSN order.

use jiff::Timestamp;
use walpoint_base::{BackupId, Lsn, RecoveryTarget, SegmentNo, TargetTimeline, TimelineHistory, TimelineId};

use super::ending::Ending;
use super::estimate::{Estimate, Rates};
use super::facts::{Asking, BackupFacts, BackupState, Doubt, ExtentQuestion, Facts, StopQuestion};
use super::locks;
use super::path::{Coverage, Path, SegmentRange};
use super::request::Request;
use super::restore_plan::{ForkSegment, ForkSource, PathStep, RestorePlan};
use super::settings::{LOOK_AHEAD, LOOKS_AHEAD_SINCE, Setting, Signal, StopAt, settings, without_look_ahead};
use super::stop::{Stop, StopRule};
use super::unreachable::{Unreachable, Why};

/// What planning ends with.
pub type Verdict = Result<RestorePlan, Box<Unreachable>>;

/// Plans a restore. Pure: returns the first question whose answer is missing, to be called again with it answered.
pub fn plan(facts: &Facts, request: &Request, now: Timestamp) -> Asking<Verdict> {
    let planner = Planner { facts, request, now };
    match planner.run()? {
        Ok(plan) if has_no_history(facts, plan.timeline) => {
            let refusal = Refusal::on(plan.timeline, Why::NoHistory(plan.timeline));
            Ok(Err(Box::new(planner.explain(refusal)?)))
        }
        Ok(plan) => Ok(Ok(plan)),
        Err(refusal) => Ok(Err(Box::new(planner.explain(refusal)?))),
    }
}

/// Whether PostgreSQL would not start to recover to a timeline: it reads the history of the one that it is told to follow.
fn has_no_history(facts: &Facts, timeline: TimelineId) -> bool {
    facts.without_history.contains(&timeline) || facts.doubts.get(&timeline) == Some(&Doubt::Missing)
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
    pub(super) request: &'a Request,
    pub(super) now: Timestamp,
}

impl<'a> Planner<'a> {
    fn run(&self) -> Asking<Attempt> {
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
                return refuse(Why::UnusableBackup(id, format!("belongs to lineage {}", backup.lineage)));
            }
            BackupState::OtherLineage(lineage) => {
                return refuse(Why::UnusableBackup(id, format!("belongs to lineage {lineage}")));
            }
            BackupState::Unusable(why) => return refuse(Why::UnusableBackup(id, why.clone())),
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
            && let Some(why) = self.doubt_about(timeline)
        {
            return self.before_doubt(timeline, &[id], why);
        }
        self.along(timeline, &[id])
    }

    /// The backups that start on the path to `timeline`, newest first. Whether they are complete is not known.
    fn listed_on(&self, timeline: TimelineId) -> Vec<BackupId> {
        let Some(history) = self.facts.graph.history(timeline) else { return Vec::new() };
        let on_path = |id: &&BackupId| history.timeline_at(id.start()) == id.timeline();
        let mut listed: Vec<_> = self.facts.backups.iter().filter(on_path).copied().collect();
        listed.sort_by_key(|id| std::cmp::Reverse((id.start(), *id)));
        listed
    }

    /// The timelines of which one may be the latest: not those that a person says were abandoned.
    fn counting(&self) -> impl DoubleEndedIterator<Item = TimelineId> + '_ {
        self.facts.graph.ids().filter(|timeline| !self.facts.abandoned.contains_key(timeline))
    }

    fn doubts(&self) -> impl DoubleEndedIterator<Item = (&'a TimelineId, &'a Doubt)> + use<'a> {
        let facts = self.facts;
        facts.doubts.iter().filter(|(timeline, _)| !facts.abandoned.contains_key(timeline))
    }

    /// Along the path to the newest timeline that a backup leads to.
    fn along_latest(&self, timeline: TimelineId) -> Asking<Attempt> {
        let listed = self.listed_on(timeline);
        let attempt = match self.doubt_about(timeline).or(self.without_backup(timeline)?) {
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
    fn newest_timeline(&self, of: impl Fn(TimelineId) -> bool) -> Asking<Option<TimelineId>> {
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
    fn doubt_about(&self, timeline: TimelineId) -> Option<Why> {
        let mut doubts = self.doubts().rev();
        // A damaged history keeps recovery from its own timeline, too, and of two histories either may be the right one.
        let (of, doubt) =
            doubts.find(|(of, doubt)| **of > timeline || **of == timeline && **doubt != Doubt::Missing)?;
        Some(Why::DoubtfulTimeline { timeline: *of, doubt: doubt.clone(), instead: timeline })
    }

    /// Refused because of a doubt about `timeline`, unless recovery stops where it is proven that every timeline in doubt has the same
    /// WAL: then whichever of them is the latest one has the target there.
    fn before_doubt(&self, timeline: TimelineId, listed: &[BackupId], why: Why) -> Asking<Attempt> {
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
                plan.notes.push(format!(
                    "The repository does not tell where a younger timeline than {timeline} comes from. It has the same WAL up to \
                     {common}, so the target is the same on both."
                ));
                Ok(Ok(plan))
            }
            _ => refused,
        }
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
    fn along(&self, timeline: TimelineId, listed: &[BackupId]) -> Asking<Attempt> {
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
                RecoveryTarget::Immediate => {
                    let ending = self.ending(path, backup, &coverage, backup.end)?;
                    Ok(self.build(path, backup, &ending, None, backup.end, StopAt::Requested)?)
                }
                _ => self.to_the_end(path, backup, &coverage)?,
            }));
        };
        let question =
            StopQuestion { path: path.timeline(), rule, from: backup.start(), until: coverage.until };
        match self.facts.stop(question)? {
            Some(stop) if stop.record < backup.end => Ok(None),
            Some(stop) => {
                let ending = self.ending(path, backup, &coverage, stop.end)?;
                Ok(Some(Ok(self.build(path, backup, &ending, Some(stop), stop.end, StopAt::Requested)?)))
            }
            None => Ok(Some(self.not_stopped(path, backup, &coverage)?)),
        }
    }

    /// All WAL that can be replayed was searched, and nothing in it stops recovery.
    fn not_stopped(&self, path: &Path<'a>, backup: &BackupFacts, coverage: &Coverage) -> Asking<Attempt> {
        if let Some(refused) = self.not_past_minimal(path, backup.id, coverage) {
            return Ok(refused);
        }
        if let Some(last) = coverage.hole() {
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

    /// The plan, all of whose WAL was found.
    pub(super) fn build(
        &self,
        path: &Path<'a>,
        backup: &BackupFacts,
        ending: &Ending,
        stop: Option<&Stop>,
        until: Lsn,
        at: StopAt,
    ) -> Asking<RestorePlan> {
        let size = self.facts.segment_size;
        let Ending { timeline, wal, .. } = ending;
        let timeline = *timeline;
        let history = self.facts.graph.history(timeline).unwrap_or_else(|| path.history());
        let mut estimate = Estimate {
            file_bytes: backup.bytes,
            block_bytes: backup.block_bytes,
            wal_segments: wal.iter().map(SegmentRange::count).sum::<u64>() + ending.partials(),
            ..Estimate::default()
        };
        estimate.wal_bytes = estimate.wal_segments.saturating_mul(size.bytes());
        for range in wal {
            estimate.wal_stored += self.facts.wal(range.timeline)?.stored_within(range.first, range.last);
        }
        Ok(RestorePlan {
            lineage: self.facts.lineage,
            target: self.request.target.clone(),
            inclusive: self.request.inclusive,
            path: steps(history),
            timeline,
            stop: stop.cloned(),
            until,
            wal: wal.clone(),
            fork: ending.fork,
            unfollowed: ending.unfollowed,
            youngest: self.facts.graph.ids().next_back().filter(|_| self.follows_the_latest()),
            without: self.doubtful_after(timeline),
            histories: history.parent().map(|_| timeline).into_iter().collect(),
            signal: if self.request.standby { Signal::Standby } else { Signal::Recovery },
            settings: self.settings(ending, until, &at, stop.is_some()),
            estimate: estimate.at(Rates::default()),
            notes: self.notes(path, backup, ending, stop)?,
            backup: backup.clone(),
        })
    }

    /// The timelines after `timeline` that have no readable history.
    fn doubtful_after(&self, timeline: TimelineId) -> Vec<TimelineId> {
        let unreadable = |doubt: &Doubt| matches!(doubt, Doubt::Damaged(_) | Doubt::Missing);
        let doubts = self.facts.doubts.iter();
        doubts.filter(|(of, doubt)| **of > timeline && unreadable(doubt)).map(|(of, _)| *of).collect()
    }

    /// Whether the plan is one for the end of the youngest timeline, which nothing follows any more.
    fn follows_the_latest(&self) -> bool {
        let Request { target, timeline, standby, .. } = self.request;
        *target == RecoveryTarget::Latest && *timeline == TargetTimeline::Latest && !standby
    }

    /// With a target, PostgreSQL must not read ahead of it: what lies behind may be damaged, or not to be had now, and is not
    /// needed. Without one, that counts where what follows is not proven to be absent.
    fn settings(&self, ending: &Ending, until: Lsn, at: &StopAt, stops: bool) -> Vec<Setting> {
        let newest = self.facts.graph.ids().next_back() == Some(ending.timeline);
        let mut all = settings(self.request, ending.timeline, newest, at);
        let hole = ending.missing.start(self.facts.segment_size);
        let near = hole.0.saturating_sub(until.0) <= LOOK_AHEAD;
        // What a child left later was written once, so its absence is not proven, even if nothing follows on the timeline.
        let children = || self.facts.graph.children(ending.timeline);
        let written = ending.fork.is_none() && children().iter().any(|(_, fork)| *fork > hole);
        let unproven = near && (ending.before_a_gap || written);
        let stops = stops || self.request.target == RecoveryTarget::Immediate;
        if (stops || unproven) && self.facts.major.get() >= LOOKS_AHEAD_SINCE {
            all.insert(0, without_look_ahead());
        }
        all
    }

    fn notes(
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
}

impl Planner<'_> {
    /// Whether a segment that is built is a timeline's last one, which no other timeline left.
    fn is_left_in_none(&self, fork: &ForkSegment) -> bool {
        let timeline = fork.name.timeline;
        fork.source == ForkSource::Partial(timeline)
            && self.facts.graph.left_at(timeline).all(|left| left < fork.cut)
    }
}

/// The path as steps, oldest first, without timelines of which it has no byte.
fn steps(history: &TimelineHistory) -> Vec<PathStep> {
    let step = |timeline| {
        let begin = history.begin_of(timeline)?;
        Some(PathStep { timeline, begin, end: history.end_of(timeline) })
    };
    history.path().filter_map(step).collect()
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
