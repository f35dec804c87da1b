//! Where recovery stops, and what lies in a range of WAL: the index says what need not be read, decoding decides.
//!
//! Segments are taken in LSN order: each that may decide, by what the index says of it, is decoded, until one does. What a
//! segment says about itself leaves out the record that ends in the next one; the index keeps a piece of that record in both
//! ([`walpoint_base::crossing`]), and where the pieces may decide, or do not tell, both segments are decoded.

mod consistent;
mod epoch;
mod minimal;
mod partial;
mod passed;
mod removal;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use walpoint_base::crossing::{Crossing, RecordPiece};
use walpoint_base::facts::TransactionRange;
use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, PgTimestamp, SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_plan::restore::decide::{
    self, Before, PartialEnd, RangedSegment, crossing_place, last_start, may, next,
};
use walpoint_plan::restore::facts::{Extent, ExtentQuestion, Facts, StopQuestion};
use walpoint_plan::restore::path::{Path, SegmentRange};
use walpoint_plan::restore::stop::{SearchState, SegmentDecoder, Stop, StopRule, StopSearch};
use walpoint_storage::error::{RepoError, Result};

pub(crate) use self::minimal::readable;
pub use self::partial::OpenSegment;
use super::TimelineWal;
use crate::cpu;
use crate::index::{GroupSummary, SegmentEntry, first_of, group_of, last_of};
use crate::wal::WalArchive;

/// Answers the planner's questions about the content of WAL.
pub(crate) struct Search<'a> {
    archive: &'a WalArchive,
    wal: &'a mut BTreeMap<TimelineId, TimelineWal>,
    decoder: Option<&'a Arc<dyn SegmentDecoder>>,
}

impl<'a> Search<'a> {
    /// Over the WAL that was looked at so far. Without a decoder only [`Self::extent`] works.
    pub(crate) fn new(
        archive: &'a WalArchive,
        wal: &'a mut BTreeMap<TimelineId, TimelineWal>,
        decoder: Option<&'a Arc<dyn SegmentDecoder>>,
    ) -> Self {
        Self { archive, wal, decoder }
    }

    /// The record that stops recovery.
    pub(crate) async fn stop(&mut self, facts: &Facts, question: &StopQuestion) -> Result<Option<Stop>> {
        let first = SegmentNo::of(question.from, facts.segment_size);
        let (files, partial) = files(facts, question.path, first, question.until)?;
        let named = match &question.rule {
            StopRule::Name(name) => self.places_named(facts, question, &files, name).await?,
            _ => BTreeSet::new(),
        };
        let mut found = match &question.rule {
            StopRule::Consistent(at) => self.ending_at(question, &files, *at).await?,
            _ => self.in_order(question, &files, &named).await?,
        };
        if let (None, Some(partial)) = (&found, partial) {
            found = self.stop_in_partial(question, &files, partial).await?;
        }
        if let (StopRule::Xid { .. }, Some(stop)) = (&question.rule, &mut found) {
            stop.full_xid = self.full_xid(question, &files, stop).await?;
        }
        Ok(found)
    }

    /// What lies in a range.
    pub(crate) async fn extent(&mut self, facts: &Facts, question: &ExtentQuestion) -> Result<Extent> {
        let (files, partial) = files(facts, question.path, question.first, question.until)?;
        let mut extent = Extent { latest: self.latest(facts, question, &files).await?, last_record: None };
        let in_partial = match partial {
            Some(partial) => self.last_in_partial(partial).await?,
            None => None,
        };
        extent.last_record = match in_partial {
            Some(record) => Some(record),
            None => self.last_complete(facts, question, &files).await?,
        };
        Ok(extent)
    }

