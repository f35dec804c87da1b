//! What two segments know together of the record that crosses the boundary between them.
//!
//! A segment is read alone when it is archived, so it cannot say what a record means of which it holds a part. It keeps the
//! first bytes of that part instead: of the last record, if that goes on in the next segment, and of what it begins with
//! itself. Both pieces together show the kind of the record, its time and its transaction, as far as recovery targets
//! depend on them. What the pieces do not show is [`Crossing::Unknown`], never guessed.
//!
//! Sources: `src/include/access/xlogrecord.h`, `src/include/access/xact.h`, `src/include/catalog/pg_control.h` of PostgreSQL.

use std::fmt;

use crate::PgTimestamp;
use crate::chain::ChainBegin;

/// Bytes that are kept of a part of a record: enough for the header, what may precede the data, the time, and the id of a
/// prepared transaction of which nothing else is told.
pub const PIECE: usize = 63;

/// Length of a record's header: `SizeOfXLogRecord`.
const RECORD_HEADER: usize = 24;

/// The first bytes of a part of a record, at most [`PIECE`]; all of the part if it is shorter. None: nothing is known of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RecordPiece {
    len: u8,
    bytes: [u8; PIECE],
}

impl RecordPiece {
    /// Of a part that begins so.
    pub fn of(part: &[u8]) -> Self {
        let mut piece = Self::default();
        piece.extend(part);
        piece
    }

    /// Adds the bytes that follow in the part, as far as there is room.
    pub fn extend(&mut self, part: &[u8]) {
        for (to, from) in self.bytes.iter_mut().skip(usize::from(self.len)).zip(part) {
            *to = *from;
            self.len += 1;
        }
    }

    /// The bytes that are known.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }
}

impl Default for RecordPiece {
    fn default() -> Self {
        Self { len: 0, bytes: [0; PIECE] }
    }
}

impl fmt::Debug for RecordPiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece({:02X?})", self.bytes())
    }
}

/// What a segment, or a run of segments, keeps of the records that cross its edges.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CrossingFacts {
    /// The beginning of its last record, if that starts here, ends in a following segment, and may be a commit, abort or
    /// prepare record or a restore point. `None` only where no record crosses the end, or its header is readable here and
    /// says otherwise.
    pub open: Option<RecordPiece>,
    /// The beginning of the bytes that belong to a record of the segment before.
    pub rest: RecordPiece,
}

impl CrossingFacts {
    /// Of a segment that cannot be read.
    pub const UNKNOWN: Self = {
        let nothing = RecordPiece { len: 0, bytes: [0; PIECE] };
        Self { open: Some(nothing), rest: nothing }
    };
}

/// What a record is that crosses the end of a segment, as far as recovery targets are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crossing {
    /// None that a target looks for, or one that was never completed.
    Nothing,
    /// The commit or abort of a transaction, prepared or not.
    End {
        /// When.
        time: PgTimestamp,
        /// The transaction; `None` if the pieces do not show it.
        xid: Option<u32>,
    },
    /// A restore point; its name, up to a zero byte, begins so.
    Point(RecordPiece),
    /// Only decoding both segments tells.
    Unknown,
}

impl Crossing {
    /// The record of which a segment, or a run of segments, has the beginning `open`, and the next one `next`, with `begin`
    /// its first edge.
    pub fn between(open: Option<&RecordPiece>, next: &CrossingFacts, begin: &ChainBegin) -> Self {
        let Some(open) = open else { return Self::Nothing };
        // Abandoned: recovery reads on behind it as if it had never begun.
        if begin.overwritten {
            return Self::Nothing;
        }
        let mut record = [0; 2 * PIECE];
        let rest = if open.bytes().len() < PIECE { next.rest.bytes() } else { &[] };
        let length = open.bytes().len() + rest.len();
        record.iter_mut().zip(open.bytes().iter().chain(rest)).for_each(|(to, from)| *to = *from);
        let record = record.get(..length).unwrap_or(&record);
        Self::decode(record).unwrap_or(Self::Unknown)
    }

    /// When the transaction ended, if it is the end of one.
    pub fn time(&self) -> Option<PgTimestamp> {
        match self {
            Self::End { time, .. } => Some(*time),
            _ => None,
        }
    }

    /// Whether it may be the restore point of that name.
    pub fn may_be_named(&self, name: &str) -> bool {
        let Self::Point(known) = self else { return *self == Self::Unknown };
        let mut parts = known.bytes().splitn(2, |&b| b == 0);
        let known = parts.next().unwrap_or_default();
        match parts.next() {
            Some(_) => name.as_bytes() == known,
            None => name.as_bytes().starts_with(known),
        }
    }

