//! The driver against real repositories: random clusters are archived, some of their WAL indexed, and every plan must be
//! the one that the pure planner makes of the cluster's own records.

use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use walpoint_base::{Lsn, RecoveryTarget, SegmentNo, WalFileName};
use walpoint_plan::restore::testing::random::{random_request, random_world};
use walpoint_plan::restore::testing::world::*;
use walpoint_plan::restore::*;

use super::decoder::{Counting, Decoder, content, facts};
use crate::backup::{Backups, ListedBackup, ListedState};
use crate::catalog::LineageCatalog;
use crate::index::IndexWriter;
use crate::index::tests::{Bed, bed};
use crate::wal::WalFlags;

pub(super) async fn archive(world: &World, bed: &Bed, rng: &mut StdRng) {
    let archive = &bed.archive;
    for timeline in world.graph.ids() {
        let entries = world.history(timeline).entries();
        if !entries.is_empty() {
            let text: String =
                entries.iter().map(|e| format!("{}\t{}\t{}\n", e.parent, e.switch, e.reason)).collect();
            archive.put_file(WalFileName::History(timeline), text.into_bytes()).await.unwrap();
        }
    }
    let mut writer = IndexWriter::new(archive.clone());
    for (count, &(timeline, number)) in world.files.iter().enumerate() {
        let name = number.name(timeline, size());
        let content = content(world, timeline, number);
        let facts = facts(archive.lineage().system_id(), name, &content);
        archive.put_segment(&facts, content, WalFlags::default()).await.unwrap();
        if count % 9 == 0 && rng.random_ratio(1, 2) {
            writer.catch_up(timeline).await.unwrap();
        }
    }
}

pub(super) async fn open(world: &World, bed: &Bed) -> LineageCatalog {
    let backups = Backups::of(bed.archive.repository(), &bed.archive.lineage().cluster);
    let state = ListedState::Finished(at(0).to_time());
    let listed: Vec<ListedBackup> = world
        .backups
        .iter()
        .map(|b| ListedBackup { id: b.id, begun: None, progress: 0, published: false, state })
        .collect();
    let mut catalog = LineageCatalog::load(bed.archive.clone(), &backups, &listed).await.unwrap();
    for backup in &world.backups {
        let facts = BackupFacts { lineage: catalog.id(), ..backup.clone() };
        let answer = Answer::Backup(BackupState::Complete(Box::new(facts)));
        catalog.presume(Question::Backup(backup.id), answer);
    }
    catalog
}

/// A restore point whose record crosses the end of a segment has no object, so no list has it. Records of an invented cluster
/// cross a thousand times as often as real ones.
fn keep_points_from_crossing(world: &mut World) {
    for record in world.records.values_mut().flatten() {
        let crosses = SegmentNo::of(record.start, size()) != SegmentNo::before(record.end, size());
        if crosses && matches!(record.kind, TestRecordKind::Point(_)) {
            record.kind = TestRecordKind::Other;
        }
    }
}

#[tokio::test]
async fn plans_from_a_repository_are_those_from_the_records() {
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let now = at(1_000_000).to_time();
    let (mut plans, mut refusals) = (0, 0);
    for seed in 0..12 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = random_world(&mut rng);
        keep_points_from_crossing(&mut world);
        // None is archived.
        world.partials.clear();
        let bed = bed().await;
        archive(&world, &bed, &mut rng).await;
        let mut catalog = open(&world, &bed).await;
        for timeline in world.graph.ids() {
            // A timeline that left nothing in the archive but its descendants' histories may be unknown.
            assert_eq!(catalog.facts().graph.history(timeline), Some(world.history(timeline)), "seed {seed}");
        }
        for _ in 0..60 {
            let request = random_request(&mut rng, &world);
            let ours = catalog.ask(Some(&decoder), |facts| plan(facts, &request, now)).await.unwrap();
            let context = || format!("seed {seed} {request:?}\n{world:#?}");
            match (ours, world.plan(&request)) {
                (Ok(ours), Ok(theirs)) => {
                    plans += 1;
                    assert_eq!((&ours.stop, &ours.wal), (&theirs.stop, &theirs.wal), "{}", context());
                    assert_eq!(
                        (ours.until, ours.backup.id),
                        (theirs.until, theirs.backup.id),
                        "{}",
                        context()
                    );
                    assert_eq!((ours.settings, ours.path), (theirs.settings, theirs.path), "{}", context());
                }
                (Err(ours), Err(theirs)) => {
                    refusals += 1;
                    let kind = |why: &Why| std::mem::discriminant(why);
                    assert_eq!(kind(&ours.why), kind(&theirs.why), "{}", context());
                    assert_eq!(ours.missing, theirs.missing, "{}", context());
                    let near =
                        |u: &Unreachable| u.nearest.iter().map(|m| (m.lsn, m.earlier)).collect::<Vec<_>>();
                    assert_eq!(near(&ours), near(&theirs), "{}", context());
                }
                (ours, theirs) => panic!("{ours:?}\n instead of {theirs:?}\n{}", context()),
            }
        }
    }
    assert!(plans > 60 && refusals > 100, "{plans} plans, {refusals} refusals");
}

