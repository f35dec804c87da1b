//! The segment that a server was still writing, by what was streamed of it.

use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use walpoint_base::facts::HistoryHash;
use walpoint_base::{Lsn, SegmentName, SegmentNo};
use walpoint_plan::restore::testing::world::*;
use walpoint_plan::restore::*;
use walpoint_storage::object::ContentHash;

use super::archived::{archive, open};
use super::decoder::{Decoder, content};
use crate::index::tests::{Bed, bed};
use crate::wal::slices::SliceFacts;

/// Stores the only slice of a segment.
async fn stream(bed: &Bed, segment: SegmentName, content: &[u8]) {
    bed.archive.delete_slices(segment, &bed.archive.slices(segment).await.unwrap()).await.unwrap();
    let facts = SliceFacts {
        segment,
        start: segment.number(size()).unwrap().start(size()),
        before: ContentHash(*bed.archive.content_hasher().finalize().as_bytes()),
        history: HistoryHash::NONE,
        received: jiff::Timestamp::UNIX_EPOCH,
    };
    bed.archive.put_slice(&facts, 1, Bytes::copy_from_slice(content)).await.unwrap();
}

/// A record may begin in the last whole segment and reach into the open one. Until its end is streamed nothing can be recovered from
/// that, and recovery ends before it; from then on it counts, as what was confirmed with it does.
#[tokio::test]
async fn what_was_streamed_counts_from_the_first_record_that_is_complete_in_it() {
    let mut world = World::default();
    world.graph.add_known(tli(1));
    let end = Lsn(3 * SIZE + 64);
    let positions = [SIZE + SIZE / 2, 2 * SIZE + SIZE / 4, 2 * SIZE + SIZE / 2, end.0];
    let record = |pair: &[u64]| Record {
        timeline: tli(1),
        start: Lsn(pair[0]),
        end: Lsn(pair[1]),
        kind: TestRecordKind::Commit { time: at(100), xid: 700 },
    };
    world.records.insert(tli(1), positions.windows(2).map(record).collect());
    world.files.extend([1, 2].map(|n| (tli(1), SegmentNo(n))));
    world.backup(1, positions[0], positions[1], 40, 60);
    let (bed, open_segment) = (bed().await, SegmentNo(3).name(tli(1), size()));
    archive(&world, &bed, &mut StdRng::seed_from_u64(1)).await;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let latest = async || {
        let (mut catalog, request) = (open(&world, &bed).await, RestoreRequest::default());
        let now = at(9000).to_time();
        let plan = catalog.ask(Some(&decoder), |facts| plan(facts, &request, now)).await.unwrap().unwrap();
        (plan.until, plan.fork.map(|fork| fork.cut))
    };

    stream(&bed, open_segment, &[0; 100]).await;
    assert_eq!(bed.archive.copied_until(open_segment, &decoder).await.unwrap(), None);
    assert_eq!(latest().await, (Lsn(3 * SIZE), None));

    let text = content(&world, tli(1), SegmentNo(3));
    let length = text.iter().position(|byte| *byte == 0).unwrap();
    stream(&bed, open_segment, &text[..length]).await;
    assert_eq!(bed.archive.copied_until(open_segment, &decoder).await.unwrap(), Some(end));
    assert_eq!(latest().await, (end, Some(end)));
}
