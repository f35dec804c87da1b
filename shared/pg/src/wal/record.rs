//! WAL records: the header, the check, and where the main data lies.
//!
//! Source: `src/include/access/xlogrecord.h`, `src/backend/access/transam/xlogreader.c`.

use walpoint_base::{Lsn, PgMajor, crossing};

use super::kind::{RecordKind, XLOG_SWITCH};

/// Length of a record's header: `SizeOfXLogRecord`.
pub const RECORD_HEADER: usize = 24;

/// Where in the header its CRC lies: what is before it is covered.
pub(super) const CRC_AT: usize = 20;

/// Records are shorter than this: `XLogRecordMaxSize` and, before 16, the largest allocation.
const MAX_RECORD: u32 = 1 << 30;

/// A segment switch has no data, but might name a transaction or an origin. What is longer has a wrong length, and would
/// look like a record that was cut off.
const MAX_SWITCH: u32 = 64;

/// The resource manager that wrote a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rmgr(pub u8);

impl Rmgr {
    /// WAL itself: checkpoints, segment switches, restore points.
    pub const XLOG: Rmgr = Rmgr(0);
    /// Transactions.
    pub const XACT: Rmgr = Rmgr(1);
    /// Files of relations: made and cut.
    pub const SMGR: Rmgr = Rmgr(2);
    /// Databases.
    pub const DBASE: Rmgr = Rmgr(4);
    /// Tablespaces.
    pub const TBLSPC: Rmgr = Rmgr(5);
    /// Which files the catalogs are in that every session needs first.
    pub const RELMAP: Rmgr = Rmgr(7);
    /// What a hot standby has to know.
    pub const STANDBY: Rmgr = Rmgr(8);
    /// Tuples, what HEAP has no operation left for.
    pub const HEAP2: Rmgr = Rmgr(9);
    /// Tuples.
    pub const HEAP: Rmgr = Rmgr(10);
    /// The last of PostgreSQL's own: `LogicalMessage`.
    const LAST_BUILTIN: u8 = 21;
    /// In 19 one more is let through, `XLOG2`: 19 rc1 has none, other builds of 19 do. Nothing rests on it, since a
    /// record has a CRC.
    const LAST_BUILTIN_FROM_19: u8 = 22;
    /// Extensions may register their own from here on, since 15.
    const FIRST_CUSTOM: u8 = 128;

    /// Whether an extension wrote it.
    pub(super) fn is_custom(self) -> bool {
        self.0 >= Self::FIRST_CUSTOM
    }

    fn exists(self, major: PgMajor) -> bool {
        let last = if major.get() >= 19 { Self::LAST_BUILTIN_FROM_19 } else { Self::LAST_BUILTIN };
        self.0 <= last || (major.get() >= 15 && self.0 >= Self::FIRST_CUSTOM)
    }
}

/// `XLogRecord`: the header of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// Bytes of the record, header included, page headers not.
    pub total: u32,
    /// The transaction, 0 if none.
    pub xid: u32,
    /// Where the record before it starts.
    pub previous: Lsn,
    /// Flags; the meaning of the upper four bits is up to the resource manager.
    pub info: u8,
    /// Who wrote it.
    pub rmgr: Rmgr,
    /// CRC-32C of the body, then of the header up to here.
    pub crc: u32,
}

impl RecordHeader {
    /// Reads a header; whether it makes sense is decided by the walk.
    pub fn parse(header: &[u8; RECORD_HEADER]) -> Self {
        let [
            t0,
            t1,
            t2,
            t3,
            x0,
            x1,
            x2,
            x3,
            p0,
            p1,
            p2,
            p3,
            p4,
            p5,
            p6,
            p7,
            info,
            rmgr,
            _,
            _,
            c0,
            c1,
            c2,
            c3,
        ] = *header;
        Self {
            total: u32::from_le_bytes([t0, t1, t2, t3]),
            xid: u32::from_le_bytes([x0, x1, x2, x3]),
            previous: Lsn(u64::from_le_bytes([p0, p1, p2, p3, p4, p5, p6, p7])),
            info,
            rmgr: Rmgr(rmgr),
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        }
    }