/// Records that end in the segment after the one they start in: the index knows nothing of what is in them.
#[tokio::test]
async fn records_across_the_end_of_a_segment_are_found() {
    let mut world = World::default();
    world.graph.add_known(tli(1));
    let kinds = [
        TestRecordKind::Other,
        TestRecordKind::Commit { time: at(100), xid: 700 },
        TestRecordKind::Commit { time: at(4000), xid: 701 },
        TestRecordKind::Other,
        TestRecordKind::Point("across".to_owned()),
        TestRecordKind::Other,
        TestRecordKind::Commit { time: at(5000), xid: 702 },
        TestRecordKind::Commit { time: at(6000), xid: 703 },
    ];
    // Each begins in the middle of a segment and ends in the middle of the next.
    let records = (1..).zip(kinds).map(|(n, kind)| {
        let middle = |n: u64| Lsn(n * SIZE + SIZE / 2);
        Record { timeline: tli(1), start: middle(n), end: middle(n + 1), kind }
    });
    world.records.insert(tli(1), records.collect());
    world.files.extend((1..=9).map(|n| (tli(1), SegmentNo(n))));
    world.backup(1, SIZE + SIZE / 2, 2 * SIZE + SIZE / 2, 40, 60);
    let bed = bed().await;
    archive(&world, &bed, &mut StdRng::seed_from_u64(1)).await;
    let decoder: Arc<dyn SegmentDecoder> = Arc::new(Decoder);
    let mut catalog = open(&world, &bed).await;
    for target in [
        RecoveryTarget::Time(at(3999)),
        RecoveryTarget::Time(at(90)),
        RecoveryTarget::Time(at(5500)),
        RecoveryTarget::Name("across".to_owned()),
        RecoveryTarget::Lsn(Lsn(6 * SIZE)),
    ] {
        let request = RestoreRequest { target, ..RestoreRequest::default() };
        let now = at(9000).to_time();
        let ours = catalog.ask(Some(&decoder), |facts| plan(facts, &request, now)).await.unwrap().unwrap();
        assert_eq!(ours.stop, world.plan(&request).unwrap().stop, "{request:?}");
    }

    // The last record of a backup is looked for from where it may begin.
    let backup = world.backup(1, SIZE + SIZE / 2, 4 * SIZE + SIZE / 2, 70, 80);
    let mut catalog = open(&world, &bed).await;
    let target = RecoveryTarget::Immediate;
    let request = RestoreRequest { target, backup: Some(backup), ..RestoreRequest::default() };
    let now = at(9000).to_time();
    let ours = catalog.ask(Some(&decoder), |facts| plan(facts, &request, now)).await.unwrap().unwrap();
    let last = Lsn(3 * SIZE + SIZE / 2).to_string();
    let set = ours.settings.iter().find(|setting| setting.name == "recovery_target_lsn").unwrap();
    assert_eq!((&set.value, ours.until), (&last, Lsn(4 * SIZE + SIZE / 2)));
    assert_eq!(ours.settings, world.plan(&request).unwrap().settings);
}

