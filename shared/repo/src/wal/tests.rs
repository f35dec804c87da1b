//! The archive of a lineage on the local store, plain and encrypted.

use bytes::Bytes;
use futures_util::TryStreamExt;
use walpoint_base::chain::{ChainBegin, ChainEnd, ChainFacts, Cut, Due};
use walpoint_base::crossing::{CrossingFacts, Piece};
use walpoint_base::facts::{RestorePoint, SegmentMarks, TransactionRange};
use walpoint_base::{
    LineageId, Lsn, PgMajor, PgTimestamp, SegmentFacts, SegmentNo, SegmentSize, SystemId, TimelineHistory,
    TimelineId, WalFileName,
};
use walpoint_storage::error::{Remedy, RepoError};
use walpoint_storage::layout::{AbandonedUntil, ClusterObject, ClusterPaths, Key};
use walpoint_storage::object::MasterKey;
use walpoint_storage::store::StoreSettings;

use super::*;
use crate::lineage::Lineages;
use crate::repository::NewLineage;

const SYSTEM: SystemId = SystemId(7400000000000000001);

/// Facts as the WAL reader would give them for a segment of that name.
pub(crate) fn facts(name: &str, whole: bool) -> SegmentFacts {
    facts_of_size(name, whole, SegmentSize::DEFAULT)
}

pub(crate) fn facts_of_size(name: &str, whole: bool, size: SegmentSize) -> SegmentFacts {
    let name: SegmentName = name.parse().unwrap();
    let start = name.number(size).unwrap().start(size);
    let end = if whole { start + size.bytes() } else { start + 4096 };
    SegmentFacts {
        name,
        system_id: SYSTEM,
        major: PgMajor::new(17).unwrap(),
        size,
        block_size: 8192,
        first_page_timeline: name.timeline,
        content_len: end.since(start),
        first_record: Some(start + 40),
        last_record: Some(end - 80),
        end,
        whole,
        switched: false,
        records: 12,
        transactions: Some(TransactionRange::add(None, PgTimestamp(8_000_000), 731)),
        crossing: CrossingFacts { open: Some(Piece::of(b"beginning")), rest: Piece::of(b"end") },
        chain: ChainFacts {
            begin: ChainBegin {
                previous: Some(start - 48),
                carried: 0,
                overwritten: false,
                rest: Some([1, 2, 3]),
            },
            end: ChainEnd {
                last: Some(end - 80),
                complete: Some(end - 160),
                carried: Some(40),
                due: Some(Due { cut: Cut::At16, sum: 9 }),
            },
        },
        marks: SegmentMarks { tablespace: true, parameters: true, minimal: false, database_copy: true },
        restore_points: vec![RestorePoint {
            name: "before upgrade".to_owned(),
            time: PgTimestamp(7_999_999),
            lsn: start + 120,
            end: Lsn(start.0 + 200),
        }],
        further_points: 0,
    }
}

pub(crate) struct Bed {
    pub(crate) archive: WalArchive,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) async fn bed(size: SegmentSize, master: Option<MasterKey>) -> Bed {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings::at(dir.path().to_str().unwrap());
    let made = Repository::init("main", &settings, master.clone()).await.unwrap();
    assert!(!made.existed && made.probe.findings().iter().all(|(_, f)| f.is_good()), "{:?}", made.probe);
    let cluster = "main".parse().unwrap();
    let new = NewLineage {
        system_id: SYSTEM,
        major: PgMajor::new(17).unwrap(),
        segment_size: size,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![],
    };
    let lineage = made.repository.create_lineage(&cluster, new).await.unwrap();
    // As another program would open it.
    let repository = Repository::open_with_key("main", &settings, master).await.unwrap();
    assert_eq!(repository.lineages(&cluster).await.unwrap().read, std::slice::from_ref(&lineage));
    assert_eq!(repository.lineage_for(&cluster, SYSTEM).await.unwrap().as_ref(), Some(&lineage));
    Bed { archive: repository.wal(&lineage), dir }
}

/// An archive of each sort: plain, and encrypted.
async fn beds(mib: u64) -> Vec<Bed> {
    let size = SegmentSize::new(mib << 20).unwrap();
    vec![bed(size, None).await, bed(size, Some(MasterKey::new([5; 32]))).await]
}

/// A segment's bytes: something that compresses like WAL, then zeros.
pub(crate) fn segment(size: SegmentSize, seed: u8) -> Vec<u8> {
    let mut bytes = vec![0; size.as_usize()];
    let content = bytes.len() * 3 / 4;
    for (n, page) in bytes[..content].chunks_mut(512).enumerate() {
        page[..8].copy_from_slice(&(n as u64 * 31 + u64::from(seed)).to_le_bytes());
        page[100..400].fill(seed);
    }
    bytes
}

