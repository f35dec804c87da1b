//! What a slice says about itself. Source: `FORMAT.md`, "Slices".

use walpoint_base::facts::HistoryHash;
use walpoint_base::{LineageId, Lsn, PgMajor, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use walpoint_storage::object::ContentHash;
use walpoint_storage::object::bytes::Fields;

/// Bytes of the meta frame.
pub const SLICE_HEADER: usize = 8 + 4 + 4 + 8 + 4 + 4 + 8 + 8 + 8 + 32 + 16;

/// What the stream knows of a slice that it stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SliceFacts {
    /// The segment that it is of.
    pub segment: SegmentName,
    /// The position of its first byte.
    pub start: Lsn,
    /// The content hash of all that comes before it in its segment.
    pub before: ContentHash,
    /// The history of its timeline under which it was stored.
    pub history: HistoryHash,
    /// When it was received, by the archiving machine's clock.
    pub received: jiff::Timestamp,
}

/// The meta frame of a slice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SliceHeader {
    /// The lineage that it belongs to.
    pub lineage: LineageId,
    /// The length of its segment.
    pub size: SegmentSize,
    /// The version that wrote it.
    pub major: PgMajor,
    /// What it is.
    pub facts: SliceFacts,
    /// The position behind its last byte.
    pub end: Lsn,
}

impl SliceHeader {
    /// `None` if no segment of that size has such a range.
    pub(super) fn new(
        lineage: LineageId,
        size: SegmentSize,
        major: PgMajor,
        facts: SliceFacts,
        end: Lsn,
    ) -> Option<Self> {
        let number = facts.segment.number(size)?;
        let inside = number.start(size) <= facts.start && facts.start < end && end <= number.end(size);
        inside.then_some(Self { lineage, size, major, facts, end })
    }

    /// Its bytes in format version 1. The time is kept to the microsecond.
    pub fn encode(&self) -> Vec<u8> {
        let Self { lineage, size, major, facts, end } = self;
        let number = facts.segment.number(*size).unwrap_or(SegmentNo(0));
        let mut bytes = Vec::with_capacity(SLICE_HEADER);
        bytes.extend_from_slice(&lineage.system_id.0.to_le_bytes());
        bytes.extend_from_slice(&lineage.n.to_le_bytes());
        bytes.extend_from_slice(&facts.segment.timeline.get().to_le_bytes());
        bytes.extend_from_slice(&number.0.to_le_bytes());
        bytes.extend_from_slice(&u32::try_from(size.bytes()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&u32::from(major.get()).to_le_bytes());
        bytes.extend_from_slice(&facts.start.0.to_le_bytes());
        bytes.extend_from_slice(&end.0.to_le_bytes());
        bytes.extend_from_slice(&facts.received.as_microsecond().to_le_bytes());
        bytes.extend_from_slice(&facts.before.0);
        bytes.extend_from_slice(&facts.history.0);
        bytes
    }

    /// Reads a meta frame. `None` if no such slice can be. Bytes behind the known ones are a later version's.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut f = Fields::new(bytes);
        let lineage = LineageId { system_id: SystemId(f.u64()?), n: f.u32()? };
        let timeline = TimelineId::new(f.u32()?)?;
        let number = SegmentNo(f.u64()?);
        let size = SegmentSize::new(u64::from(f.u32()?))?;
        let major = PgMajor::new(f.u32()?)?;
        let (start, end) = (Lsn(f.u64()?), Lsn(f.u64()?));
        let received = jiff::Timestamp::from_microsecond(f.i64()?).ok()?;
        let (before, history) = (ContentHash(f.array()?), HistoryHash(f.array()?));
        let segment = number.name(timeline, size);
        let facts = SliceFacts { segment, start, before, history, received };
        // A number that no name has does not survive.
        let known = lineage.n > 0 && segment.number(size) == Some(number);
        Self::new(lineage, size, major, facts, end).filter(|_| known)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> SliceHeader {
        let size = SegmentSize::new(1 << 20).unwrap();
        let facts = SliceFacts {
            segment: "000000030000000000000005".parse().unwrap(),
            start: Lsn(0x50_0010),
            before: ContentHash([5; 32]),
            history: HistoryHash([7; 16]),
            received: "2026-11-21T10:00:00.123456Z".parse().unwrap(),
        };
        let lineage = LineageId { system_id: SystemId(7), n: 2 };
        SliceHeader::new(lineage, size, PgMajor::new(17).unwrap(), facts, Lsn(0x60_0000)).unwrap()
    }

    #[test]
    fn survives_its_bytes() {
        let header = header();
        let bytes = header.encode();
        assert_eq!(bytes.len(), SLICE_HEADER);
        assert_eq!(SliceHeader::parse(&bytes), Some(header));
        assert_eq!(SliceHeader::parse(&[&bytes[..], b"later"].concat()), Some(header));
        assert!((0..SLICE_HEADER).all(|cut| SliceHeader::parse(&bytes[..cut]).is_none()));
    }

    #[test]
    fn a_range_lies_in_its_segment() {
        let SliceHeader { lineage, size, major, facts, .. } = header();
        let new = |start, end| {
            SliceHeader::new(lineage, size, major, SliceFacts { start: Lsn(start), ..facts }, Lsn(end))
                .is_some()
        };
        assert!(new(0x50_0000, 0x60_0000) && new(0x5F_FFFF, 0x60_0000));
        for (start, end) in [(0x4F_FFFF, 0x50_0001), (0x50_0000, 0x60_0001), (0x50_0010, 0x50_0010), (9, 8)] {
            assert!(!new(start, end), "{start:X} {end:X}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_header_or_nothing(bytes in prop::collection::vec(any::<u8>(), 0..150)) {
            if let Some(header) = SliceHeader::parse(&bytes) {
                prop_assert_eq!(SliceHeader::parse(&header.encode()), Some(header));
            }
        }
    }
}