/// The clock is ahead for a moment, and the one commit of that moment crosses the end of a segment: recovery to a time before
/// it stops there, however many commits of an earlier time follow. Likewise an old restore point behind which many others cross.
/// No more is decoded than what decides.
#[tokio::test]
async fn a_crossing_record_counts_however_far_back_it_lies() {
    // The end of one group and the beginning of the next.
    let segments = 990..=1090;
    let mut world = World::default();
    world.graph.add_known(tli(1));
    let kind = |n: u64| match n {
        995 => TestRecordKind::Commit { time: at(80_000), xid: 720 },
        1023 => TestRecordKind::Commit { time: at(90_000), xid: 50 },
        1001 => TestRecordKind::Point("old".to_owned()),
        1047 => TestRecordKind::Point("edge".to_owned()),
        n if n % 10 == 0 => TestRecordKind::Point(format!("p{n}")),
        n => {
            let (time, xid) = (at(i64::try_from(n).unwrap() * 10), 700 + u32::try_from(n).unwrap());
            TestRecordKind::Commit { time, xid }
        }
    };
    // One ends in the segment after the one it begins in, the next one lies inside that segment, and is of an earlier time.
    let across = |n: u64| SegmentNo(n).end(size()) - 8 * (2 + n % 6);
    let records = segments.clone().skip(1).flat_map(|n| {
        let middle = Lsn(n * SIZE + SIZE / 2);
        let (time, xid) = (at(i64::try_from(n).unwrap() * 10 + 1), 5000 + u32::try_from(n).unwrap());
        [
            Record { timeline: tli(1), start: across(n - 1), end: middle, kind: kind(n - 1) },
            Record {
                timeline: tli(1),
                start: middle,
                end: across(n),
                kind: TestRecordKind::Commit { time, xid },
            },
        ]
    });
    world.records.insert(tli(1), records.collect());
    world.files.extend(segments.map(|n| (tli(1), SegmentNo(n))));
    let first = world.records[&tli(1)][0].clone();
    world.backup(1, first.start.0, first.end.0, 9_000, 9_005);
    let bed = bed().await;
    archive(&world, &bed, &mut StdRng::seed_from_u64(1)).await;
    IndexWriter::new(bed.archive.clone()).catch_up(tli(1)).await.unwrap();
    let counting = Arc::new(Counting::default());
    let decoder: Arc<dyn SegmentDecoder> = counting.clone();
    let mut catalog = open(&world, &bed).await;
    for target in [
        RecoveryTarget::Time(at(85_000)),
        RecoveryTarget::Time(at(70_000)),
        RecoveryTarget::Time(at(10_895)),
        RecoveryTarget::Time(at(9_925)),
        RecoveryTarget::Name("old".to_owned()),
        RecoveryTarget::Name("edge".to_owned()),
        RecoveryTarget::Name("p1050".to_owned()),
        RecoveryTarget::Xid(50),
        RecoveryTarget::Xid(720),
        RecoveryTarget::Xid(1755),
    ] {
        let request = RestoreRequest { target, ..RestoreRequest::default() };
        let now = at(100_000).to_time();
        let before = counting.count();
        let ours = catalog.ask(Some(&decoder), |facts| plan(facts, &request, now)).await.unwrap().unwrap();
        assert_eq!(ours.stop, world.plan(&request).unwrap().stop, "{request:?}");
        let decoded = counting.count() - before;
        assert!(decoded <= 6, "{decoded} segments were decoded for {request:?}");
    }
}

#[tokio::test]
async fn a_segment_that_arrives_late_is_no_gap() {
    let bed = bed().await;
    bed.store((0..1100).filter(|n| *n != 500)).await;
    IndexWriter::new(bed.archive.clone()).catch_up(tli(1)).await.unwrap();
    let gaps = async || {
        let mut catalog = open(&World::default(), &bed).await;
        catalog.ask(None, |facts| windows::gaps(facts, tli(1))).await.unwrap()
    };
    assert_eq!(
        gaps().await,
        [SegmentRange { timeline: tli(1), first: SegmentNo(500), last: SegmentNo(500) }]
    );
    bed.store([500]).await;
    assert_eq!(gaps().await, [], "the index does not have it yet, the store does");
    let mut damaged = crate::index::tests::header(bed.archive.lineage().id, tli(1), 1100);
    damaged.damaged = true;
    bed.store_header(damaged).await;
    bed.store(1101..1140).await;
    IndexWriter::new(bed.archive.clone()).catch_up(tli(1)).await.unwrap();
    let gap = SegmentRange { timeline: tli(1), first: SegmentNo(1100), last: SegmentNo(1100) };
    assert_eq!(gaps().await, [gap], "recovery cannot pass a damaged segment");
}