const NAME: &str = "000000010000000000000003";

#[tokio::test]
async fn a_segment_comes_back_with_its_facts() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let (facts, content) = (facts_of_size(NAME, true, size), segment(size, 1));
        let name = WalFileName::Segment(facts.name);
        assert_eq!(archive.get(name).await.unwrap(), None);
        assert_eq!(archive.header(facts.name).await.unwrap(), None);

        let put = async |content: &[u8]| {
            archive.put_segment(&facts, Bytes::copy_from_slice(content), WalFlags::default()).await
        };
        assert_eq!(put(&content).await.unwrap(), Stored::New);
        assert_eq!(put(&content).await.unwrap(), Stored::Same);
        let file = archive.get(name).await.unwrap().unwrap();
        assert!(file.content == content);
        let header = file.header.unwrap();
        assert_eq!(archive.header(facts.name).await.unwrap().as_ref(), Some(&header));
        assert_eq!((header.name(), header.end, header.whole), (facts.name, facts.end, true));
        assert_eq!((header.transactions, header.records), (facts.transactions, 12));
        let hash = archive.repository().sealer().content_hash(&content);
        assert_eq!(header.hash, hash);

        match put(&segment(size, 2)).await {
            Err(RepoError::Conflict { key, ours, theirs }) => {
                assert_eq!(key, archive.paths().segment(facts.name));
                assert_eq!(theirs, hash);
                assert_ne!(ours, hash);
            }
            done => panic!("{done:?}"),
        }
        assert!(archive.get(name).await.unwrap().unwrap().content == content, "unchanged");
    }
}

#[tokio::test]
async fn restore_points_are_found_by_name() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        let points = archive.points_named("before upgrade").await.unwrap().points;
        assert_eq!(points, archive.points().await.unwrap().points);
        assert_eq!((points.len(), points[0].timeline), (1, facts.name.timeline));
        assert_eq!(archive.point(&points[0]).await.unwrap().as_ref(), Some(&facts.restore_points[0]));
        assert_eq!(archive.points_named("before").await.unwrap().points, []);
    }
}

/// However many a segment holds, they are a few objects, which are listed, found by name, deleted and known as damaged.
#[tokio::test]
async fn many_restore_points_are_a_few_objects() {
    for Bed { archive, dir, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let mut facts = facts_of_size(NAME, true, size);
        let first = facts.restore_points[0].clone();
        facts.restore_points = (0..10_000_u64)
            .map(|n| RestorePoint {
                name: format!("point {}", n % 5000),
                lsn: Lsn(first.lsn.0 + n * 8),
                end: Lsn(first.lsn.0 + n * 8 + 8),
                time: PgTimestamp(i64::try_from(n).unwrap()),
            })
            .collect();
        // What no target can ask for.
        facts.restore_points[17].name = "x".repeat(64);
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        let keys: Vec<Key> = archive
            .store()
            .list(&archive.paths().points(), None)
            .map_ok(|e| e.key)
            .try_collect()
            .await
            .unwrap();
        assert_eq!(keys.len(), 2, "{keys:?}");
        let cluster = ClusterPaths::new(&"main".parse().unwrap());
        for key in &keys {
            let object = cluster.parse(key).unwrap();
            assert!(
                matches!(object, ClusterObject::Point(_, timeline, _) if timeline == facts.name.timeline),
                "{object:?}"
            );
        }
        let all = archive.points().await.unwrap();
        assert_eq!((all.points.len(), all.damaged.len()), (9_999, 0));
        for n in [0, 17, 4999] {
            let found = archive.points_named(&format!("point {n}")).await.unwrap().points;
            let places = [n, n + 5000]
                .map(|n| (Lsn(first.lsn.0 + n * 8), Some(PgTimestamp(i64::try_from(n).unwrap()))));
            let places = if n == 17 { places[1..].to_vec() } else { places.to_vec() };
            assert_eq!(found.iter().map(|p| (p.lsn, p.time)).collect::<Vec<_>>(), places);
        }
        assert_eq!(archive.points_named("point").await.unwrap().points, []);
        let path = dir.path().join(keys[0].as_str());
        let mut bytes = std::fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        walpoint_base::durable::replace(&path, &bytes, 0o600).unwrap();
        let all = archive.points().await.unwrap();
        assert!(all.points.len() < 9_999);
        assert!(matches!(&all.damaged[..], [RepoError::Corrupt { key, .. }] if *key == keys[0]), "{all:?}");
        // What is damaged keeps nothing from being found elsewhere, and says where the rest lies.
        let named = archive.points_named("point 4000").await.unwrap();
        assert_eq!((named.points.len(), named.damaged.len(), named.unread.len()), (1, 1, 1), "{named:?}");
        assert_eq!(named.unread[0].0, facts.name.timeline);
    }
}

