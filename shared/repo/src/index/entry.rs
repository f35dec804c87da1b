//! What the index keeps of a segment, and of a group of segments.

use walpoint_base::chain::{ChainEnd, ChainFacts};
use walpoint_base::crossing::{Crossing, CrossingFacts, RecordPiece, Untold};
use walpoint_base::facts::{HistoryHash, SegmentMarks, TransactionRange, xid_precedes};
use walpoint_base::{Lsn, PgTimestamp, SegmentNo, SegmentSize, TimelineId};
use walpoint_storage::object::ContentHash;
use walpoint_storage::object::bytes::Fields;

use super::chain::ChainWalk;
use crate::wal::{
    CROSSING, EDGE_FLAGS, EDGES, MARK_FLAGS, SealedSegment, WalHeader, decode_crossing, decode_edges,
    edge_flags, encode_crossing, encode_edges, mark_flags, marks,
};

/// Bytes of a segment's entry.
pub const ENTRY: usize = 128 + EDGES + CROSSING;

/// Bytes of a group's summary.
pub const SUMMARY: usize = 124 + EDGES + CROSSING;

const PRESENT: u32 = 1;
const SWITCHED: u32 = 2;
const DAMAGED: u32 = 4;
const KNOWN: u32 = PRESENT | SWITCHED | DAMAGED | EDGE_FLAGS | MARK_FLAGS;

/// What the index keeps of a segment that is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentEntry {
    /// Bytes that it takes in the repository.
    pub stored: u64,
    /// Bytes before the zero tail.
    pub content_len: u64,
    /// Where its first record starts.
    pub first_record: Option<Lsn>,
    /// Where its last record starts.
    pub last_record: Option<Lsn>,
    /// The end of the last record that ends in it; its start if none does.
    pub end: Lsn,
    /// Records that start in it.
    pub records: u32,
    /// Named restore points in it.
    pub restore_points: u32,
    /// Its commit, abort and prepared-transaction records.
    pub transactions: Option<TransactionRange>,
    /// Whether it ends with a segment switch.
    pub switched: bool,
    /// Whether it was stored although damaged: recovery cannot pass it.
    pub damaged: bool,
    /// What it keeps of the records that cross its edges.
    pub crossing: CrossingFacts,
    /// What its edges say about its neighbors.
    pub chain: ChainFacts,
    /// Records in it that a restore has to know of.
    pub marks: SegmentMarks,
    /// The history of its timeline under which it was stored.
    pub history: HistoryHash,
    /// The hash of all its bytes; keyed in an encrypted repository.
    pub hash: ContentHash,
}

impl SegmentEntry {
    /// From a segment's header and the bytes it takes.
    pub fn of(header: &WalHeader, stored: u64) -> Self {
        Self {
            stored,
            content_len: header.content_len,
            first_record: header.first_record,
            last_record: header.last_record,
            end: header.end,
            records: header.records,
            restore_points: header.restore_points,
            transactions: header.transactions,
            switched: header.switched,
            damaged: header.damaged,
            crossing: header.crossing,
            chain: header.chain,
            marks: header.marks,
            history: header.history,
            hash: header.hash,
        }
    }

