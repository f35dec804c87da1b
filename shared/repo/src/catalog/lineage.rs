//! One lineage of a cluster, and the answers to a planner's questions about it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::future::join_all;
use walpoint_base::{BackupId, LineageId, PgTimestamp, SegmentName, SegmentNo, TimelineId};
use walpoint_plan::graph::TimelineGraph;
use walpoint_plan::reach::WalNeed;
use walpoint_plan::restore::windows::Consistency;
use walpoint_plan::restore::{
    Answer, Asking, BackupFacts, BackupState, Doubt, Extent, Facts, Likely, Path, Question, RestorePlan,
    SegmentDecoder, SegmentRange, Youngest,
};
use walpoint_storage::error::{RepoError, Result};

use super::abandoned::abandoned;
use super::inventory::TimelineWal;
use super::outline::Outline;
use super::search::Search;
use crate::backup::{Announcements, Backups, Listed, ListedState, NumberedCondemned, Standing, Summary};
use crate::lineage::Lineage;
use crate::wal::WalArchive;

/// A lineage, as far as it was asked about.
#[derive(Debug)]
pub struct LineageCatalog {
    pub(super) archive: WalArchive,
    pub(super) backups: Backups,
    /// What is condemned, once a backup was asked about; nothing if that cannot be read.
    pub(super) condemned: Option<Option<Vec<NumberedCondemned>>>,
    pub(super) facts: Facts,
    pub(super) wal: BTreeMap<TimelineId, TimelineWal>,
    /// What retention promises, if it was told: what is missing elsewhere is gone on purpose.
    pub(super) promised: Option<WalNeed>,
    pub(super) problems: Vec<String>,
    /// Timelines that two servers claim. What is stored of them is one server's.
    pub(super) disputed: Vec<String>,
    /// Timelines that two servers claimed or that were abandoned, and what a person says about it.
    pub(super) settled: Vec<String>,
}

impl LineageCatalog {
    /// Lists the timelines, and reads as many histories as the graph has branches.
    #[cfg(test)]
    pub(crate) async fn load(archive: WalArchive, backups: &Backups, listed: &[Listed]) -> Result<Self> {
        let outline = Outline::list(backups.store(), archive.paths()).await?;
        Self::of(archive, outline, backups, listed).await
    }

    /// Of what is listed reads as many histories as the graph has branches.
    pub(super) async fn of(
        archive: WalArchive,
        outline: Outline,
        backups: &Backups,
        listed: &[Listed],
    ) -> Result<Self> {
        let mut problems = Vec::new();
        let mut without_history = BTreeSet::new();
        let listed_histories = archive.with_inherited_histories(outline.histories).await?;
        let timelines = archive.with_inherited_timelines(outline.timelines).await?;
        let stored: BTreeSet<TimelineId> = listed_histories.stored.iter().copied().collect();
        let (mut graph, mut doubts) = read_histories(&archive, listed_histories.stored).await?;
        problems.extend(doubts.values().filter_map(|doubt| match doubt {
            Doubt::Damaged(error) => Some(error.clone()),
            _ => None,
        }));
        for timeline in timelines {
            if timeline > TimelineId::FIRST && !stored.contains(&timeline) {
                // A descendant's history tells where it comes from. Recovery to it would read its own all the same.
                if graph.contains(timeline) {
                    without_history.insert(timeline);
                    problems.push(format!("timeline {timeline}: {}", Doubt::Missing));
                } else {
                    doubts.entry(timeline).or_insert(Doubt::Missing);
                }
            }
            graph.add_known(timeline);
        }
        let mut settled = Vec::new();
        for (timeline, history) in listed_histories.refused {
            if listed_histories.settled.contains(&(timeline, history)) {
                match archive.settlement(timeline, history).await {
                    Ok(Some(found)) => {
                        settled.push(format!(
                            "timeline {timeline}: the history {history} was refused; settled by {} on {}: {}",
                            found.who, found.settled, found.reason
                        ));
                        continue;
                    }
                    Ok(None) => {}
                    Err(error @ RepoError::Corrupt { .. }) => problems.push(error.to_string()),
                    Err(error) => return Err(error),
                }
            }
            doubts.insert(timeline, Doubt::Refused);
        }
        let abandoned = abandoned(&archive, &listed_histories.abandoned, &mut problems).await?;
        settled.extend(abandoned.values().map(ToString::to_string));
        let mut disputed = Vec::new();
        for (timeline, doubt) in &doubts {
            match doubt {
                // The one stands there already, the other is no fact about the timeline.
                Doubt::Damaged(_) | Doubt::NoBackup => {}
                Doubt::Missing => problems.push(format!("timeline {timeline}: {doubt}")),
                Doubt::Refused => disputed.push(format!("timeline {timeline}: {doubt}")),
            }
        }
        let lineage = archive.lineage();
        let ids = listed.iter().map(|b| b.id).collect();
        let mut facts = Facts::new(lineage.id, lineage.major, lineage.segment_size, graph, ids);
        facts.doubts = doubts;
        facts.without_history = without_history;
        facts.abandoned = abandoned;
        // The listing tells all there is to know about these.
        for backup in listed {
            if let Some(why) = unusable(backup.state) {
                let answer = Answer::Backup(BackupState::Unusable(why.to_owned()));
                facts.answer(Question::Backup(backup.id), answer);
            }
        }
        Ok(Self {
            archive,
            backups: backups.clone(),
            condemned: None,
            facts,
            wal: BTreeMap::new(),
            promised: None,
            problems,
            disputed,
            settled,
        })
    }

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
        let known = graph.history(timeline).filter(|_| !doubts.contains_key(&timeline));
        Some(Youngest { timeline, history: known.cloned() })
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

