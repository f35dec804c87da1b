//! Timelines that are written beside each other: a copy of a server that was promoted and archives while the server goes on.
//!
//! "Latest" is the timeline with the highest number, for PostgreSQL and for plans alike, whichever server is in production. So
//! who restores, and who looks after the server, is shown where there is another one. And as nothing shows which one is in production,
//! retention keeps what each of them needs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use walpoint_base::{Lsn, PgTimestamp, SegmentNo, TimelineHistory, TimelineId};
use walpoint_plan::restore::{ExtentQuestion, Path, WentOn};
use walpoint_storage::error::{RepoError, Result};

use super::LineageCatalog;
use super::histories::stored_histories;
use crate::index::{SegmentEntry, group_of, last_of};

/// So many segments of a timeline are looked at for its first transaction.
const LOOKED_AT: u64 = 32;

/// Stores note times in whole seconds: what is later than such a time by less may have been before.
const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// The timeline that a restore to the latest moment follows instead of another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Newer {
    /// The timeline.
    pub timeline: TimelineId,
    /// The last one that both have.
    pub common: TimelineId,
    /// Up to here.
    pub until: Lsn,
}

/// What shows when the timelines of a lineage were in use, beside their WAL.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TimelineUses {
    /// Those that have WAL and were not abandoned.
    pub written: BTreeSet<TimelineId>,
    /// When the history of each timeline was stored. Histories never expire.
    pub began: BTreeMap<TimelineId, Timestamp>,
    /// Where the last backup on each starts, and when that ended.
    pub last_backups: BTreeMap<TimelineId, (Lsn, Timestamp)>,
}

impl TimelineUses {
    /// When the last backup on a timeline ended, if it started there or behind.
    fn backed_up(&self, timeline: TimelineId, from: Lsn) -> Option<PgTimestamp> {
        let last = self.last_backups.get(&timeline).filter(|(start, _)| *start >= from);
        last.map(|(_, ended)| PgTimestamp::from_time(*ended))
    }
}

/// A step of a path from one timeline to the next one.
#[derive(Clone, Copy, Debug)]
struct Step {
    parent: TimelineId,
    /// The first position that no longer belongs to the parent.
    left: Lsn,
    child: TimelineId,
}

fn steps(path: &TimelineHistory) -> impl Iterator<Item = Step> + '_ {
    let children = path.path().skip(1);
    path.entries().iter().zip(children).map(|(e, child)| Step { parent: e.parent, left: e.switch, child })
}

/// The last timeline that two paths have in common, and up to where.
fn apart(own: &TimelineHistory, other: &TimelineHistory) -> Option<(TimelineId, Lsn)> {
    let common = own.path().zip(other.path()).take_while(|(own, other)| own == other).last()?.0;
    let left_by = |path: &TimelineHistory| steps(path).find(|step| step.parent == common).map(|s| s.left);
    Some((common, [left_by(own), left_by(other)].into_iter().flatten().min()?))
}

/// What shows that a timeline was in use. None of it is from before the promotion with which the timeline began.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct FirstUse {
    /// The earliest transaction that is known to be its own.
    own: Option<PgTimestamp>,
    /// Where none is: the latest one in the segment in which it left the other timeline, which has that one's transactions, too.
    perhaps: Option<PgTimestamp>,
    /// When its history was stored.
    history: Option<PgTimestamp>,
}

impl FirstUse {
    /// Whether the other timeline was written after that: its latest transaction from the segment of the fork on, and its latest one
    /// behind what both have.
    fn precedes(&self, latest: Option<PgTimestamp>, behind: Option<PgTimestamp>) -> bool {
        let precedes = |first: Option<PgTimestamp>, last| first.is_some() && first < last;
        precedes(self.own, latest) || precedes(self.history, latest) || precedes(self.perhaps, behind)
    }
}

impl LineageCatalog {
    /// Which of the timelines that have WAL were written beside each younger one of them, the youngest left out. One that ended
    /// where a younger one took over is not among them, nor is what a dead primary archived of its last moments. Where it cannot be
    /// found out, it may have been.
    pub async fn written_beside(&mut self, uses: &TimelineUses) -> Result<BTreeSet<TimelineId>> {
        let mut beside = BTreeSet::new();
        for timeline in uses.written.iter().copied() {
            let mut younger = uses.written.range(timeline..).copied().skip(1).peekable();
            let mut all = younger.peek().is_some();
            for younger in younger {
                all = self.is_beside(timeline, younger, uses).await?
                    || self.is_perhaps_anothers(timeline, younger, uses).await?;
                if !all {
                    break;
                }
            }
            if all {
                beside.insert(timeline);
            }
        }
        Ok(beside)
    }

    async fn is_beside(
        &mut self,
        timeline: TimelineId,
        younger: TimelineId,
        uses: &TimelineUses,
    ) -> Result<bool> {
        match self.overlaps(timeline, younger, uses).await {
            Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => Ok(true),
            is => is,
        }
    }