    /// Appends [`ENTRY`] bytes; all zero for a segment that is not there.
    pub(super) fn encode(entry: Option<&Self>, out: &mut Vec<u8>) {
        let Some(e) = entry else {
            out.resize(out.len() + ENTRY, 0);
            return;
        };
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = PRESENT
            | flag(e.switched, SWITCHED)
            | flag(e.damaged, DAMAGED)
            | mark_flags(e.marks)
            | edge_flags(&e.chain);
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&e.records.to_le_bytes());
        let lsn = |lsn: Option<Lsn>| lsn.unwrap_or_default().0;
        for field in [e.stored, e.content_len, lsn(e.first_record), lsn(e.last_record), e.end.0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&e.restore_points.to_le_bytes());
        encode_transactions(e.transactions, out);
        out.extend_from_slice(&e.hash.0[..]);
        out.extend_from_slice(&e.history.0);
        encode_edges(&e.chain, out);
        encode_crossing(&e.crossing, out);
    }

    /// Reads [`ENTRY`] bytes. The outer `None` means that no segment `number` can be so.
    pub(super) fn decode(f: &mut Fields<'_>, number: SegmentNo, size: SegmentSize) -> Option<Option<Self>> {
        let flags = f.u32()?;
        let records = f.u32()?;
        let (stored, content_len) = (f.u64()?, f.u64()?);
        let mut lsn = || Some(Lsn(f.u64()?));
        let (first_record, last_record, end) = (lsn()?, lsn()?, lsn()?);
        let restore_points = f.u32()?;
        let transactions = decode_transactions(f)?;
        let hash = ContentHash(f.array()?);
        let history = HistoryHash(f.array()?);
        let chain = decode_edges(f, flags, Some(last_record).filter(|lsn| lsn.is_valid()))?;
        let crossing = decode_crossing(f)?;
        if flags & PRESENT == 0 {
            return Some(None);
        }
        let inside = |lsn: Lsn| number.start(size) <= lsn && lsn <= number.end(size);
        let valid = |lsn: Lsn| Some(lsn).filter(|l| l.is_valid());
        let sound = flags & !KNOWN == 0
            && content_len <= size.bytes()
            && valid(first_record).is_none_or(inside)
            && valid(last_record).is_none_or(inside);
        sound.then_some(Some(Self {
            stored,
            content_len,
            first_record: valid(first_record),
            last_record: valid(last_record),
            end,
            records,
            restore_points,
            transactions,
            switched: flags & SWITCHED != 0,
            damaged: flags & DAMAGED != 0,
            crossing,
            chain,
            marks: marks(flags),
            history,
            hash,
        }))
    }
}

impl SealedSegment {
    /// What the index keeps of it if it is stored anew; `None` for a segment in parts, of which it is not known yet how many
    /// bytes they take.
    pub fn entry(&self) -> Option<SegmentEntry> {
        self.stored().map(|stored| SegmentEntry::of(self.header(), stored))
    }
}

/// What a directory keeps of a group: enough to pass over it without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupSummary {
    /// The generation that this describes.
    pub generation: u32,
    /// The lowest segment that is there.
    pub first: SegmentNo,
    /// The highest segment that is there.
    pub last: SegmentNo,
    /// How many are there.
    pub present: u32,
    /// How many of them are damaged.
    pub damaged: u32,
    /// Records that cross from one of them to the next, of which `transactions` does not say all.
    pub untold: Untold,
    /// How many have records that a restore has to know of: each kind by itself.
    pub marks: MarkCounts,
    /// How many do not continue the segment before them in the group ([`ChainWalk`]).
    pub breaks: u32,
    /// How many named restore points are in them.
    pub restore_points: u32,
    /// Bytes that they take in the repository.
    pub stored: u64,
    /// Where the last record of the highest segment that has one starts.
    pub last_record: Option<Lsn>,
    /// The transaction ends of all of them, those included that cross from one of them to the next.
    pub transactions: Option<TransactionRange>,
    /// What the first and the last one keep of the records that cross the edges of the group.
    pub crossing: CrossingFacts,
    /// The beginning of the first one and, if all are there and sound, the end of all of them.
    pub chain: ChainFacts,
    /// The history under which the last one was stored of which that is known.
    pub history: HistoryHash,
}

/// How many segments have records that a restore has to know of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MarkCounts {
    /// [`SegmentMarks::tablespace`].
    pub tablespace: u32,
    /// [`SegmentMarks::parameters`].
    pub parameters: u32,
    /// [`SegmentMarks::minimal`].
    pub minimal: u32,
}

/// The crossing records of a group.
#[derive(Default)]
struct Crossings {
    untold: Untold,
    /// What the last segment keeps of its last record.
    open: Option<RecordPiece>,
    /// The times of transaction ends whose transaction is not known.
    times: Option<(PgTimestamp, PgTimestamp)>,
}

