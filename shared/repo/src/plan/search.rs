//! Where recovery stops, and what lies in a stretch of WAL: the index says what need not be read, decoding decides.
//!
//! A time is looked for in LSN order: the first segment with a transaction's end past it is decoded, then the next one,
//! until a record decides. What a segment says about itself leaves out one record, that which ends in the next segment; if
//! that may be a transaction's end the index marks the segment. Such segments are decoded too where the decision is near:
//! from the last transaction known to be before the target on, and, because commit times go back and forth a little, as
//! far back as [`SKEW`].

use std::collections::BTreeMap;
use std::sync::Arc;

use walpoint_base::facts::{TransactionRange, xid_precedes};
use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize, TimelineId, WalFileName};

use super::facts::{Extent, ExtentQuestion, Facts, StopQuestion};
use super::partial::PartialEnd;
use super::path::{Path, SegmentRange};
use super::stop::{Found, SegmentDecoder, Stop, StopRule, StopSearch};
use crate::catalog::TimelineWal;
use crate::cpu;
use crate::error::{RepoError, Result};
use crate::index::entry::join;
use crate::index::{GroupSummary, SegmentEntry, first_of, group_of, last_of};
use crate::wal::WalArchive;

/// How much earlier than a predecessor a commit's time may be without our missing that predecessor, in microseconds.
const SKEW: i64 = 60_000_000;

/// Marked segments that are decoded for a restore point that no object names: its record would have to cross the end of
/// a segment, and one in 100,000 does.
const SUSPECTS: usize = 4;

/// Answers the planner's questions about the content of WAL.
pub(crate) struct Search<'a> {
    pub(super) archive: &'a WalArchive,
    wal: &'a mut BTreeMap<TimelineId, TimelineWal>,
    pub(super) decoder: Option<&'a Arc<dyn SegmentDecoder>>,
}

/// A segment among the files of a stretch: which range, and its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Place {
    pub(super) range: usize,
    pub(super) number: SegmentNo,
}

