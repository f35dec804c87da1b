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

/// What shows when a timeline was in use, beside its WAL.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct TimelineUse {
    /// When its history was stored.
    pub began: Option<Timestamp>,
    /// Where its last backup starts, and when that ended.
    pub last_backup: Option<(Lsn, Timestamp)>,
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
    pub async fn written_beside(
        &mut self,
        written: &BTreeMap<TimelineId, TimelineUse>,
    ) -> Result<BTreeSet<TimelineId>> {
        let (mut beside, youngest) = (BTreeSet::new(), written.keys().next_back().copied());
        for (timeline, usage) in written.iter().filter(|(timeline, _)| Some(**timeline) != youngest) {
            let mut all = true;
            for younger in written.keys().filter(|younger| *younger > timeline) {
                all = match self.is_beside((*timeline, *usage), *younger, written).await {
                    Err(RepoError::Corrupt { .. } | RepoError::NotFound { .. }) => true,
                    is => is?,
                };
                if !all {
                    break;
                }
            }
            if all {
                beside.insert(*timeline);
            }
        }
        Ok(beside)
    }

    /// Whether a timeline was written after a younger one had left it, or its path: after the first transaction there, or after the
    /// history was stored. Either proves two servers: the first transaction of one that was idle, or whose archiving stood still, came
    /// long after its promotion, and a history may have been stored late.
    async fn is_beside(
        &mut self,
        (timeline, usage): (TimelineId, TimelineUse),
        younger: TimelineId,
        written: &BTreeMap<TimelineId, TimelineUse>,
    ) -> Result<bool> {
        let history = |of: TimelineId| self.facts().graph.history(of).cloned();
        let (Some(own), Some(other)) = (history(timeline), history(younger)) else { return Ok(true) };
        let common = own.path().zip(other.path()).take_while(|(own, other)| own == other).last();
        let Some((common, _)) = common else { return Ok(true) };
        let left_at = |path: &TimelineHistory| {
            path.entries().iter().find(|entry| entry.parent == common).map(|entry| entry.switch)
        };
        let Some(left) = [left_at(&own), left_at(&other)].into_iter().flatten().min() else {
            return Ok(true);
        };
        let next = other.path().find(|step| *step > common);
        let began = next.and_then(|next| written.get(&next)?.began);
        let first = self.first_use(other.timeline_at(left), own.timeline_at(left), left, began).await?;
        let backup = usage.last_backup.filter(|(start, _)| *start >= left);
        let ended = backup.map(|(_, ended)| PgTimestamp::from_time(ended));
        let (in_it, behind) = self.behind(left);
        let [latest, behind] = [
            self.last_from(timeline, in_it).await?.map(|(_, at)| at).max(ended),
            self.last_from(timeline, behind).await?.map(|(_, at)| at).max(ended),
        ];
        let nothing_shows = first == FirstUse::default();
        Ok(first.precedes(latest, behind) || nothing_shows && behind.is_some())
    }

    /// The timelines on the path to `timeline` that went on behind where the path leaves them, with transactions that are later than the
    /// first ones of what left them, or than its history. What a dead primary archived of its last moments is not such a timeline: its
    /// transactions came before the promotion.
    pub async fn went_on(&mut self, timeline: TimelineId) -> Result<Vec<WentOn>> {
        let Some(history) = self.facts().graph.history(timeline).cloned() else { return Ok(Vec::new()) };
        let children = history.path().skip(1);
        let steps: Vec<_> =
            history.entries().iter().zip(children).map(|(e, c)| (e.parent, e.switch, c)).collect();
        if steps.is_empty() {
            return Ok(Vec::new());
        }
        let stored: BTreeMap<_, _> = stored_histories(self.archive()).await?.into_iter().collect();
        let (mut found, size) = (Vec::new(), self.lineage().segment_size);
        for (parent, left, left_by) in steps {
            if self.facts().abandoned.contains_key(&parent) {
                continue;
            }
            let first = self.first_use(left_by, parent, left, stored.get(&left_by).copied()).await?;
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

    /// What shows that a timeline was in use which left the path to `other` at that position; its history was stored then.
    async fn first_use(
        &mut self,
        timeline: TimelineId,
        other: TimelineId,
        left: Lsn,
        stored: Option<Timestamp>,
    ) -> Result<FirstUse> {
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
        let common = own.path().zip(other.path()).take_while(|(own, other)| own == other).last()?.0;
        let ends = [own.end_of(common), other.end_of(common)];
        Some(Newer { timeline: newest, common, until: ends.into_iter().flatten().min()? })
    }
}