impl Crossings {
    /// The next segment, and the transactions before it.
    fn segment(
        &mut self,
        entry: &SegmentEntry,
        transactions: Option<TransactionRange>,
    ) -> Option<TransactionRange> {
        let open = std::mem::replace(&mut self.open, entry.crossing.open);
        match Crossing::between(open.as_ref(), &entry.crossing, &entry.chain.begin) {
            Crossing::Nothing => {}
            Crossing::End { time, xid: Some(xid) } => {
                return Some(TransactionRange::add(transactions, time, xid));
            }
            Crossing::End { time, xid: None } => {
                self.untold.xids += 1;
                let (earliest, latest) = self.times.unwrap_or((time, time));
                self.times = Some((earliest.min(time), latest.max(time)));
            }
            Crossing::Point(_) => self.untold.points += 1,
            Crossing::Unknown => self.untold.unknown += 1,
        }
        transactions
    }

    /// The transactions with all times. Without any transaction that is known nothing has a time.
    fn finish(&mut self, transactions: Option<TransactionRange>) -> Option<TransactionRange> {
        match (transactions, self.times) {
            (Some(range), Some((earliest, latest))) => Some(TransactionRange {
                earliest: range.earliest.min(earliest),
                latest: range.latest.max(latest),
                ..range
            }),
            (None, Some(_)) => {
                self.untold.unknown += self.untold.xids;
                None
            }
            (range, None) => range,
        }
    }
}

impl MarkCounts {
    fn add(&mut self, marks: SegmentMarks) {
        self.tablespace += u32::from(marks.tablespace);
        self.parameters += u32::from(marks.parameters);
        self.minimal += u32::from(marks.minimal);
    }
}

impl GroupSummary {
    /// Of the entries of a group, in order; `None` if nothing is there.
    pub fn of<'a>(
        generation: u32,
        entries: impl Iterator<Item = (SegmentNo, &'a SegmentEntry)>,
    ) -> Option<Self> {
        let (mut summary, mut walk): (Option<Self>, _) = (None, ChainWalk::new());
        let mut crossings = Crossings::default();
        for (number, entry) in entries {
            let s = summary.get_or_insert(Self {
                generation,
                first: number,
                last: number,
                present: 0,
                damaged: 0,
                untold: Untold::default(),
                crossing: entry.crossing,
                marks: MarkCounts::default(),
                breaks: 0,
                restore_points: 0,
                stored: 0,
                last_record: None,
                transactions: None,
                chain: ChainFacts { begin: entry.chain.begin, ..ChainFacts::default() },
                history: HistoryHash::NONE,
            });
            if s.last.next() != number {
                crossings.open = None;
            }
            s.last = number;
            s.present += 1;
            s.damaged += u32::from(entry.damaged);
            s.restore_points = s.restore_points.saturating_add(entry.restore_points);
            s.stored = s.stored.saturating_add(entry.stored);
            s.last_record = entry.last_record.or(s.last_record);
            s.transactions = join(crossings.segment(entry, s.transactions), entry.transactions);
            s.marks.add(entry.marks);
            // Which timeline it is makes no difference: all are of one.
            s.breaks += u32::from(walk.segment(TimelineId::FIRST, number, entry).is_some());
            s.chain.end = walk.end();
            if entry.history != HistoryHash::NONE {
                s.history = entry.history;
            }
        }
        if let Some(s) = &mut summary {
            s.transactions = crossings.finish(s.transactions);
            (s.crossing.open, s.untold) = (crossings.open, crossings.untold);
        }
        // Behind a gap nothing is passed on.
        if let Some(s) = summary.as_mut().filter(|s| !s.is_plain_run()) {
            s.chain.end = ChainEnd::UNKNOWN;
        }
        summary
    }

    /// Whether all segments from the first to the last are there and sound: no entry has to be read to know them.
    pub fn is_plain_run(&self) -> bool {
        u64::from(self.present) == self.last.0 - self.first.0 + 1 && self.damaged == 0
    }