    /// Runs a pure planner, answering what it asks, until it has what it needs. Without a decoder, questions about where
    /// recovery stops fail, and the ends of windows are known less exactly.
    pub async fn ask<T>(
        &mut self,
        decoder: Option<&Arc<dyn SegmentDecoder>>,
        planner: impl Fn(&Facts) -> Asking<T>,
    ) -> Result<T> {
        loop {
            let question = match planner(&self.facts) {
                Ok(result) => return Ok(result),
                Err(question) => question,
            };
            let answer = self.answer(&question, decoder).await?;
            self.facts.answer(question, answer);
        }
    }

    /// Takes a segment out of what is known to be there.
    pub(super) fn lose(&mut self, timeline: TimelineId, number: SegmentNo) {
        let Some(wal) = self.wal.get_mut(&timeline) else { return };
        wal.lose(number);
        self.tell_wal(timeline);
    }

    /// Adds a segment to what is known to be there.
    pub(super) fn find(&mut self, timeline: TimelineId, number: SegmentNo, stored: u64) {
        let Some(wal) = self.wal.get_mut(&timeline) else { return };
        wal.find(number, stored);
        self.tell_wal(timeline);
    }

    fn tell_wal(&mut self, timeline: TimelineId) {
        let Some(wal) = self.wal.get(&timeline) else { return };
        self.facts.lose(timeline, wal.lost().clone());
        self.facts.answer(Question::Wal(timeline), Answer::Wal(wal.runs().clone()));
    }

