//! The segment that a server was still writing, by what was streamed of it.

use std::sync::Arc;

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use walpoint_base::facts::HistoryHash;
use walpoint_base::target::FullXid;
use walpoint_base::{Lsn, SegmentName, SegmentNo};
use walpoint_plan::restore::testing::world::*;
use walpoint_plan::restore::*;
use walpoint_storage::object::ContentHash;

use super::archived::{archive, open};
use super::decoder::{Decoder, content};
use crate::catalog::LineageCatalog;
use crate::index::tests::{Bed, bed};
use crate::planning::marked;
use crate::wal::WalCopies;
use crate::wal::slices::{SliceFacts, Superseded};

/// Stores the only slice of a segment.
async fn stream(bed: &Bed, segment: SegmentName, content: &[u8]) {
    bed.archive.delete_slices(segment, &bed.archive.slices(segment).await.unwrap()).await.unwrap();
    store_slice(bed, segment, content, 0).await;
}

/// Stores the slice that a segment's beginning has from an offset on.
async fn store_slice(bed: &Bed, segment: SegmentName, beginning: &[u8], from: usize) {
    let mut before = bed.archive.content_hasher();
    before.update(&beginning[..from]);
    let facts = SliceFacts {
        segment,
        start: segment.number(size()).unwrap().start(size()) + from as u64,
        before: ContentHash(*before.finalize().as_bytes()),
        history: HistoryHash::NONE,
        received: jiff::Timestamp::UNIX_EPOCH,
    };
    bed.archive.put_slice(&facts, 1, Bytes::copy_from_slice(&beginning[from..])).await.unwrap();
}

/// Damages the last slice of a segment.
async fn damage(bed: &Bed, segment: SegmentName) {
    let last = *bed.archive.slices(segment).await.unwrap().last().unwrap();
    let key = bed.archive.paths().slice(segment, last.start, last.end, last.session);
    let path = bed.dir.path().join(key.as_str());
    let mut bytes = std::fs::read(&path).unwrap();
    let flipped = bytes.len() - 20;
    bytes[flipped] ^= 1;
    walpoint_base::durable::replace(&path, &bytes, 0o600).unwrap();
}

/// The last record begins in the last whole segment and ends here, in the open one.
const END: Lsn = Lsn(3 * SIZE + 64);

/// That world in a repository, its open segment, and what that begins with.
async fn begun() -> (World, Bed, SegmentName, Vec<u8>) {
    let mut world = World::default();
    world.graph.add_known(tli(1));
    let positions = [SIZE + SIZE / 2, 2 * SIZE + SIZE / 4, 2 * SIZE + SIZE / 2, END.0];
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
    let mut text = content(&world, tli(1), SegmentNo(3));
    text.truncate(text.iter().position(|byte| *byte == 0).unwrap());
    (world, bed, open_segment, text)
}

async fn latest(world: &World, bed: &Bed, decoder: &Arc<dyn SegmentDecoder>) -> Verdict {
    let (mut catalog, request) = (open(world, bed).await, RestoreRequest::default());
    let now = at(9000).to_time();
    catalog.ask(Some(decoder), |facts| plan(facts, &request, now)).await.unwrap()
}

/// A record may begin in the last whole segment and reach into the open one. Until its end is streamed nothing can be recovered from
/// that, and recovery ends before it; from then on it counts, as what was confirmed with it does.
#[tokio::test]
async fn what_was_streamed_counts_from_the_first_record_that_is_complete_in_it() {
    let (world, bed, open_segment, text) = begun().await;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let latest = async || {
        let plan = latest(&world, &bed, &decoder).await.unwrap();
        (plan.until, plan.fork.map(|fork| fork.cut))
    };

    stream(&bed, open_segment, &[0; 100]).await;
    assert_eq!(bed.archive.copied_until(open_segment, &decoder).await.unwrap(), None);
    assert_eq!(latest().await, (Lsn(3 * SIZE), None));

    stream(&bed, open_segment, &text).await;
    assert_eq!(bed.archive.copied_until(open_segment, &decoder).await.unwrap(), Some(END));
    assert_eq!(latest().await, (END, Some(END)));
}

/// Content as it is fed.
fn fed(_: &mut (), _: SegmentName, content: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    Ok(vec![content.to_vec()])
}