    /// Appends [`SUMMARY`] bytes; all zero for a group without segments.
    pub(super) fn encode(summary: Option<&Self>, out: &mut Vec<u8>) {
        let Some(s) = summary else {
            out.resize(out.len() + SUMMARY, 0);
            return;
        };
        let MarkCounts { tablespace, parameters, minimal } = s.marks;
        let Untold { points, xids, unknown } = s.untold;
        let flags = edge_flags(&s.chain);
        for field in [
            s.generation,
            s.present,
            s.damaged,
            s.restore_points,
            tablespace,
            parameters,
            minimal,
            s.breaks,
            flags,
            points,
            xids,
            unknown,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [s.first.0, s.last.0, s.stored, s.last_record.unwrap_or_default().0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        encode_transactions(s.transactions, out);
        out.extend_from_slice(&s.history.0);
        encode_edges(&s.chain, out);
        encode_crossing(&s.crossing, out);
    }

    /// Reads [`SUMMARY`] bytes. The outer `None` means that `group` cannot be so.
    pub(super) fn decode(f: &mut Fields<'_>, group: u64) -> Option<Option<Self>> {
        let (generation, present, damaged) = (f.u32()?, f.u32()?, f.u32()?);
        let restore_points = f.u32()?;
        let marks = MarkCounts { tablespace: f.u32()?, parameters: f.u32()?, minimal: f.u32()? };
        let (breaks, flags) = (f.u32()?, f.u32()?);
        let untold = Untold { points: f.u32()?, xids: f.u32()?, unknown: f.u32()? };
        let (first, last) = (SegmentNo(f.u64()?), SegmentNo(f.u64()?));
        let (stored, last_record) = (f.u64()?, Lsn(f.u64()?));
        let transactions = decode_transactions(f)?;
        let history = HistoryHash(f.array()?);
        let last_record = Some(last_record).filter(|l| l.is_valid());
        let chain = decode_edges(f, flags, last_record)?;
        let crossing = decode_crossing(f)?;
        if present == 0 {
            return Some(None);
        }
        let sound = flags & !EDGE_FLAGS == 0
            && super::first_of(group) <= first
            && first <= last
            && last <= super::last_of(group)
            && u64::from(present) <= last.0 - first.0 + 1;
        sound.then_some(Some(Self {
            generation,
            first,
            last,
            present,
            damaged,
            untold,
            crossing,
            marks,
            breaks,
            restore_points,
            stored,
            last_record,
            transactions,
            chain,
            history,
        }))
    }
}

/// 28 bytes: count, lowest xid, highest xid, earliest time, latest time.
fn encode_transactions(range: Option<TransactionRange>, out: &mut Vec<u8>) {
    let (count, lowest, highest, earliest, latest) =
        range.map_or((0, 0, 0, 0, 0), |r| (r.count, r.lowest_xid, r.highest_xid, r.earliest.0, r.latest.0));
    for field in [count, lowest, highest] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for field in [earliest, latest] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

fn decode_transactions(f: &mut Fields<'_>) -> Option<Option<TransactionRange>> {
    let (count, lowest_xid, highest_xid) = (f.u32()?, f.u32()?, f.u32()?);
    let (earliest, latest) = (PgTimestamp(f.i64()?), PgTimestamp(f.i64()?));
    let range = TransactionRange { count, earliest, latest, lowest_xid, highest_xid };
    Some((count > 0).then_some(range))
}

/// The range of both, in the circular order of xids.
pub fn join(a: Option<TransactionRange>, b: Option<TransactionRange>) -> Option<TransactionRange> {
    let (Some(a), Some(b)) = (a, b) else { return a.or(b) };
    let lower = xid_precedes(b.lowest_xid, a.lowest_xid);
    let higher = xid_precedes(a.highest_xid, b.highest_xid);
    Some(TransactionRange {
        count: a.count.saturating_add(b.count),
        earliest: a.earliest.min(b.earliest),
        latest: a.latest.max(b.latest),
        lowest_xid: if lower { b.lowest_xid } else { a.lowest_xid },
        highest_xid: if higher { b.highest_xid } else { a.highest_xid },
    })
}