/// A segment with more of them than its facts hold is stored only after all of them.
#[tokio::test]
async fn masses_of_restore_points_are_stored_before_their_segment() {
    const ALL: u64 = 20_000;
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let one = facts_of_size(NAME, true, size);
        let start = one.restore_points[0].lsn;
        let point = move |n: u64| RestorePoint {
            name: format!("point {n}"),
            lsn: start + n * 8,
            end: start + n * 8 + 8,
            time: PgTimestamp(i64::try_from(n).unwrap()),
        };
        let points = move |count| (0..count).map(point).map(Ok);
        let held = SegmentFacts::POINTS as u64;
        let facts = Arc::new(SegmentFacts {
            restore_points: (0..held).map(point).collect(),
            further_points: u32::try_from(ALL - held).unwrap(),
            ..one
        });
        let bytes = segment(size, 1);
        let sealed = || {
            let archive = std::slice::from_ref(&archive);
            let mut sealer = SegmentSealer::new(archive, facts.name, facts.size, Place::Whole).unwrap();
            bytes.chunks(SegmentSealer::PIECE).for_each(|piece| sealer.add(piece).unwrap());
            sealer.finish(&facts, WalFlags::default()).unwrap().remove(0)
        };
        let content = Content::from(bytes.clone());
        let early = archive.put_sealed(sealed(), &content).await.unwrap_err().to_string();
        assert!(early.contains("not stored before it"), "{early}");
        let fewer = archive.put_points(sealed(), points(2 * held)).await.unwrap_err().to_string();
        assert!(fewer.contains("it had 20000 restore points, and 16384"), "{fewer}");
        let broken = points(held).chain([Err(std::io::Error::other("no disk"))]);
        let broken = archive.put_points(sealed(), broken).await.unwrap_err();
        assert!(broken.to_string().contains("cannot be read"), "{broken}");
        let ready = archive.put_points(sealed(), points(ALL)).await.unwrap();
        assert_eq!(archive.put_sealed(ready, &content).await.unwrap(), Stored::New);
        assert_eq!(archive.header(facts.name).await.unwrap().unwrap().restore_points, 20_000);
        let all = archive.points().await.unwrap();
        assert_eq!((all.points.len(), all.damaged.len()), (20_000, 0));
        for n in [0, held, ALL - 1] {
            let found = archive.points_named(&format!("point {n}")).await.unwrap().points;
            assert_eq!(found.iter().map(|p| p.lsn).collect::<Vec<_>>(), [point(n).lsn]);
        }
        // Another server's are not stored.
        let mut other = bytes.clone();
        other[100] ^= 1;
        let mut sealer =
            SegmentSealer::new(std::slice::from_ref(&archive), facts.name, facts.size, Place::Whole).unwrap();
        other.chunks(SegmentSealer::PIECE).for_each(|piece| sealer.add(piece).unwrap());
        let sealed = sealer.finish(&facts, WalFlags::default()).unwrap().remove(0);
        let sealed = archive.put_points(sealed, points(ALL)).await.unwrap();
        let refused = archive.put_sealed(sealed, &Content::from(other)).await.unwrap_err();
        assert!(matches!(refused, RepoError::Conflict { .. }), "{refused}");
        assert_eq!(archive.points().await.unwrap().points.len(), 20_000);
    }
}

#[tokio::test]
async fn an_incomplete_segment_never_stands_in_for_the_whole_one() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let (short, whole) = (facts_of_size(NAME, false, size), facts_of_size(NAME, true, size));
        let content = segment(size, 1);
        let stored = archive.put_segment(&short, content.clone(), WalFlags::default()).await.unwrap();
        assert_eq!(stored, Stored::Ended(short.end));
        let name = WalFileName::Segment(short.name);
        assert_eq!(archive.get(name).await.unwrap(), None);
        let ended = archive.ended(short.name).await.unwrap();
        let [(end, hash)] = ended[..] else { panic!("{ended:?}") };
        assert_eq!(end, short.end);
        let header = archive.ended_header(short.name, end, hash).await.unwrap().unwrap();
        assert!(!header.whole && header.end == short.end);
        let valid = usize::try_from(short.end.since(short.name.number(size).unwrap().start(size))).unwrap();
        let zeroed = [&content[..valid], &vec![0; content.len() - valid]].concat();
        let mut reader = archive.read_ended(short.name, end, hash).await.unwrap().unwrap();
        let mut read = Vec::new();
        while !reader.is_done() {
            read.extend(reader.next_part(Vec::new()).await.unwrap());
        }
        assert!(read == zeroed, "what a recycled file held before is not kept");

        // Another copy of the file, which held something else before; and another content that ends there.
        let mut copy = content.clone();
        copy[valid + 8..].fill(77);
        let again = archive.put_segment(&short, copy, WalFlags::default()).await.unwrap();
        assert_eq!(again, Stored::Ended(short.end));
        assert_eq!(archive.ended(short.name).await.unwrap().len(), 1);
        let mut other = content.clone();
        other[valid - 8] ^= 1;
        archive.put_segment(&short, other, WalFlags::default()).await.unwrap();
        assert_eq!(archive.ended(short.name).await.unwrap().len(), 2);

        let longer = segment(size, 9);
        assert_eq!(
            archive.put_segment(&whole, longer.clone(), WalFlags::default()).await.unwrap(),
            Stored::New
        );
        assert!(archive.get(name).await.unwrap().unwrap().content == longer);
        let again = archive.put_segment(&short, content, WalFlags::default()).await.unwrap();
        assert_eq!(again, Stored::Ended(short.end));
    }
}