    /// PostgreSQL's `ValidXLogRecordHeader`: `previous` is the start of the record before, if that is known. The error
    /// says what is wrong.
    pub(super) fn check(&self, start: Lsn, previous: Option<Lsn>, major: PgMajor) -> Result<(), String> {
        check_total(self.total)?;
        if self.rmgr == Rmgr::XLOG && self.info & 0xF0 == XLOG_SWITCH && self.total > MAX_SWITCH {
            return Err(format!("a segment switch cannot be {} bytes long", self.total));
        }
        if !self.rmgr.exists(major) {
            return Err(format!("the record has an unknown resource manager, {}", self.rmgr.0));
        }
        match previous {
            Some(previous) if self.previous != previous => Err(format!(
                "the record points back to {}, the one before starts at {previous}",
                self.previous
            )),
            None if self.previous >= start => {
                Err(format!("the record points back to {}, which lies ahead", self.previous))
            }
            _ => Ok(()),
        }
    }
}

/// Whether a record can have this length; the error says what is wrong.
pub(super) fn check_total(total: u32) -> Result<(), String> {
    if usize::try_from(total).is_ok_and(|total| total >= RECORD_HEADER) && total < MAX_RECORD {
        Ok(())
    } else {
        Err(format!("a record cannot be {total} bytes long"))
    }
}

/// The check over a record, fed with its body in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RecordCrc(u32);

impl RecordCrc {
    /// Adds the next piece of the body.
    pub(super) fn body(self, piece: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, piece))
    }

    /// Of the pieces so far.
    pub(super) fn so_far(self) -> u32 {
        self.0
    }

    /// Adds the header, up to its own CRC, and gives the result.
    pub(super) fn finish(self, header: &[u8; RECORD_HEADER]) -> u32 {
        crc32c::crc32c_append(self.0, header.split_at(CRC_AT).0)
    }
}

/// A record, complete and with the right check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalRecord {
    /// Where it starts: PostgreSQL's `ReadRecPtr`.
    pub start: Lsn,
    /// The first byte after it, not aligned.
    pub end: Lsn,
    /// Where the next record may start: PostgreSQL's `EndRecPtr`, which its functions print as the record's end. After a
    /// segment switch that is the next segment.
    pub next: Lsn,
    /// Where the record before it starts, as it says.
    pub previous: Lsn,
    /// The transaction that wrote it, 0 if none. For the end of a prepared transaction see [`RecordKind`].
    pub xid: u32,
    /// Who wrote it.
    pub rmgr: Rmgr,
    /// The header's flags.
    pub info: u8,
    /// What it means, as far as recovery targets and archives are concerned.
    pub kind: RecordKind,
}

/// The main data at the end of a record's body. `None` if there is none, if the record refers to blocks (no kind that is
/// decoded here does), or if the body makes no sense.
pub(super) fn main_data(body: &[u8]) -> Option<&[u8]> {
    let (len, headers) = crossing::main_data(body)?;
    // The data is the last thing in the record, right behind the headers when there are no blocks.
    let data = body.get(headers..)?;
    (data.len() == len).then_some(data)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn main_data_follows_origin_and_top_level_xid() {
        assert_eq!(main_data(&[255, 2, 7, 8]), Some(&[7, 8][..]));
        assert_eq!(main_data(&[253, 1, 0, 252, 9, 0, 0, 0, 254, 1, 0, 0, 0, 5]), Some(&[5][..]));
        assert_eq!(main_data(&[255, 3, 7, 8]), None, "shorter than it says");
        assert_eq!(main_data(&[0, 2, 7, 8]), None, "a block reference");
        assert_eq!(main_data(&[]), None);
    }

    proptest! {
        #[test]
        fn any_body_is_read_or_refused(body: Vec<u8>) {
            let _data = main_data(&body);
        }

        #[test]
        fn any_header_is_valid_or_refused(header: [u8; RECORD_HEADER], start: u64, previous: Option<u64>) {
            let header = RecordHeader::parse(&header);
            let _result = header.check(Lsn(start), previous.map(Lsn), PgMajor::new(16).unwrap());
        }
    }
}
