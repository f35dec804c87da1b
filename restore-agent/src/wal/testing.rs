//! A repository with a cluster, and the beginnings of its segments, for tests.

use walpoint_base::{PgMajor, SegmentName, SegmentNo, SegmentSize, SystemId, TimelineId};
use walpoint_pg::wal::magic_of_major;
use walpoint_repo::Repository;
use walpoint_repo::repository::NewLineage;
use walpoint_repo::wal::WalArchive;
use walpoint_storage::store::StoreSettings;

/// A new repository with a cluster.
pub(crate) async fn archive(settings: &StoreSettings) -> WalArchive {
    let repository = Repository::init("main", settings, None).await.unwrap().repository;
    let new = NewLineage {
        system_id: SystemId(7),
        major: PgMajor::new(17).unwrap(),
        segment_size: size(),
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage = repository.create_lineage(&"main".parse().unwrap(), new).await.unwrap();
    repository.wal(&lineage)
}

pub(crate) fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).unwrap()
}

pub(crate) fn segment(timeline: u32, number: u64) -> SegmentName {
    SegmentNo(number).name(TimelineId::new(timeline).unwrap(), size())
}

/// Bytes of a record.
pub(crate) const RECORD: usize = 48;

/// The beginning of a segment with so many records, which begin behind the header of its first page.
pub(crate) fn records(of: SegmentName, count: usize) -> Vec<u8> {
    records_of(of, &vec![5; count])
}

/// The same with a record for each of these bytes, of which it consists.
pub(crate) fn records_of(of: SegmentName, content: &[u8]) -> Vec<u8> {
    let start = of.number(size()).unwrap().start(size());
    let mut bytes = magic_of_major(PgMajor::new(17).unwrap()).to_le_bytes().to_vec();
    // It is the long header of a segment's first page.
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(of.timeline.get().to_le_bytes());
    bytes.extend(start.0.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend(7_u64.to_le_bytes());
    bytes.extend((1_u32 << 20).to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    let mut previous = start - 64;
    for byte in content {
        let position = start + bytes.len() as u64;
        let body = [vec![255, 22], vec![*byte; 22]].concat();
        let mut header = u32::try_from(RECORD).unwrap().to_le_bytes().to_vec();
        header.extend(9_u32.to_le_bytes());
        header.extend(previous.0.to_le_bytes());
        header.extend([0, 10, 0, 0]);
        let crc = crc32c(&[&body[..], &header[..]].concat());
        header.extend(crc.to_le_bytes());
        bytes.extend(header);
        bytes.extend(body);
        previous = position;
    }
    bytes
}

/// The check over records, Castagnoli's polynomial.
fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}