    async fn answer(
        &mut self,
        question: &Question,
        decoder: Option<&Arc<dyn SegmentDecoder>>,
    ) -> Result<Answer> {
        Ok(match question {
            Question::Wal(timeline) => {
                let expected = self.expected(*timeline);
                let wal = TimelineWal::load_near(&self.archive, *timeline, expected).await?;
                self.take_wal(*timeline, wal)
            }
            Question::Backup(id) => {
                let standing = self.backups.standing(*id).await;
                Answer::Backup(self.backup(standing).await?)
            }
            Question::Stop(question) => {
                let Some(decoder) = decoder else {
                    let what = "WAL would have to be decoded, and this program cannot".to_owned();
                    return Err(RepoError::Internal(what));
                };
                let mut search = Search::new(&self.archive, &mut self.wal, Some(decoder));
                Answer::Stop(search.stop(&self.facts, question).await?)
            }
            Question::Extent(question) => {
                let mut search = Search::new(&self.archive, &mut self.wal, decoder);
                match search.extent(&self.facts, question).await {
                    Ok(extent) => Answer::Extent(extent),
                    // What cannot be read limits what is offered, it does not keep anybody from the rest.
                    Err(error @ RepoError::Corrupt { .. }) => {
                        self.problems.push(error.to_string());
                        Answer::Extent(Extent::default())
                    }
                    Err(error) => return Err(error),
                }
            }
            Question::Passed(question) => {
                let mut search = Search::new(&self.archive, &mut self.wal, decoder);
                match search.passed(&self.facts, question).await {
                    Ok(time) => Answer::Passed(time),
                    // Recovery from the backup does not read that WAL: what cannot be read there is no condition of a restore.
                    Err(error @ (RepoError::Corrupt { .. } | RepoError::NotFound { .. })) => {
                        self.add_problem(error.to_string());
                        Answer::Passed(None)
                    }
                    Err(error) => return Err(error),
                }
            }
            Question::Partial(name) if self.has_incomplete(*name) == Some(false) => Answer::Partial(None),
            Question::Partial(name) => {
                let search = Search::new(&self.archive, &mut self.wal, decoder);
                match search.partial(*name).await {
                    Ok(until) => match self.archive.damaged_copy_beyond(*name, until).await? {
                        Some(damaged) => {
                            self.problems.push(damaged.clone());
                            Answer::DamagedPartial(until, damaged)
                        }
                        None => Answer::Partial(until),
                    },
                    // Nothing can be recovered from it, and it shows that the segment was begun.
                    Err(error @ RepoError::Corrupt { .. }) => {
                        self.problems.push(error.to_string());
                        let copies = self.archive.contradicting_copies(*name).await?;
                        if !copies.is_empty() {
                            self.facts.contradicting.insert(*name, copies);
                        }
                        Answer::DamagedPartial(None, error.to_string())
                    }
                    Err(error) => return Err(error),
                }
            }
            Question::Minimal(path) => {
                let mut search = Search::new(&self.archive, &mut self.wal, decoder);
                Answer::Minimal(search.minimal(&self.facts, *path).await?)
            }
            Question::Breaks(path) => {
                let ranges = Path::to(&self.facts, *path).map(|path| path.present());
                let ranges = ranges.and_then(|present| present.ok()).unwrap_or_default();
                let size = self.lineage().segment_size;
                let broken = self.broken_in(&ranges).await?;
                let starts = broken.iter().filter_map(|b| Some(b.segment.number(size)?.start(size)));
                Answer::Breaks(starts.collect())
            }
            Question::Begin { of, on } => Answer::Begin(self.begin_on(*of, *on).await?),
            Question::Points => Answer::Points(self.archive.points().await?.points),
            Question::PointsNamed(name) => Answer::PointsNamed(self.points_named(name).await?),
        })
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

    /// What a timeline's WAL means to a planner.
    pub(super) fn take_wal(&mut self, timeline: TimelineId, wal: TimelineWal) -> Answer {
        let runs = wal.runs().clone();
        self.facts.lose(timeline, wal.lost().clone());
        self.wal.insert(timeline, wal);
        Answer::Wal(runs)
    }

    /// Whether there is an incomplete copy of a segment, if that was seen.
    fn has_incomplete(&self, name: SegmentName) -> Option<bool> {
        self.wal.get(&name.timeline)?.has_incomplete(name.number(self.facts.segment_size)?)
    }

    /// What a backup's standing means to a planner.
    pub(super) async fn backup(&mut self, standing: Result<Standing>) -> Result<BackupState> {
        let why = match standing {
            Ok(Standing::Finished(summary)) => {
                let mut state = state(&summary, &self.archive);
                if let BackupState::Complete(facts) = &mut state {
                    self.note_damage(&summary, facts).await;
                }
                return Ok(state);
            }
            Ok(Standing::Unfinished) => "was deleted",
            Ok(Standing::Ended(_)) => GIVEN_UP,
            Err(error @ RepoError::Corrupt { .. }) => {
                self.problems.push(error.to_string());
                "has a damaged manifest"
            }
            Err(error) => return Err(error),
        };
        Ok(BackupState::Unusable(why.to_owned()))
    }

    /// What is condemned, if it was read.
    pub fn condemned(&self) -> Option<&[NumberedCondemned]> {
        self.condemned.as_ref()?.as_deref()
    }

    /// Remembers what is condemned. That it cannot be read is remembered, too: it is no condition of a restore.
    pub(super) fn take_condemned(&mut self, read: Result<Announcements>) {
        let condemned = match read {
            Ok(condemned) => {
                for damaged in condemned.damaged {
                    self.add_problem(damaged.error().to_string());
                }
                Some(condemned.read)
            }
            Err(error) => {
                self.add_problem(error.to_string());
                None
            }
        };
        self.condemned = Some(condemned);
    }

    pub(super) fn is_condemned_known(&self) -> bool {
        self.condemned.is_some()
    }

    /// Takes note of what was found damaged of a backup. What cannot be found out is no condition of a restore, so it counts as
    /// nothing.
    async fn note_damage(&mut self, summary: &Summary, facts: &mut BackupFacts) {
        if !self.is_condemned_known() {
            let condemned = self.backups.condemned().await;
            self.take_condemned(condemned);
        }
        let condemned = self.condemned().unwrap_or_default();
        if facts.lineage == summary.facts.lineage {
            let (start, end, end_timeline) = (facts.start(), facts.end, facts.end_timeline);
            facts.damaged_segments =
                self.announced(Consistency { start, end, end_timeline }, condemned).segments;
        }
        let uses = BTreeMap::from([(summary.id, summary.parents.clone())]);
        match self.backups.found_damaged(&uses, condemned).await {
            Ok(found) => {
                let found = found.get(&summary.id).copied().unwrap_or_default();
                (facts.damaged_packs, facts.damaged_manifest) = (found.packs, found.manifest);
            }
            Err(error) => self.add_problem(error.to_string()),
        }
    }

    /// Remembers lists of restore points that cannot be read.
    pub(super) fn damaged_points(&mut self, damaged: Vec<String>) {
        self.facts.damaged_points = damaged;
    }

    /// Takes backups for unusable because they were found damaged when they were read.
    pub(crate) fn do_without(&mut self, unreadable: &BTreeSet<BackupId>) {
        for id in unreadable {
            let why =
                BackupState::Unusable("is damaged: what a restore needs of it cannot be read".to_owned());
            self.facts.answer(Question::Backup(*id), Answer::Backup(why));
        }
    }
}

/// Histories that are read at the same time, at most.
const HISTORIES_AT_ONCE: usize = 16;

/// How the timelines that have a history hang together, and which histories cannot be read. As many are read as the graph has
/// branches, and hardly more: those of the newest timelines first, and twice as many at a time as before.
async fn read_histories(
    archive: &WalArchive,
    mut unread: Vec<TimelineId>,
) -> Result<(TimelineGraph, BTreeMap<TimelineId, Doubt>)> {
    let (mut graph, mut doubts) = (TimelineGraph::default(), BTreeMap::new());
    let mut at_once = 1;
    while !unread.is_empty() {
        let some = unread.split_off(unread.len().saturating_sub(at_once));
        let read = join_all(some.iter().map(|timeline| archive.history(*timeline))).await;
        for (timeline, history) in some.into_iter().zip(read).rev() {
            // A descendant's history tells it already.
            if graph.contains(timeline) {
                continue;
            }
            match history {
                Ok(Some(history)) => graph.add(history),
                Ok(None) => {}
                Err(error @ RepoError::Corrupt { .. }) => {
                    doubts.insert(timeline, Doubt::Damaged(error.to_string()));
                }
                Err(error) => return Err(error),
            }
        }
        unread.retain(|timeline| !graph.contains(*timeline));
        at_once = (2 * at_once).min(HISTORIES_AT_ONCE);
    }
    Ok((graph, doubts))
}

const GIVEN_UP: &str = "was given up before it was finished";

/// Why a backup cannot be restored, if a listing shows that.
fn unusable(state: ListedState) -> Option<&'static str> {
    match state {
        ListedState::Unfinished => Some("is not finished"),
        ListedState::Ended(_) => Some(GIVEN_UP),
        ListedState::Finished(_) => None,
    }
}

