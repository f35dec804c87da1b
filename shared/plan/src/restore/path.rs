//! The way of recovery along one timeline's path: which file serves each segment, and how far what is there reaches.
//!
//! PostgreSQL asks for a segment under the newest timeline of the path first (`XLogFileReadAnyTLI` in xlogrecovery.c). The
//! segment of a fork exists twice: the child's file begins with a copy of the parent's bytes up to the switch point, the
//! parent's own file, if it was ever completed, goes on with what the path has left behind. So a segment that is read to
//! its end has exactly one right file, that of the timeline its last byte belongs to; only where recovery stops before
//! the switch does the parent's do as well. PostgreSQL never reads a `.partial` file: `restore-fetch` builds a segment from
//! it where the plan says so. So it does from a segment that ended early: the one that a dead primary was writing.

use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineHistory, TimelineId};

use super::facts::{Asking, BackupFacts, Facts};
use crate::runs::Runs;

/// Consecutive segments of one timeline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SegmentRange {
    /// The timeline in their names.
    pub timeline: TimelineId,
    /// The first one.
    pub first: SegmentNo,
    /// The last one; never before the first.
    pub last: SegmentNo,
}

impl SegmentRange {
    /// How many.
    pub fn count(&self) -> u64 {
        self.last.0.saturating_sub(self.first.0).saturating_add(1)
    }

    /// The names of the first and the last file.
    pub fn names(&self, size: SegmentSize) -> (SegmentName, SegmentName) {
        (self.first.name(self.timeline, size), self.last.name(self.timeline, size))
    }

    /// For people: `00000001000000000000000A` or `00000001000000000000000A to 00000001000000000000000C (3 segments)`.
    pub fn describe(&self, size: SegmentSize) -> String {
        let (first, last) = self.names(size);
        if first == last {
            return first.to_string();
        }
        format!("{first} to {last} ({} segments)", self.count())
    }
}

/// One lineage's WAL seen along the path to a timeline.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    facts: &'a Facts,
    history: &'a TimelineHistory,
}

/// How far the WAL on a path reaches from a segment on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Coverage {
    /// Every byte before this position is there.
    pub until: Lsn,
    /// The files that hold them, in order.
    pub files: Vec<SegmentRange>,
    /// The ancestor whose file PostgreSQL takes for segment `missing`, because the descendant's is not there. It holds the
    /// path's bytes up to `until`, and then goes on with what the path left behind.
    pub by_ancestor: Option<TimelineId>,
    /// The timeline whose incomplete copy of segment `missing` alone holds the path's bytes up to `until`: left by the path in
    /// that segment, or the path's own. In a gap, too: recovery to a target inside needs nothing behind it.
    pub by_partial: Option<TimelineId>,
    /// What is wrong with the incomplete copy of the path's own segment `missing`, if it cannot be read: recovery asks for that segment,
    /// and nothing proves that it was never written.
    pub damaged: Option<String>,
    /// The first segment whose right file is not there.
    pub missing: SegmentNo,
    /// Where the server was set to `wal_level = minimal`, if that is what ends it ([`Path::replayable`]).
    pub minimal: Option<Lsn>,
    /// The next segment whose right file is there: then what lies between is a gap, else it is the end of the archive.
    pub next: Option<SegmentNo>,
    /// The last segment from `missing` on that was stored and cannot be had, or that was finished before one of which an incomplete copy
    /// is there, if no right file is there any more: then, too, what lies up to it is a gap.
    pub lost: Option<SegmentNo>,
}

impl<'a> Path<'a> {
    /// The path to `timeline`; `None` if it is not known.
    pub fn to(facts: &'a Facts, timeline: TimelineId) -> Option<Self> {
        Some(Self { facts, history: facts.graph.history(timeline)? })
    }