    /// `None` if these bytes are not enough.
    fn decode(record: &[u8]) -> Option<Self> {
        const XLOG: u8 = 0;
        const XACT: u8 = 1;
        const RESTORE_POINT: u8 = 0x70;
        const COMMIT: u8 = 0x00;
        const ABORT: u8 = 0x20;
        const COMMIT_PREPARED: u8 = 0x30;
        const ABORT_PREPARED: u8 = 0x40;
        let (header, body) = record.split_at_checked(RECORD_HEADER)?;
        let (info, rmgr) = (*header.get(16)?, *header.get(17)?);
        let data = || body.get(main_data(body)?.1..);
        let time = || data().and_then(|data| Some(PgTimestamp(i64::from_le_bytes(*data.first_chunk()?))));
        Some(match (rmgr, info & 0x70) {
            (XACT, COMMIT | ABORT) => Self::End { time: time()?, xid: u32_at(header, 4) },
            (XACT, COMMIT_PREPARED | ABORT_PREPARED) => {
                Self::End { time: time()?, xid: data().and_then(|data| prepared(info, data)) }
            }
            (XLOG, _) if info & 0xF0 == RESTORE_POINT => Self::Point(RecordPiece::of(data()?.get(8..)?)),
            _ => Self::Nothing,
        })
    }
}

/// The id of the prepared transaction that ends, if its record has no lists before it.
fn prepared(info: u8, data: &[u8]) -> Option<u32> {
    const HAS_INFO: u8 = 0x80;
    const HAS_DATABASE: u32 = 1 << 0;
    /// Subtransactions, relations, invalidations, dropped statistics.
    const HAS_LISTS: u32 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 8;
    const HAS_TWOPHASE: u32 = 1 << 4;
    let flags = u32_at(data, 8).filter(|flags| info & HAS_INFO != 0 && flags & HAS_TWOPHASE != 0)?;
    if flags & HAS_LISTS != 0 {
        return None;
    }
    u32_at(data, if flags & HAS_DATABASE != 0 { 20 } else { 12 })
}

/// The length of the main data as a record's body states it before the data, and where the data begins in the body. `None` if
/// the body has no main data, refers to blocks, or ends too early.
pub fn main_data(body: &[u8]) -> Option<(usize, usize)> {
    const SHORT: u8 = 255;
    const LONG: u8 = 254;
    const ORIGIN: u8 = 253;
    const TOPLEVEL_XID: u8 = 252;
    let mut at = 0;
    loop {
        match *body.get(at)? {
            SHORT => return Some((usize::from(*body.get(at + 1)?), at + 2)),
            LONG => return Some((usize::try_from(u32_at(body, at + 1)?).ok()?, at + 5)),
            ORIGIN => at += 3,
            TOPLEVEL_XID => at += 5,
            _ => return None,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Records that cross from one segment of a group to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Untold {
    /// Restore points.
    pub points: u32,
    /// Transaction ends whose transaction is not known.
    pub xids: u32,
    /// Those of which nothing is known.
    pub unknown: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(rmgr: u8, info: u8, xid: u32, body: &[u8]) -> Vec<u8> {
        let mut record = vec![0; RECORD_HEADER];
        record[4..8].copy_from_slice(&xid.to_le_bytes());
        (record[16], record[17]) = (info, rmgr);
        record.extend_from_slice(body);
        record
    }

    fn crossing(record: &[u8], at: usize) -> Crossing {
        let next = CrossingFacts { open: None, rest: RecordPiece::of(&record[at..]) };
        Crossing::between(Some(&RecordPiece::of(&record[..at])), &next, &ChainBegin::default())
    }

    #[test]
    fn a_commit_is_known_wherever_it_is_cut() {
        let data: Vec<u8> = 4711i64.to_le_bytes().into_iter().chain([0; 40]).collect();
        let short: Vec<u8> = [255, 48].into_iter().chain(data.clone()).collect();
        let long: Vec<u8> = [254, 48, 0, 0, 0].into_iter().chain(data.clone()).collect();
        let origin: Vec<u8> =
            [253, 1, 0, 252, 1, 0, 0, 0, 254, 48, 0, 0, 0].into_iter().chain(data).collect();
        for body in [short, long, origin] {
            let record = record(1, 0x00, 77, &body);
            for at in (8..record.len()).step_by(8) {
                let end = Crossing::End { time: PgTimestamp(4711), xid: Some(77) };
                assert_eq!(crossing(&record, at), end, "cut at {at}");
            }
        }
    }

    #[test]
    fn what_the_pieces_do_not_show_is_unknown() {
        let commit = record(1, 0x00, 77, &[255, 8, 1, 0, 0, 0, 0, 0, 0, 0]);
        for at in [8, 16, 24, 32] {
            let open = RecordPiece::of(&commit[..at]);
            let nothing = CrossingFacts::default();
            let found = Crossing::between(Some(&open), &nothing, &ChainBegin::default());
            assert_eq!(found, Crossing::Unknown, "{at}");
            let abandoned = ChainBegin { overwritten: true, ..ChainBegin::default() };
            assert_eq!(Crossing::between(Some(&open), &nothing, &abandoned), Crossing::Nothing);
        }
        assert_eq!(crossing(&record(10, 0x00, 5, &[0; 60]), 16), Crossing::Nothing);
    }

    #[test]
    fn restore_points_are_told_by_their_names() {
        let mut body = vec![255, 72];
        body.extend(9i64.to_le_bytes());
        body.extend(b"nightly\0");
        body.resize(74, 0);
        let record = record(0, 0x70, 0, &body);
        for at in (8..96).step_by(8) {
            let point = crossing(&record, at);
            assert!(point.may_be_named("nightly"), "{at} {point:?}");
            assert!(!point.may_be_named("daily"), "{at} {point:?}");
            assert!(at > 40 || !point.may_be_named("nightly2"), "{at} {point:?}");
        }
    }
}
