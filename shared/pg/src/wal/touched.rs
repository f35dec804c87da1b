//! Which directories of databases a record changes, judged by the beginning of its body: the blocks it refers to stand
//! there, and so does the little that records say which make, cut or remove whole files.
//!
//! Sources: `src/include/access/xact.h`, `src/include/catalog/storage_xlog.h`, `src/include/utils/relmapper.h`.

use walpoint_base::PgMajor;

use super::blocks::{BlockRef, Headers};
use super::kind::{DatabaseDirectory, RecordKind};
use super::record::{Rmgr, WalRecord};
use crate::bytes;

/// Bytes of a body within which all its references to blocks are: 33 blocks of at most 27 bytes, and what may stand
/// before and behind them.
pub(super) const HEAD: usize = 1024;

/// Calls `act` for each directory that a record changes. `head`: the beginning of its body, [`HEAD`] bytes of `length`.
/// `None` if what is there does not tell them all. What the removal of a database changes is its kind's to say.
pub(super) fn directories(
    record: &WalRecord,
    head: &[u8],
    length: usize,
    major: PgMajor,
    act: &mut dyn FnMut(DatabaseDirectory),
) -> Option<()> {
    if let RecordKind::DatabaseCopy(copy) = &record.kind {
        act(copy.to);
        return Some(());
    }
    let mut blocks = false;
    let headers = Headers::read(head, length, major, &mut |BlockRef { tablespace, database, .. }| {
        blocks = true;
        act(DatabaseDirectory { database, tablespace });
    })?;
    let data = head.get(headers.end..).unwrap_or_default();
    match record.rmgr {
        Rmgr::XACT => removed_relations(record.info, data, act),
        Rmgr::SMGR => {
            // A truncation says first to how many blocks.
            let at = if record.info & 0xF0 == SMGR_TRUNCATE { 4 } else { 0 };
            act(relation(data, at)?);
            Some(())
        }
        Rmgr::RELMAP => {
            act(DatabaseDirectory { database: bytes::u32(data, 0)?, tablespace: bytes::u32(data, 4)? });
            Some(())
        }
        // What an extension does without naming blocks is not known.
        rmgr if rmgr.is_custom() && !blocks => None,
        _ => Some(()),
    }
}

/// `XLOG_SMGR_TRUNCATE`.
const SMGR_TRUNCATE: u8 = 0x20;

/// The directory in a `RelFileLocator`: tablespace, database, relation.
fn relation(data: &[u8], at: usize) -> Option<DatabaseDirectory> {
    Some(DatabaseDirectory { tablespace: bytes::u32(data, at)?, database: bytes::u32(data, at + 4)? })
}

/// The relations whose files the end of a transaction removes.
fn removed_relations(info: u8, data: &[u8], act: &mut dyn FnMut(DatabaseDirectory)) -> Option<()> {
    const OPERATION: u8 = 0x70;
    const PREPARE: u8 = 0x10;
    const ASSIGNMENT: u8 = 0x50;
    const INVALIDATIONS: u8 = 0x60;
    const HAS_INFO: u8 = 0x80;
    const HAS_DATABASE: u32 = 1 << 0;
    const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
    const HAS_RELATIONS: u32 = 1 << 2;
    if info & HAS_INFO == 0 || matches!(info & OPERATION, PREPARE | ASSIGNMENT | INVALIDATIONS) {
        return Some(());
    }
    let (flags, mut at) = (bytes::u32(data, 8)?, 12usize);
    if flags & HAS_RELATIONS == 0 {
        return Some(());
    }
    if flags & HAS_DATABASE != 0 {
        at += 8;
    }
    let count = |at| usize::try_from(bytes::u32(data, at)?).ok();
    if flags & HAS_SUBTRANSACTIONS != 0 {
        at = at.checked_add(4)?.checked_add(count(at)?.checked_mul(4)?)?;
    }
    for n in 0..count(at)? {
        act(relation(data, at.checked_add(4)?.checked_add(n.checked_mul(12)?)?)?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walpoint_base::Lsn;

    use super::*;

    fn record(rmgr: u8, info: u8) -> WalRecord {
        let at = Lsn(64);
        let kind = RecordKind::Other;
        WalRecord { start: at, end: at, next: at, previous: at, xid: 0, rmgr: Rmgr(rmgr), info, kind }
    }

    fn of(rmgr: u8, info: u8, body: &[u8]) -> Option<Vec<(u32, u32)>> {
        let mut all = Vec::new();
        let mut act = |d: DatabaseDirectory| all.push((d.tablespace, d.database));
        let major = PgMajor::new(17).unwrap();
        directories(&record(rmgr, info), body, body.len(), major, &mut act).map(|()| all)
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    fn data(words: &[u32]) -> Vec<u8> {
        let data = self::words(words);
        [&[255, u8::try_from(data.len()).unwrap()], &data[..]].concat()
    }

    #[test]
    fn blocks_and_whole_files_name_their_directories() {
        // A block with an image that has a hole and is compressed, one of the same relation, one of another.
        let mut body = vec![0, 0x10, 0, 0, 9, 0, 4, 0, 0x01 | 0x04, 2, 0];
        body.extend(words(&[1663, 5, 16384, 7]));
        body.extend([1, 0x80, 0, 0, 8, 0, 0, 0]);
        body.extend([2, 0x20, 2, 0]);
        body.extend(words(&[16390, 6, 16400, 0]));
        body.extend([255, 1]);
        body.extend([0; 12]);
        let expected = vec![(1663, 5), (1663, 5), (16390, 6)];
        assert_eq!(of(10, 0, &body), Some(expected));
        // Without main data the headers end where what they announce begins.
        let image = [&[0, 0x10, 0, 0, 3, 0, 0, 0, 0][..], &words(&[1663, 1, 1259, 0]), &[255, 9, 9]].concat();
        assert_eq!(of(0, 0xB0, &image), Some(vec![(1663, 1)]));

        assert_eq!(of(2, 0x10, &data(&[1663, 5, 16384, 0])), Some(vec![(1663, 5)]));
        assert_eq!(of(2, 0x20, &data(&[3, 1663, 5, 16384, 7])), Some(vec![(1663, 5)]));
        assert_eq!(of(7, 0x00, &data(&[5, 1663, 0])), Some(vec![(1663, 5)]));
        let commit = |flags, rest: &[u32]| data(&[&[0, 0, flags], rest].concat());
        assert_eq!(
            of(1, 0x80, &commit(7, &[5, 1663, 1, 700, 2, 1663, 5, 1, 99, 5, 2])),
            Some(vec![(1663, 5), (99, 5)])
        );
        assert_eq!(of(1, 0x80, &commit(4, &[1, 1663])), None, "it ends before the list does");
        assert_eq!(of(1, 0x80, &commit(1, &[1, 1663])), Some(vec![]), "the session's database is no change");
        assert_eq!(of(1, 0x00, &data(&[0, 0])), Some(vec![]));
        assert_eq!(of(0, 0x40, &[]), Some(vec![]), "a segment switch");
        assert_eq!(of(130, 0, &data(&[1])), None, "an extension's");
        assert_eq!(of(10, 0, &[77, 0]), None);
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(rmgr: u8, info: u8, body: Vec<u8>, more in 0usize..100) {
            let major = PgMajor::new(14).unwrap();
            directories(&record(rmgr, info), &body, body.len() + more, major, &mut |_| {});
        }
    }
}
