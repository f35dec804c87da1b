//! What a segment's object says about the segment: its meta frame, of fixed size, so that one ranged request gets it.

use walpoint_base::chain::ChainFacts;
use walpoint_base::crossing::CrossingFacts;
use walpoint_base::facts::{HistoryHash, SegmentMarks, TransactionRange};
use walpoint_base::{
    LineageId, Lsn, PgMajor, PgTimestamp, SegmentFacts, SegmentName, SegmentNo, SegmentSize, SystemId,
    TimelineId,
};
use walpoint_storage::object::bytes::Fields;
use walpoint_storage::object::{ContentHash, FRAME_HEADER, OBJECT_HEADER};

use super::edges::{
    CROSSING, EDGE_FLAGS, EDGES, MARK_FLAGS, decode_crossing, decode_edges, edge_flags, encode_crossing,
    encode_edges, mark_flags, marks,
};

/// Length of the meta frame's plain bytes.
pub const WAL_HEADER: usize = 168 + EDGES + CROSSING;

/// This many bytes from an object's beginning hold its header and the segment's, encrypted or not.
pub const WAL_HEADER_RANGE: u64 = (OBJECT_HEADER + FRAME_HEADER + WAL_HEADER + 16) as u64;

const WHOLE: u32 = 1;
const SWITCHED: u32 = 2;
const DAMAGED: u32 = 4;

/// What is to be remembered about a segment besides its facts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct WalFlags {
    /// It is stored as it is though it is damaged, because somebody said so (`push --accept-damaged`).
    pub damaged: bool,
    /// The history of its timeline under which it is stored ([`history_hash`]).
    pub history: HistoryHash,
}

/// What a history file's content is remembered by.
pub fn history_hash(content: &[u8]) -> HistoryHash {
    let mut hash = HistoryHash::NONE;
    hash.0.iter_mut().zip(blake3::hash(content).as_bytes()).for_each(|(to, from)| *to = *from);
    hash
}

/// What is stored about a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalHeader {
    /// The lineage it belongs to.
    pub lineage: LineageId,
    /// The version that wrote it.
    pub major: PgMajor,
    /// The timeline in its name.
    pub timeline: TimelineId,
    /// The timeline of its first page.
    pub first_page_timeline: TimelineId,
    /// Its number.
    pub segment: SegmentNo,
    /// Its length.
    pub size: SegmentSize,
    /// Bytes of a WAL page.
    pub wal_block_size: u32,
    /// Bytes before the zero tail.
    pub content_len: u64,
    /// The hash of all its bytes, zero tail included; keyed in an encrypted repository.
    pub hash: ContentHash,
    /// Where its first record starts.
    pub first_record: Option<Lsn>,
    /// Where its last record starts.
    pub last_record: Option<Lsn>,
    /// The end of the last record that ends in it; its start if none does.
    pub end: Lsn,
    /// Records that start in it.
    pub records: u32,
    /// Its commit, abort and prepared-transaction records.
    pub transactions: Option<TransactionRange>,
    /// How many named restore points are in it. The points themselves are objects of their own.
    pub restore_points: u32,
    /// Whether its records reach its end, or a segment switch.
    pub whole: bool,
    /// Whether it ends with a segment switch.
    pub switched: bool,
    /// Whether it was stored although damaged.
    pub damaged: bool,
    /// What it keeps of the records that cross its edges.
    pub crossing: CrossingFacts,
    /// What its edges say about its neighbors.
    pub chain: ChainFacts,
    /// Records in it that a restore has to know of.
    pub marks: SegmentMarks,
    /// The history of its timeline under which it was stored.
    pub history: HistoryHash,
    /// When it was stored, by the archiving machine's clock.
    pub stored: jiff::Timestamp,
}

impl WalHeader {
    pub(super) fn new(
        lineage: LineageId,
        facts: &SegmentFacts,
        number: SegmentNo,
        flags: WalFlags,
        hash: ContentHash,
    ) -> Self {
        Self {
            lineage,
            major: facts.major,
            timeline: facts.name.timeline,
            first_page_timeline: facts.first_page_timeline,
            segment: number,
            size: facts.size,
            wal_block_size: facts.block_size,
            content_len: facts.content_len,
            hash,
            first_record: facts.first_record,
            last_record: facts.last_record,
            end: facts.end,
            records: facts.records,
            transactions: facts.transactions,
            restore_points: u32::try_from(facts.restore_points.len())
                .unwrap_or(u32::MAX)
                .saturating_add(facts.further_points),
            whole: facts.whole,
            switched: facts.switched,
            damaged: flags.damaged,
            crossing: facts.crossing,
            chain: facts.chain,
            marks: facts.marks,
            history: flags.history,
            stored: jiff::Timestamp::now(),
        }
    }

    /// The name of its file.
    pub fn name(&self) -> SegmentName {
        self.segment.name(self.timeline, self.size)
    }