#[tokio::test]
async fn what_was_accepted_though_damaged_says_so() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, false, size);
        let stored = archive
            .put_segment(&facts, segment(size, 1), WalFlags { damaged: true, ..WalFlags::default() })
            .await
            .unwrap();
        assert_eq!(stored, Stored::New);
        assert!(archive.header(facts.name).await.unwrap().unwrap().damaged);
    }
}

#[tokio::test]
async fn wal_of_another_cluster_is_refused() {
    let Bed { archive, dir } = bed(SegmentSize::DEFAULT, None).await;
    let size = SegmentSize::DEFAULT;
    let good = facts(NAME, true);
    for (bad, content, word) in [
        (SegmentFacts { system_id: SystemId(1), ..good.clone() }, segment(size, 1), "system identifier 1"),
        (
            SegmentFacts { major: PgMajor::new(16).unwrap(), ..good.clone() },
            segment(size, 1),
            "PostgreSQL 16",
        ),
        (good.clone(), vec![0; 1 << 20], "1048576 bytes"),
        (facts_of_size(NAME, true, SegmentSize::new(1 << 20).unwrap()), vec![0; 1 << 20], "1048576"),
    ] {
        let error = archive.put_segment(&bad, content, WalFlags::default()).await.unwrap_err();
        assert!(matches!(&error, RepoError::Refused { what, .. } if what.contains(word)), "{error}");
    }
    let error = archive.put_file(WalFileName::Segment(good.name), vec![1]).await.unwrap_err();
    assert!(matches!(error, RepoError::Refused { .. }));
    assert!(!dir.path().join("clusters/main/7400000000000000001-1").exists(), "nothing was stored");
}

#[tokio::test]
async fn the_other_files_are_kept_apart_and_protected() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let segment_name: SegmentName = NAME.parse().unwrap();
        let timeline = TimelineId::new(2).unwrap();
        for (name, content) in [
            (WalFileName::History(timeline), b"1\t0/3000000\tno recovery target specified\n".to_vec()),
            (WalFileName::Backup(segment_name, 0x28), b"START WAL LOCATION".to_vec()),
        ] {
            assert_eq!(archive.get(name).await.unwrap(), None);
            assert_eq!(archive.put_file(name, content.clone()).await.unwrap(), Stored::New);
            assert_eq!(archive.put_file(name, content.clone()).await.unwrap(), Stored::Same);
            let error = archive.put_file(name, b"other".to_vec()).await.unwrap_err();
            assert!(matches!(error, RepoError::Conflict { .. }), "{error}");
            let file = archive.get(name).await.unwrap().unwrap();
            assert!(file.content == content && file.header.is_none());
        }
        let partial = WalFileName::Partial(segment_name);
        assert_eq!(archive.get(partial).await.unwrap(), None);
        let (one, other) = (segment(size, 3), segment(size, 4));
        let copy = [&one[..5000], &vec![9; one.len() - 5000]].concat();
        let put = async |content: &[u8]| {
            let content = Content::from(content.to_vec()).with_zeros_from(5000);
            archive.put_file(partial, content).await.unwrap()
        };
        assert_eq!(put(&one).await, Stored::New);
        assert_eq!(put(&copy).await, Stored::Same, "what is behind the end says nothing");
        let read = archive.get(partial).await.unwrap().unwrap().content;
        assert!(read[..5000] == one[..5000] && read[5000..].iter().all(|byte| *byte == 0));
        let longer = Content::from(one.clone()).with_zeros_from(7000);
        assert_eq!(archive.put_file(partial, longer).await.unwrap(), Stored::New, "of another promotion");
        let shorter = Content::from(one.clone()).with_zeros_from(3000);
        assert_eq!(archive.put_file(partial, shorter).await.unwrap(), Stored::New);
        assert_eq!(archive.partials(segment_name).await.unwrap().len(), 3);
        let read = archive.get(partial).await.unwrap().unwrap().content;
        assert!(read[..7000] == one[..7000], "the one that holds most");
        assert_eq!(put(&other).await, Stored::New, "of another server");
        let told = archive.get(partial).await.unwrap_err().to_string();
        assert!(told.contains("two servers wrote this timeline"), "{told}");
        assert_eq!(archive.get(WalFileName::Segment(segment_name)).await.unwrap(), None);
        assert_eq!(archive.histories().await.unwrap(), [timeline]);
        let history = archive.history(timeline).await.unwrap().unwrap();
        assert_eq!(history.parent().unwrap().switch, Lsn(0x3000000));
        assert_eq!(archive.history(TimelineId::FIRST).await.unwrap(), None);
    }
}

