//! Tuples of catalogs that all databases share: which one a record deletes, or changes in place. `DROP DATABASE` does both to that of
//! the database.
//!
//! Source: `src/include/access/heapam_xlog.h`.

use walpoint_base::PgMajor;

use super::blocks::{BlockRef, Headers};
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
    let mut first = None;
    let headers = Headers::read(body, body.len(), major, &mut |block| {
        first.get_or_insert(block);
    })?;
    let BlockRef { relation, block, .. } = first.filter(|first| first.tablespace == SHARED)?;
    let offset = bytes::u16(headers.main_data(body)?, offset_at)?;
    Some(RecordKind::SharedTuple(SharedTuple { relation, block, offset }, change))
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