    /// Its bytes in format version 1. The time is kept to the microsecond.
    pub fn encode(&self) -> [u8; WAL_HEADER] {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = flag(self.whole, WHOLE)
            | flag(self.switched, SWITCHED)
            | flag(self.damaged, DAMAGED)
            | mark_flags(self.marks)
            | edge_flags(&self.chain);
        let size = u32::try_from(self.size.bytes()).unwrap_or(u32::MAX);
        let lsn = |lsn: Option<Lsn>| lsn.unwrap_or_default().0;
        let (count, earliest, latest, lowest, highest) = self
            .transactions
            .map_or((0, 0, 0, 0, 0), |t| (t.count, t.earliest.0, t.latest.0, t.lowest_xid, t.highest_xid));
        let mut bytes = Vec::with_capacity(WAL_HEADER);
        bytes.extend_from_slice(&self.lineage.system_id.0.to_le_bytes());
        for field in [self.lineage.n, self.timeline.get()] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.segment.0.to_le_bytes());
        for field in [size, self.wal_block_size, self.first_page_timeline.get(), flags] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.content_len, lsn(self.first_record), lsn(self.last_record), self.end.0] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.records, count] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [earliest, latest] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        for field in [lowest, highest, self.restore_points, u32::from(self.major.get())] {
            bytes.extend_from_slice(&field.to_le_bytes());
        }
        bytes.extend_from_slice(&self.stored.as_microsecond().to_le_bytes());
        bytes.extend_from_slice(&self.hash.0);
        bytes.extend_from_slice(&self.history.0);
        encode_edges(&self.chain, &mut bytes);
        encode_crossing(&self.crossing, &mut bytes);
        let mut fixed = [0; WAL_HEADER];
        for (to, from) in fixed.iter_mut().zip(bytes) {
            *to = from;
        }
        fixed
    }

    /// Reads a meta frame. `None` if no such segment can be. Bytes behind the known ones are a later version's.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut f = Fields::new(bytes);
        let system_id = SystemId(f.u64()?);
        let lineage = LineageId { system_id, n: f.u32()? };
        let timeline = TimelineId::new(f.u32()?)?;
        let segment = SegmentNo(f.u64()?);
        let size = SegmentSize::new(u64::from(f.u32()?))?;
        let wal_block_size = f.u32()?;
        let first_page_timeline = TimelineId::new(f.u32()?)?;
        let flags = f.u32()?;
        let content_len = f.u64()?;
        let mut lsn = || Some(Lsn(f.u64()?));
        let (first_record, last_record, end) = (lsn()?, lsn()?, lsn()?);
        let (records, count) = (f.u32()?, f.u32()?);
        let (earliest, latest) = (PgTimestamp(f.i64()?), PgTimestamp(f.i64()?));
        let (lowest_xid, highest_xid, restore_points) = (f.u32()?, f.u32()?, f.u32()?);
        let major = PgMajor::new(f.u32()?)?;
        let stored = jiff::Timestamp::from_microsecond(f.i64()?).ok()?;
        let hash = ContentHash(f.array()?);
        let history = HistoryHash(f.array()?);
        let last_record = Some(last_record).filter(|lsn| lsn.is_valid());
        let chain = decode_edges(&mut f, flags, last_record)?;
        let crossing = decode_crossing(&mut f)?;
        let known = WHOLE | SWITCHED | DAMAGED | EDGE_FLAGS | MARK_FLAGS;
        let known = flags & !known == 0;
        let sound = known && lineage.n > 0 && content_len <= size.bytes();
        sound.then_some(Self {
            lineage,
            major,
            timeline,
            first_page_timeline,
            segment,
            size,
            wal_block_size,
            content_len,
            hash,
            first_record: Some(first_record).filter(|lsn| lsn.is_valid()),
            last_record,
            end,
            records,
            transactions: (count > 0).then_some(TransactionRange {
                count,
                earliest,
                latest,
                lowest_xid,
                highest_xid,
            }),
            restore_points,
            whole: flags & WHOLE != 0,
            switched: flags & SWITCHED != 0,
            damaged: flags & DAMAGED != 0,
            crossing,
            chain,
            marks: marks(flags),
            history,
            stored,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::facts;
    use super::*;

    #[test]
    fn survives_its_bytes() {
        let facts = facts("000000030000000100000005", true);
        let number = facts.name.number(facts.size).unwrap();
        let lineage = LineageId { system_id: facts.system_id, n: 2 };
        for damaged in [false, true] {
            let mut header = WalHeader::new(
                lineage,
                &facts,
                number,
                WalFlags { damaged, history: HistoryHash([7; 16]) },
                ContentHash([5; 32]),
            );
            header.stored = "2026-11-21T10:00:00.123456Z".parse().unwrap();
            let bytes = header.encode();
            assert_eq!(WalHeader::parse(&bytes).as_ref(), Some(&header));
            assert_eq!(WalHeader::parse(&[&bytes[..], b"later"].concat()), Some(header));
            assert!((0..WAL_HEADER).all(|cut| WalHeader::parse(&bytes[..cut]).is_none()));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            if let Some(header) = WalHeader::parse(&bytes) {
                prop_assert_eq!(WalHeader::parse(&header.encode()), Some(header));
            }
        }
    }
}