/// Copies that contradict each other: the first segment of a timeline that left in it tells which one counts, and what lies behind
/// the switch point makes no difference.
#[tokio::test]
async fn a_younger_timeline_decides_between_copies_that_contradict_each_other() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        let name = facts.name;
        let start = name.number(size).unwrap().start(size);
        let (one, other) = (segment(size, 3), segment(size, 4));
        let put = async |content: &[u8], zeros| {
            let content = Content::from(content.to_vec()).with_zeros_from(zeros);
            archive.put_file(WalFileName::Partial(name), content).await.unwrap()
        };
        put(&one, 5000).await;
        put(&other, 9000).await;
        let copies = archive.contradicting_copies(name).await.unwrap();
        assert_eq!(copies.len(), 2, "{copies:?}");
        let told = archive.get_incomplete(name).await.unwrap_err().to_string();
        assert!(copies.iter().all(|copy| told.contains(copy.trim_matches('"'))), "{told}");

        let heir = TimelineId::new(name.timeline.get() + 1).unwrap();
        let line = format!("{}\t{}\tx\n", name.timeline, Lsn(start.0 + 4000));
        archive.put_file(WalFileName::History(heir), line.into_bytes()).await.unwrap();
        assert_eq!(archive.contradicting_copies(name).await.unwrap().len(), 2, "it has no segment yet");
        let content = [&one[..4000], &other[4000..]].concat();
        let heirs = facts_of_size(&SegmentName { timeline: heir, ..name }.to_string(), true, size);
        archive.put_segment(&heirs, content, WalFlags::default()).await.unwrap();
        assert_eq!(archive.contradicting_copies(name).await.unwrap(), [""; 0]);
        let read = archive.get_incomplete(name).await.unwrap().unwrap().content;
        assert!(read[..5000] == one[..5000] && read[5000..].iter().all(|byte| *byte == 0));
        // Another one of the same server up to there.
        put(&[&one[..4500], &other[4500..]].concat(), 6000).await;
        assert_eq!(archive.contradicting_copies(name).await.unwrap(), [""; 0]);
        let read = archive.get_incomplete(name).await.unwrap().unwrap().content;
        assert!(read[..4500] == one[..4500], "the one that holds most of those that agree");
    }
}

#[tokio::test]
async fn a_refused_history_is_kept_beside_and_an_empty_one_has_no_ancestors() {
    for bed in beds(16).await {
        let archive = &bed.archive;
        let (two, three) = (TimelineId::new(2).unwrap(), TimelineId::new(3).unwrap());
        let ours = b"1\t0/3000000\tno recovery target specified\n".to_vec();
        let theirs = b"1\t0/4000000\tno recovery target specified\n".to_vec();
        archive.put_file(WalFileName::History(two), ours.clone()).await.unwrap();
        archive.put_file(WalFileName::History(three), Vec::new()).await.unwrap();
        assert_eq!(archive.history(three).await.unwrap(), Some(TimelineHistory::root(three)));
        let hash = archive.put_refused_history(two, theirs.clone()).await.unwrap();
        assert_eq!(archive.put_refused_history(two, theirs.clone()).await.unwrap(), hash, "once is enough");
        let listed = archive.all_histories().await.unwrap();
        assert_eq!((listed.stored, listed.refused), (vec![two, three], vec![(two, hash)]));
        assert_eq!(archive.refused_history(two, hash).await.unwrap(), Some(theirs));
        assert_eq!(archive.refused_history(three, hash).await.unwrap(), None);
        assert_eq!(archive.get(WalFileName::History(two)).await.unwrap().unwrap().content, ours);
    }
}