    /// What it is seen with.
    pub(super) fn facts(&self) -> &'a Facts {
        self.facts
    }

    /// The ancestors.
    pub fn history(&self) -> &'a TimelineHistory {
        self.history
    }

    /// The timeline that it leads to.
    pub fn timeline(&self) -> TimelineId {
        self.history.timeline()
    }

    fn size(&self) -> SegmentSize {
        self.facts.segment_size
    }

    /// Whether recovery from the backup can follow the path: all of it lies on it.
    pub fn holds(&self, backup: &BackupFacts) -> bool {
        self.history.timeline_at(backup.start()) == backup.timeline()
            && self.history.timeline_at(backup.end - 1) == backup.end_timeline
    }

    /// For each timeline of the path the segments whose last byte is its own, oldest first; the last one is unbounded.
    fn portions(&self) -> impl DoubleEndedIterator<Item = SegmentRange> + '_ {
        let size = self.size().bytes();
        self.history.path().filter_map(move |timeline| {
            let first = SegmentNo(self.history.begin_of(timeline)?.0 / size);
            let last = match self.history.end_of(timeline) {
                Some(end) => SegmentNo((end.0 / size).checked_sub(1)?),
                None => SegmentNo(u64::MAX / size - 1),
            };
            (first <= last).then_some(SegmentRange { timeline, first, last })
        })
    }

    /// How far the WAL reaches that is there from segment `from` on.
    pub fn coverage(&self, from: SegmentNo) -> Asking<Coverage> {
        let mut cursor = from;
        let mut files: Vec<SegmentRange> = Vec::new();
        let mut owner = self.timeline();
        for portion in self.portions().filter(|p| p.last >= from) {
            owner = portion.timeline;
            let run = self.facts.wal(portion.timeline)?.containing(cursor);
            let Some(run) = run else { break };
            let last = run.last.min(portion.last);
            files.push(SegmentRange { timeline: portion.timeline, first: cursor, last });
            cursor = last.next();
            if last < portion.last {
                break;
            }
        }
        let next = self.next_present(cursor)?;
        let lost = if next.is_none() { self.last_lost(cursor)? } else { None };
        let (mut until, mut by_ancestor, mut by_partial) = (cursor.start(self.size()), None, None);
        let read = files.last().map(|f| f.timeline);
        let ancestor = self.ancestors_file(cursor, owner, read)?;
        let mut partial = if cursor > from { self.partial(cursor)? } else { None };
        let mut damaged = None;
        if cursor > from && self.may_end_in(cursor)? {
            let name = cursor.name(self.timeline(), self.size());
            damaged = self.facts.damaged_partial(name)?.map(str::to_owned);
            let own = self.facts.partial(name)?.map(|held| (name.timeline, held));
            partial = own.filter(|(_, end)| partial.is_none_or(|(_, other)| other < *end)).or(partial);
        }
        if let Some((timeline, end)) =
            partial.filter(|(_, end)| ancestor.is_none_or(|(_, other)| other < *end))
        {
            (until, by_partial) = (end, Some(timeline));
        } else if let Some((timeline, switch)) = ancestor {
            files.push(SegmentRange { timeline, first: cursor, last: cursor });
            (until, by_ancestor) = (switch, Some(timeline));
        }
        Ok(Coverage {
            until,
            files,
            by_ancestor,
            by_partial,
            damaged,
            missing: cursor,
            minimal: None,
            next: next.map(|n| n.first),
            lost,
        })
    }

    /// The same with what the path's own timeline went on to hold behind positions at which younger timelines left it, where only an
    /// incomplete copy of that segment has it. Where none of that was streamed, recovery gets there for a target in it, and not to its end.
    pub fn with_tail(&self, coverage: Coverage) -> Asking<Coverage> {
        let (timeline, number, size) = (self.timeline(), coverage.missing, self.size());
        let forks = || self.facts.graph.left_at(timeline);
        let inside =
            forks().any(|fork| fork > number.start(size)) && forks().all(|fork| fork < number.end(size));
        let begins = self.history.begin_of(timeline).is_some_and(|begin| begin < number.end(size));
        let ends = coverage.gap().is_none() && coverage.minimal.is_none();
        let whole = coverage.files.iter().filter(|file| file.first < number).copied().collect::<Vec<_>>();
        if !(inside && begins && ends) || whole.is_empty() {
            return Ok(coverage);
        }
        let held = self.facts.partial(number.name(timeline, size))?;
        Ok(match held.filter(|held| *held > coverage.until) {
            // Recovery asks for the segment under its own name first, and is given that.
            Some(until) => {
                Coverage { until, files: whole, by_ancestor: None, by_partial: Some(timeline), ..coverage }
            }
            None => coverage,
        })
    }

    /// Whether an incomplete copy of the path's own segment `number` is the path's to its end, whatever is there behind that: its timeline
    /// has begun, and none left it inside. Where one did, what was streamed of it is; any other copy may be what the younger one's server
    /// had received.
    fn may_end_in(&self, number: SegmentNo) -> Asking<bool> {
        let (timeline, size) = (self.timeline(), self.size());
        let begins = self.history.begin_of(timeline).is_some_and(|begin| begin < number.end(size));
        let inside = |left: Lsn| number.start(size) < left && left < number.end(size);
        let is_left = self.facts.graph.left_at(timeline).any(inside);
        Ok(begins && (!is_left || self.is_streamed(number)?))
    }

    /// Whether some of the path's own segment `number` was streamed, and counts.
    fn is_streamed(&self, number: SegmentNo) -> Asking<bool> {
        let name = number.name(self.timeline(), self.size());
        self.facts.partial(name)?;
        Ok(self.facts.sliced.contains(&name))
    }

    /// Whether a younger timeline left the path's own segment `number` inside, and none of it was streamed: recovery to the end of the
    /// archive then reads no incomplete copy of it.
    pub(super) fn is_left_unstreamed(&self, number: SegmentNo) -> bool {
        let (timeline, size) = (self.timeline(), self.size());
        let inside = |left: Lsn| number.start(size) < left && left < number.end(size);
        self.facts.graph.left_at(timeline).any(inside)
            && !self.facts.sliced.contains(&number.name(timeline, size))
    }

    /// The incomplete copy that an ancestor has of segment `number` and that holds most of what the path wants, and how far.
    fn partial(&self, number: SegmentNo) -> Asking<Option<(TimelineId, Lsn)>> {
        let size = self.size();
        let mut best: Option<(TimelineId, Lsn)> = None;
        for timeline in self.history.candidates(number, size).filter(|t| *t != self.timeline()) {
            let Some(served) = self.history.served_until(timeline, number, size) else { continue };
            if served == number.end(size) {
                continue;
            }
            let Some(held) = self.facts.partial(number.name(timeline, size))? else { continue };
            let until = held.min(served);
            if best.is_none_or(|(_, other)| other < until) && until > number.start(size) {
                best = Some((timeline, until));
            }
        }
        Ok(best)
    }

    /// The first segment at or after `from` whose right file is there.
    pub fn next_present(&self, from: SegmentNo) -> Asking<Option<SegmentRange>> {
        for portion in self.portions().filter(|p| p.last >= from) {
            let run = self.facts.wal(portion.timeline)?.from(from.max(portion.first));
            if let Some(run) = run.filter(|r| r.first <= portion.last) {
                let first = run.first.max(portion.first).max(from);
                return Ok(Some(SegmentRange {
                    timeline: portion.timeline,
                    first,
                    last: run.last.min(portion.last),
                }));
            }
        }
        Ok(None)
    }

    /// The first segment at or after `from` of which anything is there that the path wants: its right file, or an
    /// ancestor's up to a fork.
    pub fn next_readable(&self, from: SegmentNo) -> Asking<Option<SegmentNo>> {
        let right = self.next_present(from)?.map(|r| r.first);
        for portion in self.portions().filter(|p| p.first >= from && right.is_none_or(|r| p.first < r)) {
            let ancestor = self.ancestors_file(portion.first, portion.timeline, None)?;
            if ancestor.is_some_and(|(_, until)| until > portion.first.start(self.size())) {
                return Ok(Some(portion.first));
            }
        }
        Ok(right)
    }

    /// Every right file that is there, in order.
    pub fn present(&self) -> Asking<Vec<SegmentRange>> {
        let mut present = Vec::new();
        for portion in self.portions() {
            for run in self.facts.wal(portion.timeline)?.iter() {
                let (first, last) = (run.first.max(portion.first), run.last.min(portion.last));
                if first <= last {
                    present.push(SegmentRange { timeline: portion.timeline, first, last });
                }
            }
        }
        Ok(present)
    }

    /// The last segment of the path whose right file is there.
    pub fn last_present(&self) -> Asking<Option<SegmentNo>> {
        for portion in self.portions().rev() {
            let runs = self.facts.wal(portion.timeline)?;
            let last = runs.iter().rev().find(|r| r.first <= portion.last && r.last >= portion.first);
            if let Some(run) = last {
                return Ok(Some(run.last.min(portion.last)));
            }
        }
        Ok(None)
    }

    /// The last segment of the path from `from` on that was stored and cannot be had, or that was finished before one that was begun.
    pub(super) fn last_lost(&self, from: SegmentNo) -> Asking<Option<SegmentNo>> {
        for portion in self.portions().rev().filter(|p| p.last >= from) {
            let last_of = |runs: Option<&Runs>, from: SegmentNo| {
                let first = portion.first.max(from);
                let run = runs?.iter().rev().find(|r| r.first <= portion.last && r.last >= first)?;
                Some(run.last.min(portion.last)).filter(|last| *last >= first)
            };
            let lost = last_of(self.facts.lost(portion.timeline)?, from);
            let begun = last_of(self.facts.begun(portion.timeline)?, from.next());
            let finished = begun.and_then(|number| number.0.checked_sub(1)).map(SegmentNo);
            if lost.max(finished).is_some() {
                return Ok(lost.max(finished));
            }
        }
        Ok(None)
    }

    /// Every right file from segment `first` to `last`, whether it is there or not.
    pub fn right(&self, first: SegmentNo, last: SegmentNo) -> Vec<SegmentRange> {
        let cut = |portion: SegmentRange| {
            let (first, last) = (portion.first.max(first), portion.last.min(last));
            (first <= last).then_some(SegmentRange { first, last, ..portion })
        };
        self.portions().filter_map(cut).collect()
    }

    /// Every right file that is not there from segment `first` to `last`.
    pub fn missing(&self, first: SegmentNo, last: SegmentNo) -> Asking<Vec<SegmentRange>> {
        missing_of(self.facts, &self.right(first, last))
    }

    /// The file that PostgreSQL takes for segment `number` when `owner`'s is not there: of the newest timeline of the path
    /// that is not older than `read`, the timeline of the file before. And how far it holds what the path wants.
    fn ancestors_file(
        &self,
        number: SegmentNo,
        owner: TimelineId,
        read: Option<TimelineId>,
    ) -> Asking<Option<(TimelineId, Lsn)>> {
        let older = self.history.path().rev().filter(|&t| t < owner && read.is_none_or(|r| t >= r));
        for timeline in older {
            if self.history.may_be_asked(timeline, number, self.size())
                && self.facts.wal(timeline)?.contains(number)
            {
                let until = self.history.served_until(timeline, number, self.size());
                return Ok(Some((timeline, until.unwrap_or(number.start(self.size())))));
            }
        }
        Ok(None)
    }
}