/// The segment may be completed between the plan and what is read for it.
#[tokio::test]
async fn a_copy_that_was_planned_with_is_read_from_the_whole_segment_once_that_is_stored() {
    let (mut world, bed, open_segment, text) = begun().await;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    stream(&bed, open_segment, &text).await;
    let plan = latest(&world, &bed, &decoder).await.unwrap();
    let copies = WalCopies::new(bed.archive.clone(), []);
    let content = async || marked::in_built(&copies, &plan, || (), fed).await;
    let copied = content().await.unwrap();
    assert!(copied.len() == 1 && copied[0].iter().any(|byte| *byte != 0));

    bed.archive.delete_slices(open_segment, &bed.archive.slices(open_segment).await.unwrap()).await.unwrap();
    let gone = content().await.unwrap_err();
    assert!(Superseded::is_why(&gone), "{gone}");
    world.files.insert((tli(1), SegmentNo(3)));
    archive(&world, &bed, &mut StdRng::seed_from_u64(1)).await;
    assert!(content().await.unwrap() == copied);
}

/// Without a decoder slices count to their ends, as far as they are sound. What is wrong with them is one problem, however often they are
/// looked at.
#[tokio::test]
async fn a_window_ends_before_a_damaged_slice() {
    let (world, bed, open_segment, text) = begun().await;
    let start = Lsn(3 * SIZE);
    store_slice(&bed, open_segment, &text[..30], 0).await;
    store_slice(&bed, open_segment, &text, 30).await;
    let of_slices = |catalog: &LineageCatalog| {
        catalog.problems().iter().filter(|problem| problem.contains(".slices/")).count()
    };
    let end = async || {
        let mut catalog = open(&world, &bed).await;
        let windows = catalog.ask(None, |facts| windows::of_timeline(facts, tli(1))).await.unwrap();
        (windows.last().unwrap().until, of_slices(&catalog))
    };
    assert_eq!(end().await, (start + text.len() as u64, 0));
    damage(&bed, open_segment).await;
    assert_eq!(end().await, (start + 30, 1));

    stream(&bed, open_segment, &text).await;
    damage(&bed, open_segment).await;
    assert_eq!(end().await, (start, 1));
    let (mut catalog, decoder) = (open(&world, &bed).await, Arc::new(Decoder) as Arc<dyn SegmentDecoder>);
    for decoder in [None, Some(&decoder)] {
        catalog.ask(decoder, |facts| windows::of_timeline(facts, tli(1))).await.unwrap();
    }
    assert_eq!(of_slices(&catalog), 1);
}

/// Slices may be sound and hold no WAL: nothing shows then how much of it there was.
#[tokio::test]
async fn what_was_streamed_and_cannot_be_decoded_is_not_left_out() {
    let (world, bed, open_segment, text) = begun().await;
    stream(&bed, open_segment, &text).await;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Unreadable(open_segment));
    let refused = latest(&world, &bed, &decoder).await.unwrap_err();
    let Why::EndsIncomplete { segment, until, damaged: Some(what) } = &refused.why else {
        panic!("{refused:?}")
    };
    assert_eq!((*segment, *until), (open_segment, Lsn(3 * SIZE)));
    assert!(what.contains("cannot be decoded: a page of nothing"), "{what}");
    assert!(bed.archive.open_segment(open_segment, &decoder).await.is_err(), "recovery is given none of it");
}

/// Decodes the invented format, but for one segment.
#[derive(Debug)]
struct Unreadable(SegmentName);

impl SegmentDecoder for Unreadable {
    fn search(&self, rule: &StopRule, from: Lsn, until: Lsn) -> Box<dyn StopSearch> {
        Box::new(Refusing(Decoder.search(rule, from, until), self.0))
    }

    fn tablespaces(&self) -> Box<dyn TablespaceSearch> {
        Decoder.tablespaces()
    }

    fn required(&self) -> Box<dyn RequiredSearch> {
        Decoder.required()
    }

    fn removals(&self, before: Lsn) -> Option<Box<dyn RemovalSearch>> {
        Decoder.removals(before)
    }
}

struct Refusing(Box<dyn StopSearch>, SegmentName);

impl StopSearch for Refusing {
    fn next_xid(&self) -> Option<FullXid> {
        self.0.next_xid()
    }

    fn feed(&mut self, name: SegmentName, content: &[u8]) -> Result<SearchState, String> {
        match name == self.1 {
            true => Err("a page of nothing".to_owned()),
            false => self.0.feed(name, content),
        }
    }
}