/// Two servers began a timeline of one number: what a person says of the one covers the other in no repository.
#[tokio::test]
async fn an_abandoned_timeline_is_the_one_that_left_its_parent_there() {
    let two = TimelineId::new(2).unwrap();
    let until: SegmentName = "000000020000000000000013".parse().unwrap();
    let fork = |lsn| Some((TimelineId::FIRST, Lsn(lsn)));
    let history = |lsn: u64| format!("1\t0/{lsn:X}\tno recovery target specified\n").into_bytes();
    for (from, to) in beds(16).await.into_iter().zip(beds(16).await.into_iter().rev()) {
        let (from, to) = (&from.archive, &to.archive);
        let name = AbandonedUntil { until, fork: fork(0x500_0000) };
        from.put_file(WalFileName::History(two), history(0x500_0000)).await.unwrap();
        from.abandon_timeline(name, "thrown away", "dba").await.unwrap();
        to.abandon_timeline(name, "thrown away", "dba").await.unwrap();
        // Production's, later.
        to.put_file(WalFileName::History(two), history(0x700_0000)).await.unwrap();
        for (archive, counts) in [(from, true), (to, false)] {
            let listed = archive.all_histories().await.unwrap().abandoned;
            assert_eq!(listed, [name]);
            assert_eq!(archive.abandoned_here(&listed).await.unwrap().contains_key(&two), counts);
        }
        // Nor is what is said of another one of that number taken over.
        let more = AbandonedUntil { until: "000000020000000000000014".parse().unwrap(), ..name };
        from.abandon_timeline(more, "thrown away", "dba").await.unwrap();
        assert_eq!(to.take_verdicts(from).await.unwrap(), 0);
        let own = AbandonedUntil { until, fork: fork(0x700_0000) };
        to.abandon_timeline(own, "thrown away too", "dba").await.unwrap();
        let listed = to.all_histories().await.unwrap().abandoned;
        assert_eq!(to.abandoned_here(&listed).await.unwrap().get(&two), Some(&own));
    }
}

#[tokio::test]
async fn verdicts_about_timelines_are_taken_over_with_each_repositorys_own_hashes() {
    let (two, three) = (TimelineId::new(2).unwrap(), TimelineId::new(3).unwrap());
    let until = AbandonedUntil {
        until: "000000030000000000000007".parse().unwrap(),
        fork: Some((TimelineId::FIRST, Lsn(0x500_0000))),
    };
    for (from, to) in beds(16).await.into_iter().zip(beds(16).await.into_iter().rev()) {
        let (from, to) = (&from.archive, &to.archive);
        let hash = from.put_refused_history(two, b"1\t0/4000000\tsettled\n".to_vec()).await.unwrap();
        from.settle_history(two, hash, "a test copy", "dba").await.unwrap();
        let open = b"1\t0/5000000\topen\n".to_vec();
        from.put_file(WalFileName::History(three), open.clone()).await.unwrap();
        from.put_refused_history(three, open.clone()).await.unwrap();
        from.abandon_timeline(until, "thrown away", "dba").await.unwrap();
        assert_eq!(to.take_verdicts(from).await.unwrap(), 4);
        assert_eq!(to.take_verdicts(from).await.unwrap(), 0, "once is enough");
        assert_eq!(to.abandonment(until).await.unwrap(), from.abandonment(until).await.unwrap());
        let listed = to.all_histories().await.unwrap();
        let own = listed.settled[0].1;
        assert_eq!(listed.refused.len(), 2);
        assert_eq!((listed.settled, listed.abandoned), (vec![(two, own)], vec![until]));
        assert!(listed.refused.contains(&(two, own)));
        let settled = to.settlement(two, own).await.unwrap().unwrap();
        assert_eq!((settled.history, &*settled.who, &*settled.reason), (own, "dba", "a test copy"));
        let (_, own) = listed.refused.into_iter().find(|(timeline, _)| *timeline == three).unwrap();
        assert_eq!(to.refused_history(three, own).await.unwrap(), Some(open));
    }
}

#[tokio::test]
async fn what_is_later_on_a_timeline_is_seen() {
    for Bed { archive, .. } in beds(1).await {
        let size = archive.lineage().segment_size;
        let timeline = TimelineId::FIRST;
        let after = async |n| archive.anything_after(timeline, SegmentNo(n)).await.unwrap();
        assert_eq!(after(0).await, None);
        let put = async |n: u64, whole| {
            let name = SegmentNo(n).name(timeline, size).to_string();
            let facts = facts_of_size(&name, whole, size);
            archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
            archive.paths().segment(facts.name)
        };
        let (three, far) = (put(3, true).await, put(4095 + 3, true).await);
        assert_eq!(after(2).await, Some(three));
        assert_eq!(after(3).await.as_ref(), Some(&far), "also in a later log");
        assert_eq!(after(4098).await, None);
        put(4098, false).await;
        assert_eq!(after(4098).await, None, "what goes with the segment itself is not later");
        put(4099, false).await;
        assert!(after(4098).await.unwrap().as_str().contains(".ended/"));
        // Left by an upload that never finished.
        let part = archive.paths().part(WalFileName::Segment(SegmentNo(5000).name(timeline, size)), "00", 0);
        let mut writer = walpoint_storage::object::ObjectWriter::new(
            archive.sealer(),
            walpoint_storage::object::ObjectKind::Part,
            &part,
        )
        .unwrap();
        writer.frame(b"x").unwrap();
        archive.store().create_once(&writer.finish().unwrap()).await.unwrap();
        assert_eq!(after(4099).await, None);

        assert_eq!(archive.timelines().await.unwrap(), [timeline]);
        let listed = async |from: Option<u64>| -> Vec<WalEntry> {
            let from = from.map(|n| SegmentNo(n).name(timeline, size));
            archive.list(timeline, from).map_ok(|(entry, _)| entry).try_collect().await.unwrap()
        };
        assert_eq!(listed(None).await.len(), 5);
        let tail = listed(Some(4098)).await;
        assert_eq!(tail.len(), 4);
        assert_eq!(tail[0], WalEntry::File(WalFileName::Segment(SegmentNo(4098).name(timeline, size))));
    }
}

