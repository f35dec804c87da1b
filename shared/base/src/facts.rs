//! What a decoded segment says about itself: found by the WAL reader, stored in the segment's object and in the index,
//! used by the planners.

use crate::chain::ChainFacts;
use crate::crossing::CrossingFacts;
use crate::{Lsn, PgMajor, PgTimestamp, SegmentName, SegmentSize, SystemId, TimelineId};

/// Facts about one segment of WAL, all read from its content.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentFacts {
    /// The file's name: timeline and number.
    pub name: SegmentName,
    /// The cluster that wrote it.
    pub system_id: SystemId,
    /// The version that wrote it.
    pub major: PgMajor,
    /// Its full length.
    pub size: SegmentSize,
    /// The WAL block size in bytes (`XLOG_BLCKSZ`).
    pub block_size: u32,
    /// The timeline of its first page: the parent's in the first segment of a new timeline.
    pub first_page_timeline: TimelineId,
    /// Bytes before the zero tail; equals the size if there is none.
    pub content_len: u64,
    /// Where its first record starts, if one does.
    pub first_record: Option<Lsn>,
    /// Where its last record starts, if one does.
    pub last_record: Option<Lsn>,
    /// The end of the last record that ends in it, not aligned; its start if none does.
    pub end: Lsn,
    /// Whether its content reaches its end: records up to the last byte, or a segment switch.
    pub whole: bool,
    /// Whether it ends with a segment switch.
    pub switched: bool,
    /// Records that start in it.
    pub records: u32,
    /// What its transaction-end records say, but for one that ends in a following segment; `None` if it holds none.
    pub transactions: Option<TransactionRange>,
    /// What it keeps of the records that cross its edges.
    pub crossing: CrossingFacts,
    /// What its edges say about its neighbors.
    pub chain: ChainFacts,
    /// Records in it that a restore has to know of.
    pub marks: SegmentMarks,
    /// Named restore points in it, in LSN order: all of them, or the first [`Self::POINTS`].
    pub restore_points: Vec<RestorePoint>,
    /// How many restore points follow these.
    pub further_points: u32,
}

impl SegmentFacts {
    /// The most restore points that are kept with the facts: a segment may hold a hundred for each 10 KiB of it, and a megabyte of
    /// memory is enough for them.
    pub const POINTS: usize = 8192;
}

/// Whether a segment has records that a restore has to know of before it replays them. A record counts where it starts; if
/// the end of the segment cuts its header, in the next segment. So its text is found by decoding the segment together with
/// the ones before and behind it. What cannot be told is marked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SegmentMarks {
    /// `CREATE TABLESPACE`: replay uses the location in the record.
    pub tablespace: bool,
    /// A change of the settings that a standby must follow.
    pub parameters: bool,
    /// Such a change that sets `wal_level = minimal`, or whose values were not read.
    pub minimal: bool,
    /// The directory of a database copied file by file: replay copies what is there then.
    pub database_copy: bool,
}

impl SegmentMarks {
    /// What cannot be decoded may hold anything.
    pub const ALL: Self = Self { tablespace: true, parameters: true, minimal: true, database_copy: true };

    /// Marked where one of both is.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            tablespace: self.tablespace || other.tablespace,
            parameters: self.parameters || other.parameters,
            minimal: self.minimal || other.minimal,
            database_copy: self.database_copy || other.database_copy,
        }
    }
}

/// The first half of the BLAKE3 of a timeline's history file; all zero for timeline 1, and where none is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HistoryHash(pub [u8; 16]);

impl HistoryHash {
    /// Of timeline 1, and where none is known.
    pub const NONE: Self = Self([0; 16]);

    /// Whether both are known and differ: then they are the histories of two servers.
    pub fn contradicts(self, other: Self) -> bool {
        self != Self::NONE && other != Self::NONE && self != other
    }
}

/// The commit, abort and prepared-transaction records of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TransactionRange {
    /// How many.
    pub count: u32,
    /// The earliest time in them. Times are not monotone in LSN order.
    pub earliest: PgTimestamp,
    /// The latest time in them.
    pub latest: PgTimestamp,
    /// The lowest xid that ends in them, in the circular order around the first one.
    pub lowest_xid: u32,
    /// The highest xid that ends in them, in the circular order around the first one.
    pub highest_xid: u32,
}

impl TransactionRange {
    /// Widens the range by one more record.
    pub fn add(range: Option<Self>, time: PgTimestamp, xid: u32) -> Self {
        let Some(r) = range else {
            return Self { count: 1, earliest: time, latest: time, lowest_xid: xid, highest_xid: xid };
        };
        Self {
            count: r.count.saturating_add(1),
            earliest: r.earliest.min(time),
            latest: r.latest.max(time),
            lowest_xid: if xid_precedes(xid, r.lowest_xid) { xid } else { r.lowest_xid },
            highest_xid: if xid_precedes(r.highest_xid, xid) { xid } else { r.highest_xid },
        }
    }

    /// Whether `xid` lies between the lowest and the highest: it may end here. Outside, it does not.
    pub fn may_hold(&self, xid: u32) -> bool {
        !xid_precedes(xid, self.lowest_xid) && !xid_precedes(self.highest_xid, xid)
    }
}

/// PostgreSQL's circular order of xids (`TransactionIdPrecedes`), for normal xids.
pub fn xid_precedes(a: u32, b: u32) -> bool {
    // The sign of the difference modulo 2^32, as in transam.c.
    a.wrapping_sub(b) > u32::MAX / 2
}

/// A record written by `pg_create_restore_point`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestorePoint {
    /// Its name.
    pub name: String,
    /// When it was made.
    pub time: PgTimestamp,
    /// Where its record starts.
    pub lsn: Lsn,
    /// Where its record ends.
    pub end: Lsn,
}

/// Whether the name of a restore point is the one in its record. PostgreSQL writes it in the database's encoding and compares bytes; where
/// they are no UTF-8, what is kept of the name has a replacement character in their place, and recovery finds nothing by it.
pub fn is_exact_name(name: &str) -> bool {
    !name.contains(char::REPLACEMENT_CHARACTER)
}

/// Where a restore point is.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PointRef {
    /// Its name.
    pub name: String,
    /// The timeline in the name of its segment: the one it was made on, or one that took its bytes over.
    pub timeline: TimelineId,
    /// Where its record starts.
    pub lsn: Lsn,
    /// When it was made, where that was found together with it; else the object of the restore point tells it.
    pub time: Option<PgTimestamp>,
}

impl PointRef {
    /// What tells it from every other one.
    pub fn place(&self) -> (&str, TimelineId, Lsn) {
        (&self.name, self.timeline, self.lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xids_wrap_around() {
        let mut range = None;
        for (time, xid) in [(5, u32::MAX - 1), (3, 7), (9, u32::MAX)] {
            range = Some(TransactionRange::add(range, PgTimestamp(time), xid));
        }
        let range = range.unwrap();
        assert_eq!((range.count, range.earliest, range.latest), (3, PgTimestamp(3), PgTimestamp(9)));
        assert_eq!((range.lowest_xid, range.highest_xid), (u32::MAX - 1, 7));
        assert!(range.may_hold(u32::MAX) && range.may_hold(3) && range.may_hold(7));
        assert!(!range.may_hold(8) && !range.may_hold(u32::MAX - 2));
    }
}