    /// The latest time of a transaction's end.
    async fn latest(
        &mut self,
        facts: &Facts,
        question: &ExtentQuestion,
        files: &[SegmentRange],
    ) -> Result<Option<PgTimestamp>> {
        let mut latest = None;
        let mut open: Option<RecordPiece> = None;
        for range in files {
            for (n, first, last) in groups(*range) {
                let wal = timeline(self.wal, range.timeline)?;
                // A file that is read up to a fork only goes on with times of another branch.
                let before = || last.0.checked_sub(1).map(SegmentNo);
                let last = if last.end(facts.segment_size) <= question.until { Some(last) } else { before() };
                let Some(last) = last.filter(|last| *last >= first) else { continue };
                let mut more = |transactions: Option<TransactionRange>, crossing, begin| {
                    let across = Crossing::between(open.as_ref(), crossing, begin).time();
                    latest = latest.max(across).max(transactions.map(|t| t.latest));
                    open = crossing.open;
                };
                match wal.summary(n).filter(|s| is_within(s, first, last) && s.untold.unknown == 0) {
                    Some(s) => more(s.transactions, &s.crossing, &s.chain.begin),
                    None => {
                        let entries = wal.entries(first, last).await?;
                        entries.values().for_each(|e| more(e.transactions, &e.crossing, &e.chain.begin));
                    }
                }
            }
        }
        Ok(latest)
    }

    /// Where the last record that ends at or before `until` starts. The last one known may end beyond what is there: then
    /// the ones before it are found by decoding.
    async fn last_complete(
        &mut self,
        facts: &Facts,
        question: &ExtentQuestion,
        files: &[SegmentRange],
    ) -> Result<Option<Lsn>> {
        let size = facts.segment_size;
        let Some((range, before)) = files.split_last() else { return Ok(None) };
        let number = range.last;
        let Some(entry) = self.entry(range.timeline, number).await? else { return Ok(None) };
        let cut = number.end(size) > question.until;
        if let Some(record) = entry.last_record {
            if !cut && record < entry.end {
                return Ok(Some(record));
            }
            let Some(decoder) = self.decoder.cloned() else { return Ok(None) };
            let name = number.name(range.timeline, size);
            let Some(file) = self.archive.get(WalFileName::Segment(name)).await? else { return Ok(None) };
            let (start, until) = (number.start(size), question.until.min(number.end(size)));
            let found = cpu::run(move || last_start(&*decoder, name, &file.content, start, until)).await?;
            if found.is_some() {
                return Ok(found);
            }
        }
        // No record that starts in it is complete; one may have begun before and end in it.
        let previous = match number.0.checked_sub(1).map(SegmentNo).filter(|n| *n >= range.first) {
            Some(number) => Some((range.timeline, number)),
            None => before.last().map(|r| (r.timeline, r.last)),
        };
        let ends_here = entry.end > number.start(size);
        let Some((timeline, number)) = previous else { return Ok(None) };
        let previous = self.entry(timeline, number).await?;
        Ok(previous.and_then(|e| e.last_record.filter(|&record| ends_here || record < e.end)))
    }

    pub(super) async fn entry(&mut self, of: TimelineId, number: SegmentNo) -> Result<Option<SegmentEntry>> {
        Ok(timeline(self.wal, of)?.entries(number, number).await?.remove(&number))
    }

    /// Segment after segment, those left out that the index rules out. `named`: where restore points are known to be that may
    /// decide.
    async fn in_order(
        &mut self,
        question: &StopQuestion,
        files: &[SegmentRange],
        named: &BTreeSet<RangedSegment>,
    ) -> Result<Option<Stop>> {
        let rule = &question.rule;
        let mut before: Before = None;
        for (range, file) in files.iter().enumerate() {
            for (n, first, last) in groups(*file) {
                let wal = timeline(self.wal, file.timeline)?;
                let here = RangedSegment { range, number: first }..=RangedSegment { range, number: last };
                let summary = wal.summary(n).filter(|s| {
                    is_within(s, first, last) && !group_may(rule, s) && named.range(here).next().is_none()
                });
                if let Some(s) = summary {
                    let crossing = crossing_place(rule, before, &s.crossing, &s.chain.begin);
                    if let Some(stop) = self.decode_each(question, files, crossing).await? {
                        return Ok(Some(stop));
                    }
                    before = Some((RangedSegment { range, number: s.last }, s.crossing.open));
                    continue;
                }
                for (number, entry) in wal.entries(first, last).await? {
                    let place = RangedSegment { range, number };
                    let crossing = crossing_place(rule, before, &entry.crossing, &entry.chain.begin);
                    let this = segment_may(rule, &entry) || named.contains(&place);
                    let places = crossing.into_iter().chain(this.then_some(place));
                    if let Some(stop) = self.decode_each(question, files, places).await? {
                        return Ok(Some(stop));
                    }
                    // Decoding it went on to the end of its last record.
                    before = Some((place, entry.crossing.open.filter(|_| !this)));
                }
            }
        }
        Ok(None)
    }

