//! What decides where recovery stops, by what is known of segments without decoding them, and by decoding one.
//!
//! What a segment says about itself leaves out the record that ends in the next one; of that record a piece is kept in both
//! ([`walpoint_base::crossing`]), and where the pieces may decide, or do not tell, both segments are decoded.

use walpoint_base::chain::ChainBegin;
use walpoint_base::crossing::{Crossing, CrossingFacts, RecordPiece, Untold};
use walpoint_base::facts::TransactionRange;
use walpoint_base::{Lsn, SegmentName, SegmentNo, SegmentSize};

use super::path::{Coverage, SegmentRange};
use super::stop::{SearchState, SegmentDecoder, StopRule};

/// A segment of WAL that is looked at in several ranges: which range, and its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct RangedSegment {
    /// Which range.
    pub range: usize,
    /// The segment's number.
    pub number: SegmentNo,
}

/// The segment before the one that is looked at, and what is kept of the record that crosses its end.
pub type Before = Option<(RangedSegment, Option<RecordPiece>)>;

/// The `.partial` file that ends a path, and how far it counts.
#[derive(Clone, Copy, Debug)]
pub struct PartialEnd {
    /// Of which segment.
    pub name: SegmentName,
    /// The number of that segment.
    pub number: SegmentNo,
    /// Its bytes count up to here.
    pub until: Lsn,
}

impl PartialEnd {
    /// The one that a question about everything before `until` looks into.
    pub fn of(coverage: &Coverage, until: Lsn, size: SegmentSize) -> Option<Self> {
        let number = coverage.missing;
        let name = number.name(coverage.by_partial?, size);
        let until = until.min(coverage.until);
        (until > number.start(size)).then_some(Self { name, number, until })
    }
}

/// The segment behind one.
pub fn next(files: &[SegmentRange], place: RangedSegment) -> Option<RangedSegment> {
    if place.number < files.get(place.range)?.last {
        return Some(RangedSegment { number: place.number.next(), ..place });
    }
    let range = place.range + 1;
    Some(RangedSegment { range, number: files.get(range)?.first })
}

/// Whether a record of a group of segments may decide, as far as is known of the group: the one aside that goes on in the
/// next group.
pub fn group_may(
    rule: &StopRule,
    untold: Untold,
    transactions: Option<&TransactionRange>,
    last_record: Option<Lsn>,
) -> bool {
    let Untold { points, xids, unknown } = untold;
    let untold = match rule {
        StopRule::Time { .. } => unknown > 0,
        StopRule::Xid { .. } => unknown > 0 || xids > 0,
        StopRule::Name(_) => unknown > 0 || points > 0,
        StopRule::Lsn { .. } | StopRule::Minimal | StopRule::Consistent(_) => false,
    };
    untold || may(rule, transactions, last_record)
}

/// The segment before, if the record that goes on from it may decide. A position is where a record starts, so that one is
/// among the segment's own.
pub fn crossing_place(
    rule: &StopRule,
    before: Before,
    next: &CrossingFacts,
    begin: &ChainBegin,
) -> Option<RangedSegment> {
    let (place, open) = before?;
    let may = match (rule, Crossing::between(open.as_ref(), next, begin)) {
        (StopRule::Lsn { .. } | StopRule::Minimal | StopRule::Consistent(_), _) => false,
        (_, Crossing::Nothing) => false,
        (StopRule::Name(name), crossing) => crossing.may_be_named(name),
        (_, Crossing::Unknown) => true,
        (_, Crossing::Point(_)) => false,
        (StopRule::Time { at, inclusive: true }, Crossing::End { time, .. }) => time > *at,
        (StopRule::Time { at, inclusive: false }, Crossing::End { time, .. }) => time >= *at,
        (StopRule::Xid { xid, .. }, Crossing::End { xid: known, .. }) => known.is_none_or(|k| k == *xid),
    };
    may.then_some(place)
}

/// Whether a record of segments may decide whose transactions and last record are these.
pub fn may(rule: &StopRule, transactions: Option<&TransactionRange>, last_record: Option<Lsn>) -> bool {
    match rule {
        StopRule::Time { at, inclusive: true } => transactions.is_some_and(|t| t.latest > *at),
        StopRule::Time { at, inclusive: false } => transactions.is_some_and(|t| t.latest >= *at),
        StopRule::Lsn { at, .. } => last_record.is_some_and(|last| last >= *at),
        StopRule::Xid { xid, .. } => transactions.is_some_and(|t| t.may_hold(*xid)),
        // Where that record starts follows from where others do.
        StopRule::Name(_) | StopRule::Minimal | StopRule::Consistent(_) => false,
    }
}

/// Where the last record that ends at or before `until` starts, by asking for the first record from ever later positions.
pub fn last_start(
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
        Ok(SearchState::Stop(stop)) => Some(stop.record),
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

/// Where the last record that ends in an incomplete copy of a segment ends; the segment's begin if none does.
pub fn last_end(
    decoder: &dyn SegmentDecoder,
    name: SegmentName,
    content: &[u8],
    (start, end): (Lsn, Lsn),
) -> Lsn {
    let Some(at) = last_start(decoder, name, content, start, end) else { return start };
    match decoder.search(&StopRule::Lsn { at, inclusive: true }, start, end).feed(name, content) {
        Ok(SearchState::Stop(stop)) => stop.end.align(),
        _ => start,
    }
}

/// Zeros from `length` on.
pub fn cut(content: &mut [u8], length: u64) {
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    content.iter_mut().skip(length).for_each(|byte| *byte = 0);
}
