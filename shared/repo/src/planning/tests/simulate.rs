//! A large archive, of which only the index, the tail and one segment are really there: planning must read nothing else.

use std::sync::Arc;

use walpoint_base::{BackupId, RecoveryTarget, SegmentNo, TargetTimeline, TimelineId};
use walpoint_plan::restore::testing::world::{size, tli};
use walpoint_plan::restore::*;

use super::decoder::{Decoder, facts};
use crate::catalog::Catalog;
use crate::index::tests::{Bed, bed, commit_time, header};
use crate::index::{FANOUT, IndexWriter, SegmentEntry, fixtures};
use crate::planning;
use crate::wal::WalFlags;

pub(super) const SEGMENTS: u64 = 100_000;
const FIRST: TimelineId = TimelineId::FIRST;

/// Index objects for all full groups; the rest as objects.
pub(super) async fn large_archive(bed: &Bed) {
    let archive = &bed.archive;
    let lineage = archive.lineage().id;
    let entry = |number: SegmentNo| Some(SegmentEntry::of(&header(lineage, FIRST, number.0), 5_000_000));
    fixtures::sealed_groups(archive, FIRST, SEGMENTS / FANOUT, entry).await.unwrap();
    let tail = SEGMENTS / FANOUT * FANOUT;
    bed.store(tail..SEGMENTS - 15).await;
    IndexWriter::new(archive.clone()).catch_up(FIRST).await.unwrap();
    bed.store(SEGMENTS - 15..SEGMENTS).await;
}

/// A real segment with one commit in it, as its index entry says.
pub(super) async fn real_segment(bed: &Bed, number: u64) {
    let start = SegmentNo(number).start(size()).0;
    let text = format!("1 {} {} commit {} {number}\n", start + 40, start + 400, commit_time(number).0);
    let mut content = text.into_bytes();
    content.resize(size().as_usize(), 0);
    let name = SegmentNo(number).name(FIRST, size());
    let facts = facts(bed.archive.lineage().system_id(), name, &content);
    bed.archive.put_segment(&facts, content, WalFlags::default()).await.unwrap();
}

pub(super) async fn backup(bed: &Bed, segment: u64) -> BackupId {
    let (start, end) = (SegmentNo(segment).start(size()) + 40, SegmentNo(segment + 2).start(size()) + 400);
    let id = BackupId::new(commit_time(segment).to_time(), FIRST, start, u32::try_from(segment).unwrap());
    crate::backup::fixtures::smallest(&bed.archive, id, end, commit_time(segment + 2).to_time())
        .await
        .unwrap();
    id
}

#[tokio::test]
async fn a_plan_over_a_hundred_thousand_segments_takes_few_requests() {
    let bed = bed().await;
    let mut backups = Vec::new();
    for segment in (1000..SEGMENTS - 2000).step_by(10_000) {
        backups.push(backup(&bed, segment).await);
    }
    large_archive(&bed).await;
    real_segment(&bed, 55_556).await;
    let repository = bed.archive.repository();
    let cluster = bed.archive.lineage().cluster.clone();
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let now = commit_time(SEGMENTS + 60).to_time();
    let ask = async |request: RestoreRequest| {
        let before = repository.store().requests().total();
        let verdict = planning::plan(repository, &cluster, &request, &decoder, now).await.unwrap();
        (verdict, repository.store().requests().total() - before)
    };
    let on_first =
        |target| RestoreRequest { target, timeline: TargetTimeline::Id(tli(1)), ..RestoreRequest::default() };

    // Between the commits of two segments.
    let time = walpoint_base::PgTimestamp(commit_time(55_555).0 + 500_000);
    let (plan, requests) = ask(on_first(RecoveryTarget::Time(time))).await;
    let plan = plan.unwrap();
    assert_eq!(plan.backup.id, backups[5], "at segment 51,000");
    let stop = plan.stop.unwrap();
    assert_eq!((stop.record, stop.xid), (SegmentNo(55_556).start(size()) + 40, Some(55_556)));
    assert_eq!(
        plan.wal,
        [SegmentRange { timeline: FIRST, first: SegmentNo(51_000), last: SegmentNo(55_556) }]
    );
    assert!(requests <= 40, "{requests} requests for a time");

    let (plan, requests) = ask(on_first(RecoveryTarget::Xid(55_556))).await;
    assert_eq!(plan.unwrap().stop.unwrap().xid, Some(55_556));
    assert!(requests <= 42, "{requests} requests for a transaction");

    let (plan, requests) = ask(RestoreRequest::default()).await;
    let plan = plan.unwrap();
    assert_eq!((plan.until, plan.backup.id), (SegmentNo(SEGMENTS).start(size()), backups[9]));
    assert!(requests <= 40, "{requests} requests for the latest moment");

    let (refusal, requests) = ask(on_first(RecoveryTarget::Time(commit_time(SEGMENTS)))).await;
    let refusal = refusal.unwrap_err();
    assert!(matches!(refusal.why, Why::AfterEnd { latest, .. } if latest == Some(commit_time(SEGMENTS - 1))));
    assert!(requests <= 40, "{requests} requests for a time after the last commit");

    let before = repository.store().requests().total();
    let mut catalog = Catalog::load(repository, &cluster).await.unwrap();
    let lineage = &mut catalog.lineages_mut()[0];
    let windows = lineage.ask(None, |facts| windows::of_timeline(facts, FIRST)).await.unwrap();
    let requests = repository.store().requests().total() - before;
    assert_eq!(windows.len(), 1);
    assert_eq!((windows[0].oldest, windows[0].backups), (backups[0], 10));
    assert_eq!(windows[0].until_time, Some(commit_time(SEGMENTS - 1)));
    assert!(requests <= 40, "{requests} requests for the windows");
}

