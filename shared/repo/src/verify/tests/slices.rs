//! What was streamed of a segment that was never finished.

use bytes::Bytes;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{SegmentName, SegmentNo, TimelineId};
use walpoint_storage::object::ContentHash;

use super::{flip, path, readable_world, run};
use crate::index::tests::Bed;
use crate::verify::*;
use crate::wal::slices::SliceFacts;

/// A slice of the segment behind the last whole one.
async fn put(bed: &Bed, segment: SegmentName, of: &[u8], (from, to): (usize, usize), session: u32) {
    let size = bed.archive.lineage().segment_size;
    let before = bed.archive.content_hasher().update(&of[..from]).finalize();
    let facts = SliceFacts {
        segment,
        start: segment.number(size).unwrap().start(size) + from as u64,
        before: ContentHash(*before.as_bytes()),
        history: HistoryHash::NONE,
        received: jiff::Timestamp::UNIX_EPOCH,
    };
    bed.archive.put_slice(&facts, session, Bytes::copy_from_slice(&of[from..to])).await.unwrap();
}

/// K4: each slice of two servers is sound by itself.
#[tokio::test(flavor = "multi_thread")]
async fn slices_of_two_servers_and_damaged_ones_are_found() {
    let (bed, _) = readable_world().await;
    let segment = SegmentNo(30).name(TimelineId::FIRST, bed.archive.lineage().segment_size);
    let (ours, theirs) = ([1_u8; 300], [[1_u8; 150], [2; 150]].concat());
    put(&bed, segment, &ours, (0, 100), 1).await;
    put(&bed, segment, &ours, (100, 200), 1).await;
    let sound = run(&bed, Depth::Full).await;
    put(&bed, segment, &theirs, (100, 300), 2).await;
    let found = run(&bed, Depth::Full).await;
    assert_eq!(found.finding_count, sound.finding_count + 1, "{found:#?}");
    let split = found.findings.iter().find(|finding| finding.object.ends_with(".slices")).unwrap();
    assert_eq!((split.kind, &split.remedy), (FindingKind::Chain, &Cure::SplitBrain));
    assert!(split.what.contains("-00000002") && split.moments.as_ref().unwrap().contains("0/1E00096"));

    let last = *bed.archive.slices(segment).await.unwrap().last().unwrap();
    let key = bed.archive.paths().slice(segment, last.start, last.end, last.session);
    flip(&path(&bed, key.as_str()));
    let found = run(&bed, Depth::Full).await;
    let damaged = found.findings.iter().find(|finding| finding.object == key.as_str()).unwrap();
    assert!(matches!(&damaged.remedy, Cure::Plain(hint) if hint.contains("restart the daemon")));
}