    /// Restore points are objects of their own, but for those whose record crosses the end of a segment: where on the path
    /// the objects say that those of a name are.
    async fn places_named(
        &mut self,
        facts: &Facts,
        question: &StopQuestion,
        files: &[SegmentRange],
        name: &str,
    ) -> Result<BTreeSet<RangedSegment>> {
        let all: Vec<(TimelineId, Lsn)> = match facts.points_named(name) {
            Ok(known) if facts.damaged_points.is_empty() => {
                let known = known.iter().filter(|point| point.lsn >= question.from);
                known.map(|point| (point.timeline, point.lsn)).collect()
            }
            _ => {
                let found = self.archive.points_named(name).await?;
                let named = found.points.iter().filter(|point| point.lsn >= question.from);
                // The segment itself tells what is in a list that cannot be read.
                named.map(|point| (point.timeline, point.lsn)).chain(found.unread).collect()
            }
        };
        let first = SegmentNo::of(question.from, facts.segment_size);
        let place = |(timeline, lsn): (TimelineId, Lsn)| {
            let number = SegmentNo::of(lsn, facts.segment_size);
            let range = files.iter().position(|r| r.first <= number && number <= r.last)?;
            let on_path = facts.graph.share(question.path, timeline, lsn);
            (on_path && number >= first).then_some(RangedSegment { range, number })
        };
        Ok(all.into_iter().filter_map(place).collect())
    }

    /// Decodes from each place on until a record decides or none does.
    async fn decode_each(
        &mut self,
        question: &StopQuestion,
        files: &[SegmentRange],
        places: impl IntoIterator<Item = RangedSegment>,
    ) -> Result<Option<Stop>> {
        for place in places {
            if let Some(stop) = self.decode(question, files, place).await? {
                return Ok(Some(stop));
            }
        }
        Ok(None)
    }

    /// Decodes a segment, and those behind it up to the end of its last record.
    async fn decode(
        &mut self,
        question: &StopQuestion,
        files: &[SegmentRange],
        first: RangedSegment,
    ) -> Result<Option<Stop>> {
        let Some(decoder) = self.decoder else { return Ok(None) };
        let mut search = decoder.search(&question.rule, question.from, question.until);
        let mut buffer = Vec::new();
        let mut at = Some(first);
        while let Some(place) = at {
            let found;
            (search, buffer, found) = self.feed(search, files, place, buffer).await?;
            match found {
                Some(SearchState::Stop(stop)) => return Ok(Some(stop)),
                Some(SearchState::Nothing) | None => return Ok(None),
                Some(SearchState::More) if first == place || self.is_passed_through(files, place).await? => {
                    at = next(files, place);
                }
                // The record that went on from the first one has ended; what begins later is looked at for itself.
                Some(SearchState::More) => return Ok(None),
            }
        }
        Ok(None)
    }

    /// Whether no record starts in a segment.
    async fn is_passed_through(&mut self, files: &[SegmentRange], place: RangedSegment) -> Result<bool> {
        let Some(file) = files.get(place.range) else { return Ok(false) };
        let entry = self.entry(file.timeline, place.number).await?;
        Ok(entry.is_none_or(|entry| entry.first_record.is_none()))
    }

