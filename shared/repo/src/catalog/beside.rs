//! Timelines that are written beside each other: a copy of a server that was promoted and archives while the server goes on.
//!
//! "Latest" is the timeline with the highest number, for PostgreSQL and for plans alike, whichever server is in production. So
//! who restores, and who looks after the server, is shown where there is another one. And as nothing shows which one is in production,
//! retention keeps what each of them needs.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use walpoint_base::{Lsn, PgTimestamp, SegmentNo, TimelineHistory, TimelineId};
use walpoint_plan::restore::{ExtentQuestion, Path, WentOn};
use walpoint_storage::error::{RepoError, Result};

use super::LineageCatalog;
use crate::index::{group_of, last_of};

/// So many segments of a timeline are looked at for its first transaction.
const LOOKED_AT: u64 = 32;

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

    /// Whether a timeline was written after a younger one had left it, or its path: after the first transaction there or, where that
    /// WAL is gone, after the history was stored.
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
        let (size, owner) = (self.lineage().segment_size, other.timeline_at(left));
        let of_it = SegmentNo::of(left, size);
        let is_there = self.ask(None, |facts| Ok(facts.wal(owner)?.contains(of_it))).await?;
        let first = if is_there { self.first_behind(owner, left).await? } else { None };
        let next = other.path().find(|step| *step > common);
        let began = next.and_then(|next| written.get(&next)?.began).map(PgTimestamp::from_time);
        let first = first.or(began);
        let behind = if of_it.start(size) == left { of_it } else { of_it.next() };
        let last = self.last_from(timeline, behind).await?.map(|(_, at)| at);
        let backup = usage.last_backup.filter(|(start, _)| *start >= left);
        let last = last.max(backup.map(|(_, ended)| PgTimestamp::from_time(ended)));
        Ok(last.is_some_and(|last| first.is_none_or(|first| first < last)))
    }

    /// The timelines on the path to `timeline` that went on behind where the path leaves them, with transactions that are later than the
    /// first ones of what left them. What a dead primary archived of its last moments is not such a timeline: its transactions
    /// came before the promotion.
    pub async fn went_on(&mut self, timeline: TimelineId) -> Result<Vec<WentOn>> {
        let Some(history) = self.facts().graph.history(timeline).cloned() else { return Ok(Vec::new()) };
        let children = history.path().skip(1);
        let steps: Vec<_> =
            history.entries().iter().zip(children).map(|(e, c)| (e.parent, e.switch, c)).collect();
        let (mut found, size) = (Vec::new(), self.lineage().segment_size);
        for (parent, left, left_by) in steps {
            if self.facts().abandoned.contains_key(&parent) {
                continue;
            }
            let of_it = SegmentNo::of(left, size);
            let first = self.first_behind(left_by, left).await?;
            // A whole segment in which nothing but a history left has its server's records from behind the fork, too.
            let is_behind = first.is_none() || of_it.start(size) == left;
            let behind = if is_behind { of_it } else { of_it.next() };
            let Some((last, at)) = self.last_from(parent, behind).await? else { continue };
            if first.is_none_or(|first| first < at) {
                let last = last.name(parent, size);
                found.push(WentOn { timeline: parent, left_by, left, last, at: at.to_time() });
            }
        }
        Ok(found)
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

    /// The earliest transaction of a timeline behind the segment in which it left another one; where nothing is stored behind that,
    /// the latest one in it.
    async fn first_behind(&mut self, timeline: TimelineId, left: Lsn) -> Result<Option<PgTimestamp>> {
        let fork = SegmentNo::of(left, self.lineage().segment_size);
        let run =
            self.ask(None, |facts| Ok(facts.wal(timeline)?.iter().find(|run| run.last >= fork).copied()));
        let (Some(run), Some(wal)) = (run.await?, self.wal_mut(timeline)) else { return Ok(None) };
        let first = run.first.max(fork);
        let last = run.last.min(SegmentNo(first.0.saturating_add(LOOKED_AT))).min(last_of(group_of(first)));
        let entries = wal.entries(first, last).await?;
        let behind = entries.range(fork.next()..).find_map(|(_, entry)| Some(entry.transactions?.earliest));
        let in_it = || Some(entries.get(&fork)?.transactions?.latest);
        Ok(behind.or_else(in_it))
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