#[tokio::test]
async fn a_large_segment_is_kept_in_parts() {
    for Bed { archive, dir } in beds(64).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        let mut content = segment(size, 1);
        // From a file, as the daemon has it.
        let path = dir.path().join("wal file");
        walpoint_base::durable::replace(&path, &content, 0o600).unwrap();
        let put = async || {
            let file = Content::file(std::fs::File::open(&path).unwrap()).unwrap();
            archive.put_segment(&facts, file, WalFlags::default()).await
        };
        assert_eq!(put().await.unwrap(), Stored::New);
        assert_eq!(put().await.unwrap(), Stored::Same);
        let name = WalFileName::Segment(facts.name);
        let file = archive.get(name).await.unwrap().unwrap();
        assert!(file.content == content);
        let hash = archive.repository().sealer().content_hash(&content);
        assert_eq!(file.header.as_ref().unwrap().hash, hash);
        assert_eq!(archive.header(facts.name).await.unwrap(), file.header);
        let entries: Vec<_> = archive.list(TimelineId::FIRST, None).try_collect().await.unwrap();
        assert_eq!(entries.len(), 5, "{entries:?}");
        assert!(entries.iter().all(|(_, e)| e.size < (32 << 20)));

        let mut reader = archive.read(name).await.unwrap().unwrap();
        let (mut buffer, mut got, mut parts) = (Vec::new(), Vec::new(), 0);
        while !reader.is_done() {
            buffer = reader.next_part(buffer).await.unwrap();
            got.extend_from_slice(&buffer);
            parts += 1;
        }
        assert!(got == content && parts == 4 && reader.length() == size.bytes());

        content[40 << 20] ^= 1;
        walpoint_base::durable::replace(&path, &content, 0o600).unwrap();
        match put().await {
            Err(RepoError::Conflict { ours, theirs, .. }) => {
                assert_eq!((ours, theirs), (archive.repository().sealer().content_hash(&content), hash));
            }
            done => panic!("{done:?}"),
        }
        // A part that is gone is damage, never absence.
        let part = entries.iter().find(|(e, _)| matches!(e, WalEntry::Part(_))).unwrap();
        archive.store().delete(&part.1.key).await.unwrap();
        let error = archive.get(name).await.unwrap_err();
        assert!(matches!(&error, RepoError::Corrupt { what, .. } if what.contains("missing")), "{error}");
    }
}

