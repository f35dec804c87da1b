//! One lineage of a cluster: what is known of it so far.

use std::collections::{BTreeMap, BTreeSet};

use walpoint_base::{BackupId, LineageId, SegmentName, SegmentNo, TimelineHistory, TimelineId};
use walpoint_plan::reach::WalNeed;
use walpoint_plan::restore::{
    Answer, BackupFacts, BackupState, Facts, Likely, Question, RestorePlan, SegmentRange, Unusable, Youngest,
};
use walpoint_storage::error::Result;

use super::found_damaged::FoundDamaged;
use super::inventory::TimelineWal;
use crate::backup::{Backups, NumberedAnnouncement};
use crate::lineage::Lineage;
use crate::wal::WalArchive;

/// A lineage, as far as it was asked about.
#[derive(Debug)]
pub struct LineageCatalog {
    pub(super) archive: WalArchive,
    pub(super) backups: Backups,
    /// What is announced, once a backup was asked about; nothing if that cannot be read.
    pub(super) announced: Option<Option<Vec<NumberedAnnouncement>>>,
    /// Why some of that could not be read.
    pub(super) unread_announcements: Vec<String>,
    /// What of that is no longer damaged: lineage, timeline and number.
    pub(super) stored_anew: BTreeSet<(LineageId, TimelineId, SegmentNo)>,
    /// What was found damaged in repositories whose WAL is read together with this one's.
    pub(super) found_beside: Vec<FoundDamaged>,
    /// Whether what was found damaged counts as there all the same.
    pub(super) believes_found: bool,
    pub(super) facts: Facts,
    pub(super) wal: BTreeMap<TimelineId, TimelineWal>,
    /// What retention promises, if it was told: what is missing elsewhere is gone on purpose.
    pub(super) promised: Option<WalNeed>,
    pub(super) problems: Vec<String>,
    /// Timelines that two servers claim. What is stored of them is one server's.
    pub(super) disputed: Vec<String>,
    /// Timelines that two servers claimed or that were abandoned, and what a person says about it.
    pub(super) settled: Vec<String>,
    /// Timelines that contradict another one's history and count, as a person says.
    pub(super) counted: BTreeSet<TimelineId>,
    /// Segments that the store was asked about just now, for many backups at the same time.
    pub(super) looked: BTreeSet<(TimelineId, SegmentNo)>,
    /// Whether a planner was answered without a decoder how far an incomplete copy goes.
    pub(super) undecoded: bool,
}

impl LineageCatalog {
    /// The lineage.
    pub fn lineage(&self) -> &Lineage {
        self.archive.lineage()
    }

    /// Which one.
    pub fn id(&self) -> LineageId {
        self.archive.lineage().id
    }

    /// Its WAL in the repository.
    pub fn archive(&self) -> &WalArchive {
        &self.archive
    }

    /// What is known so far.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The youngest timeline that anything is stored of and that was not abandoned.
    pub(crate) fn youngest(&self) -> Option<Youngest> {
        let (graph, doubts) = (&self.facts.graph, &self.facts.doubts);
        let stored = graph.ids().chain(doubts.keys().copied());
        let timeline = stored.filter(|timeline| !self.facts.abandoned.contains_key(timeline)).max()?;
        Some(Youngest { timeline, history: self.sound_history(timeline).cloned() })
    }

    /// Where a timeline comes from, if nothing makes that doubtful.
    pub fn sound_history(&self, timeline: TimelineId) -> Option<&TimelineHistory> {
        self.facts.graph.history(timeline).filter(|_| !self.facts.doubts.contains_key(&timeline))
    }

    /// Answers a question before it is asked.
    pub(crate) fn presume(&mut self, question: Question, answer: Answer) {
        self.facts.answer(question, answer);
    }

    /// Tells what retention promises: what is missing elsewhere is no gap.
    pub fn promise(&mut self, need: WalNeed) {
        self.promised = Some(need);
    }

    /// Whether any of these segments should be there.
    pub(super) fn is_promised(&self, range: &SegmentRange) -> bool {
        let needs = |need: &WalNeed| need.needs_any(range.timeline, range.first, range.last);
        self.promised.as_ref().is_none_or(needs)
    }