/// Those of these files that are not there.
pub fn missing_of(facts: &Facts, files: &[SegmentRange]) -> Asking<Vec<SegmentRange>> {
    let mut missing = Vec::new();
    for &SegmentRange { timeline, first, last } in files {
        let runs = facts.wal(timeline)?;
        let mut cursor = first;
        while cursor <= last {
            let next = runs.from(cursor);
            let gap_end = next.map_or(last, |r| SegmentNo(r.first.0.saturating_sub(1)).min(last));
            if next.is_none_or(|r| r.first > cursor) {
                missing.push(SegmentRange { timeline, first: cursor, last: gap_end });
            }
            cursor = next.map_or(last, |r| r.last).next();
        }
    }
    Ok(missing)
}

impl Coverage {
    /// The last segment of the gap that begins with `missing`; `None` if that is the end of the archive.
    pub fn gap(&self) -> Option<SegmentNo> {
        self.next.map(|next| SegmentNo(next.0.saturating_sub(1))).or(self.lost)
    }

    /// The files that hold every byte before `until`, which must not lie after [`Coverage::until`].
    pub fn files_until(&self, until: Lsn, size: SegmentSize) -> Vec<SegmentRange> {
        let last = SegmentNo::before(until, size);
        let needed = self.files.iter().filter(|r| r.first <= last);
        needed.map(|r| SegmentRange { last: r.last.min(last), ..*r }).collect()
    }
}