    /// Reads a segment into `buffer` and feeds it to a search. Nothing is found beyond the last file.
    async fn feed(
        &self,
        mut search: Box<dyn StopSearch>,
        files: &[SegmentRange],
        place: RangedSegment,
        buffer: Vec<u8>,
    ) -> Result<(Box<dyn StopSearch>, Vec<u8>, Option<SearchState>)> {
        let Some(file) = files.get(place.range) else { return Ok((search, buffer, None)) };
        let name = place.number.name(file.timeline, self.archive.lineage().segment_size);
        let key = self.archive.paths().segment(name);
        let Some(read) = self.archive.get_into(WalFileName::Segment(name), buffer).await? else {
            let store = self.archive.repository().store().name().to_owned();
            return Err(RepoError::NotFound { key, store });
        };
        let content = read.content;
        let (search, content, found) = cpu::run(move || {
            let found = search.feed(name, &content);
            (search, content, found)
        })
        .await?;
        Ok((search, content, Some(found.map_err(|what| RepoError::corrupt(&key, what))?)))
    }

    /// The next transaction's id by the first checkpoint after `from`: that of the backup which recovery starts from.
    async fn next_xid(&self, question: &StopQuestion, files: &[SegmentRange]) -> Result<Option<FullXid>> {
        let Some(decoder) = self.decoder else { return Ok(None) };
        // No record starts there, so it looks at all of them.
        let rule = StopRule::Lsn { at: Lsn(u64::MAX), inclusive: true };
        let mut search = decoder.search(&rule, question.from, question.until);
        let mut buffer = Vec::new();
        let mut at = files.first().map(|range| RangedSegment { range: 0, number: range.first });
        while let Some(place) = at {
            (search, buffer, _) = match self.feed(search, files, place, buffer).await {
                // The epoch is for people; that this is missing shows where the plan is proven.
                Err(RepoError::NotFound { .. } | RepoError::Corrupt { .. }) => return Ok(None),
                fed => fed?,
            };
            if let Some(next) = search.next_xid() {
                return Ok(Some(next));
            }
            at = next(files, place);
        }
        Ok(None)
    }

    fn segment_size(&self) -> SegmentSize {
        self.archive.lineage().segment_size
    }

    /// The WAL of a timeline that was looked at.
    fn timeline(&mut self, of: TimelineId) -> Result<&mut TimelineWal> {
        timeline(self.wal, of)
    }
}

/// The files of the path from a segment up to a position, and the `.partial` file that goes on behind them.
fn files(
    facts: &Facts,
    path: TimelineId,
    first: SegmentNo,
    until: Lsn,
) -> Result<(Vec<SegmentRange>, Option<PartialEnd>)> {
    let unknown = || RepoError::Internal(format!("the path to timeline {path} was not looked at yet"));
    let path = Path::to(facts, path).ok_or_else(unknown)?;
    let mut coverage = path.coverage(first).map_err(|_| unknown())?;
    if until > coverage.until {
        coverage = path.with_tail(coverage).map_err(|_| unknown())?;
    }
    let partial = PartialEnd::of(&coverage, until, facts.segment_size);
    Ok((coverage.files_until(until, facts.segment_size), partial))
}

fn timeline(wal: &mut BTreeMap<TimelineId, TimelineWal>, timeline: TimelineId) -> Result<&mut TimelineWal> {
    wal.get_mut(&timeline)
        .ok_or_else(|| RepoError::Internal(format!("the WAL of timeline {timeline} was not looked at yet")))
}

/// The groups that a range touches, with the part of it in each.
fn groups(range: SegmentRange) -> impl DoubleEndedIterator<Item = (u64, SegmentNo, SegmentNo)> {
    let of = group_of(range.first)..=group_of(range.last);
    of.map(move |n| (n, first_of(n).max(range.first), last_of(n).min(range.last)))
}

/// Whether a group's summary is about segments from `first` to `last` only.
fn is_within(summary: &GroupSummary, first: SegmentNo, last: SegmentNo) -> bool {
    first <= summary.first && summary.last <= last
}

/// Whether a record of the group may decide, as far as its summary shows: the one aside that goes on in the next group.
pub(crate) fn group_may(rule: &StopRule, summary: &GroupSummary) -> bool {
    decide::group_may(rule, summary.untold, summary.transactions.as_ref(), summary.last_record)
}

/// Whether a record of the segment may decide, the one that ends in the next segment aside.
fn segment_may(rule: &StopRule, entry: &SegmentEntry) -> bool {
    may(rule, entry.transactions.as_ref(), entry.last_record)
}