    /// Takes WAL for there that was found damaged: for who reads it.
    pub(crate) fn believe_found_damaged(&mut self) {
        self.believes_found = true;
    }

    /// The WAL of a timeline, if a planner asked for it already.
    pub fn wal(&self, timeline: TimelineId) -> Option<&TimelineWal> {
        self.wal.get(&timeline)
    }

    /// Looks at the WAL of the timelines that a plan reads, as far as that was not done for a plan of its own. What cannot be looked at
    /// is left out.
    pub async fn look_at(&mut self, plan: &RestorePlan) {
        let start = Some(plan.backup.start());
        let read = plan.path.iter().filter(|step| step.end > start || step.end.is_none());
        let timelines = read.map(|step| step.timeline).collect();
        self.look_ahead(Likely { timelines, start, ..Likely::default() }).await;
    }

    /// The segments of a range of which listings showed an incomplete copy.
    pub(crate) fn incomplete_in(&self, range: &SegmentRange) -> BTreeSet<SegmentNo> {
        let incomplete = self.wal.get(&range.timeline).into_iter().flat_map(TimelineWal::incomplete);
        incomplete.filter(|number| range.first <= *number && *number <= range.last).collect()
    }

    /// The backups of its cluster.
    pub(super) fn backups(&self) -> &Backups {
        &self.backups
    }

    pub(crate) fn wal_mut(&mut self, timeline: TimelineId) -> Option<&mut TimelineWal> {
        self.wal.get_mut(&timeline)
    }

    /// What is wrong with histories and index objects, for people: those that could not be read, and timelines that two servers
    /// claim.
    pub fn problems(&self) -> Vec<String> {
        self.unread().into_iter().chain(self.disputed.iter().cloned()).collect()
    }

    /// Histories and index objects that could not be read: how the stored WAL hangs together is not known.
    pub fn unread(&self) -> Vec<String> {
        let indexes = self.wal.values().flat_map(TimelineWal::problems);
        self.problems.iter().cloned().chain(indexes).collect()
    }

    /// Timelines that two servers claim. Nothing of the second one is stored, so what is stored hangs together as it says.
    pub fn disputed(&self) -> &[String] {
        &self.disputed
    }

    /// Timelines that two servers claimed or that were abandoned, and what a person says about it.
    pub fn settled(&self) -> &[String] {
        &self.settled
    }

    /// Remembers what could not be read and keeps nobody from the rest.
    pub(super) fn add_problem(&mut self, problem: String) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Whether recovery from a backup begins behind where a segment starts, on a timeline that comes from there.
    pub(crate) fn begins_behind(&self, backup: BackupId, segment: SegmentName) -> bool {
        let start =
            segment.number(self.facts.segment_size).map(|number| number.start(self.facts.segment_size));
        let Some(start) = start.filter(|start| backup.start() >= *start) else { return false };
        let history = self.facts.graph.history(backup.timeline());
        history.is_some_and(|history| history.timeline_at(start) == segment.timeline)
    }

    /// Whether there is a finished backup of this lineage itself, not of one that it was split off from.
    pub(super) async fn has_own_backup(&mut self) -> Result<bool> {
        let ids = self.facts.backups.clone();
        for id in ids.into_iter().rev() {
            let complete = self.ask(None, |facts| Ok(facts.complete_backup(id)?.cloned())).await?;
            let inherited = |backup: &BackupFacts| {
                let inherited = self.archive.inherited();
                inherited.is_some_and(|from| from.holds_before(backup.end_timeline, backup.end))
            };
            if complete.is_some_and(|backup| !inherited(&backup)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Remembers lists of restore points that cannot be read.
    pub(super) fn damaged_points(&mut self, damaged: Vec<String>) {
        self.facts.damaged_points = damaged;
    }

    /// Takes backups for unusable because they were found damaged when they were read.
    pub(crate) fn do_without(&mut self, unreadable: &BTreeSet<BackupId>) {
        for id in unreadable {
            let why = BackupState::Unusable(Unusable::Unreadable);
            self.facts.answer(Question::Backup(*id), Answer::Backup(why));
        }
    }
}