#[tokio::test]
async fn a_segment_deleted_behind_the_indexs_back_is_missed_by_the_proof() {
    let bed = bed().await;
    let archive = &bed.archive;
    backup(&bed, 100).await;
    bed.store(100..1200).await;
    IndexWriter::new(archive.clone()).catch_up(FIRST).await.unwrap();
    let gone = SegmentNo(500);
    let key = archive.paths().file(walpoint_base::WalFileName::Segment(gone.name(FIRST, size())));
    archive.repository().store().delete(&key).await.unwrap();

    let cluster = archive.lineage().cluster.clone();
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let now = commit_time(1300).to_time();
    let request = RestoreRequest::default();
    let repository = archive.repository();
    let believed = planning::plan(repository, &cluster, &request, &decoder, now).await.unwrap().unwrap();
    assert_eq!(believed.until, SegmentNo(1200).start(size()));
    let refusal = planning::prove(repository, &cluster, &request, &decoder, now).await.unwrap().unwrap_err();
    assert_eq!(refusal.missing, [SegmentRange { timeline: FIRST, first: gone, last: gone }]);
}

/// The daemon and the agents spawn these.
#[allow(dead_code)]
fn futures_can_be_spawned(
    catalog: &mut Catalog,
    writer: &mut IndexWriter,
    decoder: &Arc<dyn SegmentDecoder>,
    request: &RestoreRequest,
    now: jiff::Timestamp,
) {
    fn spawned(_: impl Send) {}
    spawned(planning::plan_from(catalog, request, decoder, now));
    spawned(writer.write_due());
    spawned(writer.catch_up(FIRST));
    let mut gone = walpoint_plan::runs::Runs::default();
    gone.insert(SegmentNo(0), 0);
    spawned(writer.forget(FIRST, &gone));
    spawned(catalog.status());
}

#[tokio::test]
async fn a_plan_does_not_lead_through_the_wal_of_two_servers() {
    // In a group that is sealed, and in the open one.
    for broken in [600, 1150] {
        let bed = bed().await;
        let archive = &bed.archive;
        backup(&bed, 100).await;
        for number in 100..1200 {
            let mut header = header(archive.lineage().id, FIRST, number);
            if number == broken {
                header.chain.begin.previous = Some(header.segment.start(size()) - 96);
            }
            bed.store_header(header).await;
        }
        IndexWriter::new(archive.clone()).catch_up(FIRST).await.unwrap();
        let cluster = archive.lineage().cluster.clone();
        let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
        let now = commit_time(1300).to_time();
        let plan = async |target| {
            let request = RestoreRequest { target, ..RestoreRequest::default() };
            planning::plan(archive.repository(), &cluster, &request, &decoder, now).await.unwrap()
        };
        let refusal = plan(RecoveryTarget::Latest).await.unwrap_err();
        let named = SegmentNo(broken).name(FIRST, size());
        assert!(matches!(refusal.why, Why::BrokenChain { segment, .. } if segment == named), "{refusal:?}");
        let split_brain =
            matches!(&refusal.why, Why::BrokenChain { fault, recorded: false, .. } if fault.is_split_brain());
        assert!(split_brain, "{refusal:?}");
        let reachable = plan(RecoveryTarget::Immediate).await;
        assert!(reachable.is_ok(), "{reachable:?}");
        assert_eq!(refusal.hints[0], Hint::EarlierThan(SegmentNo(broken).start(size())), "{refusal:?}");
        // What is offered ends there, too, and begins anew with a backup behind it.
        backup(&bed, broken + 5).await;
        let mut catalog = Catalog::load(archive.repository(), &cluster).await.unwrap();
        let lineage = &mut catalog.lineages_mut()[0];
        let windows = lineage.ask(None, |facts| windows::of_timeline(facts, FIRST)).await.unwrap();
        let ends: Vec<_> = windows.iter().map(|w| (SegmentNo::of(w.from, size()).0, w.until)).collect();
        let start = |number| SegmentNo(number).start(size());
        assert_eq!(ends, [(102, start(broken)), (broken + 7, start(1200))]);
    }
}
