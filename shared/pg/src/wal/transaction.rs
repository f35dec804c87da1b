//! The bodies of the records that end or prepare a transaction.
//!
//! Sources: `src/include/access/xact.h`, `src/backend/access/rmgrdesc/xactdesc.c`. Layouts are those of 13 to 19; where they
//! differ the code says so.

use walpoint_base::{PgMajor, PgTimestamp};

use super::kind::{RecordKind, TransactionEnd};
use super::record::RecordHeader;
use crate::bytes;

/// `XLOG_XACT_OPMASK`.
pub(super) const XACT_OP: u8 = 0x70;
pub(super) const COMMIT: u8 = 0x00;
pub(super) const PREPARE: u8 = 0x10;
pub(super) const ABORT: u8 = 0x20;
pub(super) const COMMIT_PREPARED: u8 = 0x30;
pub(super) const ABORT_PREPARED: u8 = 0x40;
/// `XLOG_XACT_HAS_INFO`.
const HAS_INFO: u8 = 0x80;

pub(super) fn xact(header: &RecordHeader, data: &[u8], major: PgMajor) -> Option<RecordKind> {
    let end = |prepared| {
        let carried = carried(header.info, data, major);
        let xid = if prepared { carried.as_ref()?.prepared? } else { header.xid };
        let Carried { subtransactions, removes, .. } = carried.unwrap_or_default();
        let time = PgTimestamp(bytes::i64(data, 0)?);
        Some(TransactionEnd { xid, time, prepared, subtransactions, removes })
    };
    Some(match header.info & XACT_OP {
        COMMIT => RecordKind::Commit(end(false)?),
        ABORT => RecordKind::Abort(end(false)?),
        COMMIT_PREPARED => RecordKind::Commit(end(true)?),
        ABORT_PREPARED => RecordKind::Abort(end(true)?),
        // xl_xact_prepare: magic, total length, xid, database, time.
        PREPARE => {
            let (gid, subtransactions) = prepared(data, major).unwrap_or_default();
            let time = PgTimestamp(bytes::i64(data, 16)?);
            RecordKind::Prepare { xid: bytes::u32(data, 8)?, time, gid, subtransactions }
        }
        _ => return None,
    })
}

/// Transactions within one that are told. They are for a note to a person: what archives reads the same records.
const MAX_SUBTRANSACTIONS: usize = 1 << 16;

/// The name of a prepared transaction and the transactions within it: `xl_xact_prepare` and what follows it, each part
/// padded to eight bytes (`save_state_data` in twophase.c).
fn prepared(data: &[u8], major: PgMajor) -> Option<(String, Vec<u32>)> {
    // Two counts of dropped statistics came with 15.
    let more = if major.get() >= 15 { 8 } else { 0 };
    let (count, length) = (bytes::u32(data, 28)?, bytes::u16(data, 46 + more)?);
    let (count, length) = (usize::try_from(count).ok()?, usize::from(length));
    let name_at = 64 + more;
    let name = data.get(name_at..name_at.checked_add(length)?)?;
    let name = name.split(|&b| b == 0).next().unwrap_or_default();
    let at = name_at + length.next_multiple_of(8);
    let count = count.min(MAX_SUBTRANSACTIONS);
    let xids = data.get(at..at.checked_add(count.checked_mul(4)?)?)?.chunks_exact(4);
    let xids = xids.filter_map(|xid| bytes::u32(xid, 0)).collect();
    Some((String::from_utf8_lossy(name).into_owned(), xids))
}

/// What the end of a transaction says beside its time.
#[derive(Default)]
struct Carried {
    subtransactions: Vec<u32>,
    /// Whether it removes files of relations.
    removes: bool,
    /// The prepared transaction that a `COMMIT PREPARED` or `ROLLBACK PREPARED` ends. It lies behind everything else.
    prepared: Option<u32>,
}

/// `ParseCommitRecord`, `ParseAbortRecord`. `None` if it makes no sense.
fn carried(info: u8, data: &[u8], major: PgMajor) -> Option<Carried> {
    const HAS_DATABASE: u32 = 1 << 0;
    const HAS_TWOPHASE: u32 = 1 << 4;
    /// Lists: their flags, in the order in which they lie there, and the size of an element.
    const SUBTRANSACTIONS: (u32, usize) = (1 << 1, 4);
    const RELATIONS: (u32, usize) = (1 << 2, 12);
    const INVALIDATIONS: (u32, usize) = (1 << 3, 16);
    // From 15. The object's id has 64 bits from 18.
    let dropped_statistics = (1 << 8, if major.get() >= 18 { 16 } else { 12 });

    let mut carried = Carried::default();
    if info & HAS_INFO == 0 {
        return Some(carried);
    }
    let flags = bytes::u32(data, 8)?;
    let mut at = 12;
    if flags & HAS_DATABASE != 0 {
        at += 8;
    }
    for (flag, element) in [SUBTRANSACTIONS, RELATIONS, dropped_statistics, INVALIDATIONS] {
        if flags & flag != 0 {
            let count = usize::try_from(bytes::u32(data, at)?).ok()?;
            let begin = at.checked_add(4)?;
            at = begin.checked_add(count.checked_mul(element)?)?;
            if flag == SUBTRANSACTIONS.0 && count <= MAX_SUBTRANSACTIONS {
                let xids = data.get(begin..at)?.chunks_exact(4);
                carried.subtransactions = xids.filter_map(|xid| bytes::u32(xid, 0)).collect();
            }
            carried.removes |= flag == RELATIONS.0 && count > 0;
        }
    }
    if flags & HAS_TWOPHASE != 0 {
        carried.prepared = Some(bytes::u32(data, at)?);
    }
    Some(carried)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{header, with_prefix, words};
    use super::super::record::Rmgr;
    use super::*;

    #[test]
    fn a_prepared_transaction_ends_under_its_own_xid() {
        for (major, stats_words) in [(15, 3), (17, 3), (18, 4), (19, 4)] {
            // Time, flags with everything, database, 2 subtransactions, 1 relation, 2 statistics, 1 invalidation, xid.
            let mut data = words(&[7, 0, 0x11F, 1, 2, 2, 50, 51, 1, 0, 0, 0, 2]);
            data.extend(words(&vec![9; 2 * stats_words]));
            data.extend(words(&[1, 0, 0, 0, 0, 777]));
            data.extend(b"gid\0");
            let major = PgMajor::new(major).unwrap();
            let kind = RecordKind::decode(
                &header(Rmgr::XACT, COMMIT_PREPARED | HAS_INFO, 3),
                &with_prefix(&data),
                major,
            );
            let subtransactions = vec![50, 51];
            let end = TransactionEnd {
                xid: 777,
                time: PgTimestamp(7),
                prepared: true,
                subtransactions,
                removes: true,
            };
            assert_eq!(kind, RecordKind::Commit(end), "{major}");
        }
    }

    #[test]
    fn a_commit_without_more_is_a_time() {
        let body = [255, 8, 1, 0, 0, 0, 0, 0, 0, 0];
        let major = PgMajor::new(13).unwrap();
        let kind = RecordKind::decode(&header(Rmgr::XACT, COMMIT, 42), &body, major);
        assert_eq!(
            kind.transaction_end(),
            Some(&TransactionEnd {
                xid: 42,
                time: PgTimestamp(1),
                prepared: false,
                subtransactions: Vec::new(),
                removes: false
            })
        );
        let short = RecordKind::decode(&header(Rmgr::XACT, COMMIT, 42), &[255, 4, 1, 0, 0, 0], major);
        assert_eq!(short, RecordKind::Other);
    }
}
