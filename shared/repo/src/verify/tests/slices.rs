//! What was streamed of a segment that was never finished, and other copies of such a segment.

use bytes::Bytes;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{SegmentName, SegmentNo, TimelineId, WalFileName};
use walpoint_storage::object::ContentHash;

use super::{flip, path, readable_world, run};
use crate::index::tests::Bed;
use crate::verify::*;
use crate::wal::WalContent;
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

/// K4: each copy of two servers is sound by itself, and a restore believes neither. The beginning of a longer copy is no finding.
#[tokio::test(flavor = "multi_thread")]
async fn incomplete_copies_that_contradict_each_other_are_found() {
    let (bed, _) = readable_world().await;
    let size = bed.archive.lineage().segment_size;
    let segment = SegmentNo(30).name(TimelineId::FIRST, size);
    let copy = async |seed: u8, filled: u64| {
        let content = WalContent::from(vec![seed; size.as_usize()]).with_zeros_from(filled);
        bed.archive.put_file(WalFileName::Partial(segment), content).await.unwrap();
    };
    copy(1, 5000).await;
    let sound = run(&bed, Depth::Full).await;
    copy(1, 3000).await;
    put(&bed, segment, &[1; 300], (0, 300), 1).await;
    assert_eq!(run(&bed, Depth::Full).await.finding_count, sound.finding_count);
    copy(2, 4000).await;
    let found = run(&bed, Depth::Full).await;
    assert_eq!(found.finding_count, sound.finding_count + 1, "{found:#?}");
    let split = found.findings.iter().find(|finding| finding.object.ends_with(".partial")).unwrap();
    assert_eq!((split.kind, &split.remedy), (FindingKind::Chain, &Cure::SplitBrain));
    assert!(split.what.contains("these copies contradict each other"), "{}", split.what);
    assert_eq!(split.moments.as_deref(), Some("from 0/1E00000 on, on timeline 1"));

    bed.store_whole(30).await;
    let whole = run(&bed, Depth::Full).await;
    assert!(whole.findings.iter().all(|finding| !finding.object.ends_with(".partial")), "{whole:#?}");
}
