//! Tuples of catalogs that all databases share: which one a record deletes, or changes in place. `DROP DATABASE` does both to that of
//! the database.
//!
//! Sources: `DecodeXLogRecord` in `src/backend/access/transam/xlogreader.c`, `src/include/access/heapam_xlog.h`.

use walpoint_base::PgMajor;

use super::kind::RecordKind;
use super::record::RecordHeader;
use crate::bytes;

/// Where a tuple lies.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SharedTuple {
    /// The number of the relation's file.
    pub relation: u32,
    /// The block in it.
    pub block: u32,
    /// The item in that, from 1 on.
    pub offset: u16,
}

/// What was done to a tuple.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TupleChange {
    /// It was overwritten, for all transactions at once.
    InPlace,
    /// It was deleted.
    Deleted,
}

/// `XLOG_HEAP_OPMASK`.
const OPERATION: u8 = 0x70;

/// `XLOG_HEAP_DELETE`.
const DELETE: u8 = 0x10;

/// `XLOG_HEAP_INPLACE`.
const IN_PLACE: u8 = 0x70;

/// Headers, images of two of the largest blocks, and what is said of the tuple. The other block is one of the visibility map, which
/// newer minor versions name where the page was all-visible.
const MAX: u32 = (64 << 10) + 1024;

/// The tablespace of what all databases share: `GLOBALTABLESPACE_OID`.
const SHARED: u32 = 1664;

/// Whether a record with this header may be one.
pub(super) fn may_be(header: &RecordHeader) -> bool {
    matches!(header.info & OPERATION, DELETE | IN_PLACE) && header.total <= MAX
}

/// Of a record that deletes a tuple or changes it in place, if the tuple is one of a shared catalog.
pub(super) fn decode(header: &RecordHeader, body: &[u8], major: PgMajor) -> Option<RecordKind> {
    // What stands before the offset in xl_heap_delete is the transaction.
    let (change, offset_at) = match header.info & OPERATION {
        DELETE => (TupleChange::Deleted, 4),
        IN_PLACE => (TupleChange::InPlace, 0),
        _ => return None,
    };
    let (at, relation, block) = first_block(body, major)?;
    let offset = bytes::u16(main_data(body, at, major)?, offset_at)?;
    Some(RecordKind::SharedTuple(SharedTuple { relation, block, offset }, change))
}

/// The end of the header of a record's first block, with the file and the block's number; `None` if it is none of a shared relation.
fn first_block(body: &[u8], major: PgMajor) -> Option<(usize, u32, u32)> {
    if *body.first()? != 0 {
        return None;
    }
    let at = behind_image(body, 0, major)?;
    let (tablespace, relation) = (bytes::u32(body, at)?, bytes::u32(body, at + 8)?);
    (tablespace == SHARED).then_some((at + 16, relation, bytes::u32(body, at + 12)?))
}

/// Where the header of a block, which begins there, goes on behind what it says of an image.
fn behind_image(body: &[u8], begins: usize, major: PgMajor) -> Option<usize> {
    const HAS_IMAGE: u8 = 0x10;
    const HAS_HOLE: u8 = 0x01;
    let compressed: u8 = if major.get() >= 15 { 0x1C } else { 0x02 };
    let at = begins + 4;
    if *body.get(begins + 1)? & HAS_IMAGE == 0 {
        return Some(at);
    }
    let info = *body.get(at + 4)?;
    Some(at + if info & HAS_HOLE != 0 && info & compressed != 0 { 7 } else { 5 })
}

/// The main data, at the end of the body, whose length is announced behind the headers of all blocks.
fn main_data(body: &[u8], mut at: usize, major: PgMajor) -> Option<&[u8]> {
    const LAST_BLOCK: u8 = 32;
    const SAME_RELATION: u8 = 0x80;
    const SHORT: u8 = 255;
    const LONG: u8 = 254;
    const ORIGIN: u8 = 253;
    const TOP_LEVEL: u8 = 252;
    loop {
        let length = match *body.get(at)? {
            SHORT => usize::from(*body.get(at + 1)?),
            LONG => usize::try_from(bytes::u32(body, at + 1)?).ok()?,
            ORIGIN => {
                at += 3;
                continue;
            }
            TOP_LEVEL => {
                at += 5;
                continue;
            }
            0..=LAST_BLOCK => {
                let named = if *body.get(at + 1)? & SAME_RELATION == 0 { 12 } else { 0 };
                at = behind_image(body, at, major)? + named + 4;
                continue;
            }
            _ => return None,
        };
        return body.get(body.len().checked_sub(length)?..);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixtures::{header, shared_tuple};
    use super::super::record::Rmgr;
    use super::*;

    #[test]
    fn only_tuples_of_shared_catalogs_are_told() {
        let decode =
            |info, body: &[u8]| decode(&header(Rmgr::HEAP, info, 740), body, PgMajor::new(17).unwrap());
        let tuple = SharedTuple { relation: 1262, block: 3, offset: 7 };
        let (deleted, in_place) = (shared_tuple(tuple, true), shared_tuple(tuple, false));
        assert_eq!(decode(0x10, &deleted), Some(RecordKind::SharedTuple(tuple, TupleChange::Deleted)));
        assert_eq!(decode(0x70, &in_place), Some(RecordKind::SharedTuple(tuple, TupleChange::InPlace)));
        assert_eq!(decode(0x00, &deleted), None, "an insertion");
        let mut other = deleted.clone();
        other[4] = 0x7F;
        assert_eq!(decode(0x10, &other), None, "another tablespace");
        // An image of the page, with a hole, is announced before the relation, and lies before the main data.
        let (headers, main) = in_place[4..].split_at(18);
        let image = [&[0, 0x10, 0, 0, 100, 0, 24, 0, 0x01][..], headers, &[9; 100][..], main].concat();
        assert_eq!(decode(0x70, &image), Some(RecordKind::SharedTuple(tuple, TupleChange::InPlace)));
        // A page that was all-visible: the block of the visibility map follows, of the same relation, or named with an image.
        let (headers, main) = deleted.split_at(20);
        let same = [headers, &[1, 0x82, 0, 0, 0, 0, 0, 0][..], main].concat();
        let (name, block) = (&headers[4..16], [0; 4]);
        let named = [
            headers,
            &[1, 0x12, 0, 0, 100, 0, 24, 0, 0x01][..],
            name,
            &block[..],
            &[255, 8][..],
            &[9; 100][..],
            &main[2..],
        ]
        .concat();
        for body in [same, named] {
            assert_eq!(decode(0x10, &body), Some(RecordKind::SharedTuple(tuple, TupleChange::Deleted)));
        }
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(info: u8, body: Vec<u8>, major in 13u32..=19) {
            let _kind = decode(&header(Rmgr::HEAP, info, 740), &body, PgMajor::new(major).unwrap());
        }
    }
}
