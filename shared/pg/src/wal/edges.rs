//! What the two edges of a segment say about its neighbors: the sums by which the rest of a crossing record is told from
//! another's, and the marks of a record whose header a boundary cuts.
//!
//! A record is right if the CRC over its body and then the first 20 bytes of its header is the one that the header states. The
//! CRC of two strings one behind the other is the first one's, shifted over the length of the second, plus the second
//! one's, modulo 2. So every segment's share of `CRC + stated CRC` can be computed by itself, and the shares sum up to zero.

use walpoint_base::Lsn;
use walpoint_base::chain::{ChainBegin, ChainEnd, Cut, Due};
use walpoint_base::crossing::{self, RecordPiece};
use walpoint_base::facts::SegmentMarks;

use super::kind::RecordKind;
use super::pending::Pending;
use super::record::{CRC_AT, RECORD_HEADER, RecordHeader, WalRecord};
use crate::bytes;

/// Bytes of a header that may follow in the next segment, at most.
const HEADER_REST: usize = 16;

/// What a segment begins with, as far as it was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    /// `xlp_rem_len` of the first page.
    pub(super) length: u32,
    /// Whether the rest of a record was abandoned before the first record.
    pub(super) overwritten: bool,
    /// Of the rest of the record, once all of it that lies here was read.
    pub(super) rest: Option<Rest>,
}

/// The bytes of a record that a segment begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// Bytes that follow in later segments.
    missing: u32,
    crc: u32,
    /// How many there are, and the first of them.
    len: usize,
    head: RecordPiece,
}

impl Rest {
    /// Of what was taken of a record whose beginning was not read.
    pub(super) fn of(pending: &Pending) -> Self {
        let (crc, len, head) = pending.rest();
        Self { missing: pending.missing(), crc, len, head }
    }

    /// What these bytes contribute, for each [`Cut`] in its order.
    fn sums(&self) -> [u32; 3] {
        [self.sum(0), self.sum(HEADER_REST), self.sum(HEADER_REST - 8)]
    }

    /// What they contribute if the first `header` of them are the end of the record's header.
    fn sum(&self, header: usize) -> u32 {
        let Some(head) = self.head.bytes().get(..header) else { return 0 };
        // The body's CRC, without what is before it.
        let body = self.crc ^ shift(crc32c::crc32c(head), self.len - header);
        let body = shift(body, bytes_of(self.missing) + CRC_AT);
        match header.checked_sub(4) {
            None => body,
            Some(crc_at) => {
                let (covered, stated) = head.split_at(crc_at);
                body ^ crc32c::crc32c(covered) ^ bytes::u32(stated, 0).unwrap_or(0)
            }
        }
    }

    /// What the record is, if these bytes begin with the end of its header. That they do is no chance: the resource manager,
    /// the operation, the zeros behind them and the length of the data have to be right.
    fn marks(&self) -> SegmentMarks {
        let total = u32::try_from(self.len).unwrap_or(u32::MAX).saturating_add(self.missing);
        let mark = |have: usize| {
            let mut raw = [0; RECORD_HEADER];
            let (left, place) = (self.head.bytes().get(..RECORD_HEADER - have)?, raw.get_mut(have..)?);
            place.copy_from_slice(left);
            let total = total.saturating_add(u32::try_from(have).unwrap_or(u32::MAX));
            let header = RecordHeader { total, ..RecordHeader::parse(&raw) };
            let body = self.head.bytes().get(left.len()..)?;
            let (data, headers) = crossing::main_data(body)?;
            let as_long = usize::try_from(total).ok()? == RECORD_HEADER + headers + data;
            let padding = bytes::u16(&raw, CRC_AT - 2)?;
            (padding == 0 && as_long).then(|| RecordKind::may_mark(&header))
        };
        mark(8).unwrap_or_default().or(mark(16).unwrap_or_default())
    }
}

/// The beginning of a segment. `previous`: where its first record points back to.
pub(super) fn begin(carried: &Carried, previous: Option<Lsn>) -> (ChainBegin, SegmentMarks) {
    let begin = ChainBegin {
        previous,
        carried: carried.length,
        overwritten: carried.overwritten,
        rest: carried.rest.map(|rest| rest.sums()),
    };
    // An abandoned record is never replayed.
    let marks = carried.rest.filter(|_| !carried.overwritten).map(|rest| rest.marks());
    (begin, marks.unwrap_or_default())
}

/// What a segment keeps of the record that it begins with the rest of.
pub(super) fn rest(carried: &Carried) -> RecordPiece {
    carried.rest.filter(|_| !carried.overwritten).map(|rest| rest.head).unwrap_or_default()
}

/// What it keeps of its last record, `pending`, which goes on in the next one, if a target may look for that.
pub(super) fn open(pending: &Pending) -> Option<RecordPiece> {
    let may_count = pending.header().is_none_or(|header| RecordKind::is_indexed(&header));
    (pending.start().is_some() && may_count).then(|| pending.first_bytes())
}

/// The end of a segment whose last record is complete. `last`: where it starts, if that is in this segment.
pub(super) fn closed_end(last: Option<Lsn>) -> ChainEnd {
    ChainEnd { last, complete: last, carried: Some(0), due: None }
}

/// The end of a segment whose last record, `pending`, goes on in the next one. `complete`: where the last complete record
/// starts, if that is in this segment.
pub(super) fn open_end(pending: &Pending, complete: Option<Lsn>) -> (ChainEnd, SegmentMarks) {
    let missing = pending.missing();
    let due = match (pending.start(), pending.header()) {
        (None, _) => None,
        (Some(_), Some(header)) => {
            let (raw, body) = pending.read();
            let covered = raw.get(..CRC_AT).unwrap_or(raw);
            let sum = header.crc ^ crc32c::crc32c(covered) ^ shift(body, bytes_of(missing) + CRC_AT);
            Some(Due { cut: Cut::Behind, sum })
        }
        (Some(_), None) => {
            let (raw, _) = pending.read();
            let cut = match raw.len() {
                8 => Some(Cut::At8),
                16 => Some(Cut::At16),
                _ => None,
            };
            let sum = shift(crc32c::crc32c(raw), CRC_AT - raw.len().min(CRC_AT));
            cut.map(|cut| Due { cut, sum })
        }
    };
    let marks =
        pending.header().filter(|_| pending.start().is_some()).map(|header| RecordKind::may_mark(&header));
    (ChainEnd { last: pending.start(), complete, carried: Some(missing), due }, marks.unwrap_or_default())
}

/// What a complete record is.
pub(super) fn marks(record: &WalRecord) -> SegmentMarks {
    match &record.kind {
        RecordKind::TablespaceCreate { .. } => SegmentMarks { tablespace: true, ..SegmentMarks::default() },
        RecordKind::ParameterChange(change) => {
            let minimal = change.wal_level == 0;
            SegmentMarks { parameters: true, minimal, ..SegmentMarks::default() }
        }
        RecordKind::DatabaseCopy(_) => SegmentMarks { database_copy: true, ..SegmentMarks::default() },
        _ => SegmentMarks::default(),
    }
}

/// A CRC after that many zero bytes more, without what zeros by themselves would give.
fn shift(crc: u32, len: usize) -> u32 {
    crc32c::crc32c_combine(crc, 0, len)
}

fn bytes_of(length: u32) -> usize {
    usize::try_from(length).unwrap_or(usize::MAX)
}