#[tokio::test]
async fn one_reading_seals_for_several_archives() {
    for mib in [1, 64] {
        let beds = beds(mib).await;
        let archives: Vec<WalArchive> = beds.iter().map(|bed| bed.archive.clone()).collect();
        let size = archives[0].lineage().segment_size;
        let (facts, bytes) = (Arc::new(facts_of_size(NAME, true, size)), segment(size, 1));
        let sealer = |facts: &Arc<SegmentFacts>, place, bytes: &[u8]| {
            let mut sealer = SegmentSealer::new(&archives, facts.name, facts.size, place).unwrap();
            bytes.chunks(SegmentSealer::PIECE).try_for_each(|piece| sealer.add(piece))?;
            sealer.finish(facts, WalFlags::default())
        };
        let sealed = sealer(&facts, Place::Whole, &bytes).unwrap();
        let content = Content::from(bytes.clone());
        for (archive, sealed) in archives.iter().zip(sealed) {
            assert!(sealed.held() <= SegmentSealer::room(size) as u64);
            assert_eq!(archive.put_sealed(sealed.clone(), &content).await.unwrap(), Stored::New);
            let again = archive.put_sealed(sealed, &content).await.unwrap();
            assert_eq!(
                again,
                if mib == 1 { Stored::New } else { Stored::Same },
                "an object is known by its salt"
            );
            assert_eq!(
                archive.put_segment(&facts, content.clone(), WalFlags::default()).await.unwrap(),
                Stored::Same
            );
            let file = archive.get(WalFileName::Segment(facts.name)).await.unwrap().unwrap();
            assert!(file.content == bytes);
            assert_eq!(file.header.unwrap().hash, archive.sealer().content_hash(&bytes));
            assert_eq!(archive.points().await.unwrap().points.len(), 1);
        }
        // Another place than expected, and fewer bytes.
        let short = Arc::new(facts_of_size(NAME, false, size));
        assert!(matches!(sealer(&short, Place::Whole, &bytes), Err(RepoError::Refused { .. })));
        assert!(sealer(&facts, Place::Whole, &bytes[..bytes.len() - 1]).is_err());
        assert!(sealer(&short, Place::Ended(short.end), &bytes).is_ok());
        // What is read for the parts must be what was surveyed.
        if mib == 64 {
            let other = segment(size, 2);
            let sealed = sealer(&facts, Place::Whole, &other).unwrap().remove(0);
            let changed = archives[0].put_sealed(sealed, &content).await.unwrap_err();
            assert!(changed.to_string().contains("changed while it was read"), "{changed}");
        }
    }
}

#[tokio::test]
async fn a_flipped_bit_anywhere_is_found() {
    for Bed { archive, dir } in beds(1).await {
        let size = archive.lineage().segment_size;
        let facts = facts_of_size(NAME, true, size);
        archive.put_segment(&facts, segment(size, 1), WalFlags::default()).await.unwrap();
        let path = dir.path().join(archive.paths().segment(facts.name).as_str());
        let good = std::fs::read(&path).unwrap();
        for at in (0..good.len()).step_by(good.len() / 97) {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            walpoint_base::durable::replace(&path, &bad, 0o600).unwrap();
            let error = archive.get(WalFileName::Segment(facts.name)).await.unwrap_err();
            assert!(matches!(error, RepoError::Corrupt { .. }), "byte {at}: {error}");
        }
        for cut in [0, 1, 127, 128, 300, good.len() - 1] {
            walpoint_base::durable::replace(&path, &good[..cut], 0o600).unwrap();
            assert!(matches!(
                archive.get(WalFileName::Segment(facts.name)).await.unwrap_err(),
                RepoError::Corrupt { .. }
            ));
            assert!(archive.header(facts.name).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_repository_is_made_once_and_known_again() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings::at(dir.path().to_str().unwrap());
    let error = Repository::open("main", &settings).await.unwrap_err();
    let making = Some(Remedy::CreateRepository);
    assert!(matches!(&error, RepoError::NoRepository { remedy, .. } if *remedy == making), "{error}");
    let made = Repository::init("main", &settings, None).await.unwrap();
    let again = Repository::init("main", &settings, None).await.unwrap();
    assert!(!made.existed && again.existed && made.repository.id() == again.repository.id());
    let repository = again.repository;
    repository.read_descriptor_again().await.unwrap();

    let cluster = "main".parse().unwrap();
    let new = || NewLineage {
        system_id: SYSTEM,
        major: PgMajor::new(18).unwrap(),
        segment_size: SegmentSize::DEFAULT,
        wal_block_size: 8192,
        block_size: 8192,
        relation_segment_blocks: 131_072,
        ack: vec![crate::lineage::AckMember { name: "main".into(), repository: repository.id() }],
    };
    assert_eq!(repository.lineages(&cluster).await.unwrap(), Lineages::default());
    repository.create_lineage(&cluster, new()).await.unwrap();
    let second = repository.create_lineage(&cluster, new()).await.unwrap();
    assert_eq!(second.id, LineageId { system_id: SYSTEM, n: 2 });
    assert_eq!(repository.lineage_for(&cluster, SYSTEM).await.unwrap(), Some(second));
    assert_eq!(repository.lineages(&cluster).await.unwrap().read.len(), 2);
    assert_eq!(repository.lineage_for(&cluster, SystemId(5)).await.unwrap(), None);
    assert_eq!(repository.clusters().await.unwrap(), [cluster]);

    // Another repository in its place, and none.
    let descriptor = dir.path().join("walpoint.json");
    walpoint_base::durable::remove(&descriptor).unwrap();
    let error = repository.read_descriptor_again().await.unwrap_err();
    assert!(matches!(error, RepoError::Replaced { .. }), "{error}");
    std::fs::remove_dir_all(dir.path().join("clusters")).unwrap();
    Repository::init("other", &settings, None).await.unwrap();
    let error = repository.read_descriptor_again().await.unwrap_err();
    assert!(matches!(error, RepoError::Replaced { .. }), "{error}");
}
