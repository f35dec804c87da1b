//! Scans of archives in directories. Segments hold one byte again and again: what is before the zeros counts as records.

mod range;
mod read;

use bytes::Bytes;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{SegmentNo, SegmentSize, TimelineId, WalFileName};
use walpoint_storage::object::ContentHash;

use super::*;
use crate::backup::Backups;
use crate::catalog::LineageCatalog;
use crate::index::fixtures;
use crate::index::tests::{Bed, header};
use crate::wal::WalHeader;
use crate::wal::slices::SliceFacts;

const SIZE: u64 = 1 << 20;
const FIRST: TimelineId = TimelineId::FIRST;

fn size() -> SegmentSize {
    SegmentSize::new(SIZE).unwrap()
}

fn tli(id: u32) -> TimelineId {
    TimelineId::new(id).unwrap()
}

/// Where a segment starts.
fn start(number: u64) -> Lsn {
    SegmentNo(number).start(size())
}

fn name(number: u64) -> SegmentName {
    SegmentNo(number).name(FIRST, size())
}

/// Stores a segment, so many bytes of which are this one.
async fn store(bed: &Bed, timeline: TimelineId, number: u64, (byte, count): (u8, u64)) {
    let mut content = vec![byte; usize::try_from(count).unwrap()];
    content.resize(usize::try_from(SIZE).unwrap(), 0);
    let hash = bed.archive.repository().sealer().content_hash(&content);
    let header = WalHeader { hash, ..header(bed.archive.lineage().id, timeline, number) };
    fixtures::with_content(&bed.archive, &header, &content).await.unwrap();
}

/// Stores a slice of a segment, made for what lies before it or for something else.
async fn stream(bed: &Bed, number: u64, (from, count): (u64, usize), fits: bool) {
    let mut before = bed.archive.content_hasher();
    before.update(&vec![1; usize::try_from(from).unwrap()]);
    let before = if fits { ContentHash(*before.finalize().as_bytes()) } else { ContentHash([9; 32]) };
    let facts = SliceFacts {
        segment: name(number),
        start: start(number) + from,
        before,
        history: HistoryHash::NONE,
        received: jiff::Timestamp::UNIX_EPOCH,
    };
    bed.archive.put_slice(&facts, 1, Bytes::from(vec![1; count])).await.unwrap();
}

async fn delete_slices(bed: &Bed, number: u64) {
    let slices = bed.archive.slices(name(number)).await.unwrap();
    bed.archive.delete_slices(name(number), &slices).await.unwrap();
}

fn delete(bed: &Bed, number: u64) {
    let key = bed.archive.paths().file(WalFileName::Segment(name(number)));
    std::fs::remove_file(bed.dir.path().join(key.as_str())).unwrap();
}

async fn catalog(bed: &Bed) -> LineageCatalog {
    let backups = Backups::of(bed.archive.repository(), &bed.archive.lineage().cluster);
    LineageCatalog::load(bed.archive.clone(), &backups, &[]).await.unwrap()
}