/// What a manifest's summary means for planning in a lineage.
///
/// A backup of the lineage that this one was split off from is as good as an own one if it was consistent before the fork.
fn state(summary: &Summary, archive: &WalArchive) -> BackupState {
    let (facts, lineage) = (&summary.facts, archive.lineage().id);
    if facts.lineage != lineage && !archive.shares(facts.lineage, facts.stop_timeline, facts.stop_lsn) {
        return BackupState::OtherLineage(facts.lineage);
    }
    if (facts.start_timeline, facts.start_lsn) != (summary.id.timeline(), summary.id.start()) {
        return BackupState::Unusable("has a manifest that contradicts its name".to_owned());
    }
    BackupState::Complete(Box::new(BackupFacts {
        id: summary.id,
        lineage,
        end: facts.stop_lsn,
        end_timeline: facts.stop_timeline,
        started: PgTimestamp::from_time(facts.started),
        ended: PgTimestamp::from_time(facts.ended),
        latest_commit: facts.latest_commit.map(PgTimestamp::from_time),
        label: facts.label.clone(),
        bytes: summary.totals.bytes,
        block_bytes: summary.totals.blocks.saturating_mul(u64::from(facts.block_size)),
        damaged_pages: summary.totals.bad_pages,
        damaged_packs: 0,
        damaged_manifest: false,
        damaged_segments: 0,
    }))
}