/// The part of a group that is on the path.
#[derive(Clone, Copy)]
struct Passed {
    range: usize,
    first: SegmentNo,
    last: SegmentNo,
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
        let mut found = match &question.rule {
            StopRule::Name(name) => self.among_points(facts, question, &files, name).await?,
            _ => self.in_order(question, &files).await?,
        };
        if found.is_none() {
            let suspects = match &question.rule {
                StopRule::Xid { xid, .. } => self.marked_around(&files, *xid).await?,
                StopRule::Name(_) => self.newest_marked(&files).await?,
                _ => Vec::new(),
            };
            found = self.decode_each(question, &files, suspects).await?;
        }
        if let (None, Some(partial)) = (&found, partial) {
            found = self.stop_in_partial(question, &files, partial).await?;
        }
        if let (StopRule::Xid { .. }, Some(stop)) = (&question.rule, &mut found) {
            stop.full_xid = self.full_xid(question, &files, stop).await?;
        }
        Ok(found)
    }

    /// What lies in a stretch.
    pub(crate) async fn extent(&mut self, facts: &Facts, question: &ExtentQuestion) -> Result<Extent> {
        let (files, partial) = files(facts, question.path, question.first, question.until)?;
        let mut extent = Extent::default();
        for range in &files {
            for (n, first, last) in groups(*range) {
                let wal = timeline(self.wal, range.timeline)?;
                // A file that is read up to a fork only goes on with times of another branch.
                let last =
                    if last.end(facts.segment_size) <= question.until { last } else { SegmentNo(last.0 - 1) };
                if last < first {
                    continue;
                }
                let whole = wal.summary(n).filter(|s| first <= s.first && s.last <= last);
                let latest = match whole {
                    Some(summary) => summary.transactions.map(|t| t.latest),
                    None => {
                        let entries = wal.entries(first, last).await?;
                        entries.values().filter_map(|e| Some(e.transactions?.latest)).max()
                    }
                };
                extent.latest = extent.latest.max(latest);
            }
        }
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

    async fn entry(&mut self, of: TimelineId, number: SegmentNo) -> Result<Option<SegmentEntry>> {
        Ok(timeline(self.wal, of)?.entries(number, number).await?.remove(&number))
    }

    /// Times, LSNs and xids: segment after segment, those left out that the index rules out.
    async fn in_order(&mut self, question: &StopQuestion, files: &[SegmentRange]) -> Result<Option<Stop>> {
        let rule = &question.rule;
        let crossing_counts = !matches!(rule, StopRule::Lsn { .. });
        // Marked segments behind the last one with transactions, and groups passed over that may hold such.
        let mut marked: Vec<Place> = Vec::new();
        let mut passed: Vec<Passed> = Vec::new();
        for (range, file) in files.iter().enumerate() {
            for (n, first, last) in groups(*file) {
                let wal = timeline(self.wal, file.timeline)?;
                if let Some(summary) =
                    wal.summary(n).filter(|s| !group_may(rule, s) && !is_near(rule, s.transactions))
                {
                    if summary.transactions.is_some() {
                        marked.clear();
                        passed.clear();
                    }
                    if summary.open_ends > 0 {
                        passed.push(Passed { range, first, last });
                    }
                    continue;
                }
                for (number, entry) in wal.entries(first, last).await? {
                    let place = Place { range, number };
                    if !segment_may(rule, &entry) {
                        if entry.transactions.is_some() && !is_near(rule, entry.transactions) {
                            marked.clear();
                            passed.clear();
                        }
                        if crossing_counts && entry.open_transaction_end {
                            marked.push(place);
                        }
                        continue;
                    }
                    let passed = std::mem::take(&mut passed);
                    let mut near =
                        if crossing_counts { self.marked_in(files, passed).await? } else { Vec::new() };
                    near.append(&mut marked);
                    near.push(place);
                    if let Some(stop) = self.decode_each(question, files, near).await? {
                        return Ok(Some(stop));
                    }
                }
            }
        }
        let mut near = if crossing_counts { self.marked_in(files, passed).await? } else { Vec::new() };
        near.append(&mut marked);
        self.decode_each(question, files, near).await
    }

    /// The marked segments in groups that were passed over, from the last one with transactions on.
    async fn marked_in(&mut self, files: &[SegmentRange], passed: Vec<Passed>) -> Result<Vec<Place>> {
        let mut marked = Vec::new();
        for Passed { range, first, last } in passed {
            let Some(file) = files.get(range) else { continue };
            for (number, entry) in timeline(self.wal, file.timeline)?.entries(first, last).await? {
                if entry.transactions.is_some() {
                    marked.clear();
                }
                if entry.open_transaction_end {
                    marked.push(Place { range, number });
                }
            }
        }
        Ok(marked)
    }

    /// Restore points are objects of their own; the segments they name are decoded.
    async fn among_points(
        &mut self,
        facts: &Facts,
        question: &StopQuestion,
        files: &[SegmentRange],
        name: &str,
    ) -> Result<Option<Stop>> {
        let mut places = Vec::new();
        for point in self.archive.points_named(name).await? {
            let on_path = facts.graph.share(question.path, point.timeline, point.lsn);
            let number = SegmentNo::of(point.lsn, facts.segment_size);
            let range = files.iter().position(|r| r.first <= number && number <= r.last);
            if let (true, true, Some(range)) = (on_path, point.lsn >= question.from, range) {
                places.push(Place { range, number });
            }
        }
        places.sort_unstable_by_key(|place| place.number);
        places.dedup();
        self.decode_each(question, files, places).await
    }

    /// Marked segments where `xid` may lie between the transactions before their end and after it.
    async fn marked_around(&mut self, files: &[SegmentRange], xid: u32) -> Result<Vec<Place>> {
        let mut all = Vec::new();
        for (range, file) in files.iter().enumerate() {
            for (n, first, last) in groups(*file) {
                let wal = timeline(self.wal, file.timeline)?;
                let (transactions, open) = match wal.summary(n) {
                    Some(summary) => (summary.transactions, summary.open_ends > 0),
                    None => {
                        let entries = wal.entries(first, last).await?;
                        let transactions = entries.values().fold(None, |r, e| join(r, e.transactions));
                        (transactions, entries.values().any(|e| e.open_transaction_end))
                    }
                };
                all.push((Passed { range, first, last }, file.timeline, transactions, open));
            }
        }
        let mut marked = Vec::new();
        let mut before: Option<TransactionRange> = None;
        for (at, &(Passed { range, first, last }, of, transactions, open)) in all.iter().enumerate() {
            let after = all.iter().skip(at + 1).find_map(|next| next.2);
            if !open || !lies_between(before, after, transactions, xid) {
                before = transactions.or(before);
                continue;
            }
            // Marked segments behind which no transaction was seen yet, and the transactions before each.
            let mut open: Vec<(Place, Option<TransactionRange>)> = Vec::new();
            for (number, entry) in timeline(self.wal, of)?.entries(first, last).await? {
                if entry.transactions.is_some() {
                    let around =
                        open.drain(..).filter(|(_, b)| lies_between(*b, entry.transactions, None, xid));
                    marked.extend(around.map(|(place, _)| place));
                    before = entry.transactions;
                }
                if entry.open_transaction_end {
                    open.push((Place { range, number }, before));
                }
            }
            let around = open.into_iter().filter(|(_, b)| lies_between(*b, after, None, xid));
            marked.extend(around.map(|(place, _)| place));
        }
        Ok(marked)
    }

    /// The newest marked segments, in order.
    async fn newest_marked(&mut self, files: &[SegmentRange]) -> Result<Vec<Place>> {
        let mut marked = Vec::new();
        for (range, file) in files.iter().enumerate().rev() {
            for (n, first, last) in groups(*file).rev() {
                let wal = timeline(self.wal, file.timeline)?;
                if wal.summary(n).is_some_and(|s| s.open_ends == 0) {
                    continue;
                }
                let entries = wal.entries(first, last).await?;
                let open = entries.into_iter().rev().filter(|(_, entry)| entry.open_transaction_end);
                marked.extend(open.map(|(number, _)| Place { range, number }).take(SUSPECTS - marked.len()));
                if marked.len() >= SUSPECTS {
                    marked.reverse();
                    return Ok(marked);
                }
            }
        }
        marked.reverse();
        Ok(marked)
    }

    /// Decodes from each place on until a record decides or none does.
    async fn decode_each(
        &mut self,
        question: &StopQuestion,
        files: &[SegmentRange],
        places: Vec<Place>,
    ) -> Result<Option<Stop>> {
        for place in places {
            if let Some(stop) = self.decode(question, files, place).await? {
                return Ok(Some(stop));
            }
        }
        Ok(None)
    }

    async fn decode(
        &mut self,
        question: &StopQuestion,
        files: &[SegmentRange],
        place: Place,
    ) -> Result<Option<Stop>> {
        let Some(decoder) = self.decoder else { return Ok(None) };
        let mut search = decoder.search(&question.rule, question.from, question.until);
        let mut buffer = Vec::new();
        let mut at = Some(place);
        while let Some(place) = at {
            let found;
            (search, buffer, found) = self.feed(search, files, place, buffer).await?;
            match found {
                Some(Found::Stop(stop)) => return Ok(Some(stop)),
                Some(Found::Nothing) | None => return Ok(None),
                Some(Found::More) => at = next(files, place),
            }
        }
        Ok(None)
    }

    /// Reads a segment into `buffer` and feeds it to a search. Nothing is found beyond the last file.
    async fn feed(
        &self,
        mut search: Box<dyn StopSearch>,
        files: &[SegmentRange],
        place: Place,
        buffer: Vec<u8>,
    ) -> Result<(Box<dyn StopSearch>, Vec<u8>, Option<Found>)> {
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
    pub(super) async fn next_xid(
        &self,
        question: &StopQuestion,
        files: &[SegmentRange],
    ) -> Result<Option<FullXid>> {
        let Some(decoder) = self.decoder else { return Ok(None) };
        // No record starts there, so it looks at all of them.
        let rule = StopRule::Lsn { at: Lsn(u64::MAX), inclusive: true };
        let mut search = decoder.search(&rule, question.from, question.until);
        let mut buffer = Vec::new();
        let mut at = files.first().map(|range| Place { range: 0, number: range.first });
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

    pub(super) fn segment_size(&self) -> SegmentSize {
        self.archive.lineage().segment_size
    }

    /// The WAL of a timeline that was looked at.
    pub(super) fn timeline(&mut self, of: TimelineId) -> Result<&mut TimelineWal> {
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
    let coverage = path.coverage(first).map_err(|_| unknown())?;
    let partial = PartialEnd::of(&coverage, until, facts.segment_size);
    Ok((coverage.files_until(until, facts.segment_size), partial))
}

fn timeline(wal: &mut BTreeMap<TimelineId, TimelineWal>, timeline: TimelineId) -> Result<&mut TimelineWal> {
    wal.get_mut(&timeline)
        .ok_or_else(|| RepoError::Internal(format!("the WAL of timeline {timeline} was not looked at yet")))
}

/// The groups that a range touches, with the part of it in each.
pub(super) fn groups(range: SegmentRange) -> impl DoubleEndedIterator<Item = (u64, SegmentNo, SegmentNo)> {
    let of = group_of(range.first)..=group_of(range.last);
    of.map(move |n| (n, first_of(n).max(range.first), last_of(n).min(range.last)))
}

fn next(files: &[SegmentRange], place: Place) -> Option<Place> {
    if place.number < files.get(place.range)?.last {
        return Some(Place { number: place.number.next(), ..place });
    }
    let range = place.range + 1;
    Some(Place { range, number: files.get(range)?.first })
}

/// Whether a record of the group may decide, as far as its summary shows.
fn group_may(rule: &StopRule, summary: &GroupSummary) -> bool {
    may(rule, summary.transactions.as_ref(), summary.last_record)
}

/// Whether a record of the segment may decide, the one that ends in the next segment aside.
fn segment_may(rule: &StopRule, entry: &SegmentEntry) -> bool {
    may(rule, entry.transactions.as_ref(), entry.last_record)
}

/// Whether a transaction that ended between others may be `xid`. Where nothing came before or after, nothing is ruled out
/// on that side.
fn lies_between(
    before: Option<TransactionRange>,
    after: Option<TransactionRange>,
    among: Option<TransactionRange>,
    xid: u32,
) -> bool {
    let Some(known) = join(join(before, among), after) else { return true };
    let low = before.is_none() || !xid_precedes(xid, known.lowest_xid);
    let high = after.is_none() || !xid_precedes(known.highest_xid, xid);
    low && high
}

/// Whether times of transactions are so close to a target time that their neighbours may be past it.
fn is_near(rule: &StopRule, transactions: Option<TransactionRange>) -> bool {
    match rule {
        StopRule::Time { at, .. } => transactions.is_some_and(|t| t.latest.0 >= at.0.saturating_sub(SKEW)),
        _ => false,
    }
}

fn may(rule: &StopRule, transactions: Option<&TransactionRange>, last_record: Option<Lsn>) -> bool {
    match rule {
        StopRule::Time { at, inclusive: true } => transactions.is_some_and(|t| t.latest > *at),
        StopRule::Time { at, inclusive: false } => transactions.is_some_and(|t| t.latest >= *at),
        StopRule::Lsn { at, .. } => last_record.is_some_and(|last| last >= *at),
        StopRule::Xid { xid, .. } => transactions.is_some_and(|t| t.may_hold(*xid)),
        StopRule::Name(_) => false,
    }
}

/// Where the last record that ends at or before `until` starts, by asking for the first record from ever later positions.
pub(super) fn last_start(
    decoder: &dyn SegmentDecoder,
    name: SegmentName,
    content: &[u8],
    start: Lsn,
    until: Lsn,
) -> Option<Lsn> {
    let from = |at: Lsn| match decoder
        .search(&StopRule::Lsn { at, inclusive: true }, start, until)
        .feed(name, content)
    {
        Ok(Found::Stop(stop)) => Some(stop.record),
        _ => None,
    };
    // The first position of a record is known to do, the end is known not to; halve what is between.
    let mut does = from(start)?;
    let mut does_not = until;
    while does_not.since(does) > 8 {
        let middle = (does + does_not.since(does) / 2).align();
        if middle >= does_not {
            break;
        }
        match from(middle) {
            Some(record) => does = record,
            None => does_not = middle,
        }
    }
    Some(does)
}
