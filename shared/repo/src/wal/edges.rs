//! What a segment's edges say about its neighbors, as bytes: the same in the segment's header, in its entry of the index
//! and, for the first and the last one, in the summary of a group. `FORMAT.md`, chapter "WAL".

use walpoint_base::Lsn;
use walpoint_base::chain::{ChainBegin, ChainEnd, ChainFacts, Cut, Due};
use walpoint_base::crossing::{CrossingFacts, PIECE, RecordPiece};
use walpoint_base::facts::SegmentMarks;
use walpoint_storage::object::bytes::Fields;

/// Bytes of both edges.
pub(crate) const EDGES: usize = 40;

/// Bytes of what is kept of the records that cross both edges.
pub(crate) const CROSSING: usize = 2 * (1 + PIECE);

const TABLESPACE: u32 = 16;
const PARAMETERS: u32 = 32;
const MINIMAL: u32 = 64;
const PREVIOUS: u32 = 128;
const OVERWRITTEN: u32 = 256;
const REST: u32 = 512;
const END: u32 = 1024;
const DUE: u32 = 2048;
const CUT_AT_8: u32 = 4096;
const CUT_AT_16: u32 = 8192;
const DATABASE_COPY: u32 = 16384;

/// The flags that belong to the edges.
pub(crate) const EDGE_FLAGS: u32 = PREVIOUS | OVERWRITTEN | REST | END | DUE | CUT_AT_8 | CUT_AT_16;

/// The flags of what a restore has to know of.
pub(crate) const MARK_FLAGS: u32 = TABLESPACE | PARAMETERS | MINIMAL | DATABASE_COPY;

fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

pub(crate) fn mark_flags(marks: SegmentMarks) -> u32 {
    flag(marks.tablespace, TABLESPACE)
        | flag(marks.parameters, PARAMETERS)
        | flag(marks.minimal, MINIMAL)
        | flag(marks.database_copy, DATABASE_COPY)
}

/// The marks that flags say.
pub(crate) fn marks(flags: u32) -> SegmentMarks {
    SegmentMarks {
        tablespace: flags & TABLESPACE != 0,
        parameters: flags & PARAMETERS != 0,
        minimal: flags & MINIMAL != 0,
        database_copy: flags & DATABASE_COPY != 0,
    }
}

/// The flags of the edges.
pub(crate) fn edge_flags(chain: &ChainFacts) -> u32 {
    let cut = match chain.end.due.map(|due| due.cut) {
        None => 0,
        Some(Cut::Behind) => DUE,
        Some(Cut::At8) => DUE | CUT_AT_8,
        Some(Cut::At16) => DUE | CUT_AT_16,
    };
    flag(chain.begin.previous.is_some(), PREVIOUS)
        | flag(chain.begin.overwritten, OVERWRITTEN)
        | flag(chain.begin.rest.is_some(), REST)
        | flag(chain.end.carried.is_some(), END)
        | cut
}

/// Appends [`EDGES`] bytes. Where the last record starts is not among them.
pub(crate) fn encode_edges(chain: &ChainFacts, out: &mut Vec<u8>) {
    let ChainFacts { begin, end } = chain;
    for lsn in [begin.previous, end.complete] {
        out.extend_from_slice(&lsn.unwrap_or_default().0.to_le_bytes());
    }
    let [behind, at_8, at_16] = begin.rest.unwrap_or_default();
    let due = end.due.map_or(0, |due| due.sum);
    for field in [begin.carried, end.carried.unwrap_or(0), behind, at_8, at_16, due] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

/// Reads [`EDGES`] bytes, with their flags. `last`: where the last record starts. `None` if no edges can be so.
pub(crate) fn decode_edges(f: &mut Fields<'_>, flags: u32, last: Option<Lsn>) -> Option<ChainFacts> {
    let (previous, complete) = (Lsn(f.u64()?), Lsn(f.u64()?));
    let (carried, left) = (f.u32()?, f.u32()?);
    let rest = [f.u32()?, f.u32()?, f.u32()?];
    let sum = f.u32()?;
    let set = |bit: u32| flags & bit != 0;
    let cut = match (set(DUE), set(CUT_AT_8), set(CUT_AT_16)) {
        (false, false, false) => None,
        (true, false, false) => Some(Cut::Behind),
        (true, true, false) => Some(Cut::At8),
        (true, false, true) => Some(Cut::At16),
        _ => return None,
    };
    Some(ChainFacts {
        begin: ChainBegin {
            previous: set(PREVIOUS).then_some(previous),
            carried,
            overwritten: set(OVERWRITTEN),
            rest: set(REST).then_some(rest),
        },
        end: ChainEnd {
            last: last.filter(|_| set(END)),
            complete: Some(complete).filter(|lsn| lsn.is_valid()),
            carried: set(END).then_some(left),
            due: cut.map(|cut| Due { cut, sum }),
        },
    })
}

/// Appends [`CROSSING`] bytes: for each edge a length and that many bytes, filled up with zeros. The first length is one more
/// than there are bytes, and 0 where there is no record.
pub(crate) fn encode_crossing(crossing: &CrossingFacts, out: &mut Vec<u8>) {
    let CrossingFacts { open, rest } = crossing;
    let open = open.as_ref().map(RecordPiece::bytes);
    for (length, bytes) in [
        (open.map_or(0, |bytes| bytes.len() + 1), open.unwrap_or_default()),
        (rest.bytes().len(), rest.bytes()),
    ] {
        let end = out.len() + 1 + PIECE;
        out.push(u8::try_from(length).unwrap_or(u8::MAX));
        out.extend_from_slice(bytes);
        out.resize(end, 0);
    }
}

/// Reads [`CROSSING`] bytes. `None` if no pieces can be so.
pub(crate) fn decode_crossing(f: &mut Fields<'_>) -> Option<CrossingFacts> {
    let mut piece = || {
        let [length, bytes @ ..] = f.array::<{ 1 + PIECE }>()?;
        Some((usize::from(length), bytes))
    };
    let (open_length, open) = piece()?;
    let (rest_length, rest) = piece()?;
    let open = match open_length.checked_sub(1) {
        Some(length) => Some(RecordPiece::of(open.get(..length)?)),
        None => None,
    };
    Some(CrossingFacts { open, rest: RecordPiece::of(rest.get(..rest_length)?) })
}