    /// Whether a third timeline was written beside one, and the younger one left what both have: it may be the third one's server that
    /// went back to there. Who abandoned that one has settled nothing about the other two.
    async fn is_perhaps_anothers(
        &mut self,
        timeline: TimelineId,
        younger: TimelineId,
        uses: &TimelineUses,
    ) -> Result<bool> {
        let facts = self.facts();
        let Some(own) = facts.graph.history(timeline) else { return Ok(true) };
        let shared = |with: TimelineId| Some(apart(own, facts.graph.history(with)?)?.1);
        let left = shared(younger);
        let is_behind = |third: &TimelineId| shared(*third) >= left;
        if facts.abandoned.keys().filter(|third| **third < timeline).any(is_behind) {
            return Ok(true);
        }
        let thirds = uses.written.iter().copied().filter(|third| ![timeline, younger].contains(third));
        for third in thirds.filter(is_behind).collect::<Vec<_>>() {
            if self.is_beside(timeline.min(third), timeline.max(third), uses).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a timeline and the path to a younger one were in use at the same time. Numbers rise: what of that path has a higher number
    /// began later, and a server that went from here to there wrote nothing here since; what has a lower one was written before this one
    /// began, if by the same server. A transaction or a backup proves two servers, if it is later than the first transaction of what
    /// began, or than the moment when its history was stored: the first transaction of a server that was idle, or whose archiving stood
    /// still, came long after its promotion, and a history may have been stored late.
    async fn overlaps(
        &mut self,
        timeline: TimelineId,
        younger: TimelineId,
        uses: &TimelineUses,
    ) -> Result<bool> {
        let history = |of: TimelineId| self.facts().graph.history(of).cloned();
        let (Some(own), Some(other)) = (history(timeline), history(younger)) else { return Ok(true) };
        let Some((common, left)) = apart(&own, &other) else { return Ok(true) };
        let mut way = Vec::new();
        for step in steps(&other).skip_while(|step| step.parent != common) {
            way.push(step);
            if step.child > timeline {
                break;
            }
        }
        let Some(later) = way.last().copied() else { return Ok(true) };
        let own_from = own.begin_of(timeline).unwrap_or(left).max(left);
        if self.is_used_since(timeline, own_from, later, uses).await? {
            return Ok(true);
        }
        let Some(step) = steps(&own).last().filter(|_| timeline != common) else { return Ok(false) };
        for earlier in way.into_iter().filter(|earlier| earlier.parent != common || earlier.left > left) {
            if !self.ended_before(earlier, left, step, uses).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a timeline was written from a position on since another one began with that step.
    async fn is_used_since(
        &mut self,
        timeline: TimelineId,
        from: Lsn,
        step: Step,
        uses: &TimelineUses,
    ) -> Result<bool> {
        let first = self.first_use(step, uses.began.get(&step.child).copied()).await?;
        let ended = uses.backed_up(timeline, from);
        let (in_it, behind) = self.behind(from);
        let [latest, behind] = [
            self.last_from(timeline, in_it).await?.map(|(_, at)| at).max(ended),
            self.last_from(timeline, behind).await?.map(|(_, at)| at).max(ended),
        ];
        let nothing_shows = first == FirstUse::default();
        Ok(first.precedes(latest, behind) || nothing_shows && behind.is_some())
    }

    /// Whether the last use of what a path has of a timeline, from a position to where it leaves that, is known to be from before
    /// another timeline began with `began`. WAL that is not there any more may have been later.
    async fn ended_before(
        &mut self,
        part: Step,
        from: Lsn,
        began: Step,
        uses: &TimelineUses,
    ) -> Result<bool> {
        let Some(stored) = uses.began.get(&began.child).copied() else { return Ok(false) };
        let first = self.first_use(began, Some(stored)).await?.own;
        // Stores round down: what is earlier than that time came before it.
        let moment = PgTimestamp::from_time(stored);
        let moment = first.map_or(moment, |first| first.min(moment));
        let (in_it, _) = self.behind(from);
        let Some((last, latest)) = self.last_from(part.parent, in_it).await? else { return Ok(false) };
        let latest = uses.backed_up(part.parent, from).map_or(latest, |ended| ended.max(latest));
        Ok(last >= SegmentNo::before(part.left, self.lineage().segment_size) && latest < moment)
    }

    /// The timelines on the path to `timeline` that went on behind where the path leaves them, with transactions that are later than the
    /// first ones of what left them, or than its history. What a dead primary archived of its last moments is not such a timeline: its
    /// transactions came before the promotion.
    pub async fn went_on(&mut self, timeline: TimelineId) -> Result<Vec<WentOn>> {
        let Some(history) = self.facts().graph.history(timeline).cloned() else { return Ok(Vec::new()) };
        let steps: Vec<Step> = steps(&history).collect();
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let stored: BTreeMap<_, _> = stored_histories(self.archive()).await?.into_iter().collect();
        let (mut found, size) = (Vec::new(), self.lineage().segment_size);
        for step in steps {
            let Step { parent, left, child: left_by } = step;
            if self.facts().abandoned.contains_key(&parent) {
                continue;
            }
            let first = self.first_use(step, stored.get(&left_by).copied()).await?;
            let (in_it, behind) = self.behind(left);
            let [in_it, behind] =
                [self.last_from(parent, in_it).await?, self.last_from(parent, behind).await?];
            let Some((last, at)) = in_it else { continue };
            // Where nothing but a history left, a whole segment has its server's records from behind the fork, too.
            let only_history = first.own.is_none() && first.perhaps.is_none();
            if only_history || first.precedes(Some(at), behind.map(|(_, at)| at)) {
                let last = last.name(parent, size);
                found.push(WentOn { timeline: parent, left_by, left, last, at: at.to_time() });
            }
        }
        Ok(found)
    }

    /// The segment in which a timeline left another one, and the first one that has nothing of what both have.
    fn behind(&self, left: Lsn) -> (SegmentNo, SegmentNo) {
        let size = self.lineage().segment_size;
        let in_it = SegmentNo::of(left, size);
        (in_it, if in_it.start(size) == left { in_it } else { in_it.next() })
    }

    /// The last segment of a timeline, if it has any from `behind` on, and the latest transaction in what leads there.
    async fn last_from(
        &mut self,
        timeline: TimelineId,
        behind: SegmentNo,
    ) -> Result<Option<(SegmentNo, PgTimestamp)>> {
        let size = self.lineage().segment_size;
        let run = self.ask(None, |facts| Ok(facts.wal(timeline)?.iter().next_back().copied())).await?;
        let Some(run) = run.filter(|run| run.last >= behind) else { return Ok(None) };
        let (first, until) = (run.first.max(behind), run.last.end(size));
        let extent = self.ask(None, |facts| {
            let Some(path) = Path::to(facts, timeline) else { return Ok(None) };
            path.coverage(first)?;
            facts.extent(ExtentQuestion { path: timeline, first, until }).map(Some)
        });
        Ok(extent.await?.and_then(|extent| extent.latest).map(|latest| (run.last, latest)))
    }

    /// What shows that a timeline was in use that began with a step; its history was stored then.
    async fn first_use(&mut self, step: Step, stored: Option<Timestamp>) -> Result<FirstUse> {
        let Step { parent: other, left, child: timeline } = step;
        let history = stored.and_then(|at| at.checked_add(SECOND).ok()).map(PgTimestamp::from_time);
        let none = FirstUse { history, ..FirstUse::default() };
        let (fork, behind) = self.behind(left);
        let run =
            self.ask(None, |facts| Ok(facts.wal(timeline)?.iter().find(|run| run.last >= fork).copied()));
        let (Some(run), Some(wal)) = (run.await?, self.wal_mut(timeline)) else { return Ok(none) };
        let first = run.first.max(fork);
        let last = run.last.min(SegmentNo(first.0.saturating_add(LOOKED_AT))).min(last_of(group_of(first)));
        let entries = wal.entries(first, last).await?;
        let later = entries.range(behind..).find_map(|(_, entry)| Some(entry.transactions?.earliest));
        let mixed = entries.get(&fork).filter(|_| behind > fork).and_then(|entry| entry.transactions);
        let Some(mixed) = mixed else { return Ok(FirstUse { own: later, ..none }) };
        // Both copies of the segment begin with the same transactions, if with any.
        let own = self.entry(other, fork).await?.and_then(|theirs| match theirs.transactions {
            Some(theirs) if theirs.earliest == mixed.earliest => {
                Some(mixed.latest).filter(|latest| theirs.latest < *latest)
            }
            _ => Some(mixed.earliest),
        });
        let own = own.or(later);
        Ok(FirstUse { own, perhaps: own.is_none().then_some(mixed.latest), ..none })
    }

    /// What the index says of a segment; `None` if it is not there.
    async fn entry(&mut self, timeline: TimelineId, segment: SegmentNo) -> Result<Option<SegmentEntry>> {
        self.ask(None, |facts| facts.wal(timeline).map(drop)).await?;
        let Some(wal) = self.wal_mut(timeline) else { return Ok(None) };
        Ok(wal.entries(segment, segment).await?.remove(&segment))
    }

    /// The timeline that a restore to the latest moment follows instead of `timeline`, if there is one.
    pub fn newer_than(&self, timeline: TimelineId) -> Option<Newer> {
        let facts = self.facts();
        let newest = facts.graph.ids().rev().find(|id| !facts.abandoned.contains_key(id))?;
        let own = facts.graph.history(timeline).cloned().unwrap_or_else(|| TimelineHistory::root(timeline));
        let other = facts.graph.history(newest).filter(|_| newest > timeline)?;
        let (common, until) = apart(&own, other)?;
        Some(Newer { timeline: newest, common, until })
    }
}
